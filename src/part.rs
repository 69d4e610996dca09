//! An unfinished download, as the journal keeps it from one process to the next.

use serde::{Deserialize, Serialize};

/// What is known of an unfinished download: enough to ask for the rest of the same version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The URL it came from, without user-info and query.
    pub url: String,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    /// Length of the whole file in bytes, if the server said.
    pub total: Option<u64>,
}
