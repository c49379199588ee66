//! The host's side of pods in virtual machines: what `bulkheadd` and `bulkhead` are made of.
//!
//! A request comes in at [`cri`], is checked and translated, and becomes an operation on a [`sandbox`] or a [`container`].
//! What must be remembered is in the [`store`]; what is listed comes from memory. The guest is reached by its agent's
//! protocol and nothing it says is trusted further than its own pod.

pub mod admin;
pub mod allocator;
pub mod check;
pub mod config;
pub mod container;
pub mod cri;
pub mod daemon;
pub mod events;
pub mod identity;
pub mod image;
pub mod lock;
pub mod logs;
pub mod network;
pub mod notify;
pub mod observe;
pub mod refusal;
pub mod sandbox;
pub mod stats;
pub mod store;
pub mod streaming;
pub mod table;
pub mod turn;
