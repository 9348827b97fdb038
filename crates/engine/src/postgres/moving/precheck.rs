//! What a move needs of its servers, looked at before anything is made there.

use super::super::{Asked, Connection, PostgresError, Server};
use super::sql::{literal, qualified, session, value};
use super::{Movement, Moving};

/// Sessions of the replication protocol on the source: one for the stream, one that marks positions in it, one for a digest, and those that copy.
const WALSENDERS: i64 = 3 + 2;
/// One for the stream, one for a digest.
const SLOTS: i64 = 2;
const VERSION_LEAST: i64 = 140_000;

/// A server as far as a move is concerned.
struct Figures(Asked);

impl Figures {
    async fn ask(server: &mut Connection) -> Result<Figures, PostgresError> {
        let text = "SELECT current_setting('server_version_num') AS version, current_setting('wal_level') AS wal_level, \
             current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots) AS slots, \
             current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication) AS walsenders, \
             current_setting('max_prepared_transactions') AS prepared, current_user AS me, \
             r.rolsuper AS super, r.rolsuper OR r.rolreplication AS replication, \
             has_database_privilege(current_database(), 'CREATE') AS creates, pg_encoding_to_char(d.encoding) AS encoding, \
             d.datcollate AS collation, pg_is_in_recovery() AS standby \
             FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()";
        Ok(Figures(server.ask(text).await?))
    }

    fn text(&self, name: &str) -> &str {
        let at = self.0.columns.iter().position(|column| column == name);
        at.zip(self.0.rows.first()).map_or("", |(at, row)| value(row, at))
    }

    fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or_default()
    }

    fn is(&self, name: &str) -> bool {
        self.text(name) == "t"
    }
}

/// All that is missing, each with its remedy; empty: go. Free space on the target's disk can't be read through SQL, so it is not looked at.
pub async fn missing(
    source: &Server,
    target: &Server,
    movement: &Movement,
    target_is_new: bool,
) -> Result<Vec<String>, PostgresError> {
    let name = format!("pleat check op-{}", movement.operation);
    let mut source = session(source, &name).await?;
    let mut target = session(target, &name).await?;
    let (here, there) = (Figures::ask(&mut source).await?, Figures::ask(&mut target).await?);
    let mut missing = both(&here, &there);
    missing.extend(of_source(&here));
    missing.extend(of_target(&mut target, &there).await?);
    for table in &movement.tables {
        let shape = columns(&mut source, table).await?;
        if shape.is_empty() {
            missing.push(format!("table {}.{} is not on the source", table.schema, table.name));
            continue;
        }
        missing.extend(of_table(&mut source, &here, table, &shape).await?);
        if !target_is_new {
            missing.extend(differences(table, &shape, &columns(&mut target, table).await?));
        }
    }
    Ok(missing)
}

fn both(here: &Figures, there: &Figures) -> Vec<String> {
    let mut missing = Vec::new();
    for (which, figures) in [("source", here), ("target", there)] {
        if figures.number("version") < VERSION_LEAST {
            let version = figures.number("version") / 10_000;
            missing.push(format!("the {which} is PostgreSQL {version}, and moves need 14: upgrade it"));
        }
        if figures.text("encoding") != "UTF8" {
            let encoding = figures.text("encoding");
            missing.push(format!(
                "the {which}'s database has the encoding {encoding}, in which keys hash otherwise: make one with UTF8"
            ));
        }
        if figures.number("prepared") == 0 {
            missing.push(format!(
                "the {which} has max_prepared_transactions = 0, and transactions over several shards are prepared: set it to \
                 its max_connections and restart it"
            ));
        }
        if figures.is("standby") {
            missing.push(format!("the {which} is a standby: name its primary"));
        }
        if !figures.is("creates") {
            let me = figures.text("me");
            missing.push(format!("{me} may not make schemas on the {which}: GRANT CREATE ON DATABASE … TO {me}"));
        }
    }
    let major = |figures: &Figures| figures.number("version") / 10_000;
    if major(there) < major(here) {
        let (from, to) = (major(here), major(there));
        missing.push(format!("the target is PostgreSQL {to}, older than the source's {from}: upgrade it"));
    }
    if here.text("collation") != there.text("collation") {
        let (from, to) = (here.text("collation"), there.text("collation"));
        missing.push(format!(
            "the source orders text by {from}, the target by {to}: make the target's database with {from}"
        ));
    }
    missing
}

fn of_source(here: &Figures) -> Vec<String> {
    let mut missing = Vec::new();
    if here.text("wal_level") != "logical" {
        let level = here.text("wal_level");
        missing.push(format!("the source has wal_level = {level}: set it to logical and restart it"));
    }
    if here.number("slots") < SLOTS {
        missing.push(format!(
            "the source has {} free replication slots, and a move takes {SLOTS}: raise max_replication_slots and restart it, or drop \
             slots that nobody reads (pg_replication_slots)",
            here.number("slots").max(0)
        ));
    }
    if here.number("walsenders") < WALSENDERS {
        missing.push(format!(
            "the source has {} free WAL senders, and a move takes {WALSENDERS} at least: raise max_wal_senders and restart it",
            here.number("walsenders").max(0)
        ));
    }
    if !here.is("replication") {
        let me = here.text("me");
        missing.push(format!("{me} may not read the source's stream of changes: ALTER ROLE {me} REPLICATION"));
    }
    missing
}

async fn of_target(target: &mut Connection, there: &Figures) -> Result<Option<String>, PostgresError> {
    // What is granted there is known by doing it alone, from version 15 on.
    match target.ask("SET session_replication_role = replica; RESET session_replication_role").await {
        Ok(_) => Ok(None),
        Err(PostgresError::Answered { .. }) => {
            let me = there.text("me");
            Ok(Some(format!(
                "{me} may not write to the target without its triggers: make it a superuser, or (PostgreSQL 15) GRANT SET ON \
                 PARAMETER session_replication_role TO {me}"
            )))
        }
        Err(error) => Err(error),
    }
}

/// Name, type, and whether its values are generated.
async fn columns(server: &mut Connection, table: &Moving) -> Result<Vec<[String; 3]>, PostgresError> {
    let asked = server
        .ask(&format!(
            "SELECT attname, format_type(atttypid, atttypmod), attgenerated FROM pg_attribute \
             WHERE attrelid = to_regclass({}) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            literal(&qualified(&table.schema, &table.name))
        ))
        .await?;
    Ok(asked.rows.iter().map(|row| [0, 1, 2].map(|at| value(row, at).to_owned())).collect())
}

fn differences(table: &Moving, here: &[[String; 3]], there: &[[String; 3]]) -> Vec<String> {
    let name = format!("{}.{}", table.schema, table.name);
    if there.is_empty() {
        return vec![format!("table {name} is not on the target: make it there as it is on the source")];
    }
    let lacks = here.iter().filter(|column| !there.contains(column)).map(|[column, kind, _]| {
        format!("the target's {name} has no column {column} of type {kind} as the source has: alter one of them")
    });
    let more = there.iter().filter(|column| !here.contains(column)).map(|[column, kind, _]| {
        format!("the target's {name} has a column {column} of type {kind} that the source has not: alter one of them")
    });
    lacks.chain(more).collect()
}

async fn of_table(
    source: &mut Connection,
    here: &Figures,
    table: &Moving,
    columns: &[[String; 3]],
) -> Result<Vec<String>, PostgresError> {
    let class = literal(&qualified(&table.schema, &table.name));
    let asked = source
        .ask(&format!(
            "SELECT c.relkind = 'r', c.relpersistence = 'p', \
             EXISTS (SELECT 1 FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)), pg_has_role(c.relowner, 'USAGE'), \
             coalesce((SELECT string_agg(t.tgname, ', ' ORDER BY t.tgname) FROM pg_trigger t \
             WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'R')), ''), \
             c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE')) \
             FROM pg_class c WHERE c.oid = to_regclass({class})"
        ))
        .await?;
    let Some(row) = asked.rows.first() else { return Ok(Vec::new()) };
    let is = |at| value(row, at) == "t";
    let (name, mut missing) = (format!("{}.{}", table.schema, table.name), Vec::new());
    if let Some((key, _)) = &table.key
        && !columns.iter().any(|[column, _, _]| column == key)
    {
        missing.push(format!("table {name} has no column {key} on the source, which is its shard key"));
    }
    if !is(0) {
        missing.push(format!("{name} is no ordinary table: only such ones move"));
    }
    if !is(1) {
        missing.push(format!("table {name} is not in the source's log: ALTER TABLE {name} SET LOGGED"));
    }
    if is(2) {
        missing.push(format!("table {name} is a partition, has some, or inherits: only tables of their own move"));
    }
    if !is(3) {
        let me = here.text("me");
        missing.push(format!(
            "{me} does not own table {name} on the source, so it can't publish it: ALTER TABLE {name} OWNER TO {me}"
        ));
    }
    if !value(row, 4).is_empty() {
        missing.push(format!(
            "triggers of {name} fire also for rows that come from another server ({}): ALTER TABLE {name} ENABLE TRIGGER … \
             so that they don't fire twice",
            value(row, 4)
        ));
    }
    if is(5) && !here.is("super") {
        missing.push(format!("policies hide rows of {name}: ALTER ROLE {} BYPASSRLS", here.text("me")));
    }
    Ok(missing)
}
