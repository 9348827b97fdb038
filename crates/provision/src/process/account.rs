//! Whom the server runs as. PostgreSQL refuses to run as root, rightly.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::unistd::{Uid, User, geteuid};

use super::ProcessError;

/// Accounts that a server may run as when Pleat is root. The first that exists.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// An account that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

/// The account for a server with this data: none when we are not root, who alone can choose.
pub fn of(data: &Path) -> Result<Option<Account>, ProcessError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    if let Ok(meta) = fs::metadata(data)
        && meta.uid() != 0
    {
        // Its files are that one's.
        return Ok(Some(Account { uid: meta.uid(), gid: meta.gid() }));
    }
    let known = |name: &&str| User::from_name(name).ok().flatten();
    let user = ACCOUNTS.iter().find_map(known).ok_or_else(|| {
        let names = ACCOUNTS.join(" or ");
        ProcessError::Unfit(format!("PostgreSQL does not run as root, and there is no account {names}; add one"))
    })?;
    Ok(Some(Account { uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
}

impl Account {
    /// Give it a file or folder.
    pub fn own(self, path: &Path) -> Result<(), ProcessError> {
        chown(path, Some(self.uid), Some(self.gid)).map_err(ProcessError::io("give the server's account", path))
    }

    /// Whether it can get at what is in a folder: every folder on the way has to let it pass.
    pub fn reaches(self, dir: &Path) -> Result<(), ProcessError> {
        let closed = dir.ancestors().find(|folder| !self.passes(folder));
        let Some(closed) = closed else { return Ok(()) };
        Err(ProcessError::Unfit(format!(
            "the account {} that the server runs as can't reach {}: {} is closed to it; choose another directory, or let \
             others pass (chmod o+x)",
            self.name(),
            dir.display(),
            closed.display()
        )))
    }

    fn passes(self, folder: &Path) -> bool {
        let Ok(meta) = fs::metadata(folder) else { return false };
        let bit = match () {
            () if meta.uid() == self.uid => 0o100,
            () if meta.gid() == self.gid => 0o010,
            () => 0o001,
        };
        meta.mode() & bit != 0
    }

    fn name(self) -> String {
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        user.map_or_else(|| self.uid.to_string(), |user| user.name)
    }
}
