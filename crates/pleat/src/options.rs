//! What a node is told when it starts: the arguments of `pleat node`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use pleat_cluster::Engine;
use pleat_gateway::tls::Tls;
use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigError};

/// Everything that a node needs to know. Its own flags, and the configuration beneath them.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub id: u64,
    /// What people call it: `node-1`.
    pub name: String,
    /// HTTP and gRPC.
    pub listen: SocketAddr,
    /// Where the coordinator's face answers, if anywhere.
    pub coordinator: Option<SocketAddr>,
    /// Where PostgreSQL clients are served.
    pub pg_listen: PgListen,
    /// This node's own directory.
    pub data_dir: PathBuf,
    pub cluster_id: String,
    /// The nodes that found the cluster, with their addresses; this node is among them.
    pub founders: Vec<(u64, String)>,
    /// How many shards a new cluster starts with. Ignored by one that exists.
    pub initial_shards: u32,
    /// What the shards of a new cluster are. Ignored by one that exists.
    pub engine: Engine,
    pub config: Config,
    /// Started by `pleat up`: stop when standard input ends.
    pub supervised: bool,
}

/// Whether, and where, PostgreSQL clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum PgListen {
    Off,
    At(SocketAddr),
}

impl PgListen {
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            PgListen::Off => None,
            PgListen::At(address) => Some(address),
        }
    }
}

impl FromStr for PgListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(PgListen::Off),
            text => text.parse().map(PgListen::At).map_err(|_| format!("'{text}' is neither ADDR:PORT nor off")),
        }
    }
}

impl fmt::Display for PgListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PgListen::Off => f.write_str("off"),
            PgListen::At(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for PgListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PgListen> for String {
    fn from(listen: PgListen) -> Self {
        listen.to_string()
    }
}

/// `pleat node`: one node in the foreground. `pleat up` starts these by itself.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Number of the node, from 1; also its id in every Raft group
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Name of the node [default: node-ID]
    #[arg(long)]
    pub name: Option<String>,
    /// Address of HTTP and gRPC
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Address of the coordinator's interface (/shards, /health)
    #[arg(long, value_name = "ADDR:PORT")]
    pub coordinator: Option<SocketAddr>,
    /// Address for PostgreSQL clients, or off
    #[arg(long, value_name = "ADDR:PORT", default_value = "off")]
    pub pg_listen: PgListen,
    /// This node's own directory
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The cluster that the node belongs to
    #[arg(long, value_name = "ID")]
    pub cluster_id: String,
    /// The founding nodes: "1=127.0.0.1:8080,2=127.0.0.1:8081"
    #[arg(long, value_name = "LIST", value_parser = parse_founders)]
    pub founders: Founders,
    /// How many shards a new cluster starts with
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub shards: u32,
    /// What the shards of a new cluster are: sqlite or postgres
    #[arg(long, value_name = "ENGINE", default_value_t = Engine::Sqlite)]
    pub engine: Engine,
    #[command(flatten)]
    pub common: ServeArgs,
    /// Stop when standard input ends (set by `pleat up`)
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// What `pleat up` and `pleat node` share.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Configuration: pleat.toml, or the same as YAML or JSON
    #[arg(long, value_name = "FILE", env = "PLEAT_CONFIG")]
    pub config: Option<PathBuf>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_parser = ["human", "json"])]
    pub log_format: Option<String>,
    /// Listen beyond loopback without authentication and TLS
    #[arg(long)]
    pub insecure: bool,
}

impl ServeArgs {
    /// The configuration: file, environment, then these flags.
    pub fn load_config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref(), std::env::vars())?;
        if let Some(format) = &self.log_format {
            config.log.json = format == "json";
        }
        config.insecure |= self.insecure;
        Ok(config)
    }
}

/// The founding nodes as a command-line value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founders(pub Vec<(u64, String)>);

/// `1=127.0.0.1:8080,2=127.0.0.1:8081`, the form that [`parse_founders`] reads.
pub fn format_founders(founders: &[(u64, String)]) -> String {
    let parts: Vec<String> = founders.iter().map(|(id, address)| format!("{id}={address}")).collect();
    parts.join(",")
}

fn parse_founders(text: &str) -> Result<Founders, String> {
    let mut founders: Vec<(u64, String)> = Vec::new();
    for part in text.split(',') {
        let (id, address) = part.split_once('=').ok_or_else(|| format!("'{part}' is not of the form ID=ADDR:PORT"))?;
        let id = id.trim().parse::<u64>().ok().filter(|id| *id > 0);
        let id = id.ok_or_else(|| format!("'{part}': the id before '=' must be a number from 1"))?;
        if !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(format!("'{part}': the address after '=' must be ADDR:PORT"));
        }
        if founders.iter().any(|(other, _)| *other == id) {
            return Err(format!("node {id} is named twice"));
        }
        founders.push((id, address.to_string()));
    }
    Ok(Founders(founders))
}

impl NodeArgs {
    /// Read the configuration and put everything together.
    pub fn into_options(self) -> anyhow::Result<NodeOptions> {
        let config = self.common.load_config()?;
        if !self.founders.0.iter().any(|(id, _)| *id == self.id) {
            anyhow::bail!("--founders does not name node {} itself; add \"{}={}\"", self.id, self.id, self.listen);
        }
        for address in std::iter::once(self.listen).chain(self.coordinator) {
            require_loopback(address, config.insecure)?;
        }
        if let PgListen::At(address) = self.pg_listen {
            require_tls(address, &config)?;
        }
        Ok(NodeOptions {
            id: self.id,
            name: self.name.unwrap_or_else(|| format!("node-{}", self.id)),
            listen: self.listen,
            coordinator: self.coordinator,
            pg_listen: self.pg_listen,
            data_dir: self.data_dir,
            cluster_id: self.cluster_id,
            founders: self.founders.0,
            initial_shards: self.shards,
            engine: self.engine,
            config,
            supervised: self.supervised,
        })
    }
}

/// What the configuration has to encrypt with, read from its files.
pub fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&config.tls.certificate_file, &config.tls.key_file) else { return Ok(None) };
    Tls::load(certificate, key).map(Some).map_err(|what| anyhow::anyhow!("tls: {what}"))
}

/// PostgreSQL clients are served beyond loopback when they can be asked for passwords and encryption. (Without users nobody is
/// let in from there, but who the users are is only known when the cluster runs.)
pub fn require_tls(address: SocketAddr, config: &Config) -> anyhow::Result<()> {
    if address.ip().is_loopback() || config.insecure || config.tls.certificate_file.is_some() {
        return Ok(());
    }
    anyhow::bail!(
        "{address} can be reached from other machines, and there is no certificate to encrypt with; set \
         tls.certificate_file and tls.key_file in the configuration, listen on 127.0.0.1, or add --insecure if the \
         network is trusted"
    )
}

/// Nothing listens beyond loopback without authentication and TLS, unless told to. HTTP has neither.
pub fn require_loopback(address: SocketAddr, insecure: bool) -> anyhow::Result<()> {
    if address.ip().is_loopback() || insecure {
        return Ok(());
    }
    anyhow::bail!(
        "{address} can be reached from other machines, and HTTP has neither authentication nor TLS yet; \
         listen on 127.0.0.1, or add --insecure if the network is trusted"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn founders_survive_the_way_through_the_command_line() {
        let founders = vec![(1, "127.0.0.1:8080".to_string()), (2, "[::1]:8081".to_string())];
        assert_eq!(parse_founders(&format_founders(&founders)).unwrap(), Founders(founders));
    }

    #[test]
    fn bad_founders_are_refused_with_the_part_that_is_wrong() {
        let refused = |text: &str| parse_founders(text).unwrap_err();
        assert!(refused("127.0.0.1:8080").contains("ID=ADDR:PORT"));
        assert!(refused("0=127.0.0.1:8080").contains("from 1"));
        assert!(refused("1=127.0.0.1").contains("ADDR:PORT"));
        assert!(refused("1=a:1,1=b:2").contains("twice"));
    }

    #[test]
    fn only_loopback_without_insecure() {
        assert!(require_loopback("127.0.0.1:8080".parse().unwrap(), false).is_ok());
        assert!(require_loopback("0.0.0.0:8080".parse().unwrap(), true).is_ok());
        let refused = require_loopback("0.0.0.0:8080".parse().unwrap(), false).unwrap_err().to_string();
        assert!(refused.contains("--insecure"), "{refused}");
    }

    #[test]
    fn postgresql_clients_are_served_beyond_loopback_with_a_certificate() {
        let (mut config, anywhere) = (Config::default(), "0.0.0.0:6432".parse().unwrap());
        assert!(require_tls("127.0.0.1:6432".parse().unwrap(), &config).is_ok());
        let refused = require_tls(anywhere, &config).unwrap_err().to_string();
        assert!(refused.contains("tls.certificate_file") && refused.contains("--insecure"), "{refused}");
        config.tls.certificate_file = Some("certificate.pem".into());
        assert!(require_tls(anywhere, &config).is_ok());
    }
}
