//! What a client at a real socket notices.

use std::net::SocketAddr;
use std::time::Instant;

use axum::routing::{get, post};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

/// A test must not wait longer than this for what does not depend on the machine's speed.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    /// Lets a request to `/wait` be answered.
    release: watch::Sender<bool>,
}

async fn start(limits: Serving) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (release, released) = watch::channel(false);
    let wait = move || {
        let mut released = released.clone();
        async move { released.wait_for(|released| *released).await.map(|_| "waited").unwrap_or("left") }
    };
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/echo", post(|body: String| async move { body }))
        .route("/wait", get(wait));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, router, limits, async move { drop(stopped.await) }));
    Server { address, stop, serving, release }
}

fn impatient() -> Serving {
    Serving { head_time: Duration::from_millis(300), ..Serving::default() }
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

/// Everything that the server sends until it closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server keeps it open");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask(server: &Server, request: &str) -> String {
    let mut stream = connect(server).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(stream).await
}

const HELLO: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn who_sends_no_head_or_sends_it_too_slowly_is_cut_off_and_others_are_served() {
    let server = start(impatient()).await;
    for silent in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let begun = Instant::now();
        let mut stream = connect(&server).await;
        stream.write_all(silent.as_bytes()).await.unwrap();
        assert!(ask(&server, HELLO).await.ends_with("hello"), "while another says {silent:?}");
        assert!(!rest(stream).await.contains("200 OK"), "{silent:?}");
        assert!(begun.elapsed() >= impatient().head_time, "{silent:?}");
    }
    // Progress does not help: the limit is on the whole head.
    let stream = connect(&server).await;
    let (mut reader, mut writer) = stream.into_split();
    let trickle = tokio::spawn(async move {
        writer.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        for number in 0.. {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if writer.write_all(format!("x-{number}: y\r\n").as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut answer)).await.expect("cut off");
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    tokio::time::timeout(PATIENCE, trickle).await.expect("the connection is gone").unwrap();
}

#[tokio::test]
async fn http_1_requests_follow_each_other_whatever_the_first_bytes_are() {
    let server = start(Serving::default()).await;
    let mut stream = connect(&server).await;
    // Begins like HTTP/2's preface, in pieces.
    for piece in ["P", "OST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n", "one"] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.write_all(HELLO.as_bytes()).await.unwrap();
    let answers = rest(stream).await;
    assert!(answers.contains("one") && answers.ends_with("hello"), "{answers}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_as_such() {
    let server = start(Serving::default()).await;
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
    assert!(ask(&server, &large).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX));
    assert!(ask(&server, &many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_one_to_end() {
    let server = start(Serving { connections: 1, ..Serving::default() }).await;
    let mut first = connect(&server).await;
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let second = ask(&server, HELLO);
    tokio::pin!(second);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
    assert!(early.is_err(), "the first one is still open");
    drop(first);
    assert!(tokio::time::timeout(PATIENCE, second).await.unwrap().ends_with("hello"));
}

#[tokio::test]
async fn a_shutdown_ends_what_is_idle_and_lets_requests_finish() {
    let server = start(Serving::default()).await;
    let silent = connect(&server).await;
    let mut idle = connect(&server).await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut busy = connect(&server).await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    while server.release.receiver_count() < 2 {
        tokio::task::yield_now().await;
    }
    server.stop.send(()).unwrap();
    assert_eq!(rest(silent).await, "");
    assert!(rest(idle).await.ends_with("hello"));
    assert!(!server.serving.is_finished(), "a request is being served");
    server.release.send_replace(true);
    assert!(rest(busy).await.ends_with("waited"));
    tokio::time::timeout(PATIENCE, server.serving).await.expect("the server ends").unwrap();
}

#[tokio::test]
async fn http_2_is_served_on_the_same_address() {
    let server = start(Serving::default()).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}/", server.address)).send().await.unwrap();
    assert_eq!(answer.version(), axum::http::Version::HTTP_2);
    assert_eq!(answer.text().await.unwrap(), "hello");
}
