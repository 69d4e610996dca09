//! stdout: results, and nothing else.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{IoContext, Result};
use crate::process::{self, Life};
use crate::repository::holder::{Hold, Holder};
use crate::repository::repofile::Repofile;
use crate::units;

/// Version of the `--json` output: raised when a key changes its meaning or goes.
pub const JSON_VERSION: u32 = 1;

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .io("cannot write to", Path::new("stdout"))
}

/// Text that was asked for: help, version, a completion.
pub fn text(text: &str) -> Result<()> {
    print(text.as_bytes())
}

/// The repository's directory, alone.
pub fn location(path: &Path) -> Result<()> {
    print(&[path.as_os_str().as_bytes(), b"\n"].concat())
}

/// `--status`: `location` is `None` where no base directory has the repository.
pub fn status(location: Option<&Path>, repofile: Option<&Repofile>, json: bool) -> Result<()> {
    match json {
        true => text(&format!("{}\n", status_json(location, repofile))),
        false => text(&status_text(location, repofile)),
    }
}

fn status_json(location: Option<&Path>, repofile: Option<&Repofile>) -> Value {
    let Some(repofile) = repofile else {
        return json!({
            "version": JSON_VERSION,
            "location": location.map(|location| location.to_string_lossy()),
            "state": null,
            "holders": [],
        });
    };
    let sc = &repofile.sc;
    let mut holders: Vec<Value> = sc.holders.iter().map(holder_json).collect();
    holders.extend(repofile.reference_readers().iter().map(
        |pid| json!({"kind": "reference", "pid": pid, "alive": !process::is_number_dead(*pid)}),
    ));
    json!({
        "version": JSON_VERSION,
        "location": location.map(|location| location.to_string_lossy()),
        "state": repofile.state,
        "definition": sc.definition,
        "loaded_unix_s": sc.loaded_unix_s,
        "writer": repofile.writer,
        "loading_for_s": sc.loader.as_ref().map(|loader| seconds_since(loader.since_boot_ns)),
        "holders": holders,
        "failure": sc.failure.as_ref().map(|failure| json!({
            "message": failure.message,
            "exit_status": failure.exit_status,
            "ended_unix_s": failure.ended_unix_s,
        })),
    })
}

fn holder_json(holder: &Holder) -> Value {
    let (kind, pid, life) = match &holder.hold {
        Hold::Process(process) => ("process", process.pid, Some(process.life())),
        Hold::Lock { sc_pid, .. } => ("run", *sc_pid, None),
    };
    json!({
        "kind": kind,
        "pid": pid,
        "id": holder.id,
        "since_unix_s": holder.since_unix_s,
        "provisional": holder.provisional,
        "alive": life.and_then(|life| match life {
            Life::Alive => Some(true),
            Life::Dead => Some(false),
            Life::Doubt => None,
        }),
    })
}

fn seconds_since(boot_ns: u64) -> u64 {
    process::since_boot_ns().saturating_sub(boot_ns) / 1_000_000_000
}

fn ago(unix_s: u64) -> String {
    let seconds = process::unix_time_s().saturating_sub(unix_s);
    format!(
        "{} ago",
        units::spoken_duration(std::time::Duration::from_secs(seconds))
    )
}

fn status_text(location: Option<&Path>, repofile: Option<&Repofile>) -> String {
    let mut lines = Vec::new();
    let mut line = |key: &str, value: String| lines.push(format!("{key:<11} {value}\n"));
    match location {
        Some(location) => line("location", location.display().to_string()),
        None => line("location", "none".into()),
    }
    let Some(repofile) = repofile else {
        line("state", "not loaded".into());
        return lines.concat();
    };
    let sc = &repofile.sc;
    line("state", repofile.state.to_string());
    if let Some(definition) = &sc.definition {
        line("definition", definition.clone());
    }
    if let Some(loaded) = sc.loaded_unix_s {
        line("loaded", ago(loaded));
    }
    if let (Some(writer), Some(loader)) = (repofile.writer, &sc.loader) {
        let seconds = std::time::Duration::from_secs(seconds_since(loader.since_boot_ns));
        line(
            "loading",
            format!("by pid {writer} for {}", units::spoken_duration(seconds)),
        );
    }
    if let Some(failure) = &sc.failure {
        line(
            "failure",
            format!("{} ({})", failure.message, ago(failure.ended_unix_s)),
        );
    }
    for holder in &sc.holders {
        let dead = match &holder.hold {
            Hold::Process(process) if process.life() == Life::Dead => ", dead",
            _ if holder.provisional => ", waits for the load",
            _ => "",
        };
        line(
            "holder",
            format!("{holder}, since {}{dead}", ago(holder.since_unix_s)),
        );
    }
    for pid in repofile.reference_readers() {
        line("holder", format!("pid {pid}, by the reference"));
    }
    lines.concat()
}
