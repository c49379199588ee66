//! Standard streams.

use std::time::Duration;

use bulkhead_proto::agent::{self, STREAM_PORT, StreamKind, exit_status::How, limits::STREAM_WINDOW_BYTES};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tonic::Code;

use crate::{
    guest::SharedGuest,
    host::{Host, assert_refused, bind, container, read_all, shell},
};

/// Long enough for anything that is going to happen to have happened.
const WHILE: Duration = Duration::from_millis(300);

fn one_stream(script: &str) -> agent::ProcessSpec {
    let mut process = shell(script);
    process.stderr = false;
    process
}

pub async fn a_slow_reader_loses_nothing_and_the_agent_does_not_grow(guest: SharedGuest) {
    let total: usize = if guest.is_machine() {
        20_000_000
    } else {
        100_000_000
    };
    let host = Host::new(guest).await;
    let script = format!("yes 0123456789abcde | head -c {total}");
    host.create(container("c1", one_stream(&script))).await.unwrap();
    let mut stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
    host.start("c1").await.unwrap();
    let memory = async || {
        let mut request = container("look", shell("grep VmRSS /agent/1/status | tr -dc 0-9"));
        request.mounts = vec![bind("/proc", "/agent", &[])];
        host.run(request).await.ok().parse::<usize>().unwrap()
    };

    // Not acknowledged, no more than the window comes.
    let mut seen = vec![0; STREAM_WINDOW_BYTES];
    stdout.read_exact(&mut seen).await.unwrap();
    assert!(
        timeout(WHILE, stdout.read_u8()).await.is_err(),
        "more than the window was sent"
    );
    let before = memory().await;

    let mut position = seen.len();
    let mut part = vec![0; 100_000];
    stdout.write_all(&(position as u64).to_le_bytes()).await.unwrap();
    loop {
        let length = stdout.read(&mut part).await.unwrap();
        if length == 0 {
            break;
        }
        for (at, byte) in part[..length].iter().enumerate() {
            let expected = b"0123456789abcde\n"[(position + at) % 16];
            assert_eq!(*byte, expected, "at {}", position + at);
        }
        position += length;
        stdout.write_all(&(position as u64).to_le_bytes()).await.unwrap();
    }
    assert_eq!(position, total);
    assert_eq!(host.wait("c1", "").await.unwrap().how, Some(How::Exited(0)));
    let after = memory().await;
    println!("the agent took {before} KiB with a full window, and {after} KiB after {total} bytes");
    assert!(
        after < before + 1024,
        "the agent grew from {before} KiB to {after} KiB"
    );
    host.remove("c1").await.unwrap();
}

pub async fn a_new_connection_goes_on_where_the_old_one_ended(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let expected: String = (0..20000).fold(String::new(), |text, number| text + &format!("line {number}\n"));
    host.create(container("c1", one_stream(script))).await.unwrap();
    let mut stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
    host.start("c1").await.unwrap();
    let mut text = vec![0; 1000];
    stdout.read_exact(&mut text).await.unwrap();
    stdout.write_all(&600_u64.to_le_bytes()).await.unwrap();
    // The host dies with what it has not acknowledged, and comes back with what it had put away.
    drop(stdout);
    text.truncate(700);
    let stdout = host.stream("c1", "", StreamKind::Stdout, 700).await.unwrap();
    let waiting = host.wait("c1", "");
    tokio::pin!(waiting);
    assert!(
        timeout(WHILE, &mut waiting).await.is_err(),
        "the output is not acknowledged yet"
    );
    text.extend(read_all(stdout, 700).await.unwrap());
    assert!(
        text == expected.as_bytes(),
        "{} bytes instead of {}",
        text.len(),
        expected.len()
    );
    assert_eq!(waiting.await.unwrap().how, Some(How::Exited(0)));
    // What it has acknowledged is gone; where the stream ended, nothing more comes.
    let behind = host.stream("c1", "", StreamKind::Stdout, 699).await.unwrap_err();
    assert!(behind.contains("offset 699 is behind"), "{behind}");
    let ahead = host
        .stream("c1", "", StreamKind::Stdout, 1 << 40)
        .await
        .unwrap_err();
    assert!(ahead.contains("is ahead"), "{ahead}");
    let end = expected.len() as u64;
    let at_end = host.stream("c1", "", StreamKind::Stdout, end).await.unwrap();
    assert_eq!(read_all(at_end, end).await.unwrap(), b"");
    host.remove("c1").await.unwrap();
}

pub async fn stdin_is_passed_on_and_closed(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut process = one_stream("cat; echo end");
    process.stdin = true;
    host.create(container("c1", process.clone())).await.unwrap();
    let mut stdin = host.stream("c1", "", StreamKind::Stdin, 0).await.unwrap();
    let stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
    host.start("c1").await.unwrap();
    let reading = tokio::spawn(read_all(stdout, 0));
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    stdin.write_all(&sent).await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut received = reading.await.unwrap().unwrap();
    assert!(received.ends_with(b"end\n"));
    received.truncate(received.len() - 4);
    assert!(
        received == sent,
        "{} bytes instead of {}",
        received.len(),
        sent.len()
    );
    assert_eq!(host.wait("c1", "").await.unwrap().how, Some(How::Exited(0)));
    // The agent has closed its side, too.
    assert_eq!(stdin.read(&mut [0]).await.unwrap(), 0);
    host.remove("c1").await.unwrap();

    // A process that does not read holds the sender back.
    process.args[2] = "sleep 1000".to_owned();
    host.create(container("c2", process)).await.unwrap();
    let mut stdin = host.stream("c2", "", StreamKind::Stdin, 0).await.unwrap();
    host.start("c2").await.unwrap();
    let flood = timeout(3 * WHILE, stdin.write_all(&vec![0; 20_000_000])).await;
    assert!(flood.is_err(), "20 MB went to a process that reads nothing");
    host.remove("c2").await.unwrap();
}

pub async fn a_host_that_dies_does_not_close_stdin(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut process = one_stream("cat; echo end");
    process.stdin = true;
    host.create(container("c1", process)).await.unwrap();
    let mut stdin = host.stream("c1", "", StreamKind::Stdin, 0).await.unwrap();
    let mut stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
    host.start("c1").await.unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    let mut text = [0; 4];
    stdout.read_exact(&mut text).await.unwrap();
    drop(stdin);
    let mut stdin = host.stream("c1", "", StreamKind::Stdin, 0).await.unwrap();
    stdin.write_all(b"two\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let rest = read_all(stdout, 4).await.unwrap();
    assert_eq!(String::from_utf8(rest).unwrap(), "two\nend\n");
    host.remove("c1").await.unwrap();
}

pub async fn a_container_that_waits_for_its_disk_holds_up_no_other(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut process = one_stream("cat");
    process.stdin = true;
    host.create(container("c1", process)).await.unwrap();
    let mut stdin = host.stream("c1", "", StreamKind::Stdin, 0).await.unwrap();
    let mut stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
    host.start("c1").await.unwrap();

    let mut waiting = container("c2", shell("true"));
    waiting.layers[0].disk = "never".to_owned();
    let create = host.create(waiting);
    let others = async {
        for round in 0..50_u8 {
            stdin.write_all(&[round; 1000]).await.unwrap();
            let mut back = [0; 1000];
            stdout.read_exact(&mut back).await.unwrap();
            assert_eq!(back, [round; 1000]);
        }
        stdout.write_all(&50_000_u64.to_le_bytes()).await.unwrap();
        host.signal("c1", "", 9, false).await.unwrap();
        let status = host.wait("c1", "").await.unwrap();
        assert_eq!(status.how, Some(How::Signaled(9)));
        host.remove("c1").await.unwrap();
    };
    // The one that waits is asked for first, and still waits when the others are done.
    tokio::pin!(create);
    tokio::select! {
        biased;
        created = &mut create => panic!("it did not wait: {created:?}"),
        () = others => {}
    }
    assert_refused(create.await, Code::NotFound, "there is no disk with serial never");
}

pub async fn a_terminal_has_a_size_and_an_echo(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut process = shell(
        "tty; test -c /dev/console && echo console; stty size; read x; stty size; echo got $x; cat; echo end",
    );
    process.terminal = true;
    process.stdin = true;
    process.user = Some(agent::User {
        uid: Some(1000),
        ..agent::User::default()
    });
    host.create(container("c1", process)).await.unwrap();
    let resize = async |rows| {
        host.client
            .clone()
            .resize_terminal(agent::ResizeTerminalRequest {
                container_id: "c1".to_owned(),
                exec_id: String::new(),
                rows,
                columns: 100,
            })
            .await
    };
    resize(40).await.unwrap();
    assert!(resize(70_000).await.is_err());
    let mut stdin = host.stream("c1", "", StreamKind::Stdin, 0).await.unwrap();
    let mut stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
    assert!(host.stream("c1", "", StreamKind::Stderr, 0).await.is_err());
    host.start("c1").await.unwrap();
    let mut text = String::new();
    let mut position = 0_u64;
    while !text.contains("40 100\r\n") {
        let mut part = [0; 100];
        let length = stdout.read(&mut part).await.unwrap();
        position += length as u64;
        stdout.write_all(&position.to_le_bytes()).await.unwrap();
        text.push_str(std::str::from_utf8(&part[..length]).unwrap());
    }
    assert_eq!(text, "/dev/pts/0\r\nconsole\r\n40 100\r\n");
    resize(41).await.unwrap();
    stdin.write_all(b"word\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let rest = String::from_utf8(read_all(stdout, position).await.unwrap()).unwrap();
    assert_eq!(rest, "word\r\n41 100\r\ngot word\r\nend\r\n");
    assert_eq!(host.wait("c1", "").await.unwrap().how, Some(How::Exited(0)));

    // A second terminal, of an exec.
    host.start_idle(container("c2", shell("sleep 1000"))).await;
    let mut process = shell("tty; ps -o tty,args | grep -c '136,0'");
    process.terminal = true;
    let stdout = host.stream("c2", "e1", StreamKind::Stdout, 0).await.unwrap();
    host.exec("c2", "e1", process, 0).await.unwrap();
    let text = String::from_utf8(read_all(stdout, 0).await.unwrap()).unwrap();
    assert!(text.starts_with("/dev/pts/0\r\n"), "{text}");
    for id in ["c1", "c2"] {
        host.remove(id).await.unwrap();
    }
}

pub async fn bad_connections_are_refused(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let unknown = host.stream("c9", "", StreamKind::Stdout, 0).await.unwrap_err();
    assert!(unknown.contains("there is no container c9"), "{unknown}");
    let bad = host.stream("../c9", "", StreamKind::Stdout, 0).await.unwrap_err();
    assert!(bad.contains("names no process"), "{bad}");
    host.start_idle(container("c1", shell("sleep 1000"))).await;
    let none = host.stream("c1", "", StreamKind::Stdin, 0).await.unwrap_err();
    assert!(none.contains("has no stdin"), "{none}");
    let late = host.stream("c1", "e1", StreamKind::Stdout, 9).await.unwrap_err();
    assert!(late.contains("offset 9"), "{late}");
    let mut noise = host.guest.connect(STREAM_PORT).await.unwrap();
    noise.write_all(&[0xff; 64]).await.unwrap();
    let mut answer = Vec::new();
    noise.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("speaks another protocol"));
    // An acknowledgement of what was never sent ends the connection, not the process.
    let mut stdout = host.stream("c1", "e1", StreamKind::Stdout, 0).await.unwrap();
    host.exec("c1", "e1", one_stream("echo x; sleep 1000"), 0)
        .await
        .unwrap();
    stdout.write_all(&1000_u64.to_le_bytes()).await.unwrap();
    let mut text = Vec::new();
    stdout.read_to_end(&mut text).await.unwrap();
    let again = host.stream("c1", "e1", StreamKind::Stdout, 0).await.unwrap();
    let mut again = tokio::io::BufReader::new(again);
    let mut line = [0; 2];
    again.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"x\n");
    host.remove("c1").await.unwrap();
}

pub async fn a_process_without_streams_has_dev_null(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut process = one_stream("readlink /proc/self/fd/0; readlink /proc/self/fd/2; cat");
    process.stdin = false;
    let ended = {
        host.create(container("c1", process)).await.unwrap();
        let stdout = host.stream("c1", "", StreamKind::Stdout, 0).await.unwrap();
        host.start("c1").await.unwrap();
        read_all(stdout, 0).await.unwrap()
    };
    assert_eq!(String::from_utf8(ended).unwrap(), "/dev/null\n/dev/null\n");
    host.remove("c1").await.unwrap();
}
