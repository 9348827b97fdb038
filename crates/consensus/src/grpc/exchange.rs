//! Small calls and their answers, many in a message; also the entries of Raft's logs, in an exchange of their own.
//!
//! A gRPC call of its own is a stream of HTTP/2 with headers and trailers, and often a packet: that cost a node about as much
//! CPU as all else that it does to route a keyed read. So two nodes that have much to say to
//! each other keep one stream open in each direction, an *exchange*. Calls go into it as they come, numbered, and answers
//! come back as they become ready, in any order; what is ready at the same moment travels in one message. Alone, a call
//! still goes at once.
//!
//! The fate of a call is as clear as that of one of its own. What was never handed to an open exchange surely was not
//! sent. When an exchange breaks, all calls that wait for their answers are lost: they may have been carried out. So is a call
//! that panics where it is carried out, and nobody waits for it until the deadline. Who
//! stops waiting says so, and the other node drops the call where it is, as it drops a call whose connection is reset.
//! A node that stops asks for the end of its exchanges; calls that are in them are still answered.
//!
//! Large bodies would hold up the small ones behind them, and go by calls of their own ([`BODY_BYTES_MAX`]). An answer
//! can't choose its way, so a large one does go into its exchange, and holds up those behind it for as long as it takes.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tonic::{Status, Streaming};

use super::proto::{Call, Calls, NumberedCall, NumberedReply, Replies, Reply};
use super::to_reply;
use crate::transport::ServiceError;

/// Bodies of calls above this don't go by an exchange, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
/// A message gets nothing more when it has this many bytes.
const MESSAGE_BYTES: usize = 64 * 1024;
/// Calls or answers that wait to be sent; who has another one waits.
const WAITING_MAX: usize = 1024;
/// What a message has around one answer at most, in bytes.
const AROUND_BYTES: usize = 64;

type Client = super::proto::cluster_service_client::ClusterServiceClient<tonic::transport::Channel>;

/// The calling side of an exchange.
pub(super) struct Exchange {
    shared: Arc<Mutex<Shared>>,
    next: AtomicU64,
}

struct Shared {
    /// None when no more calls are taken.
    calls: Option<mpsc::Sender<Outgoing>>,
    /// Who waits for which answer.
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
}

enum Outgoing {
    Call(NumberedCall),
    Left(u64),
}

/// Why an exchange gave no answer.
pub(super) enum Failed {
    /// It had ended before the call was handed to it.
    NotSent,
    /// It ended after that.
    Lost,
}

impl Exchange {
    /// Opens an exchange. It ends when the connection does, or when this is dropped.
    pub(super) async fn open(mut client: Client, caller: Call) -> Result<Arc<Exchange>, Status> {
        let (calls, queue) = mpsc::channel(WAITING_MAX);
        let first = Calls { caller: Some(caller), ..Calls::default() };
        let messages = futures::stream::iter([first]).chain(in_batches(queue, call_bytes).map(message_of));
        let mut answers = client.exchange(Messages(messages.boxed())).await?.into_inner();
        let shared = Arc::new(Mutex::new(Shared { calls: Some(calls), waiting: HashMap::new() }));
        let exchange = Arc::new(Exchange { shared: shared.clone(), next: AtomicU64::new(0) });
        tokio::spawn(async move {
            while let Ok(Some(replies)) = answers.message().await {
                shared.lock().take(replies);
            }
            shared.lock().end();
        });
        Ok(exchange)
    }

    /// Whether it takes no more calls.
    pub(super) fn has_ended(&self) -> bool {
        self.shared.lock().calls.is_none()
    }

    /// Sends a call and waits for its answer. Dropped, it tells the other node that nobody waits.
    pub(super) async fn call(&self, method: &str, body: Bytes) -> Result<Reply, Failed> {
        let calls = self.shared.lock().calls.clone().ok_or(Failed::NotSent)?;
        let place = calls.reserve_owned().await.map_err(|_| Failed::NotSent)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut shared = self.shared.lock();
            if shared.calls.is_none() {
                return Err(Failed::NotSent);
            }
            shared.waiting.insert(number, sender);
        }
        let mut wait = Wait { exchange: self, number, answered: false };
        place.send(Outgoing::Call(NumberedCall { number, method: method.to_owned(), body }));
        let answer = answer.await.map_err(|_| Failed::Lost);
        wait.answered = true;
        answer
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.lock().calls = None;
    }
}

/// Somebody waits for an answer.
struct Wait<'a> {
    exchange: &'a Exchange,
    number: u64,
    answered: bool,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut shared = self.exchange.shared.lock();
        shared.waiting.remove(&self.number);
        if let Some(calls) = &shared.calls {
            // When the queue is full the call is worked on to its end, for nobody.
            let _ = calls.try_send(Outgoing::Left(self.number));
        }
    }
}

impl Shared {
    fn take(&mut self, Replies { replies, closing }: Replies) {
        for NumberedReply { number, reply } in replies {
            // Without a reply the sender is dropped: the call is lost.
            if let (Some(sender), Some(reply)) = (self.waiting.remove(&number), reply) {
                let _ = sender.send(reply);
            }
        }
        if closing {
            self.calls = None;
        }
    }

    /// Nobody who waits gets an answer any more, and nobody begins to wait.
    fn end(&mut self) {
        self.calls = None;
        self.waiting.clear();
    }
}

fn call_bytes(outgoing: &Outgoing) -> usize {
    match outgoing {
        Outgoing::Call(call) => call.encoded_len(),
        Outgoing::Left(_) => 10,
    }
}

fn message_of(batch: Vec<Outgoing>) -> Calls {
    let mut message = Calls::default();
    for outgoing in batch {
        match outgoing {
            Outgoing::Call(call) => message.calls.push(call),
            Outgoing::Left(number) => message.left.push(number),
        }
    }
    message
}

/// What has come into a queue, in as few messages as its limit on bytes lets be.
fn in_batches<T: Send + 'static>(queue: mpsc::Receiver<T>, bytes_of: fn(&T) -> usize) -> BoxStream<'static, Vec<T>> {
    let batches = futures::stream::unfold((queue, None), move |(mut queue, kept)| async move {
        let first: T = match kept {
            Some(first) => first,
            None => {
                let first = queue.recv().await?;
                // Whoever is ready to add something does so first.
                tokio::task::yield_now().await;
                first
            }
        };
        let (mut bytes, mut batch, mut kept) = (bytes_of(&first), vec![first], None);
        while let Ok(next) = queue.try_recv() {
            bytes += bytes_of(&next);
            if bytes > MESSAGE_BYTES {
                kept = Some(next);
                break;
            }
            batch.push(next);
        }
        Some((batch, (queue, kept)))
    });
    batches.boxed()
}

/// A named type, because the compiler can't prove a call's future `Send` when it holds the boxed stream itself.
struct Messages(BoxStream<'static, Calls>);

impl futures::Stream for Messages {
    type Item = Calls;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Calls>> {
        self.0.poll_next_unpin(context)
    }
}

/// The calls of an exchange that are worked on.
#[derive(Default)]
struct Running(Mutex<HashMap<u64, AbortHandle>>);

impl Running {
    fn begin(self: &Arc<Self>, number: u64, work: impl Future<Output = ()> + Send + 'static) {
        let running = self.clone();
        let mut calls = self.0.lock();
        let task = tokio::spawn(async move {
            work.await;
            running.0.lock().remove(&number);
        });
        calls.insert(number, task.abort_handle());
    }

    fn leave(&self, number: u64) {
        if let Some(call) = self.0.lock().remove(&number) {
            call.abort();
        }
    }

    fn leave_all(&self) {
        for (_, call) in self.0.lock().drain() {
            call.abort();
        }
    }
}

/// The answering side of an exchange: `answer` is asked who calls at each message, and then for each of its calls. When
/// `closing` turns true, the other side is asked to end it.
pub(super) fn serve<F>(
    mut messages: Streaming<Calls>,
    message_bytes_max: usize,
    mut closing: watch::Receiver<bool>,
    answer: impl Fn(&Call, NumberedCall) -> F + Send + 'static,
) -> BoxStream<'static, Result<Replies, Status>>
where
    F: Future<Output = Result<Bytes, ServiceError>> + Send + 'static,
{
    let (answers, queue) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        let running = Arc::new(Running::default());
        let mut caller = None;
        loop {
            let message = match messages.message().await {
                Ok(Some(message)) => message,
                // Nothing more is asked, and what was is still answered.
                Ok(None) => return,
                Err(_) => break,
            };
            caller = message.caller.or(caller);
            let Some(caller) = &caller else { break };
            for call in message.calls {
                let number = call.number;
                let (answer, answers) = (answer(caller, call), answers.clone());
                running.begin(number, async move {
                    // The panic was logged. Whether the call was carried out nobody knows, so it has no answer.
                    let answer = AssertUnwindSafe(answer).catch_unwind().await.ok();
                    let reply = answer.map(|answer| to_reply(within_limit(answer, message_bytes_max)));
                    // Who asked may be gone.
                    let _ = answers.send(NumberedReply { number, reply }).await;
                });
            }
            message.left.into_iter().for_each(|number| running.leave(number));
        }
        running.leave_all();
    });
    let answers =
        in_batches(queue, NumberedReply::encoded_len).map(|replies| Some(Replies { replies, closing: false }));
    let goodbye = async move {
        // A sender that is gone will never say it.
        if closing.wait_for(|closing| *closing).await.is_err() {
            std::future::pending::<()>().await;
        }
        Some(Replies { replies: Vec::new(), closing: true })
    };
    // The end of the answers is the end, whether or not there was a goodbye.
    let end = futures::stream::once(ready(None));
    let messages = futures::stream::select(answers.chain(end), futures::stream::once(goodbye));
    messages.take_while(|message| ready(message.is_some())).filter_map(|message| ready(message.map(Ok))).boxed()
}

/// An answer that is too large for a message must not end the exchange for all others.
fn within_limit(answer: Result<Bytes, ServiceError>, message_bytes_max: usize) -> Result<Bytes, ServiceError> {
    match answer {
        Ok(body) if body.len() + AROUND_BYTES > message_bytes_max => Err(ServiceError::new(
            "too_large",
            format!("an answer of {} bytes is over the limit of {message_bytes_max}", body.len()),
        )),
        answer => answer,
    }
}
