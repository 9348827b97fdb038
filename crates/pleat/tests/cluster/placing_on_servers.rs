//! Tables of PostgreSQL servers that get another placement, with their rows and while clients write to them.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::{Cluster, Options};
use crate::moves_on_servers::{Writers, psql, servers, touch_until};

/// What a statement fails with: its SQLSTATE and all that psql prints.
fn refused(port: &str, statement: &str) -> String {
    let args = ["-XqAt", "-v", "VERBOSITY=verbose", "-h", "127.0.0.1", "-p", port, "-U", "pleat", "-d", "pleat", "-c"];
    let Output { status, stderr, .. } = Command::new("psql").args(args).arg(statement).output().unwrap();
    assert!(!status.success(), "{statement} was carried out");
    String::from_utf8_lossy(&stderr).into_owned()
}

/// As an application makes them that knows nothing of shards.
const SCHEMA: &str =
    "CREATE TABLE grows (id bigint PRIMARY KEY, writer int NOT NULL, n int NOT NULL, t text);
    CREATE INDEX by_writer ON grows (writer);
    CREATE TABLE kinds (kind int PRIMARY KEY, label text);
    INSERT INTO kinds VALUES (1, 'one'), (2, 'two');
    CREATE TABLE customers (id bigserial PRIMARY KEY, name text);
    CREATE TABLE orders (customer bigint NOT NULL REFERENCES customers (id), id bigserial, kind int REFERENCES kinds (kind), PRIMARY KEY (customer, id));
    CREATE TABLE counted (id bigserial PRIMARY KEY, client int NOT NULL, mail text UNIQUE);
    CREATE TABLE odd (k int, a int UNIQUE, b int UNIQUE, kind int REFERENCES kinds (kind));
    INSERT INTO odd VALUES (NULL, 1, 1, 1);
    INSERT INTO customers (name) SELECT 'c' || g FROM generate_series(1, 20000) g;
    INSERT INTO customers VALUES (50000, 'by hand');
    INSERT INTO orders (customer, kind) SELECT g, g % 2 + 1 FROM generate_series(1, 20000) g;";

/// Ids as the application takes them: left out.
const COUNT: &str = "INSERT INTO counted (client) VALUES (:client_id);
    BEGIN;
    INSERT INTO counted (client) VALUES (:client_id);
    INSERT INTO counted (client) VALUES (:client_id);
    COMMIT;
    \\sleep 5 ms";

/// A database that just came behind Pleat: one server, tables with rows. They are sharded under writers, and then the server becomes three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_with_rows_are_sharded_under_writers_and_then_their_server_becomes_three() {
    let config = json!({
        "engine": "postgres",
        "postgres": { "memory_mib": 128 },
        "scaling_mode": "manual",
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 15_000, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 3,
    });
    let cluster = Cluster::start(Options { nodes: 3, shards: 1, config, ..Options::default() }).await;
    let port = cluster.pg_port(1).to_string();
    for statement in SCHEMA.split_inclusive(';') {
        psql(&port, statement);
    }
    // As it may have been before Pleat came.
    psql(&servers(&cluster).await[0], "CREATE VIEW odds AS SELECT * FROM odd");
    let all = refused(&port, "ALTER TABLE odd SHARD BY (k)");
    for part in [
        "0A000",
        "5 things stand in the way",
        "odd_a_key",
        "odd_b_key",
        "odd_kind_fkey",
        "view odds",
        "odd.k has NULLs",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    let tied = refused(&port, "ALTER TABLE customers SHARD BY (id)");
    assert!(tied.contains("orders_customer_fkey"), "{tied}");
    assert!(refused(&port, "ALTER TABLE counted SHARD BY (id)").contains("counted_mail_key"));
    psql(&port, "ALTER TABLE counted DROP COLUMN mail");
    let (code, _, told) = cluster.cli(&["shard-table", "nothing", "--by", "id"]);
    assert!(code == 1 && told.contains("does not exist"), "{told}");

    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), COUNT.replace("\n    ", "\n")).unwrap();
    let writers = Writers::start(&cluster, 3, false);
    let done = Arc::new(AtomicBool::new(false));
    let counting = [(1, "simple"), (2, "prepared")].map(|(node, mode)| {
        let (done, script, port) = (done.clone(), script.path().to_owned(), cluster.pg_port(node).to_string());
        std::thread::spawn(move || touch_until(&done, &script, &port, mode))
    });
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let shard = |args: &[&str]| {
        let (code, told, error) = cluster.cli(args);
        assert_eq!(code, 0, "{args:?}: {told}{error}\n{}", cluster.tail());
        told
    };
    assert!(shard(&["shard-table", "kinds", "--reference"]).contains("kinds: single to reference"));
    assert!(shard(&["shard-table", "grows", "--by", "id"]).contains("grows: single to sharded by id"));
    let told = shard(&["shard-table", "counted", "--by", "id", "--json"]);
    assert!(told.contains("\"counted: single to sharded by id\""), "{told}");
    assert!(shard(&["shard-table", "counted", "--by", "id"]).contains("counted is sharded by id already"));
    let told = shard(&["shard-table", "customers", "--by", "id", "--also", "orders=customer"]);
    assert!(told.contains("orders: single to sharded by customer"), "{told}");

    let (code, _, told) = cluster.cli(&["policy", "mode=automatic"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_for_shards(3).await;
    let (code, _, told) = cluster.cli(&["policy", "mode=manual"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_until_calm().await;
    done.store(true, Ordering::Relaxed);
    let counted: u64 = counting.into_iter().map(|thread| thread.join().unwrap()).sum();
    let told = writers.stop();
    println!("{told}, and {counted} times three ids");
    for fault in ["lost", "ghosts", "stale", "failures"] {
        assert_eq!(told[fault], json!([]), "{fault}: {told}\n{}", cluster.tail());
    }
    assert_eq!(told["doubled"], 0, "{told}");
    let (counted, ids) = (counted * 3, "SELECT count(*), count(DISTINCT id) FROM counted");
    assert_eq!(psql(&port, ids), format!("{counted}|{counted}"));
    assert_eq!(psql(&port, "SELECT count(*), count(DISTINCT id) FROM customers"), "20001|20001");
    assert_eq!(psql(&port, "SELECT count(*) FROM orders o JOIN customers c ON c.id = o.customer"), "20000");
    let kinds = "SELECT label, count(*) FROM orders JOIN kinds USING (kind) GROUP BY label ORDER BY label";
    assert_eq!(psql(&port, kinds), "one|10000\ntwo|10000");
    assert_eq!(psql(&port, "INSERT INTO customers (name) VALUES ('new') RETURNING id > 50000"), "t");
    assert_eq!(psql(&port, "INSERT INTO orders (customer) VALUES (7) RETURNING id > 20000"), "t");
    for port in servers(&cluster).await {
        let each: u64 = psql(&port, "SELECT least((SELECT count(*) FROM customers), (SELECT count(*) FROM orders))")
            .parse()
            .unwrap();
        assert!(each > 1000, "{each}");
        assert_eq!(psql(&port, "SELECT count(*) FROM kinds"), "2");
        assert_eq!(psql(&port, "SELECT count(*) FROM pg_prepared_xacts"), "0");
    }
}

const THINGS: &str =
    "CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant int NOT NULL, t text, ts timestamptz, f float8, n numeric(20, 5), \
     b bytea, j jsonb, a text[], i interval, twice int GENERATED ALWAYS AS (tenant * 2) STORED);
    INSERT INTO things (tenant, t, ts, f, n, b, j, a, i) SELECT g % 10, CASE WHEN g % 7 > 0 THEN E'it''s \\\\ \\n' || g END, \
     timestamptz '2024-03-31 01:30:00.123456+01' + g * interval '1 hour', g / 3.0::float8, g / 7.0, decode(md5(g::text), 'hex'), \
     jsonb_build_object('k', g), ARRAY['a', NULL, '\"' || g], make_interval(days => g, secs => 0.5) FROM generate_series(1, 3000) g;";

/// In a cluster of several servers the rows of small tables go along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_tables_are_placed_anew_over_three_servers_with_their_rows() {
    let config = json!({ "engine": "postgres" });
    let cluster = Cluster::start(Options { nodes: 1, shards: 3, config, ..Options::default() }).await;
    let port = cluster.pg_port(1).to_string();
    for statement in THINGS.split_inclusive(';') {
        psql(&port, statement);
    }
    let rows = "SELECT * FROM things ORDER BY id";
    let (mut count, mut whole) = (3000, psql(&port, rows));
    for (statement, each) in [
        ("ALTER TABLE things SHARD BY (tenant)", false),
        ("ALTER TABLE things SHARD BY (id)", false),
        ("ALTER TABLE things REFERENCE", true),
        ("ALTER TABLE things SHARD BY (tenant)", false),
        ("ALTER TABLE things SINGLE", false),
        ("ALTER TABLE things REFERENCE", true),
        ("ALTER TABLE things SINGLE", false),
        ("ALTER TABLE things SHARD BY (id)", false),
    ] {
        psql(&port, statement);
        assert_eq!(psql(&port, rows), whole, "{statement}");
        let there = servers(&cluster).await;
        let there: Vec<u64> =
            there.iter().map(|port| psql(port, "SELECT count(*) FROM things").parse().unwrap()).collect();
        match each {
            true => assert!(there.iter().all(|one| *one == count), "{statement}: {there:?}"),
            false => assert_eq!(there.iter().sum::<u64>(), count, "{statement}: {there:?}"),
        }
        // A node may have some of a block from before.
        let id = psql(&port, "INSERT INTO things (tenant) VALUES (3) RETURNING id");
        let ids = psql(&port, "SELECT count(*), count(DISTINCT id) FROM things");
        assert_eq!(ids, format!("{0}|{0}", count + 1), "{statement}: {id}");
        (count, whole) = (count + 1, psql(&port, rows));
    }
    psql(&port, "CREATE TABLE large (id int, t text)");
    psql(&port, "INSERT INTO large SELECT g, 'x' FROM generate_series(1, 10001) g");
    let told = refused(&port, "ALTER TABLE large SHARD BY (id)");
    assert!(told.contains("54000") && told.contains("more than 10000 rows"), "{told}");
    psql(&port, "DELETE FROM large WHERE id > 10000");
    psql(&port, "UPDATE large SET id = NULL WHERE id = 1");
    assert!(refused(&port, "ALTER TABLE large SHARD BY (id)").contains("23502"));
    psql(&port, "DELETE FROM large WHERE id IS NULL");
    psql(&port, "ALTER TABLE large SHARD BY (id)");
    assert_eq!(psql(&port, "SELECT count(*), sum(id) FROM large"), "9999|50004999");
}
