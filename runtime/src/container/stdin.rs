//! The standard input of a container's first process: one connection to the agent for all clients that are attached.
//!
//! It is opened when a client first writes, and kept until the container ends: a client that leaves takes nothing with it that
//! the process has not read yet.

use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_proto::agent::{StreamHeader, StreamKind};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::Container;
use crate::sandbox::{
    machine::Machine,
    stream::{AgentStream, StreamError},
};

/// What a client does to the input.
#[derive(Debug)]
pub(super) enum Input {
    /// Types.
    Bytes(Bytes),
    /// Closes it for good.
    End,
}

/// The way to a container's standard input.
#[derive(Debug, Default)]
pub(super) struct ContainerStdin {
    sender: Mutex<Option<mpsc::Sender<Input>>>,
}

impl ContainerStdin {
    /// Where a client's input goes. It is closed once the process takes none any more.
    pub(super) fn sender(&self, container: &Arc<Container>, machine: &Arc<Machine>) -> mpsc::Sender<Input> {
        let mut known = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = known.as_ref().filter(|sender| !sender.is_closed()) {
            return open.clone();
        }
        // A way that broke is made anew. Where the process has closed its input the agent says so, and that way ends, too.
        let (sender, input) = mpsc::channel(1);
        let (id, machine) = (container.id.clone(), Arc::clone(machine));
        tokio::spawn(async move {
            if let Err(error) = feed(&id, &machine, input).await {
                tracing::debug!(container = %id, %error, "the container's stdin takes no more");
            }
        });
        known.insert(sender).clone()
    }

    /// Lets it go: the process has ended.
    pub(super) fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

async fn feed(
    container: &str,
    machine: &Machine,
    mut input: mpsc::Receiver<Input>,
) -> Result<(), StreamError> {
    let Some(mut next) = input.recv().await else {
        return Ok(());
    };
    let header = StreamHeader {
        container_id: container.to_owned(),
        kind: StreamKind::Stdin.into(),
        ..StreamHeader::default()
    };
    let AgentStream { mut stream, .. } = AgentStream::open(machine.agent(), &header).await?;
    loop {
        match next {
            Input::Bytes(bytes) => stream.write_all(&bytes).await?,
            Input::End => {
                stream.shutdown().await?;
                // From now on nobody's input is taken. The agent closes the connection when it has passed on all of it.
                drop(input);
                let _closed = stream.read(&mut [0]).await?;
                return Ok(());
            }
        }
        match input.recv().await {
            Some(more) => next = more,
            None => return Ok(()),
        }
    }
}
