//! The names under which servers keep Pleat's prepared transactions, and what may become of those that are left behind.

use std::fmt;
use std::str::FromStr;

use crate::{Catalog, OperationId, TxnId};

/// A prepared transaction of Pleat's. Its text is the transaction's name on the server, in SQL as `'{name}'`: it has
/// letters, digits and underscores only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PreparedName {
    /// A client's, which the ledger decides: `pleat_` and 32 hexadecimal digits.
    Txn(TxnId),
    /// One attempt at a schema change, which its operation decides: `pleat_ddl_12_1`.
    Ddl { operation: OperationId, attempt: u32 },
}

impl PreparedName {
    /// What the names of all attempts of an operation begin with.
    pub fn of_operation(operation: OperationId) -> String {
        format!("pleat_ddl_{}_", operation.0)
    }
}

impl fmt::Display for PreparedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PreparedName::Txn(txn) => write!(f, "pleat_{:032x}", txn.0),
            PreparedName::Ddl { operation, attempt } => {
                write!(f, "{}{attempt}", PreparedName::of_operation(*operation))
            }
        }
    }
}

impl FromStr for PreparedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || {
            let rest = text.strip_prefix("pleat_")?;
            let name = match rest.strip_prefix("ddl_") {
                Some(rest) => {
                    let (operation, attempt) = rest.split_once('_')?;
                    PreparedName::Ddl {
                        operation: OperationId(operation.parse().ok()?),
                        attempt: attempt.parse().ok()?,
                    }
                }
                None => PreparedName::Txn(TxnId(u128::from_str_radix(rest, 16).ok()?)),
            };
            // Nothing that only looks like it: a sign, other letters, leading zeros.
            (name.to_string() == text).then_some(name)
        };
        known().ok_or_else(|| format!("'{text}' is no name of a prepared transaction of Pleat's"))
    }
}

impl Catalog {
    /// What is to become of an attempt at a schema change that a server has prepared, if that is not its operation's to say any more: whether it is to
    /// be committed.
    ///
    /// It is to be rolled back when it can't be committed any more: a newer one has begun, or the operation has ended without a commit. The one that
    /// was committed is to be committed also when its operation has ended: every server was told by then, but a standby that has become the primary
    /// since may not have heard of it. By an old catalog the answer is `None`.
    pub fn left_behind(&self, operation: OperationId, attempt: u32) -> Option<bool> {
        match self.operations.get(&operation) {
            Some(known) if attempt < known.attempts => Some(false),
            Some(known) => known.phase.is_final().then_some(known.committed && attempt == known.attempts),
            // It ended long ago; or the catalog does not know it yet.
            None => (operation.0 <= self.last_operation).then_some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_no_other_is() {
        let names = [
            PreparedName::Txn(TxnId(0)),
            PreparedName::Txn(TxnId(u128::MAX)),
            PreparedName::Ddl { operation: OperationId(12), attempt: 3 },
        ];
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert!(names[2].to_string().starts_with(&PreparedName::of_operation(OperationId(12))));
        let hex = "0".repeat(31);
        let others = [
            "",
            "pleat_",
            "pleat_ddl_1",
            "pleat_ddl_01_1",
            "pleat_ddl_1_+1",
            "mine",
            &format!("pleat_+{hex}"),
            &format!("pleat_{hex}A"),
        ];
        for other in others {
            assert!(other.parse::<PreparedName>().is_err(), "{other}");
        }
    }
}
