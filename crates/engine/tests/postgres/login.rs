//! Passwords and encryption, between Pleat and a real server.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use pleat_engine::postgres::{Address, Pool, PostgresError, Tls};
use pleat_provision::process::{self, ProcessConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::world::{LIMITS, World, ask, config, target};

#[tokio::test]
async fn a_password_is_proven_and_so_is_the_server() {
    let World { server, dir } = World::start().await;
    server.stop().await;
    let file = dir.path().join("password");
    fs::write(&file, "gr\u{fc}n").unwrap();
    let server = process::Server::start(ProcessConfig { password_file: Some(file), ..config(&dir) }).await.unwrap();
    let socket = server.socket().unwrap().join(format!(".s.PGSQL.{}", server.address().port()));
    for address in [Address::Tcp(server.address()), Address::Unix(socket)] {
        // As it can be typed otherwise, too.
        for password in ["gr\u{fc}n", "gru\u{308}n"] {
            let pool = Pool::new(target(address.clone(), Some(password)), LIMITS);
            assert_eq!(ask(&pool, "SELECT 1").await, ["1"]);
        }
        let refused = Pool::new(target(address.clone(), Some("blau")), LIMITS).lease().await.err().unwrap();
        assert_eq!((refused.sqlstate(), refused.is_retryable()), ("28P01", false), "{refused}");
        let refused = Pool::new(target(address, None), LIMITS).lease().await.err().unwrap();
        assert!(refused.to_string().contains("asks for a password, and none is set"), "{refused}");
    }
    server.stop().await;
}

/// An authority, and what it has signed for a server; as files of whom the data belongs to.
fn certificates(data: &Path) -> String {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["shard.test".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let owner = fs::metadata(data).unwrap();
    for (name, text) in [("server.crt", server.pem()), ("server.key", key.serialize_pem())] {
        let file = data.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    authority.pem()
}

#[tokio::test]
async fn what_goes_to_a_server_is_encrypted_and_bound_to_its_certificate() {
    let world = World::start().await;
    let data = world.data();
    let World { server, dir } = world;
    let without: SocketAddr = server.address();
    let authority = certificates(&data);
    let (ours, theirs) = (dir.path().join("ours.pem"), dir.path().join("theirs.pem"));
    fs::write(&ours, authority).unwrap();
    let named = |name: &str| Tls::load(&ours, name).unwrap();
    let lease = |address, password| async move {
        Pool::new(target(address, password), super::world::short()).lease().await.err()
    };

    let refused = lease(Address::Tls(without, named("shard.test")), None).await.unwrap();
    assert!(refused.to_string().contains("has no TLS"), "{refused}");
    server.stop().await;
    let settings = data.join("postgresql.conf");
    let before = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{before}\nssl = on\n")).unwrap();
    let file = dir.path().join("password");
    fs::write(&file, "secret").unwrap();
    let server = process::Server::start(ProcessConfig { password_file: Some(file), ..config(&dir) }).await.unwrap();
    let address = server.address();

    let pool = Pool::new(target(Address::Tls(address, named("shard.test")), Some("secret")), LIMITS);
    assert_eq!(ask(&pool, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await, ["t"]);
    // More than a record of TLS, both ways.
    assert_eq!(ask(&pool, &format!("SELECT length('{}')", "x".repeat(1_000_000))).await, ["1000000"]);
    let canceller = pool.lease().await.unwrap().canceller();
    canceller.cancel().await;
    let refused = lease(Address::Tls(address, named("shard.test")), Some("wrong")).await.unwrap();
    assert!(matches!(&refused, PostgresError::Refused { code, .. } if code.as_str() == "28P01"), "{refused}");

    // Another's name, or another's authority.
    fs::write(&theirs, certificates(&data)).unwrap();
    for tls in [named("other.test"), Tls::load(&theirs, "shard.test").unwrap()] {
        let refused = lease(Address::Tls(address, tls), Some("secret")).await.unwrap();
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
    assert!(Tls::load(&settings, "shard.test").unwrap_err().contains("there is none"));
    server.stop().await;
}
