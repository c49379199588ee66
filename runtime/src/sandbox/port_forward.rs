//! PortForward: connections to ports on a pod's loopback, made by its agent.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    Pod, PodError,
    machine::Machine,
    stream::{AgentStream, StreamError},
};
use crate::{
    refusal::Refusal,
    streaming::{
        Job,
        port_forward::{Dial, Duplex, PORTS},
    },
};

/// Checks a request and makes of it what the streaming server is to do. The ports are needed by old clients alone; others
/// name theirs later.
///
/// # Errors
///
/// [`PodError`].
pub fn job(pod: &Pod, ports: &[i32]) -> Result<Job, PodError> {
    if ports.len() > PORTS {
        let reason = format!("{} ports are more than {PORTS}", ports.len());
        return Err(Refusal::invalid("port", reason).into());
    }
    let ports = ports.iter().map(|port| {
        let number = u16::try_from(*port).ok().filter(|port| *port != 0);
        number.ok_or_else(|| Refusal::invalid("port", format!("{port} is no port; those go from 1 to 65535")))
    });
    let ports = ports.collect::<Result<_, _>>()?;
    let machine = pod.machine()?;
    Ok(Job::PortForward(ports, Arc::new(PodPorts { machine })))
}

struct PodPorts {
    machine: Arc<Machine>,
}

impl Dial for PodPorts {
    fn dial(&self, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            if let Some(end) = self.machine.end() {
                return Err(format!("the pod's virtual machine ended: {end}"));
            }
            match AgentStream::connect(self.machine.agent(), port).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Duplex>),
                // In the agent's own words: they say which address refused.
                Err(StreamError::Refused(reason)) => Err(reason),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
