//! The columns that a SELECT gives, and their names as PostgreSQL chooses them.

use sqlparser::ast::{DataType, Expr, Select, SelectItem, SelectItemQualifiedWildcardKind, TrimWhereField};

use super::analysis::Analysis;
use super::tree::last_ident;

/// One column of the result.
#[derive(Debug)]
pub(super) struct Output<'q> {
    pub name: String,
    /// The item's expression; `None` for one of a star's columns.
    pub expr: Option<&'q Expr>,
}

/// All columns; `None` when they aren't certain.
pub(super) fn outputs<'q>(analysis: &Analysis, select: &'q Select, scope: usize) -> Option<Vec<Output<'q>>> {
    let mut found = Vec::new();
    let level = &analysis.scopes[scope];
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => found.push(Output { name: column_name(expr)?, expr: Some(expr) }),
            SelectItem::ExprWithAlias { expr, alias } => {
                found.push(Output { name: alias.value.clone(), expr: Some(expr) })
            }
            SelectItem::Wildcard(_) if level.merged.is_empty() => {
                for source in &level.sources {
                    let columns = source.columns.as_ref()?.iter();
                    found.extend(columns.map(|name| Output { name: name.clone(), expr: None }));
                }
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let alias = last_ident(name)?;
                let mut sources = level.sources.iter().filter(|source| source.alias == alias.value);
                let (Some(source), None) = (sources.next(), sources.next()) else { return None };
                let columns = source.columns.as_ref()?.iter();
                found.extend(columns.map(|name| Output { name: name.clone(), expr: None }));
            }
            _ => return None,
        }
    }
    (!found.is_empty()).then_some(found)
}

/// The name that PostgreSQL gives to a column without an alias; `None` when that isn't certain.
fn column_name(expr: &Expr) -> Option<String> {
    Some(figure(expr)?.map_or_else(|| "?column?".to_owned(), |(name, _)| name))
}

/// The name, and whether it is as good as an alias: a cast keeps a good one, and else goes by its type's name. `Some(None)`: there is none.
fn figure(expr: &Expr) -> Option<Option<(String, bool)>> {
    let good = |name: &str| Some(Some((name.to_owned(), true)));
    match expr {
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => figure(inner),
        Expr::Identifier(ident) => good(&ident.value),
        Expr::CompoundIdentifier(idents) => good(&idents.last()?.value),
        Expr::Function(function) => good(&last_ident(&function.name)?.value),
        Expr::AtTimeZone { .. } => good("timezone"),
        Expr::Extract { .. } => good("extract"),
        Expr::Position { .. } => good("position"),
        Expr::Overlay { .. } => good("overlay"),
        Expr::Ceil { .. } => good("ceil"),
        Expr::Floor { .. } => good("floor"),
        Expr::Substring { .. } => good("substring"),
        Expr::Exists { negated: false, .. } => good("exists"),
        Expr::Array(_) => good("array"),
        Expr::Trim { trim_where, .. } => good(match trim_where {
            None | Some(TrimWhereField::Both) => "btrim",
            Some(TrimWhereField::Leading) => "ltrim",
            Some(TrimWhereField::Trailing) => "rtrim",
        }),
        Expr::Case { else_result, .. } => match else_result.as_ref().map(|expr| figure(expr)) {
            Some(None) => None,
            Some(Some(Some((name, true)))) => good(&name),
            _ => Some(Some(("case".to_owned(), false))),
        },
        Expr::Cast { expr, data_type, .. } => match figure(expr)? {
            Some((name, true)) => good(&name),
            _ => Some(Some((type_name(data_type)?.to_owned(), false))),
        },
        Expr::TypedString(typed) => Some(Some((type_name(&typed.data_type)?.to_owned(), false))),
        Expr::Interval(_) => Some(Some(("interval".to_owned(), false))),
        Expr::Value(_)
        | Expr::BinaryOp { .. }
        | Expr::UnaryOp { .. }
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::InList { .. }
        | Expr::Between { .. }
        | Expr::Like { .. }
        | Expr::ILike { .. }
        | Expr::IsDistinctFrom(..)
        | Expr::IsNotDistinctFrom(..)
        | Expr::AnyOp { .. }
        | Expr::AllOp { .. }
        | Expr::Exists { negated: true, .. } => Some(None),
        _ => None,
    }
}

/// PostgreSQL's own name of a type.
fn type_name(data_type: &DataType) -> Option<&'static str> {
    use DataType as D;
    Some(match data_type {
        D::Int(None) | D::Integer(None) | D::Int4(None) => "int4",
        D::BigInt(None) | D::Int8(None) => "int8",
        D::SmallInt(None) | D::Int2(None) => "int2",
        D::Text => "text",
        D::Varchar(_) | D::CharacterVarying(_) => "varchar",
        D::Numeric(_) | D::Decimal(_) => "numeric",
        D::Real | D::Float4 => "float4",
        D::DoublePrecision | D::Float8 => "float8",
        D::Boolean | D::Bool => "bool",
        D::Uuid => "uuid",
        D::Date => "date",
        D::Bytea => "bytea",
        D::JSON => "json",
        D::JSONB => "jsonb",
        D::Timestamp(_, sqlparser::ast::TimezoneInfo::None | sqlparser::ast::TimezoneInfo::WithoutTimeZone) => {
            "timestamp"
        }
        D::Timestamp(_, _) => "timestamptz",
        D::Interval { .. } => "interval",
        _ => return None,
    })
}
