//! Whether the ports are free, before anything is started.

use std::net::{SocketAddr, TcpListener};

use anyhow::bail;

use super::plan::{Plan, nth};

/// Ports from here on are handed out to outgoing connections, so they are no good places to listen.
const EPHEMERAL: u16 = 32_768;

/// Every address of every node must be free. The error names the one that is not, and free ones.
pub fn check(plan: &Plan) -> anyhow::Result<()> {
    for node in 1..=plan.identity.nodes {
        for (flag, first) in plan.addresses() {
            let address = nth(first, node);
            let Err(error) = TcpListener::bind(address) else { continue };
            if error.kind() != std::io::ErrorKind::AddrInUse {
                bail!("node-{node} can't listen on {address}: {error}; choose another address with {flag}");
            }
            if plan.exists && flag == "--listen" {
                bail!(
                    "port {} is in use, and node-{node} of the cluster in {} listens on {address}; stop the program that \
                     uses it (`ss -ltnp 'sport = :{}'` shows which), then start again",
                    address.port(),
                    plan.dir.display(),
                    address.port()
                );
            }
            let free = match free_run(first, plan.identity.nodes, plan) {
                Some(free) => format!("{flag} {free} is free for {} in a row", plan.identity.nodes),
                None => format!("choose another with {flag}"),
            };
            let or_off = "; --pg-listen off does without PostgreSQL clients";
            let free = if flag == "--pg-listen" { free + or_off } else { free };
            bail!("port {} (node-{node}) is in use by another program; {free}", address.port());
        }
    }
    Ok(())
}

/// The first address above `taken` from which so many ports are free, beside those that the plan uses itself.
fn free_run(taken: SocketAddr, count: u32, plan: &Plan) -> Option<SocketAddr> {
    let count = u16::try_from(count).ok()?;
    let planned = |port: u16| {
        plan.addresses().iter().any(|(_, first)| (first.port()..first.port().saturating_add(count)).contains(&port))
    };
    let is_free = |port: u16| !planned(port) && TcpListener::bind(SocketAddr::new(taken.ip(), port)).is_ok();
    let mut run = 0;
    for port in taken.port().checked_add(1)?..EPHEMERAL {
        run = if is_free(port) { run + 1 } else { 0 };
        if run == count {
            return Some(SocketAddr::new(taken.ip(), port + 1 - count));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::up::UpArgs;

    #[test]
    fn a_port_in_use_is_named_with_a_free_one() {
        // Three ports of which the second is taken; the kernel picks where.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = taken.local_addr().unwrap();
        let first = SocketAddr::new(second.ip(), second.port() - 1);
        let args =
            UpArgs { listen: Some(first), coordinator: Some("127.0.0.1:20990".parse().unwrap()), ..UpArgs::default() };
        let mut plan = Plan::new(&args, &Config::default(), "d".into(), None).unwrap();
        let message = check(&plan).unwrap_err().to_string();
        // The first may by chance be taken as well; then that one is named.
        assert!(message.contains("is in use by another program"), "{message}");
        assert!(
            message.contains(&second.port().to_string()) || message.contains(&first.port().to_string()),
            "{message}"
        );
        plan.exists = true;
        let message = check(&plan).unwrap_err().to_string();
        assert!(message.contains("ss -ltnp"), "{message}");
    }

    #[test]
    fn the_suggestion_is_free_and_keeps_clear_of_the_plans_own_ports() {
        let args = UpArgs {
            listen: Some("127.0.0.1:21000".parse().unwrap()),
            coordinator: Some("127.0.0.1:21004".parse().unwrap()),
            ..UpArgs::default()
        };
        let plan = Plan::new(&args, &Config::default(), "d".into(), None).unwrap();
        let free = free_run(plan.identity.listen, 3, &plan).unwrap();
        assert!(free.port() >= 21_007, "{free}");
        for port in free.port()..free.port() + 3 {
            TcpListener::bind((free.ip(), port)).unwrap();
        }
    }
}
