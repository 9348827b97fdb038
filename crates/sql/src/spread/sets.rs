//! UNION, INTERSECT, EXCEPT and VALUES: the sides of a compound SELECT, and their rows together.

use sqlparser::ast::{Select, SetExpr, SetOperator, SetQuantifier, Values};

use super::Spreading;
use crate::frame::{Frame, Key, Kind, Lie, OutColumn, Shape};
use crate::why::Why;

/// One side of a compound SELECT.
pub(crate) enum Arm<'q> {
    Select(&'q Select),
    Values(&'q Values),
}

/// `UNION` and so on, between an arm and what is before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    UnionAll,
    Union,
    Except,
    Intersect,
}

/// The sides of a body in their order, each with the operator before it. SQLite knows no precedence among these.
pub(crate) fn arms(body: &SetExpr) -> Result<Vec<(Option<Operator>, Arm<'_>)>, Why> {
    match body {
        SetExpr::Select(select) => Ok(vec![(None, Arm::Select(select))]),
        SetExpr::Values(values) => Ok(vec![(None, Arm::Values(values))]),
        SetExpr::SetOperation { op, set_quantifier, left, right } => {
            let operator = match (op, set_quantifier) {
                (SetOperator::Union, SetQuantifier::All) => Operator::UnionAll,
                (SetOperator::Union, SetQuantifier::None) => Operator::Union,
                (SetOperator::Except, SetQuantifier::None) => Operator::Except,
                (SetOperator::Intersect, SetQuantifier::None) => Operator::Intersect,
                _ => return Err(Why::Form),
            };
            let mut found = arms(left)?;
            let mut more = arms(right)?;
            more[0].0 = Some(operator);
            found.extend(more);
            Ok(found)
        }
        _ => Err(Why::Form),
    }
}

impl<'a> Spreading<'_, 'a> {
    /// The shape of all arms together.
    pub fn compound(&mut self, arms: &[(Option<Operator>, Arm)]) -> Result<Shape<'a>, Why> {
        let mut whole: Option<Shape<'a>> = None;
        for (operator, arm) in arms {
            let shape = match arm {
                Arm::Select(select) => {
                    let rows = self.open(select)?;
                    let shape = self.plain_block(select, &rows);
                    self.frames.pop();
                    shape?
                }
                Arm::Values(values) => self.values(values)?,
            };
            whole = Some(match (whole, operator) {
                (Some(left), Some(operator)) => combine(left, shape, *operator)?,
                _ => shape,
            });
        }
        whole.ok_or(Why::Form)
    }

    fn values(&mut self, values: &Values) -> Result<Shape<'a>, Why> {
        self.frames.push(Frame::default());
        let all = values.rows.iter().flat_map(|row| &row.content);
        let local = all.map(|expr| self.expr(expr)).collect::<Result<Vec<_>, Why>>();
        self.frames.pop();
        let lie = if local?.contains(&true) { Lie::Local } else { Lie::Same };
        let width = values.rows.first().map_or(0, |row| row.content.len());
        let column = |at| OutColumn { name: format!("column{at}"), key: Key::No, kind: Kind::Unknown };
        let columns = Some((1..=width).map(column).collect());
        Ok(Shape { lie, columns, drivers: Vec::new(), mentions: Vec::new(), ordered: false })
    }
}

/// The two sides of a compound SELECT together.
fn combine<'a>(left: Shape<'a>, right: Shape<'a>, operator: Operator) -> Result<Shape<'a>, Why> {
    let columns = match (&left.columns, &right.columns) {
        (Some(left), Some(right)) => Some(left.iter().zip(right).map(|(a, b)| both(a, b)).collect::<Vec<_>>()),
        _ => None,
    };
    let keyed =
        |columns: &Option<Vec<OutColumn>>| columns.iter().flatten().any(|column| matches!(column.key, Key::Always(_)));
    let whole = |lie: Lie| matches!(lie, Lie::Same | Lie::Local);
    let lie = match (left.lie, right.lie) {
        (Lie::Same, Lie::Same) => Lie::Same,
        (a, b) if whole(a) && whole(b) => Lie::Local,
        (Lie::Local, _) | (_, Lie::Local) => return Err(Why::Compound),
        (Lie::Spread, Lie::Spread) if operator == Operator::UnionAll || keyed(&columns) => Lie::Spread,
        (Lie::Spread, Lie::Same) if operator == Operator::Except && keyed(&left.columns) => {
            return Ok(Shape { ordered: false, ..left });
        }
        _ if operator == Operator::Union => Lie::Set { distinct: true },
        _ if operator == Operator::UnionAll => Lie::Set { distinct: false },
        _ => return Err(Why::Compound),
    };
    let together = |mut a: Vec<usize>, b: Vec<usize>| {
        a.extend(b);
        a
    };
    Ok(Shape {
        lie,
        columns,
        drivers: together(left.drivers, right.drivers),
        mentions: together(left.mentions, right.mentions),
        ordered: left.ordered || right.ordered,
    })
}

fn both<'a>(left: &OutColumn<'a>, right: &OutColumn<'a>) -> OutColumn<'a> {
    let kind = match (left.kind, right.kind) {
        (Kind::Plain, Kind::Plain) => Kind::Plain,
        (Kind::Column(a, strict), Kind::Column(b, other))
            if a.decl_type.eq_ignore_ascii_case(&b.decl_type) && a.collation == b.collation && strict == other =>
        {
            left.kind
        }
        _ => Kind::Unknown,
    };
    OutColumn { name: left.name.clone(), key: left.key.both(right.key), kind }
}
