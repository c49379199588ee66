//! Statistics of the double: figures that grow with each request, unless a container is there that lies or hangs.

use std::{sync::atomic::Ordering, time::Duration};

use bulkhead_proto::agent::*;
use tonic::{Response, Status};

use super::processes::Guest;

/// What is said to the nth request, from 1, is n times this.
const CPU_US: u64 = 2_000_000;
const MEMORY: u64 = 1 << 20;

pub async fn answer(guest: &Guest, request: &StatsRequest) -> Result<Response<StatsResponse>, Status> {
    let number = guest.measured.fetch_add(1, Ordering::SeqCst) + 1;
    let containers = guest.containers.lock().unwrap().clone();
    let has = |word: &str| {
        containers
            .values()
            .any(|container| container.first.args == [word])
    };
    if has("hang") {
        tokio::time::sleep(Duration::MAX).await;
    }
    if has("refuse") {
        return Err(Status::internal("no\nstatistics"));
    }
    let lies = has("lie");
    let figures = |id: &String| {
        if lies {
            lie(id, number)
        } else {
            figures(id, number, request.processes)
        }
    };
    let interface = |name: &str| InterfaceStats {
        name: name.to_owned(),
        received_bytes: if lies { 1000 / number } else { 1000 * number },
        received_packets: 10 * number,
        sent_bytes: 500 * number,
        ..InterfaceStats::default()
    };
    let mut said: Vec<ContainerStats> = containers.keys().map(figures).collect();
    let mut interfaces = vec![interface("other0"), interface("eth0")];
    if lies {
        // A container of nobody, and its own twice.
        said.push(lie(&"f".repeat(64), number));
        said.extend(containers.keys().map(|id| lie(id, number + 1)));
        interfaces.extend((0..1000).map(|index| interface(&format!("x{index}"))));
        interfaces.push(interface("no\nname"));
    }
    Ok(Response::new(StatsResponse {
        containers: said,
        taken_at_ns: 1,
        interfaces,
        scratch: Some(DiskSpace {
            total_bytes: 1 << 30,
            free_bytes: 1 << 29,
            inodes: 100,
            free_inodes: 90,
        }),
        processes: containers.len() as u64 + 1,
    }))
}

fn figures(id: &str, number: u64, processes: bool) -> ContainerStats {
    let line = PressureLine {
        total_us: 1_000_000 * number,
        avg10: 1.5,
        ..PressureLine::default()
    };
    let pressure = Pressure {
        some: Some(line),
        full: Some(line),
    };
    ContainerStats {
        container_id: id.to_owned(),
        cpu_usage_us: CPU_US * number,
        cpu_user_us: CPU_US * number / 2,
        cpu_system_us: CPU_US * number / 2,
        cpu_pressure: Some(pressure),
        memory_usage_bytes: MEMORY * 3,
        memory_working_set_bytes: MEMORY * 2,
        memory_rss_bytes: MEMORY,
        memory_peak_bytes: Some(MEMORY * 4),
        memory_limit_bytes: Some(MEMORY * 10),
        memory_swap_limit_bytes: Some(0),
        memory_pressure: Some(pressure),
        io_pressure: Some(pressure),
        memory_page_faults: 100 * number,
        writable_layer_bytes: Some(4096),
        writable_layer_inodes: Some(3),
        processes: 1,
        pids: 2,
        disks: vec![DiskStats {
            major: 254,
            minor: 0,
            name: "vda".to_owned(),
            read_bytes: 512,
            reads: 1,
            ..DiskStats::default()
        }],
        open_files: processes.then_some(OpenFiles {
            descriptors: 5,
            sockets: 1,
        }),
        soft_limits: if processes {
            vec![SoftLimit {
                name: "Max open files".to_owned(),
                value: 1024,
            }]
        } else {
            Vec::new()
        },
        ..ContainerStats::default()
    }
}

/// Less and less of what only grows, and more than there is of the rest.
fn lie(id: &str, number: u64) -> ContainerStats {
    ContainerStats {
        container_id: id.to_owned(),
        cpu_usage_us: 1_000_000 / number,
        memory_usage_bytes: u64::MAX,
        memory_working_set_bytes: u64::MAX,
        memory_page_faults: 1_000_000 / number,
        writable_layer_bytes: Some(u64::MAX),
        soft_limits: vec![
            SoftLimit {
                name: "x".repeat(100_000),
                value: 1,
            };
            5
        ],
        ..ContainerStats::default()
    }
}
