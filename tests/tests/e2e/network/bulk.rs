//! Much of it: many bytes, many connections, large packets, several queues.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpStream, UdpSocket},
    thread,
};

use bulkhead_tests::{ContainerSpec, DEADLINE, Daemon, DaemonOptions, PodSpec};
use serde_json::json;

use super::{
    addresses, host, host_ports::echo_server, private::PrivateNetwork, wait_for_listener, web_server,
};

/// Bytes of which no 4 KiB are like the next.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 31 + at / 4096).to_le_bytes()[0])
        .collect()
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn megabytes_and_large_packets_arrive_bit_for_bit() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("bulk"));
    let container = pod.run(ContainerSpec::sh("exec nc -ll -p 7 -e cat"));
    wait_for_listener(&container, "tcp", 7);
    for (address, megabytes) in addresses(&pod).into_iter().zip([64, 16]) {
        let sent = pattern(megabytes << 20);
        let mut stream = TcpStream::connect((address, 7)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut got = vec![0; sent.len()];
        thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            stream.read_exact(&mut got).unwrap();
        });
        assert!(got == sent, "what came back by {address} differs");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "more came back by {address}");
        // In some forty fragments each way, whose bytes ping compares. One at a time: the guest's kernel drops answers when more
        // than two of 64 KiB wait to be sent.
        for _ in 0..5 {
            let to = address.to_string();
            let said = host("ping", &["-c", "1", "-s", "60000", "-W", "60", &to]);
            assert!(
                said.contains(" 0% packet loss") && !said.contains("wrong data"),
                "{said}"
            );
        }
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_thousand_short_connections_are_all_answered() {
    const CONNECTIONS: usize = 1000;
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("visited"));
    let _server = web_server(&pod, "one-of-a-thousand");
    let [v4, v6] = addresses(&pod);
    let visit = |address: IpAddr| {
        let mut connection = TcpStream::connect((address, 80)).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\none-of-a-thousand\n"), "{answer}");
    };
    thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for number in 0..CONNECTIONS / 4 {
                    visit(if (number + worker) % 2 == 0 { v4 } else { v6 });
                }
            });
        }
    });
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_largest_datagrams_pass_a_network_with_jumbo_frames_both_ways() {
    const MTU: u32 = 9000;
    let network = PrivateNetwork::new();
    let ranges = [network.v4("0/24"), network.v6("/64")].map(|subnet| PrivateNetwork::range(&subnet));
    let mut bridge = network.bridge(&ranges);
    bridge["mtu"] = json!(MTU);
    network.configure(&json!([bridge]));
    let daemon = Daemon::private(network.options());
    let pod = daemon.run_pod(PodSpec::new("jumbo"));
    let echo = echo_server(&pod);
    assert_eq!(echo.sh("cat /sys/class/net/eth0/mtu"), MTU.to_string());
    // What a datagram can have: 65,535 bytes less the headers of IPv4 and UDP, or of UDP alone.
    let families = [("0.0.0.0:0", 65_507, 28), ("[::]:0", 65_527, 48)];
    for (address, (here, length, headers)) in addresses(&pod).into_iter().zip(families) {
        // A frame of the full size passes whole.
        let size = (MTU - headers).to_string();
        host(
            "ping",
            &[
                "-c",
                "1",
                "-M",
                "do",
                "-s",
                &size,
                "-W",
                "60",
                &address.to_string(),
            ],
        );
        let sent = pattern(length);
        let socket = UdpSocket::bind(here).unwrap();
        socket.connect((address, 7)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(socket.send(&sent).unwrap(), length);
        let mut got = vec![0; 1 << 16];
        let came = socket.recv(&mut got).unwrap();
        assert!(
            got[..came] == sent,
            "{came} of {length} bytes came back by {address}, or others"
        );
    }
    // Eight fragments to each.
    let reassembled = echo.sh(
        "awk '/^Ip: [0-9]/ { print $16 }' /proc/net/snmp; awk '/Ip6ReasmOKs/ { print $2 }' /proc/net/snmp6",
    );
    assert!(
        reassembled
            .lines()
            .all(|count| count.parse::<u32>().is_ok_and(|count| count >= 1)),
        "{reassembled}"
    );
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
