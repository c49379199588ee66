//! Traces of the real daemon, as a collector gets them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that goes wrong here has failed and says where"
)]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use bulkhead_proto::cri::{VersionRequest, runtime_service_client::RuntimeServiceClient};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// Longest that anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Passes on every span that it is sent.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let service = resource.resource.unwrap_or_default().attributes;
            assert!(service.iter().any(|attribute| attribute.key == "service.name"));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.send(span).unwrap();
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A daemon, killed with the test.
struct Daemon(Child);

impl Daemon {
    fn start(directory: &Path, collector: &str) -> Self {
        let config = directory.join("config.toml");
        let text = format!(
            "root = \"{}\"\nstate = \"{}\"\n[cri]\nsocket = \"{}\"\n[network]\nenabled = false\n[traces]\nendpoint = {collector:?}\n",
            directory.join("root").display(),
            directory.join("state").display(),
            socket(directory).display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkheadd"));
        Self(command.arg("--config").arg(config).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("cri.sock")
}

fn channel(directory: &Path) -> Channel {
    let socket = socket(directory);
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

#[tokio::test]
async fn a_call_is_a_span_of_its_callers_trace_and_is_sent_before_the_daemon_ends() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let (send, mut spans) = mpsc::unbounded_channel();
    let server = Server::builder().serve_with_incoming(
        TraceServiceServer::new(Collector(send)),
        TcpListenerStream::new(listener),
    );
    tokio::spawn(server);

    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), &collector);
    let mut client = RuntimeServiceClient::new(channel(directory.path()));
    let begun = Instant::now();
    while let Err(error) = client.version(VersionRequest::default()).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut request = Request::new(VersionRequest::default());
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request
        .metadata_mut()
        .insert("traceparent", caller.parse().unwrap());
    client.version(request).await.unwrap();
    // Asked to end it sends what it has, long before the next batch is due.
    let pid = Pid::from_child(&daemon.0);
    kill_process(pid, Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let status = daemon.0.wait().unwrap();
        assert!(status.success(), "{status}");
        daemon
    });
    let traced = tokio::time::timeout(PATIENCE, async {
        loop {
            let span = spans.recv().await.unwrap();
            if span.parent_span_id == 0xb7ad_6b71_6920_3331_u64.to_be_bytes() {
                break span;
            }
        }
    });
    let span = traced.await.expect("the span of the traced call");
    assert_eq!(
        span.trace_id,
        0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes()
    );
    assert_eq!(span.name, "Version");
    ended.await.unwrap();
}
