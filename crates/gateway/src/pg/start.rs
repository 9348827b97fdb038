//! From the first byte to the session: encryption, the first message, and who it is that sends it.
//!
//! ```text
//!            SSLRequest, no certificate; GSSENCRequest: N
//!               ┌──┐
//!  accepted ──► first ──StartupMessage──► let in? ──there are users──► mechanisms ──► challenge ──► proved ──► session
//!               │  ▲                        │ │                      AuthenticationSASL  …Continue    …Final       ▲
//!   SSLRequest  ▼  │                        │ └──there are none: whoever is on this machine────────────────────────┘
//!         S, handshake                      ▼
//!                                        refused
//! ```
//!
//! | what goes wrong | the client is told |
//! | --- | --- |
//! | bytes behind an SSLRequest that is granted; encryption asked for twice, or inside of TLS | `08P01` |
//! | the handshake fails | TLS's own alert |
//! | no encryption, from another machine or where all have to take it | `28000` |
//! | another machine, and there are no users yet | `28000` |
//! | the node has just started and hears nothing of the cluster | `57P03` |
//! | an unknown mechanism, a message of the exchange that can't be read, another message than that, one of more than [`PG_PROOF_BYTES_MAX`](crate::settings) bytes | `08P01` |
//! | a channel that is bound to another certificate, or not bound by a client that thinks that it can't be (see [`scram`]) | `28000` |
//! | a wrong password, an unknown user: the same exchange, the same words | `28P01` |
//! | a password after too many wrong ones ([`guesses`](super::guesses)) | `28000`, with the time to wait |
//! | it takes longer than `startup_time`, wherever it hangs | `08P01` |
//!
//! Each of these ends the connection. A client that leaves when it is asked for a password, as psql does to ask its user,
//! is no news. `--insecure` lets other machines do what this one may; where there are users it asks for passwords all the same.
//!
//! **Whose users.** Each node asks its own copy of the catalog, so that logging in needs nobody else; a change reaches all nodes in
//! milliseconds, and a node that is cut off when it is connected again. But a copy that was read from the disk may be of any age, without
//! the first user even. So a node trusts its own only after it has once, since its start, caught up with the cluster. What
//! happens to a user changes nothing for the sessions that are open.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use pleat_cluster::Catalog;
use pleat_engine::scram::{self, Binding, Refused};

use super::Shared;
use super::client::{Client, Stop};
use super::wire::{Broken, First, sasl_initial};
use crate::session::Failure;
use crate::settings::{PG_USERS_TIME_MAX, PgSettings};

const SCRAM: &str = "SCRAM-SHA-256";
const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// A session that may begin.
pub struct Started {
    pub user: String,
    pub database: String,
    /// Settings that the first message asks for.
    pub settings: Vec<(String, String)>,
}

/// Everything up to the session. `None`: there will be none.
pub async fn start(client: &mut Client, shared: &Shared, peer: IpAddr) -> Result<Option<Started>, Stop> {
    let (mut ssl, mut gss) = (false, false);
    loop {
        match client.reader.first().await? {
            None => return Ok(None),
            Some(First::Ssl) if !ssl => {
                ssl = true;
                if let Some(tls) = &shared.app.settings.pg.tls {
                    client.encrypt(tls).await?;
                    // Inside of it nothing else is to be had.
                    gss = true;
                    continue;
                }
            }
            Some(First::Gss) if !gss => gss = true,
            Some(First::Ssl | First::Gss) => {
                return Err(Broken::Malformed("encryption was asked for twice".to_owned()).into());
            }
            Some(First::Cancel { process, secret }) => {
                shared.cancels.cancel(process, secret);
                return Ok(None);
            }
            Some(First::Version { major, minor }) => {
                let message = format!("unsupported frontend protocol {major}.{minor}: the server speaks 3.0");
                return Err(Failure::new("0A000", message, "use a newer client").into());
            }
            Some(First::Startup { minor, parameters }) => {
                let user = of(&parameters, "user");
                let user =
                    user.ok_or_else(|| Failure::new("28000", "no user name was given in the first message", ""))?;
                negotiate(client, minor, &parameters);
                return match let_in(client, shared, peer, &user).await? {
                    true => Ok(Some(startup(user, parameters)?)),
                    false => Ok(None),
                };
            }
        }
        client.out.refuse_encryption();
        client.flush().await?;
    }
}

fn of(parameters: &[(String, String)], wanted: &str) -> Option<String> {
    let found = parameters.iter().find(|(name, value)| name == wanted && !value.is_empty());
    found.map(|(_, value)| value.clone())
}

fn is_option(name: &str) -> bool {
    name.starts_with("_pq_.")
}

fn negotiate(client: &mut Client, minor: u16, parameters: &[(String, String)]) {
    let options: Vec<_> = parameters.iter().map(|(name, _)| name.as_str()).filter(|name| is_option(name)).collect();
    if minor > 0 || !options.is_empty() {
        client.out.negotiate(&options);
    }
}

/// Whether it is who it says. False: it has left.
async fn let_in(client: &mut Client, shared: &Shared, peer: IpAddr, user: &str) -> Result<bool, Stop> {
    let catalog = users(shared).await?;
    match demand(&shared.app.settings.pg, peer, client.is_encrypted(), !catalog.users.is_empty())? {
        Demand::Nothing => Ok(true),
        Demand::Password => prove(client, shared, peer, user, &catalog).await,
    }
}

/// What a client has to show.
#[derive(Debug, PartialEq, Eq)]
enum Demand {
    Nothing,
    Password,
}

fn demand(settings: &PgSettings, peer: IpAddr, is_encrypted: bool, has_users: bool) -> Result<Demand, Failure> {
    let is_near = peer.is_loopback() || settings.insecure;
    if !is_encrypted && (settings.tls_required || !is_near) {
        let hint = "connect with sslmode=require, or a stricter one";
        return Err(Failure::new("28000", "this address is for encrypted connections", hint));
    }
    match has_users {
        true => Ok(Demand::Password),
        false if is_near => Ok(Demand::Nothing),
        false => {
            let message = "there are no users yet, and without them nobody is let in from another machine";
            Err(Failure::new("28000", message, "add one on the machine of a node, with `pleat user add NAME`"))
        }
    }
}

/// The catalog with the users, at least as new as the start of this node.
async fn users(shared: &Shared) -> Result<Arc<Catalog>, Failure> {
    let backend = &shared.app.backend;
    let caught_up = shared.caught_up.get_or_try_init(|| async {
        backend.fresh_catalog(PG_USERS_TIME_MAX).await.map(drop).map_err(|error| {
            let message = format!("this node is starting and does not know the cluster's users yet: {error}");
            Failure::passing("57P03", message, "try again in a moment, or at another node")
        })
    });
    caught_up.await?;
    Ok(backend.catalog())
}

/// The exchange about a password. False: the client has left.
async fn prove(
    client: &mut Client,
    shared: &Shared,
    peer: IpAddr,
    user: &str,
    catalog: &Catalog,
) -> Result<bool, Stop> {
    let end_point = shared.app.settings.pg.tls.as_ref().and_then(|tls| tls.end_point.clone());
    let end_point = end_point.filter(|_| client.is_encrypted());
    let (binding, mechanisms) = match &end_point {
        Some(hash) => (Binding::Offered(hash), &[SCRAM_PLUS, SCRAM][..]),
        None => (Binding::None, &[SCRAM][..]),
    };
    client.out.sasl(mechanisms);
    client.flush().await?;
    let Some(first) = client.reader.proof().await? else { return Ok(false) };
    let (mechanism, first) = sasl_initial(first)?;
    if !mechanisms.contains(&mechanism.as_str()) {
        return Err(Failure::new("08P01", "the client chose a mechanism that was not offered", "").into());
    }
    let told = |refused| told(refused, user);
    let opening = scram::open(&first, mechanism == SCRAM_PLUS, binding).map_err(told)?;

    // Made up also for those that are there, so that it takes as long.
    let made_up = catalog.secret.as_ref().map(|secret| scram::mock(secret, user));
    let made_up = made_up.ok_or_else(|| Failure::internal("the catalog has users and no secret"))?;
    let known = catalog.users.get(user).map(|user| user.verifier.clone());
    let is_known = known.is_some();
    let verifier = known.unwrap_or(made_up);
    let nonce = scram::random().map_err(|_| Failure::internal("the system gives no random bytes"))?;
    let (challenge, message) = opening.challenge(verifier, nonce);
    client.out.sasl_continue(&message);
    client.flush().await?;
    let Some(answer) = client.reader.proof().await? else { return Ok(false) };
    let look = || match challenge.answer(&answer) {
        Ok(_) if !is_known => Err(Refused::Proof),
        looked => looked,
    };
    match shared.guesses.guard(peer, user, Instant::now(), look) {
        Ok(Ok(message)) => {
            client.out.sasl_final(&message);
            Ok(true)
        }
        Ok(Err(refused)) => {
            let failure = told(refused);
            tracing::info!(%peer, ?user, code = %failure.code, "a PostgreSQL client did not log in");
            shared.app.metrics.failed(&failure.code);
            Err(failure.into())
        }
        Err(pause) => {
            let seconds = pause.as_secs() + 1;
            let message = format!("too many wrong passwords for user \"{user}\" came from this address");
            Err(Failure::passing("28000", message, format!("try again in {seconds} s")).into())
        }
    }
}

fn told(refused: Refused, user: &str) -> Failure {
    match refused {
        Refused::Malformed(what) => Failure::new("08P01", what, ""),
        Refused::Unsupported(what) => Failure::new("0A000", what, ""),
        Refused::Bound(what) => Failure::new("28000", what, ""),
        Refused::Proof => Failure::new("28P01", format!("password authentication failed for user \"{user}\""), ""),
    }
}

/// What the first message asks for.
pub(super) fn startup(user: String, parameters: Vec<(String, String)>) -> Result<Started, Failure> {
    let database = of(&parameters, "database").unwrap_or_else(|| user.clone());
    let mut settings = Vec::new();
    for (name, value) in parameters {
        match name.as_str() {
            "user" | "database" => {}
            name if is_option(name) => {}
            "replication" if matches!(value.as_str(), "false" | "off" | "no" | "0") => {}
            "replication" => {
                return Err(Failure::new(
                    "0A000",
                    "replication connections are not supported",
                    "GET /events tells of changes",
                ));
            }
            "options" => settings.extend(command_line(&value)?),
            _ => settings.push((name, value)),
        }
    }
    Ok(Started { user, database, settings })
}

/// Settings in the form `-c name=value`, or `--name=value`.
fn command_line(options: &str) -> Result<Vec<(String, String)>, Failure> {
    let odd = |word: &str| {
        let hint = "options are of the form -c name=value";
        Failure::new("42601", format!("the option {word} is not understood"), hint)
    };
    // A blank in a value has a backslash before it.
    let text = options.replace("\\\\", "\u{1}").replace("\\ ", "\u{2}");
    let mut words = text.split_whitespace();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(setting) => setting.replace('-', "_"),
            None if word == "-c" => words.next().ok_or_else(|| odd(word))?.to_owned(),
            None => word.strip_prefix("-c").ok_or_else(|| odd(word))?.to_owned(),
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| odd(word))?;
        found.push((name.to_owned(), value.replace('\u{2}', " ").replace('\u{1}', "\\")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_show_what() {
        let of = |settings: &PgSettings, peer: &str, is_encrypted, has_users| {
            demand(settings, peer.parse().unwrap(), is_encrypted, has_users).map_err(|failure| failure.message)
        };
        let near = ["127.0.0.1", "127.8.9.10", "::1"];
        let (usual, far) = (PgSettings::default(), ["10.0.0.1", "2001:db8::1"]);
        for peer in near {
            for is_encrypted in [false, true] {
                assert_eq!(of(&usual, peer, is_encrypted, false), Ok(Demand::Nothing));
                assert_eq!(of(&usual, peer, is_encrypted, true), Ok(Demand::Password));
            }
            let required = PgSettings { tls_required: true, ..usual.clone() };
            assert!(of(&required, peer, false, true).unwrap_err().contains("encrypted"));
            assert_eq!(of(&required, peer, true, true), Ok(Demand::Password));
        }
        for peer in far {
            for has_users in [false, true] {
                assert!(of(&usual, peer, false, has_users).unwrap_err().contains("encrypted"));
            }
            assert!(of(&usual, peer, true, false).unwrap_err().contains("no users yet"));
            assert_eq!(of(&usual, peer, true, true), Ok(Demand::Password));
            let insecure = PgSettings { insecure: true, ..usual.clone() };
            assert_eq!(of(&insecure, peer, false, false), Ok(Demand::Nothing));
            assert_eq!(of(&insecure, peer, false, true), Ok(Demand::Password), "passwords are asked for all the same");
        }
    }

    #[test]
    fn options_of_the_command_line() {
        let found = command_line("-c statement_timeout=5s --application-name=a\\ b -cextra_float_digits=2").unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let wanted =
            [pair("statement_timeout", "5s"), pair("application_name", "a b"), pair("extra_float_digits", "2")];
        assert_eq!(found, wanted);
        for odd in ["-c", "-x", "word", "-c nothing"] {
            assert_eq!(command_line(odd).unwrap_err().code, "42601", "{odd}");
        }
    }
}
