//! What a guest says of itself, asked so that one that hangs delays nobody.
//!
//! At most one call of each kind is under way to a guest, and whoever asks meanwhile waits for that one. A call that has
//! been under way for longer than the patience allows is not waited for at all, until it is answered or given up: so a
//! guest that hangs costs its patience once, and nothing after that.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bulkhead_proto::agent::{InterfaceStats, StatsRequest, StatsResponse};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{ContainerUsage, Detail, GuestUsage, bounds, history};
use crate::{
    daemon::Daemon,
    identity::now_ns,
    sandbox::{Pod, agent::AgentError, machine::Machine},
    store::ContainerPhase,
};

/// What came of a call, once it is over.
type Answer = Option<Result<Arc<GuestUsage>, AgentError>>;

/// The calls to one guest.
#[derive(Debug, Default)]
pub struct GuestStats {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// One for each detail.
    calls: [Option<Call>; 2],
    interfaces: Vec<InterfaceStats>,
}

#[derive(Clone, Debug)]
struct Call {
    begun: Instant,
    answer: watch::Receiver<Answer>,
}

/// Why a guest has said nothing.
#[derive(Clone, Debug)]
pub(super) enum Unknown {
    /// It has not answered in time.
    Silent,
    /// It cannot be asked.
    Agent(AgentError),
}

impl GuestStats {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a ready pod's guest says now, if it says it within `patience`.
pub(super) async fn ask(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    machine: &Arc<Machine>,
    detail: Detail,
    patience: Duration,
) -> Result<Arc<GuestUsage>, Unknown> {
    let mut call = call(daemon, pod, machine, detail);
    let answered = timeout_at(call.begun + patience, call.answer.wait_for(Option::is_some)).await;
    match answered {
        Ok(Ok(answer)) => match answer.as_ref() {
            Some(Ok(usage)) => Ok(Arc::clone(usage)),
            Some(Err(error)) => Err(Unknown::Agent(error.clone())),
            None => Err(Unknown::Silent),
        },
        // The call's task is gone, as when the daemon ends.
        Ok(Err(_)) | Err(_) => Err(Unknown::Silent),
    }
}

/// The call that is under way, or a new one.
fn call(daemon: &Arc<Daemon>, pod: &Arc<Pod>, machine: &Arc<Machine>, detail: Detail) -> Call {
    let mut state = pod.guest_stats.locked();
    let [plain, with_processes] = &mut state.calls;
    let place = match detail {
        Detail::Figures => plain,
        Detail::Processes => with_processes,
    };
    if let Some(call) = place
        && call.answer.borrow().is_none()
        && call.answer.has_changed().is_ok()
    {
        return call.clone();
    }
    let (sender, answer) = watch::channel(None);
    let call = Call {
        begun: Instant::now(),
        answer,
    };
    *place = Some(call.clone());
    drop(state);
    let (daemon, pod, machine) = (Arc::clone(daemon), Arc::clone(pod), Arc::clone(machine));
    tokio::spawn(async move {
        let request = StatsRequest {
            container_ids: Vec::new(),
            processes: detail == Detail::Processes,
        };
        let said = tokio::select! {
            said = machine.agent().stats(request) => said,
            _ = machine.ended() => Err(AgentError::Unreachable {
                call: "stats",
                message: "its machine has ended".to_owned(),
            }),
        };
        if let Err(error) = &said {
            tracing::debug!(pod = %pod.id, %error, "a guest does not tell what it uses");
        }
        sender.send_replace(Some(said.map(|said| Arc::new(usage(&daemon, &pod, said)))));
    });
    call
}

/// A guest's words as what is believed of them: of running containers of the pod alone, each once.
fn usage(daemon: &Daemon, pod: &Pod, said: StatsResponse) -> GuestUsage {
    let mut interfaces = bounds::interfaces(said.interfaces);
    {
        let mut state = pod.guest_stats.locked();
        history::interfaces_not_back(&mut interfaces, &state.interfaces);
        state.interfaces.clone_from(&interfaces);
    }
    let mut figures = said.containers;
    let mut containers = Vec::new();
    for container in daemon.containers_of(&pod.id) {
        let own = figures.iter().position(|said| said.container_id == container.id);
        let Some(figures) = own.map(|index| figures.swap_remove(index)) else {
            continue;
        };
        if container.phase() == ContainerPhase::Running {
            let usage = container.history.add(bounds::figures(figures, &pod.size));
            containers.push(ContainerUsage { container, usage });
        }
    }
    GuestUsage {
        at_ns: now_ns(),
        containers,
        interfaces,
        scratch: said.scratch.map(|space| bounds::scratch(space, &pod.size)),
        processes: said.processes,
    }
}
