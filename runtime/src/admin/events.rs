//! `bulkhead events`: what happens to pods and containers, as it happens.

use std::{fmt::Write as _, path::Path};

use bulkhead_proto::cri::{
    ContainerEventResponse, ContainerEventType, GetEventsRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::Streaming;

use super::client::{ANSWER_BYTES, AdminError, connect};
use crate::{identity::short, logs::format::rfc3339_ns};

/// The events of the daemon that listens on a socket, from now on.
#[derive(Debug)]
pub struct Events(Streaming<ContainerEventResponse>);

impl Events {
    /// Connects to the daemon.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn of(socket: &Path) -> Result<Self, AdminError> {
        let mut client =
            RuntimeServiceClient::new(connect(socket).await?).max_decoding_message_size(ANSWER_BYTES);
        let events = client.get_container_events(GetEventsRequest {}).await?;
        Ok(Self(events.into_inner()))
    }

    /// The next event as a line; none when the daemon ends.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn line(&mut self) -> Result<Option<String>, AdminError> {
        Ok(self.0.message().await?.map(|event| line(&event)))
    }
}

fn line(event: &ContainerEventResponse) -> String {
    let pod = event.pod_sandbox_status.clone().unwrap_or_default();
    let metadata = pod.metadata.unwrap_or_default();
    let what = match event.container_event_type() {
        ContainerEventType::ContainerCreatedEvent => "created",
        ContainerEventType::ContainerStartedEvent => "started",
        ContainerEventType::ContainerStoppedEvent => "stopped",
        ContainerEventType::ContainerDeletedEvent => "deleted",
    };
    let container = event
        .containers_statuses
        .iter()
        .find(|container| container.id == event.container_id);
    let mut line = format!(
        "{}  {what}  {}  {}/{}",
        rfc3339_ns(event.created_at),
        short(&event.container_id),
        metadata.namespace,
        metadata.name,
    );
    match container {
        Some(container) => {
            line.push('/');
            line.push_str(&container.metadata.clone().unwrap_or_default().name);
            if event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
                let _ = write!(line, "  {} ({})", container.reason, container.exit_code);
            }
        }
        None if event.container_id == pod.id => {}
        // One that is gone has no name any more.
        None => line.push_str("/?"),
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::{ContainerMetadata, ContainerStatus, PodSandboxMetadata, PodSandboxStatus};

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = |id: &str, kind: ContainerEventType| ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: 1_000_000_001,
            pod_sandbox_status: Some(PodSandboxStatus {
                id: "pod".to_owned(),
                metadata: Some(PodSandboxMetadata {
                    name: "web".to_owned(),
                    namespace: "shop".to_owned(),
                    ..PodSandboxMetadata::default()
                }),
                ..PodSandboxStatus::default()
            }),
            containers_statuses: vec![ContainerStatus {
                id: "c1".to_owned(),
                metadata: Some(ContainerMetadata {
                    name: "app".to_owned(),
                    attempt: 0,
                }),
                exit_code: 137,
                reason: "OOMKilled".to_owned(),
                ..ContainerStatus::default()
            }],
        };
        assert_eq!(
            line(&event("c1", ContainerEventType::ContainerStoppedEvent)),
            "1970-01-01T00:00:01.000000001Z  stopped  c1  shop/web/app  OOMKilled (137)\n"
        );
        assert_eq!(
            line(&event("pod", ContainerEventType::ContainerCreatedEvent)),
            "1970-01-01T00:00:01.000000001Z  created  pod  shop/web\n"
        );
        assert!(
            line(&event("c2", ContainerEventType::ContainerDeletedEvent))
                .ends_with("deleted  c2  shop/web/?\n")
        );
    }
}
