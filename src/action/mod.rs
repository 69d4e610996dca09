//! Policy: what each action does, one file each, as its entry in the man page tells it.

mod clear;
mod doctor;
mod ending;
mod gc;
mod list;
mod loading;
mod room;
mod run;
mod stats;
mod status;
mod unuse;
mod r#use;
mod verdict;
mod verify;
mod who;

use crate::console::Console;
use crate::error::Result;
use crate::report;
use crate::request::{Action, Request};
use crate::signal::Patience;

/// Does what was asked for. Returns the exit status of `--run`'s command, 0 else.
pub fn perform(request: &Request, console: &Console) -> Result<u8> {
    for warning in &request.warnings {
        console.warn(warning);
    }
    let patience = Patience::new(request.patience);
    match &request.action {
        Action::InTurn {
            use_,
            unuse,
            location,
        } => {
            let used = if *use_ {
                r#use::by_caller(request, &patience, console).map(drop)
            } else {
                Ok(())
            };
            // the reference tried both whatever became of the first
            let unused = if *unuse {
                unuse::by_caller(request, &patience, console)
            } else {
                Ok(())
            };
            match (used, unused) {
                (Ok(()), unused) => unused?,
                (Err(error), Ok(())) => return Err(error),
                (Err(error), Err(second)) => {
                    console.error(&second);
                    return Err(error);
                }
            }
            if *location {
                report::location(&room::place(request, console)?.location())?;
            }
            Ok(0)
        }
        Action::Run(command) => run::run(request, command, &patience, console),
        Action::Doctor(doctor) => doctor::doctor(request, doctor),
        Action::Status { json } => status::status(request, *json).map(|()| 0),
        Action::List { json } => list::list(request, *json, console).map(|()| 0),
        Action::Stats(form) => stats::stats(request, *form, console).map(|()| 0),
        Action::Verify(verify) => verify::verify(request, *verify, &patience, console).map(|()| 0),
        Action::Gc(gc) => gc::gc(request, gc, console).map(|()| 0),
        Action::Clear { dry_run, force } => {
            clear::clear(request, *dry_run, *force, &patience, console).map(|()| 0)
        }
    }
}
