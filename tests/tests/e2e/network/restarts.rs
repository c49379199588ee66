//! What of the network outlives a daemon, and what a later one finds, frees and checks.

use std::{fs, thread};

use bulkhead_proto::cri::PodSandboxState;
use bulkhead_tests::{Daemon, PodSpec, until};
use rustix::process::Signal;
use serde_json::json;

use super::{all_addresses, private::PrivateNetwork};

const NOTHING: [String; 0] = [];

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_daemon_killed_in_the_middle_of_add_leaves_no_address_and_no_namespace() {
    let network = PrivateNetwork::new();
    let sign = network.path("adding");
    network.script(
        "slow",
        r#"[ "$CNI_COMMAND" != ADD ] || [ ! -e "$directory/slow" ] || { echo $$ > "$directory/adding"; exec sleep 600; }"#,
    );
    network.configure(&json!([network.bridge_with_addresses(1), { "type": "slow" }]));
    let daemon = Daemon::private(network.options());
    fs::write(network.path("slow"), "").unwrap();
    let plugin = thread::scope(|scope| {
        let call = scope.spawn(|| daemon.try_run_pod(&PodSpec::new("cut-short")));
        let plugin = until("the slow plugin to be at its work", || {
            let number = fs::read_to_string(&sign).unwrap_or_default();
            number.trim().parse::<u32>().map_err(|error| error.to_string())
        });
        assert_eq!(network.held().len(), 2, "an address and a port of the bridge");
        daemon.end_with(Signal::KILL);
        assert!(call.join().unwrap().is_err(), "the call has lost its daemon");
        plugin
    });
    until("the plugin to have gone with its daemon", || {
        let process = format!("/proc/{plugin}");
        if fs::exists(&process).unwrap() {
            Err(process)
        } else {
            Ok(())
        }
    });
    fs::remove_file(network.path("slow")).unwrap();
    daemon.start_again();
    // From the first answer on.
    assert_eq!(daemon.crictl().ok(["pods", "-q"]), "");
    assert_eq!(network.held(), NOTHING);
    for directory in [daemon.root(), daemon.state()] {
        let left = fs::read_dir(directory.join("pods")).into_iter().flatten().count();
        assert_eq!(left, 0, "pods in {}", directory.display());
    }
    let pod = daemon.run_pod(PodSpec::new("next"));
    assert_eq!(all_addresses(&pod)[0].to_string(), network.v4("10"));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn after_a_reboot_the_addresses_of_the_pods_before_it_are_free() {
    let network = PrivateNetwork::new();
    network.configure(&json!([network.bridge_with_addresses(1)]));
    // The number of the boot is the daemon's alone; namespaces that are mounted there go with it and its machines.
    let boot = network.path("boot_id");
    let script = format!(
        r#"mount --bind {} /proc/sys/kernel/random/boot_id && exec "$@""#,
        boot.display()
    );
    fs::write(&boot, "11111111-1111-4111-8111-111111111111\n").unwrap();
    let daemon = Daemon::private(
        network
            .options()
            .through(&["unshare", "--mount", "sh", "-c", &script, "sh"]),
    );
    let before = daemon.run_pod(PodSpec::new("before"));
    assert_eq!(network.held().len(), 2);

    daemon.end_with(Signal::KILL);
    daemon.kill_machines();
    until("the namespace to have gone", || match network.held().as_slice() {
        [_address] => Ok(()),
        held => Err(format!("{held:?}")),
    });
    network.remove_bridge();
    fs::remove_dir_all(daemon.state()).unwrap();
    fs::write(&boot, "22222222-2222-4222-8222-222222222222\n").unwrap();
    daemon.start_again();

    assert_eq!(before.state(), PodSandboxState::SandboxNotready);
    assert_eq!(network.held(), NOTHING);
    let after = daemon.run_pod(PodSpec::new("after"));
    assert_eq!(all_addresses(&after)[0].to_string(), network.v4("10"));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_restarted_daemon_has_the_networks_of_its_pods_checked() {
    let network = PrivateNetwork::new();
    network.script(
        "inspector",
        r#"
        if [ "$CNI_COMMAND" = CHECK ]; then
            echo "$CNI_CONTAINERID" >> "$directory/checked"
            [ -e "$directory/fine" ] || { echo '{"code": 123, "msg": "the wire is cut"}'; exit 1; }
        fi"#,
    );
    // That of plugins 1.1 takes it for a fault when udev gives the host's end its hardware address after ADD.
    network.script(
        "bridge",
        r#"[ "$CNI_COMMAND" = CHECK ] || printf '%s' "$config" | /usr/lib/cni/bridge; exit"#,
    );
    network.configure(&json!([network.bridge_with_addresses(1), { "type": "inspector" }]));
    let daemon = Daemon::private(network.options());
    let pod = daemon.run_pod(PodSpec::new("checked"));
    let fault = || {
        let inspected = daemon.crictl().json(["inspectp", pod.id()]);
        inspected["info"]["networkFault"]
            .as_str()
            .map(str::to_owned)
            .unwrap()
    };
    assert!(
        !network.path("checked").exists(),
        "a pod that was just made is not checked"
    );

    daemon.end_with(Signal::TERM);
    daemon.start_again();
    until("the failure to be told", || {
        let fault = fault();
        if fault.contains("plugin inspector at CHECK: error 123: the wire is cut") {
            Ok(())
        } else {
            Err(fault)
        }
    });
    assert_eq!(
        fs::read_to_string(network.path("checked")).unwrap().trim(),
        pod.id()
    );
    let log = daemon.log();
    let told = log.lines().find(|line| line.contains("the wire is cut"));
    assert!(told.is_some_and(|line| line.contains(pod.id())), "{log}");
    // It is for the operator to know, and nothing else.
    assert_eq!(pod.state(), PodSandboxState::SandboxReady);

    fs::write(network.path("fine"), "").unwrap();
    daemon.end_with(Signal::TERM);
    daemon.start_again();
    until("the second check", || {
        let checked = fs::read_to_string(network.path("checked")).unwrap();
        if checked.lines().count() == 2 {
            Ok(())
        } else {
            Err(checked)
        }
    });
    assert_eq!(fault(), "");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_pods_hold_of_a_network_that_is_turned_off_is_freed_with_them() {
    let network = PrivateNetwork::new();
    network.configure(&json!([network.bridge_with_addresses(2)]));
    let daemon = Daemon::private(network.options());
    let (stopped, removed) = thread::scope(|scope| {
        let stopped = scope.spawn(|| daemon.run_pod(PodSpec::new("stopped")));
        let removed = daemon.run_pod(PodSpec::new("removed"));
        (stopped.join().unwrap(), removed)
    });
    assert_eq!(network.held().len(), 4);
    daemon.end_with(Signal::TERM);
    daemon.reconfigure("network.enabled", false);
    daemon.start_again();
    assert_eq!(network.held().len(), 4, "they live on");
    stopped.stop();
    assert_eq!(network.held().len(), 2);
    removed.remove();
    assert_eq!(network.held(), NOTHING);
    // And no other is attached.
    let lonely = daemon.run_pod(PodSpec::new("lonely"));
    let addresses = lonely.try_status().unwrap().network.unwrap();
    assert_eq!(addresses.ip, "");
    assert_eq!(network.held(), NOTHING);
}
