//! The capabilities of a container's processes.

use std::collections::BTreeSet;

use bulkhead_proto::{agent, cri};

use crate::refusal::Refusal;

/// What a container has when its request says nothing: what runtimes have given since Docker.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Every capability of Linux (capabilities(7), Linux 5.9 and newer).
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

const FIELD: &str = "config.linux.security_context.capabilities";

/// The sets of a container that asks for these changes, or of a privileged one.
///
/// "ALL" is looked at first, so that `add: ALL, drop: X` is all but X and `drop: ALL, add: X` is X alone. What is added
/// as ambient is inheritable and permitted too, without which the kernel does not take it.
///
/// # Errors
///
/// [`Refusal`] for a name that is no capability.
pub(super) fn capabilities(
    asked: Option<&cri::Capability>,
    privileged: bool,
) -> Result<agent::Capabilities, Refusal> {
    let none = cri::Capability::default();
    let asked = asked.unwrap_or(&none);
    let add = names(&asked.add_capabilities, "add_capabilities")?;
    let drop = names(&asked.drop_capabilities, "drop_capabilities")?;
    let ambient = names(&asked.add_ambient_capabilities, "add_ambient_capabilities")?;

    let mut set: BTreeSet<&'static str> = if privileged || add.all {
        ALL.into()
    } else if drop.all {
        BTreeSet::new()
    } else {
        DEFAULT.into()
    };
    if !privileged {
        set.extend(&add.named);
        set.retain(|name| !drop.named.contains(name));
    }
    let ambient: BTreeSet<&'static str> = if ambient.all { ALL.into() } else { ambient.named };
    let missing: Vec<&str> = ambient.difference(&set).copied().collect();
    if !missing.is_empty() {
        return Err(Refusal::invalid(
            format!("{FIELD}.add_ambient_capabilities"),
            format!("{missing:?} would be ambient without being permitted; add them to add_capabilities too"),
        ));
    }
    let owned = |set: &BTreeSet<&str>| set.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    Ok(agent::Capabilities {
        bounding: owned(&set),
        permitted: owned(&set),
        effective: owned(&set),
        inheritable: owned(&ambient),
        ambient: owned(&ambient),
    })
}

struct Names {
    all: bool,
    named: BTreeSet<&'static str>,
}

fn names(asked: &[String], field: &str) -> Result<Names, Refusal> {
    let mut names = Names {
        all: false,
        named: BTreeSet::new(),
    };
    for text in asked {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            names.all = true;
        } else if let Some(known) = ALL.iter().find(|known| **known == name) {
            names.named.insert(known);
        } else {
            return Err(Refusal::invalid(
                format!("{FIELD}.{field}"),
                format!("{text:?} is no capability of Linux"),
            ));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounding(add: &[&str], drop: &[&str]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let asked = cri::Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..Default::default()
        };
        capabilities(Some(&asked), false).unwrap().bounding
    }

    #[test]
    fn a_container_has_the_usual_ones_and_no_ambient_ones() {
        let usual = capabilities(None, false).unwrap();
        assert_eq!(usual.bounding, DEFAULT);
        assert_eq!(usual.effective, DEFAULT);
        assert!(usual.ambient.is_empty() && usual.inheritable.is_empty());
        assert!(!usual.bounding.contains(&"NET_ADMIN".to_owned()));
    }

    #[test]
    fn all_is_looked_at_first_whatever_the_order() {
        assert_eq!(bounding(&["ALL"], &[]).len(), ALL.len());
        assert!(bounding(&[], &["ALL"]).is_empty());
        assert_eq!(bounding(&["NET_ADMIN"], &["ALL"]), ["NET_ADMIN"]);
        assert_eq!(bounding(&["all"], &["CAP_NET_RAW"]).len(), ALL.len() - 1);
        assert_eq!(bounding(&["cap_net_admin"], &["net_raw"]).len(), DEFAULT.len());
    }

    #[test]
    fn a_privileged_container_has_every_one() {
        assert_eq!(capabilities(None, true).unwrap().effective, ALL);
        let asked = cri::Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        };
        assert_eq!(capabilities(Some(&asked), true).unwrap().effective, ALL);
    }

    #[test]
    fn ambient_ones_must_be_permitted() {
        let mut asked = cri::Capability {
            add_ambient_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        };
        assert!(capabilities(Some(&asked), false).is_err());
        asked.add_capabilities = vec!["NET_ADMIN".into()];
        let sets = capabilities(Some(&asked), false).unwrap();
        assert_eq!(sets.ambient, ["NET_ADMIN"]);
        assert_eq!(sets.inheritable, ["NET_ADMIN"]);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let asked = cri::Capability {
            drop_capabilities: vec!["NET_MAGIC".into()],
            ..Default::default()
        };
        let message = capabilities(Some(&asked), false).unwrap_err().to_string();
        assert!(
            message.contains("drop_capabilities") && message.contains("NET_MAGIC"),
            "{message}"
        );
    }
}
