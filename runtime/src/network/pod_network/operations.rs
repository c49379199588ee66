//! What is done for a pod, step by step, and undone.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use serde_json::Value;

use super::{Attached, Attachment, Inner, blocking};
use crate::network::{
    cni::{
        cache::Entry,
        capabilities::{PodFacts, capabilities},
        config::NetworkList,
        network::{self, ValidAttachment},
        plugin::Command,
        result::AddResult,
    },
    error::NetworkError,
    guest,
    host_ports::PortMapping,
    locked,
};

/// The interface that a pod has in its network.
const INTERFACE: &str = "eth0";

impl Inner {
    pub(super) async fn attach(&self, pod: &Attachment) -> Result<Attached, NetworkError> {
        let _turn = self.turns.take(&pod.pod_id).await;
        let list = match &locked(&self.state).list {
            Ok(list) => Arc::clone(list),
            Err(reason) => return Err(NetworkError::NotReady(reason.clone())),
        };
        // What a plugin that is there has done could not be undone without one that is not.
        network::present(&self.runner, &list, Command::Add)?;
        let mut entry = self.entry(pod, &list)?;
        // Left of an attempt that a crash ended.
        for old in self.entries(Some(&pod.pod_id)).await? {
            self.remove(&old).await?;
        }
        let mappings = host_ports(pod);
        locked(&self.ports).take(&pod.pod_id, &entry.pod_name, &mappings)?;
        if !mappings.is_empty() && !asks_for(&list, "portMappings") {
            tracing::warn!(
                "pod {} asks for host ports, but no plugin of CNI network {} has the capability portMappings; they work only \
                 if the cluster's network provides them by itself",
                entry.pod_name,
                list.name
            );
        }
        if let Err(error) = self.put(&entry).await {
            locked(&self.ports).release(&pod.pod_id);
            return Err(error);
        }
        match self.add(pod, &list, &mut entry).await {
            Ok(attached) => Ok(attached),
            Err(error) => match self.remove(&entry).await {
                Ok(()) => Err(error),
                Err(undoing) => Err(NetworkError::NotUndone {
                    error: Box::new(error),
                    undoing: Box::new(undoing),
                }),
            },
        }
    }

    async fn add(
        &self,
        pod: &Attachment,
        list: &NetworkList,
        entry: &mut Entry,
    ) -> Result<Attached, NetworkError> {
        let value = {
            let _shared = self.plugins.read().await;
            network::add(&self.runner, list, entry).await?
        };
        // Every plugin's result has been read before it was handed on.
        let result = AddResult::parse(&value).unwrap_or_default();
        entry.result = Some(value);
        let names: Vec<String> = result
            .interfaces
            .iter()
            .filter(|interface| !interface.sandbox.is_empty())
            .map(|interface| interface.name.clone())
            .collect();
        let namespace = pod.namespace_path.clone();
        let queue_pairs = pod.queue_pairs.max(1);
        let joined = blocking(move || {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            guest::join(&namespace, &names, queue_pairs)
        });
        let (written, joined) = tokio::join!(self.put(entry), joined);
        written?;
        let joined = joined?;
        let mut ips: Vec<IpAddr> = result.pod_ips().collect();
        if ips.is_empty() {
            // A plugin that tells nothing of what it does.
            let own = joined
                .interfaces
                .iter()
                .flat_map(|interface| &interface.addresses);
            let link_local = |address: &IpAddr| match address {
                IpAddr::V4(_) => false,
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            ips.extend(
                own.map(|prefix| prefix.address)
                    .filter(|address| !link_local(address)),
            );
        }
        if ips.is_empty() || joined.interfaces.is_empty() {
            return Err(NetworkError::NoAddress(list.name.clone()));
        }
        Ok(Attached {
            interfaces: joined.interfaces,
            routes: joined.routes,
            neighbors: joined.neighbors,
            ips,
        })
    }

    pub(super) async fn detach(&self, pod_id: &str) -> Result<(), NetworkError> {
        let _turn = self.turns.take(pod_id).await;
        for entry in self.entries(Some(pod_id)).await? {
            self.remove(&entry).await?;
        }
        Ok(())
    }

    pub(super) async fn check(&self, pod_id: &str) -> Result<(), NetworkError> {
        let given_up = || NetworkError::CheckGivenUp(pod_id.to_owned());
        let (_turn, wanted) = self.turns.take_idle(pod_id).ok_or_else(given_up)?;
        tokio::select! {
            checked = self.check_in_turn(pod_id) => checked,
            () = wanted.cancelled() => Err(given_up()),
        }
    }

    async fn check_in_turn(&self, pod_id: &str) -> Result<(), NetworkError> {
        let entries = self.entries(Some(pod_id)).await?;
        if entries.is_empty() {
            return Err(NetworkError::NotAttached(pod_id.to_owned()));
        }
        for entry in entries {
            network::check(&self.runner, &self.network_of(&entry)?, &entry).await?;
        }
        Ok(())
    }

    pub(super) async fn collect(&self, living: &HashSet<String>) -> Vec<NetworkError> {
        let entries = match self.entries(None).await {
            Ok(entries) => entries,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        let is_gone = |entry: &Entry| self.found.contains(&entry.pod_id) && !living.contains(&entry.pod_id);
        for entry in entries.into_iter().filter(is_gone) {
            let _turn = self.turns.take(&entry.pod_id).await;
            tracing::info!(
                "pod {} ({}) is gone; its network is freed",
                entry.pod_name,
                entry.pod_id
            );
            if let Err(error) = self.remove(&entry).await {
                errors.push(error);
            }
        }
        let _alone = self.plugins.write().await;
        // Written before plugins are run and removed after: now that none runs, these are all that hold something, those among
        // them that could not be removed and those that came meanwhile.
        let valid = match self.entries(None).await {
            Ok(entries) => entries,
            Err(error) => {
                errors.push(error);
                return errors;
            }
        };
        let mut networks: BTreeMap<String, Arc<NetworkList>> = BTreeMap::new();
        for entry in &valid {
            if let Ok(list) = self.network_of(entry) {
                networks.insert(list.name.clone(), Arc::new(list));
            }
        }
        if let Ok(list) = &locked(&self.state).list {
            networks.insert(list.name.clone(), Arc::clone(list));
        }
        for (name, list) in networks {
            let attachments: Vec<_> = valid
                .iter()
                .filter(|entry| entry.config.get("name").and_then(Value::as_str) == Some(&name))
                .map(|entry| ValidAttachment {
                    container_id: &entry.pod_id,
                    interface: &entry.interface,
                })
                .collect();
            let failed = network::gc(&self.runner, &list, &attachments).await;
            errors.extend(failed.into_iter().map(NetworkError::Plugin));
        }
        errors
    }

    /// Runs DEL for what was added, and forgets it.
    async fn remove(&self, entry: &Entry) -> Result<(), NetworkError> {
        let list = self.network_of(entry)?;
        {
            let _shared = self.plugins.read().await;
            network::del(&self.runner, &list, entry).await?;
        }
        let (cache, pod_id, interface) = (self.cache.clone(), entry.pod_id.clone(), entry.interface.clone());
        let failed = self.record("delete");
        blocking(move || cache.remove(&pod_id, &interface).map_err(failed)).await?;
        locked(&self.ports).release(&entry.pod_id);
        Ok(())
    }

    pub(super) fn entry(&self, pod: &Attachment, list: &NetworkList) -> Result<Entry, NetworkError> {
        let mut arguments = "IgnoreUnknown=1".to_owned();
        for (key, field, value) in [
            ("K8S_POD_NAMESPACE", "metadata.namespace", &pod.namespace),
            ("K8S_POD_NAME", "metadata.name", &pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", "pod_sandbox_id", &pod.pod_id),
            ("K8S_POD_UID", "metadata.uid", &pod.uid),
        ] {
            if value.contains([';', '\0', '\n']) {
                return Err(NetworkError::Unspeakable {
                    field,
                    value: value.clone(),
                    reason: "it must have no semicolon, line break or NUL",
                });
            }
            arguments.extend([";", key, "=", value]);
        }
        let mut aliases = vec![pod.name.as_str()];
        if !pod.hostname.is_empty() && pod.hostname != pod.name {
            aliases.push(&pod.hostname);
        }
        aliases.retain(|alias| !alias.is_empty());
        let mappings = host_ports(pod);
        let pod_cidrs = locked(&self.pod_cidrs).clone();
        let known = capabilities(&PodFacts {
            aliases,
            annotations: &pod.annotations,
            port_mappings: &mappings,
            cgroup: pod.cgroup_parent.as_deref(),
            dns: pod.dns.as_ref(),
            pod_cidrs: &pod_cidrs,
        })?;
        Ok(Entry {
            pod_id: pod.pod_id.clone(),
            pod_name: format!("{}/{}", pod.namespace, pod.name),
            interface: INTERFACE.to_owned(),
            namespace_path: pod.namespace_path.clone(),
            arguments,
            capabilities: known,
            file: list.file.clone(),
            config: list.to_json(),
            result: None,
        })
    }

    pub(super) fn network_of(&self, entry: &Entry) -> Result<NetworkList, NetworkError> {
        entry.network().map_err(|fault| NetworkError::BadRecord {
            pod_id: entry.pod_id.clone(),
            fault,
            directory: self.cache.directory().to_owned(),
        })
    }

    pub(super) async fn entries(&self, pod_id: Option<&str>) -> Result<Vec<Entry>, NetworkError> {
        let (cache, pod_id) = (self.cache.clone(), pod_id.map(str::to_owned));
        let failed = self.record("read");
        blocking(move || cache.list(pod_id.as_deref()).map_err(failed)).await
    }

    pub(super) async fn put(&self, entry: &Entry) -> Result<(), NetworkError> {
        let (cache, entry) = (self.cache.clone(), entry.clone());
        let failed = self.record("write");
        blocking(move || cache.put(&entry).map_err(failed)).await
    }

    pub(super) fn record(
        &self,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> NetworkError + Send + use<> {
        let directory = self.cache.directory().to_owned();
        move |source| NetworkError::Record {
            action,
            directory,
            source,
        }
    }
}

fn host_ports(pod: &Attachment) -> Vec<PortMapping> {
    let mapped = pod.port_mappings.iter().filter(|mapping| mapping.host_port > 0);
    mapped.copied().collect()
}

fn asks_for(list: &NetworkList, capability: &str) -> bool {
    list.plugins
        .iter()
        .any(|plugin| plugin.capabilities.contains(capability))
}
