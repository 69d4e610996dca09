//! The real binary, real processes, real files; one file per behaviour.

mod crash;
mod documents;
mod inject;
mod invariants;
mod life;
mod node;
mod options;
mod proxy;
mod server;
