//! Pods on the network that CNI's own plugins make: bridge, host-local and portmap.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use bulkhead_tests::{
    Container, ContainerSpec, DEADLINE, Daemon, DaemonOptions, Pod, PodSpec, assert_refused, until,
};
use serde_json::json;
use tonic::Code;

/// The addresses of a pod, as PodSandboxStatus has them: IPv4, then IPv6.
fn addresses(pod: &Pod<'_>) -> [IpAddr; 2] {
    let status = pod.try_status().expect("a status");
    let network = status.network.expect("a network in the status");
    let parse = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|_| panic!("{network:?}"));
    let [second] = network.additional_ips.as_slice() else {
        panic!("{network:?}")
    };
    let (first, second) = (parse(&network.ip), parse(&second.ip));
    assert!(first.is_ipv4() && second.is_ipv6(), "{network:?}");
    [first, second]
}

/// An address as a URL has it.
fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// A container that answers every request to its port 80 with `text`.
fn web_server<'p>(pod: &'p Pod<'_>, text: &str) -> Container<'p> {
    let container = pod.run(ContainerSpec::sh(&format!(
        "mkdir /www && echo {text} > /www/index.html && exec httpd -f -p 80 -h /www"
    )));
    wait_for_listener(&container, 80);
    container
}

/// Waits until somebody in the container's pod listens on a port of TCP.
fn wait_for_listener(container: &Container<'_>, port: u16) {
    until(&format!("port {port} to be listened on"), || {
        let listening = container.sh(&format!("netstat -ltn | grep -c ':{port} ' || true"));
        if listening == "0" {
            Err("nobody listens".to_owned())
        } else {
            Ok(())
        }
    });
}

#[track_caller]
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("a program of the node");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

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
fn pods_and_their_host_reach_each_other() {
    let daemon = Daemon::shared();
    let (first, second) = (
        daemon.run_pod(PodSpec::new("server")),
        daemon.run_pod(PodSpec::new("client")),
    );
    let _server = web_server(&first, "hello-from-a-pod");
    let client = second.run(ContainerSpec::idle());
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (address, gateway) in addresses(&first).into_iter().zip(["10.88.0.1", "fd88::1"]) {
        let url = format!("http://{}/", in_url(address));
        assert_eq!(client.sh(&format!("wget -q -O - '{url}'")), "hello-from-a-pod");
        assert_eq!(
            host("curl", &["-sSf", "-g", "--max-time", "60", &url]).trim(),
            "hello-from-a-pod"
        );
        host("ping", &["-c", "1", "-W", "60", &address.to_string()]);
        // And from a pod to its host.
        let answering = listener.try_clone().unwrap();
        let answer = thread::spawn(move || {
            let (mut connection, peer) = answering.accept().unwrap();
            connection.write_all(b"hello from the host").unwrap();
            peer.ip()
        });
        let got = client.sh(&format!("nc -w 60 {gateway} {port} < /dev/null"));
        assert_eq!(got, "hello from the host");
        let seen = answer.join().unwrap().to_canonical();
        assert!(addresses(&second).contains(&seen), "the host saw {seen}");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_port_of_the_host_leads_to_its_pod_and_belongs_to_it() {
    const PORT: u16 = 18_080;
    let daemon = Daemon::shared();
    let mapped = |name: &str| {
        let mapping = json!([{ "protocol": 0, "container_port": 80, "host_port": PORT }]);
        PodSpec::new(name).with("/port_mappings", mapping)
    };
    let pod = daemon.run_pod(mapped("mapped"));
    let _server = web_server(&pod, "behind-a-port");
    let own = host("ip", &["-4", "-o", "address", "show", "dev", "cni0"]);
    assert!(own.contains("10.88.0.1"), "{own}");
    for address in ["127.0.0.1", "10.88.0.1"] {
        let url = format!("http://{address}:{PORT}/");
        assert_eq!(
            host("curl", &["-sSf", "--max-time", "60", &url]).trim(),
            "behind-a-port"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("second.json");
    std::fs::write(&file, mapped("second").json()).unwrap();
    let said = daemon.crictl().fails(["runp", file.to_str().unwrap()]);
    for word in ["FailedPrecondition", &PORT.to_string(), pod.id()] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    pod.remove();
    // Free again.
    let pod = daemon.run_pod(mapped("third"));
    let _server = web_server(&pod, "another-behind-it");
    let url = format!("http://127.0.0.1:{PORT}/");
    assert_eq!(
        host("curl", &["-sSf", "--max-time", "60", &url]).trim(),
        "another-behind-it"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn megabytes_and_large_packets_arrive_bit_for_bit() {
    const BYTES: usize = 16 << 20;
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("bulk"));
    let container = pod.run(ContainerSpec::sh("exec nc -ll -p 7 -e cat"));
    wait_for_listener(&container, 7);
    let sent: Vec<u8> = (0..BYTES)
        .map(|at| (at * 31 + at / 4096).to_le_bytes()[0])
        .collect();
    for address in addresses(&pod) {
        let mut stream = TcpStream::connect((address, 7)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let to_send = sent.clone();
        let sending = thread::spawn(move || writer.write_all(&to_send).unwrap());
        let mut got = vec![0; BYTES];
        stream.read_exact(&mut got).unwrap();
        sending.join().unwrap();
        assert!(got == sent, "what came back by {address} differs");
        // In some forty fragments each way, whose bytes ping compares.
        let said = host(
            "ping",
            &[
                "-c",
                "5",
                "-i",
                "0.2",
                "-s",
                "60000",
                "-W",
                "60",
                &address.to_string(),
            ],
        );
        assert!(
            said.contains(" 0% packet loss") && !said.contains("wrong data"),
            "{said}"
        );
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn two_processors_have_two_pairs_of_queues() {
    // However few processors the node has.
    let daemon = Daemon::private(DaemonOptions::new().config("vm.max_vcpus", 2));
    let resources = json!({ "cpu_quota": 200_000, "cpu_period": 100_000 });
    let pod = daemon.run_pod(PodSpec::new("queues").with("/linux/resources", resources));
    let container = pod.run(ContainerSpec::idle());
    assert_eq!(container.sh("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), "2");
    let [v4, v6] = addresses(&pod);
    host("ping", &["-c", "3", "-i", "0.2", "-W", "60", &v4.to_string()]);
    host("ping", &["-c", "3", "-i", "0.2", "-W", "60", &v6.to_string()]);
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
    let request = bulkhead_proto::cri::RunPodSandboxRequest {
        config: Some(PodSpec::new("lonely").config()),
        runtime_handler: String::new(),
    };
    let refused = daemon.cri().runtime(async |c| c.run_pod_sandbox(request).await);
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
