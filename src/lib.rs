//! `sc`: jobs on one node share one copy of their data.

pub mod action;
pub mod cli;
pub mod console;
pub mod durable;
pub mod error;
pub mod load;
pub mod part;
pub mod process;
pub mod report;
pub mod repository;
pub mod request;
pub mod signal;
pub mod stack;
pub mod teardown;
pub mod units;
