//! Filters of lists: every field that is set must fit.

use std::collections::HashMap;

use bulkhead_proto::cri::{ContainerFilter, ContainerState, PodSandboxFilter, PodSandboxState};

/// Whether a pod is asked for.
pub(super) fn pod(
    filter: Option<&PodSandboxFilter>,
    id: &str,
    state: PodSandboxState,
    labels: &HashMap<String, String>,
) -> bool {
    filter.is_none_or(|filter| {
        id.starts_with(&filter.id)
            && filter
                .state
                .as_ref()
                .is_none_or(|wanted| wanted.state == i32::from(state))
            && selected(&filter.label_selector, labels)
    })
}

/// Whether a container is asked for.
pub(super) fn container(
    filter: Option<&ContainerFilter>,
    id: &str,
    pod: &str,
    state: ContainerState,
    labels: &HashMap<String, String>,
) -> bool {
    filter.is_none_or(|filter| {
        id.starts_with(&filter.id)
            && pod.starts_with(&filter.pod_sandbox_id)
            && filter
                .state
                .as_ref()
                .is_none_or(|wanted| wanted.state == i32::from(state))
            && selected(&filter.label_selector, labels)
    })
}

fn selected(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::{ContainerStateValue, PodSandboxStateValue};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn no_filter_and_an_empty_one_are_all() {
        let labels = labels(&[("a", "b")]);
        for filter in [None, Some(PodSandboxFilter::default())] {
            assert!(pod(
                filter.as_ref(),
                "abc",
                PodSandboxState::SandboxReady,
                &labels
            ));
        }
        for filter in [None, Some(ContainerFilter::default())] {
            assert!(container(
                filter.as_ref(),
                "abc",
                "p",
                ContainerState::ContainerExited,
                &labels
            ));
        }
    }

    #[test]
    fn every_field_must_fit() {
        let filter = ContainerFilter {
            id: "ab".into(),
            state: Some(ContainerStateValue {
                state: ContainerState::ContainerRunning.into(),
            }),
            pod_sandbox_id: "po".into(),
            label_selector: labels(&[("a", "1")]),
        };
        let have = labels(&[("a", "1"), ("b", "2")]);
        let running = ContainerState::ContainerRunning;
        assert!(container(Some(&filter), "abc", "pod", running, &have));
        assert!(!container(Some(&filter), "bbc", "pod", running, &have));
        assert!(!container(Some(&filter), "abc", "dop", running, &have));
        assert!(!container(
            Some(&filter),
            "abc",
            "pod",
            ContainerState::ContainerCreated,
            &have
        ));
        assert!(!container(
            Some(&filter),
            "abc",
            "pod",
            running,
            &labels(&[("a", "2")])
        ));
        assert!(!container(Some(&filter), "abc", "pod", running, &labels(&[])));
    }

    #[test]
    fn a_created_container_is_found_though_its_state_is_zero() {
        let filter = ContainerFilter {
            state: Some(ContainerStateValue {
                state: ContainerState::ContainerCreated.into(),
            }),
            ..ContainerFilter::default()
        };
        assert!(container(
            Some(&filter),
            "c",
            "p",
            ContainerState::ContainerCreated,
            &labels(&[])
        ));
        assert!(!container(
            Some(&filter),
            "c",
            "p",
            ContainerState::ContainerRunning,
            &labels(&[])
        ));
        let filter = PodSandboxFilter {
            state: Some(PodSandboxStateValue { state: 99 }),
            ..PodSandboxFilter::default()
        };
        assert!(!pod(
            Some(&filter),
            "p",
            PodSandboxState::SandboxReady,
            &labels(&[])
        ));
    }
}
