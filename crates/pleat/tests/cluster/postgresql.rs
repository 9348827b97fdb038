//! The PostgreSQL protocol, spoken by those who speak it: psql, and the drivers of other languages.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Cluster, Options};

/// What a program answered.
struct Said {
    out: String,
    err: String,
    fine: bool,
}

/// Run psql with these arguments and this input.
fn psql(cluster: &Cluster, args: &[&str], input: &str) -> Said {
    let mut child = Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-U", "pleat", "-d", "pleat", "-p", &cluster.pg_port(1).to_string()])
        .args(args)
        .env("PGCONNECT_TIMEOUT", "30")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql (Debian's postgresql-client) is there: `cargo xtask test` installs it");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Said { out: text(&done.stdout), err: text(&done.stderr), fine: done.status.success() }
}

/// The rows of a query, as psql prints them without decoration.
fn rows(cluster: &Cluster, query: &str) -> String {
    let said = psql(cluster, &["-qAt", "-c", query], "");
    assert!(said.fine, "{query}: {}\n{}", said.err, cluster.tail());
    said.out.trim_end().to_owned()
}

async fn three_shards() -> Cluster {
    Cluster::start(Options { nodes: 1, shards: 3, ..Options::default() }).await
}

#[tokio::test]
async fn psql_works_over_shards() {
    let cluster = three_shards().await;
    assert_eq!(rows(&cluster, "SELECT 1"), "1");
    let script =
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL DEFAULT 'x', active BOOLEAN) SHARD BY (id);
        CREATE INDEX by_name ON users (name);
        CREATE VIEW actives AS SELECT id FROM users WHERE active;
        INSERT INTO users SELECT value, 'n' || value, value % 2 FROM json_each('[1,2,3,4,5,6,7,8,9,10]');
        \\echo :ROW_COUNT
        BEGIN;
        UPDATE users SET name = 'changed' WHERE id <= 5;
        SAVEPOINT a;
        SELECT nothing FROM users;
        SELECT 1;
        ROLLBACK TO a;
        COMMIT;
        BEGIN; DELETE FROM users; ROLLBACK;
        SELECT count(*), sum(id) FROM users WHERE name = 'changed';
        SELECT id, active FROM users WHERE id IN (2, 3) ORDER BY id;\n";
    let said = psql(&cluster, &["-At"], script);
    let wanted = "CREATE TABLE\nCREATE INDEX\nCREATE VIEW\nINSERT 0 10\n10\nBEGIN\nUPDATE 5\nSAVEPOINT\nROLLBACK\nCOMMIT\n\
                  BEGIN\nDELETE 10\nROLLBACK\n5|15\n2|f\n3|t\n";
    assert_eq!(said.out, wanted, "{}\n{}", said.err, cluster.tail());
    assert!(said.err.contains("nothing") && said.err.contains("current transaction is aborted"), "{}", said.err);

    // Prepared and opened by name.
    let script = "PREPARE find (int) AS SELECT id, active FROM users WHERE id = $1;
        EXECUTE find (2);
        EXECUTE find ('3');
        PREPARE rename AS UPDATE users SET name = $2 WHERE id = $1;
        EXECUTE rename (9, 'it''s');
        SELECT name FROM users WHERE id = 9;
        EXECUTE find;
        EXECUTE find (1 + 1);
        PREPARE find AS SELECT 1;
        DEALLOCATE find;
        EXECUTE find (2);
        PREPARE more AS DROP TABLE users;
        DECLARE c CURSOR FOR SELECT 1;
        BEGIN;
        DECLARE c CURSOR FOR SELECT id FROM users ORDER BY id;
        FETCH 2 FROM c;
        MOVE 3 FROM c;
        FETCH c;
        FETCH ALL IN c;
        FETCH c;
        CLOSE c;
        COMMIT;\n";
    let said = psql(&cluster, &["-At", "-v", "VERBOSITY=sqlstate"], script);
    let wanted = "PREPARE\n2|f\n3|t\nPREPARE\nUPDATE 1\nit's\nDEALLOCATE\nBEGIN\nDECLARE CURSOR\n1\n2\nMOVE 3\n6\n\
                  7\n8\n9\n10\nCLOSE CURSOR\nCOMMIT\n";
    assert_eq!(said.out, wanted, "{}\n{}", said.err, cluster.tail());
    let codes: Vec<&str> = said.err.lines().filter_map(|line| line.split("ERROR:").nth(1)).map(str::trim).collect();
    assert_eq!(codes, ["42601", "42601", "42P05", "26000", "42601", "25P01"], "{}", said.err);

    // What psql asks the system catalog.
    assert_eq!(rows(&cluster, "SELECT count(*) FROM pg_description WHERE classoid = 'pg_class'::regclass"), "0");
    let tables = psql(&cluster, &["-At", "-c", "\\dt"], "").out;
    assert_eq!(tables.trim(), "public|users|table|pleat");
    let table = psql(&cluster, &["-c", "\\d users"], "");
    for part in ["id", "bigint", "not null", "'x'::text", "users_pkey", "PRIMARY KEY", "by_name", "boolean"] {
        let part = part.strip_suffix("::text").unwrap_or(part);
        assert!(table.out.contains(part), "{part}: {}{}", table.out, table.err);
    }
    for (command, part) in [
        ("\\l", "UTF8"),
        ("\\d", "actives"),
        ("\\dv", "actives"),
        ("\\di", "by_name"),
        ("\\dn", "public"),
        ("\\du", "pleat"),
        ("\\d actives", "id"),
        ("\\d by_name", "btree"),
        ("\\conninfo", "pleat"),
        ("\\d+ users", "by_name"),
        ("\\dT", "List"),
        ("\\df", "List"),
        ("\\encoding", "UTF8"),
    ] {
        let said = psql(&cluster, &["-c", command], "");
        assert!(said.fine && said.err.is_empty() && said.out.contains(part), "{command}: {}{}", said.out, said.err);
    }
    let unknown = psql(&cluster, &["-c", "\\d nowhere"], "");
    assert!(unknown.err.contains("Did not find any relation named \"nowhere\""), "{}", unknown.err);
    let timed = psql(&cluster, &["-At"], "\\timing on\nSELECT 1;\n");
    assert!(timed.out.contains("Time:"), "{}", timed.out);

    // A message of several statements is done all or not at all.
    let failed =
        psql(&cluster, &["-c", "INSERT INTO users VALUES (100, 'a', 1); INSERT INTO users VALUES (1, 'b', 1)"], "");
    assert!(!failed.fine && failed.err.contains("UNIQUE"), "{}", failed.err);
    assert_eq!(rows(&cluster, "SELECT count(*) FROM users"), "10");

    // Errors have their code, place and hint.
    let wrong = psql(&cluster, &["-v", "VERBOSITY=verbose", "-c", "SELECT * FRM users"], "");
    assert!(wrong.err.contains("42601") && wrong.err.contains("LINE 1"), "{}", wrong.err);

    // Ctrl-C.
    let slow = Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-U", "pleat", "-p", &cluster.pg_port(1).to_string(), "-c"])
        .arg("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cluster.wait_for("/statements", "the statement to run", |_| true).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(slow.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let begun = std::time::Instant::now();
    let ended = slow.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(words.contains("cancelled by its user"), "{words} after {:?}", begun.elapsed());
}

#[tokio::test]
async fn psql_copies() {
    let cluster = three_shards().await;
    rows(&cluster, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, weight REAL, raw BLOB) SHARD BY (id)");
    let file = cluster.dir.path().join("in.csv");
    let mut text = "id,name,weight,raw\n".to_owned();
    for id in 0..12_000 {
        text += &format!("{id},\"a \"\"{id}\"\",\n b\",{}.5,NA\n", id % 100);
    }
    std::fs::write(&file, text).unwrap();
    let copied = psql(&cluster, &["-c", &format!("\\copy t FROM '{}' csv header null 'NA'", file.display())], "");
    assert_eq!(copied.out.trim(), "COPY 12000", "{}\n{}", copied.err, cluster.tail());
    assert_eq!(
        rows(&cluster, "SELECT count(*), sum(id), count(raw), min(name) FROM t"),
        "12000|71994000|0|a \"0\",\n b"
    );
    // Text format, there and back.
    let given = "20000\ttab\\tnew\\nline\\\\\t\\N\t\\\\x00ff\n20001\t\t1.5\t\\N\n";
    let copied = psql(&cluster, &["-c", "COPY t FROM STDIN"], given);
    assert_eq!(copied.out.trim(), "COPY 2", "{}", copied.err);
    let back = psql(&cluster, &["-c", "COPY (SELECT * FROM t WHERE id >= 20000 ORDER BY id) TO STDOUT"], "");
    assert_eq!(back.out, given);
    let csv = psql(
        &cluster,
        &["-c", "COPY (SELECT id, name, weight FROM t WHERE id >= 20000 ORDER BY id) TO STDOUT (FORMAT csv, HEADER)"],
        "",
    );
    assert_eq!(csv.out, "id,name,weight\n20000,\"tab\tnew\nline\\\",\n20001,\"\",1.5\n");
    // A line that can't be inserted is named.
    let wrong = psql(&cluster, &["-c", "COPY t (id, name) FROM STDIN"], "30000\ta\nx\tb\n");
    assert!(!wrong.fine && wrong.err.contains("line 2") && wrong.err.contains("\"id\""), "{}", wrong.err);
    let double = psql(&cluster, &["-c", "COPY t (id, name) FROM STDIN"], "40000\ta\n40000\tb\n");
    assert!(!double.fine && double.err.contains("line 2"), "{}", double.err);
    let short = psql(&cluster, &["-c", "COPY t (id, name) FROM STDIN"], "50000\n");
    assert!(short.err.contains("missing data for column \"name\""), "{}", short.err);
    assert_eq!(rows(&cluster, "SELECT 1"), "1");
}

/// Run a driver's script against a cluster. It ends well, or tells why not.
fn drive(cluster: &Cluster, script: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/drivers").join(script);
    // Debian's own Python: it has Debian's drivers.
    let done = Command::new("/usr/bin/python3")
        .arg(path)
        .env("PGPORT", cluster.pg_port(1).to_string())
        .stdin(Stdio::null())
        .output()
        .expect("python3 is there, with Debian's drivers: `cargo xtask test` installs them");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{script}:\n{}{}\n{}", text(&done.stdout), text(&done.stderr), cluster.tail());
}

#[tokio::test]
async fn drivers_work_over_shards() {
    let cluster = three_shards().await;
    for script in ["with_psycopg2.py", "with_psycopg.py", "with_asyncpg.py", "with_sqlalchemy.py"] {
        drive(&cluster, script);
    }
}
