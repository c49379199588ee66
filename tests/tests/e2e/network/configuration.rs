//! The directory with CNI's configurations, and what a pod has of the one that was chosen.

use bulkhead_tests::{ContainerSpec, Daemon, DaemonOptions, PodSpec, assert_refused, until};
use tonic::Code;

use super::addresses;

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pod_has_the_addresses_that_cni_gave_it() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("addresses"));
    let [v4, v6] = addresses(&pod);
    let inspected = daemon.crictl().json(["inspectp", pod.id()]);
    assert_eq!(inspected["status"]["network"]["ip"], v4.to_string());
    assert_eq!(
        inspected["status"]["network"]["additionalIps"][0]["ip"],
        v6.to_string()
    );

    let container = pod.run(ContainerSpec::idle());
    assert_eq!(container.sh("ls /sys/class/net | tr '\\n' ' '"), "eth0 lo");
    let shown = container.sh("ip -o address show dev eth0");
    for address in [format!("{v4}/16"), format!("{v6}/64")] {
        assert!(shown.contains(&address), "{shown}");
    }
    assert!(
        container
            .sh("ip route")
            .contains("default via 10.88.0.1 dev eth0")
    );
    assert!(
        container
            .sh("ip -6 route")
            .contains("default via fd88::1 dev eth0")
    );
    // Its name leads to it.
    let hosts = container.sh("cat /etc/hosts");
    assert!(
        hosts.contains(&format!("{v4}\t")) && hosts.contains(&format!("{v6}\t")),
        "{hosts}"
    );
    pod.stop();
    let network = pod.try_status().unwrap().network.unwrap();
    assert_eq!(network.ip, "", "a stopped pod has no address");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn without_a_network_configuration_no_pod_runs_and_the_status_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let shown = directory.path().to_str().unwrap().to_owned();
    let daemon = Daemon::private(DaemonOptions::new().config("network.conf_dir", shown.as_str()));
    let info = daemon.crictl().json(["info"]);
    let conditions = info["status"]["conditions"].as_array().unwrap().clone();
    let network = conditions
        .iter()
        .find(|condition| condition["type"] == "NetworkReady")
        .unwrap();
    assert_eq!(network["status"], false);
    assert!(
        network["message"].as_str().unwrap().contains(&shown),
        "{network:#}"
    );
    let refused = daemon.try_run_pod(&PodSpec::new("lonely"));
    assert_refused(refused, Code::FailedPrecondition, &[&shown]);
    // It is enough to put one there.
    std::fs::copy(
        "/etc/cni/net.d/10-pods.conflist",
        directory.path().join("10-pods.conflist"),
    )
    .unwrap();
    until("the configuration to be seen", || {
        let info = daemon.crictl().json(["info"]);
        let ready = info["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().all(|condition| condition["status"] == true));
        if ready { Ok(()) } else { Err(format!("{info:#}")) }
    });
    let pod = daemon.run_pod(PodSpec::new("sociable"));
    addresses(&pod);
}
