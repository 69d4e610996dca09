//! The real binary, real processes, real files; one file per behaviour.

mod crash;
mod crowd;
mod dataset;
mod documents;
mod hostile;
mod inject;
mod invariants;
mod life;
mod model;
mod node;
mod options;
mod proxy;
mod resume;
mod run;
mod server;
mod signals;
mod upgrade;
mod waiting;
