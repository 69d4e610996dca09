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
        if number.is_empty() {
            return Err(format!("`{text}` is not a size"));
        }
        // digits alone: what cannot be parsed is too large
        number
            .parse()
            .ok()
            .and_then(|number: u64| number.checked_mul(factor))
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

/// `2026-12-24T18:00:00Z` (RFC 3339, with any offset) in seconds since 1970.
pub fn unix_time_s(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a time");
    // humantime reads UTC alone
    let (time, offset_s) = match text
        .len()
        .checked_sub(6)
        .and_then(|at| text.split_at_checked(at))
    {
        Some((time, offset)) if offset.starts_with(['+', '-']) => {
            let (hours, minutes) = offset[1..].split_once(':').ok_or_else(wrong)?;
            let number = |text: &str, below: i64| {
                let is_number = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
                let number = text.parse::<i64>().ok().filter(|n| is_number && *n < below);
                number.ok_or_else(wrong)
            };
            let seconds = number(hours, 24)? * 3600 + number(minutes, 60)? * 60;
            let sign = if offset.starts_with('-') { -1 } else { 1 };
            (format!("{time}Z"), sign * seconds)
        }
        _ => (text.to_owned(), 0),
    };
    let time = humantime::parse_rfc3339(&time).map_err(|_| wrong())?;
    let seconds = time
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|_| wrong())?
        .as_secs();
    seconds.checked_add_signed(-offset_s).ok_or_else(wrong)
}

/// The reverse of [`unix_time_s`], in UTC.
pub fn spoken_time(unix_s: u64) -> String {
    // humantime ends with the year 9999
    let unix_s = unix_s.min(253_402_300_799);
    let time = std::time::UNIX_EPOCH + Duration::from_secs(unix_s);
    humantime::format_rfc3339_seconds(time).to_string()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_the_reference_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("007", 7),
            ("1B", 1),
            ("2k", 2_000),
            ("2kB", 2_000),
            ("3M", 3_000_000),
            ("3MB", 3_000_000),
            ("10G", 10_000_000_000),
            ("10GB", 10_000_000_000),
            // the reference took these for no size at all
            ("1T", 1_000_000_000_000),
            ("1TB", 1_000_000_000_000),
            ("1KiB", 1 << 10),
            ("1MiB", 1 << 20),
            ("1GiB", 1 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told() {
        for text in [
            "", "K", "1K", "1KB", "1mb", "1.5G", "1 GB", " 1", "1\n", "-5", "+5", "0x10", "1e3",
            "1GBB", "½", "1é",
        ] {
            assert_eq!(
                text.parse::<Bytes>(),
                Err(format!("`{text}` is not a size")),
                "{text}"
            );
        }
        for text in ["18446744073709551616", "18446744073710TB"] {
            assert_eq!(
                text.parse::<Bytes>(),
                Err(format!("`{text}` is more than 2^64 bytes"))
            );
        }
    }

    #[test]
    fn sizes_are_shown_with_two_digits_or_three() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_950, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (110_000_000, "110 MB"),
            (5_000_000_000, "5.0 GB"),
            (2_500_000_000_000, "2.5 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn times_are_read_with_any_offset() {
        for (text, unix_s) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-12-24T18:00:00Z", 1_798_135_200),
            ("2026-12-24T20:30:00+02:30", 1_798_135_200),
            ("2026-12-24T16:00:00-02:00", 1_798_135_200),
        ] {
            assert_eq!(unix_time_s(text), Ok(unix_s), "{text}");
        }
        for text in [
            "",
            "7d",
            "2026-12-24",
            "1970-01-01T00:00:00+01:00",
            "2026-12-24T18:00:00+1:000",
            "2026-12-24T18:00:00+99:00",
            "2026-13-24T18:00:00Z",
            "éééééé",
            "+00:00",
        ] {
            assert!(unix_time_s(text).is_err(), "{text}");
        }
        assert_eq!(spoken_time(1_798_135_200), "2026-12-24T18:00:00Z");
        assert!(spoken_time(u64::MAX).starts_with("9999-"));
    }

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        for (text, millis) in [
            ("0", 0),
            ("90", 90_000),
            ("0.5", 500),
            ("90s", 90_000),
            ("1.5s", 1_500),
            ("30m", 1_800_000),
            ("12h", 43_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "", "s", "-1", "+1", ".5", "1.", "1e3", "inf", "nan", "1 s", " 1", "1w", "1h30m", "é",
        ] {
            assert_eq!(duration(text), Err(format!("`{text}` is not a duration")));
        }
        let long = "9".repeat(30);
        assert_eq!(duration(&long), Err(format!("`{long}` is too long")));
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "\\PC{0,12}") {
            let _ = text.parse::<Bytes>();
            let _ = duration(&text);
            let _ = unix_time_s(&text);
        }

        #[test]
        fn every_number_of_bytes_can_be_shown(bytes: u64) {
            prop_assert!(Bytes(bytes).to_string().len() <= 14);
        }
    }
}
