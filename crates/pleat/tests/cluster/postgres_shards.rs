//! Shards that are PostgreSQL servers, used as one would use a PostgreSQL server: by psql, pgbench and drivers.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Cluster, Options};

/// What a program answered.
struct Said {
    out: String,
    err: String,
    fine: bool,
}

fn psql(cluster: &Cluster, args: &[&str], input: &str) -> Said {
    run("psql", &["-X"], cluster, args, input)
}

fn run(program: &str, first: &[&str], cluster: &Cluster, args: &[&str], input: &str) -> Said {
    let mut child = Command::new(program)
        .args(first)
        .args(["-h", "127.0.0.1", "-U", "pleat", "-p", &cluster.pg_port(1).to_string()])
        .args(args)
        .env("PGCONNECT_TIMEOUT", "30")
        .env("PGDATABASE", "pleat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's postgresql-15 is there: `cargo xtask test` installs it");
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

/// The SQLSTATE with which a statement fails.
fn refused(cluster: &Cluster, statement: &str) -> String {
    let said = psql(cluster, &["-qAt", "-v", "VERBOSITY=sqlstate", "-c", statement], "");
    assert!(!said.fine, "{statement} was carried out: {}", said.out);
    let error = said.err.lines().find_map(|line| line.strip_prefix("ERROR:"));
    error.unwrap_or_else(|| panic!("{statement}: {}", said.err)).trim().to_owned()
}

async fn three_servers() -> Cluster {
    let config = json!({ "engine": "postgres" });
    Cluster::start(Options { nodes: 1, shards: 3, config, ..Options::default() }).await
}

#[tokio::test]
async fn psql_works_over_servers() {
    let cluster = three_servers().await;
    assert_eq!(rows(&cluster, "SELECT 1"), "1");
    let script = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL DEFAULT 'x', born timestamptz, tags text[]) SHARD BY (id);
        CREATE TABLE kinds (kind int PRIMARY KEY, label text) REFERENCE;
        CREATE TABLE notes (id serial PRIMARY KEY, note text);
        CREATE INDEX by_name ON users (name);
        INSERT INTO kinds VALUES (1, 'one'), (2, 'two');
        INSERT INTO notes (note) VALUES ('a'), ('b');
        INSERT INTO users (id, name) VALUES (1,'a'),(2,'b'),(3,'c'),(4,'d'),(5,'e'),(6,'f'),(7,'g'),(8,'h'),(9,'i'),(10,'j');
        UPDATE users SET tags = ARRAY['x', name] WHERE id IN (1, 2, 3);
        SELECT id, name, tags FROM users WHERE id = 2;
        SELECT count(*), sum(id), avg(id), min(name), max(name) FROM users;
        SELECT name FROM users ORDER BY name DESC LIMIT 3 OFFSET 1;
        SELECT id % 3 AS rest, count(*) FROM users GROUP BY rest HAVING count(*) > 2 ORDER BY rest;
        SELECT u.name, k.label FROM users u JOIN kinds k ON k.kind = u.id ORDER BY 1;
        SELECT a.id, b.name FROM users a JOIN users b ON b.id = a.id + 1 WHERE a.id < 3 ORDER BY a.id;
        DELETE FROM users WHERE name > 'h';
        UPDATE kinds SET label = 'ONE' WHERE kind = 1;
        SELECT count(*) FROM notes;\n";
    let said = psql(&cluster, &["-At"], script);
    let wanted = "CREATE TABLE\nCREATE TABLE\nCREATE TABLE\nCREATE INDEX\nINSERT 0 2\nINSERT 0 2\nINSERT 0 10\nUPDATE 3\n2|b|{x,b}\n\
                  10|55|5.5000000000000000|a|j\ni\nh\ng\n0|3\n1|4\n2|3\na|one\nb|two\n1|b\n2|c\nDELETE 2\nUPDATE 1\n2\n";
    assert_eq!(said.out, wanted, "{}\n{}", said.err, cluster.tail());

    // The rows are where their keys say: every server has some, and all have the reference table.
    let shards = cluster.get("/shards").await;
    let servers: Vec<String> =
        shards.as_array().unwrap().iter().map(|shard| shard["server"].as_str().unwrap().to_owned()).collect();
    let direct = |server: &str, query: &str| {
        let (host, port) = server.split_once(':').unwrap();
        let done = Command::new("psql")
            .args(["-XqAt", "-h", host, "-p", port, "-U", "pleat", "-d", "pleat", "-c", query])
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    let counts: Vec<u32> =
        servers.iter().map(|server| direct(server, "SELECT count(*) FROM users").parse().unwrap()).collect();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(counts.iter().sum::<u32>(), 8);
    for server in &servers {
        assert_eq!(direct(server, "SELECT label FROM kinds ORDER BY kind"), "ONE\ntwo");
    }

    // Transactions over several servers.
    let script = "BEGIN;
        UPDATE users SET name = name || '!';
        SAVEPOINT a;
        DELETE FROM users;
        SELECT count(*) FROM users;
        ROLLBACK TO a;
        SELECT count(*) FROM users WHERE name LIKE '%!';
        COMMIT;
        BEGIN; DELETE FROM users WHERE id = 1; DELETE FROM users WHERE id = 2; ROLLBACK;
        BEGIN; SELECT nothing FROM users WHERE id = 1; SELECT 1; COMMIT;
        SELECT count(*) FROM users WHERE name LIKE '%!';\n";
    let said = psql(&cluster, &["-At"], script);
    let wanted = "BEGIN\nUPDATE 8\nSAVEPOINT\nDELETE 8\n0\nROLLBACK\n8\nCOMMIT\nBEGIN\nDELETE 1\nDELETE 1\nROLLBACK\nBEGIN\nROLLBACK\n8\n";
    assert_eq!(said.out, wanted, "{}\n{}", said.err, cluster.tail());
    assert!(said.err.contains("nothing") && said.err.contains("current transaction is aborted"), "{}", said.err);
    for server in &servers {
        assert_eq!(direct(server, "SELECT count(*) FROM pg_prepared_xacts"), "0");
    }
    // Several statements in one message are done all or not at all.
    let both = "INSERT INTO users (id) VALUES (100), (101), (102); INSERT INTO users (id) VALUES (1)";
    assert_eq!(refused(&cluster, both), "23505");
    assert_eq!(rows(&cluster, "SELECT count(*) FROM users"), "8");

    // What the servers know of themselves.
    for (command, part) in [
        ("\\dt", "users"),
        ("\\l", "UTF8"),
        ("\\d users", "timestamp with time zone"),
        ("\\d users", "by_name"),
        ("\\conninfo", "pleat"),
    ] {
        let said = psql(&cluster, &["-c", command], "");
        assert!(said.fine && said.out.contains(part), "{command}: {}{}", said.out, said.err);
    }

    // What can't hold is refused when it is declared.
    for (statement, code) in [
        ("CREATE TABLE bad (id bigint, mail text UNIQUE) SHARD BY (id)", "0A000"),
        ("CREATE UNIQUE INDEX u ON users (name)", "0A000"),
        ("CREATE TABLE bad (id numeric) SHARD BY (id)", "0A000"),
        ("CREATE TABLE bad (id bigint, n int REFERENCES notes (id)) SHARD BY (id)", "0A000"),
        ("ALTER TABLE users DROP COLUMN id", "0A000"),
        ("UPDATE users SET id = 5 WHERE id = 1", "0A000"),
        ("INSERT INTO users (name) VALUES ('no key')", "0A000"),
        ("INSERT INTO users (id) VALUES (NULL)", "23502"),
        ("CREATE INDEX CONCURRENTLY c ON users (name)", "0A000"),
        ("CREATE TABLE users (id int)", "42P07"),
        ("SELEC 1", "42601"),
    ] {
        assert_eq!(refused(&cluster, statement), code, "{statement}");
    }
    assert_eq!(rows(&cluster, "SELECT count(*) FROM pg_tables WHERE tablename = 'bad'"), "0");

    // Settings go along, whatever server a statement lands on.
    let script = "SET TIME ZONE 'Asia/Tokyo';
        INSERT INTO users (id, born) VALUES (200, '2024-01-01 00:00:00Z'), (201, '2024-01-01 00:00:00Z'), (202, '2024-01-01 00:00:00Z');
        SELECT id, born FROM users WHERE id >= 200 ORDER BY id;
        SELECT born FROM users WHERE id = 201;
        BEGIN; SET LOCAL TIME ZONE 'UTC'; SELECT born FROM users WHERE id = 200; SELECT born FROM users WHERE id = 202; COMMIT;
        SHOW timezone;
        RESET ALL;\n";
    let said = psql(&cluster, &["-qAt"], script);
    let tokyo = "2024-01-01 09:00:00+09";
    let utc = "2024-01-01 00:00:00+00";
    assert_eq!(
        said.out,
        format!("200|{tokyo}\n201|{tokyo}\n202|{tokyo}\n{tokyo}\n{utc}\n{utc}\nAsia/Tokyo\n"),
        "{}",
        said.err
    );

    // A session that makes a temporary table keeps its connection.
    let said = psql(
        &cluster,
        &["-qAt"],
        "CREATE TEMP TABLE t (a int); INSERT INTO t VALUES (1), (2);\nSELECT sum(a) FROM t;\nDROP TABLE t;\n",
    );
    assert_eq!(said.out, "3\n", "{}", said.err);

    // HTTP says where to go instead.
    let error = cluster.try_query("SELECT 1").await.unwrap_err();
    assert_eq!(error.code(), "0A000");
}

#[tokio::test]
async fn rows_are_copied_to_the_servers_of_their_keys() {
    let cluster = three_servers().await;
    rows(&cluster, "CREATE TABLE t (id bigint PRIMARY KEY, name text, weight float8, raw bytea) SHARD BY (id)");
    rows(&cluster, "CREATE TABLE r (id int PRIMARY KEY, name text) REFERENCE");
    let file = cluster.dir.path().join("in.csv");
    let mut text = "id,name,weight,raw\n".to_owned();
    for id in 0..12_000 {
        text += &format!("{id},\"a \"\"{id}\"\",\n b\",{}.5,NA\n", id % 100);
    }
    std::fs::write(&file, text).unwrap();
    let copied = psql(&cluster, &["-c", &format!("\\copy t FROM '{}' csv header null 'NA'", file.display())], "");
    assert_eq!(copied.out.trim(), "COPY 12000", "{}\n{}", copied.err, cluster.tail());
    let sums = "SELECT count(*), sum(id), count(raw), min(name) FROM t";
    assert_eq!(rows(&cluster, sums), "12000|71994000|0|a \"0\",\n b");

    // There and back, in each format.
    let given = "20000\ttab\\tnew\\nline\\\\\t\\N\t\\\\x00ff\n20001\t\t1.5\t\\N\n";
    let copied = psql(&cluster, &["-c", "COPY t FROM STDIN"], given);
    assert_eq!(copied.out.trim(), "COPY 2", "{}", copied.err);
    let back = psql(&cluster, &["-c", "COPY (SELECT * FROM t WHERE id = 20000) TO STDOUT"], "");
    assert_eq!(back.out, given.split_inclusive('\n').next().unwrap());
    for (number, form) in ["(FORMAT text)", "(FORMAT csv, HEADER)", "(FORMAT binary)"].iter().enumerate() {
        let file = cluster.dir.path().join(format!("out{number}"));
        let out = psql(&cluster, &["-c", &format!("\\copy t TO '{}' {form}", file.display())], "");
        assert_eq!(out.out.trim(), "COPY 12002", "{form}: {}", out.err);
        rows(&cluster, "TRUNCATE t");
        assert_eq!(rows(&cluster, "SELECT count(*) FROM t"), "0");
        let back = psql(&cluster, &["-c", &format!("\\copy t FROM '{}' {form}", file.display())], "");
        assert_eq!(back.out.trim(), "COPY 12002", "{form}: {}\n{}", back.err, cluster.tail());
        assert_eq!(rows(&cluster, sums), "12002|72034001|1|", "{form}");
        assert_eq!(rows(&cluster, "SELECT encode(raw, 'hex'), weight FROM t WHERE id = 20000"), "00ff|");
    }
    let copied = psql(&cluster, &["-c", "COPY r FROM STDIN"], "1\ta\n2\tb\n");
    assert_eq!(copied.out.trim(), "COPY 2", "{}", copied.err);

    // All or nothing: COPY is part of its transaction.
    for (input, code) in
        [("30000\ta\nx\tb\n", "22P02"), ("40000\ta\n40000\tb\n", "23505"), ("50000\n", "22P04"), ("\\N\ta\n", "23502")]
    {
        let wrong = psql(&cluster, &["-v", "VERBOSITY=sqlstate", "-c", "COPY t (id, name) FROM STDIN"], input);
        assert!(!wrong.fine && wrong.err.contains(code), "{input}: {}", wrong.err);
    }
    assert_eq!(rows(&cluster, "SELECT count(*) FROM t"), "12002");
}

/// pgbench's own tables, sharded by the configuration, and all of its scripts in each way of sending statements.
#[tokio::test]
async fn pgbench_runs_over_servers() {
    let config = json!({
        "engine": "postgres",
        "table_shard_keys": {
            "pgbench_accounts": "aid", "pgbench_tellers": "tid", "pgbench_branches": "bid", "pgbench_history": "aid",
        },
    });
    let cluster = Cluster::start(Options { nodes: 1, shards: 3, config, ..Options::default() }).await;
    let made = run("pgbench", &[], &cluster, &["-i", "-s", "1", "-q"], "");
    assert!(made.fine, "{}\n{}", made.err, cluster.tail());
    assert_eq!(rows(&cluster, "SELECT count(*) FROM pgbench_accounts"), "100000");
    for mode in ["simple", "extended", "prepared"] {
        for script in ["tpcb-like", "simple-update", "select-only"] {
            let said = run("pgbench", &[], &cluster, &["-n", "-M", mode, "-b", script, "-c", "4", "-t", "25"], "");
            assert!(said.fine, "{mode} {script}: {}\n{}", said.err, cluster.tail());
            assert!(said.out.contains("100/100"), "{mode} {script}: {}{}", said.out, said.err);
        }
    }
    // tpcb-like adds each delta to one account, one teller and one branch; simple-update to an account alone.
    assert_eq!(rows(&cluster, "SELECT count(*) FROM pgbench_history"), "600");
    let sums = rows(
        &cluster,
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), \
         (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)",
    );
    assert_eq!(sums, "t|t");
}

#[tokio::test]
async fn serial_columns_count_over_servers() {
    let config = json!({ "engine": "postgres" });
    let mut cluster = Cluster::start(Options { nodes: 2, shards: 2, config, ..Options::default() }).await;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/drivers/serial_on_servers.py");
    let done = Command::new("/usr/bin/python3")
        .arg(path)
        .env("PGPORT", cluster.pg_port(1).to_string())
        .env("PGPORTS", format!("{} {}", cluster.pg_port(1), cluster.pg_port(2)))
        .stdin(Stdio::null())
        .output()
        .expect("python3 is there, with Debian's drivers: `cargo xtask test` installs them");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}{}\n{}", text(&done.stdout), text(&done.stderr), cluster.tail());

    let script = "CREATE TABLE tags (id int GENERATED BY DEFAULT AS IDENTITY (START WITH 100) PRIMARY KEY, tag text) REFERENCE;
        INSERT INTO tags (tag) VALUES ('a'), ('b') RETURNING id, tag;
        CREATE SEQUENCE numbers;
        CREATE TABLE parts (k text PRIMARY KEY, number int DEFAULT nextval('numbers'), note text DEFAULT 'x') SHARD BY (k);
        INSERT INTO parts (k) VALUES ('a');
        INSERT INTO parts VALUES ('b', DEFAULT, 'y');
        INSERT INTO parts (k) VALUES ('a') ON CONFLICT (k) DO UPDATE SET note = excluded.number::text;
        SELECT * FROM parts ORDER BY k;
        SELECT currval('numbers');
        PREPARE p AS INSERT INTO parts (k) VALUES ($1) RETURNING number;
        EXECUTE p('c');
        SELECT setval('numbers', 50);
        EXECUTE p('d');
        SELECT nextval('numbers');
        CREATE TABLE small (id smallserial PRIMARY KEY) SHARD BY (id);
        INSERT INTO small VALUES (2);
        INSERT INTO small DEFAULT VALUES RETURNING id;
        SELECT pg_get_serial_sequence('small', 'id');
        BEGIN; INSERT INTO small VALUES (5), (6); INSERT INTO small VALUES (DEFAULT); SELECT lastval(); COMMIT;\n";
    let said = psql(&cluster, &["-At"], script);
    let wanted = "CREATE TABLE\n100|a\n101|b\nINSERT 0 2\nCREATE SEQUENCE\nCREATE TABLE\nINSERT 0 1\nINSERT 0 1\nINSERT 0 1\na|1|3\nb|2|y\n3\n\
                  PREPARE\n4\nINSERT 0 1\n50\n51\nINSERT 0 1\n52\nCREATE TABLE\nINSERT 0 1\n3\nINSERT 0 1\npublic.small_id_seq\n\
                  BEGIN\nINSERT 0 2\nINSERT 0 1\n4\nCOMMIT\n";
    assert_eq!(said.out, wanted, "{}\n{}", said.err, cluster.tail());
    // A value by hand is met once.
    assert_eq!(refused(&cluster, "INSERT INTO small DEFAULT VALUES"), "23505");
    assert_eq!(rows(&cluster, "INSERT INTO small DEFAULT VALUES RETURNING id"), "7");
    for (statement, code) in [
        ("INSERT INTO lines (id, tenant) VALUES (1, 1)", "428C9"),
        ("INSERT INTO lines (id, tenant) OVERRIDING SYSTEM VALUE VALUES (1, 1)", "0A000"),
        ("COPY lines (id, tenant) FROM STDIN", "0A000"),
        ("UPDATE lines SET id = DEFAULT", "2200H"),
        ("CREATE TABLE twice (a bigserial, b bigserial) SHARD BY (a)", "0A000"),
        ("CREATE TABLE by (id bigserial PRIMARY KEY, k int) SHARD BY (k)", "0A000"),
        ("CREATE TABLE other (k int PRIMARY KEY, n int DEFAULT nextval('numbers')) SHARD BY (k)", "0A000"),
        ("ALTER SEQUENCE small_id_seq RESTART", "0A000"),
        ("ALTER TABLE parts ADD COLUMN n serial", "0A000"),
        ("SELECT currval('numbers')", "55000"),
        ("SELECT setval('small_id_seq', 40000)", "22003"),
    ] {
        assert_eq!(refused(&cluster, statement), code, "{statement}");
    }
    // A server gives no value by itself; and what a dead node had is not given again.
    assert_eq!(refused(&cluster, "DO $$ BEGIN PERFORM nextval('numbers'); END $$"), "2200H");
    let before = rows(&cluster, "SELECT max(id) FROM lines");
    cluster.kill_all();
    cluster.start_again().await;
    assert_eq!(rows(&cluster, &format!("INSERT INTO lines (tenant) VALUES (1) RETURNING id > {before}")), "t");
}

/// PostgreSQL's JDBC driver, as Debian has it.
const JDBC: &str = "/usr/share/java/postgresql.jar";

/// A driver's script takes some seconds. One that hangs has to tell what it said, before the test is killed for it.
const DRIVER_SECONDS_MAX: &str = "180";

/// Run a driver's script. It ends well, or tells why not.
fn drive(cluster: &Cluster, program: &str, args: &[&str], script: &str) {
    let drivers = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/drivers");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(target);
    // Debian's `pg`, installed or unpacked.
    let modules = format!("/usr/share/nodejs:{}", target.join("test-data/node/usr/share/nodejs").display());
    let begun = std::time::Instant::now();
    // Of SIGINT Python tells where it was. Its process group stays the test's.
    let done = Command::new("timeout")
        .args(["--foreground", "--signal=INT", "--kill-after=5", DRIVER_SECONDS_MAX, program])
        .args(args)
        .arg(drivers.join(script))
        .env("PGPORT", cluster.pg_port(1).to_string())
        .env("NODE_PATH", modules)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let how = match done.status.code() {
        Some(0) => return println!("{script} took {:.1?}", begun.elapsed()),
        Some(124 | 137) => "it hangs".to_owned(),
        Some(127) => format!("{program}, which `cargo xtask test` installs, is not there"),
        _ => done.status.to_string(),
    };
    panic!("{script}: {how}\n{}{}\n{}", text(&done.stdout), text(&done.stderr), cluster.tail());
}

#[tokio::test]
async fn drivers_work_over_servers() {
    let cluster = three_servers().await;
    // Debian's own Python: it has Debian's drivers.
    drive(&cluster, "/usr/bin/python3", &[], "on_servers.py");
    drive(&cluster, "/usr/bin/python3", &[], "django_on_servers.py");
    drive(&cluster, "node", &[], "on_servers.js");
    drive(&cluster, "java", &["-cp", JDBC], "OnServers.java");
    crate::sqlx_on_servers::drive(cluster.pg_port(1)).await;
    // A cursor over several servers, which is gone with its transaction; one WITH HOLD outlives it.
    let script = "BEGIN;
        DECLARE c CURSOR FOR SELECT visitor, count(*) FROM visits GROUP BY visitor ORDER BY visitor;
        FETCH 2 FROM c;
        MOVE 1 FROM c;
        FETCH c;
        DECLARE h CURSOR WITH HOLD FOR SELECT id FROM visits ORDER BY id DESC;
        COMMIT;
        FETCH c;
        FETCH h;
        CLOSE h;
        FETCH h;
        DECLARE d CURSOR FOR SELECT id FROM visits;\n";
    let said = psql(&cluster, &["-At", "-v", "VERBOSITY=sqlstate"], script);
    let last = "00000000-0000-0000-0000-000000000031";
    let wanted =
        format!("BEGIN\nDECLARE CURSOR\n0|10\n1|10\nMOVE 1\n3|10\nDECLARE CURSOR\nCOMMIT\n{last}\nCLOSE CURSOR\n");
    assert_eq!(said.out, wanted, "{}\n{}", said.err, cluster.tail());
    let codes: Vec<&str> = said.err.lines().filter_map(|line| line.split("ERROR:").nth(1)).map(str::trim).collect();
    assert_eq!(codes, ["34000", "34000", "25P01"], "{}", said.err);
}

/// A server is killed again and again under transfers between shards, and then the node with all of its servers. No transfer is lost, doubled or torn, and
/// none stays undecided.
#[tokio::test]
async fn transfers_survive_kills_of_servers_and_of_the_node() {
    let mut cluster = three_servers().await;
    rows(&cluster, "CREATE TABLE bank (id int PRIMARY KEY, balance bigint NOT NULL) SHARD BY (id)");
    rows(&cluster, "CREATE TABLE ledger (id bigint PRIMARY KEY, source int) SHARD BY (id)");
    let values: Vec<String> = (0..60).map(|id| format!("({id}, 1000)")).collect();
    rows(&cluster, &format!("INSERT INTO bank VALUES {}", values.join(", ")));
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/drivers/bank_on_servers.py");
    let mut bank = Command::new("/usr/bin/python3")
        .arg(script)
        .arg("150")
        .env("PGPORT", cluster.pg_port(1).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is there, with Debian's drivers: `cargo xtask test` installs them");
    let mut kills = 0;
    while bank.try_wait().unwrap().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        match kills {
            4 => cluster.kill_node(1),
            _ => {
                let dir = cluster.node_dir(1).join(format!("shards/{}/data/postmaster.pid", kills % 3 + 1));
                let first = std::fs::read_to_string(dir).ok();
                let pid = first.and_then(|text| text.lines().next().and_then(|line| line.parse::<i32>().ok()));
                if let Some(pid) = pid {
                    // It may be gone already.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
        }
        kills += 1;
        if kills > 7 {
            break;
        }
    }
    let done = bank.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let numbers: Vec<u64> = out.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [committed, unknown, _] = numbers[..] else {
        panic!("{out}{}\n{}", String::from_utf8_lossy(&done.stderr), cluster.tail())
    };
    cluster.wait_healthy().await;
    assert!(committed > 0, "{out}\n{}", cluster.tail());
    // What was prepared and not decided is decided within seconds.
    let begun = std::time::Instant::now();
    let shards = cluster.get("/shards").await;
    for shard in shards.as_array().unwrap() {
        let (host, port) = shard["server"].as_str().unwrap().split_once(':').unwrap();
        loop {
            let done = Command::new("psql")
                .args([
                    "-XqAt",
                    "-h",
                    host,
                    "-p",
                    port,
                    "-U",
                    "pleat",
                    "-d",
                    "pleat",
                    "-c",
                    "SELECT count(*) FROM pg_prepared_xacts",
                ])
                .output()
                .unwrap();
            if String::from_utf8_lossy(&done.stdout).trim() == "0" {
                break;
            }
            assert!(begun.elapsed() < crate::harness::PATIENCE, "undecided on {shard}\n{}", cluster.tail());
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    assert_eq!(rows(&cluster, "SELECT sum(balance), count(*) FROM bank"), "60000|60");
    // Each transfer that was acknowledged is there, and none that was not begun.
    let kept: u64 = rows(&cluster, "SELECT count(*) FROM ledger").parse().unwrap();
    assert!(kept >= committed && kept <= committed + unknown, "{kept} of {committed} and perhaps {unknown}");
}
