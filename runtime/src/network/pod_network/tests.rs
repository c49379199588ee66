//! Tests of a pod's way into the network and out of it, with plugins that are shell scripts.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::network::{
    Protocol,
    cni::fake::{Call, FakePlugins},
    namespace,
};

/// A network of fake plugins, and a directory for a daemon.
struct Fixture {
    plugins: FakePlugins,
    directory: tempfile::TempDir,
}

impl Fixture {
    /// Nothing: namespaces cannot be made.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making a network namespace takes the rights of root");
            return None;
        }
        let fixture = Self {
            plugins: FakePlugins::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(fixture.path("net.d")).unwrap();
        fixture.plugins.add("main", MAIN);
        fixture.plugins.add_with_result("ports", &result());
        fixture.configure("10-net.conflist", "net");
        Some(fixture)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, file: &str, name: &str) {
        let list = json!({
            "name": name, "cniVersion": "1.1.0",
            "plugins": [{"type": "main"}, {"type": "ports", "capabilities": {"portMappings": true, "ipRanges": true}}],
        });
        fs::write(self.path("net.d").join(file), list.to_string()).unwrap();
    }

    fn open(&self) -> Arc<PodNetwork> {
        self.open_with(NetworkConfig::default())
    }

    fn open_with(&self, config: NetworkConfig) -> Arc<PodNetwork> {
        let config = NetworkConfig {
            conf_dir: self.path("net.d"),
            bin_dirs: vec![self.plugins.directory().to_owned()],
            plugin_timeout_seconds: 10,
            conf_template: self.path("template"),
            ..config
        };
        PodNetwork::open(&config, &self.path("root")).unwrap()
    }

    fn pod(&self, id: &str) -> Pod {
        let path = self.path(id);
        namespace::create(&path).unwrap();
        Pod {
            attachment: Attachment {
                pod_id: id.to_owned(),
                namespace_path: path,
                name: format!("{id}-name"),
                namespace: "default".to_owned(),
                uid: "u1".to_owned(),
                ..Attachment::default()
            },
        }
    }

    fn records(&self) -> usize {
        let records = fs::read_dir(self.path("root/network")).unwrap();
        records
            .filter(|entry| entry.as_ref().unwrap().file_name() != "pod-cidr")
            .count()
    }

    /// The calls so far without those of STATUS, which come when they come.
    fn calls(&self) -> Vec<Call> {
        let mut calls = self.plugins.calls();
        calls.retain(|call| call.command != "STATUS");
        calls
    }

    fn summaries(&self) -> Vec<String> {
        self.calls().iter().map(Call::summary).collect()
    }
}

/// A pod's namespace.
struct Pod {
    attachment: Attachment,
}

impl Drop for Pod {
    fn drop(&mut self) {
        namespace::remove(&self.attachment.namespace_path).unwrap();
    }
}

/// Makes an interface with an address, as a plugin does.
const MAIN: &str = r#"
case "$CNI_COMMAND" in
ADD)
    nsenter --net="$CNI_NETNS" sh -e -c '
        ip link add eth0 type veth peer name far
        ip addr add 10.1.0.7/24 dev eth0
        ip link set far up
        ip link set eth0 up
        ip route add default via 10.1.0.1' || exit 1
    echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "far"}, {"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],
        "ips": [{"address": "10.1.0.7/24", "interface": 1}], "dns": {"nameservers": ["10.1.0.1"]}}' ;;
DEL) [ -z "$CNI_NETNS" ] || nsenter --net="$CNI_NETNS" ip link del eth0 2>/dev/null || true ;;
esac"#;

fn result() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "far"}, {"name": "eth0", "sandbox": "ns"}],
        "ips": [{"address": "10.1.0.7/24", "interface": 1}],
        "dns": {"nameservers": ["10.1.0.1"]},
    })
}

fn port(host_port: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp,
        host_port,
        container_port: 80,
        host_ip: None,
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_pod_is_attached_checked_and_detached() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let network = fixture.open();
    let mut pod = fixture.pod("pod1");
    pod.attachment.port_mappings = vec![port(8080), port(0)];
    let attached = network.attach(&pod.attachment).await.unwrap();
    assert_eq!(attached.ips, ["10.1.0.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(attached.interfaces.len(), 1);
    assert_eq!(attached.interfaces[0].taps.len(), 1);
    assert_eq!(attached.routes[0].destination.to_string(), "0.0.0.0/0");
    let calls = fixture.calls();
    assert_eq!(
        calls[0].arguments,
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod1-name;K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=u1"
    );
    assert_eq!(
        calls[1].input["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
    );
    network.check("pod1").await.unwrap();
    assert_eq!(fixture.summaries(), ["CHECK main", "CHECK ports"]);
    assert_eq!(fixture.records(), 1);
    network.detach("pod1").await.unwrap();
    assert_eq!(fixture.summaries(), ["DEL ports", "DEL main"]);
    assert_eq!(fixture.records(), 0);
    network.detach("pod1").await.unwrap();
    assert!(fixture.summaries().is_empty());
    let error = network.check("pod1").await.unwrap_err().to_string();
    assert_eq!(error, "pod pod1 is attached to no network");
}

#[tokio::test]
async fn a_check_gives_way_to_whoever_detaches_the_pod() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let network = fixture.open();
    let pod = fixture.pod("pod1");
    network.attach(&pod.attachment).await.unwrap();
    let sign = fixture.path("checking");
    let hanging = format!(
        r#"[ "$CNI_COMMAND" = CHECK ] && touch {} && sleep 600; exit 0"#,
        sign.display()
    );
    fixture.plugins.add("ports", &hanging);
    let (checked, detached) = tokio::join!(network.check("pod1"), async {
        while !sign.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let start = Instant::now();
        network.detach("pod1").await.map(|()| start.elapsed())
    });
    let error = checked.unwrap_err();
    assert!(matches!(error, NetworkError::CheckGivenUp(_)), "{error}");
    assert!(
        detached.unwrap() < Duration::from_secs(9),
        "it waited for the check"
    );
    assert_eq!(fixture.records(), 0);
}

#[tokio::test]
async fn a_network_that_is_turned_off_still_lets_its_pods_go() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (stopped, gone) = (fixture.pod("pod1"), fixture.pod("pod2"));
    {
        let network = fixture.open();
        network.attach(&stopped.attachment).await.unwrap();
        network.attach(&gone.attachment).await.unwrap();
    }
    fixture.plugins.calls();
    let network = fixture.open_with(NetworkConfig {
        enabled: false,
        ..NetworkConfig::default()
    });
    assert_eq!(network.readiness(), Ok(()));
    let new = fixture.pod("pod3");
    let error = network.attach(&new.attachment).await.unwrap_err().to_string();
    assert!(error.contains("network.enabled"), "{error}");
    assert!(network.collect(&["pod1".to_owned()]).await.is_empty());
    network.detach("pod1").await.unwrap();
    assert_eq!(fixture.records(), 0);
    // And nobody asks plugins what nobody wants to know.
    let summaries: Vec<_> = fixture.plugins.calls().iter().map(Call::summary).collect();
    assert_eq!(
        summaries,
        [
            "DEL ports",
            "DEL main",
            "GC main",
            "GC ports",
            "DEL ports",
            "DEL main"
        ]
    );
}

#[tokio::test]
async fn what_failed_midway_is_undone_and_the_ports_are_free_again() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let network = fixture.open();
    let mut pod = fixture.pod("pod1");
    pod.attachment.port_mappings = vec![port(8080)];
    fixture.plugins.add(
        "ports",
        r#"[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"code": 11, "msg": "busy"}'; exit 1"#,
    );
    let error = network.attach(&pod.attachment).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "CNI network net: plugin ports at ADD: error 11 (try again later): busy"
    );
    assert_eq!(
        fixture.summaries(),
        ["ADD main", "ADD ports", "DEL ports", "DEL main"]
    );
    assert_eq!(fixture.records(), 0);
    // Undoing fails as well: it is remembered, tried again, and the ports are kept until then.
    fixture.plugins.add("ports", "exit 1");
    let error = network.attach(&pod.attachment).await.unwrap_err().to_string();
    assert!(
        error.contains("at ADD") && error.contains("could not be undone"),
        "{error}"
    );
    assert_eq!(fixture.records(), 1);
    let mut other = fixture.pod("pod2");
    other.attachment.port_mappings = vec![port(8080)];
    let error = network.attach(&other.attachment).await.unwrap_err().to_string();
    assert!(
        error.contains("host port 8080/tcp") && error.contains("default/pod1-name (pod1)"),
        "{error}"
    );
    assert!(network.detach("pod1").await.is_err());
    fixture.plugins.add_with_result("ports", &result());
    network.detach("pod1").await.unwrap();
    assert_eq!(fixture.records(), 0);
    network.attach(&other.attachment).await.unwrap();
    network.detach("pod2").await.unwrap();
}

#[tokio::test]
async fn an_interface_that_cannot_be_joined_is_given_back() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let network = fixture.open();
    let pod = fixture.pod("pod1");
    let wrong = json!({"interfaces": [{"name": "eth9", "sandbox": "ns"}], "ips": []});
    fixture.plugins.add_with_result("ports", &wrong);
    let error = network.attach(&pod.attachment).await.unwrap_err().to_string();
    assert!(error.contains("interface eth9"), "{error}");
    let calls = fixture.calls();
    let summaries: Vec<_> = calls.iter().map(Call::summary).collect();
    assert_eq!(summaries, ["ADD main", "ADD ports", "DEL ports", "DEL main"]);
    assert_eq!(calls[2].input["prevResult"], wrong);
    // A network that makes nothing.
    fixture.plugins.add_with_result("main", &json!({}));
    fixture.plugins.add_with_result("ports", &json!({}));
    let error = network.attach(&pod.attachment).await.unwrap_err().to_string();
    assert!(
        error.contains("CNI network net gave the pod no address"),
        "{error}"
    );
    assert_eq!(fixture.records(), 0);
}

#[tokio::test]
async fn a_later_daemon_detaches_with_the_configuration_of_then() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let pod = fixture.pod("pod1");
    let gone = fixture.pod("pod2");
    {
        let network = fixture.open();
        network.attach(&pod.attachment).await.unwrap();
        network.attach(&gone.attachment).await.unwrap();
    }
    fs::remove_file(fixture.path("net.d/10-net.conflist")).unwrap();
    fixture.configure("20-other.conflist", "other");
    fixture.calls();
    let network = fixture.open();
    // One that is made before the old ones are looked at is none of them.
    let new = fixture.pod("pod3");
    network.attach(&new.attachment).await.unwrap();
    fixture.calls();
    assert!(network.collect(&["pod1".to_owned()]).await.is_empty());
    let calls = fixture.calls();
    let summaries: Vec<_> = calls.iter().map(Call::summary).collect();
    assert_eq!(
        summaries,
        [
            "DEL ports",
            "DEL main",
            "GC main",
            "GC ports",
            "GC main",
            "GC ports"
        ]
    );
    assert_eq!(
        (calls[0].container.as_str(), &calls[0].input["name"]),
        ("pod2", &json!("net"))
    );
    let valid = |call: &Call| call.input["cni.dev/valid-attachments"].clone();
    assert_eq!(calls[2].input["name"], "net");
    assert_eq!(
        valid(&calls[2]),
        json!([{"containerID": "pod1", "ifname": "eth0"}])
    );
    assert_eq!(calls[4].input["name"], "other");
    assert_eq!(
        valid(&calls[4]),
        json!([{"containerID": "pod3", "ifname": "eth0"}])
    );
    network.detach("pod3").await.unwrap();
    fixture.calls();
    fs::remove_dir_all(fixture.path("net.d")).unwrap();
    network.detach("pod1").await.unwrap();
    let calls = fixture.calls();
    assert_eq!(calls[0].input["name"], "net");
    assert_eq!(calls[0].input["prevResult"], result());
    assert_eq!(fixture.records(), 0);
}

#[tokio::test]
async fn an_add_that_a_crash_ended_is_deleted_at_the_next_start() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let pod = fixture.pod("pod1");
    {
        let network = fixture.open();
        // As a daemon that was killed in the middle of ADD leaves it: the intent is on disk, the result is not.
        let list = Arc::clone(locked(&network.inner.state).list.as_ref().unwrap());
        let entry = network.inner.entry(&pod.attachment, &list).unwrap();
        network.inner.put(&entry).await.unwrap();
    }
    let network = fixture.open();
    assert!(network.collect(&[]).await.is_empty());
    assert_eq!(fixture.records(), 0);
    let calls = fixture.calls();
    assert_eq!(calls[0].summary(), "DEL ports");
    assert_eq!(calls[0].input.get("prevResult"), None);
}

#[tokio::test]
async fn readiness_follows_the_directory_and_what_plugins_say() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fs::remove_dir_all(fixture.path("net.d")).unwrap();
    let network = fixture.open();
    let reason = network.readiness().unwrap_err();
    assert!(reason.contains("net.d does not exist"), "{reason}");
    let pod = fixture.pod("pod1");
    let error = network.attach(&pod.attachment).await.unwrap_err().to_string();
    assert!(error.starts_with("the network is not ready: "), "{error}");
    fs::create_dir(fixture.path("net.d")).unwrap();
    fixture.configure("10-net.conflist", "net");
    until("the network gets ready", || network.readiness().is_ok()).await;
    fixture.plugins.add(
        "main",
        r#"echo '{"code": 50, "msg": "no more addresses"}'; exit 1"#,
    );
    fixture.configure("05-first.conflist", "first");
    let says = |part: &'static str| {
        let network = &network;
        move || network.readiness().is_err_and(|reason| reason.contains(part))
    };
    until(
        "STATUS is heard",
        says("plugin main at STATUS: error 50 (not available): no more addresses"),
    )
    .await;
    fixture.plugins.remove("ports");
    fixture.configure("03-again.conflist", "again");
    until(
        "an executable is missed",
        says("plugin ports at STATUS: there is no such executable"),
    )
    .await;
    for file in ["03-again.conflist", "05-first.conflist", "10-net.conflist"] {
        fs::remove_file(fixture.path("net.d").join(file)).unwrap();
    }
    until("the files' end is noticed", says("there is no CNI configuration")).await;
}

#[tokio::test]
async fn the_pod_cidr_fills_the_template_and_is_remembered() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let template = r#"{"name": "made", "cniVersion": "1.0.0", "plugins": [
        {"type": "main", "ipam": {"subnet": "{{.PodCIDR}}"}}, {"type": "ports", "capabilities": {"ipRanges": true}}]}"#;
    fs::write(fixture.path("template"), template).unwrap();
    fs::remove_file(fixture.path("net.d/10-net.conflist")).unwrap();
    {
        let network = fixture.open();
        network.set_pod_cidr("").unwrap();
        for bad in [
            "10.1.0.0",
            "10.1.0.0/24,10.2.0.0/24",
            "10.1.0.0/24,fd00::/64,fd01::/64",
            "x",
        ] {
            let error = network.set_pod_cidr(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
        assert!(network.readiness().is_err());
        network.set_pod_cidr("10.1.0.0/24, fd00::/64").unwrap();
        network.readiness().unwrap();
        let made = fs::read_to_string(fixture.path("net.d/10-bulkhead.conflist")).unwrap();
        assert!(made.contains(r#""subnet": "10.1.0.0/24""#), "{made}");
        fs::write(fixture.path("template"), "{{.Nothing}}").unwrap();
        let error = network.set_pod_cidr("10.3.0.0/24").unwrap_err().to_string();
        assert!(
            error.contains("template") && error.contains("{{.Nothing}}"),
            "{error}"
        );
    }
    let network = fixture.open();
    let pod = fixture.pod("pod1");
    network.attach(&pod.attachment).await.unwrap();
    assert_eq!(
        fixture.calls()[1].input["runtimeConfig"],
        json!({"ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]})
    );
    network.detach("pod1").await.unwrap();
}

#[tokio::test]
async fn what_plugins_cannot_be_told_is_refused() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let network = fixture.open();
    let mut pod = fixture.pod("pod1");
    pod.attachment.name = "a;K8S_POD_UID=x".to_owned();
    let error = network.attach(&pod.attachment).await.unwrap_err().to_string();
    assert!(error.contains("metadata.name"), "{error}");
    assert!(fixture.summaries().is_empty());
}
