//! PostgreSQL's types over SQLite's values.
//!
//! # The problem
//!
//! SQLite's values have types and its columns only tendencies: an INTEGER column may hold a text. A PostgreSQL client is
//! told a column's type before the first row, and takes every value for one of it.
//!
//! # The rules
//!
//! - A column's type follows from the type that it was declared with ([`Type::declared`]); an expression's from what is
//!   known about it ([`super::known`]); otherwise it is `text`. Integers are always `int8`, because SQLite's are.
//! - **In text format every value is sent as SQLite writes it**, whatever the column's type says; only `0` and `1` in a
//!   BOOLEAN column become `f` and `t`, bytes `\x…`, and what is a moment in a TIMESTAMP column gets the form that it has in PostgreSQL, as drivers
//!   take no other (an ISO text from JavaScript would come back as nothing). So nothing is ever lost, and psql shows what is there.
//!   Parameters get the same form, so that a moment is found again by what was read.
//! - **In binary format a value that is not one of the column's type is an error** (`22P02`, [`value`]), never
//!   something else. `CAST(column AS TEXT)` reads it.
//! - A parameter becomes a value by its type: what the client says, else what the statement says, else text. SQLite's
//!   affinity does the rest, as it does for every value: `'5'` finds 5 in an INTEGER column.

mod moment;
mod numeric;
pub mod value;

/// A type that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Type {
    Bool,
    Bytea,
    Char,
    Name,
    Int8,
    Int2,
    Int4,
    Text,
    Oid,
    Json,
    Float4,
    Float8,
    Unknown,
    Bpchar,
    Varchar,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Numeric,
    Uuid,
    Jsonb,
}

/// What the catalog says of a type.
#[derive(Debug)]
pub struct About {
    pub of: Type,
    pub oid: u32,
    pub name: &'static str,
    /// As SQL has it.
    pub formal: &'static str,
    /// In bytes; -1 when it varies.
    pub size: i16,
    pub category: char,
}

/// Every type.
pub const TYPES: [About; 22] = [
    about(Type::Bool, 16, "bool", "boolean", 1, 'B'),
    about(Type::Bytea, 17, "bytea", "bytea", -1, 'U'),
    about(Type::Char, 18, "char", "\"char\"", 1, 'Z'),
    about(Type::Name, 19, "name", "name", 64, 'S'),
    about(Type::Int8, 20, "int8", "bigint", 8, 'N'),
    about(Type::Int2, 21, "int2", "smallint", 2, 'N'),
    about(Type::Int4, 23, "int4", "integer", 4, 'N'),
    about(Type::Text, 25, "text", "text", -1, 'S'),
    about(Type::Oid, 26, "oid", "oid", 4, 'N'),
    about(Type::Json, 114, "json", "json", -1, 'U'),
    about(Type::Float4, 700, "float4", "real", 4, 'N'),
    about(Type::Float8, 701, "float8", "double precision", 8, 'N'),
    about(Type::Unknown, 705, "unknown", "unknown", -2, 'X'),
    about(Type::Bpchar, 1042, "bpchar", "character", -1, 'S'),
    about(Type::Varchar, 1043, "varchar", "character varying", -1, 'S'),
    about(Type::Date, 1082, "date", "date", 4, 'D'),
    about(Type::Time, 1083, "time", "time without time zone", 8, 'D'),
    about(Type::Timestamp, 1114, "timestamp", "timestamp without time zone", 8, 'D'),
    about(Type::Timestamptz, 1184, "timestamptz", "timestamp with time zone", 8, 'D'),
    about(Type::Numeric, 1700, "numeric", "numeric", -1, 'N'),
    about(Type::Uuid, 2950, "uuid", "uuid", 16, 'U'),
    about(Type::Jsonb, 3802, "jsonb", "jsonb", -1, 'U'),
];

const fn about(of: Type, oid: u32, name: &'static str, formal: &'static str, size: i16, category: char) -> About {
    About { of, oid, name, formal, size, category }
}

impl Type {
    pub fn about(self) -> &'static About {
        // Every type is in the list, which a test checks.
        TYPES.iter().find(|about| about.of == self).unwrap_or(&TYPES[7])
    }

    pub fn oid(self) -> u32 {
        self.about().oid
    }

    pub fn of_oid(oid: u32) -> Option<Type> {
        TYPES.iter().find(|about| about.oid == oid).map(|about| about.of)
    }

    /// The type that a column declared so has for clients; `None` when the declaration says nothing.
    pub fn declared(declared: &str) -> Option<Type> {
        let upper = declared.to_ascii_uppercase();
        let base = upper.split('(').next().unwrap_or("").trim();
        let zoned = upper.contains("WITH TIME ZONE") && !upper.contains("WITHOUT");
        Some(match base.trim_matches('"') {
            "" => return None,
            "BOOL" | "BOOLEAN" => Type::Bool,
            "OID" | "REGCLASS" | "REGTYPE" | "REGPROC" | "XID" => Type::Oid,
            "NAME" => Type::Name,
            // Of the system catalog only: no other table has a type called so.
            "PG_CHAR" => Type::Char,
            "DATE" => Type::Date,
            "UUID" => Type::Uuid,
            "JSON" => Type::Json,
            "JSONB" => Type::Jsonb,
            "TIMESTAMPTZ" => Type::Timestamptz,
            "TIME" | "TIME WITHOUT TIME ZONE" => Type::Time,
            "DATETIME" => Type::Timestamp,
            base if base.starts_with("TIMESTAMP") && zoned => Type::Timestamptz,
            base if base.starts_with("TIMESTAMP") => Type::Timestamp,
            "SERIAL" | "BIGSERIAL" | "SMALLSERIAL" | "INTEGER" => Type::Int8,
            "NUMERIC" | "DECIMAL" | "NUMBER" | "MONEY" => Type::Numeric,
            "REAL" | "FLOAT" | "FLOAT4" | "FLOAT8" | "DOUBLE" | "DOUBLE PRECISION" => Type::Float8,
            "BLOB" | "BYTEA" | "BINARY" | "VARBINARY" | "BYTES" => Type::Bytea,
            "VARCHAR" | "CHARACTER VARYING" | "NVARCHAR" => Type::Varchar,
            "POINT" | "INTERVAL" => Type::Text,
            // TINYINT, INT UNSIGNED, INT4 and their like.
            base if base.split(' ').any(is_integer_word) => Type::Int8,
            _ => Type::Text,
        })
    }

    /// The type that a cast to it names: as declared, but integers have the size that they are said to have.
    pub fn cast(name: &str) -> Option<Type> {
        match name.to_ascii_lowercase().as_str() {
            "int2" | "smallint" => Some(Type::Int2),
            "int" | "int4" | "integer" => Some(Type::Int4),
            "char" | "character" | "bpchar" => Some(Type::Bpchar),
            "float4" | "real" => Some(Type::Float4),
            "unknown" => Some(Type::Unknown),
            _ => Type::declared(name),
        }
    }

    /// What SQLite's CAST takes for it.
    pub fn affinity(self) -> &'static str {
        match self {
            Type::Bool | Type::Int8 | Type::Int2 | Type::Int4 | Type::Oid => "INTEGER",
            Type::Float4 | Type::Float8 => "REAL",
            Type::Numeric => "NUMERIC",
            Type::Bytea => "BLOB",
            Type::Char | Type::Name | Type::Text | Type::Unknown | Type::Bpchar | Type::Varchar => "TEXT",
            Type::Json | Type::Jsonb | Type::Uuid => "TEXT",
            Type::Date | Type::Time | Type::Timestamp | Type::Timestamptz => "TEXT",
        }
    }

    /// Whether a value of it says nothing about what it is meant for.
    pub fn is_text(self) -> bool {
        matches!(self, Type::Text | Type::Unknown | Type::Varchar | Type::Bpchar | Type::Name)
    }
}

fn is_integer_word(word: &str) -> bool {
    word.trim_end_matches(|digit: char| digit.is_ascii_digit()).ends_with("INT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_described_once() {
        for about in &TYPES {
            assert_eq!(about.of.about().oid, about.oid);
            assert_eq!(Type::of_oid(about.oid), Some(about.of));
        }
    }

    #[test]
    fn declarations_of_every_dialect() {
        for (declared, wanted) in [
            ("INTEGER", Type::Int8),
            ("bigint", Type::Int8),
            ("INT UNSIGNED", Type::Int8),
            ("int4", Type::Int8),
            ("VARCHAR(20)", Type::Varchar),
            ("TEXT", Type::Text),
            ("BOOLEAN", Type::Bool),
            ("double precision", Type::Float8),
            ("DECIMAL(10, 2)", Type::Numeric),
            ("TIMESTAMP", Type::Timestamp),
            ("TIMESTAMP(3) WITH TIME ZONE", Type::Timestamptz),
            ("timestamp without time zone", Type::Timestamp),
            ("BLOB", Type::Bytea),
            ("INTERVAL", Type::Text),
            ("POINT", Type::Text),
            ("PRINT", Type::Int8),
            ("whatever", Type::Text),
        ] {
            assert_eq!(Type::declared(declared), Some(wanted), "{declared}");
        }
        assert_eq!(Type::declared(""), None);
        assert_eq!(Type::cast("Integer"), Some(Type::Int4));
        assert_eq!(Type::cast("numeric(3)"), Some(Type::Numeric));
    }
}
