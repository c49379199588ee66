//! The `bulkhead` command and a daemon that runs something.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
};

use bulkhead_proto::cri::KeyValue;
use bulkhead_runtime::identity::short;

use crate::node::{Node, PATIENCE, until};

/// The command, for a node.
fn bulkhead(node: &Node, arguments: &[&str]) -> Command {
    let config: PathBuf = node.directory.path().join("config.toml");
    fs::write(&config, toml::to_string(&node.config).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.arg("--config").arg(config).args(arguments);
    command
}

/// What it prints.
fn printed(node: &Node, arguments: &[&str]) -> String {
    let output = bulkhead(node, arguments).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}");
    said
}

#[test]
fn top_and_logs_tell_of_a_pod() {
    let node = Node::new();
    let pod = node.run_pod("shown");
    let id = node.run(&pod, "inside", &["run"]);
    let table = printed(&node, &["top", "--once"]);
    let row = |id: &str| -> Vec<&str> {
        let row = table.lines().find(|line| line.contains(&id[..12])).unwrap();
        row.split_whitespace().collect()
    };
    let (machine, inside) = (row(&pod), row(&id));
    assert_eq!((machine[0], inside[0]), ("test/shown", "inside"), "{table}");
    for cells in [&machine, &inside] {
        assert!(cells[2].parse::<f64>().is_ok(), "{table}");
        assert!(
            cells[3].parse::<f64>().unwrap() > 0.0 && cells[4] == "MiB",
            "{table}"
        );
    }
    for id in [&pod, &id] {
        let log = printed(&node, &["logs", "--guest", &id[..12]]);
        assert!(log.starts_with("the double boots "), "{log}");
    }
}

#[test]
fn events_are_printed_as_they_happen() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let mut events = bulkhead(&node, &["events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(events.stdout.take().unwrap());
    let (line, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for told in output.lines() {
            // Nobody listens any more when the test has seen what it waited for.
            let _ = line.send(told.unwrap());
        }
    });
    // That the daemon has its call shows when it tells of something.
    until("a first event", || {
        let id = node.create(&pod, "any", &["run"]);
        node.remove_container(&id).unwrap();
        lines.try_recv().ok()
    });
    let id = node.create(&pod, "c", &["run"]);
    let next = || loop {
        let told = lines.recv_timeout(PATIENCE).unwrap();
        if let Some((_, told)) = told.split_once("  ").filter(|_| told.contains(&id[..12])) {
            break told.to_owned();
        }
    };
    let short = short(&id);
    assert_eq!(next(), format!("created  {short}  test/p/c"));
    node.start_container(&id).unwrap();
    assert_eq!(next(), format!("started  {short}  test/p/c"));
    node.stop_container(&id, 0).unwrap();
    assert_eq!(next(), format!("stopped  {short}  test/p/c  Error (137)"));
    node.remove_container(&id).unwrap();
    assert_eq!(next(), format!("deleted  {short}  test/p/?"));
    events.kill().unwrap();
    events.wait().unwrap();
    reader.join().unwrap();
}

#[test]
fn an_archive_for_a_bug_report_has_nothing_of_the_tenants() {
    let node = Node::new();
    let mut pod = node.pod_config("p");
    pod.annotations.insert("of".into(), "secret-annotation".into());
    let pod = node.try_run_pod(pod).unwrap();
    let mut config = node.container_config("c", &["say", "secret-output"]);
    config.envs = vec![KeyValue {
        key: "V".into(),
        value: "secret-variable".into(),
    }];
    let id = node.try_create(&pod, config).unwrap();
    node.start_container(&id).unwrap();
    node.wait_exited(&id);
    let archive = node.directory.path().join("debug.tar.gz");
    let said = printed(&node, &["debug", "--output", archive.to_str().unwrap()]);
    assert!(said.contains("look at it before you send it"), "{said}");

    let unpacked = flate2::read::GzDecoder::new(fs::File::open(archive).unwrap());
    let mut members = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(unpacked).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        members.insert(name, String::from_utf8_lossy(&bytes).into_owned());
    }
    let member = |name: &str| &members[&format!("bulkhead-debug/{name}")];
    assert!(member("check.txt").contains("KVM"));
    assert!(member("config.toml").contains(node.config.root.to_str().unwrap()));
    assert!(member("status.txt").contains("RuntimeReady"));
    assert!(member(&format!("pods/{pod}/status.txt")).contains("(17 bytes)"));
    assert!(member(&format!("pods/{pod}/console.txt")).contains("the double boots"));
    assert!(members.contains_key(&format!("bulkhead-debug/pods/{pod}/vmm.txt")));
    assert!(member(&format!("containers/{id}.txt")).contains("Completed"));
    for (name, text) in &members {
        for secret in ["secret-annotation", "secret-variable", "secret-output"] {
            assert!(!text.contains(secret), "{secret} is in {name}");
        }
    }
}
