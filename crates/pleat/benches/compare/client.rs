//! A client that costs next to nothing: one connection, requests put together by hand.
//!
//! Client and cluster share the machine. What a full HTTP client takes for each request would be missing where it is measured, and the
//! other side of a comparison is asked by as plain a one.

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection of HTTP/1.1 that is kept open. One request at a time.
pub struct Connection {
    stream: TcpStream,
    host: String,
    buffer: Vec<u8>,
}

impl Connection {
    /// To the node at a URL such as `http://127.0.0.1:8080`.
    pub async fn open(url: &str) -> anyhow::Result<Connection> {
        let host = url.strip_prefix("http://").context("a URL that begins with http://")?.to_owned();
        let stream = TcpStream::connect(&host).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, host, buffer: Vec::new() })
    }

    /// Sends a request and waits for the whole answer, which must be a good one and say its length.
    pub async fn ask(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            anyhow::ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the node closed the connection");
            let Some(head) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&self.buffer[..head])?;
            let length: usize = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .context("an answer without a length")?
                .parse()?;
            if self.buffer.len() == head + 4 + length {
                let good = text.starts_with("HTTP/1.1 200");
                anyhow::ensure!(good, "{}", String::from_utf8_lossy(&self.buffer));
                return Ok(());
            }
        }
    }
}
