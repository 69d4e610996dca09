//! Sizes and durations as people type and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The forms that a size is read in, for messages.
    pub const FORMS: &str = "a size is a whole number of bytes, or one with a unit: `k` or `kB`, \
         `M` or `MB`, `G` or `GB`, `T` or `TB` (powers of 1000), `KiB`, `MiB`, `GiB`, `TiB` \
         (powers of 1024)";
}

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

/// The forms that [`duration`] reads, for messages.
pub const DURATIONS: &str = "a duration is a number of seconds, or one with a unit: `90`, `0.5`, \
     `90s`, `30m`, `12h`, `7d`";

/// `90`, `0.5`, `90s`, `30m`, `12h`, `7d`. Of a nanosecond everything below is lost.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration");
    let (number, unit) = match text.char_indices().last() {
        Some((last, 's')) => (&text[..last], 1.0),
        Some((last, 'm')) => (&text[..last], 60.0),
        Some((last, 'h')) => (&text[..last], 3600.0),
        Some((last, 'd')) => (&text[..last], 86400.0),
        _ => (text, 1.0),
    };
    // f64 would also take `inf`, `1e9`, `+1` and `.5`
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| format!("`{text}` is too long"))
}

/// `3 h 20 min`: two units are enough for a person.
pub fn spoken_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
