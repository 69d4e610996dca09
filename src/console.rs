//! stderr: messages, hints and progress. stdout is for results alone (`crate::report`).
//!
//! A message is one line, written in one piece, whatever a server, an archive or a file name put
//! into it: control characters are shown escaped, and what follows `?` in a URL or stands before
//! its `@` is not shown at all. Whoever formats a URL leaves these out already; that they are left
//! out here too is for the words that nobody expected to be a URL.
//!
//! Nothing here fails: a stderr that is closed or full is no reason to stop a load.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::error::Error;
use crate::units::Bytes;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// `-q`: errors alone.
    Quiet,
    #[default]
    Normal,
    /// `-v`: each stage, and why it runs.
    Verbose,
    /// `-vv`: what the libraries say, too.
    Debug,
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProgressMode {
    /// A bar on a terminal; elsewhere sparse lines, and none for what is small and quick.
    #[default]
    Auto,
    /// A bar on a terminal, elsewhere lines for small loads too.
    Always,
    Never,
}

/// Bars are drawn so often in a second.
const BAR_HZ: u8 = 5;

/// In a log, a line stands for so many percent …
const LINE_PERCENT: u64 = 10;

/// … or for so much time, whichever comes first.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// What is smaller than this and takes less than [`QUICK`] is not worth a line.
const SMALL: u64 = 10_000_000;
const QUICK: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct Console {
    level: Level,
    mode: ProgressMode,
    screen: Screen,
}

impl Console {
    /// With [`Level::Debug`] it also becomes the logger of the libraries, once per process.
    pub fn new(level: Level, mode: ProgressMode) -> Console {
        let screen = Screen::default();
        if level == Level::Debug && log::set_boxed_logger(Box::new(Library(screen.clone()))).is_ok()
        {
            log::set_max_level(log::LevelFilter::Debug);
        }
        Console {
            level,
            mode,
            screen,
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Something the user should know.
    pub fn say(&self, message: impl Display) {
        if self.level >= Level::Normal {
            self.screen.line("sc: ", &message);
        }
    }

    /// Something that is wrong, though the work goes on.
    pub fn warn(&self, message: impl Display) {
        self.say(format_args!("warning: {message}"));
    }

    /// Advice.
    pub fn hint(&self, message: impl Display) {
        if self.level >= Level::Normal {
            self.screen.line("hint: ", &message);
        }
    }

    /// Something only `-v` wants to know.
    pub fn detail(&self, message: impl Display) {
        if self.level >= Level::Verbose {
            self.screen.line("sc: ", &message);
        }
    }

    /// The error that ends the program.
    pub fn error(&self, error: &Error) {
        if matches!(error, Error::NotHolder { .. }) && self.level == Level::Quiet {
            return;
        }
        self.screen.line("sc: ", error);
        if let Some(hint) = error.hint() {
            self.screen.line("hint: ", &hint);
        }
    }

    /// Is there a terminal to draw a bar on, and may we?
    pub fn draws(&self) -> bool {
        self.shows() && !ProgressDrawTarget::stderr().is_hidden()
    }

    fn shows(&self) -> bool {
        self.level > Level::Quiet && self.mode != ProgressMode::Never
    }

    /// Starts showing how far a piece of work is: `doing` is a participle and its object, as in
    /// "loading `a.tar`", and `done` of `total` bytes are there already.
    pub fn progress(&self, doing: &str, done: u64, total: Option<u64>) -> Progress {
        let display = if !self.shows() {
            Shown::Not
        } else if let Some(bar) = self.screen.bar(doing, done, total) {
            Shown::Bar(bar)
        } else {
            Shown::Lines {
                lines: Lines::new(doing, done, total, self.mode == ProgressMode::Always),
                since: Instant::now(),
                screen: self.screen.clone(),
            }
        };
        Progress {
            done,
            looked: false,
            display,
        }
    }
}

/// A piece of work whose progress is shown; dropped, its bar is gone.
#[derive(Debug)]
pub struct Progress {
    done: u64,
    /// Has [`Progress::set`] been called?
    looked: bool,
    display: Shown,
}

#[derive(Debug)]
enum Shown {
    Not,
    Bar(ProgressBar),
    Lines {
        lines: Lines,
        since: Instant,
        screen: Screen,
    },
}

impl Progress {
    /// So many bytes more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.show(self.done.saturating_add(bytes));
    }

    /// So many bytes are done in all, as one who looks at another's work sees it: what is there at
    /// the first look is no speed. Less than before: the work has begun again.
    pub fn set(&mut self, done: u64) {
        let begins = !self.looked || done < self.done;
        self.looked = true;
        self.show(done);
        if begins {
            match &mut self.display {
                Shown::Not => {}
                Shown::Bar(bar) => bar.reset_eta(),
                Shown::Lines { lines, since, .. } => lines.begin(done, since.elapsed()),
            }
        }
    }

    fn show(&mut self, done: u64) {
        self.done = done;
        match &mut self.display {
            Shown::Not => {}
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines {
                lines,
                since,
                screen,
            } => {
                if let Some(line) = lines.next(done, since.elapsed()) {
                    screen.line("sc: ", &line);
                }
            }
        }
    }

    pub fn set_total(&mut self, total: Option<u64>) {
        match &mut self.display {
            Shown::Not => {}
            Shown::Bar(bar) => {
                match total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_style(style(total));
            }
            Shown::Lines { lines, .. } => lines.total = total.filter(|total| *total > 0),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

/// The lines that stand for a bar in a log. Keeps no clock, so that tests can bring theirs.
#[derive(Debug)]
struct Lines {
    doing: String,
    /// Bytes that were there when it began, and when that was: no part of the rate.
    initial: u64,
    began: Duration,
    total: Option<u64>,
    /// Tenths of the total that have been told.
    told: u64,
    /// When the last line was due.
    last: Duration,
    small_too: bool,
}

impl Lines {
    fn new(doing: &str, done: u64, total: Option<u64>, small_too: bool) -> Lines {
        let mut lines = Lines {
            doing: doing.to_owned(),
            initial: done,
            began: Duration::ZERO,
            total: total.filter(|total| *total > 0),
            told: 0,
            last: Duration::ZERO,
            small_too,
        };
        lines.begin(done, Duration::ZERO);
        lines
    }

    /// Rate and tenths count from here.
    fn begin(&mut self, done: u64, elapsed: Duration) {
        self.initial = done;
        self.began = elapsed;
        self.told = self.steps(done);
    }

    fn percent(&self, done: u64) -> Option<u64> {
        // in u128: 100 times the total may be more than u64 holds
        self.total
            .map(|total| (u128::from(done.min(total)) * 100 / u128::from(total)) as u64)
    }

    fn steps(&self, done: u64) -> u64 {
        self.percent(done).unwrap_or(0) / LINE_PERCENT
    }

    /// The line that is due when `done` bytes are there after so much time, if one is.
    fn next(&mut self, done: u64, elapsed: Duration) -> Option<String> {
        let steps = self.steps(done);
        if done < self.initial {
            self.begin(done, elapsed);
        }
        let worth = self.small_too || elapsed >= QUICK || self.total.unwrap_or(0) >= SMALL;
        let due = steps > self.told || elapsed.saturating_sub(self.last) >= LINE_INTERVAL;
        if !worth || !due {
            return None;
        }
        self.told = steps;
        self.last = elapsed;
        let seconds = elapsed.saturating_sub(self.began).as_secs_f64();
        let rate = (done - self.initial) as f64 / seconds.max(0.001);
        let rate = Bytes(rate as u64);
        Some(match (self.percent(done), self.total) {
            (Some(percent), Some(total)) => {
                format!("{}: {percent} % of {}, {rate}/s", self.doing, Bytes(total))
            }
            _ => format!("{}: {}, {rate}/s", self.doing, Bytes(done)),
        })
    }
}

/// The one stderr that messages and bars share: a message is written while the bars are away.
#[derive(Debug, Clone, Default)]
struct Screen {
    /// Made with the first bar. Without a terminal there is never one.
    bars: Arc<OnceLock<MultiProgress>>,
}

impl Screen {
    fn line(&self, prefix: &str, message: &dyn Display) {
        let line = format!("{prefix}{}\n", shown(&message.to_string()));
        // in one piece, so that the lines of many jobs in one log do not mix
        let write = || {
            let _ = io::stderr().write_all(line.as_bytes());
        };
        match self.bars.get() {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// `None` where stderr is no terminal, or a dumb one.
    fn bar(&self, doing: &str, done: u64, total: Option<u64>) -> Option<ProgressBar> {
        let target = ProgressDrawTarget::stderr_with_hz(BAR_HZ);
        if target.is_hidden() {
            return None;
        }
        let bars = self
            .bars
            .get_or_init(|| MultiProgress::with_draw_target(target));
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let bar = bars.add(
            bar.with_style(style(total))
                .with_message(shown(doing))
                .with_position(done),
        );
        // what was there before is no speed
        bar.reset_eta();
        Some(bar)
    }
}

fn style(total: Option<u64>) -> ProgressStyle {
    let template = match total {
        Some(_) => "{wide_msg} [{bar:20}] {percent:>3} % of {size}, {rate}/s, {eta} left",
        None => "{wide_msg} {done}, {rate}/s",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key(
            "size",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{}", Bytes(state.len().unwrap_or(0)));
            },
        )
        .with_key(
            "done",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{}", Bytes(state.pos()));
            },
        )
        .with_key(
            "rate",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{}", Bytes(state.per_sec() as u64));
            },
        )
}

/// What the libraries log, for `-vv`.
struct Library(Screen);

impl log::Log for Library {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let text = without_credentials(&record.args().to_string());
            self.0
                .line("sc: ", &format_args!("{}: {text}", record.target()));
        }
    }

    fn flush(&self) {}
}

/// Text of somebody else's as it may be shown: no control characters, no secrets in URLs.
pub fn shown(text: &str) -> String {
    printable(&masked(text))
}

/// Control characters escaped: a member called `a\nsc: done` makes no second line, and none
/// steers the terminal.
fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

/// User-info and query of every URL in the text replaced by `***`.
fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + "://".len());
        shown.push_str(before);
        let end = url
            .find(|c: char| c.is_whitespace() || matches!(c, '`' | '"' | '\'' | '<' | '>'))
            .unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        rest = after;
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let url = match url[..authority].rfind('@') {
            Some(at) => {
                shown.push_str("***");
                &url[at..]
            }
            None => url,
        };
        match url.find('?') {
            Some(query) => {
                shown.push_str(&url[..=query]);
                shown.push_str("***");
            }
            None => shown.push_str(url),
        }
    }
    shown.push_str(rest);
    shown
}

/// A library's line is not ours to format: whatever looks like a header with credentials ends
/// there, and so does any request target at its `?`.
fn without_credentials(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let end = ["authorization", "cookie", "token", "signature"]
        .iter()
        .filter_map(|word| lower.find(word).map(|at| at + word.len()))
        .min();
    let mut shown = match end {
        Some(end) => format!("{}***", &text[..end]),
        None => text.to_owned(),
    };
    if let Some(query) = shown.find('?') {
        shown.truncate(query + 1);
        shown.push_str("***");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn lines(lines: &mut Lines, steps: &[(u64, u64)]) -> Vec<String> {
        steps
            .iter()
            .filter_map(|(done, millis)| lines.next(*done, Duration::from_millis(*millis)))
            .collect()
    }

    #[test]
    fn a_log_gets_one_line_for_each_tenth() {
        let mut log = Lines::new("loading `a.tar`", 0, Some(100 * MB), false);
        let steps: Vec<_> = (1..=100).map(|n| (n * MB, n * 10)).collect();
        let lines = lines(&mut log, &steps);
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], "loading `a.tar`: 10 % of 100 MB, 100 MB/s");
        assert_eq!(lines[9], "loading `a.tar`: 100 % of 100 MB, 100 MB/s");
    }

    #[test]
    fn a_log_gets_one_line_each_half_minute_from_a_slow_load() {
        let mut log = Lines::new("loading `a`", 0, Some(1000 * MB), false);
        assert_eq!(
            lines(
                &mut log,
                &[
                    (MB, 29_000),
                    (3 * MB, 30_000),
                    (4 * MB, 31_000),
                    (6 * MB, 60_000)
                ]
            ),
            [
                "loading `a`: 0 % of 1.0 GB, 100 kB/s",
                "loading `a`: 0 % of 1.0 GB, 100 kB/s"
            ]
        );
    }

    #[test]
    fn a_load_of_unknown_length_tells_how_much_there_is() {
        let mut log = Lines::new("loading `a`", 0, None, false);
        assert_eq!(
            lines(&mut log, &[(300 * MB, 10_000), (600 * MB, 30_000)]),
            ["loading `a`: 600 MB, 20 MB/s"]
        );
    }

    #[test]
    fn what_is_small_and_quick_is_not_worth_a_line() {
        let mut log = Lines::new("loading `a`", 0, Some(9 * MB), false);
        assert!(lines(&mut log, &[(MB, 1), (9 * MB, 1999)]).is_empty());
        let mut log = Lines::new("loading `a`", 0, Some(9 * MB), true);
        assert_eq!(lines(&mut log, &[(MB, 1), (9 * MB, 1999)]).len(), 2);
        let mut slow = Lines::new("loading `a`", 0, Some(9 * MB), false);
        assert_eq!(lines(&mut slow, &[(MB, 1), (9 * MB, 2000)]).len(), 1);
    }

    #[test]
    fn what_was_there_before_is_no_speed() {
        let mut log = Lines::new("loading `a`", 50 * MB, Some(100 * MB), false);
        assert_eq!(
            lines(&mut log, &[(51 * MB, 1000), (60 * MB, 10_000)]),
            ["loading `a`: 60 % of 100 MB, 1.0 MB/s"]
        );
    }

    #[test]
    fn what_a_waiter_finds_at_its_first_look_is_no_speed() {
        let mut log = Lines::new("loading `a`", 0, Some(100 * MB), false);
        log.begin(50 * MB, Duration::from_secs(5));
        assert_eq!(
            lines(&mut log, &[(51 * MB, 6_000), (60 * MB, 15_000)]),
            ["loading `a`: 60 % of 100 MB, 1.0 MB/s"]
        );
    }

    #[test]
    fn a_load_that_begins_again_is_told_again() {
        let mut log = Lines::new("loading `a`", 50 * MB, Some(100 * MB), false);
        assert_eq!(
            lines(&mut log, &[(90 * MB, 1000), (0, 2000), (10 * MB, 4000)]).len(),
            2
        );
    }

    #[test]
    fn no_number_makes_progress_panic() {
        for total in [None, Some(0), Some(1), Some(u64::MAX)] {
            let mut log = Lines::new("x", u64::MAX, total, true);
            for done in [0, 1, u64::MAX, 5] {
                log.next(done, Duration::ZERO);
                log.next(done, Duration::MAX);
            }
        }
        for mode in [ProgressMode::Auto, ProgressMode::Never] {
            let mut progress = Console::new(Level::Quiet, mode).progress("x", 1, None);
            progress.advance(u64::MAX);
            progress.set_total(Some(0));
            progress.set(0);
        }
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(printable("a\nb\x1b[2Jc"), r"a\nb\u{1b}[2Jc");
        assert_eq!(printable("naïve …"), "naïve …");
    }

    #[test]
    fn no_message_shows_the_secrets_of_a_url() {
        for (text, shown) in [
            ("no url, user@host and a?b", "no url, user@host and a?b"),
            (
                "unknown module `ftp://u:p@h/f?token=1`, sorry?",
                "unknown module `ftp://***@h/f?***`, sorry?",
            ),
            (
                "http://h/a@b and https://a:b@c@d/",
                "http://h/a@b and https://***@d/",
            ),
            ("http://h?x=http://u:p@h/", "http://h?***"),
            ("://", "://"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    #[test]
    fn no_library_shows_credentials() {
        assert_eq!(
            without_credentials("GET /f?X-Amz-Key=1 HTTP/1.1"),
            "GET /f?***"
        );
        assert_eq!(
            without_credentials("headers: {\"Authorization\": \"Bearer 1\"}"),
            "headers: {\"Authorization***"
        );
    }
}
