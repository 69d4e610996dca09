use std::io::Write;
use std::process::ExitCode;

use shared_cache::console::{Console, Level, ProgressMode};
use shared_cache::request::{Parsed, Request};

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1).collect();
    match Request::read(words, &|name| std::env::var_os(name)) {
        Ok(Parsed::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Parsed::Request(_)) => ExitCode::SUCCESS,
        Err(error) => {
            Console::new(Level::Normal, ProgressMode::Auto).error(&error);
            ExitCode::from(error.exit_status())
        }
    }
}
