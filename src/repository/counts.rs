//! What a repository has been good for, and why it was loaded last: kept in the repofile, and
//! changed by commits that happen anyway.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::process;
use crate::units;

/// How often, since its first load. What is not counted here follows from it: every use either
/// found the data loaded or loaded them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// When counting began, in nanoseconds since boot: with the repository's name it tells these
    /// counts from those of any other life of the name. 0: nothing is counted yet.
    pub since_ns: u64,
    pub loads: u64,
    /// Uses that found the data loaded.
    pub hits: u64,
    /// Loads that failed; one that a signal ended did not.
    pub failures: u64,
    /// What the hits would have brought, had each of them loaded.
    pub spared_bytes: u64,
}

impl Counts {
    /// Counts from now on.
    pub fn begin(&mut self) {
        if self.since_ns == 0 {
            self.since_ns = process::since_boot_ns();
        }
    }

    /// A use found data for which the loaders had brought so many bytes.
    pub fn hit(&mut self, brought_bytes: u64) {
        self.begin();
        self.hits = self.hits.saturating_add(1);
        self.spared_bytes = self.spared_bytes.saturating_add(brought_bytes);
    }

    pub fn loaded(&mut self) {
        self.begin();
        self.loads = self.loads.saturating_add(1);
    }

    pub fn failed(&mut self) {
        self.begin();
        self.failures = self.failures.saturating_add(1);
    }

    pub fn uses(&self) -> u64 {
        self.loads.saturating_add(self.hits)
    }

    pub fn add(&mut self, other: &Counts) {
        self.loads = self.loads.saturating_add(other.loads);
        self.hits = self.hits.saturating_add(other.hits);
        self.failures = self.failures.saturating_add(other.failures);
        self.spared_bytes = self.spared_bytes.saturating_add(other.spared_bytes);
    }
}

/// The last load: why it began, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub reason: String,
    /// What was loaded before, where that was something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
    #[serde(default)]
    pub began_unix_s: u64,
    /// `None`: it is under way, or was not finished.
    #[serde(default)]
    pub took_ms: Option<u64>,
    /// What the loaders brought.
    #[serde(default)]
    pub brought_bytes: Option<u64>,
}

impl Why {
    pub fn new(reason: impl Into<String>) -> Why {
        Why {
            reason: reason.into(),
            instead_of: None,
            began_unix_s: process::unix_time_s(),
            took_ms: None,
            brought_bytes: None,
        }
    }

    /// The same, where the first load is that after a deletion.
    pub fn after_deletion(mut self, deleted_unix_s: Option<u64>) -> Why {
        if let Some(deleted) = deleted_unix_s.filter(|_| !self.is_again()) {
            let ago = Duration::from_secs(self.began_unix_s.saturating_sub(deleted));
            self.reason = format!("it was deleted {} before", units::spoken_duration(ago));
        }
        self
    }

    /// Was there something before that load?
    pub fn is_again(&self) -> bool {
        self.reason != FIRST
    }
}

/// The reason of a load that is the first.
pub const FIRST: &str = "it is not there yet";

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.instead_of {
            Some(definition) => write!(f, ": `{definition}`"),
            None => Ok(()),
        }
    }
}
