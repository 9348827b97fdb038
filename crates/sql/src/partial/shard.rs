//! What shards run: the values of the groups, and the parts of the aggregates.

use super::{Extra, Merge, extra_name, group_name, part_name};
use crate::clauses::{Output, Span};
use crate::shard_sql::Copy;

impl Merge<'_, '_, '_, '_> {
    pub(super) fn definitions(&self) -> String {
        let groups =
            self.groups.iter().enumerate().map(|(at, group)| format!("{}{}", group_name(at), group.definition));
        let extras =
            self.extras.iter().enumerate().map(|(at, extra)| format!("{}{}", extra_name(at), extra.definition));
        let parts = (0..self.parts.len()).map(part_name);
        let all: Vec<String> = groups.chain(extras).chain(parts).collect();
        all.join(", ")
    }

    pub(super) fn shard_statement(&self, span: Span, owned: bool) -> Output {
        let analysis = self.spreading.analysis;
        let copy = Copy::default();
        let mut output = Output::default();
        let select = self.clauses.items.0 - 1;
        let with_end =
            if self.tokens().is(select, "DISTINCT") || self.tokens().is(select, "ALL") { select - 1 } else { select };
        copy.write(analysis, (span.0, with_end), owned, &mut output);
        if !output.sql.is_empty() {
            output.push(" ");
        }
        output.push("SELECT ");
        let mut columns = 0;
        let mut comma = |output: &mut Output| {
            output.push(if columns > 0 { ", " } else { "" });
            columns += 1;
        };
        for group in &self.groups {
            comma(&mut output);
            copy.write(analysis, group.term, owned, &mut output);
        }
        for extra in &self.extras {
            comma(&mut output);
            self.write_extra(extra, owned, &mut output);
        }
        for part in &self.parts {
            comma(&mut output);
            for (piece, text) in part.template.split("{}").enumerate() {
                if piece > 0 {
                    copy.write(analysis, part.arguments, owned, &mut output);
                }
                output.push(text);
            }
            if let Some(filter) = part.filter {
                output.push(" FILTER ");
                copy.write(analysis, filter, owned, &mut output);
            }
        }
        if let Some(from) = self.clauses.from {
            let end = self.clauses.filter.map_or(from.1, |filter| filter.1);
            output.push(" ");
            copy.write(analysis, (from.0 - 1, end), owned, &mut output);
        }
        let numbers = 1..=self.groups.len() + self.extras.len();
        let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
        if !numbers.is_empty() {
            output.push(&format!(" GROUP BY {}", numbers.join(", ")));
        }
        output
    }

    fn write_extra(&self, extra: &Extra, owned: bool, output: &mut Output) {
        let (analysis, copy) = (self.spreading.analysis, Copy::default());
        let Some((open, end)) = extra.filter else {
            copy.write(analysis, extra.arguments, owned, output);
            return;
        };
        output.push("CASE WHEN ");
        copy.write(analysis, (open + 2, end - 1), owned, output);
        output.push(" THEN ");
        copy.write(analysis, extra.arguments, owned, output);
        output.push(" END");
    }
}
