//! Exec, attach and port-forward, with clients of their own.

mod attach;
mod client;
mod doors;
mod exec;
mod hostile;
mod ports;
