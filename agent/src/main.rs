//! Process 1 of a Bulkhead guest. It mounts what a Linux system needs, tells the host that it is there, and then runs the
//! containers of one pod as the host asks it to, until the host asks for the machine's end.
//!
//! The host speaks gRPC on vsock port 1024 and moves the bytes of standard streams on port 1025; see `bulkhead_proto::agent`.
//!
//! For development it runs without a machine of its own, as process 1 of new namespaces, with unix sockets instead of
//! vsock: `unshare --pid --fork --mount --uts --ipc --net --cgroup bulkhead-agent --listen-dir DIRECTORY`.

mod container;
mod error_text;
mod init;
mod io;
mod network;
mod rpc;
mod stats;
mod storage;
mod sys;

use std::{ffi::OsString, process::ExitCode, sync::Arc, time::Duration};

use bulkhead_proto::agent::{agent_server::AgentServer, limits::MESSAGE_BYTES};
use tokio::{sync::Notify, time::timeout};
use tonic::transport::Server;

use crate::{
    container::engine::Engine,
    init::{clock, doorbell, log, mounts, poweroff, reaper::Reaper},
    io::{door, registry::Registry, transport::Transport},
    rpc::service::AgentService,
};

/// How long answers that are under way may take when the machine ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let started_ns = clock::boottime_ns();
    if std::process::id() != 1 {
        eprintln!(
            "bulkhead-agent: it is the init of a virtual machine and takes over the system that it runs on; \
             start it as process 1"
        );
        return ExitCode::FAILURE;
    }
    poweroff::panic_loudly();
    let transport = match transport(std::env::args_os().skip(1)) {
        Ok(transport) => transport,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the event loop: {error}")),
    };
    match runtime.block_on(run(&transport, started_ns)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Serves until the host asks for the end, and then ends the machine. Comes back only where that is impossible.
async fn run(transport: &Transport, started_ns: u64) -> Result<(), String> {
    // What the host waits for comes first: nothing but the sockets is needed to be heard.
    let control = transport.listen_control().map_err(text)?;
    let streams = transport.listen_streams().map_err(text)?;
    let rung = doorbell::ring(transport, started_ns).await;

    mounts::prepare().map_err(text)?;
    if let Err(error) = rung {
        log::warning!("{}", error_text::with_causes(&error));
    }
    if let Err(error) = network::configure::bring_loopback_up() {
        log::error!("cannot bring the loopback interface up: {error}");
    }
    let reaper = Reaper::start().map_err(|error| format!("cannot listen for ended processes: {error}"))?;
    let registry = Registry::default();
    tokio::spawn(door::serve(streams, registry.clone()));
    let engine = Engine::new(reaper.clone(), registry);
    let shutdown = Arc::new(Notify::new());
    let service = AgentServer::new(AgentService::new(engine.clone(), started_ns, shutdown.clone()))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);

    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let mut server = tokio::spawn(Server::builder().serve_with_incoming_shutdown(
        service,
        control,
        async move { stopped.notified().await },
    ));
    tokio::select! {
        () = shutdown.notified() => {}
        ended = &mut server => return Err(format!("the control service ended by itself: {ended:?}")),
    }
    if let Err(error) = engine.kill_all() {
        log::error!("{}", error_text::with_causes(&error));
    }
    stop.notify_one();
    let _answered = timeout(LAST_ANSWERS, server).await;
    poweroff::power_off(&reaper).await;
    Err("the machine could not be switched off".to_owned())
}

/// How the host reaches the agent. Words of the kernel's command line that it does not know come here too.
fn transport(mut arguments: impl Iterator<Item = OsString>) -> Result<Transport, String> {
    while let Some(argument) = arguments.next() {
        if argument == "--listen-dir" {
            return match arguments.next() {
                Some(directory) => Ok(Transport::Directory(directory.into())),
                None => Err("--listen-dir needs a directory".to_owned()),
            };
        }
    }
    Ok(Transport::Vsock)
}

fn text(error: impl std::error::Error) -> String {
    error_text::with_causes(&error)
}

/// The end of process 1 is the kernel's panic, which the host sees; this line says why.
fn fail(error: &str) -> ExitCode {
    log::open();
    log::error!("{error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Transport, String> {
        transport(arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_guest_listens_on_vsock_whatever_else_the_kernel_hands_on() {
        assert!(matches!(parsed(&[]), Ok(Transport::Vsock)));
        assert!(matches!(parsed(&["foo", "bar=1"]), Ok(Transport::Vsock)));
        assert!(matches!(
            parsed(&["--listen-dir", "/tmp/x"]),
            Ok(Transport::Directory(path)) if path.to_str() == Some("/tmp/x")
        ));
        assert!(parsed(&["--listen-dir"]).is_err());
    }
}
