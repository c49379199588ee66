//! What pods would be attached to now, and whether they can be.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use tokio::{runtime::Handle, task::AbortHandle};

use super::Inner;
use crate::network::{
    cni::{
        cache::write_durably,
        config::{self, NetworkList, SpecVersion},
        network,
        plugin::Command,
        template, watch,
    },
    error::NetworkError,
    locked,
    prefix::IpPrefix,
};

/// The file in the directory of configurations that is made of the template.
const TEMPLATED: &str = "10-bulkhead.conflist";

/// How often plugins are asked whether they are ready: while they are, and while they are not.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);
const STATUS_RETRY: Duration = Duration::from_secs(5);

impl Inner {
    /// Reads the configuration, and goes on doing so and asking the plugins.
    pub(super) fn start(self: &Arc<Self>, runtime: &Handle) -> Vec<AbortHandle> {
        self.look();
        let (looking, asking) = (Arc::clone(self), Arc::clone(self));
        let watching = runtime.spawn(async move {
            watch::watch(&looking.conf_dir, || looking.look()).await;
        });
        let asking = runtime.spawn(async move { asking.keep_asking_status().await });
        vec![watching.abort_handle(), asking.abort_handle()]
    }

    /// Reads the configuration. Gives a further directory whose changes matter.
    pub(super) fn look(&self) -> Option<PathBuf> {
        let found = config::load(&self.conf_dir);
        let folder = found
            .as_ref()
            .ok()
            .and_then(NetworkList::folder)
            .filter(|folder| folder.is_dir());
        let mut state = locked(&self.state);
        match (found, &state.list) {
            (Ok(list), Ok(known)) if list == **known => {}
            (Ok(list), _) => {
                tracing::info!(
                    "pods are attached to CNI network {} of {}, in version {}",
                    list.name,
                    list.file.display(),
                    list.version.as_str()
                );
                state.status =
                    network::present(&self.runner, &list, Command::Status).map_err(|error| error.to_string());
                if state.status.is_ok() && list.version >= SpecVersion::V1_1_0 {
                    state.status = Err(format!(
                        "the plugins of CNI network {} have not yet said whether they are ready",
                        list.name
                    ));
                }
                state.list = Ok(Arc::new(list));
                self.ask_status.notify_one();
            }
            (Err(reason), Err(known)) if reason == *known => {}
            (Err(reason), _) => {
                tracing::warn!("pods cannot be attached to a network: {reason}");
                state.list = Err(reason);
            }
        }
        folder
    }

    pub(super) async fn keep_asking_status(&self) {
        loop {
            let list = locked(&self.state).list.clone();
            let mut wait = STATUS_INTERVAL;
            if let Ok(list) = list {
                let status = network::status(&self.runner, &list)
                    .await
                    .map_err(|error| error.to_string());
                if status.is_err() {
                    wait = STATUS_RETRY;
                }
                let mut state = locked(&self.state);
                let current = state
                    .list
                    .as_ref()
                    .is_ok_and(|current| Arc::ptr_eq(current, &list));
                if current && state.status != status {
                    match &status {
                        Ok(()) => tracing::info!("CNI network {} is ready", list.name),
                        Err(reason) => tracing::warn!("the network is not ready: {reason}"),
                    }
                    state.status = status;
                }
            }
            let _ = tokio::time::timeout(wait, self.ask_status.notified()).await;
        }
    }

    pub(super) fn fill_in_template(&self, cidrs: &[IpPrefix]) -> Result<(), NetworkError> {
        let Some(path) = &self.template else {
            return Ok(());
        };
        let failed = |reason: String| NetworkError::Template {
            template: path.clone(),
            reason,
        };
        let text = fs::read_to_string(path).map_err(|error| failed(format!("it cannot be read: {error}")))?;
        let made = template::render(&text, cidrs).map_err(failed)?;
        let target = self.conf_dir.join(TEMPLATED);
        if fs::read(&target).is_ok_and(|known| known == made.as_bytes()) {
            return Ok(());
        }
        fs::create_dir_all(&self.conf_dir)
            .and_then(|()| write_durably(&target, made.as_bytes()))
            .map_err(|error| failed(format!("{} cannot be written: {error}", target.display())))
    }
}
