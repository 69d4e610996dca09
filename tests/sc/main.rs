//! The real binary, real processes, real files; one file per behaviour.

mod archives;
mod conf;
mod crash;
mod crowd;
mod dataset;
mod documents;
mod hostile;
mod inject;
mod invariants;
mod life;
mod model;
mod modules;
mod node;
mod options;
mod proxy;
mod reference;
mod resume;
mod run;
mod server;
mod servers;
mod signals;
mod state;
mod status;
mod statuses;
mod upgrade;
mod waiting;
