//! `network`: one TCP stream each way and round trips of one byte, between the host and a pod, against a plain namespace and
//! against QEMU's virtio-net with the same guest's kernel.
//!
//! At the far ends runs the same program, `wire`, and the host, where the time is taken, talks to one of them at a time, in
//! many short turns, because what else the machine does changes from second to second. All are on the network's bridge by a veth of their own: the plain namespace has the other end of it, and in front of
//! the machines it is joined to a tap by the same redirect of tc both ways as the daemon makes. So between the pod and QEMU's
//! guests only the machine differs: one virtual CPU and 128 MiB for each, one pair of queues, offloads as each comes. The pod's
//! agent and its container's namespaces are there, too; QEMU's guest has nothing but busybox to set up its interface.
//!
//! QEMU moves packets itself (vhost=off), as ours does. What the host's kernel does for it (vhost=on) is shown beside.

mod link;
mod qemu;
mod traffic;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use bulkhead_tests::{
    ContainerSpec, Daemon, DaemonOptions, PodSpec,
    registry::{Archive, Image, Layer, Registry},
};
use serde_json::json;

use self::{
    link::Namespace,
    qemu::{Backend, Machine},
};
use crate::figure::{Figure, in_seconds};

const SAMPLES: usize = 15;

/// The program at the far ends.
const WIRE: &str = "/opt/bulkhead/bench/wire";

/// The port it listens on.
const PORT: u16 = 5201;

/// Memory of all machines, in MiB.
const MEMORY_MIB: u16 = 128;

/// What one turn with a far end took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Mebibytes a second, to the far end.
    to: f64,
    /// Mebibytes a second, from the far end.
    from: f64,
    /// One round trip.
    trip: Duration,
}

/// One that is measured.
struct FarEnd {
    name: &'static str,
    address: SocketAddr,
    samples: Vec<Sample>,
}

pub fn measure() -> Result<()> {
    let daemon = Daemon::private(DaemonOptions::new().config("vm.memory_mib", i64::from(MEMORY_MIB)));
    let registry = Registry::start();
    let image = registry.push("wire:latest", &image()?);
    // The pod first: its plugins make the bridge.
    let pod = daemon.run_pod(PodSpec::new("wire"));
    let _container = pod.run(ContainerSpec::of(&image));
    let status = pod.try_status()?;
    let address = status.network.context("the pod is on no network")?.ip;

    let plain = Namespace::plain("wire-plain", [10, 88, 255, 1])?;
    let _served = plain.run(&[WIRE, &PORT.to_string()])?;
    let machine = Machine::boot("wire-qemu", [10, 88, 255, 2], Backend::Itself)?;
    let vhost = Machine::boot("wire-vhost", [10, 88, 255, 3], Backend::Kernel);
    if let Err(error) = &vhost {
        eprintln!("figures network: nothing is measured with vhost: {error:#}");
    }

    let mut ends = vec![
        FarEnd::at("pod", address.parse()?),
        FarEnd::at("a plain namespace", plain.address()),
        FarEnd::at("QEMU, vhost=off", machine.address()),
    ];
    ends.extend(
        vhost
            .iter()
            .map(|machine| FarEnd::at("QEMU, vhost=on", machine.address())),
    );
    for end in &mut ends {
        end.warm_up()?;
    }
    for _ in 0..SAMPLES {
        for end in &mut ends {
            end.sample().with_context(|| format!("with {}", end.name))?;
        }
    }
    tell(&ends);
    Ok(())
}

fn tell(ends: &[FarEnd]) {
    let [ours, peers @ ..] = ends else { return };
    for peer in peers {
        let is_rival = peer.name == "QEMU, vhost=off";
        let stream = |name: &str, of: fn(&Sample) -> f64| {
            let figure = Figure::of(name, "MiB/s", &ours.all(of)).beside(peer.name, &peer.all(of));
            if is_rival {
                figure.goal_ratio_least(1.2)
            } else {
                figure
            }
            .print();
        };
        stream("network: stream to the pod", |sample| sample.to);
        stream("network: stream from the pod", |sample| sample.from);
        let trips = |end: &FarEnd| end.samples.iter().map(|sample| sample.trip).collect::<Vec<_>>();
        let figure = Figure::seconds("network: round trip of a byte", &trips(ours))
            .beside(peer.name, &in_seconds(&trips(peer)));
        if is_rival { figure.goal_ratio(1.0) } else { figure }.print();
    }
}

/// An image with the program alone.
fn image() -> Result<Image> {
    let program = std::fs::read(WIRE).with_context(|| format!("there is no {WIRE}"))?;
    let name = Path::new(WIRE).file_name().and_then(|name| name.to_str());
    let layer = Archive::new().file(name.context("a program has a name")?, 0o755, &program);
    let command = json!({ "Entrypoint": ["/wire", PORT.to_string()] });
    Ok(Image::new(vec![Layer::gzip(&layer.finish())]).configured(command))
}

impl FarEnd {
    fn at(name: &'static str, address: IpAddr) -> Self {
        Self {
            name,
            address: SocketAddr::new(address, PORT),
            samples: Vec::new(),
        }
    }

    /// Waits until it is there, and lets caches, neighbours and windows become what they are.
    fn warm_up(&mut self) -> Result<()> {
        traffic::wait_for(self.address).with_context(|| format!("{} does not answer", self.name))?;
        self.sample()?;
        self.samples.clear();
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        self.samples.push(Sample {
            to: traffic::write(self.address)?,
            from: traffic::read(self.address)?,
            trip: traffic::round_trip(self.address)?,
        });
        Ok(())
    }

    fn all(&self, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(of).collect()
    }
}
