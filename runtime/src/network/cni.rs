//! CNI, the Container Network Interface, as its specification 1.1 has a runtime do it.
//!
//! [`config`] reads what an operator has put into a directory, and [`watch`] notices when it changes; [`network`] runs the
//! plugins of a configuration one after the other with [`plugin`], and what was added is remembered by [`cache`].

pub(crate) mod cache;
pub(crate) mod capabilities;
pub(crate) mod config;
pub(crate) mod error;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod network;
pub(crate) mod plugin;
pub(crate) mod result;
pub(crate) mod template;
pub(crate) mod watch;
