//! End-to-end tests of Bulkhead: what they share to drive a node with the real clients.
