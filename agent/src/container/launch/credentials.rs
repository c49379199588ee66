//! Gives a child its limits, its groups and user, and its capabilities, in the order in which each is still allowed.

use std::{fs::File, io, io::Write};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
        configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
        set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::ProcessPlan;

/// Descriptors of a process that asks for no limit, soft and hard: what distributions of Linux give a service.
const DESCRIPTORS: (u64, u64) = (1024, 524_288);

/// A credential could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot set the {what} of the process")]
pub struct CredentialsError {
    what: &'static str,
    #[source]
    source: io::Error,
}

fn setting(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> CredentialsError {
    move |errno| CredentialsError {
        what,
        source: errno.into(),
    }
}

/// Undoes what spares the agent from the kernel's OOM killer. While /proc is still the agent's.
pub fn set_oom_score(plan: &ProcessPlan) -> Result<(), CredentialsError> {
    File::options()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(plan.oom_score_adj.to_string().as_bytes()))
        .map_err(|source| CredentialsError {
            what: "oom_score_adj",
            source,
        })
}

fn usual_descriptors() -> Rlimit {
    let (soft, hard) = DESCRIPTORS;
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    Rlimit {
        current: Some(soft.min(most)),
        maximum: Some(hard.min(most)),
    }
}

/// Turns this process from the agent's child into whom `plan` names.
pub fn assume(plan: &ProcessPlan) -> Result<(), CredentialsError> {
    setrlimit(Resource::Nofile, usual_descriptors()).map_err(setting("limits"))?;
    for limit in &plan.limits {
        setrlimit(limit.resource, limit.limit).map_err(setting("limits"))?;
    }
    if plan.no_new_privileges {
        set_no_new_privs(true).map_err(setting("no_new_privs"))?;
    }

    let capabilities = &plan.capabilities;
    for dropped in (CapabilitySet::all() - capabilities.bounding).iter() {
        match remove_capability_from_bounding_set(dropped) {
            // An older kernel does not know every one.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(setting("bounding set")(error)),
        }
    }
    // Or the change of the user would take them all.
    set_keep_capabilities(true).map_err(setting("capabilities"))?;
    let groups: Vec<Gid> = plan.user.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).map_err(setting("groups"))?;
    let gid = Gid::from_raw(plan.user.gid);
    set_thread_res_gid(gid, gid, gid).map_err(setting("group"))?;
    let uid = Uid::from_raw(plan.user.uid);
    set_thread_res_uid(uid, uid, uid).map_err(setting("user"))?;
    set_keep_capabilities(false).map_err(setting("capabilities"))?;

    set_capabilities(
        None,
        CapabilitySets {
            effective: capabilities.effective,
            permitted: capabilities.permitted,
            inheritable: capabilities.inheritable,
        },
    )
    .map_err(setting("capabilities"))?;
    clear_ambient_capability_set().map_err(setting("ambient capabilities"))?;
    for ambient in capabilities.ambient.iter() {
        configure_capability_in_ambient_set(ambient, true).map_err(setting("ambient capabilities"))?;
    }
    Ok(())
}
