//! Sites for the unit tests of modules, over temporary directories.

pub mod loader;
pub mod transformation;
