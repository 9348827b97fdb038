//! Reading a database: its schema, and what its statistics say. In one transaction that can only read.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use pleat_cluster::{View, table_key};
use pleat_engine::postgres::{Asked, Connection, PostgresError};
use pleat_sql::postgres::adopt::{
    ColumnFacts, Database, ForeignKey, Oddity, STATEMENTS_MAX, StatementFacts, TableFacts, Unique,
};

/// Longer texts of statements are left out, and counted: they would be cut off, and then mean something else.
const TEXT_BYTES_MAX: usize = 20_000;
const VERSION_LEAST: u32 = 140_000;
/// Nothing is written, nothing is waited for for long, and all is read at one moment.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '60s'; \
    SET LOCAL lock_timeout = '5s'; SET LOCAL search_path = pg_catalog";

const OURS: &str = "n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'";

/// A database as it was found.
pub struct Found {
    pub database: Database,
    pub name: String,
    /// `15.4`
    pub version: String,
    pub bytes: u64,
    pub source: Source,
    /// Statements whose text is too long, or not shown to this user.
    pub left_out: u64,
    /// What a move or a transaction over shards needs and the server lacks.
    pub settings: Vec<String>,
}

/// Where it is known from what the database does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `pg_stat_statements`
    Statements,
    /// `pg_stat_user_tables`, and why.
    Tables(&'static str),
}

pub async fn look(server: &mut Connection) -> anyhow::Result<Found> {
    server.ask(BEGIN).await.context("begin to read the database")?;
    let about = rows(server, ABOUT).await?;
    let about = about.first().context("the server says nothing about itself")?;
    if about.number(1) < u64::from(VERSION_LEAST) {
        bail!("the server is PostgreSQL {}, and shards need 14: upgrade it", about.text(0));
    }
    let mut database = Database { tables: tables(server).await?, ..Database::default() };
    database.references = references(server).await?;
    let views = format!(
        "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) ELSE '' END FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('v', 'm') AND {OURS} ORDER BY 1, 2"
    );
    // Names in them are whole then.
    server.ask("SAVEPOINT views; SET LOCAL search_path = ''").await?;
    let views = rows(server, &views).await?;
    server.ask("ROLLBACK TO SAVEPOINT views").await?;
    let view = |row: &Row| {
        let key = table_key(row.text(0), row.text(1));
        (key.clone(), View { name: key, sql: row.text(2).trim().trim_end_matches(';').to_owned() })
    };
    database.views = views.iter().map(view).collect();
    let (source, left_out) = statements(server, &mut database).await?;
    let settings = settings(about);
    // What was read stays as it is; the transaction has changed nothing.
    let _ = server.ask("ROLLBACK").await;
    Ok(Found {
        database,
        name: about.text(2).to_owned(),
        version: about.text(0).to_owned(),
        bytes: about.number(3),
        source,
        left_out,
        settings,
    })
}

const ABOUT: &str = "SELECT current_setting('server_version'), current_setting('server_version_num'), current_database(), \
    pg_database_size(current_database()), current_setting('wal_level'), current_setting('max_prepared_transactions'), \
    pg_encoding_to_char(d.encoding), pg_is_in_recovery(), r.rolsuper OR r.rolreplication, \
    has_database_privilege(current_database(), 'CREATE'), current_user, d.datcollate \
    FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()";

/// What the server of a shard has to be, and this one is not.
fn settings(about: &Row) -> Vec<String> {
    let mut found = Vec::new();
    let me = about.text(10);
    if about.text(4) != "logical" {
        found.push(format!(
            "wal_level is {}: set it to logical and restart the server, so that rows can move",
            about.text(4)
        ));
    }
    if about.number(5) == 0 {
        found.push("max_prepared_transactions is 0: set it to max_connections and restart the server, for transactions over several shards".to_owned());
    }
    if about.text(6) != "UTF8" {
        found.push(format!(
            "the encoding is {}, in which keys hash otherwise: a database with UTF8 is needed",
            about.text(6)
        ));
    }
    if about.is(7) {
        found.push("the server is a standby: name its primary".to_owned());
    }
    if !about.is(8) {
        found.push(format!("{me} may not read the stream of changes: ALTER ROLE {me} REPLICATION"));
    }
    if !about.is(9) {
        found.push(format!("{me} may not make schemas: GRANT CREATE ON DATABASE … TO {me}"));
    }
    if !matches!(about.text(11), "C" | "POSIX" | "C.UTF-8" | "C.utf8") {
        found.push(format!(
            "text is ordered by {}: every other shard has to be made with the same collation, of the same version of its library",
            about.text(11)
        ));
    }
    found
}

async fn tables(server: &mut Connection) -> anyhow::Result<Vec<TableFacts>> {
    let listed = format!(
        "SELECT n.nspname, c.relname, c.relkind, c.relpersistence, \
         (SELECT p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent WHERE i.inhrelid = c.oid LIMIT 1), c.relispartition, \
         EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhparent = c.oid), \
         CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE coalesce(s.n_live_tup, 0) END::bigint, coalesce(pg_total_relation_size(c.oid), 0), \
         coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0), coalesce(s.n_tup_ins, 0) + coalesce(s.n_tup_upd, 0) + coalesce(s.n_tup_del, 0) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid \
         WHERE c.relkind IN ('r', 'p', 'f') AND {OURS} ORDER BY 1, 2"
    );
    let mut found: BTreeMap<String, TableFacts> = BTreeMap::new();
    for row in rows(server, &listed).await? {
        let key = table_key(row.text(0), row.text(1));
        let name =
            if row.text(0) == "public" { row.text(1).to_owned() } else { format!("{}.{}", row.text(0), row.text(1)) };
        let oddity = match (row.text(2), row.text(3)) {
            _ if row.is(5) => Some(Oddity::PartitionOf(row.text(4).to_owned())),
            ("p", _) => Some(Oddity::Partitioned),
            ("f", _) => Some(Oddity::Foreign),
            _ if row.is(6) || !row.text(4).is_empty() => Some(Oddity::Inherits),
            (_, "u") => Some(Oddity::Unlogged),
            _ => None,
        };
        let facts = TableFacts {
            key: key.clone(),
            name,
            oddity,
            rows: row.number(7),
            bytes: row.number(8),
            scans: row.number(9),
            changes: row.number(10),
            ..TableFacts::default()
        };
        found.insert(key, facts);
    }
    columns(server, &mut found).await?;
    uniques(server, &mut found).await?;
    Ok(found.into_values().collect())
}

async fn columns(server: &mut Connection, tables: &mut BTreeMap<String, TableFacts>) -> anyhow::Result<()> {
    let listed = format!(
        "SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '', \
         a.atthasdef OR a.attidentity <> '', NOT coalesce(co.collisdeterministic, true), \
         a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid), '') LIKE 'nextval(%', \
         CASE WHEN s.n_distinct < 0 THEN -s.n_distinct * greatest(c.reltuples, 0) ELSE s.n_distinct END, s.most_common_freqs[1] \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         LEFT JOIN pg_collation co ON co.oid = a.attcollation \
         LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname AND NOT s.inherited \
         WHERE c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND {OURS} ORDER BY 1, 2, a.attnum"
    );
    for row in rows(server, &listed).await? {
        let Some(table) = tables.get_mut(&table_key(row.text(0), row.text(1))) else { continue };
        table.columns.push(ColumnFacts {
            name: row.text(2).to_owned(),
            decl_type: row.text(3).to_owned(),
            not_null: row.is(4),
            generated: row.is(5),
            has_default: row.is(6),
            loose: row.is(7),
            serial: row.is(8),
            // 0 is "not known".
            distinct: row.text(9).parse().ok().filter(|distinct| *distinct > 0.0),
            top_share: row.text(10).parse().ok(),
        });
    }
    Ok(())
}

async fn uniques(server: &mut Connection, tables: &mut BTreeMap<String, TableFacts>) -> anyhow::Result<()> {
    let listed = format!(
        "SELECT n.nspname, c.relname, x.relname, i.indisprimary, \
         (SELECT string_agg(coalesce(a.attname, ''), E'\\n' ORDER BY k.place) FROM unnest(i.indkey[0:i.indnkeyatts - 1]) \
          WITH ORDINALITY AS k(number, place) LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number > 0) \
         FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE (i.indisunique OR i.indisexclusion) AND c.relkind IN ('r', 'p') AND {OURS} ORDER BY 1, 2, 3"
    );
    for row in rows(server, &listed).await? {
        let Some(table) = tables.get_mut(&table_key(row.text(0), row.text(1))) else { continue };
        if row.is(3) {
            table.primary_key = lines(row.text(4));
        }
        let columns = row.text(4).split('\n').map(|name| (!name.is_empty()).then(|| name.to_owned()));
        table.uniques.push(Unique { name: row.text(2).to_owned(), columns: columns.collect() });
    }
    Ok(())
}

async fn references(server: &mut Connection) -> anyhow::Result<Vec<ForeignKey>> {
    let side = |columns: &str, class: &str| {
        format!(
            "(SELECT string_agg(a.attname, E'\\n' ORDER BY k.place) FROM unnest({columns}) WITH ORDINALITY AS k(number, place) \
             JOIN pg_attribute a ON a.attrelid = {class} AND a.attnum = k.number)"
        )
    };
    let listed = format!(
        "SELECT n.nspname, c.relname, o.conname, fn.nspname, f.relname, {}, {} \
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_class f ON f.oid = o.confrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace \
         WHERE o.contype = 'f' AND o.conparentid = 0 ORDER BY 1, 2, 3",
        side("o.conkey", "o.conrelid"),
        side("o.confkey", "o.confrelid")
    );
    let found = rows(server, &listed).await?;
    let reference = |row: &Row| ForeignKey {
        name: row.text(2).to_owned(),
        table: table_key(row.text(0), row.text(1)),
        columns: lines(row.text(5)),
        to: table_key(row.text(3), row.text(4)),
        to_columns: lines(row.text(6)),
    };
    Ok(found.iter().map(reference).collect())
}

/// The statements that took most time, and how many were left out.
async fn statements(server: &mut Connection, database: &mut Database) -> anyhow::Result<(Source, u64)> {
    let installed = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
                     WHERE e.extname = 'pg_stat_statements'";
    let installed = rows(server, installed).await?;
    let Some(schema) = installed.first().map(|row| row.text(0).to_owned()) else {
        return Ok((Source::Tables("the extension pg_stat_statements is not installed in the database"), 0));
    };
    // Of all databases of the server; who else ran a statement is shown to those with pg_read_all_stats.
    let ours = format!(
        "FROM {schema}.pg_stat_statements s WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    let shown = format!("octet_length(s.query) <= {TEXT_BYTES_MAX} AND s.query <> '<insufficient privilege>'");
    let listed = format!(
        "SELECT s.query, sum(s.calls)::bigint, sum(s.total_exec_time) {ours} AND {shown} \
         GROUP BY s.query ORDER BY 3 DESC, 1 LIMIT {STATEMENTS_MAX}"
    );
    server.ask("SAVEPOINT statements").await?;
    let found = match rows(server, &listed).await {
        Ok(found) => found,
        Err(Failed::Server(_)) => {
            server.ask("ROLLBACK TO statements").await?;
            return Ok((
                Source::Tables(
                    "pg_stat_statements is installed but can't be read: it has to be in shared_preload_libraries",
                ),
                0,
            ));
        }
        Err(failed) => return Err(failed.into()),
    };
    let left_out = rows(server, &format!("SELECT count(*) {ours} AND NOT ({shown})")).await?;
    let own = |row: &&Row| !row.text(0).contains("pg_stat_statements");
    database.statements = found
        .iter()
        .filter(own)
        .map(|row| StatementFacts {
            text: row.text(0).to_owned(),
            calls: row.number(1),
            time_ms: row.text(2).parse().unwrap_or_default(),
        })
        .collect();
    if database.statements.is_empty() {
        return Ok((Source::Tables("pg_stat_statements has no statement of this database yet"), 0));
    }
    Ok((Source::Statements, left_out.first().map_or(0, |row| row.number(0))))
}

fn lines(text: &str) -> Vec<String> {
    text.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the server refuses a question: {0}")]
    Server(String),
    #[error(transparent)]
    Way(PostgresError),
}

struct Row(Vec<Option<String>>);

impl Row {
    fn text(&self, at: usize) -> &str {
        self.0.get(at).and_then(Option::as_deref).unwrap_or_default()
    }

    fn number(&self, at: usize) -> u64 {
        self.text(at).parse().unwrap_or_default()
    }

    fn is(&self, at: usize) -> bool {
        self.text(at) == "t"
    }
}

async fn rows(server: &mut Connection, text: &str) -> Result<Vec<Row>, Failed> {
    match server.ask(text).await {
        Ok(Asked { rows, .. }) => Ok(rows.into_iter().map(Row).collect()),
        Err(PostgresError::Answered { message, .. }) => Err(Failed::Server(message)),
        Err(error) => Err(Failed::Way(error)),
    }
}
