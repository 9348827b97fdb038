//! `pleat adopt` before a real PostgreSQL server: what it says of a small shop, and that it leaves no trace.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use pleat_provision::process::{NAME, PROGRAMS, ProcessConfig, Role, Server, Size};
use serde_json::Value;
use tempfile::TempDir;

const SHOP: &str = "
    CREATE TABLE countries (code text PRIMARY KEY, name text);
    CREATE TABLE customers (id bigserial PRIMARY KEY, country text REFERENCES countries, email text UNIQUE);
    CREATE TABLE orders (customer_id bigint REFERENCES customers, id bigint, note text, PRIMARY KEY (customer_id, id));
    CREATE TABLE items (customer_id bigint, order_id bigint, n int, price numeric, PRIMARY KEY (customer_id, order_id, n),
        FOREIGN KEY (customer_id, order_id) REFERENCES orders);
    CREATE TABLE log (at timestamptz, what text) PARTITION BY RANGE (at);
    CREATE TABLE log_2026 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE VIEW rich AS SELECT * FROM customers;
    CREATE MATERIALIZED VIEW kept AS SELECT * FROM customers;
    INSERT INTO countries SELECT 'c' || i, 'Country ' || i FROM generate_series(1, 50) i;
    INSERT INTO customers (country, email) SELECT 'c' || i % 50 + 1, 'a' || i FROM generate_series(1, 1000) i;
    INSERT INTO orders SELECT i % 1000 + 1, i, 'note ' || i FROM generate_series(1, 5000) i;
    INSERT INTO items SELECT i % 1000 + 1, i, 1, i FROM generate_series(1, 5000) i;
    ANALYZE;";
const WORK: &str = "
    SELECT * FROM orders o JOIN customers c ON c.id = o.customer_id JOIN countries l ON l.code = c.country WHERE c.id = 7;
    SELECT note FROM orders WHERE customer_id = 8 AND id = 7;
    UPDATE orders SET note = 'x' WHERE customer_id = 8 AND id = 7;
    SELECT sum(price) FROM items;
    UPDATE orders SET customer_id = 9 WHERE customer_id = 8 AND id = 100000;
    SELECT count(*) FROM rich;
    SELECT country FROM rich WHERE id = 7;
    SELECT count(*) FROM kept;";

fn config(dir: &TempDir, password_file: Option<PathBuf>) -> ProcessConfig {
    let size = Size { memory_mib: 128, connections: 10 };
    ProcessConfig {
        dir: dir.path().join("shard"),
        programs: PROGRAMS.into(),
        port: None,
        size,
        password_file,
        role: Role::Primary { make: true },
    }
}

fn psql(server: &Server, text: &str) -> String {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-U", NAME, "-d", NAME, "-h", "127.0.0.1", "-p"]);
    psql.arg(server.address().port().to_string()).env_remove("PGPASSWORD");
    let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{text}");
    String::from_utf8(done.stdout).unwrap()
}

fn adopt(server: &Server, login: &str, args: &[&str]) -> Output {
    let mut pleat = Command::new(env!("CARGO_BIN_EXE_pleat"));
    let dsn = format!("postgres://{login}@127.0.0.1:{}/{NAME}", server.address().port());
    pleat.arg("adopt").arg(dsn).args(args).env_remove("PGPASSWORD");
    pleat.output().unwrap()
}

fn report(server: &Server) -> Value {
    let said = adopt(server, NAME, &["--json"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

fn placement<'r>(report: &'r Value, name: &str) -> (&'r str, &'r str) {
    let tables = report["tables"].as_array().unwrap();
    let table = tables.iter().find(|table| table["name"] == name).unwrap();
    (table["placement"].as_str().unwrap(), table["key"].as_str().unwrap_or("-"))
}

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

#[tokio::test]
async fn a_shop_is_told_how_it_would_be_sharded() {
    let dir = folder();
    let server = Server::start(config(&dir, None)).await.unwrap();
    psql(&server, SHOP);

    // By the tables' counters alone.
    let before = report(&server);
    assert_eq!(before["statistics"]["from"], "pg_stat_user_tables");
    assert_eq!(before["root"], "customers.id", "{before:#}");
    for (table, wanted) in [
        ("countries", ("reference", "-")),
        ("customers", ("sharded", "id")),
        ("orders", ("sharded", "customer_id")),
        ("items", ("sharded", "customer_id")),
        ("log", ("single", "-")),
        ("log_2026", ("single", "-")),
    ] {
        assert_eq!(placement(&before, table), wanted, "{table}: {before:#}");
    }
    let kinds: Vec<(&str, &str)> = before["obstacles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|obstacle| (obstacle["table"].as_str().unwrap(), obstacle["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [("customers", "unique")], "{before:#}");

    // With what it has run.
    psql(&server, "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'");
    server.stop().await;
    let server = Server::start(config(&dir, None)).await.unwrap();
    psql(&server, "CREATE EXTENSION pg_stat_statements");
    (0..3).for_each(|_| drop(psql(&server, WORK)));
    let tables = psql(&server, "SELECT string_agg(relname || xmin::text, ',' ORDER BY oid) FROM pg_class");
    let after = report(&server);
    assert_eq!(after["statistics"]["from"], "pg_stat_statements");
    assert_eq!(after["root"], "customers.id");
    let statements = after["statements"].as_array().unwrap();
    let verdict = |part: &str| {
        let found = statements.iter().find(|one| one["statement"].as_str().unwrap().contains(part));
        let found = found.unwrap_or_else(|| panic!("{part}: {after:#}"));
        assert_eq!(found["calls"], 3, "{part}");
        found["verdict"].as_str().unwrap()
    };
    assert_eq!(verdict("JOIN countries"), "one_shard");
    assert_eq!(verdict("SELECT note"), "one_shard");
    assert_eq!(verdict("SET note"), "one_shard");
    assert_eq!(verdict("sum(price)"), "several_shards");
    assert_eq!(verdict("SET customer_id"), "refused");
    assert_eq!(verdict("FROM rich WHERE"), "one_shard");
    assert_eq!(verdict("count(*) FROM rich"), "several_shards");
    assert_eq!(verdict("FROM kept"), "refused");
    let shares = after["shares"].as_object().unwrap().values();
    let total: f64 = shares.map(|share| share["time_share"].as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");

    // For people, the same; and nothing is left in the database.
    let told = adopt(&server, NAME, &[]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("Shard by customers.id") && told.contains("Nothing was changed."), "{told}");
    let now = psql(&server, "SELECT string_agg(relname || xmin::text, ',' ORDER BY oid) FROM pg_class");
    assert_eq!(tables, now);
    assert_eq!(psql(&server, "SELECT count(*) FROM pg_prepared_xacts").trim(), "0");
    server.stop().await;
}

#[tokio::test]
async fn a_password_is_used_and_never_shown() {
    let dir = folder();
    let file = dir.path().join("password");
    fs::write(&file, "s3cret word\n").unwrap();
    let server = Server::start(config(&dir, Some(file.clone()))).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for json in [&["--json"][..], &[]] {
        let right = adopt(&server, &format!("{NAME}:s3cret%20word"), json);
        assert!(right.status.success(), "{}", text(&right.stderr));
        let from_file = [json, &["--password-file", file.to_str().unwrap()]].concat();
        let from_file = adopt(&server, NAME, &from_file);
        assert!(from_file.status.success(), "{}", text(&from_file.stderr));
        let wrong = adopt(&server, &format!("{NAME}:s3cret-wrong"), json);
        assert_eq!(wrong.status.code(), Some(1));
        for said in [&right, &from_file, &wrong] {
            assert!(!text(&said.stdout).contains("s3cret") && !text(&said.stderr).contains("s3cret"), "{said:?}");
        }
    }
    server.stop().await;
}
