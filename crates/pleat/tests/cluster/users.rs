//! Passwords and TLS, with the clients that people have.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;

use crate::harness::{Cluster, Options};

/// What a program answered.
#[derive(Debug)]
struct Said {
    out: String,
    err: String,
    fine: bool,
}

/// Run a program with this input and these variables.
fn run(program: &str, args: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Said {
    let mut command = Command::new(program);
    command.args(args).envs(variables.iter().copied()).env("PGCONNECT_TIMEOUT", "60");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended without reading it.
    child.stdin.take().unwrap().write_all(input).ok();
    let done = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Said { out: text(&done.stdout), err: text(&done.stderr), fine: done.status.success() }
}

/// What psql says to `SELECT 1`, with this connection string.
fn psql(cluster: &Cluster, dsn: &str, password: &str) -> Said {
    psql_at(cluster, 1, dsn, password)
}

fn psql_at(cluster: &Cluster, node: u16, dsn: &str, password: &str) -> Said {
    let dsn = format!("dbname=pleat port={} {dsn}", cluster.pg_port(node));
    // Without a password it would ask the terminal.
    let args = ["-X", "-w", "-At", "-d", &dsn, "-c", "SELECT 1"];
    run("psql", &args, &[("PGPASSWORD", password), ("LC_ALL", "C.UTF-8")], b"")
}

fn assert_in(said: Said, cluster: &Cluster) {
    assert!(said.fine && said.out == "1\n", "{said:?}\n{}", cluster.tail());
}

fn assert_out(said: Said, words: &str, cluster: &Cluster) {
    assert!(!said.fine && said.err.contains(words), "{words}: {said:?}\n{}", cluster.tail());
}

/// `pleat user …`, with this on standard input.
fn user(cluster: &Cluster, args: &[&str], input: &str) -> Said {
    let args = [&["user"][..], args].concat();
    run(env!("CARGO_BIN_EXE_pleat"), &args, &[("PLEAT_URL", &cluster.url(1))], input.as_bytes())
}

fn add(cluster: &Cluster, name: &str, password: &str) {
    let said = user(cluster, &["add", name, "--password-file", "-"], password);
    assert!(said.fine, "{said:?}");
}

/// Run a driver's script: it is told what to connect to, and ends well, or tells why not.
fn drive(cluster: &Cluster, script: &str, variables: &[(&str, &str)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/drivers").join(script);
    let port = cluster.pg_port(1).to_string();
    let variables = [variables, &[("PGPORT", port.as_str())][..]].concat();
    // Debian's own Python: it has Debian's drivers.
    let said = run("/usr/bin/python3", &[path.to_str().unwrap()], &variables, b"");
    assert!(said.fine, "{script}: {said:?}\n{}", cluster.tail());
}

/// An authority, and a server's certificate for `localhost` that it has signed.
struct Files {
    _dir: tempfile::TempDir,
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn files() -> Files {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // With one name for both, OpenSSL takes the server's certificate for one that has signed itself.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let certificate = params.signed_by(&key, &authority).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (authority, certificate, key) = (
        write("authority.pem", authority.pem()),
        write("certificate.pem", certificate.pem()),
        write("key.pem", key.serialize_pem()),
    );
    Files { _dir: dir, authority, certificate, key }
}

#[tokio::test]
async fn users_are_asked_for_their_passwords() {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::default() }).await;
    let near = |user: &str| format!("host=127.0.0.1 user={user}");
    assert_in(psql(&cluster, &near("anybody"), ""), &cluster);
    let listed = user(&cluster, &["list"], "");
    assert!(listed.out.contains("no users"), "{listed:?}");

    add(&cluster, "ada", "grün \u{fb01}sch\n");
    assert_in(psql(&cluster, &near("ada"), "grün \u{fb01}sch"), &cluster);
    // The same letters, put together otherwise; the ligature is two letters (SASLprep).
    assert_in(psql(&cluster, &near("ada"), "gru\u{308}n fisch"), &cluster);
    for (user, password, words) in [
        ("ada", "grun fisch", "password authentication failed for user \"ada\""),
        ("bob", "grün fisch", "password authentication failed for user \"bob\""),
        ("ada", "", "no password supplied"),
    ] {
        assert_out(psql(&cluster, &near(user), password), words, &cluster);
    }
    // Every node knows.
    for node in 1..=3 {
        cluster.wait_for_node(node).await;
        assert_in(psql_at(&cluster, node, &near("ada"), "grün fisch"), &cluster);
    }
    for script in ["login_psycopg2.py", "login_psycopg.py", "login_asyncpg.py"] {
        drive(&cluster, script, &[("PGUSER", "ada"), ("RIGHT", "grün fisch")]);
    }

    // A user that is removed is out, but for the session that it has.
    add(&cluster, "bob", "b");
    let dsn = format!("dbname=pleat port={} {}", cluster.pg_port(1), near("bob"));
    let mut open = Command::new("psql")
        .args(["-X", "-w", "-At", "-d", &dsn])
        .env("PGPASSWORD", "b")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut asks = open.stdin.take().unwrap();
    let mut answers = std::io::BufReader::new(open.stdout.take().unwrap());
    let mut ask = |query: &str| {
        writeln!(asks, "{query};").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut answers, &mut line).unwrap();
        line
    };
    assert_eq!(ask("SELECT 'open'"), "open\n");
    let removed = user(&cluster, &["remove", "bob"], "");
    assert!(removed.fine && removed.out == "removed user bob\n", "{removed:?}");
    assert_out(psql(&cluster, &near("bob"), "b"), "password authentication failed", &cluster);
    assert_eq!(ask("SELECT 'still'"), "still\n");
    drop(asks);
    assert!(open.wait().unwrap().success());

    // The last one goes only when that is meant.
    let refused = user(&cluster, &["remove", "ada"], "");
    assert!(!refused.fine && refused.err.contains("last user"), "{refused:?}");

    // After a restart everybody is asked, from the first moment on.
    assert!(cluster.stop());
    cluster.start_again().await;
    assert_out(psql(&cluster, &near("anybody"), "x"), "password authentication failed", &cluster);
    assert_in(psql(&cluster, &near("ada"), "grün fisch"), &cluster);

    // The password is on no disk and in no log.
    for entry in walk(cluster.dir.path()) {
        let bytes = std::fs::read(&entry).unwrap_or_default();
        for part in ["grün", "fisch", "\u{fb01}sch"] {
            let found = bytes.windows(part.len()).any(|bytes| bytes == part.as_bytes());
            assert!(!found, "{} has {part}", entry.display());
        }
    }
    let removed = user(&cluster, &["remove", "ada", "--last", "--json"], "");
    assert!(removed.fine && removed.out.contains("\"name\":\"ada\""), "{removed:?}");
    assert_in(psql(&cluster, &near("anybody"), ""), &cluster);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn the_command_line_takes_passwords_where_nobody_sees_them() {
    let cluster = Cluster::start(Options { nodes: 1, ..Options::default() }).await;
    let file = cluster.dir.path().join("password");
    std::fs::write(&file, "from a file\n").unwrap();
    let added = user(&cluster, &["add", "ada", "--password-file", file.to_str().unwrap(), "--json"], "");
    assert!(added.fine && added.out.contains("\"name\":\"ada\"") && !added.out.contains("SCRAM"), "{added:?}");
    assert_in(psql(&cluster, "host=127.0.0.1 user=ada", "from a file"), &cluster);
    let changed = user(&cluster, &["add", "ada", "--password-file", "-"], "another");
    assert!(changed.fine && changed.out == "user ada has another password\n", "{changed:?}");
    let listed = user(&cluster, &["list"], "");
    assert!(listed.out.contains("ada") && listed.out.contains("CHANGED"), "{listed:?}");
    for (args, input, words) in [
        (&["add", "eve", "--password-file", "-"][..], "", "the password is empty"),
        (&["add", "eve", "--password-file", "-"], "a\nb\n", "one line"),
        (&["add", "eve", "--password-file", "no/such/file"], "", "no/such/file can't be read"),
        (&["add", "", "--password-file", "-"], "x", "from 1 to 63 bytes"),
        (&["remove", "eve"], "", "there is no user \"eve\""),
        (&["add", "eve", "secret"], "", "unexpected argument"),
    ] {
        let refused = user(&cluster, args, input);
        assert!(!refused.fine && refused.err.contains(words), "{words}: {refused:?}");
    }
    // At a terminal.
    drive(&cluster, "at_a_terminal.py", &[("PLEAT", env!("CARGO_BIN_EXE_pleat")), ("PLEAT_URL", &cluster.url(1))]);
    assert_in(psql(&cluster, "host=127.0.0.1 user=typed", "typed in"), &cluster);
    assert_out(psql(&cluster, "host=127.0.0.1 user=unsure", "one"), "password authentication failed", &cluster);
}

#[tokio::test]
async fn clients_encrypt() {
    let Files { authority, certificate, key, _dir } = files();
    let mut options = Options { nodes: 1, ..Options::default() };
    options.config = json!({
        "scaling_mode": "manual",
        "tls": {"certificate_file": certificate, "key_file": key},
    });
    let cluster = Cluster::start(options).await;
    let root = authority.to_str().unwrap();
    let with = |mode: &str| format!("host=localhost user=ada sslmode={mode} sslrootcert={root}");
    assert_in(psql(&cluster, &with("verify-full"), ""), &cluster);
    add(&cluster, "ada", "secret");
    for mode in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
        assert_in(psql(&cluster, &with(mode), "secret"), &cluster);
        assert_out(psql(&cluster, &with(mode), "wrong"), "password authentication failed", &cluster);
        // A right one in between, so that no pause begins.
        assert_in(psql(&cluster, &with(mode), "secret"), &cluster);
    }
    let bound = format!("{} channel_binding=require", with("require"));
    assert_in(psql(&cluster, &bound, "secret"), &cluster);
    let said = run(
        "psql",
        &["-X", "-w", "-d", &format!("dbname=pleat port={} {bound}", cluster.pg_port(1)), "-c", "\\conninfo"],
        &[("PGPASSWORD", "secret")],
        b"",
    );
    assert!(said.out.contains("SSL connection") && said.out.contains("TLSv1.3"), "{said:?}");
    let older = format!("{} ssl_max_protocol_version=TLSv1.2", bound);
    assert_in(psql(&cluster, &older, "secret"), &cluster);
    let elsewhere = format!("host=127.0.0.1 user=ada sslmode=verify-full sslrootcert={root}");
    assert_out(psql(&cluster, &elsewhere, "secret"), "127.0.0.1", &cluster);
    let unbound = "host=localhost user=ada sslmode=disable channel_binding=require";
    assert_out(psql(&cluster, unbound, "secret"), "channel binding", &cluster);
    for script in ["login_psycopg2.py", "login_psycopg.py", "login_asyncpg.py"] {
        let variables =
            [("PGUSER", "ada"), ("RIGHT", "secret"), ("PGHOST", "localhost"), ("PGSSLROOTCERT", root), ("SECURE", "1")];
        drive(&cluster, script, &variables);
    }
    // Much, there and back.
    let copied = run(
        "psql",
        &["-X", "-w", "-d", &format!("dbname=pleat port={} {}", cluster.pg_port(1), with("require"))],
        &[("PGPASSWORD", "secret")],
        format!(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT) SHARD BY (id);\nCOPY t FROM STDIN;\n{}\\.\n\\copy t TO '{}'\n",
            (0..20_000).map(|id| format!("{id}\t{}\n", "x".repeat(100))).collect::<String>(),
            cluster.dir.path().join("out").display(),
        )
        .as_bytes(),
    );
    assert!(copied.fine && copied.out.matches("COPY 20000").count() == 2, "{copied:?}");
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_certificate() {
    let Files { certificate, key, _dir, .. } = files();
    let dir = tempfile::tempdir().unwrap();
    let up = |config: serde_json::Value, listen: &str| {
        let file = dir.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let (data, file) = (dir.path().join("data"), file.to_str().unwrap().to_owned());
        let args =
            ["up", "--nodes", "1", "--data-dir", data.to_str().unwrap(), "--config", &file, "--pg-listen", listen];
        let said = run(env!("CARGO_BIN_EXE_pleat"), &args, &[], b"");
        assert!(!said.fine && !data.exists(), "{said:?}");
        said.err
    };
    assert!(up(json!({}), "0.0.0.0:6432").contains("tls.certificate_file"));
    let missing = up(json!({"tls": {"certificate_file": certificate, "key_file": "no/such/key"}}), "0.0.0.0:6432");
    assert!(missing.contains("no/such/key can't be read"), "{missing}");
    let turned = up(json!({"tls": {"certificate_file": key, "key_file": certificate}}), "127.0.0.1:6432");
    assert!(turned.contains("has no certificate in it"), "{turned}");
    let half = up(json!({"tls": {"certificate_file": certificate}}), "127.0.0.1:6432");
    assert!(half.contains("tls.key_file is missing"), "{half}");
}
