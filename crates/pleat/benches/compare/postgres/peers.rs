//! What can be asked: the server itself, and the proxies before it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{cpu_seconds, said, to};
use crate::cluster::Cluster;

/// The connections that PgBouncer may have to the server: as many as Pleat's pool for clients.
const POOL: u32 = 60;

/// Where pgbench connects to, and the process that it costs. A process that was started is ended when dropped.
pub struct Peer {
    pub name: &'static str,
    pub port: u16,
    pid: Option<String>,
    child: Option<Child>,
}

impl Peer {
    /// Nothing between.
    pub fn server(server: SocketAddr) -> Peer {
        Peer { name: "the server", port: server.port(), pid: None, child: None }
    }

    /// The first node of a cluster.
    pub fn pleat(name: &'static str, cluster: &Cluster) -> anyhow::Result<Peer> {
        let pid = cluster.pids.first().context("a cluster without nodes")?.clone();
        Ok(Peer { name, port: cluster.pg_port(), pid: Some(pid), child: None })
    }

    pub fn pgbouncer(dir: &Path, port: u16, server: SocketAddr) -> anyhow::Result<Peer> {
        let settings = format!(
            "[databases]\npleat = host={} port={} dbname=pleat user=pleat\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = {POOL}\nmax_client_conn = 200\nunix_socket_dir =\n",
            server.ip(),
            server.port()
        );
        let mut command = Command::new("pgbouncer");
        if nix::unistd::geteuid().is_root() {
            // It refuses to be root, and reads its settings as the account that it is told to be.
            command.args(["-u", "postgres"]);
        }
        Peer::proxy("PgBouncer", dir, port, &settings, command)
    }

    pub fn haproxy(dir: &Path, port: u16, server: SocketAddr) -> anyhow::Result<Peer> {
        let settings = format!(
            "global\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen postgres\n  bind 127.0.0.1:{port}\n  server one {server}\n"
        );
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]);
        Peer::proxy("HAProxy", dir, port, &settings, command)
    }

    fn proxy(name: &'static str, dir: &Path, port: u16, settings: &str, mut command: Command) -> anyhow::Result<Peer> {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        let file = dir.join("settings");
        std::fs::write(&file, settings)?;
        // Debian keeps daemons in a directory that the path of an ordinary account lacks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let child = command.arg(&file).env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("start {name}: `cargo xtask bench` installs it"))?;
        Ok(Peer { name, port, pid: Some(child.id().to_string()), child: Some(child) })
    }

    /// Once it answers a statement.
    pub async fn ready(&self, within: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Err(error) = said(to("psql", self.port).args(["-XqAt", "-c", "SELECT 1"])) {
            anyhow::ensure!(begun.elapsed() < within, "{} does not answer: {error:#}", self.name);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// CPU seconds so far; none of a server, which all have in common.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        self.pid.as_ref().map_or(Ok(0.0), |pid| cpu_seconds(pid))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
