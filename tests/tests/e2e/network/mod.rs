//! Pods on the networks that CNI's own plugins make, and on those of plugins that misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what tests share ends the test at the first thing that is not as it should be, as tests themselves do"
)]

mod bad_plugins;
mod bulk;
mod configuration;
mod families;
mod host_ports;
mod limits;
mod names;
mod outside;
mod private;
mod reach;
mod restarts;

use std::{net::IpAddr, process::Command};

use bulkhead_tests::{Container, ContainerSpec, Pod, until};

/// The addresses of a pod, as PodSandboxStatus has them, the main one first.
#[track_caller]
fn all_addresses(pod: &Pod<'_>) -> Vec<IpAddr> {
    let status = pod.try_status().expect("a status");
    let network = status.network.expect("a network in the status");
    let parse = |text: &String| text.parse::<IpAddr>().unwrap_or_else(|_| panic!("{network:?}"));
    let others = network.additional_ips.iter().map(|other| &other.ip);
    std::iter::once(&network.ip).chain(others).map(parse).collect()
}

/// The addresses of a pod that has one of each family: IPv4, then IPv6.
#[track_caller]
fn addresses(pod: &Pod<'_>) -> [IpAddr; 2] {
    let all = all_addresses(pod);
    let [first, second] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert!(first.is_ipv4() && second.is_ipv6(), "{all:?}");
    [*first, *second]
}

/// An address as a URL has it.
fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// A container that answers every request to its port 80 with `text`.
#[track_caller]
fn web_server<'p>(pod: &'p Pod<'_>, text: &str) -> Container<'p> {
    let container = pod.run(ContainerSpec::sh(&format!(
        "mkdir /www && echo {text} > /www/index.html && exec httpd -f -p 80 -h /www"
    )));
    wait_for_listener(&container, "tcp", 80);
    container
}

/// Waits until somebody in the container's pod listens on a port, or has it bound where the protocol, "tcp" or "udp", has
/// no listening.
#[track_caller]
fn wait_for_listener(container: &Container<'_>, protocol: &str, port: u16) {
    let flag = match protocol {
        "tcp" => "-ltn",
        _ => "-lun",
    };
    until(&format!("{protocol} port {port} to be listened on"), || {
        let listening = container.sh(&format!("netstat {flag} | grep -c ':{port} ' || true"));
        if listening == "0" {
            Err("nobody listens".to_owned())
        } else {
            Ok(())
        }
    });
}

/// Runs a program of the node, which must succeed; what it printed.
#[track_caller]
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `curl` gets from the node for `url`, after `before` such as `nsenter`.
#[track_caller]
fn curl(before: &[&str], url: &str) -> String {
    let words = [before, &["curl", "-sSf", "-g", "--max-time", "60", url]].concat();
    host(words[0], &words[1..]).trim().to_owned()
}
