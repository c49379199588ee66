//! Bulkhead as its users see it: the real `crictl`, the real daemon, machines with kernels of their own.
//!
//! These tests run in a node with KVM, by `hack/test`; elsewhere they are ignored.
#![allow(clippy::format_collect, reason = "the texts are short")]

mod admin;
mod bad_hosts;
mod bad_images;
mod crashes;
mod crictl;
mod critest;
mod events;
mod exec;
mod exits;
mod image_volumes;
mod images;
mod impossible;
mod isolation;
mod leaks;
mod life;
mod logs;
mod network;
mod output;
mod pulls;
mod refusals;
mod stats;
mod storage;
mod streaming;
mod users;
