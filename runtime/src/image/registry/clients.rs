//! HTTP clients, each made once for all that is spoken to in the same way.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use super::super::config::is_loopback;
use super::failure::innermost;
use super::tls::TlsMaterial;

const USER_AGENT: &str = concat!("bulkhead/", env!("CARGO_PKG_VERSION"));

/// Clients kept at once. One that is not kept is made again when it is next needed.
const MOST_CLIENTS: usize = 32;

/// The clients there are.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<Manner, Client>>);

/// How a host is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Manner {
    tls: TlsMaterial,
    connect_timeout: Duration,
    reach: Reach,
}

/// Where a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reach {
    /// Here: no proxy is asked.
    Loopback { tls: bool },
    /// Elsewhere: a proxy is asked if the environment has one.
    Network,
}

impl Manner {
    pub(super) fn new(url: &Url, tls: TlsMaterial, connect_timeout: Duration) -> Self {
        let reach = if is_loopback(url.host_str().unwrap_or_default()) {
            let tls = url.scheme() == "https";
            Reach::Loopback { tls }
        } else {
            Reach::Network
        };
        // Without TLS there is nothing that files could say.
        let tls = match reach {
            Reach::Loopback { tls: false } => TlsMaterial::default(),
            _ => tls,
        };
        Self {
            tls,
            connect_timeout,
            reach,
        }
    }

    /// Reads the host's certificates, so it may wait for the disk.
    fn build(&self) -> Result<Client, String> {
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(self.connect_timeout)
            // Where to, and what of ours may go there, is looked at for each.
            .redirect(Policy::none());
        builder = match self.reach {
            Reach::Loopback { tls: false } => builder.no_proxy().tls_certs_only([]),
            Reach::Loopback { tls: true } => builder.no_proxy(),
            Reach::Network => builder,
        };
        if !self.tls.is_default() {
            builder = builder.tls_backend_preconfigured(self.tls.config()?);
        }
        builder.build().map_err(|error| {
            let reason = innermost(&error);
            format!("no TLS client can be set up: {reason}; install the ca-certificates package")
        })
    }
}

impl Clients {
    /// The client for hosts that are spoken to like this.
    pub(super) async fn client(&self, manner: &Manner) -> Result<Client, String> {
        if let Some(client) = self.lock().get(manner) {
            return Ok(client.clone());
        }
        let making = manner.clone();
        let made = tokio::task::spawn_blocking(move || making.build()).await;
        let client = made.map_err(|error| format!("making its client was broken off: {error}"))??;
        let mut clients = self.lock();
        if clients.len() >= MOST_CLIENTS {
            // Files change seldom; those in use are soon here again.
            clients.clear();
        }
        clients.insert(manner.clone(), client.clone());
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Manner, Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
