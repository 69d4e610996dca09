//! `--stats`: as a table, as JSON, and as Prometheus reads it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{JSON_VERSION, counts_json, one_line, text};
use crate::error::Result;
use crate::repository::counts::Counts;
use crate::repository::layout;
use crate::repository::past::{Past, Reloaded, StatsDir};
use crate::repository::survey::{Standing, View};
use crate::request::Form;
use crate::units::{self, Bytes};

/// A base directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    sum: Sum,
    max_size: Option<Bytes>,
    free_bytes: Option<u64>,
    /// Whose counts are in the past already.
    added: BTreeSet<(Option<String>, u64)>,
    reloaded: Vec<Reloaded>,
}

/// What is there and what there was, of a base directory or of all.
#[derive(Debug, Clone, Default)]
struct Sum {
    /// By [`KINDS`].
    repositories: [u64; KINDS.len()],
    /// What was loaded.
    data_bytes: u64,
    /// That part of it that nobody holds, and which the limit is for.
    kept_bytes: u64,
    /// sc's own files, and what it is loading and deleting.
    own_bytes: u64,
    counts: Counts,
    reloads: u64,
}

/// In what ways a repository can be there.
const KINDS: [&str; 5] = ["held", "kept", "loading", "broken", "orphan"];

fn kind(view: &View) -> &'static str {
    match view.standing {
        Standing::Loading => "loading",
        Standing::Broken => "broken",
        Standing::Orphan => "orphan",
        Standing::Loaded | Standing::Kept if view.holders > 0 => "held",
        // its holders died, and wanted it kept
        Standing::Loaded | Standing::Kept if view.kept_until_unix_s().is_some() => "kept",
        Standing::Loaded | Standing::Kept => "orphan",
    }
}

impl Sum {
    fn add(&mut self, other: &Sum) {
        for (own, other) in self.repositories.iter_mut().zip(other.repositories) {
            *own += other;
        }
        let add = |own: &mut u64, other: u64| *own = own.saturating_add(other);
        add(&mut self.data_bytes, other.data_bytes);
        add(&mut self.kept_bytes, other.kept_bytes);
        add(&mut self.own_bytes, other.own_bytes);
        add(&mut self.reloads, other.reloads);
        self.counts.add(&other.counts);
    }

    fn entries(&self) -> u64 {
        self.repositories.iter().sum()
    }

    fn json(&self, knows_past: bool) -> Value {
        let kinds = KINDS.iter().zip(self.repositories);
        let mut json = counts_json(&self.counts);
        json["repositories"] = kinds
            .map(|(kind, count)| (kind.to_string(), count))
            .collect();
        json["data_bytes"] = self.data_bytes.into();
        json["kept_bytes"] = self.kept_bytes.into();
        json["own_bytes"] = self.own_bytes.into();
        json["reloads"] = knows_past.then_some(self.reloads).into();
        json
    }
}

impl Directory {
    pub fn new(path: &Path, max_size: Option<Bytes>, free_bytes: Option<u64>) -> Directory {
        Directory {
            path: path.to_owned(),
            sum: Sum::default(),
            max_size,
            free_bytes,
            added: BTreeSet::new(),
            reloaded: Vec::new(),
        }
    }

    /// What was there.
    pub fn add_past(&mut self, past: &Past) {
        let total = past.total(&self.path);
        self.sum.counts.add(&total.counts);
        self.sum.reloads += total.reloads;
        self.added.extend(past.added(&self.path));
        self.reloaded.extend(past.reloaded(&self.path));
        let order = |one: &Reloaded| (std::cmp::Reverse(one.times), one.name.clone());
        self.reloaded.sort_by_key(order);
    }

    /// A repository that is there. One that is just going may have been counted in the past.
    pub fn add(&mut self, view: &View) {
        let kind = kind(view);
        let at = KINDS.iter().position(|known| *known == kind);
        self.sum.repositories[at.unwrap_or_default()] += 1;
        let data_bytes = view.size_bytes - view.own_bytes;
        self.sum.data_bytes = self.sum.data_bytes.saturating_add(data_bytes);
        self.sum.own_bytes = self.sum.own_bytes.saturating_add(view.own_bytes);
        if kind == "kept" {
            self.sum.kept_bytes = self.sum.kept_bytes.saturating_add(data_bytes);
        }
        let counts = view.repofile.as_ref().map(|repofile| repofile.sc.counts);
        let counts = counts.unwrap_or_default();
        let name = view.repository.name().map(layout::encode);
        if counts.since_ns == 0 || !self.added.contains(&(name, counts.since_ns)) {
            self.sum.counts.add(&counts);
        }
    }

    fn json(&self, knows_past: bool) -> Value {
        let mut json = self.sum.json(knows_past);
        json["directory"] = self.path.to_string_lossy().into();
        json["max_size_bytes"] = self.max_size.map(|size| size.0).into();
        json["free_bytes"] = self.free_bytes.into();
        let reloaded = self.reloaded.iter().map(|one| {
            json!({
                "name": one.name.as_ref().map(|name| name.to_string_lossy()),
                "times": one.times,
                "after_s": one.after_s,
                "evicted": one.was_evicted,
            })
        });
        json["reloaded"] = reloaded.collect();
        json
    }
}

/// Prints all of it.
pub fn print(directories: &[Directory], past: Option<&StatsDir>, form: Form) -> Result<()> {
    let mut total = Sum::default();
    for directory in directories {
        total.add(&directory.sum);
    }
    match form {
        Form::Text => text(&table(directories, &total, past)),
        Form::Json => {
            let knows_past = past.is_some();
            let rows: Vec<Value> = directories.iter().map(|dir| dir.json(knows_past)).collect();
            let all = json!({
                "version": JSON_VERSION,
                "stats_dir": past.map(|past| past.path.to_string_lossy()),
                "directories": rows,
                "total": total.json(knows_past),
            });
            text(&format!("{all}\n"))
        }
        Form::Prometheus => text(&prometheus(directories, past.is_some())),
    }
}

fn table(directories: &[Directory], total: &Sum, past: Option<&StatsDir>) -> String {
    let mut out = String::new();
    let mut columns: Vec<(String, &Sum, Option<&Directory>)> = directories
        .iter()
        .map(|dir| (one_line(&dir.path), &dir.sum, Some(dir)))
        .collect();
    if directories.len() != 1 {
        columns.push(("total".into(), total, None));
    }
    for (title, sum, directory) in columns {
        out += &title;
        out.push('\n');
        let mut line = |key: &str, value: String| {
            let _ = writeln!(out, "  {key:<16} {value}");
        };
        let kinds = KINDS
            .iter()
            .zip(sum.repositories)
            .filter(|(_, count)| *count > 0);
        let kinds: Vec<String> = kinds
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let kinds = match kinds[..] {
            [] => String::new(),
            _ => format!(" ({})", kinds.join(", ")),
        };
        line("repositories", format!("{}{kinds}", sum.entries()));
        line("data", Bytes(sum.data_bytes).to_string());
        line("sc's own files", Bytes(sum.own_bytes).to_string());
        if let Some(directory) = directory {
            let limit = directory.max_size;
            let limit = limit.map_or("no limit".into(), |limit| format!("limit {limit}"));
            line("kept", format!("{} ({limit})", Bytes(sum.kept_bytes)));
            if let Some(free) = directory.free_bytes {
                line("free", Bytes(free).to_string());
            }
        }
        let counts = &sum.counts;
        line("uses", counts.uses().to_string());
        line("loads", counts.loads.to_string());
        line(
            "hits",
            format!("{}{}", counts.hits, percent(counts.hits, counts.uses())),
        );
        line("not downloaded", Bytes(counts.spared_bytes).to_string());
        line("failures", counts.failures.to_string());
        if past.is_some() {
            line("reloads", sum.reloads.to_string());
        }
        for one in directory.iter().flat_map(|directory| &directory.reloaded) {
            let _ = writeln!(out, "hint: {}", advice(one));
        }
    }
    if past.is_none() {
        out += "counted is what is there; `--stats-dir` counts also what is gone\n";
    }
    out
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => String::new(),
        _ => format!(" ({} %)", u128::from(part) * 100 / u128::from(whole)),
    }
}

fn advice(one: &Reloaded) -> String {
    let name = one.name.as_deref().unwrap_or(Path::new("."));
    let times = match one.times {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let option = match one.was_evicted {
        true => "it was evicted: raise `--max-size`, or find it more room",
        false => "raise `--keep`",
    };
    let after = units::spoken_duration(std::time::Duration::from_secs(one.after_s));
    format!(
        "`{}` was loaded again {after} after it was deleted, {times}: {option}",
        one_line(name)
    )
}

/// A metric: its name without `sc_`, whether it only grows, what it is, and its values, each with
/// what stands in braces besides the directory.
type Metric<'a> = (
    &'a str,
    bool,
    &'a str,
    &'a dyn Fn(&Directory) -> Vec<(String, u64)>,
);

/// The text format of Prometheus, version 0.0.4: all of one metric together, `\`, `"` and newline
/// escaped in what stands in quotes. Counters of what is there alone would go back when that goes,
/// so they are left out where nothing tells of the past.
fn prometheus(directories: &[Directory], knows_past: bool) -> String {
    fn one(value: impl Into<Option<u64>>) -> Vec<(String, u64)> {
        let value = value.into();
        value
            .map(|value| (String::new(), value))
            .into_iter()
            .collect()
    }
    let metrics: [Metric; 12] = [
        (
            "repositories",
            false,
            "Repositories that are there.",
            &|dir| {
                let kinds = KINDS.iter().zip(dir.sum.repositories);
                kinds
                    .map(|(kind, count)| (format!(",state=\"{kind}\""), count))
                    .collect()
            },
        ),
        ("data_bytes", false, "What was loaded.", &|dir| {
            one(dir.sum.data_bytes)
        }),
        (
            "kept_bytes",
            false,
            "What was loaded and nobody holds.",
            &|dir| one(dir.sum.kept_bytes),
        ),
        (
            "own_bytes",
            false,
            "Files of sc itself, and what it loads and deletes.",
            &|dir| one(dir.sum.own_bytes),
        ),
        ("max_size_bytes", false, "How much may be kept.", &|dir| {
            one(dir.max_size.map(|size| size.0))
        }),
        ("free_bytes", false, "Free on the file system.", &|dir| {
            one(dir.free_bytes)
        }),
        ("uses_total", true, "Uses that were registered.", &|dir| {
            one(dir.sum.counts.uses())
        }),
        ("loads_total", true, "Uses that loaded the data.", &|dir| {
            one(dir.sum.counts.loads)
        }),
        (
            "hits_total",
            true,
            "Uses that found the data loaded.",
            &|dir| one(dir.sum.counts.hits),
        ),
        (
            "spared_bytes_total",
            true,
            "Not downloaded, thanks to the hits.",
            &|dir| one(dir.sum.counts.spared_bytes),
        ),
        ("failures_total", true, "Loads that failed.", &|dir| {
            one(dir.sum.counts.failures)
        }),
        (
            "reloads_total",
            true,
            "Loads soon after the same was deleted.",
            &|dir| one(dir.sum.reloads),
        ),
    ];
    let mut out = String::new();
    for (name, is_counter, help, values) in metrics {
        let kind = if is_counter { "counter" } else { "gauge" };
        let rows: Vec<_> = directories
            .iter()
            .flat_map(|dir| {
                values(dir)
                    .into_iter()
                    .map(move |(more, value)| (dir, more, value))
            })
            .collect();
        if rows.is_empty() || is_counter && !knows_past {
            continue;
        }
        let _ = writeln!(out, "# HELP sc_{name} {help}\n# TYPE sc_{name} {kind}");
        for (dir, more, value) in rows {
            let label = escaped(&dir.path);
            let _ = writeln!(out, "sc_{name}{{directory=\"{label}\"{more}}} {value}");
        }
    }
    if !knows_past {
        out += "# No counters: without --stats-dir they would go back when a repository goes.\n";
    }
    out
}

/// A path in a label value.
fn escaped(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_quotes_is_escaped() {
        assert_eq!(
            escaped(Path::new("/a\\b\"c\nd\u{e9}")),
            "/a\\\\b\\\"c\\nd\u{e9}"
        );
        let directory = Directory::new(Path::new("/a\"\n"), None, None);
        let text = prometheus(&[directory], true);
        assert!(
            text.contains("\nsc_uses_total{directory=\"/a\\\"\\n\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("{directory=\"/a\\\"\\n\",state=\"held\"} 0\n"),
            "{text}"
        );
        assert!(
            !text.contains("max_size") && !text.contains("free"),
            "{text}"
        );
    }

    #[test]
    fn each_metric_stands_together_and_is_told_what_it_is() {
        let directories = ["/a", "/b"].map(|path| Directory::new(Path::new(path), None, Some(1)));
        for knows_past in [true, false] {
            let text = prometheus(&directories, knows_past);
            let mut names: Vec<&str> = Vec::new();
            for line in text.lines().filter(|line| !line.starts_with("# No")) {
                let words: Vec<&str> = line.split(['{', ' ']).collect();
                match words[..] {
                    ["#", "HELP", name, ..] => names.push(name),
                    ["#", "TYPE", name, kind] => {
                        assert_eq!(names.last(), Some(&name));
                        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                    }
                    [name, ..] => assert_eq!(names.last(), Some(&name)),
                    [] => panic!("an empty line"),
                }
            }
            let has_counters = names.iter().any(|name| name.ends_with("_total"));
            assert_eq!(has_counters, knows_past);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), if knows_past { 11 } else { 5 });
        }
    }
}
