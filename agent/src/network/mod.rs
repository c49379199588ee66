//! The guest's network: interfaces, addresses, routes and neighbours, set by rtnetlink(7).

pub mod address;
pub mod configure;
pub mod netlink;
pub mod rtnetlink;
