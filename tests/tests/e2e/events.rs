//! Events with the real `crictl`.
#![allow(
    clippy::indexing_slicing,
    reason = "a test that goes wrong here has failed and says where"
)]

use std::{
    fs::{self, File},
    process::Child,
};

use bulkhead_tests::{ContainerSpec, Daemon, DaemonOptions, PodSpec, until};
use serde_json::{Deserializer, Value};

/// `crictl events`, ended with the test.
struct Watching {
    crictl: Child,
    file: tempfile::NamedTempFile,
}

impl Watching {
    fn start(daemon: &Daemon) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file for events");
        let output = File::create(file.path()).expect("the file for events");
        let crictl = daemon.crictl().start(["events"], output);
        Self { crictl, file }
    }

    /// What has come so far, as far as it is whole.
    fn told(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.file.path()).expect("crictl's output");
        Deserializer::from_str(&text)
            .into_iter()
            .map_while(Result::ok)
            .collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.crictl.kill();
        let _ = self.crictl.wait();
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn events_tell_a_pods_life_in_order() {
    let daemon = Daemon::private(DaemonOptions::new());
    let watching = [Watching::start(&daemon), Watching::start(&daemon)];
    // That the daemon has their calls shows when they tell of something.
    let probe = daemon.run_pod(PodSpec::new("probe"));
    until("crictl to listen", || {
        probe.create(ContainerSpec::idle());
        let told = watching.each_ref().map(|watching| watching.told().len());
        if told.contains(&0) {
            Err(format!("{told:?}"))
        } else {
            Ok(())
        }
    });
    let pod = daemon.run_pod(PodSpec::new("told"));
    let container = pod.run(ContainerSpec::sh("exit 3"));
    container.wait_exited();
    container.remove();
    pod.remove();
    let (pod_id, id) = (pod.id(), container.id());
    let expected = [
        (pod_id, "CONTAINER_CREATED_EVENT"),
        (pod_id, "CONTAINER_STARTED_EVENT"),
        (id, "CONTAINER_CREATED_EVENT"),
        (id, "CONTAINER_STARTED_EVENT"),
        (id, "CONTAINER_STOPPED_EVENT"),
        (id, "CONTAINER_DELETED_EVENT"),
        (pod_id, "CONTAINER_STOPPED_EVENT"),
        (pod_id, "CONTAINER_DELETED_EVENT"),
    ];
    for watching in &watching {
        let told = until("the pod's whole life to be told", || {
            let mut told = watching.told();
            told.retain(|event| event["containerId"] == pod_id || event["containerId"] == id);
            if told.len() < expected.len() {
                return Err(format!("{told:#?}"));
            }
            Ok(told)
        });
        let shown: Vec<_> = told
            .iter()
            .map(|event| {
                let text = |key: &str| event[key].as_str().unwrap_or_default();
                // crictl leaves out what is the first of its kind.
                let kind = match text("containerEventType") {
                    "" => "CONTAINER_CREATED_EVENT",
                    kind => kind,
                };
                (text("containerId"), kind)
            })
            .collect();
        assert_eq!(shown, expected);
        for event in &told {
            assert_eq!(
                event["podSandboxStatus"]["metadata"]["name"],
                pod.spec().name(),
                "{event:#}"
            );
        }
        let times: Vec<u64> = told.iter().map(created_at).collect();
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert_eq!(told[4]["containersStatuses"][0]["exitCode"], 3, "{:#}", told[4]);
    }
    drop(watching);
    probe.remove();
}

/// crictl prints 64 bits as text.
fn created_at(event: &Value) -> u64 {
    let text = event["createdAt"].as_str().unwrap_or_default();
    text.parse().unwrap_or_else(|_| panic!("{event:#}"))
}
