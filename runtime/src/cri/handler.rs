//! What the handlers of calls are made of.

use std::{future::Future, pin::Pin, sync::Arc};

use tonic::{Code, Response, Status};
use tracing::{Instrument, Span};

use super::error::Failure;
use crate::{
    container::{Container, ContainerError},
    daemon::Daemon,
    refusal::Refusal,
    sandbox::{Pod, PodError},
    table::{LookupError, Table},
};

/// Runs a handler and tells the log of a failure.
pub(super) async fn answer<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Response<T>, Status> {
    // Large futures are kept off the stack of the task.
    let work: Pin<Box<_>> = Box::pin(work);
    work.await.map(Response::new).map_err(|failure| {
        let status = failure.into_status();
        if status.code() == Code::NotFound {
            tracing::debug!(call, error = status.message(), "refused");
        } else {
            tracing::warn!(call, code = ?status.code(), error = status.message(), "refused or failed");
        }
        status
    })
}

/// Runs an operation on the daemon to its end, whatever becomes of the client: none is left half done.
pub(super) async fn detached<T: Send + 'static, E: Send + 'static, W>(
    daemon: &Arc<Daemon>,
    interrupted: E,
    work: impl FnOnce(Arc<Daemon>) -> W,
) -> Result<T, E>
where
    W: Future<Output = Result<T, E>> + Send + 'static,
{
    let running = tokio::spawn(work(Arc::clone(daemon)).in_current_span());
    running.await.unwrap_or(Err(interrupted))
}

/// The pod that a call is about.
pub(super) fn pod(daemon: &Daemon, id: &str) -> Result<Arc<Pod>, Failure> {
    let pod = find(&daemon.pods, id, "pod_sandbox_id", |error| {
        PodError::Lookup(error).into()
    })?;
    Span::current().record("pod", &pod.id);
    Ok(pod)
}

/// The container that a call is about.
pub(super) fn container(daemon: &Daemon, id: &str) -> Result<Arc<Container>, Failure> {
    let container = find(&daemon.containers, id, "container_id", |error| {
        ContainerError::Lookup(error).into()
    })?;
    Span::current()
        .record("pod", &container.pod_id)
        .record("container", &container.id);
    Ok(container)
}

fn find<T>(
    table: &Table<T>,
    id: &str,
    field: &str,
    unknown: impl Fn(LookupError) -> Failure,
) -> Result<Arc<T>, Failure> {
    table.find(id).map_err(|error| match error {
        LookupError::Empty => Refusal::invalid(field, "it is empty").into(),
        error => unknown(error),
    })
}

/// For calls that are done when the object is not there.
pub(super) fn known<T>(found: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The answer of a call that this version does not have.
pub(super) fn absent<T>(call: &'static str) -> Result<T, Status> {
    Err(Failure::unimplemented(call).into_status())
}
