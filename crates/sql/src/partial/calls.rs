//! Calls of aggregates: what shards compute for each, and the expression that merges it.

use super::{Extra, Merge, PartValue, extra_name, has_calls_in, is_collated, part_name};
use crate::clauses::{Span, list};
use crate::fetch::column_definition;
use crate::frame::{Key, Kind, Named};
use crate::lex::Kind as Token;
use crate::parse::expression;
use crate::spread::kind_of;
use crate::why::Why;

/// A call of an aggregate in the tokens.
pub(super) struct Call {
    name: String,
    distinct: bool,
    arguments: Span,
    filter: Option<Span>,
    pub(super) end: usize,
}

impl Merge<'_, '_, '_, '_> {
    /// The aggregate call that starts at `index`, if one does.
    pub(super) fn call(&self, index: usize, end: usize) -> Result<Option<Call>, Why> {
        let tokens = self.tokens();
        if !tokens.is_symbol(index + 1, "(") || !matches!(tokens.kind(index), Some(Token::Word | Token::Name)) {
            return Ok(None);
        }
        let name = tokens.name(index).unwrap_or_default().to_ascii_lowercase();
        let close = tokens.closing(index + 1);
        let mut arguments = (index + 2, close);
        let count = if arguments.0 == arguments.1 { 0 } else { list(tokens, arguments).len() };
        if !crate::functions::is_aggregate(&name, count) {
            return Ok(None);
        }
        let distinct = tokens.is(arguments.0, "DISTINCT");
        arguments.0 += usize::from(distinct || tokens.is(arguments.0, "ALL"));
        let filtered = tokens.is(close + 1, "FILTER") && tokens.is_symbol(close + 2, "(") && close + 2 < end;
        let filter_close = if filtered { tokens.closing(close + 2) } else { close };
        let filter = filtered.then_some((close + 2, filter_close + 1));
        self.check_call(arguments, filter)?;
        Ok(Some(Call { name, distinct, arguments, filter, end: filter_close + 1 }))
    }

    /// Refuses arguments that can't be taken apart.
    fn check_call(&self, arguments: Span, filter: Option<Span>) -> Result<(), Why> {
        let tokens = self.tokens();
        let star = arguments.1 == arguments.0 || (arguments.1 == arguments.0 + 1 && tokens.is_symbol(arguments.0, "*"));
        let inner = filter.map(|(open, end)| (open + 2, end - 1));
        for span in (!star).then_some(arguments).into_iter().chain(inner) {
            let expr = expression(tokens, self.slots(), span.0, span.1).ok_or(Why::Aggregate)?;
            if has_calls_in(&expr) {
                return Err(Why::Aggregate);
            }
        }
        Ok(())
    }

    /// Notes what shards compute for `call`, and gives the expression that merges it.
    pub(super) fn merged(&mut self, call: &Call) -> Result<String, Why> {
        let name = call.name.as_str();
        match name {
            "min" | "max" => {
                if self.is_collated(call.arguments) {
                    return Err(Why::Collation);
                }
                let part = self.part(call, &format!("{name}({{}})"));
                Ok(format!("{name}({part})"))
            }
            "count" | "sum" | "total" | "avg" if call.distinct => self.merged_distinct(call),
            "count" => {
                let part = self.part(call, "count({})");
                Ok(format!("coalesce(sum({part}), 0)"))
            }
            "sum" | "total" => {
                let part = self.part(call, &format!("{name}({{}})"));
                Ok(format!("{name}({part})"))
            }
            "avg" => Ok(self.avg(call)),
            _ => Err(Why::Aggregate),
        }
    }

    fn merged_distinct(&mut self, call: &Call) -> Result<String, Why> {
        let (tokens, slots) = (self.tokens(), self.slots());
        let expr = expression(tokens, slots, call.arguments.0, call.arguments.1).ok_or(Why::Aggregate)?;
        let (key, kind) = match self.spreading.named(&expr) {
            Some(Named::Column { frame, column, .. }) if frame + 1 == self.spreading.frames.len() => {
                (column.key, column.kind)
            }
            Some(_) => return Err(Why::Aggregate),
            None => (Key::No, kind_of(&expr)),
        };
        if call.name == "count" && key.key_type().is_some() && !self.keys_are_values {
            self.distinct_keys = true;
            let part = self.part(call, "count(DISTINCT {})");
            return Ok(format!("coalesce(sum({part}), 0)"));
        }
        let definition = match kind {
            Kind::Column(column, strict) if call.name == "count" || !is_collated(column) => {
                column_definition("", column, strict).trim_start_matches("\"\"").to_owned()
            }
            Kind::Plain => String::new(),
            Kind::Column(..) | Kind::Unknown => return Err(Why::Collation),
        };
        // A CASE has neither affinity nor collation.
        if call.filter.is_some() && definition.contains(" COLLATE ") {
            return Err(Why::Collation);
        }
        self.extras.push(Extra { arguments: call.arguments, filter: call.filter, definition });
        Ok(format!("{}(DISTINCT {})", call.name, extra_name(self.extras.len() - 1)))
    }

    /// The average as SQLite computes it: an exact sum of the integers plus the sum of the reals, over the count.
    ///
    /// `total(x)` alone is rounded, and what is lost shows when shards' sums cancel each other out. So a shard also gives the
    /// sum of its integers' lower halves (each from 0 to 2^32 - 1, so it can't overflow). The sum of the upper halves is then
    /// what is nearest, `round((total - low) / 2^32)`, and both together are exact if they make up the total. They don't if there
    /// are fractions among the values: then the total is what counts. To find that out at the end costs nothing; a shard that
    /// looks at the type of each value takes longer for it than for the sum.
    fn avg(&mut self, call: &Call) -> String {
        let count = self.part(call, "count({})");
        let total = self.part(call, "total({})");
        let low = self.part(call, "sum(({}) & 4294967295)");
        let high = format!("CAST(round(({total} - {low}) / 4294967296.0) AS INTEGER)");
        let exact = format!("{high} * 4294967296.0 + {low} = {total}");
        format!(
            "((total(iif({exact}, {high}, 0)) * 4294967296.0 + total(iif({exact}, {low}, {total}))) / sum({count}))"
        )
    }

    /// Whether a name in `span` may be of a column with a collation of its own.
    fn is_collated(&self, span: Span) -> bool {
        let sources = self.spreading.frames.last().map(|frame| frame.sources.as_slice()).unwrap_or_default();
        let collated = |index: usize| {
            let name = self.tokens().name(index).unwrap_or_default().to_ascii_lowercase();
            let columns = sources.iter().filter_map(|source| source.column(source.find(&name)?));
            name == "collate"
                || columns.into_iter().any(|column| match column.kind {
                    Kind::Column(column, _) => is_collated(column),
                    Kind::Plain => false,
                    Kind::Unknown => true,
                })
        };
        (span.0..span.1).any(collated)
    }

    fn part(&mut self, call: &Call, template: &str) -> String {
        self.parts.push(PartValue { template: template.to_owned(), arguments: call.arguments, filter: call.filter });
        part_name(self.parts.len() - 1)
    }
}
