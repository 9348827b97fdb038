//! The request to stop, as one value that everything in a process can wait for.
//!
//! A node is asked to stop by SIGINT, by SIGTERM or, when `pleat up` started it (`--supervised`), by the end
//! of its standard input: the supervisor holds the other end of that pipe, and the kernel closes it however
//! the supervisor dies, kill -9 included. So no node outlives its supervisor unnoticed.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A request to stop that is still to come, or was made. Clones see the same request.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requested: watch::Receiver<bool>,
}

/// The side that asks. Dropping it asks too.
#[derive(Debug)]
pub struct Trigger {
    requested: watch::Sender<bool>,
}

impl Shutdown {
    /// A request that [`Trigger::request`] makes.
    pub fn new() -> (Trigger, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (Trigger { requested: sender }, Shutdown { requested: receiver })
    }

    /// Whether it was made.
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow() || self.requested.has_changed().is_err()
    }

    /// Wait until it is made. Cancel-safe.
    pub async fn requested(&mut self) {
        // An error says that the trigger is gone, which is a request as well.
        let _ = self.requested.wait_for(|requested| *requested).await;
    }
}

impl Trigger {
    /// Ask everything to stop.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }
}

/// A shutdown that the process's signals ask for and, when `supervised`, the end of standard input.
pub fn on_signals(supervised: bool) -> std::io::Result<Shutdown> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (trigger, shutdown) = Shutdown::new();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            () = end_of_input(), if supervised => tracing::info!("the supervisor is gone: stopping"),
        }
        trigger.request();
    });
    Ok(shutdown)
}

/// A read of standard input can't be cancelled. On a thread of its own, and not one of the runtime's, it keeps
/// neither the runtime nor the process from ending.
async fn end_of_input() {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Whatever it says and however it fails, it has ended then.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(ended);
    });
    let _ = end.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_sees_the_request_and_so_does_one_whose_trigger_is_gone() {
        let (trigger, shutdown) = Shutdown::new();
        let mut other = shutdown.clone();
        assert!(!shutdown.is_requested());
        trigger.request();
        other.requested().await;
        assert!(shutdown.is_requested());

        let (trigger, mut shutdown) = Shutdown::new();
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
