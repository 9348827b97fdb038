//! The supervisor with small shell scripts in the place of nodes.

use super::*;
use crate::shutdown::Trigger;

struct Watched {
    events: mpsc::Receiver<Event>,
    shutdown: Trigger,
    at_once: Trigger,
    task: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

fn watch(script: &str) -> Watched {
    let dir = tempfile::tempdir().unwrap();
    let program = Program {
        node: 1,
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        dir: dir.path().to_path_buf(),
        workers: 1,
        forward: false,
    };
    let (shutdown, requested) = Shutdown::new();
    let (at_once, now) = Shutdown::new();
    let (sender, events) = mpsc::channel(64);
    let task = tokio::spawn(supervise(program, requested, now, sender));
    Watched { events, shutdown, at_once, task, dir }
}

impl Watched {
    async fn started(&mut self) -> u32 {
        match self.events.recv().await {
            Some(Event::Started { pid, .. }) => pid,
            other => panic!("{other:?}"),
        }
    }

    async fn ended(&mut self) -> (String, Vec<String>, Duration) {
        match self.events.recv().await {
            Some(Event::Ended { how, tail, pause, .. }) => (how, tail, pause),
            other => panic!("{other:?}"),
        }
    }

    async fn line(&self, wanted: &str) {
        while !std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default().contains(wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_alive(pid: u32) -> bool {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_ok()
}

#[tokio::test]
async fn a_process_that_dies_is_started_again_and_its_last_words_are_kept() {
    let mut watched = watch("echo no luck >&2; exit 7");
    let first = watched.started().await;
    let (how, tail, pause) = watched.ended().await;
    assert_eq!((how.as_str(), tail.as_slice()), ("exit code 7", ["no luck".to_string()].as_slice()));
    let second = watched.started().await;
    assert_ne!(first, second);
    let (_, _, longer) = watched.ended().await;
    assert_eq!(longer, pause * 2, "the pause grows");
    watched.shutdown.request();
    watched.task.await.unwrap();
}

#[tokio::test]
async fn a_process_that_is_killed_is_started_again() {
    let mut watched = watch("exec sleep 1000");
    let pid = watched.started().await;
    let noted = std::fs::read_to_string(watched.dir.path().join("pid")).unwrap();
    assert_eq!(noted.trim(), pid.to_string());
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(watched.ended().await.0, "SIGKILL");
    let pid = watched.started().await;
    watched.shutdown.request();
    watched.task.await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn stopping_lets_a_process_finish() {
    let mut watched = watch("trap 'echo bye >&2; exit 0' TERM; echo ready >&2; while :; do sleep 0.01; done");
    let pid = watched.started().await;
    watched.line("ready").await;
    watched.shutdown.request();
    watched.task.await.unwrap();
    assert!(!is_alive(pid));
    let log = std::fs::read_to_string(watched.dir.path().join("log")).unwrap();
    assert_eq!(log, "ready\nbye\n");
    assert!(!watched.dir.path().join("pid").exists());
}

#[tokio::test]
async fn the_end_of_its_input_tells_a_process_that_the_supervisor_is_gone() {
    let mut watched = watch("cat; echo input ended >&2; exit 0");
    watched.started().await;
    // Dropping the supervisor closes the pipe, as the kernel does when it is killed; SIGTERM is not needed.
    watched.shutdown.request();
    watched.task.await.unwrap();
}

#[tokio::test]
async fn who_does_not_stop_is_ended_at_once_when_asked() {
    let mut watched = watch("trap '' TERM; echo ready >&2; while :; do sleep 0.01; done");
    let pid = watched.started().await;
    watched.line("ready").await;
    watched.shutdown.request();
    watched.at_once.request();
    watched.task.await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program {
        node: 1,
        path: dir.path().join("missing"),
        args: Vec::new(),
        dir: dir.path().to_path_buf(),
        workers: 1,
        forward: false,
    };
    let (shutdown, requested) = Shutdown::new();
    let (_at_once, now) = Shutdown::new();
    let (sender, mut events) = mpsc::channel(64);
    let task = tokio::spawn(supervise(program, requested, now, sender));
    let Some(Event::Ended { how, .. }) = events.recv().await else { panic!("no end") };
    assert!(how.contains("can't be started"), "{how}");
    shutdown.request();
    task.await.unwrap();
}
