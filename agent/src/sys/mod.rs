//! The system calls that have no safe wrapper: everything `unsafe` of the agent lives in this folder.

pub mod clone;
pub mod device_filter;
pub mod entropy;
pub mod exec;
pub mod fds;
pub mod mount_attributes;
pub mod namespaces;
pub mod reactor;
pub mod signals;
