//! What was found and what is proposed, for people and for programs.

use std::io;

use pleat_engine::postgres::Dsn;
use pleat_sql::postgres::adopt::{Judged, Obstacle, Proposal, Score, StatementFacts, TableProposal, Verdict};
use serde_json::{Map, Value, json};

use super::look::{Found, Source};
use crate::cli::output;

/// What is shown to people: statements of each kind that are worth a look, and other families.
const STATEMENTS_SHOWN: usize = 10;
const ALTERNATIVES_SHOWN: usize = 3;
const TEXT_SHOWN: usize = 110;

/// The kinds of verdicts that a share is told of, with words for people.
const KINDS: [(&str, &str); 6] = [
    ("one_shard", "to the one shard of their key"),
    ("any_shard", "to any shard (reference tables alone)"),
    ("single_tables", "to the shard of the single tables"),
    ("several_shards", "to several shards"),
    ("every_copy", "to all shards alike (writes to reference tables, upkeep)"),
    ("refused", "refused"),
];

/// What there is of one kind.
#[derive(Default)]
struct Share {
    statements: u64,
    calls: u64,
    time_ms: f64,
}

fn statements<'a>(found: &'a Found, proposal: &'a Proposal) -> impl Iterator<Item = (&'a StatementFacts, &'a Judged)> {
    found.database.statements.iter().zip(&proposal.statements)
}

fn share_of(found: &Found, proposal: &Proposal, kind: Option<&str>) -> Share {
    let mut share = Share::default();
    for (facts, judged) in statements(found, proposal) {
        let name = judged.verdict.name();
        let counts = kind.map_or_else(|| KINDS.iter().any(|(kind, _)| *kind == name), |kind| kind == name);
        if counts {
            share.statements += 1;
            share.calls += facts.calls;
            share.time_ms += facts.time_ms;
        }
    }
    share
}

fn part(of: f64, all: f64) -> f64 {
    if all > 0.0 { of / all } else { 0.0 }
}

// ---- for programs ----

pub fn json(dsn: &Dsn, found: &Found, proposal: &Proposal) -> Value {
    let (from, note) = match found.source {
        Source::Statements => ("pg_stat_statements", None),
        Source::Tables(why) => ("pg_stat_user_tables", Some(why)),
    };
    let all = share_of(found, proposal, None);
    let shares: Map<String, Value> = KINDS
        .iter()
        .map(|(kind, _)| {
            let share = share_of(found, proposal, Some(kind));
            let value = json!({
                "statements": share.statements, "calls": share.calls, "time_ms": share.time_ms,
                "calls_share": part(share.calls as f64, all.calls as f64), "time_share": part(share.time_ms, all.time_ms),
            });
            ((*kind).to_owned(), value)
        })
        .collect();
    let table = |(table, facts): (&TableProposal, &pleat_sql::postgres::adopt::TableFacts)| {
        json!({
            "name": table.name, "placement": table.placed.name(), "key": table.placed.column(), "rows": facts.rows,
            "bytes": facts.bytes, "reasons": table.reasons,
        })
    };
    let judged = |(facts, judged): (&StatementFacts, &Judged)| {
        let mut value = json!({
            "statement": facts.text, "calls": facts.calls, "time_ms": facts.time_ms, "verdict": judged.verdict.name(),
        });
        if let Verdict::Refused { sqlstate, message, hint } = &judged.verdict {
            value["sqlstate"] = json!(sqlstate);
            value["why"] = json!(message);
            value["hint"] = json!(hint);
        }
        value
    };
    json!({
        "server": dsn.to_string(),
        "database": found.name,
        "version": found.version,
        "bytes": found.bytes,
        "statistics": {"from": from, "note": note, "left_out": found.left_out},
        "root": proposal.root,
        "score": score(&proposal.score),
        "tables": proposal.tables.iter().zip(&found.database.tables).map(table).collect::<Vec<_>>(),
        "table_shard_keys": keys(proposal),
        "obstacles": proposal.obstacles.iter().map(obstacle).collect::<Vec<_>>(),
        "shares": shares,
        "statements": statements(found, proposal).map(judged).collect::<Vec<_>>(),
        "alternatives": proposal.alternatives.iter().map(|other| {
            json!({"root": other.root, "sharded": other.sharded, "score": score(&other.score)})
        }).collect::<Vec<_>>(),
        "settings": found.settings,
        "changed": false,
    })
}

fn score(score: &Score) -> Value {
    json!({
        "total": score.total(), "statements": score.statements, "spread": score.spread, "together": score.together,
        "obstacles": score.obstacles,
    })
}

fn obstacle(obstacle: &Obstacle) -> Value {
    json!({
        "table": obstacle.table, "kind": obstacle.kind.name(), "what": obstacle.what, "why": obstacle.why,
        "remedy": obstacle.remedy,
    })
}

/// As the configuration has it.
fn keys(proposal: &Proposal) -> Map<String, Value> {
    let tables = proposal.tables.iter();
    tables.filter_map(|table| Some((table.name.clone(), json!(table.placed.column()?)))).collect()
}

// ---- for people ----

pub fn people(dsn: &Dsn, found: &Found, proposal: &Proposal) -> io::Result<()> {
    let database = &found.database;
    output::line(&format!(
        "{dsn}: PostgreSQL {}, {} tables, {} foreign keys, {}",
        found.version,
        database.tables.len(),
        database.references.len(),
        output::bytes(found.bytes)
    ))?;
    output::line(&match found.source {
        Source::Statements => format!(
            "by its foreign keys, and {} statements that pg_stat_statements has (those that took most time)",
            database.statements.len()
        ),
        Source::Tables(why) => format!("by its foreign keys and the tables' counters alone: {why}"),
    })?;
    if found.left_out > 0 {
        output::line(&format!(
            "{} statements were left out: too long, or not shown to this user (pg_read_all_stats)",
            found.left_out
        ))?;
    }
    heading(&match &proposal.root {
        Some(root) => format!("Shard by {root}"),
        None => "Nothing to shard".to_owned(),
    })?;
    let rows = proposal.tables.iter().zip(&database.tables).map(|(table, facts)| {
        vec![
            output::display(&json!(table.name)),
            table.placed.name().to_owned(),
            table.placed.column().unwrap_or("-").to_owned(),
            output::thousands(facts.rows),
            output::bytes(facts.bytes),
        ]
    });
    output::list(&["table", "placement", "key", "rows", "size"], &["rows", "size"], rows.collect())?;
    heading("Why")?;
    for table in &proposal.tables {
        output::line(&format!("  {}: {}", table.name, table.reasons.join(" ")))?;
    }
    if !proposal.obstacles.is_empty() {
        heading("What does not hold across shards as it stands")?;
        for Obstacle { table, what, why, remedy, .. } in &proposal.obstacles {
            output::line(&format!("  {table}: {what}: {why}"))?;
            output::line(&format!("    {remedy}"))?;
        }
    }
    if !database.statements.is_empty() {
        tell_statements(found, proposal)?;
    }
    if !proposal.alternatives.is_empty() {
        heading("Also looked at (more is better)")?;
        let of = |score: &Score| {
            format!(
                "{:.2}: statements {:.2}, bytes spread {:.2}, tables together {:.2}, obstacles per table {:.2}",
                score.total(),
                score.statements,
                score.spread,
                score.together,
                score.obstacles
            )
        };
        let root = proposal.root.as_deref().unwrap_or("nothing sharded");
        output::line(&format!("  {root} (proposed) {}", of(&proposal.score)))?;
        for other in proposal.alternatives.iter().take(ALTERNATIVES_SHOWN) {
            output::line(&format!("  {} {}", other.root, of(&other.score)))?;
        }
    }
    if !found.settings.is_empty() {
        heading("What the server lacks to be a shard")?;
        found.settings.iter().try_for_each(|setting| output::line(&format!("  {setting}")))?;
    }
    output::line("\nNothing was changed.")
}

fn heading(text: &str) -> io::Result<()> {
    output::line(&format!("\n{text}"))
}

fn tell_statements(found: &Found, proposal: &Proposal) -> io::Result<()> {
    heading("Where its statements would go")?;
    let all = share_of(found, proposal, None);
    let rows = KINDS.iter().map(|(kind, words)| (words, share_of(found, proposal, Some(kind))));
    let rows = rows.filter(|(_, share)| share.statements > 0).map(|(words, share)| {
        vec![
            (*words).to_owned(),
            output::thousands(share.statements),
            format!("{:.1} %", 100.0 * part(share.calls as f64, all.calls as f64)),
            format!("{:.1} %", 100.0 * part(share.time_ms, all.time_ms)),
        ]
    });
    output::list(&["statements", "texts", "calls", "time"], &["texts", "calls", "time"], rows.collect())?;
    for (kind, words) in [("refused", "Refused"), ("several_shards", "On several shards")] {
        let of_kind = || statements(found, proposal).filter(|(_, judged)| judged.verdict.name() == kind);
        let count = of_kind().count();
        if count == 0 {
            continue;
        }
        let more = if count > STATEMENTS_SHOWN {
            format!(" (the first {STATEMENTS_SHOWN} of {count}; all with --json)")
        } else {
            String::new()
        };
        heading(&format!("{words}, by time{more}"))?;
        for (facts, judged) in of_kind().take(STATEMENTS_SHOWN) {
            output::line(&format!(
                "  {:.1} ms, {} calls: {}",
                facts.time_ms,
                output::thousands(facts.calls),
                short(&facts.text)
            ))?;
            if let Verdict::Refused { sqlstate, message, hint } = &judged.verdict {
                let hint = hint.as_ref().map_or(String::new(), |hint| format!(" ({hint})"));
                output::line(&format!("    {sqlstate} {message}{hint}"))?;
            }
        }
    }
    Ok(())
}

/// On one line, and not all of it.
fn short(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = output::display(&json!(words.join(" ")));
    match line.char_indices().nth(TEXT_SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
