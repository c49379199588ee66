//! The pod's containers: what they are made of, how their processes start, run and end.

pub mod cgroup;
pub mod create;
pub mod engine;
pub mod error;
pub mod exec;
pub mod launch;
pub mod mount;
pub mod pod_init;
pub mod process;
pub mod process_io;
pub mod root_path;
pub mod sandbox;
pub mod spec;
pub mod state;
pub mod sysctl;
pub mod table;
mod update;
pub mod user;
