//! A catalog of PostgreSQL tables, and plans written out.
#![allow(dead_code)] // each test has a use for a part of it

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use pleat_cluster::{
    Column, KeyType, PartitionId, Serial, ShardId, Table, TableId, TableKind, Tables, Value, View, Views,
};
use pleat_sql::postgres::{Part, Planned, Query, Route, Screen, Source, Spread, What, prepare};
use pleat_sql::{Schema, SqlError};

pub const PARTITIONS: u32 = 256;

pub struct World {
    pub tables: Tables,
    pub views: Views,
    pub default_keys: BTreeMap<String, String>,
}

fn table(id: u32, of: &str, kind: TableKind, primary_key: &[&str], columns: &str) -> (String, Table) {
    let columns = columns.split(", ").map(|column| {
        let (name, rest) = column.split_once(' ').unwrap();
        let (rest, generated) = rest.split_once(" generated").map_or((rest, false), |(rest, _)| (rest, true));
        let (rest, serial) = match rest.split_once(" serial") {
            Some((rest, how)) => (rest, Some(how.trim())),
            None => (rest, None),
        };
        let serial = serial.map(|how| Serial {
            schema: "public".to_owned(),
            sequence: format!("{}_{name}_seq", of.rsplit('.').next().unwrap()),
            always: !how.is_empty(),
            first: 1,
            last: i64::MAX,
            sole: how == "sole",
        });
        let (decl_type, has_default) = match rest.split_once(" default") {
            Some((decl_type, _)) => (decl_type, true),
            None => (rest, false),
        };
        Column {
            name: name.to_owned(),
            decl_type: decl_type.to_owned(),
            collation: None,
            not_null: false,
            generated,
            has_default: has_default || serial.is_some(),
            serial,
        }
    });
    let table = Table {
        id: TableId(id),
        name: of.rsplit('.').next().unwrap().to_owned(),
        kind,
        columns: columns.collect(),
        primary_key: primary_key.iter().map(|name| (*name).to_owned()).collect(),
        rowid_alias: false,
        without_rowid: false,
        create_sql: String::new(),
        indexes: Vec::new(),
        triggers: Vec::new(),
    };
    (of.to_owned(), table)
}

pub fn world() -> World {
    let by = |key: &str, key_type| TableKind::Sharded { key: key.to_owned(), key_type };
    let single = || TableKind::Single { shard: ShardId(2) };
    let tables = [
        table(
            1,
            "flights",
            by("tailnum", KeyType::Text),
            &["tailnum", "id"],
            "id bigint, tailnum text, dest text, dist integer, price numeric(10,2), delay double precision, at timestamp with time zone",
        ),
        table(
            2,
            "planes",
            by("tailnum", KeyType::Text),
            &["tailnum"],
            "tailnum character varying(8), seats integer, maker text",
        ),
        table(
            3,
            "users",
            by("id", KeyType::Integer),
            &["id"],
            "id bigint, name text, org integer, made timestamp with time zone default",
        ),
        table(
            4,
            "orders",
            by("user_id", KeyType::Integer),
            &["user_id", "id"],
            "id bigint, user_id bigint, total numeric, qty smallint, note text",
        ),
        table(5, "airports", TableKind::Reference, &["code"], "code text, name text, since date default"),
        table(6, "settings", single(), &["k"], "k text, v text"),
        table(7, "docs", by("id", KeyType::Uuid), &["id"], "id uuid, body jsonb"),
        table(
            8,
            "app.events",
            by("user_id", KeyType::Integer),
            &["user_id", "n"],
            "user_id integer, n integer, kind text",
        ),
        table(9, "blobs", by("k", KeyType::Bytes), &["k"], "k bytea, data text"),
        table(10, "made", by("Id", KeyType::Integer), &["Id"], "Id bigint, at date, year integer generated"),
        table(11, "posts", by("id", KeyType::Integer), &["id"], "id bigint serial, title text, at date default"),
        table(12, "lines", by("tenant", KeyType::Integer), &["id"], "id bigint serial sole, tenant bigint, note text"),
        table(13, "tags", TableKind::Reference, &["id"], "id integer serial always, tag text"),
        table(14, "log", single(), &["id"], "id bigint serial, line text"),
    ];
    let view = |name: &str, sql: &str| (name.to_owned(), View { name: name.to_owned(), sql: sql.to_owned() });
    let views = [
        view("rich", "SELECT users.id, users.name, users.org AS firm FROM public.users WHERE (users.org > 3)"),
        view("richest", "SELECT rich.id AS who, rich.name FROM public.rich WHERE (rich.firm = 9)"),
        view("spent", "SELECT orders.user_id, count(*) AS n FROM public.orders GROUP BY orders.user_id"),
        view("per_firm", "SELECT users.org, count(*) AS n FROM public.users GROUP BY users.org"),
        view("latest", "SELECT users.id, users.name FROM public.users ORDER BY users.made DESC LIMIT 10"),
        view("codes", "SELECT airports.code FROM public.airports"),
        view("shop.lines", "SELECT log.line FROM public.log"),
        view("said", "SELECT log.line FROM public.log"),
        view(
            "bought",
            "SELECT u.id, u.name, o.id AS nr FROM (public.users u JOIN public.orders o ON ((o.user_id = u.id)))",
        ),
        view("names", "SELECT users.name FROM public.users"),
    ];
    World {
        tables: tables.into_iter().collect(),
        views: views.into_iter().collect(),
        default_keys: [("trips".to_owned(), "driver".to_owned())].into_iter().collect(),
    }
}

impl World {
    pub fn schema(&self) -> Schema<'_> {
        Schema { tables: &self.tables, views: &self.views, default_keys: &self.default_keys }
    }

    pub fn prepare(&self, text: &str) -> Result<Vec<Planned>, SqlError> {
        prepare(text, &self.schema())
    }

    /// What is sent to a shard that holds rows of partitions 7 and 200 without owning them, for people: `ours(k)` is the condition that a key is of none of these.
    pub fn screened(&self, text: &str) -> String {
        let planned = match self.one(text) {
            Err(error) => return refused(&error),
            Ok(planned) => planned,
        };
        let absent = BTreeSet::from([PartitionId(7), PartitionId(200)]);
        let screen = Screen { schema: self.schema(), absent: &absent, partition_count: PARTITIONS };
        let short = |text: &str| {
            let (before, after) =
                ("NOT (((('x' || substr(md5(", "), 1, 8))::bit(32)::bigint * 256) >> 32) = ANY ('{7,200}'::bigint[]))");
            text.replace(before, "ours(").replace(after, ")")
        };
        let line = |kind: &str, text: Result<String, SqlError>| {
            text.map_or_else(|error| refused(&error), |text| format!("  {kind}{}\n", short(&text)))
        };
        let part = |kind: &str, part: &Part| {
            line(kind, screen.part(part).map(|part| format!("{} {:?}", part.text, part.params)))
        };
        let whole = || line("whole: ", screen.statement(&planned.text).map(String::from));
        let query = match &planned.what {
            What::Query(query) | What::Declare { query, .. } => query,
            What::Copy(copy) => match &copy.query {
                Some((_, query)) => query,
                None => return whole(),
            },
            _ => return whole(),
        };
        let mut shown = whole();
        if !query.needs_screening(&value(query), &absent, PARTITIONS) {
            shown += "  not needed\n";
        }
        match query.route(&value(query), PARTITIONS) {
            Ok(Route::Spread { plan: Spread::Concat(one), .. }) => shown += &part("concat: ", one),
            Ok(Route::Spread { plan: Spread::Gather { fetches, .. }, .. }) => {
                shown.extend(fetches.iter().map(|fetch| part(&format!("{}: ", fetch.table), &fetch.part)))
            }
            _ => {}
        }
        shown
    }

    /// The one statement of `text`.
    pub fn one(&self, text: &str) -> Result<Planned, SqlError> {
        let mut planned = self.prepare(text)?;
        assert_eq!(planned.len(), 1, "{text}");
        Ok(planned.remove(0))
    }

    pub fn query(&self, text: &str) -> Result<Query, SqlError> {
        match self.one(text)?.what {
            What::Query(query) => Ok(query),
            other => panic!("{text} is no query but {other:?}"),
        }
    }

    /// What becomes of a statement, for people.
    pub fn explain(&self, text: &str) -> String {
        match self.one(text).map(|planned| planned.what) {
            Err(error) => refused(&error),
            Ok(What::Query(query)) => explained(&query),
            Ok(other) => format!("  {other:?}\n"),
        }
    }
}

fn refused(error: &SqlError) -> String {
    format!("  {} {}\n  hint: {}\n", error.sqlstate(), error.message, error.hint.as_deref().unwrap_or("-"))
}

/// A value of the key's type for each parameter.
pub fn value(query: &Query) -> impl Fn(usize) -> Option<Value> {
    let keys = query.keys().to_vec();
    move |at| {
        let (_, key_type) = keys.iter().find(|(param, _)| *param == at)?;
        Some(match key_type {
            KeyType::Integer => Value::Integer(100 + i64::try_from(at).unwrap()),
            KeyType::Uuid => Value::from("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            KeyType::Text | KeyType::Bytes => Value::Text(format!("p{at}")),
        })
    }
}

fn explained(query: &Query) -> String {
    let mut shown = String::new();
    let mut facts = vec![format!("{:?}", query.verb).to_lowercase()];
    facts.extend(query.writes.then(|| "writes".to_owned()));
    facts.extend(query.counts.then(|| "counts".to_owned()));
    facts.extend(query.pins.then(|| "pins".to_owned()));
    facts.extend(query.notifies.then(|| "notifies".to_owned()));
    facts.extend((!query.in_transaction).then(|| "outside of transactions".to_owned()));
    if let Some(given) = &query.given {
        let _ = writeln!(shown, "  {} with {:?} from ${}", given.text, given.values, given.params + 1);
    }
    facts.extend((!query.keys().is_empty()).then(|| format!("keys {:?}", query.keys())));
    let _ = writeln!(shown, "  {}", facts.join(", "));
    match query.route(&value(query), PARTITIONS) {
        Ok(route) => shown += &routed(query, &route),
        Err(error) => return shown + &refused(&error),
    }
    if let Ok(Route::Partitions(partitions)) = query.route(&value(query), PARTITIONS)
        && partitions.len() > 1
    {
        shown += "  if they are on several shards:\n";
        shown += &query
            .scatter(&value(query), PARTITIONS)
            .map_or_else(|error| refused(&error), |route| routed(query, &route));
    }
    shown
}

fn routed(query: &Query, route: &Route) -> String {
    let numbers = |partitions: &std::collections::BTreeSet<pleat_cluster::PartitionId>| {
        partitions.iter().map(|partition| partition.0.to_string()).collect::<Vec<_>>().join(", ")
    };
    let pruned =
        |prune: &Option<_>| prune.as_ref().map_or(String::new(), |prune| format!(" of partitions {}", numbers(prune)));
    match route {
        Route::Any => "  any shard\n".to_owned(),
        Route::Partitions(partitions) => format!("  partitions {}\n", numbers(partitions)),
        Route::Single(shard) => format!("  {shard}\n"),
        Route::Every { reference: true, .. } => "  every shard: copies\n".to_owned(),
        Route::Every { reference: false, prune } => format!("  every shard{}\n", pruned(prune)),
        Route::Rows(rows) => rows
            .iter()
            .map(|(partition, rows)| {
                let part = query.rows(rows).unwrap();
                format!("  partition {}: {} {:?}\n", partition.0, part.text, part.params)
            })
            .collect(),
        Route::Spread { plan: Spread::Concat(part), prune } => {
            format!("  concat{}: {} {:?}\n", pruned(prune), part.text, part.params)
        }
        Route::Spread { plan: Spread::Gather { fetches, finish }, prune } => {
            let mut shown = format!("  gather{}\n", pruned(prune));
            for fetch in fetches {
                let from = match fetch.from {
                    Source::Sharded => "every shard".to_owned(),
                    Source::Single(shard) => shard.to_string(),
                };
                let key =
                    if fetch.primary_key.is_empty() { String::new() } else { format!(" key {:?}", fetch.primary_key) };
                let _ = writeln!(
                    shown,
                    "    {}{key} from {from}: {} {:?}",
                    fetch.table, fetch.part.text, fetch.part.params
                );
            }
            shown + &format!("    finish: {} {:?}\n", finish.text, finish.params)
        }
    }
}
