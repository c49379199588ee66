//! What undoes a half-made pod: for each step one that takes it back, run in reverse.

use std::{fmt, future::Future, pin::Pin};

type Undo = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Steps that can be taken back. Each is added before its step is tried, so that a step that failed half-way is undone
/// too; so undoing must do nothing where nothing was done.
#[derive(Default)]
#[must_use = "steps are neither undone nor kept by themselves"]
pub(super) struct Rollback {
    steps: Vec<(&'static str, Undo)>,
}

impl Rollback {
    /// Adds what undoes `step`, named as what is removed.
    pub(super) fn add<E: fmt::Display>(
        &mut self,
        step: &'static str,
        undo: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let undo = async move { undo.await.map_err(|error| error.to_string()) };
        self.steps.push((step, Box::pin(undo)));
    }

    /// Undoes every step, the last one first. A step that cannot be undone does not keep the others from it; gives what
    /// is left and why.
    pub(super) async fn undo(self) -> Vec<String> {
        let mut left = Vec::new();
        for (step, undo) in self.steps.into_iter().rev() {
            if let Err(error) = undo.await {
                left.push(format!("{step}: {error}"));
            }
        }
        left
    }

    /// Leaves everything as it is.
    pub(super) fn keep(self) {
        drop(self);
    }
}

impl fmt::Debug for Rollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.steps.iter().map(|(step, _)| step))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn steps_are_undone_in_reverse_and_one_failure_does_not_stop_the_others() {
        let undone = Arc::new(Mutex::new(Vec::new()));
        let mut rollback = Rollback::default();
        for step in ["record", "directory", "cgroup", "machine"] {
            let undone = Arc::clone(&undone);
            rollback.add(step, async move {
                undone.lock().unwrap().push(step);
                if step == "cgroup" { Err("busy") } else { Ok(()) }
            });
        }
        assert_eq!(rollback.undo().await, ["cgroup: busy"]);
        assert_eq!(
            *undone.lock().unwrap(),
            ["machine", "cgroup", "directory", "record"]
        );
    }

    #[tokio::test]
    async fn what_is_kept_is_not_undone() {
        let mut rollback = Rollback::default();
        let undone = Arc::new(Mutex::new(false));
        let flag = Arc::clone(&undone);
        rollback.add("record", async move {
            *flag.lock().unwrap() = true;
            Ok::<(), &str>(())
        });
        rollback.keep();
        assert!(!*undone.lock().unwrap());
    }
}
