//! `sc`: jobs on one node share one copy of their data. The first one loads it, the others wait
//! and share, the last one to leave deletes it. There is no daemon: each invocation takes a lock,
//! reads and changes a small file, and goes.
//!
//! # Words
//!
//! A *repository* is the directory `<base>/<name>` that jobs read; its *repofile* says who *holds*
//! it and in what *state* it is. A *stack* is what a command line asks for: a *loader*, which
//! brings a file, and the *transformations* above it. Each module that runs is a *stage*; a
//! *stamp* in the *journal* says that it is finished, the *manifest* in the journal what it made.
//! The man page and the heads of the modules use the same words.
//!
//! # The house
//!
//! ```text
//! main       parse, perform, print the error, exit
//!   cli        what was typed (clap)          request   what is meant; every usage error
//!   action     POLICY: use, unuse, run, status, list, verify, gc, clear, doctor, each as its entry in
//!              the man page; what is evicted when
//!   load       PROTOCOL: run the stages, publish; what a kill leaves
//!   adopt      PROTOCOL: a journal for data that has none: a reference's, or the journal was lost
//!   verify     PROTOCOL: compare the data with the manifest; what is read for it and what is not
//!   teardown   PROTOCOL: delete what the journal names; what a kill leaves
//!   repository NOUNS ON DISK: lock, link lock, repofile, holder, journal, place, space, survey;
//!              THE INVARIANTS
//!   stack      NOUNS OF THE COMMAND LINE: http, file, dirac, checksums, archives
//!   durable    MECHANISM: every path becomes a descriptor, every change of the disk a call here
//!   plan       what is to be loaded, and when two loads are the same
//!   share      who else may join, and by which modes that is told
//!   conf, origin, mounts, process, cgroup, signal, crew, part, hash, units, console, report, error   leaves
//! ```
//!
//! Imports go down only. `repository` and `stack` don't know each other: a module that runs is
//! handed a [`stack::Site`], and [`load`] decides what becomes of its products. Whatever changes
//! a repository takes a [`repository::Held`]: the lock is an argument, not a convention.
//!
//! # Assumptions
//!
//! The kernel frees a flock when its owner dies; rename(2), link(2) and mkdir(2) are atomic;
//! writes that returned are seen by every later reader of the same boot. Of a boot before this
//! one nothing is believed.

pub mod action;
pub mod adopt;
pub mod cgroup;
pub mod cli;
pub mod conf;
pub mod console;
pub mod crew;
pub mod durable;
pub mod error;
pub mod hash;
pub mod load;
pub mod mounts;
pub mod origin;
pub mod part;
pub mod plan;
pub mod process;
pub mod report;
pub mod repository;
pub mod request;
pub mod share;
pub mod signal;
pub mod stack;
pub mod teardown;
pub mod units;
pub mod verify;
