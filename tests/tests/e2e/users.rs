//! Who a container's processes are: users, groups, capabilities, privileges.

use bulkhead_proto::cri::LinuxContainerUser;
use bulkhead_tests::{Container, ContainerSpec, Daemon, Environment, PodSpec, create_arguments};
use serde_json::json;

/// Docker's fourteen capabilities, which CRI takes for the default: bits of `CapEff` in /proc/PID/status.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

fn ids(container: &Container<'_>) -> String {
    container.sh("echo $(id -u) $(id -g) $(id -G)")
}

fn user(container: &Container<'_>) -> LinuxContainerUser {
    let user = container.status().user.and_then(|user| user.linux);
    user.expect("ContainerStatus says who the first process is")
}

fn capabilities(container: &Container<'_>, set: &str) -> String {
    container.sh(&format!("sed -n 's/Cap{set}:\\t//p' /proc/1/status"))
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_user_is_a_number_or_a_name_of_the_images_passwd() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("users"));
    let value = |id: i64| json!({ "value": id });
    let of_image = |name: &str| ContainerSpec::of(name).command(&["top", "-b", "-d", "3600"]);
    let tools = "k8s-staging-cri-tools/test-image-user";
    for (spec, expected) in [
        (ContainerSpec::idle(), "0 0 0"),
        (
            ContainerSpec::idle().security("run_as_user", value(4242)),
            "4242 0 0",
        ),
        (
            ContainerSpec::idle().security("run_as_user", value(33)),
            "33 33 33",
        ),
        (
            ContainerSpec::idle().security("run_as_username", "www-data"),
            "33 33 33",
        ),
        (
            ContainerSpec::idle()
                .security("run_as_user", value(33))
                .security("run_as_group", value(7)),
            "33 7 7",
        ),
        (
            ContainerSpec::idle()
                .security("run_as_user", value(1000))
                .security("supplemental_groups", json!([9, 8, 8])),
            "1000 0 0 8 9",
        ),
        (of_image(&format!("{tools}-uid")), "1002 0 0"),
        (of_image(&format!("{tools}-username")), "33 33 33"),
        (of_image(&format!("{tools}-uid-group")), "1003 1004 1004"),
        (of_image(&format!("{tools}-username-group")), "33 1004 1004"),
        // What the pod says counts more than what the image says.
        (
            of_image(&format!("{tools}-uid-group")).security("run_as_user", value(33)),
            "33 33 33",
        ),
    ] {
        let container = pod.run(spec.clone());
        assert_eq!(ids(&container), expected, "{}", spec.json());
        let mut numbers = expected
            .split(' ')
            .map(|number| number.parse::<i64>().expect("a number"));
        let user = user(&container);
        assert_eq!(Some(user.uid), numbers.next(), "{user:?}");
        assert_eq!(Some(user.gid), numbers.next(), "{user:?}");
        let mut groups = user.supplemental_groups.clone();
        groups.sort_unstable();
        assert_eq!(groups, numbers.collect::<Vec<_>>(), "{user:?}");
        container.remove();
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn groups_of_the_image_are_merged_or_not_as_asked() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("groups"));
    let spec = |policy: i32| {
        ContainerSpec::of("k8s-staging-cri-tools/test-image-predefined-group")
            .command(&["top", "-b", "-d", "3600"])
            .security("supplemental_groups", json!([1234]))
            .security("supplemental_groups_policy", policy)
    };
    assert_eq!(ids(&pod.run(spec(0))), "1000 1000 1000 1234 50000", "Merge");
    assert_eq!(ids(&pod.run(spec(1))), "1000 1000 1000 1234", "Strict");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn users_that_cannot_be_are_refused() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("no-user"));
    daemon.pull_once(&Environment::get().image("busybox:latest"));
    for (spec, words) in [
        (
            ContainerSpec::idle().security("run_as_username", "nobody-here"),
            ["nobody-here", "passwd"],
        ),
        (
            ContainerSpec::idle().security("run_as_group", json!({ "value": 5 })),
            ["run_as_group", "run_as_user"],
        ),
        (
            ContainerSpec::idle().security("run_as_user", json!({ "value": -5 })),
            ["run_as_user", "-5"],
        ),
        (
            ContainerSpec::idle().security("run_as_user", json!({ "value": 4_294_967_296_i64 })),
            ["run_as_user", "4294967296"],
        ),
        (
            ContainerSpec::idle().security("capabilities", json!({ "add_capabilities": ["NO_SUCH"] })),
            ["capabilit", "NO_SUCH"],
        ),
    ] {
        let output = daemon.crictl().run(create_arguments(&pod, &spec));
        let said = if output.code == Some(0) {
            // Who is in the image's passwd may be known only when the process is made.
            daemon.crictl().fails(["start", output.stdout.trim()])
        } else {
            output.stderr
        };
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    }
    let left = daemon
        .crictl()
        .ok(["ps", "-a", "-q", "--state", "Created", "--pod", pod.id()]);
    assert_eq!(left, "", "a refused container is not listed");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn capabilities_are_the_default_ones_with_what_is_added_and_dropped() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("capabilities"));
    let with = |capabilities: serde_json::Value| ContainerSpec::idle().security("capabilities", capabilities);
    for (spec, expected) in [
        (ContainerSpec::idle(), DEFAULT_CAPABILITIES),
        // NET_ADMIN is bit 12, NET_RAW bit 13, CHOWN bit 0.
        (
            with(json!({ "add_capabilities": ["net_admin"] })),
            "00000000a80435fb",
        ),
        (
            with(json!({ "drop_capabilities": ["NET_RAW", "CHOWN"] })),
            "00000000a80405fa",
        ),
        (
            with(json!({ "drop_capabilities": ["ALL"], "add_capabilities": ["CHOWN"] })),
            "0000000000000001",
        ),
        (with(json!({ "drop_capabilities": ["all"] })), "0000000000000000"),
    ] {
        let container = pod.run(spec.clone());
        for set in ["Eff", "Prm", "Bnd"] {
            assert_eq!(
                capabilities(&container, set),
                expected,
                "Cap{set} of {}",
                spec.json()
            );
        }
        for set in ["Inh", "Amb"] {
            assert_eq!(
                capabilities(&container, set),
                "0000000000000000",
                "Cap{set} of {}",
                spec.json()
            );
        }
        container.remove();
    }
    let all = pod.run(with(
        json!({ "add_capabilities": ["ALL"], "drop_capabilities": ["CHOWN"] }),
    ));
    let last: u32 = all
        .sh("cat /proc/sys/kernel/cap_last_cap")
        .parse()
        .expect("a number");
    assert_eq!(
        capabilities(&all, "Eff"),
        format!("{:016x}", (1u64 << (last + 1)) - 2),
        "all but CHOWN"
    );

    let user = pod.run(ContainerSpec::idle().security("run_as_user", json!({ "value": 1000 })));
    assert_eq!(
        capabilities(&user, "Eff"),
        "0000000000000000",
        "one who is not root has none in effect"
    );
    assert_eq!(capabilities(&user, "Bnd"), DEFAULT_CAPABILITIES);
    assert_ne!(user.exec(&["chown", "0", "/tmp"]).code, 0);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn no_new_privileges_makes_setuid_programs_powerless() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("privileges"));
    let spec = |no_new_privs: bool| {
        ContainerSpec::of("e2e-test-images/nonewprivs:1.3")
            .security("run_as_user", json!({ "value": 1000 }))
            .security("no_new_privs", no_new_privs)
    };
    for (no_new_privs, expected) in [(false, "Effective uid: 0"), (true, "Effective uid: 1000")] {
        let container = pod.run(spec(no_new_privs));
        assert_eq!(container.wait_exited().exit_code, 0);
        assert_eq!(daemon.crictl().ok(["logs", container.id()]), expected);
    }
}
