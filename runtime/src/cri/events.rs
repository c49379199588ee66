//! GetContainerEvents.

use std::pin::Pin;

use bulkhead_proto::cri::{ContainerEventResponse, ContainerEventType};
use futures_util::stream::{self, Stream};
use tonic::Status;

use super::{answers, error::Failure};
use crate::events::{Change, Event, Listening, Missed};

/// The events from a call on, until its client or the daemon goes, or some were lost.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

/// What is listened to as CRI's messages, each made when the client has room for it.
pub(super) fn stream(listening: Listening) -> EventStream {
    Box::pin(stream::unfold(Some(listening), async |listening| {
        let mut listening = listening?;
        match listening.next().await? {
            Ok(event) => Some((Ok(response(&event)), Some(listening))),
            Err(missed) => Some((Err(lost(missed)), None)),
        }
    }))
}

fn lost(missed: Missed) -> Status {
    tracing::warn!(lost = missed.0, "a client that listens for events is too slow");
    Failure::from(missed).into_status()
}

fn response(event: &Event) -> ContainerEventResponse {
    let change = match event.change {
        Change::Created => ContainerEventType::ContainerCreatedEvent,
        Change::Started => ContainerEventType::ContainerStartedEvent,
        Change::Stopped => ContainerEventType::ContainerStoppedEvent,
        Change::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: change.into(),
        created_at: event.at_ns,
        pod_sandbox_status: event
            .pod
            .as_ref()
            .map(|(pod, state)| answers::pod_status_in(pod, state)),
        containers_statuses: event
            .containers
            .iter()
            .map(|(container, state)| answers::container_status_in(container, state.clone()))
            .collect(),
    }
}
