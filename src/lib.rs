//! `sc`: jobs on one node share one copy of their data.

pub mod cli;
pub mod console;
pub mod durable;
pub mod error;
pub mod process;
pub mod request;
pub mod signal;
pub mod stack;
pub mod units;
