//! Parse, perform, print the error, exit.
//!
//! # The C library's main
//!
//! A tenth of a warm `--use` would be what Rust's runtime does before `main`: most of it to tell
//! an overflown stack from other crashes, for which it reads the map of the process. The rest is
//! done here: descriptors 0 to 2 are open, SIGPIPE is ignored, a panic ends with status 101, and
//! stdout is flushed in the end.

#![cfg_attr(target_env = "gnu", no_main)]

use shared_cache::conf::Conf;
use shared_cache::console::{Console, Level, ProgressMode};
use shared_cache::error::Error;
use shared_cache::request::{Action, Parsed, Request};
use shared_cache::{action, process, report, signal};

// The unwinder of gcc as a part of the program: as a shared library it takes a tenth of the time
// of a warm `--use` to be found and bound.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

// SAFETY: the one function of this name, with the signature that the C library calls.
#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
extern "C" fn main(_: libc::c_int, _: *const *const libc::c_char) -> libc::c_int {
    // glibc has told std the arguments already, by `.init_array`
    process::open_standard_descriptors();
    signal::ignore_broken_pipes();
    let status = std::panic::catch_unwind(run).unwrap_or(101);
    std::process::exit(status.into())
}

#[cfg(not(target_env = "gnu"))]
fn main() -> std::process::ExitCode {
    run().into()
}

/// Returns the exit status.
fn run() -> u8 {
    let words = std::env::args_os().skip(1).collect();
    let request = match Request::read(&Conf::read(), words, &|name| std::env::var_os(name)) {
        Ok(Parsed::Request(request)) => request,
        Ok(Parsed::Print(text)) => {
            // a reader that has seen enough (`| head`) is no error
            let _ = report::text(&text);
            return 0;
        }
        Err(error) => {
            Console::new(Level::Normal, ProgressMode::Never).error(&error);
            return error.exit_status();
        }
    };
    signal::install();
    process::keep_own_rights();
    let console = Console::new(request.level, request.progress);
    match action::perform(&request, &console) {
        Ok(status) => status,
        Err(error) => {
            console.error(&error);
            match (&request.action, &error) {
                (Action::Run(_), Error::Run { .. } | Error::Interrupted { .. }) => {
                    error.exit_status()
                }
                // a command may exit with any status; 125 is sc's own, as with env(1), timeout(1)
                (Action::Run(_), _) => 125,
                _ => error.exit_status(),
            }
        }
    }
}
