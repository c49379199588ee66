//! `bulkhead top`: what pods and their containers use, as the daemon's statistics have it.

use std::{collections::HashMap, path::Path};

use bulkhead_proto::cri::{
    ContainerStats, CpuUsage, ListPodSandboxStatsRequest, MemoryUsage, PodSandboxStats,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES, AdminError, connect};
use super::columns::{aligned, mebibytes};
use crate::identity::short;

/// The use of the pods of the daemon that listens on a socket, from one look to the next.
#[derive(Debug)]
pub struct Top {
    client: RuntimeServiceClient<Channel>,
    /// Processor time of each pod and container when it was last looked at.
    before: HashMap<String, Used>,
}

/// Processor time, and when it was measured.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu_ns: u64,
    at_ns: i64,
}

impl Top {
    /// Connects to the daemon.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn of(socket: &Path) -> Result<Self, AdminError> {
        let client =
            RuntimeServiceClient::new(connect(socket).await?).max_decoding_message_size(ANSWER_BYTES);
        Ok(Self {
            client,
            before: HashMap::new(),
        })
    }

    /// A table of the pods, each with its containers below it, the busiest first. Processors are those used since the last
    /// look, and unknown at the first.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn table(&mut self) -> Result<String, AdminError> {
        let answer = self
            .client
            .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
            .await?;
        Ok(self.render(&answer.into_inner().stats))
    }

    fn render(&mut self, stats: &[PodSandboxStats]) -> String {
        let before = std::mem::take(&mut self.before);
        let mut pods: Vec<_> = stats.iter().map(|pod| self.pod(pod, &before)).collect();
        // By use, and by name where that is the same or not known yet.
        pods.sort_by(|(use_a, rows_a), (use_b, rows_b)| use_b.cmp(use_a).then_with(|| rows_a.cmp(rows_b)));
        let heading = ["POD/CONTAINER", "ID", "CPU %", "MEMORY", "PROCESSES"].map(str::to_owned);
        let rows = std::iter::once(heading).chain(pods.into_iter().flat_map(|(_, rows)| rows));
        aligned(&rows.collect::<Vec<_>>())
    }

    /// The processors that the pod uses in per mille, and its rows.
    fn pod(
        &mut self,
        pod: &PodSandboxStats,
        before: &HashMap<String, Used>,
    ) -> (Option<u64>, Vec<[String; 5]>) {
        let attributes = pod.attributes.clone().unwrap_or_default();
        let metadata = attributes.metadata.unwrap_or_default();
        let linux = pod.linux.clone().unwrap_or_default();
        let processes = linux.process.and_then(|process| process.process_count);
        let busy = self.busy(&attributes.id, linux.cpu.as_ref(), before);
        let mut rows = vec![[
            format!("{}/{}", metadata.namespace, metadata.name),
            short(&attributes.id).to_owned(),
            percent(busy),
            memory(linux.memory.as_ref()),
            processes.map_or("-".to_owned(), |count| count.value.to_string()),
        ]];
        let mut containers: Vec<_> = linux
            .containers
            .iter()
            .map(|container| self.container(container, before))
            .collect();
        containers.sort();
        rows.extend(containers);
        (busy, rows)
    }

    fn container(&mut self, container: &ContainerStats, before: &HashMap<String, Used>) -> [String; 5] {
        let attributes = container.attributes.clone().unwrap_or_default();
        let busy = self.busy(&attributes.id, container.cpu.as_ref(), before);
        [
            format!("  {}", attributes.metadata.unwrap_or_default().name),
            short(&attributes.id).to_owned(),
            percent(busy),
            memory(container.memory.as_ref()),
            String::new(),
        ]
    }

    /// Per mille of a processor since the last look.
    fn busy(&mut self, id: &str, cpu: Option<&CpuUsage>, before: &HashMap<String, Used>) -> Option<u64> {
        let cpu = cpu?;
        let now = Used {
            cpu_ns: cpu.usage_core_nano_seconds?.value,
            at_ns: cpu.timestamp,
        };
        self.before.insert(id.to_owned(), now);
        let before = before.get(id)?;
        let passed = u64::try_from(now.at_ns.saturating_sub(before.at_ns)).ok()?;
        (now.cpu_ns.saturating_sub(before.cpu_ns))
            .saturating_mul(1000)
            .checked_div(passed)
    }
}

fn percent(per_mille: Option<u64>) -> String {
    per_mille.map_or("-".to_owned(), |busy| format!("{}.{}", busy / 10, busy % 10))
}

fn memory(memory: Option<&MemoryUsage>) -> String {
    let bytes = memory.and_then(|memory| memory.working_set_bytes);
    bytes.map_or("-".to_owned(), |bytes| mebibytes(bytes.value / 1024))
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::{
        ContainerAttributes, ContainerMetadata, LinuxPodSandboxStats, PodSandboxAttributes,
        PodSandboxMetadata, ProcessUsage, UInt64Value,
    };

    use super::*;

    fn cpu(seconds: i64, used_ms: u64) -> CpuUsage {
        let value = used_ms * 1_000_000;
        CpuUsage {
            timestamp: seconds * 1_000_000_000,
            usage_core_nano_seconds: Some(UInt64Value { value }),
            ..CpuUsage::default()
        }
    }

    fn pod(name: &str, seconds: i64, used_ms: u64) -> PodSandboxStats {
        let memory = Some(MemoryUsage {
            working_set_bytes: Some(UInt64Value { value: 3 << 20 }),
            ..MemoryUsage::default()
        });
        let container = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: format!("{name}-c"),
                metadata: Some(ContainerMetadata {
                    name: "app".to_owned(),
                    attempt: 0,
                }),
                ..ContainerAttributes::default()
            }),
            cpu: Some(cpu(seconds, used_ms / 2)),
            memory,
            ..ContainerStats::default()
        };
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: name.to_owned(),
                metadata: Some(PodSandboxMetadata {
                    name: name.to_owned(),
                    namespace: "shop".to_owned(),
                    ..PodSandboxMetadata::default()
                }),
                ..PodSandboxAttributes::default()
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(cpu(seconds, used_ms)),
                memory,
                process: Some(ProcessUsage {
                    timestamp: 1,
                    process_count: Some(UInt64Value { value: 7 }),
                }),
                containers: vec![container],
                ..LinuxPodSandboxStats::default()
            }),
            windows: None,
        }
    }

    #[tokio::test]
    async fn the_busiest_pod_is_first_once_two_looks_were_taken() {
        let channel = tonic::transport::Endpoint::from_static("http://localhost").connect_lazy();
        let mut top = Top {
            client: RuntimeServiceClient::new(channel),
            before: HashMap::new(),
        };
        assert_eq!(
            top.render(&[pod("idle", 1, 100), pod("busy", 1, 100)]),
            "POD/CONTAINER  ID      CPU %  MEMORY   PROCESSES\n\
             shop/busy      busy    -      3.0 MiB  7\n  \
             app          busy-c  -      3.0 MiB\n\
             shop/idle      idle    -      3.0 MiB  7\n  \
             app          idle-c  -      3.0 MiB\n"
        );
        let table = top.render(&[pod("idle", 3, 100), pod("busy", 3, 1101)]);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["shop/busy", "busy", "50.0", "3.0", "MiB", "7"]);
        assert_eq!(rows[2], ["app", "busy-c", "25.0", "3.0", "MiB"]);
        assert_eq!(rows[3], ["shop/idle", "idle", "0.0", "3.0", "MiB", "7"]);
    }
}
