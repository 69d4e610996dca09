//! Parse, perform, print the error, exit.

use std::process::ExitCode;

use shared_cache::console::{Console, Level, ProgressMode};
use shared_cache::error::Error;
use shared_cache::request::{Action, Parsed, Request};
use shared_cache::{action, report, signal};

// The unwinder of gcc as a part of the program: as a shared library it takes a tenth of the time
// of a warm `--use` to be found and bound.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1).collect();
    let request = match Request::read(words, &|name| std::env::var_os(name)) {
        Ok(Parsed::Request(request)) => request,
        Ok(Parsed::Print(text)) => {
            // a reader that has seen enough (`| head`) is no error
            let _ = report::text(&text);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            Console::new(Level::Normal, ProgressMode::Never).error(&error);
            return ExitCode::from(error.exit_status());
        }
    };
    signal::install();
    let console = Console::new(request.level, request.progress);
    match action::perform(&request, &console) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            console.error(&error);
            ExitCode::from(match (&request.action, &error) {
                (Action::Run(_), Error::Run { .. } | Error::Interrupted { .. }) => {
                    error.exit_status()
                }
                // a command may exit with any status; 125 is sc's own, as with env(1), timeout(1)
                (Action::Run(_), _) => 125,
                _ => error.exit_status(),
            })
        }
    }
}
