//! `postgres://user:password@host:port/database?sslmode=…`: how people write where a server is.
//!
//! The password may be left out and come from elsewhere ([`Dsn::password`] is public); it is in no error and in no output of [`Dsn`].

use std::fmt;
use std::path::PathBuf;

use super::server::{Address, Password, Server, Tls};

/// What a text may have, in bytes.
const DSN_BYTES_MAX: usize = 4 << 10;
const PORT: u16 = 5432;

/// A server as people name it.
#[derive(Clone, Debug)]
pub struct Dsn {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: Option<Password>,
    /// The authorities that the server's certificate has to be signed by; `None`: no TLS.
    pub authorities: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(String),
    /// The folder of the socket.
    Folder(PathBuf),
}

/// Without the password.
impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dsn { host, port, user, database, .. } = self;
        match host {
            Host::Name(name) if name.contains(':') => write!(f, "postgres://{user}@[{name}]:{port}/{database}"),
            Host::Name(name) => write!(f, "postgres://{user}@{name}:{port}/{database}"),
            Host::Folder(folder) => write!(f, "postgres://{user}@:{port}/{database}?host={}", folder.display()),
        }
    }
}

impl Dsn {
    /// Read one. The error never has the text in it, because of the password.
    pub fn parse(text: &str) -> Result<Dsn, String> {
        let form = "a server is named as postgres://USER:PASSWORD@HOST:PORT/DATABASE";
        if text.len() > DSN_BYTES_MAX {
            return Err(format!("{form}, with {DSN_BYTES_MAX} bytes at most"));
        }
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| format!("{form}, and this begins otherwise"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(decoded(password, "the password")?)),
            None => (login, None),
        };
        let user = decoded(user, "the user")?;
        if user.is_empty() {
            return Err(format!("{form}, and this has no user"));
        }
        let database = decoded(database, "the database")?;
        let (host, port) = place_of(place)?;
        let mut dsn = Dsn {
            host: Host::Name(host),
            port,
            database: if database.is_empty() { user.clone() } else { database },
            user,
            password: password.map(Password),
            authorities: None,
        };
        dsn.options(query)?;
        if dsn.host == Host::Name(String::new()) {
            return Err(format!("{form}, and this has no host (for a socket, ?host=/FOLDER)"));
        }
        Ok(dsn)
    }

    fn options(&mut self, query: &str) -> Result<(), String> {
        let mut mode = String::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value, name)?;
            match name {
                "host" if value.starts_with('/') => self.host = Host::Folder(value.into()),
                "host" => self.host = Host::Name(value),
                "sslmode" => mode = value,
                "sslrootcert" => self.authorities = Some(value.into()),
                // They say how a client behaves, and nothing of where the server is.
                "application_name" | "connect_timeout" => {}
                other => {
                    return Err(format!(
                        "the option {other} of a server's name is not known; there are host, sslmode and sslrootcert"
                    ));
                }
            }
        }
        match (mode.as_str(), &self.authorities) {
            ("" | "verify-full", Some(_)) => Ok(()),
            ("" | "disable" | "allow" | "prefer", None) => Ok(()),
            ("disable", Some(_)) => Err("sslmode=disable and sslrootcert contradict each other".to_owned()),
            ("require" | "verify-ca" | "verify-full", None) => Err(
                "Pleat uses TLS with servers that it can verify: add sslrootcert=FILE, with the authority's certificate"
                    .to_owned(),
            ),
            (other, _) => Err(format!("sslmode is disable or verify-full, and not {other}")),
        }
    }

    /// The server, with its name looked up.
    pub async fn server(&self) -> Result<Server, String> {
        let address = match &self.host {
            Host::Folder(folder) => Address::Unix(folder.join(format!(".s.PGSQL.{}", self.port))),
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), self.port)).await;
                let found = found.map_err(|error| format!("the host {name} is not found: {error}"))?;
                let all: Vec<_> = found.collect();
                // A server of this machine listens on IPv4, mostly.
                let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
                let address = *first.ok_or_else(|| format!("the host {name} has no address"))?;
                match &self.authorities {
                    Some(file) => Address::Tls(address, Tls::load(file, name)?),
                    None => Address::Tcp(address),
                }
            }
        };
        let (user, database) = (self.user.clone(), self.database.clone());
        Ok(Server { address, user, database, password: self.password.clone(), identity: None })
    }
}

/// Host and port. An address of IPv6 is in brackets.
fn place_of(place: &str) -> Result<(String, u16), String> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("an IPv6 address is written in [brackets]")?;
            (host, port.strip_prefix(':'))
        }
        None => match place.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        None | Some("") => PORT,
        Some(port) => port.parse().map_err(|_| "the port of a server is a number from 1 to 65535".to_owned())?,
    };
    Ok((decoded(host, "the host")?, port))
}

/// `%41` is `A`.
fn decoded(text: &str, what: &str) -> Result<String, String> {
    let wrong =
        || format!("in a server's name, {what} has a % that two hexadecimal digits do not follow, or is not UTF-8");
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| wrong())?);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_as_libpq_reads_it() {
        let dsn = Dsn::parse("postgres://ann:s%40cret@db.example:6000/shop").unwrap();
        assert_eq!((dsn.user.as_str(), dsn.port, dsn.database.as_str()), ("ann", 6000, "shop"));
        assert_eq!(dsn.password.as_ref().unwrap().0, "s@cret");
        assert_eq!(dsn.to_string(), "postgres://ann@db.example:6000/shop");
        assert!(!format!("{dsn:?}").contains("cret"), "{dsn:?}");
        let dsn = Dsn::parse("postgresql://ann@[::1]").unwrap();
        assert_eq!((dsn.to_string().as_str(), dsn.database.as_str()), ("postgres://ann@[::1]:5432/ann", "ann"));
        let dsn = Dsn::parse("postgres://ann@/shop?host=/run/postgresql").unwrap();
        assert_eq!(dsn.host, Host::Folder("/run/postgresql".into()));
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for text in [
            "mysql://ann:secret@h/d",
            "postgres://:secret@h/d",
            "postgres://ann:secret@/d",
            "postgres://ann:secret@h:x/d",
            "postgres://ann:secret%4@h/d",
            "postgres://ann:secret@h/d?sslmode=require",
            "postgres://ann:secret@h/d?options=-c",
            "postgres://ann:secret@h/d?sslmode=disable&sslrootcert=f",
        ] {
            let error = Dsn::parse(text).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
