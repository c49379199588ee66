//! What operators see of the daemon while it runs: its log, its figures for Prometheus, and traces of its calls.

pub mod endpoint;
pub mod log;
pub mod metrics;
pub mod process;
pub mod traces;
