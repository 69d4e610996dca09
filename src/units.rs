//! Sizes and durations as people type and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    /// `10GB`: decimal units as in the reference (B, k, kB, M, MB, G, GB, T, TB), binary ones
    /// KiB, MiB, GiB, TiB; no unit is bytes.
    fn from_str(text: &str) -> Result<Bytes, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit {
            "" | "B" => 1,
            "k" | "kB" => 1000,
            "M" | "MB" => 1000u64.pow(2),
            "G" | "GB" => 1000u64.pow(3),
            "T" | "TB" => 1000u64.pow(4),
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(format!("`{text}` is not a size")),
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("`{text}` is not a size"))?;
        number
            .checked_mul(factor)
            .map(Bytes)
            .ok_or(format!("`{text}` is more than 2^64 bytes"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        for unit in ["B", "kB", "MB", "GB"] {
            if value < 999.5 {
                return match unit {
                    "B" => write!(f, "{} B", self.0),
                    _ if value < 9.95 => write!(f, "{value:.1} {unit}"),
                    _ => write!(f, "{value:.0} {unit}"),
                };
            }
            value /= 1000.0;
        }
        write!(f, "{value:.1} TB")
    }
}

/// `90`, `90s`, `30m`, `12h`, `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text
            .parse()
            .map(Duration::from_secs)
            .map_err(|_| format!("`{text}` is too long"));
    }
    humantime::parse_duration(text).map_err(|_| format!("`{text}` is not a duration"))
}
