//! `--list`: what is there, in all base directories. Takes no lock and makes nothing.

use crate::console::Console;
use crate::error::Result;
use crate::report;
use crate::repository::survey;
use crate::request::Request;

pub fn list(request: &Request, json: bool, console: &Console) -> Result<()> {
    let spec = &request.repository;
    let views = survey::look_at_all(&spec.directories, spec, &mut |error| {
        console.warn(error);
    });
    report::list(&views, json)
}
