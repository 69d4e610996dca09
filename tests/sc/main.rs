//! The real binary, real processes, real files; one file per behaviour.

mod crash;
mod documents;
mod hostile;
mod invariants;
mod life;
mod model;
mod node;
mod options;
mod proxy;
mod server;
