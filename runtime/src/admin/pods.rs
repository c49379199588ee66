//! `bulkhead pods`: pods with their machines, asked of the daemon by CRI like any other client.

use std::{fs, path::Path};

use bulkhead_proto::cri::{
    ListPodSandboxRequest, PodSandbox, PodSandboxState, PodSandboxStatusRequest,
    runtime_service_client::RuntimeServiceClient,
};
use serde_json::Value;

use super::client::{ANSWER_BYTES, AdminError, connect};
use super::columns::{age, aligned, mebibytes};
use crate::identity::{now_ns, short};

/// What is shown of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    id: String,
    name: String,
    state: &'static str,
    /// Process of its machine; none when that does not run.
    pid: Option<u64>,
    /// Proportional memory of that process in KiB.
    memory_kib: Option<u64>,
    age_s: u64,
}

/// A table of the pods of the daemon that listens on `socket`.
///
/// # Errors
///
/// [`AdminError`].
pub async fn table(socket: &Path) -> Result<String, AdminError> {
    let mut client =
        RuntimeServiceClient::new(connect(socket).await?).max_decoding_message_size(ANSWER_BYTES);
    let pods = client
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?
        .into_inner()
        .items;
    let mut rows = Vec::new();
    for pod in pods {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        // One that is removed meanwhile is shown as the list had it.
        let info = match client.pod_sandbox_status(request).await {
            Ok(status) => status.into_inner().info.remove("info").unwrap_or_default(),
            Err(_) => String::new(),
        };
        rows.push(row(&pod, &info, now_ns()));
    }
    rows.sort_by_key(|row| row.age_s);
    Ok(render(&rows))
}

fn row(pod: &PodSandbox, info: &str, now: i64) -> Row {
    let info: Value = serde_json::from_str(info).unwrap_or(Value::Null);
    let pid = info.get("pid").and_then(Value::as_u64).filter(|pid| *pid > 0);
    let metadata = pod.metadata.clone().unwrap_or_default();
    Row {
        id: short(&pod.id).to_owned(),
        name: format!("{}/{}", metadata.namespace, metadata.name),
        state: match pod.state() {
            PodSandboxState::SandboxReady => "ready",
            PodSandboxState::SandboxNotready => "not ready",
        },
        pid,
        memory_kib: pid.and_then(memory_kib),
        age_s: u64::try_from(now.saturating_sub(pod.created_at)).unwrap_or(0) / 1_000_000_000,
    }
}

/// Memory of a process, where pages that are shared count in proportion.
fn memory_kib(pid: u64) -> Option<u64> {
    proportional(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn proportional(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn render(rows: &[Row]) -> String {
    let mut lines = vec![["POD", "NAMESPACE/NAME", "STATE", "VMM", "MEMORY", "AGE"].map(str::to_owned)];
    for row in rows {
        lines.push([
            row.id.clone(),
            row.name.clone(),
            row.state.to_owned(),
            row.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            row.memory_kib.map_or("-".to_owned(), mebibytes),
            age(row.age_s),
        ]);
    }
    aligned(&lines)
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::PodSandboxMetadata;

    use super::*;

    #[test]
    fn the_columns_of_a_table_stand_below_each_other() {
        let row = |id: &str, pid| Row {
            id: id.to_owned(),
            name: "default/web".to_owned(),
            state: "ready",
            pid,
            memory_kib: pid.map(|_| 40 * 1024 + 512),
            age_s: 61,
        };
        assert_eq!(
            render(&[row("abc", Some(1234)), row("a-longer-one", None)]),
            "POD           NAMESPACE/NAME  STATE  VMM   MEMORY    AGE\n\
             abc           default/web     ready  1234  40.5 MiB  1 min\n\
             a-longer-one  default/web     ready  -     -         1 min\n"
        );
    }

    #[test]
    fn a_pod_is_shown_with_its_process() {
        let pod = PodSandbox {
            id: "0123456789abcdef".into(),
            metadata: Some(PodSandboxMetadata {
                name: "n".into(),
                namespace: "ns".into(),
                ..Default::default()
            }),
            created_at: 1_000_000_000,
            state: PodSandboxState::SandboxNotready.into(),
            ..PodSandbox::default()
        };
        let shown = row(
            &pod,
            &format!("{{\"pid\":{}}}", std::process::id()),
            3_500_000_000,
        );
        assert_eq!(
            (shown.id.as_str(), shown.name.as_str(), shown.state),
            ("0123456789abc", "ns/n", "not ready")
        );
        assert_eq!((shown.pid, shown.age_s), (Some(std::process::id().into()), 2));
        assert!(shown.memory_kib.is_some_and(|kib| kib > 0), "{shown:?}");
        assert_eq!(row(&pod, "{\"pid\":0}", 0).pid, None);
        assert_eq!(row(&pod, "", 0).pid, None);
    }

    #[test]
    fn proportional_memory_is_read_from_the_kernels_sum() {
        assert_eq!(
            proportional("0-f [rollup]\nRss:  100 kB\nPss:   42 kB\nPss_Dirty: 1 kB\n"),
            Some(42)
        );
        assert_eq!(proportional("nothing"), None);
    }

    #[tokio::test]
    async fn a_daemon_that_is_away_is_told_with_its_socket() {
        let message = table(Path::new("/nonexistent/cri.sock"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("/nonexistent/cri.sock") && message.contains("is it running"),
            "{message}"
        );
    }
}
