//! The agent of one guest: its control service, with every call bounded in time and size.
//!
//! The agent is not trusted. What it answers is bounded by the protocol's limits, its texts are cut and cleaned before
//! they reach a message or a log, and a call that it does not answer ends.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bulkhead_proto::agent::{
    self, CONTROL_PORT, HelloRequest, HelloResponse, PROTOCOL_VERSION, agent_client::AgentClient, limits,
};
use hyper_util::rt::TokioIo;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint, Uri},
};

use super::{paths::SocketPath, vsock};

/// HTTP/2 windows: they bound what a guest can make the daemon hold, and are larger than a usual message.
const WINDOW_BYTES: u32 = 256 * 1024;

/// Longest text of an agent that is passed on, in characters.
const TEXT_CHARS: usize = 1024;

/// Why an agent did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AgentError {
    /// It said no, or could not.
    #[error("{message}")]
    Refused {
        /// What kind of refusal it is.
        code: Code,
        /// Its words, cut and cleaned.
        message: String,
    },
    /// It cannot be reached, or the connection broke.
    #[error("the pod's agent cannot be reached for {call}: {message}")]
    Unreachable {
        /// What was asked.
        call: &'static str,
        /// What broke.
        message: String,
    },
    /// It did not answer.
    #[error(
        "the pod's agent has not answered {call} within {} s; stop the pod, or raise `timeouts.agent_seconds`",
        after.as_secs()
    )]
    Silent {
        /// What was asked.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

/// The control service of one guest.
#[derive(Clone, Debug)]
pub struct Agent {
    client: AgentClient<Channel>,
    timeout: Duration,
    socket: Arc<PathBuf>,
}

impl Agent {
    /// The agent behind the virtual socket device at `socket`. It is reached when it is first called.
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        let socket = Arc::new(socket);
        let path = Arc::clone(&socket);
        let connector = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            async move {
                let short = SocketPath::new(&path)?;
                let stream = vsock::connect(short.get(), CONTROL_PORT)
                    .await
                    .map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://agent")
            .connect_timeout(timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_max_header_list_size(16 * 1024)
            .buffer_size(64)
            .connect_with_connector_lazy(connector);
        let client = AgentClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        Self {
            client,
            timeout,
            socket,
        }
    }

    /// The virtual socket device, for streams.
    pub fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks who it is.
    ///
    /// # Errors
    ///
    /// [`AgentError`], also for an agent that speaks another version of the protocol.
    pub async fn hello(&self) -> Result<HelloResponse, AgentError> {
        let request = HelloRequest {
            protocol_version: PROTOCOL_VERSION,
        };
        let answer = self.call("Hello", async |mut client| client.hello(request).await);
        check_hello(&answer.await?)
    }
}

/// Makes a method of [`Agent`] for each plain call.
macro_rules! calls {
    ($($(#[$doc:meta])* $method:ident($request:ident) -> $response:ident;)*) => {
        impl Agent {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// [`AgentError`].
                pub async fn $method(&self, request: agent::$request) -> Result<agent::$response, AgentError> {
                    self.call(stringify!($method), async |mut client| client.$method(request).await)
                    .await
                }
            )*
        }
    };
}

calls! {
    /// Names the pod and prepares what its containers share.
    configure_sandbox(ConfigureSandboxRequest) -> ConfigureSandboxResponse;
    /// Gives the guest's interfaces their names, addresses, routes and neighbours.
    configure_network(ConfigureNetworkRequest) -> ConfigureNetworkResponse;
    /// Prepares a container.
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    /// Starts a prepared container.
    start_container(StartContainerRequest) -> StartContainerResponse;
    /// Changes the limits of a container.
    update_container(UpdateContainerRequest) -> UpdateContainerResponse;
    /// Starts a further process in a container.
    exec_process(ExecProcessRequest) -> ExecProcessResponse;
    /// Signals a process.
    signal_process(SignalProcessRequest) -> SignalProcessResponse;
    /// Lets the agent forget an exit.
    acknowledge_exit(AcknowledgeExitRequest) -> AcknowledgeExitResponse;
    /// Frees a container.
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    /// What the guest uses.
    stats(StatsRequest) -> StatsResponse;
    /// Sets the window of a process's terminal.
    resize_terminal(ResizeTerminalRequest) -> ResizeTerminalResponse;
    /// What the guest runs.
    list_containers(ListContainersRequest) -> ListContainersResponse;
}

impl Agent {
    /// Waits for the end of a process, however long that takes; the caller bounds it.
    ///
    /// # Errors
    ///
    /// [`AgentError`].
    pub async fn wait_process(&self, container: &str, exec: &str) -> Result<agent::ExitStatus, AgentError> {
        let request = agent::WaitProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
        };
        let answer = self.client.clone().wait_process(Request::new(request)).await;
        let answer = answer
            .map_err(|status| from_status("wait_process", &status))?
            .into_inner();
        answer.status.ok_or_else(|| AgentError::Refused {
            code: Code::Internal,
            message: "the pod's agent says that a process has ended, and not how".to_owned(),
        })
    }

    async fn call<T>(
        &self,
        name: &'static str,
        send: impl AsyncFnOnce(AgentClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, AgentError> {
        // The agent is not told of the bound: a call that it has begun it shall finish.
        match tokio::time::timeout(self.timeout, send(self.client.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(from_status(name, &status)),
            Err(_) => Err(AgentError::Silent {
                call: name,
                after: self.timeout,
            }),
        }
    }
}

/// Checks what an agent says of itself, by the doorbell or by Hello.
///
/// # Errors
///
/// [`AgentError::Refused`] for another version of the protocol.
pub(super) fn check_hello(hello: &HelloResponse) -> Result<HelloResponse, AgentError> {
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(AgentError::Refused {
            code: Code::FailedPrecondition,
            message: format!(
                "the agent in the guest speaks version {} of the protocol and this daemon version {PROTOCOL_VERSION}; \
                 install an initramfs of the same release (`vm.initramfs`)",
                hello.protocol_version
            ),
        });
    }
    Ok(HelloResponse {
        agent_version: clean(&hello.agent_version, 64),
        kernel_release: clean(&hello.kernel_release, 64),
        ..*hello
    })
}

fn from_status(call: &'static str, status: &tonic::Status) -> AgentError {
    let message = clean(status.message(), TEXT_CHARS);
    // A status that the transport made has a source; one that the agent sent has none.
    let transport = std::error::Error::source(status).is_some();
    match status.code() {
        Code::Unavailable | Code::Cancelled => AgentError::Unreachable { call, message },
        _ if transport => AgentError::Unreachable { call, message },
        code => AgentError::Refused { code, message },
    }
}

/// A guest's text, fit for a log line.
pub(super) fn clean(text: &str, chars: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(chars)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_another_version_is_refused_with_the_remedy() {
        let hello = HelloResponse {
            protocol_version: PROTOCOL_VERSION + 1,
            ..HelloResponse::default()
        };
        let message = check_hello(&hello).unwrap_err().to_string();
        assert!(message.contains("vm.initramfs"), "{message}");
    }

    #[test]
    fn a_guests_words_are_cut_and_cleaned() {
        let status = tonic::Status::internal(format!("a\nb\x1b[0m{}", "x".repeat(1 << 20)));
        let AgentError::Refused {
            code: Code::Internal,
            message,
        } = from_status("x", &status)
        else {
            panic!("not a refusal");
        };
        assert!(message.starts_with("a b [0mx"), "{message}");
        assert_eq!(message.chars().count(), TEXT_CHARS);
    }

    #[tokio::test]
    async fn an_agent_behind_no_socket_is_unreachable() {
        let agent = Agent::new("/nonexistent/vsock".into(), Duration::from_secs(5));
        assert!(matches!(agent.hello().await, Err(AgentError::Unreachable { .. })));
    }
}
