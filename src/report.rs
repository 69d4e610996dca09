//! stdout: results, and nothing else.

pub mod stats;

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::durable::Dir;
use crate::error::{IoContext, Result};
use crate::process::{self, Life};
use crate::repository::counts::Counts;
use crate::repository::guest::{self, Guest};
use crate::repository::holder::{Hold, Holder};
use crate::repository::layout;
use crate::repository::repofile::Repofile;
use crate::repository::survey::{Standing, View};
use crate::units::{self, Bytes};
use crate::verify::{Difference, Findings};

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
pub fn status(
    location: Option<&Path>,
    repofile: Option<&Repofile>,
    control: Option<&Dir>,
    json: bool,
) -> Result<()> {
    match json {
        true => text(&format!("{}\n", status_json(location, repofile, control))),
        false => text(&status_text(location, repofile, control)),
    }
}

fn status_json(
    location: Option<&Path>,
    repofile: Option<&Repofile>,
    control: Option<&Dir>,
) -> Value {
    let Some(repofile) = repofile else {
        return json!({
            "version": JSON_VERSION,
            "location": location.map(|location| location.to_string_lossy()),
            "state": null,
            "holders": [],
        });
    };
    let sc = &repofile.sc;
    let mut holders: Vec<Value> = sc
        .holders
        .iter()
        .map(|holder| holder_json(holder, control))
        .collect();
    holders.extend(repofile.reference_readers().iter().map(
        |pid| json!({"kind": "reference", "pid": pid, "alive": !process::is_number_dead(*pid)}),
    ));
    holders.extend(guests(control).iter().map(|guest| {
        let mut json = holder_json(&guest.holder, control);
        json["uid"] = guest.uid.into();
        json
    }));
    json!({
        "version": JSON_VERSION,
        "location": location.map(|location| location.to_string_lossy()),
        "state": repofile.state,
        "definition": sc.definition,
        "loaded_unix_s": sc.loaded_unix_s,
        "used_unix_s": sc.used_unix_s,
        "kept_until_unix_s": sc.kept_until_unix_s,
        "expires_unix_s": sc.expires_unix_s,
        "size_bytes": sc.size_bytes,
        "writer": repofile.writer,
        "loading_for_s": sc.loader.as_ref().map(|loader| seconds_since(loader.since_boot_ns)),
        "holders": holders,
        "load": sc.load.as_ref().map(|load| json!({
            "reason": load.reason,
            "instead_of": load.instead_of,
            "began_unix_s": load.began_unix_s,
            "took_ms": load.took_ms,
            "brought_bytes": load.brought_bytes,
        })),
        "counts": counts_json(&sc.counts),
        "failure": sc.failure.as_ref().map(|failure| json!({
            "message": failure.message,
            "exit_status": failure.exit_status,
            "ended_unix_s": failure.ended_unix_s,
        })),
    })
}

fn counts_json(counts: &Counts) -> Value {
    json!({
        "uses": counts.uses(),
        "loads": counts.loads,
        "hits": counts.hits,
        "failures": counts.failures,
        "spared_bytes": counts.spared_bytes,
    })
}

fn holder_json(holder: &Holder, control: Option<&Dir>) -> Value {
    let mut json = json!({
        "pid": null,
        "id": holder.id,
        "since_unix_s": holder.since_unix_s,
        "lease_until_unix_s": holder.lease.as_ref().map(|lease| lease.until_unix_s),
        "provisional": holder.provisional,
        "alive": match life(holder, control) {
            Life::Alive => Some(true),
            Life::Dead => Some(false),
            Life::Doubt => None,
        },
    });
    let mut set = |key: &str, value: Value| json[key] = value;
    match &holder.hold {
        Hold::Process(process) => {
            set("kind", "process".into());
            set("pid", process.pid.into());
        }
        Hold::Lock { sc_pid, .. } => {
            set("kind", "run".into());
            set("pid", (*sc_pid).into());
        }
        Hold::Descriptor(descriptor) => {
            set("kind", "fd".into());
            set(
                "path",
                json!(descriptor.path.as_deref().map(layout::decode)),
            );
        }
        Hold::Job { cgroup, job_id } => {
            set("kind", "job".into());
            set("job_id", json!(job_id));
            set("cgroup", json!(cgroup.path));
        }
    }
    json
}

fn guests(control: Option<&Dir>) -> Vec<Guest> {
    control.map_or(Vec::new(), guest::read)
}

fn life(holder: &Holder, control: Option<&Dir>) -> Life {
    match (control, &holder.hold) {
        (Some(control), _) => holder.life(control).unwrap_or(Life::Doubt),
        (None, Hold::Process(process)) => process.life(),
        (None, _) => Life::Doubt,
    }
}

/// `--dry-run`: bytes, path and reason, separated by tabs.
pub fn would_delete(view: &View, reason: &str) -> Result<()> {
    let path = one_line(&view.repository.location());
    text(&format!("{}\t{path}\t{reason}\n", view.size_bytes))
}

/// `--verify`: reason and path, separated by a tab, for each difference.
pub fn differences(differences: &[Difference]) -> Result<()> {
    let line = |difference: &Difference| {
        format!("{}\t{}\n", difference.reason, one_line(&difference.path))
    };
    text(&differences.iter().map(line).collect::<String>())
}

/// `--verify --json`
pub fn findings(location: &Path, findings: &Findings, repaired: bool) -> Result<()> {
    let differences: Vec<Value> = (findings.differences.iter())
        .map(|difference| {
            json!({
                "path": difference.path.to_string_lossy(),
                "reason": difference.reason.word(),
            })
        })
        .collect();
    let all = json!({
        "version": JSON_VERSION,
        "location": location.to_string_lossy(),
        "entries": findings.entries,
        "hashed_files": findings.hashed,
        "hashed_bytes": findings.hashed_bytes,
        "differences": differences,
        "repaired": repaired,
    });
    text(&format!("{all}\n"))
}

/// A path in a line of its own, whatever is in its name.
fn one_line(path: &Path) -> String {
    let text = path.display().to_string();
    text.chars()
        .map(|c| match c.is_control() {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        })
        .collect()
}

/// `--list`
pub fn list(views: &[View], json: bool) -> Result<()> {
    match json {
        true => {
            let repositories: Vec<Value> = views.iter().map(list_json).collect();
            let all = json!({"version": JSON_VERSION, "repositories": repositories});
            text(&format!("{all}\n"))
        }
        false => text(&list_text(views)),
    }
}

fn list_json(view: &View) -> Value {
    let sc = view.repofile.as_ref().map(|repofile| &repofile.sc);
    json!({
        "location": view.repository.location().to_string_lossy(),
        "name": view.repository.name().map(|name| name.to_string_lossy()),
        "state": view.standing.word(),
        "owner_uid": view.owner,
        "share": view.share.word(),
        "size_bytes": view.size_bytes,
        "holders": view.holders,
        "definition": sc.and_then(|sc| sc.definition.as_ref()),
        "loaded_unix_s": sc.and_then(|sc| sc.loaded_unix_s),
        "used_unix_s": view.used_unix_s,
        "kept_until_unix_s": sc.and_then(|sc| sc.kept_until_unix_s),
        "expires_unix_s": sc.and_then(|sc| sc.expires_unix_s),
    })
}

fn list_text(views: &[View]) -> String {
    if views.is_empty() {
        return String::new();
    }
    let row = |cells: [&str; 5], path: &str| {
        let [state, size, holders, used, kept] = cells;
        format!("{state:<8} {size:>8} {holders:>7}  {used:<14} {kept:<14} {path}\n")
    };
    let mut text = row(
        ["STATE", "SIZE", "HOLDERS", "LAST USE", "KEPT FOR"],
        "LOCATION",
    );
    for view in views {
        let kept = view
            .repofile
            .as_ref()
            .filter(|_| view.standing == Standing::Kept)
            .and_then(|repofile| repofile.sc.kept_until_unix_s);
        text += &row(
            [
                view.standing.word(),
                &Bytes(view.size_bytes).to_string(),
                &view.holders.to_string(),
                &ago(view.used_unix_s),
                &kept.map_or("-".into(), from_now),
            ],
            &one_line(&view.repository.location()),
        );
    }
    text
}

/// When, and how far off that is.
fn time(unix_s: u64) -> String {
    let near = match unix_s > process::unix_time_s() {
        true => format!("in {}", from_now(unix_s)),
        false => ago(unix_s),
    };
    format!("{} ({near})", units::spoken_time(unix_s))
}

/// How long it is till then.
fn from_now(unix_s: u64) -> String {
    let seconds = unix_s.saturating_sub(process::unix_time_s());
    units::spoken_duration(std::time::Duration::from_secs(seconds))
}

fn spoken_ms(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms / 100 % 10),
        _ => units::spoken_duration(std::time::Duration::from_millis(ms)),
    }
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

fn status_text(
    location: Option<&Path>,
    repofile: Option<&Repofile>,
    control: Option<&Dir>,
) -> String {
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
        let took_ms = sc.load.as_ref().and_then(|load| load.took_ms);
        let took = took_ms.map(|ms| format!(", in {}", spoken_ms(ms)));
        line("loaded", ago(loaded) + &took.unwrap_or_default());
    }
    if let Some(load) = sc.load.as_ref().filter(|load| load.is_again()) {
        line("because", load.to_string());
    }
    if let Some(expires) = sc.expires_unix_s {
        line("expires", time(expires));
    }
    if let Some(until) = sc.kept_until_unix_s.filter(|_| repofile.readers.is_empty()) {
        line("kept", format!("until {}", time(until)));
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
        let is_dead = life(holder, control) == Life::Dead;
        let until = match &holder.lease {
            Some(lease) if lease.is_over() => ", its lease is over".into(),
            _ if is_dead => ", dead".into(),
            _ if holder.provisional => ", waits for the load".into(),
            Some(lease) => format!(", for {} more", from_now(lease.until_unix_s)),
            None => String::new(),
        };
        line(
            "holder",
            format!("{holder}, since {}{until}", ago(holder.since_unix_s)),
        );
    }
    for pid in repofile.reference_readers() {
        line("holder", format!("pid {pid}, by the reference"));
    }
    for guest in guests(control) {
        let since = ago(guest.holder.since_unix_s);
        let is_dead = control.is_some_and(|control| guest.life(control) == Life::Dead);
        let dead = if is_dead { ", dead" } else { "" };
        line("holder", format!("{guest}, since {since}{dead}"));
    }
    lines.concat()
}
