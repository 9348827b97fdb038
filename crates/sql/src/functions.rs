//! What Pleat knows about SQLite's functions: which may run on a shard instead of in the finisher.

/// Scalar functions whose result depends on nothing but their arguments (and the statement's one "now"),
/// and that never fail on odd arguments. A filter may run on a shard only if it uses no others.
#[rustfmt::skip]
const PURE: &[&str] = &[
    "acos", "asin", "atan", "ceil", "ceiling", "char", "coalesce", "concat", "concat_ws", "date", "datetime", "exp",
    "floor", "glob", "hex", "if", "ifnull", "iif", "instr", "julianday", "length", "like", "ln", "log", "log10",
    "log2", "lower", "ltrim", "max", "min", "mod", "nullif", "octet_length", "pi", "pow", "power", "quote", "round",
    "rtrim", "sign", "sqrt", "strftime", "substr", "substring", "time", "timediff", "trim", "trunc", "typeof",
    "unicode", "unixepoch", "upper",
];

/// Functions that answer differently at each call or on each connection.
const VOLATILE: &[&str] = &["changes", "last_insert_rowid", "load_extension", "random", "randomblob", "total_changes"];

/// Aggregates; `min` and `max` are ones only with a single argument.
#[rustfmt::skip]
const AGGREGATES: &[&str] = &[
    "avg", "count", "group_concat", "json_group_array", "json_group_object", "jsonb_group_array",
    "jsonb_group_object", "max", "median", "min", "percentile", "percentile_cont", "percentile_disc", "string_agg",
    "sum", "total",
];

fn is_one_of(list: &[&str], name: &str) -> bool {
    list.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a scalar call of `name` gives the same value on a shard as in the finisher, for every row.
pub(crate) fn is_pure(name: &str) -> bool {
    is_one_of(PURE, name)
}

pub(crate) fn is_volatile(name: &str) -> bool {
    is_one_of(VOLATILE, name)
}

/// Whether a call of `name` with this many arguments is an aggregate.
pub(crate) fn is_aggregate(name: &str, arguments: usize) -> bool {
    let two_faced = name.eq_ignore_ascii_case("min") || name.eq_ignore_ascii_case("max");
    is_one_of(AGGREGATES, name) && (arguments == 1 || !two_faced)
}

/// The table-valued functions of SQLite that may stand in a FROM, with their columns.
pub(crate) fn table_function(name: &str) -> Option<&'static [&'static str]> {
    const JSON: &[&str] = &["key", "value", "type", "atom", "id", "parent", "fullkey", "path", "json", "root"];
    let known = ["json_each", "json_tree", "jsonb_each", "jsonb_tree"];
    is_one_of(&known, name).then_some(JSON)
}
