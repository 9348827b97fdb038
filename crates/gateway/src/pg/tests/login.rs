//! Passwords and encryption: what clients do that mean well, and what others do.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pleat_cluster::{Command, Secret};
use pleat_engine::scram;
use ring::{digest, hmac, pbkdf2};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;
use crate::backend::Backend;
use crate::testing::tls::{self, Files};
use crate::tls::Tls;

const ASKED: u32 = 10;
const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];

impl Server {
    async fn put(&self, name: &str, password: &str) {
        let verifier = scram::verifier_of(password.as_bytes(), [7; 16]).unwrap();
        let command = Command::PutUser { name: name.to_owned(), verifier, secret: Secret([9; 32]), at: 1 };
        self.cluster.command(command, Duration::ZERO).await.unwrap();
    }

    /// A connection whose first message names this user.
    async fn begin(&self, user: &str) -> Client {
        let mut client = Client { stream: TcpStream::connect(self.address).await.unwrap() };
        client.send(&startup(3 << 16, &[("user", user)])).await;
        client
    }

    /// The same, in TLS.
    async fn begin_encrypted(&self, user: &str, files: &Files) -> Client<TlsStream<TcpStream>> {
        let mut client = self.encrypted(files).await;
        client.send(&startup(3 << 16, &[("user", user)])).await;
        client
    }

    async fn encrypted(&self, files: &Files) -> Client<TlsStream<TcpStream>> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(&SSL_REQUEST).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        Client { stream: connector(files).connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap() }
    }
}

fn connector(files: &Files) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.authority).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into()
}

/// A client's side of the exchange.
struct Proof<'a> {
    password: &'a str,
    mechanism: &'a str,
    /// The gs2 header.
    header: &'a str,
    bound: &'a [u8],
}

impl<'a> Proof<'a> {
    fn of(password: &'a str) -> Self {
        Self { password, mechanism: PLAIN, header: "n,,", bound: b"" }
    }

    fn first(&self) -> Vec<u8> {
        initial(self.mechanism, format!("{}n=,r=abc", self.header).as_bytes())
    }

    /// The last message to this challenge, and what the server has to answer.
    fn last(&self, challenge: &str) -> (Vec<u8>, String) {
        let [nonce, salt, times] = challenge.split(',').collect::<Vec<_>>().try_into().unwrap();
        let salt = BASE64.decode(&salt[2..]).unwrap();
        let mut salted = [0; 32];
        let times = times[2..].parse().unwrap();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, times, &salt, self.password.as_bytes(), &mut salted);
        let sign =
            |key: &[u8], of: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), of.as_bytes()).as_ref().to_vec();
        let client_key = sign(&salted, "Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let before = format!("c={},{nonce}", BASE64.encode([self.header.as_bytes(), self.bound].concat()));
        let said = format!("n=,r=abc,{challenge},{before}");
        let signature = sign(stored_key.as_ref(), &said);
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, signature)| key ^ signature).collect();
        let last = message(b'p', format!("{before},p={}", BASE64.encode(proof)).as_bytes());
        (last, format!("v={}", BASE64.encode(sign(&sign(&salted, "Server Key"), &said))))
    }
}

fn initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    message(b'p', &[mechanism.as_bytes(), b"\0", &length, data].concat())
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The mechanisms that are offered.
    async fn asked(&mut self) -> Vec<String> {
        let (tag, body) = self.next().await.unwrap();
        assert_eq!((tag, (&body[..]).get_u32()), (b'R', ASKED), "{}", String::from_utf8_lossy(&body));
        let names = body[4..].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
    }

    async fn challenge(&mut self, proof: &Proof<'_>) -> String {
        self.asked().await;
        self.send(&proof.first()).await;
        let (tag, body) = self.next().await.unwrap();
        assert_eq!((tag, (&body[..]).get_u32()), (b'R', ASKED + 1), "{}", String::from_utf8_lossy(&body));
        String::from_utf8(body[4..].to_vec()).unwrap()
    }

    /// Go through the whole exchange. The error that it ends with: code and words.
    async fn prove(&mut self, proof: &Proof<'_>) -> Result<(), (String, String)> {
        let challenge = self.challenge(proof).await;
        let (last, wanted) = proof.last(&challenge);
        self.send(&last).await;
        let (tag, body) = self.next().await.unwrap();
        if tag == b'E' {
            assert!(self.next().await.is_none(), "it is closed");
            return Err((field(&body, b'C'), field(&body, b'M')));
        }
        assert_eq!((tag, &body[4..]), (b'R', wanted.as_bytes()), "the server proves itself, too");
        let (tag, body) = self.next().await.unwrap();
        assert_eq!((tag, &body[..]), (b'R', &[0, 0, 0, 0][..]));
        self.until(b'Z').await;
        assert_eq!(self.query("SELECT 1").await.0, "TDCZ");
        Ok(())
    }
}

fn wrong(user: &str) -> Result<(), (String, String)> {
    Err(("28P01".to_owned(), format!("password authentication failed for user \"{user}\"")))
}

#[tokio::test]
async fn users_prove_their_passwords() {
    let server = Server::start(10).await;
    let mut before = server.connect().await;
    server.put("ada", "secret").await;
    assert_eq!(server.begin("ada").await.asked().await, [PLAIN], "nothing to bind without TLS");
    let mut open = server.begin("ada").await;
    assert_eq!(open.prove(&Proof::of("secret")).await, Ok(()));
    assert_eq!(server.begin("ada").await.prove(&Proof::of("Secret")).await, wrong("ada"));
    assert_eq!(
        server.begin("Ada").await.prove(&Proof::of("secret")).await,
        wrong("Ada"),
        "names are taken to the letter"
    );
    // Names can't be told apart by what is asked: the salt of one that is no user's is always the same, too.
    let salt = async |name| {
        let challenge = server.begin(name).await.challenge(&Proof::of("")).await;
        challenge.split(',').nth(1).unwrap().to_owned()
    };
    assert_eq!(salt("nobody").await, salt("nobody").await);
    assert_ne!(salt("nobody").await, salt("somebody").await);
    assert_eq!(salt("nobody").await.len(), salt("ada").await.len());

    server.put("ada", "another").await;
    assert_eq!(server.begin("ada").await.prove(&Proof::of("secret")).await, wrong("ada"));
    assert_eq!(server.begin("ada").await.prove(&Proof::of("another")).await, Ok(()));
    server.put("bob", "b").await;
    let remove = Command::RemoveUser { name: "ada".to_owned(), last: false, at: 2 };
    server.cluster.command(remove, Duration::ZERO).await.unwrap();
    assert_eq!(server.begin("ada").await.prove(&Proof::of("another")).await, wrong("ada"));
    for session in [&mut before, &mut open] {
        assert_eq!(session.query("SELECT 1").await.0, "TDCZ", "sessions go on");
    }
    let remove = Command::RemoveUser { name: "bob".to_owned(), last: true, at: 3 };
    server.cluster.command(remove, Duration::ZERO).await.unwrap();
    server.connect().await;
}

#[tokio::test]
async fn what_is_no_proof_ends_the_connection() {
    let server = Server::start(10).await;
    server.put("ada", "secret").await;
    let proof = Proof::of("secret");
    let mut good = server.begin("ada").await;
    let challenge = good.challenge(&proof).await;
    let replayed = proof.last(&challenge).0;
    good.send(&replayed).await;
    good.until(b'Z').await;

    let large = message(b'p', &[b'x'; 1_100]);
    for (first, code) in [
        (startup(3 << 16, &[("user", "ada")]), "08P01"),
        (SSL_REQUEST.to_vec(), "08P01"),
        (message(b'Q', b"SELECT 1\0"), "08P01"),
        (sync(), "08P01"),
        (message(b'p', b"secret\0"), "08P01"),
        (message(b'p', b""), "08P01"),
        (large.clone(), "08P01"),
        (b"p\x7f\xff\xff\xff".to_vec(), "08P01"),
        (b"p\0\0\0\x03".to_vec(), "08P01"),
        (initial("PLAIN", b"n,,n=,r=abc"), "08P01"),
        (initial(PLUS, b"p=tls-server-end-point,,n=,r=abc"), "08P01"),
        (initial(PLAIN, b"p=tls-server-end-point,,n=,r=abc"), "08P01"),
        (message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"), "08P01"),
        (initial(PLAIN, b""), "08P01"),
        (initial(PLAIN, b"n,,n=,r="), "08P01"),
        (initial(PLAIN, b"n,a=root,n=,r=abc"), "0A000"),
    ] {
        let mut client = server.begin("ada").await;
        client.asked().await;
        client.send(&first).await;
        assert_eq!(client.ended().await.as_deref(), Some(code), "{first:?}");
    }
    for (last, code) in [
        (replayed, "08P01"),
        (proof.first(), "08P01"),
        (startup(3 << 16, &[("user", "ada")]), "08P01"),
        (message(b'Q', b"SELECT 1\0"), "08P01"),
        (large, "08P01"),
        (message(b'p', b""), "08P01"),
    ] {
        // By another name each, so that no pause begins.
        let user = format!("{}", last.len());
        let mut client = server.begin(&user).await;
        client.challenge(&proof).await;
        client.send(&last).await;
        assert_eq!(client.ended().await.as_deref(), Some(code), "{last:?}");
    }
    // A header that is not the one of the first message.
    let mut client = server.begin("ada").await;
    let challenge = client.challenge(&proof).await;
    client.send(&Proof { header: "y,,", ..Proof::of("secret") }.last(&challenge).0).await;
    assert_eq!(client.ended().await.as_deref(), Some("28000"));
    // Settings are looked at when it is clear who wants them.
    let mut client = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    client.send(&startup(3 << 16, &[("user", "ada"), ("client_encoding", "LATIN1")])).await;
    client.asked().await;
    // Whoever leaves in the middle leaves nothing.
    for steps in 0..2 {
        let mut client = server.begin("ada").await;
        match steps {
            0 => drop(client.asked().await),
            _ => drop(client.challenge(&proof).await),
        }
        client.stream.shutdown().await.unwrap();
        assert!(client.next().await.is_none());
    }
    assert_eq!(server.begin("ada").await.prove(&proof).await, Ok(()));
}

#[tokio::test]
async fn guessing_becomes_slow() {
    let server = Server::start(10).await;
    server.put("ada", "secret").await;
    for user in ["ada", "nobody"] {
        for guess in 0..=crate::settings::PG_GUESSES_FREE {
            assert_eq!(server.begin(user).await.prove(&Proof::of(&format!("guess {guess}"))).await, wrong(user));
        }
        // The pauses double, so on a machine however slow one is met in the end.
        let mut refused = wrong(user);
        for _ in 0..16 {
            if refused == wrong(user) {
                refused = server.begin(user).await.prove(&Proof::of("guess")).await;
            }
        }
        let (code, words) = refused.unwrap_err();
        assert_eq!(code, "28000");
        assert!(words.contains("too many wrong passwords"), "{words}");
    }
    server.put("bob", "b").await;
    assert_eq!(server.begin("bob").await.prove(&Proof::of("b")).await, Ok(()), "others are not concerned");
}

#[tokio::test]
async fn who_hangs_on_the_way_is_let_go() {
    let files = tls::files(&rcgen::PKCS_ECDSA_P256_SHA256);
    let tls = Some(Tls::load(&files.certificate, &files.key).unwrap());
    let pg = PgSettings { tls, startup_time: Duration::from_secs(3), ..PgSettings::default() };
    let server = Server::with(10, pg).await;
    server.put("ada", "secret").await;
    let mut nothing = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    let mut asked = server.begin("ada").await;
    asked.asked().await;
    let mut half = server.begin("ada").await;
    half.asked().await;
    half.send(&Proof::of("secret").first()[..10]).await;
    let mut challenged = server.begin("ada").await;
    challenged.challenge(&Proof::of("secret")).await;
    for client in [&mut nothing, &mut asked, &mut half, &mut challenged] {
        assert_eq!(client.ended().await.as_deref(), Some("08P01"));
    }
    // In the middle of the handshake there is nothing to tell.
    let mut handshake = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    handshake.send(&SSL_REQUEST).await;
    assert_eq!(handshake.stream.read_u8().await.unwrap(), b'S');
    assert!(handshake.next().await.is_none());
}

#[tokio::test]
async fn a_node_that_does_not_know_the_users_lets_nobody_in() {
    let server = Server::start(10).await;
    *server.cluster.cut_off.lock() = true;
    let mut early = server.begin("me").await;
    assert_eq!(early.ended().await.as_deref(), Some("57P03"));
    *server.cluster.cut_off.lock() = false;
    server.connect().await;
    // From then on it knows them by itself.
    *server.cluster.cut_off.lock() = true;
    server.connect().await;
}

#[tokio::test]
async fn an_encrypted_channel_is_bound_to_the_proof() {
    let files = tls::files(&rcgen::PKCS_ECDSA_P256_SHA256);
    let tls = Tls::load(&files.certificate, &files.key).unwrap();
    let hash = tls.end_point.clone().unwrap();
    let server = Server::with(10, PgSettings { tls: Some(tls), ..PgSettings::default() }).await;
    let mut trusted = server.begin_encrypted("me", &files).await;
    trusted.until(b'Z').await;
    assert_eq!(trusted.query("SELECT 1").await.0, "TDCZ");

    server.put("ada", "secret").await;
    let begin = async || server.begin_encrypted("ada", &files).await;
    assert_eq!(begin().await.asked().await, [PLUS, PLAIN]);
    let header = "p=tls-server-end-point,,";
    let bound = |bound| Proof { password: "secret", mechanism: PLUS, header, bound };
    assert_eq!(begin().await.prove(&bound(&hash)).await, Ok(()));
    assert_eq!(begin().await.prove(&Proof::of("secret")).await, Ok(()), "a client that can't bind need not");
    let (code, words) = begin().await.prove(&bound(&[0; 32])).await.unwrap_err();
    assert_eq!(code, "28000");
    assert!(words.contains("another channel"), "{words}");
    // Somebody has struck out what the server offers.
    let mut downgraded = begin().await;
    downgraded.asked().await;
    downgraded.send(&Proof { header: "y,,", ..Proof::of("secret") }.first()).await;
    assert_eq!(downgraded.ended().await.as_deref(), Some("28000"));
    // A large answer, and an orderly end.
    let mut client = begin().await;
    client.prove(&bound(&hash)).await.unwrap();
    assert_eq!(client.query("SELECT printf('%.*c', 1000000, 'x')").await.0, "TDCZ");
    client.send(&message(b'X', b"")).await;
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn nothing_slips_in_before_the_encryption() {
    let files = tls::files(&rcgen::PKCS_ECDSA_P256_SHA256);
    let tls = Some(Tls::load(&files.certificate, &files.key).unwrap());
    let server = Server::with(10, PgSettings { tls, tls_required: true, ..PgSettings::default() }).await;
    // Sent in one piece with the request (CVE-2021-23214).
    let mut injected = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    injected.send(&[&SSL_REQUEST[..], &startup(3 << 16, &[("user", "me")])].concat()).await;
    assert_eq!(injected.ended().await.as_deref(), Some("08P01"));
    // Behind the `S` it is no handshake.
    let mut behind = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    behind.send(&SSL_REQUEST).await;
    assert_eq!(behind.stream.read_u8().await.unwrap(), b'S');
    behind.send(&startup(3 << 16, &[("user", "me")])).await;
    let mut rest = Vec::new();
    behind.stream.read_to_end(&mut rest).await.ok();
    assert!(rest.len() < 20 && !rest.contains(&b'R'), "no session: {rest:?}");
    // Asked for again inside of it.
    for request in [SSL_REQUEST, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x30]] {
        let mut again = server.encrypted(&files).await;
        again.send(&request).await;
        assert_eq!(again.ended().await.as_deref(), Some("08P01"));
    }
    // Not at all.
    assert_eq!(server.begin("me").await.ended().await.as_deref(), Some("28000"));
    // GSS first is fine, as libpq does it.
    let mut gss = TcpStream::connect(server.address).await.unwrap();
    gss.write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x30]).await.unwrap();
    assert_eq!(gss.read_u8().await.unwrap(), b'N');
    gss.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(gss.read_u8().await.unwrap(), b'S');
    let stream = connector(&files).connect(ServerName::try_from("localhost").unwrap(), gss).await.unwrap();
    let mut client = Client { stream };
    client.send(&startup(3 << 16, &[("user", "me")])).await;
    client.until(b'Z').await;
    // A cancel has no answer, encrypted or not.
    let cancel = [&[0, 0, 0, 16][..], &80_877_102_u32.to_be_bytes(), &[0; 8]].concat();
    let mut plain = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    plain.send(&cancel).await;
    assert!(plain.next().await.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn arbitrary_bytes_in_place_of_a_proof_let_nobody_in(first: bool, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start(4).await;
            server.put("ada", "secret").await;
            let mut client = server.begin("ada").await;
            if first {
                client.asked().await;
                client.stream.write_all(&initial(PLAIN, &bytes)).await.ok();
            } else {
                client.challenge(&Proof::of("secret")).await;
                client.stream.write_all(&message(b'p', &bytes)).await.ok();
            }
            client.stream.shutdown().await.ok();
            while let Some((tag, body)) = client.next().await {
                assert!(tag == b'E' || (tag == b'R' && body[3] == 11), "{tag} {body:?}");
            }
            assert_eq!(server.begin("ada").await.prove(&Proof::of("secret")).await, Ok(()));
        });
    }
}
