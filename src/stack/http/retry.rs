//! When to try again.
//!
//! A thousand jobs of one array lose the same server in the same second. Each waits twice as
//! long as before, and a random part of it, so that they don't all come back together; what the
//! server asks for in `Retry-After` is obeyed, up to a limit, because a job slot costs money.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::PollTimeout;

use crate::error::Result;
use crate::signal;

/// No pause of our own is longer.
const LONGEST: Duration = Duration::from_secs(30);

/// No server is obeyed for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// The pause after the `failures`-th failure in a row, counted from 1.
pub fn pause(first: Duration, failures: u32, asked: Option<Duration>) -> Duration {
    let doubled = first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
    // RandomState is seeded by the kernel; quality does not matter here
    let random = RandomState::new().build_hasher().finish() as u32;
    let part = 0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0;
    let own = doubled.min(LONGEST).mul_f64(part);
    own.max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

/// Sleeps, unless a signal comes. `std::thread::sleep` would go back to sleep after one.
pub fn sleep(duration: Duration) -> Result<()> {
    let until = Instant::now() + duration;
    loop {
        signal::check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let slice = left.min(Duration::from_secs(1)) + Duration::from_millis(1);
        let _ = nix::poll::poll(
            &mut [],
            PollTimeout::try_from(slice).unwrap_or(PollTimeout::ZERO),
        );
    }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(LONGEST_ASKED, Duration::from_secs));
    }
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(http_date(value)?);
    Some(at.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970. The two obsolete forms are not read:
/// no server has sent them for decades, and all that is lost is a hint.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next().filter(|name| name.len() == 3)?;
    let month = MONTHS.find(name).filter(|at| at % 3 == 0)? as u64 / 3 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words
        .next()?
        .split(':')
        .map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    // days before a date, by the calendar whose year begins in March (H. Hinnant, `chrono`)
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second.min(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_are_never_the_same() {
        for (failures, longest) in [(1, 1), (2, 2), (3, 4), (6, 30), (u32::MAX, 30)] {
            let longest = Duration::from_secs(longest);
            for _ in 0..100 {
                let pause = pause(Duration::from_secs(1), failures, None);
                assert!(
                    pause >= longest / 2 && pause <= longest,
                    "{failures}: {pause:?}"
                );
            }
        }
        let one = || pause(Duration::from_secs(1), 1, None);
        assert!((0..10).any(|_| one() != one()));
    }

    #[test]
    fn the_server_is_obeyed_within_reason() {
        let pause = |asked| pause(Duration::ZERO, 1, Some(Duration::from_secs(asked)));
        assert_eq!(pause(7), Duration::from_secs(7));
        assert_eq!(pause(86_400), LONGEST_ASKED);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let read = |value| retry_after(value, now);
        assert_eq!(read(" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999999999999999"), Some(LONGEST_ASKED));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_secs(7))
        );
        assert_eq!(read("Sun, 06 Nov 1993 08:49:37 GMT"), Some(Duration::ZERO));
        for wrong in [
            "",
            "-1",
            "soon",
            "Sun, 06 Nov",
            "Sun, 06 anF 1994 08:49:37 GMT",
            "x, 0 Jan 0 0:0:0 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 99:49:37 GMT",
            "Sun, ü ü ü ü ü",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            http_date("Thu, 29 Feb 2024 00:00:00 GMT"),
            Some(1_709_164_800)
        );
    }
}
