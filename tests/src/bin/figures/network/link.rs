//! A namespace on the pods' bridge, as CNI's bridge plugin makes one: and in front of a machine, a tap joined to its interface.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::run::run;

/// The bridge of the network "pods", which is there as soon as a pod is.
const BRIDGE: &str = "cni0";

/// Length of that network's prefix.
pub(super) const PREFIX: u8 = 16;

/// The tap's name in its namespace.
pub(super) const TAP: &str = "tap0";

/// A namespace, gone when this is dropped.
#[derive(Debug)]
pub(super) struct Namespace {
    name: &'static str,
    address: Ipv4Addr,
}

/// A program, ended when this is dropped.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Namespace {
    /// One with an interface that has this address. `name` names the bridge's end of it, too: at most 15 bytes.
    pub(super) fn plain(name: &'static str, address: [u8; 4]) -> Result<Self> {
        let namespace = Self::on_the_bridge(name, address)?;
        let address = format!("{}/{PREFIX}", namespace.address);
        namespace.ip(&["address", "add", &address, "dev", "eth0"])?;
        Ok(namespace)
    }

    /// One whose interface is joined to a tap: what comes in at one goes out at the other. The address is a guest's.
    pub(super) fn with_tap(name: &'static str, address: [u8; 4]) -> Result<Self> {
        let namespace = Self::on_the_bridge(name, address)?;
        namespace.ip(&["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])?;
        namespace.ip(&["link", "set", TAP, "up"])?;
        for (from, to) in [("eth0", TAP), (TAP, "eth0")] {
            namespace.tc(&["qdisc", "add", "dev", from, "ingress"])?;
            let filter = [
                "filter", "add", "dev", from, "parent", "ffff:", "protocol", "all", "matchall",
            ];
            let action = ["action", "mirred", "egress", "redirect", "dev", to];
            namespace.tc(&[&filter[..], &action].concat())?;
        }
        Ok(namespace)
    }

    fn on_the_bridge(name: &'static str, address: [u8; 4]) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let namespace = Self {
            name,
            address: Ipv4Addr::from(address),
        };
        let veth = [
            "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name,
        ];
        run("ip", &veth)?;
        run("ip", &["link", "set", name, "master", BRIDGE, "up"])?;
        namespace.ip(&["link", "set", "eth0", "up"])?;
        Ok(namespace)
    }

    /// Where it, or the guest in it, is reached.
    pub(super) fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// Starts a program in it.
    pub(super) fn run(&self, command: &[&str]) -> Result<Running> {
        let child = Command::new("ip")
            .args(["netns", "exec", self.name])
            .args(command)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("{command:?} does not start"))?;
        Ok(Running(child))
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run("ip", &[&["-n", self.name], arguments].concat()).map(drop)
    }

    fn tc(&self, arguments: &[&str]) -> Result<()> {
        run("tc", &[&["-n", self.name], arguments].concat()).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The other end of the veth goes with it.
        let _ = run("ip", &["netns", "delete", self.name]);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
