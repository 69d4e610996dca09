//! `--stats`: what the repositories take, and what they have been good for. Takes no lock and makes
//! nothing.

use std::collections::BTreeMap;

use crate::console::Console;
use crate::error::Result;
use crate::report::stats::{self, Directory};
use crate::repository::past::{self, Past};
use crate::repository::{space, survey};
use crate::request::{Form, Request};

pub fn stats(request: &Request, form: Form, console: &Console) -> Result<()> {
    let spec = &request.repository;
    let problem = &mut |error| console.warn(error);
    // First what is there: what goes meanwhile is met a second time in the past, where it is known
    // by its counts. The other way round it would be missed.
    let views = survey::look_at_all(&spec.directories, spec, problem);
    let pasts: BTreeMap<u32, Past> = match &spec.stats_dir {
        Some(stats_dir) => past::read_all(stats_dir, problem)?,
        None => BTreeMap::new(),
    };
    let mut directories = Vec::new();
    for base in survey::distinct(&spec.directories) {
        let mut directory = Directory::new(base, request.max_size, space::free_bytes(base).ok());
        for past in pasts.values() {
            directory.add_past(past);
        }
        for view in views.iter().filter(|view| view.repository.base() == base) {
            directory.add(view);
        }
        directories.push(directory);
    }
    stats::print(&directories, spec.stats_dir.as_ref(), form)
}
