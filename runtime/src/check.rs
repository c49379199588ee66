//! Whether this host can run pods: what `bulkhead check` shows and what the runtime's readiness is made of.

mod files;
mod host;
mod kvm;

use std::{collections::BTreeMap, fmt};

use crate::config::{Config, HandlerConfig, VmDefaults};

/// One thing that a host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub outcome: Outcome,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it must be.
    Good(String),
    /// Pods run, but not all is as it should be.
    Warning {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// No pod can run.
    Bad {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Outcome {
    fn bad(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Bad {
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn warning(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Warning {
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Good(found) => write!(f, "ok    {}: {found}", self.name),
            Outcome::Warning { problem, remedy } => {
                write!(f, "warn  {}: {problem}\n      {remedy}", self.name)
            }
            Outcome::Bad { problem, remedy } => write!(f, "FAIL  {}: {problem}\n      {remedy}", self.name),
        }
    }
}

/// Everything that a host needs. Blocking.
pub fn all(config: &Config) -> Vec<Check> {
    let mut checks: Vec<(&'static str, Outcome)> = vec![
        ("rights", host::rights()),
        ("processor", kvm::processor()),
        ("KVM", kvm::device()),
        ("cgroup v2", host::cgroups()),
        ("network", host::network(&config.network)),
        ("mkfs.ext4", host::mkfs()),
        ("VMM", files::vmm(&config.vm.vmm)),
        ("guest kernel", files::kernel(&config.vm.kernel)),
        ("guest initramfs", files::initramfs(&config.vm.initramfs)),
        ("storage", host::storage(&config.root, config.vm.scratch_mib)),
    ];
    for handler in config.handlers.values() {
        let kernel = handler.kernel.as_deref().map(files::kernel);
        let initramfs = handler.initramfs.as_deref().map(files::initramfs);
        checks.extend(kernel.map(|outcome| ("guest kernel", outcome)));
        checks.extend(initramfs.map(|outcome| ("guest initramfs", outcome)));
    }
    checks
        .into_iter()
        .map(|(name, outcome)| Check { name, outcome })
        .collect()
}

/// The first reason why no pod can run now, of those that may change while the daemon runs. Blocking, for a few system calls.
pub fn first_problem(vm: &VmDefaults) -> Option<String> {
    let checks = [
        kvm::present(),
        files::vmm(&vm.vmm),
        files::kernel(&vm.kernel),
        files::initramfs(&vm.initramfs),
    ];
    checks.into_iter().find_map(bad)
}

/// Why no pod of a runtime handler can run now, for each that has such a problem of its own. Blocking, for a few system calls.
pub fn handler_problems(handlers: &BTreeMap<String, HandlerConfig>) -> Vec<String> {
    let problems = handlers.iter().filter_map(|(name, handler)| {
        let kernel = handler.kernel.as_deref().map(files::kernel);
        let initramfs = handler.initramfs.as_deref().map(files::initramfs);
        let problem = kernel.into_iter().chain(initramfs).find_map(bad)?;
        Some(format!(
            "no pod of the runtime handler {name:?} can run: {problem}"
        ))
    });
    problems.collect()
}

/// A problem with its remedy.
fn bad(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Bad { problem, remedy } => Some(format!("{problem}; {remedy}")),
        Outcome::Good(_) | Outcome::Warning { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_the_first_problem_with_its_remedy() {
        let vm = VmDefaults {
            vmm: "/nonexistent/vmm".into(),
            ..VmDefaults::default()
        };
        let problem = first_problem(&vm).expect("there is no such VMM");
        assert!(problem.contains("; "), "{problem}");
    }

    #[test]
    fn a_handler_whose_files_cannot_be_read_is_named() {
        let with = |kernel: Option<&str>, initramfs: Option<&str>| HandlerConfig {
            kernel: kernel.map(Into::into),
            initramfs: initramfs.map(Into::into),
            ..HandlerConfig::default()
        };
        let handlers = BTreeMap::from([
            ("as-all".to_owned(), with(None, None)),
            ("big".to_owned(), with(Some("/nonexistent/vmlinux"), None)),
            ("small".to_owned(), with(None, Some("/nonexistent/initramfs"))),
        ]);
        let problems = handler_problems(&handlers);
        let [big, small] = &problems[..] else {
            panic!("{problems:?}")
        };
        assert!(
            big.contains("\"big\" can run: /nonexistent/vmlinux: No such file"),
            "{big}"
        );
        assert!(
            small.contains("\"small\" can run: /nonexistent/initramfs: No such file"),
            "{small}"
        );
    }

    #[test]
    fn a_check_shows_what_to_do() {
        let check = Check {
            name: "KVM",
            outcome: Outcome::bad("no /dev/kvm", "load a module"),
        };
        assert_eq!(check.to_string(), "FAIL  KVM: no /dev/kvm\n      load a module");
    }
}
