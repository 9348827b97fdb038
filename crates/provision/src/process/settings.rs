//! What a server is told: by its size, and by what Pleat needs of it.

use std::path::Path;

use super::{NAME, Role, STANDBY};

/// How much of the machine a server may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// For everything that it does.
    pub memory_mib: u32,
    /// Clients at a time, Pleat's own included.
    pub connections: u32,
}

impl Size {
    /// For a laptop, or for several shards on one machine, and for the pools of four nodes.
    pub const SMALL: Size = Size { memory_mib: 512, connections: 300 };

    pub const MEMORY_MIB_MIN: u32 = 128;
    pub const CONNECTIONS_MIN: u32 = 10;
    pub const CONNECTIONS_MAX: u32 = 10_000;

    /// What is wrong with it.
    pub fn check(self) -> Result<(), String> {
        if self.memory_mib < Self::MEMORY_MIB_MIN {
            return Err(format!("a PostgreSQL server needs {} MiB of memory at least", Self::MEMORY_MIB_MIN));
        }
        if !(Self::CONNECTIONS_MIN..=Self::CONNECTIONS_MAX).contains(&self.connections) {
            let (least, most) = (Self::CONNECTIONS_MIN, Self::CONNECTIONS_MAX);
            return Err(format!("a PostgreSQL server can have from {least} to {most} connections"));
        }
        Ok(())
    }

    /// A quarter for the server's own cache, half of the rest shared out among the connections.
    fn memory(self) -> Vec<(&'static str, String)> {
        let Size { memory_mib, connections } = self;
        let work_kib = (u64::from(memory_mib) * 1_024 * 3 / 8 / u64::from(connections)).max(1_024);
        vec![
            ("shared_buffers", format!("{}MB", memory_mib / 4)),
            ("effective_cache_size", format!("{}MB", memory_mib / 4 * 3)),
            ("maintenance_work_mem", format!("{}MB", (memory_mib / 16).clamp(8, 1_024))),
            ("work_mem", format!("{work_kib}kB")),
        ]
    }
}

/// All settings, as arguments of the server: they go before those of any file, so nobody's edit of one takes from a
/// shard what moves and transactions over several shards need.
pub fn arguments(size: Size, port: u16, socket: Option<&Path>, role: Role) -> Vec<String> {
    let text = |text: &str| text.to_owned();
    let connections = size.connections.to_string();
    let mut settings = size.memory();
    settings.extend([
        ("listen_addresses", text("127.0.0.1")),
        ("port", port.to_string()),
        ("unix_socket_directories", socket.map(|folder| folder.display().to_string()).unwrap_or_default()),
        ("unix_socket_permissions", text("0700")),
        ("max_connections", connections.clone()),
        // Moves follow the change stream; transactions over several shards are prepared on each.
        ("wal_level", text("logical")),
        ("max_prepared_transactions", connections),
        ("max_replication_slots", text("16")),
        ("max_wal_senders", text("16")),
        // What follows and does not answer is not waited for without end, nor kept the log for.
        ("wal_sender_timeout", text("10s")),
        ("wal_receiver_timeout", text("10s")),
        ("wal_retrieve_retry_interval", text("500ms")),
        ("max_slot_wal_keep_size", text("8GB")),
        // A router with an old catalog that comes to a standby is to learn nothing there.
        ("hot_standby", text("off")),
        ("primary_slot_name", text(STANDBY)),
        ("primary_conninfo", follows(role)),
        ("password_encryption", text("scram-sha-256")),
        // Its log goes to us. What a statement said, or a row held, is not repeated there.
        ("logging_collector", text("off")),
        ("log_destination", text("stderr")),
        ("log_line_prefix", text("")),
        ("log_min_error_statement", text("panic")),
        ("log_error_verbosity", text("terse")),
    ]);
    settings.into_iter().flat_map(|(name, value)| [text("-c"), format!("{name}={value}")]).collect()
}

/// How a standby reaches its primary.
fn follows(role: Role) -> String {
    match role {
        Role::Primary { .. } => String::new(),
        Role::Standby { of, .. } => {
            format!("host={} port={} user={NAME} application_name={STANDBY} connect_timeout=5", of.ip(), of.port())
        }
    }
}

/// `pg_hba.conf`: who may connect.
pub fn who_may_connect(password: bool) -> String {
    let method = if password { "scram-sha-256" } else { "trust" };
    format!(
        "# Written by Pleat at every start.\n\
         local all {NAME} {method}\n\
         host all {NAME} 127.0.0.1/32 {method}\n\
         host replication {NAME} 127.0.0.1/32 {method}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_and_never_more_than_there_is() {
        for size in [Size::SMALL, Size { memory_mib: 65_536, connections: 400 }] {
            let told = size.memory();
            let number = |name: &str| {
                let value = &told.iter().find(|(told, _)| *told == name).unwrap().1;
                value.trim_end_matches(char::is_alphabetic).parse::<u64>().unwrap()
            };
            let work_mib = number("work_mem") * u64::from(size.connections) / 1_024;
            assert!(number("shared_buffers") + work_mib <= u64::from(size.memory_mib));
        }
    }

    #[test]
    fn sizes_have_limits() {
        assert!(Size::SMALL.check().is_ok());
        assert!(Size { memory_mib: 64, ..Size::SMALL }.check().unwrap_err().contains("128 MiB"));
        assert!(Size { connections: 0, ..Size::SMALL }.check().is_err());
    }
}
