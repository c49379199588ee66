//! Logs that are written, reopened, gone on with and held up.

use std::fs;

use super::*;

fn paths(directory: &tempfile::TempDir) -> LogPaths {
    LogPaths {
        log: Some(directory.path().join("c/0.log")),
        note: directory.path().join("note"),
    }
}

/// Stream, tag and content of each record.
fn records(path: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect()
}

#[tokio::test]
async fn both_streams_are_in_one_file_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let paths = paths(&directory);
    let (writer, offsets) = LogWriter::open(paths.clone(), "c").unwrap();
    assert_eq!(offsets, Offsets::default());
    let log = paths.log.unwrap();
    assert!(log.exists(), "the log is there before anything is written");
    let (mut out, err) = (writer.input(Stream::Stdout), writer.input(Stream::Stderr));
    out.write("one\ntw".into()).await.unwrap();
    while out.written() < 4 {
        out.progress().await.unwrap();
    }
    err.write("oops\n".into()).await.unwrap();
    out.write("o".into()).await.unwrap();
    out.end().await.unwrap();
    err.end().await.unwrap();
    drop((out, err));
    assert_eq!(writer.finish().await, LogOutcome { lost: 0 });
    assert_eq!(records(&log), ["stdout F one", "stderr F oops", "stdout P two"]);
}

#[tokio::test]
async fn a_reopened_log_goes_on_in_a_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let paths = paths(&directory);
    let log = paths.log.clone().unwrap();
    let (writer, _) = LogWriter::open(paths, "c").unwrap();
    let mut out = writer.input(Stream::Stdout);
    out.write("one\n".into()).await.unwrap();
    while out.written() < 4 {
        out.progress().await.unwrap();
    }
    let old = log.with_extension("old");
    fs::rename(&log, &old).unwrap();
    writer.reopener().reopen().await.unwrap();
    assert!(log.exists());
    out.write("two\n".into()).await.unwrap();
    drop(out);
    writer.finish().await;
    assert_eq!(records(&old), ["stdout F one"]);
    assert_eq!(records(&log), ["stdout F two"]);
}

#[tokio::test]
async fn a_log_is_gone_on_with_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let paths = paths(&directory);
    for round in 0..2 {
        let (writer, offsets) = LogWriter::open(paths.clone(), "c").unwrap();
        assert_eq!(
            offsets,
            Offsets {
                stdout: 4 * round,
                stderr: 0
            }
        );
        let out = writer.input(Stream::Stdout);
        // The end of the second line is not there when the daemon is killed: it is asked for again.
        out.write("one\ntwo".into()).await.unwrap();
        drop(out);
        writer.finish().await;
    }
    assert_eq!(records(&paths.log.unwrap()), ["stdout F one", "stdout F one"]);
}

#[tokio::test]
async fn a_full_disk_holds_output_up_until_it_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let paths = LogPaths {
        log: Some("/dev/full".into()),
        note: directory.path().join("note"),
    };
    let (writer, _) = LogWriter::open(paths, "c").unwrap();
    let mut out = writer.input(Stream::Stdout);
    out.write("one\n".into()).await.unwrap();
    let held = tokio::time::timeout(Duration::from_millis(300), out.progress()).await;
    assert!(held.is_err(), "output that was not written counts as written");
    writer.give_up().cancel();
    assert_eq!(
        out.progress().await.unwrap(),
        4,
        "a container that ends is not held up for ever"
    );
    drop(out);
    assert_eq!(writer.finish().await, LogOutcome { lost: 4 });
}

#[tokio::test]
async fn a_container_without_a_log_is_not_held_up() {
    let directory = tempfile::tempdir().unwrap();
    let paths = LogPaths {
        log: None,
        note: directory.path().join("note"),
    };
    let (writer, _) = LogWriter::open(paths, "c").unwrap();
    let mut out = writer.input(Stream::Stdout);
    out.write("one\n".into()).await.unwrap();
    assert_eq!(out.progress().await.unwrap(), 4);
    drop(out);
    assert_eq!(writer.finish().await, LogOutcome { lost: 0 });
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let paths = LogPaths {
        log: Some("/proc/none/0.log".into()),
        note: directory.path().join("note"),
    };
    let message = LogWriter::open(paths, "c").unwrap_err().to_string();
    assert!(message.contains("/proc/none/0.log"), "{message}");
}
