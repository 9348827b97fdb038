//! Schema changes.
//!
//! A change is tried on one shard first, in a transaction that is rolled back: what the server refuses is refused before anything is
//! journaled, and what it says of its tables then is what they will be ([`look`]). Then it is an operation of the journal, which
//! makes the change on all shards or none. A change that takes long (an index) is not tried.
//!
//! # Rules
//!
//! A shard sees its own rows alone. So of a sharded table each unique constraint has the shard key among its columns, and a foreign key refers to a
//! reference table, or to a table that is sharded alike, by the keys of both. What can't hold is refused when it is declared.
//!
//! Columns that count get their values from Pleat ([`super::serial`]). With the change the servers' own sequences are withheld, in the same
//! transaction. A unique constraint over such a column holds without the shard key if nobody else can give values: GENERATED ALWAYS.
//!
//! Of a view the catalog has the query, as a server tells it: what reads the view is planned with that in its place. A view whose rows Pleat could not
//! give is refused when it is made.
//!
//! A schema change is no part of a transaction: in a block that has done nothing yet it is done at once, with a warning, so that tools work that begin
//! a transaction around everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleat_cluster::{
    Column, DdlEffect, KeyType, Serial, ShardId, Table, TableChange, TableId, TableKind, Tables, ViewChange, table_key,
    withhold,
};
use pleat_engine::postgres::Lease;
use pleat_sql::postgres::{Ddl, Placement, Planned};

use super::block::Answered;
use super::place::{has_rows, place};
use super::{Relay, views};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::pg::wire::write::Severity;
use crate::session::Failure;

/// How long a schema change may take.
pub(super) const CHANGE_TIME_MAX: Duration = Duration::from_secs(600);
/// How long a trial waits for a lock.
const TRIAL: &str = "BEGIN; SET LOCAL lock_timeout = '5s'";

/// Tables with their columns, in the order of these.
const COLUMNS: &str = "SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '', \
    a.atthasdef OR a.attidentity <> '', coalesce(co.collisdeterministic, true), s.oid, \
    a.attidentity <> '' OR pg_get_expr(d.adbin, d.adrelid) ~ '^nextval[(]''[^'']*''::regclass[)]$', a.attidentity = 'a', \
    s.nspname, s.relname, s.seqstart, s.seqmax, s.seqincrement = 1 AND NOT s.seqcycle, pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval(%' \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
    LEFT JOIN pg_collation co ON co.oid = a.attcollation \
    LEFT JOIN LATERAL (SELECT sc.oid, sn.nspname, sc.relname, sq.* FROM pg_depend p \
        JOIN pg_sequence sq ON sq.seqrelid = CASE p.classid WHEN 'pg_attrdef'::regclass THEN p.refobjid ELSE p.objid END \
        JOIN pg_class sc ON sc.oid = sq.seqrelid JOIN pg_namespace sn ON sn.oid = sc.relnamespace \
        WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid AND p.refclassid = 'pg_class'::regclass \
        OR p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass AND p.deptype = 'i' \
            AND p.refobjid = a.attrelid AND p.refobjsubid = a.attnum LIMIT 1) s ON true \
    WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' \
    ORDER BY 1, 2, a.attnum";
/// Unique indexes, primary keys among them, with their columns; one over an expression has an empty name among them.
const UNIQUES: &str = "SELECT n.nspname, c.relname, x.relname, i.indisprimary, \
    (SELECT string_agg(coalesce(a.attname, ''), E'\\n' ORDER BY k.place) FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(number, place) \
     LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number) \
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE (i.indisunique OR i.indisexclusion) AND c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2, 3";
/// Foreign keys.
const REFERENCES: &str = "SELECT n.nspname, c.relname, o.conname, fn.nspname, f.relname, \
    (SELECT string_agg(a.attname, E'\\n' ORDER BY k.place) FROM unnest(o.conkey) WITH ORDINALITY AS k(number, place) \
     JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.number), \
    (SELECT string_agg(a.attname, E'\\n' ORDER BY k.place) FROM unnest(o.confkey) WITH ORDINALITY AS k(number, place) \
     JOIN pg_attribute a ON a.attrelid = o.confrelid AND a.attnum = k.number) \
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_class f ON f.oid = o.confrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace WHERE o.contype = 'f' AND o.conparentid = 0 ORDER BY 1, 2, 3";
/// What a server says of its tables.
pub(super) struct Seen {
    /// By their keys in the catalog. What kind they are is not the server's to know.
    pub tables: BTreeMap<String, Described>,
    references: Vec<Reference>,
}

pub(super) struct Described {
    pub name: String,
    columns: Vec<Column>,
    primary_key: Vec<String>,
    uniques: Vec<Unique>,
    /// Columns whose equality is not that of their bytes.
    loose: BTreeSet<String>,
    /// Columns that a sequence fills otherwise than Pleat can: not one after the other, computed, found by its name, or of another type.
    odd: BTreeSet<String>,
}

struct Unique {
    name: String,
    columns: Vec<String>,
}

/// A foreign key.
struct Reference {
    name: String,
    table: String,
    columns: Vec<String>,
    to: String,
    to_columns: Vec<String>,
}

impl Described {
    pub fn table(&self, kind: TableKind) -> Table {
        let mut table = Table {
            id: TableId(0),
            name: self.name.clone(),
            kind,
            columns: self.columns.clone(),
            primary_key: self.primary_key.clone(),
            rowid_alias: false,
            without_rowid: false,
            create_sql: String::new(),
            indexes: Vec::new(),
            triggers: Vec::new(),
        };
        let Some((key, _)) = table.shard_key() else { return table };
        let sole = |column: &Column| {
            let apart = |unique: &Unique| {
                unique.columns.contains(&column.name) && !unique.columns.iter().any(|name| name == key)
            };
            self.uniques.iter().any(apart)
        };
        let soles: Vec<bool> = table.columns.iter().map(sole).collect();
        for (column, sole) in table.columns.iter_mut().zip(soles) {
            if let Some(serial) = &mut column.serial {
                serial.sole = serial.always && sole;
            }
        }
        table
    }
}

impl Relay {
    pub(super) async fn ddl(
        &mut self,
        client: &mut Client,
        key: &Key,
        planned: &Planned,
        ddl: &Ddl,
    ) -> Result<Answered, Stop> {
        // What nobody else knows may be the session's own.
        let known = |table: &String| {
            let catalog = self.catalog();
            catalog.tables.contains_key(table) || catalog.views.contains_key(table)
        };
        let own = self.pinned.is_some()
            && !ddl.about.starts_with("create table")
            && ddl.table.as_ref().is_some_and(|table| !known(table));
        if ddl.temporary || own {
            let shard = self.any(&self.catalog())?;
            let failed = self.through_kept(client, key, shard, &planned.text).await?.failed();
            return Ok(Answered::Already(!failed));
        }
        if !ddl.in_transaction {
            let hint = "leave CONCURRENTLY out, or run it on the servers themselves";
            let message = format!("{} is nothing that all shards do or none", ddl.about);
            return Err(Failure::new("0A000", message, hint).into());
        }
        self.outside(client)?;
        if let Some(unique) = &ddl.unique {
            let catalog = self.catalog();
            if let Some(table) = catalog.tables.get(&unique.table) {
                check_unique(table, &ddl.about, &unique.columns)?;
            }
        }
        if let Some(notice) = &ddl.notice {
            client.out.notice(Severity::Notice, "00000", notice);
        }
        if !ddl.places.is_empty() {
            for notice in place(&self.shared.app, &ddl.places, ddl.if_exists, "postgresql", &planned.text).await? {
                client.out.notice(Severity::Notice, "00000", &notice);
            }
            return Ok(Answered::Tag("ALTER TABLE".to_owned()));
        }
        let layout = self.catalog().layout;
        let Tried { changes, views, tag } = match ddl.try_first {
            true => self.tried(ddl).await?,
            false => Tried { changes: Vec::new(), views: Vec::new(), tag: tag_of(&ddl.about) },
        };
        if ddl.if_not_exists
            && changes.is_empty()
            && ddl.table.as_ref().is_some_and(|table| self.catalog().tables.contains_key(table))
        {
            let name = ddl.table.as_deref().unwrap_or_default();
            client.out.notice(Severity::Notice, "42P07", &format!("relation \"{name}\" already exists, skipping"));
            return Ok(Answered::Tag(tag));
        }
        let withheld = withhold(changes.iter().filter_map(|change| change.after.as_ref()));
        let effect = DdlEffect::Servers { about: ddl.about.clone(), changes, views };
        let sql = match withheld {
            Some(withheld) => format!("{}; {withheld}", ddl.statement),
            None => ddl.statement.clone(),
        };
        let executor = &self.shared.app.executor;
        let changed =
            executor.change_servers(effect, sql, layout, ("postgresql", &planned.text), CHANGE_TIME_MAX).await?;
        if let Some(notice) = changed {
            client.out.notice(Severity::Notice, "00000", &notice);
        }
        Ok(Answered::Tag(tag))
    }

    /// Whether something that is no part of a transaction may be done now.
    fn outside(&self, client: &mut Client) -> Result<(), Failure> {
        let Some(block) = &self.block else { return Ok(()) };
        match self.parts.values().any(|part| part.open) {
            true => Err(Failure::new(
                "25001",
                "a schema change is no part of a transaction, and this one has read or written something already",
                "do it first in the transaction, or outside of one; the driver may call that autocommit",
            )),
            false => {
                if !block.implicit {
                    let message =
                        "a schema change is done at once, and is not undone when the transaction is rolled back";
                    client.out.notice(Severity::Warning, "25001", message);
                }
                Ok(())
            }
        }
    }

    /// Try a change on one shard.
    async fn tried(&mut self, ddl: &Ddl) -> Result<Tried, Failure> {
        let catalog = self.catalog();
        let anchor = crate::session::anchor(&catalog)?;
        let mut lease = self.lease(anchor).await?;
        let before = look(&mut lease).await?;
        lease.ask(TRIAL).await?;
        let tried = async {
            let views = views::look(&mut lease).await?;
            let tag = lease.ask(&ddl.statement).await?.tag;
            let after = look(&mut lease).await?;
            Ok::<_, Failure>((tag, after, views, views::look(&mut lease).await?))
        };
        let tried = tried.await;
        // The transaction ends with the connection, if it can't be told.
        let _ = lease.ask("ROLLBACK").await;
        let (tag, after, views_before, views_after) = tried?;
        let kind = |described: &Described| -> Result<TableKind, Failure> {
            match &ddl.placement {
                Some(placement) => placed(described, placement, anchor),
                None => Ok(TableKind::Single { shard: anchor }),
            }
        };
        let changes = changes(&catalog.tables, &before, &after, kind)?;
        check_defaults(&catalog.tables, &changes, &before, &after)?;
        check(&catalog.tables, &changes, &after)?;
        for change in &changes {
            if let (Some(before), Some(after)) = (&change.before, &change.after)
                && let Some(column) = newly_sole(before, after)
                && has_rows(&self.shared.app, &before.name).await?
            {
                return Err(Failure::new(
                    "0A000",
                    format!(
                        "{}.{column} can't become unique over all shards: values that are there were perhaps given by hand, on several shards the same",
                        after.name
                    ),
                    "declare it in CREATE TABLE, or while the table is empty; or add the shard key to the columns",
                ));
            }
        }
        let views = views::changes(&catalog.views, &views_before, views_after);
        views::check(&catalog.tables, &catalog.views, &changes, &views)?;
        Ok(Tried { changes, views, tag })
    }
}

/// What a change came to where it was tried.
struct Tried {
    changes: Vec<TableChange>,
    views: Vec<ViewChange>,
    tag: String,
}

/// Ask a server for its tables.
pub(super) async fn look(lease: &mut Lease) -> Result<Seen, Failure> {
    let mut tables: BTreeMap<String, Described> = BTreeMap::new();
    for row in lease.ask(COLUMNS).await?.rows {
        let text = |at: usize| row.get(at).cloned().flatten();
        let is = |at: usize| text(at).as_deref() == Some("t");
        let (Some(schema), Some(name)) = (text(0), text(1)) else { continue };
        let key = table_key(&schema, &name);
        let full = if schema == "public" { name } else { format!("{schema}.{name}") };
        let described = tables.entry(key).or_insert_with(|| Described {
            name: full,
            columns: Vec::new(),
            primary_key: Vec::new(),
            uniques: Vec::new(),
            loose: BTreeSet::new(),
            odd: BTreeSet::new(),
        });
        let (Some(column), Some(decl_type)) = (text(2), text(3)) else { continue };
        if !is(7) {
            described.loose.insert(column.clone());
        }
        let number = |at: usize| text(at).and_then(|text| text.parse::<i64>().ok());
        let serial = match (text(11), text(12), number(13), number(14)) {
            (Some(schema), Some(sequence), Some(first), Some(last)) => {
                let last = last.min(most(&decl_type));
                Some(Serial { schema, sequence, always: is(10), first, last, sole: false })
            }
            _ => None,
        };
        let plain = is(9) && is(15) && matches!(decl_type.as_str(), "smallint" | "integer" | "bigint");
        if if serial.is_some() { !plain } else { is(16) } {
            described.odd.insert(column.clone());
        }
        described.columns.push(Column {
            name: column,
            decl_type,
            collation: None,
            not_null: is(4),
            generated: is(5),
            has_default: is(6),
            serial,
        });
    }
    let lines = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split('\n').map(str::to_owned).collect()).unwrap_or_default()
    };
    for row in lease.ask(UNIQUES).await?.rows {
        let text = |at: usize| row.get(at).cloned().flatten();
        let (Some(schema), Some(table), Some(name)) = (text(0), text(1), text(2)) else { continue };
        let Some(described) = tables.get_mut(&table_key(&schema, &table)) else { continue };
        let columns = lines(text(4));
        if text(3).as_deref() == Some("t") {
            described.primary_key = columns.clone();
        }
        described.uniques.push(Unique { name, columns });
    }
    let mut references = Vec::new();
    for row in lease.ask(REFERENCES).await?.rows {
        let text = |at: usize| row.get(at).cloned().flatten();
        let (Some(schema), Some(table), Some(name), Some(to_schema), Some(to)) =
            (text(0), text(1), text(2), text(3), text(4))
        else {
            continue;
        };
        references.push(Reference {
            name,
            table: table_key(&schema, &table),
            columns: lines(text(5)),
            to: table_key(&to_schema, &to),
            to_columns: lines(text(6)),
        });
    }
    Ok(Seen { tables, references })
}

/// What differs between two looks, in terms of the catalog.
fn changes(
    known: &Tables,
    before: &Seen,
    after: &Seen,
    kind: impl Fn(&Described) -> Result<TableKind, Failure>,
) -> Result<Vec<TableChange>, Failure> {
    let gone = || before.tables.keys().filter(|name| !after.tables.contains_key(*name));
    let new: Vec<&String> = after.tables.keys().filter(|name| !before.tables.contains_key(*name)).collect();
    // One less and one more of the same columns is a table with another name.
    let renamed = match (gone().collect::<Vec<_>>().as_slice(), new.as_slice()) {
        ([old], [new]) if before.tables[*old].columns == after.tables[*new].columns => {
            known.get(*old).map(|table| (*old, *new, table))
        }
        _ => None,
    };
    if renamed.is_none() && !new.is_empty() && gone().any(|name| known.contains_key(name)) {
        return Err(Failure::new(
            "0A000",
            "it would give tables other names, and Pleat could not tell which becomes which",
            "rename tables one by one, or set their schema one by one: ALTER TABLE … SET SCHEMA …",
        ));
    }
    let mut found = Vec::new();
    for name in gone() {
        if let Some(table) = known.get(name)
            && renamed.is_none()
        {
            found.push(TableChange { before: Some(table.clone()), after: None });
        }
    }
    for (name, described) in &after.tables {
        let table = |kind: TableKind| described.table(kind);
        match (known.get(name), renamed) {
            (None, Some((_, to, old))) if to == name => {
                found.push(TableChange {
                    before: Some(old.clone()),
                    after: Some(Table { id: old.id, ..table(old.kind.clone()) }),
                });
            }
            (None, _) if before.tables.contains_key(name) => {}
            (None, _) => found.push(TableChange { before: None, after: Some(table(kind(described)?)) }),
            (Some(old), _) => {
                let kind = match &old.kind {
                    // The key has another name, if its column has.
                    TableKind::Sharded { key, key_type }
                        if described.columns.iter().all(|column| column.name != *key) =>
                    {
                        let place = old.columns.iter().position(|column| column.name == *key);
                        let column = place.and_then(|place| described.columns.get(place));
                        let renamed = column.filter(|_| described.columns.len() == old.columns.len());
                        match renamed {
                            Some(column) => TableKind::Sharded { key: column.name.clone(), key_type: *key_type },
                            None => {
                                let message = format!("{key} is the shard key of {}, and can't be dropped", old.name);
                                return Err(Failure::new(
                                    "0A000",
                                    message,
                                    "make another table without it, and copy the rows",
                                ));
                            }
                        }
                    }
                    TableKind::Sharded { key, .. } => sharded(described, key)?,
                    kind => kind.clone(),
                };
                let new = Table { id: old.id, ..table(kind) };
                if new != *old {
                    found.push(TableChange { before: Some(old.clone()), after: Some(new) });
                }
            }
        }
    }
    Ok(found)
}

pub(super) fn placed(described: &Described, placement: &Placement, anchor: ShardId) -> Result<TableKind, Failure> {
    match placement {
        Placement::Sharded { key } => sharded(described, key),
        Placement::Reference => Ok(TableKind::Reference),
        Placement::Single => Ok(TableKind::Single { shard: anchor }),
    }
}

/// A table that is sharded by this column, if it can be.
fn sharded(described: &Described, key: &str) -> Result<TableKind, Failure> {
    let table = &described.name;
    let column = described.columns.iter().find(|column| column.name.eq_ignore_ascii_case(key)).ok_or_else(|| {
        let message = format!("column \"{key}\" named as the shard key of {table} does not exist");
        Failure::new("42703", message, "name one of the table's columns")
    })?;
    let refused = |why: &str| {
        let message = format!("{}.{key} can't be a shard key: {why}", described.name);
        Failure::new(
            "0A000",
            message,
            "a key is an integer, a text, a UUID or bytea, whose equality is that of its bytes",
        )
    };
    let key_type = match column.decl_type.as_str() {
        "smallint" | "integer" | "bigint" => KeyType::Integer,
        "text" | "character varying" => KeyType::Text,
        varchar if varchar.starts_with("character varying(") => KeyType::Text,
        "uuid" => KeyType::Uuid,
        "bytea" => KeyType::Bytes,
        other => return Err(refused(&format!("its type is {other}"))),
    };
    if described.loose.contains(&column.name) {
        return Err(refused("its collation is not deterministic"));
    }
    if column.generated {
        return Err(refused("it is generated"));
    }
    Ok(TableKind::Sharded { key: column.name.clone(), key_type })
}

/// Whether what the tables declare can hold.
fn check(known: &Tables, changes: &[TableChange], seen: &Seen) -> Result<(), Failure> {
    faults(known, changes, seen).into_iter().next().map_or(Ok(()), Err)
}

/// What of that can't.
pub(super) fn faults(known: &Tables, changes: &[TableChange], seen: &Seen) -> Vec<Failure> {
    let mut found = Vec::new();
    let changed = |name: &str| {
        changes.iter().filter_map(|change| change.after.as_ref()).find(|table| table.name.eq_ignore_ascii_case(name))
    };
    let table = |name: &str| changed(name).or_else(|| known.get(name));
    for after in changes.iter().filter_map(|change| change.after.as_ref()) {
        let Some(described) = seen.tables.get(&after.name.to_ascii_lowercase()) else { continue };
        for unique in &described.uniques {
            found.extend(check_unique(after, &format!("the unique index {}", unique.name), &unique.columns).err());
        }
    }
    for change in changes {
        found.extend(check_serial(change, seen).err());
    }
    for reference in &seen.references {
        if changed(&reference.table).is_none() && changed(&reference.to).is_none() {
            continue;
        }
        let (Some(from), Some(to)) = (table(&reference.table), table(&reference.to)) else { continue };
        let holds = match (&from.kind, &to.kind) {
            (_, TableKind::Reference) => true,
            (TableKind::Single { shard }, TableKind::Single { shard: other }) => shard == other,
            (TableKind::Sharded { key, key_type }, TableKind::Sharded { key: to_key, key_type: to_type }) => {
                let pairs = reference.columns.iter().zip(&reference.to_columns);
                key_type == to_type && pairs.into_iter().any(|(column, to)| column == key && to == to_key)
            }
            _ => false,
        };
        if !holds {
            let message = format!(
                "the foreign key {} of {} ({}) refers to {} ({}), whose rows may be on other shards",
                reference.name,
                from.name,
                from.kind_name(),
                to.name,
                to.kind_name()
            );
            let hint = "a foreign key may refer to a REFERENCE table, or lead from shard key to shard key";
            found.push(Failure::new("0A000", message, hint));
        }
    }
    found
}

/// The column that a change makes unique over all shards for no other reason than that Pleat gives its values: those that are there it has
/// perhaps not given.
pub(super) fn newly_sole<'t>(before: &Table, after: &'t Table) -> Option<&'t str> {
    let (name, _) = after.serial().filter(|(_, serial)| serial.sole)?;
    let was = before.serial().is_some_and(|(_, serial)| serial.sole);
    (!was).then_some(name)
}

/// Whether a server would fill a column from a sequence where Pleat can't. A default that becomes another one is no change to the catalog, so all
/// columns are looked at, but not what was there before.
pub(super) fn check_defaults(
    known: &Tables,
    changes: &[TableChange],
    before: &Seen,
    after: &Seen,
) -> Result<(), Failure> {
    let changed = |name: &str| {
        changes.iter().filter_map(|change| change.after.as_ref()).find(|table| table.name.eq_ignore_ascii_case(name))
    };
    for (key, described) in &after.tables {
        let change = changed(&described.name);
        let was = before.tables.get(key).is_some_and(|before| described.odd.is_subset(&before.odd));
        let Some(table) = change.or_else(|| known.get(key).filter(|_| !was)) else { continue };
        if let Some(column) = described.odd.first()
            && !matches!(table.kind, TableKind::Single { .. })
        {
            return Err(Failure::new(
                "0A000",
                format!(
                    "Pleat gives the values of {}.{column}, and can't compute what its sequence and its default say",
                    table.name
                ),
                "the default is nextval('sequence') alone, the sequence has INCREMENT 1 and no CYCLE, and the column is a smallint, integer or bigint",
            ));
        }
    }
    Ok(())
}

/// Whether Pleat can give the values of a table's column that counts.
fn check_serial(change: &TableChange, seen: &Seen) -> Result<(), Failure> {
    let Some(after) = &change.after else { return Ok(()) };
    let refused = |message: String, hint: &str| Err(Failure::new("0A000", message, hint.to_owned()));
    let Some((name, serial)) = after.serial() else { return Ok(()) };
    let table = &after.name;
    if after.columns.iter().filter(|column| column.serial.is_some()).count() > 1 {
        return refused(
            format!("{table} has more than one column that counts, and it is {}", after.kind_name()),
            "have one of them filled by the application",
        );
    }
    let same = |column: &Column| {
        column
            .serial
            .as_ref()
            .is_some_and(|other| (&other.schema, &other.sequence) == (&serial.schema, &serial.sequence))
    };
    let others = seen.tables.values().filter(|other| other.name != *table);
    if let Some(other) = others.into_iter().find(|other| other.columns.iter().any(same)) {
        return refused(
            format!("the sequence {} of {table}.{name} also fills {}", serial.sequence, other.name),
            "have a sequence for each table, or make the ids on the client (UUIDs)",
        );
    }
    if change.before.as_ref().is_some_and(|before| before.column(name).is_none()) {
        return refused(
            format!("{table}.{name} would have every server number the rows that are there"),
            "add it as a plain column, give the rows values, then ALTER COLUMN … SET DEFAULT nextval('a sequence')",
        );
    }
    Ok(())
}

/// The largest value of a type.
fn most(decl_type: &str) -> i64 {
    match decl_type {
        "smallint" => i16::MAX.into(),
        "integer" => i32::MAX.into(),
        _ => i64::MAX,
    }
}

/// A unique constraint of a sharded table has to have the shard key, or a column whose values nobody but Pleat gives.
fn check_unique(table: &Table, what: &str, columns: &[String]) -> Result<(), Failure> {
    let sole = table.serial().filter(|(name, serial)| serial.sole && columns.iter().any(|column| column == name));
    if sole.is_some() {
        return Ok(());
    }
    match table.shard_key() {
        Some((key, _)) if !columns.iter().any(|column| column == key) => Err(Failure::new(
            "0A000",
            format!("{what} of {} would hold in each shard only: it lacks the shard key {key}", table.name),
            match table
                .serial()
                .is_some_and(|(name, serial)| !serial.always && columns.iter().any(|column| column == name))
            {
                true => format!(
                    "make the column GENERATED ALWAYS AS IDENTITY, so that Pleat alone gives its values, or add {key} to the columns"
                ),
                false => format!("add {key} to its columns, or shard the table by another column"),
            },
        )),
        _ => Ok(()),
    }
}

/// A table's name as SQL has it: `schema.name` comes apart at its first dot.
pub fn written(name: &str) -> String {
    let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    match name.split_once('.') {
        Some((schema, name)) => format!("{}.{}", quoted(schema), quoted(name)),
        None => quoted(name),
    }
}

/// The tag of a statement that is not tried: its first two words.
fn tag_of(about: &str) -> String {
    about.split(' ').filter(|word| *word != "unique").take(2).collect::<Vec<_>>().join(" ").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(name: &str, columns: &[(&str, &str)]) -> Described {
        let column = |(name, decl_type): &(&str, &str)| Column {
            name: (*name).to_owned(),
            decl_type: (*decl_type).to_owned(),
            collation: None,
            not_null: false,
            generated: false,
            serial: None,
            has_default: false,
        };
        Described {
            name: name.to_owned(),
            columns: columns.iter().map(column).collect(),
            primary_key: Vec::new(),
            uniques: Vec::new(),
            loose: BTreeSet::new(),
            odd: BTreeSet::new(),
        }
    }

    fn seen(tables: Vec<Described>) -> Seen {
        let tables = tables.into_iter().map(|table| (table.name.to_ascii_lowercase(), table)).collect();
        Seen { tables, references: Vec::new() }
    }

    #[test]
    fn what_differs_is_what_changed() {
        let by_k = |table: &Described| sharded(table, "k");
        let none = Tables::new();
        let made = changes(&none, &seen(vec![]), &seen(vec![described("t", &[("k", "bigint")])]), by_k).unwrap();
        let [TableChange { before: None, after: Some(table) }] = made.as_slice() else { panic!("{made:?}") };
        let wanted = TableKind::Sharded { key: "k".to_owned(), key_type: KeyType::Integer };
        assert_eq!((table.name.as_str(), &table.kind), ("t", &wanted));

        let known = Tables::from([("t".to_owned(), table.clone())]);
        let before = || seen(vec![described("t", &[("k", "bigint")])]);
        let after = |table| changes(&known, &before(), &seen(vec![table]), by_k);
        assert!(after(described("t", &[("k", "bigint")])).unwrap().is_empty());
        let renamed = after(described("u", &[("k", "bigint")])).unwrap();
        let [TableChange { before: Some(_), after: Some(to) }] = renamed.as_slice() else { panic!("{renamed:?}") };
        assert_eq!((to.name.as_str(), &to.kind), ("u", &wanted));
        let key = after(described("t", &[("key", "bigint")])).unwrap();
        let [TableChange { after: Some(to), .. }] = key.as_slice() else { panic!("{key:?}") };
        assert_eq!(to.shard_key(), Some(("key", KeyType::Integer)));
        assert_eq!(after(described("t", &[("k", "numeric")])).unwrap_err().code, "0A000");
        let dropped = changes(&known, &before(), &seen(vec![]), by_k).unwrap();
        assert!(matches!(dropped.as_slice(), [TableChange { before: Some(_), after: None }]));
    }

    #[test]
    fn tags_are_those_of_the_server() {
        for (about, tag) in [("create index i on t", "CREATE INDEX"), ("create unique index i", "CREATE INDEX")] {
            assert_eq!(tag_of(about), tag);
        }
    }
}
