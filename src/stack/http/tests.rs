//! The loader against a real server on loopback.

#[path = "../../../tests/sc/server.rs"]
mod server;
