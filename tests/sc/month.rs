//! A month of a node: jobs come and go, are killed with or without their sc, the node reboots, the
//! disk fills with other things, and a cron line cleans up. After every step: nobody who holds
//! data has lost a byte of them, nobody holds who does not, a load is refused only where there is
//! no room to be made; after a `--gc` nothing is left that should have gone.
//!
//! The disk is a small one of its own, where the machine lets us mount it. Time and boot are what
//! `SC_UNIX_TIME` and `SC_BOOT_ID` say. `SC_MONTH_STEPS=N` takes N steps, `SC_MONTH_SEED=N` goes
//! another way (`scripts/month` does both).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::keep::START;
use crate::node::{SC, tree};

const DISK_BYTES: u64 = 6_000_000;
const NAMES: [&str; 7] = ["a", "b", "exp/c", "exp/d", "e", "f", "g"];
/// What sc itself may need beside the data.
const SLACK: u64 = 400_000;

/// SplitMix64
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len() as u64) as usize]
    }
}

struct Job {
    process: Child,
    data: usize,
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug, Default)]
struct Tally {
    uses: u64,
    /// Uses that were told to be.
    done: u64,
    killed_uses: u64,
    hits: u64,
    kills: u64,
    refusals: u64,
    reboots: u64,
    collections: u64,
}

struct Month {
    dice: Dice,
    disk: PathBuf,
    is_small: bool,
    files: Vec<PathBuf>,
    jobs: Vec<Job>,
    now: u64,
    boot: u64,
    tally: Tally,
    /// Where what is gone is counted: not on the small disk.
    past: PathBuf,
    /// What was counted last.
    counts: BTreeMap<&'static str, u64>,
    log: Vec<String>,
}

impl Month {
    fn sc(&mut self, words: &str, crash_at: Option<u64>) -> (i32, String, String) {
        let mut command = Command::new(SC);
        command
            .args(words.split_whitespace())
            .env_clear()
            .env("SC_DIRECTORIES", &self.disk)
            .env("SC_STATS_DIR", &self.past)
            .env("SC_UNIX_TIME", self.now.to_string())
            .env("SC_BOOT_ID", format!("boot {}", self.boot))
            .stdin(Stdio::null());
        if let Some(n) = crash_at {
            command.env("SC_CRASH_AT", n.to_string());
        }
        let output = command.output().unwrap();
        let status = output.status.code().unwrap_or(-9);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let shown = crash_at.map_or(String::new(), |n| format!(" killed at {n}"));
        self.log.push(format!(
            "{} h: sc {words}{shown}: {status} {said}",
            (self.now - START) / 3600
        ));
        assert!(!said.contains("panicked"), "{said}");
        (
            status,
            String::from_utf8_lossy(&output.stdout).into_owned(),
            said,
        )
    }

    fn list(&mut self) -> Vec<serde_json::Value> {
        let (status, printed, said) = self.sc("--list --json", None);
        self.log.pop();
        assert_eq!((status, said.as_str()), (0, ""));
        let list: serde_json::Value = serde_json::from_str(&printed).unwrap();
        list["repositories"].as_array().unwrap().clone()
    }

    fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.disk).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }

    fn file(&self, data: usize) -> PathBuf {
        let name = self.files[data].file_name().unwrap();
        self.disk.join(NAMES[data]).join(name)
    }

    fn step(&mut self) {
        self.now += self.dice.roll(3 * 3600);
        match self.dice.roll(100) {
            0..45 => self.begin(),
            45..70 => self.end_one(),
            70..78 => self.kill_one(),
            78..88 => self.collect(),
            88..90 => self.reboot(),
            90..93 => self.clear(),
            _ => self.fill(),
        }
        self.check();
        self.check_counts();
    }

    fn crash(&mut self) -> Option<u64> {
        let is_killed = self.dice.roll(6) == 0;
        is_killed.then(|| 1 + self.dice.roll(70))
    }

    fn begin(&mut self) {
        let data = self.dice.roll(NAMES.len() as u64) as usize;
        let process = Command::new("sleep").arg("1000000").spawn().unwrap();
        let pid = process.id();
        let job = Job { process, data };
        let size = fs::metadata(&self.files[data]).unwrap().len();
        let mut words = format!(
            "--use --pid={pid} --name={} file:{}",
            NAMES[data],
            self.files[data].display()
        );
        let is_sized = self.dice.roll(5) > 0;
        if is_sized {
            words += &format!(" --size={}", size + 50_000);
        }
        words += self
            .dice
            .pick(&["", " --keep=2h", " --keep=12h", " --keep=5d", " --keep=0"]);
        words += self.dice.pick(&["", "", "", " --expires=1d", " --refresh"]);
        let before = fs::metadata(self.file(data)).ok();
        let crash = self.crash();
        let (status, _, said) = self.sc(&words, crash);
        self.tally.uses += 1;
        match status {
            0 => {
                use std::os::unix::fs::MetadataExt;
                let after = fs::metadata(self.file(data)).unwrap();
                let is_hit = before.is_some_and(|before| before.ino() == after.ino());
                self.tally.hits += u64::from(is_hit);
                self.tally.done += 1;
                self.jobs.push(job);
            }
            // what became of its use nobody knows; it is dead, and holds nothing
            -9 => {
                assert!(crash.is_some());
                self.tally.kills += 1;
                self.tally.killed_uses += 1;
            }
            73 => {
                assert!(self.is_small, "{said}");
                self.tally.refusals += 1;
                if is_sized && said.contains("no directory will do") {
                    let spare: u64 = self
                        .list()
                        .iter()
                        .filter(|row| row["holders"] == 0)
                        .map(|row| row["size_bytes"].as_u64().unwrap())
                        .sum();
                    assert!(
                        self.free() + spare < size + SLACK,
                        "refused, with {} free and {spare} to spare",
                        self.free()
                    );
                }
            }
            _ => panic!("status {status}: {said}"),
        }
    }

    fn end_one(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let at = self.dice.roll(self.jobs.len() as u64) as usize;
        let job = self.jobs.swap_remove(at);
        let pid = job.process.id();
        let more = self.dice.pick(&["", "", " --keep=1d", " --max-size=2MB"]);
        let crash = self.crash();
        let words = format!("--unuse --pid={pid} --name={}{more}", NAMES[job.data]);
        let (status, _, said) = self.sc(&words, crash);
        match status {
            0 => assert!(said.is_empty() || said.contains("not kept"), "{said}"),
            -9 if crash.is_some() => self.tally.kills += 1,
            // no room to say that one is fewer: his death will tell
            73 if self.is_small => self.tally.refusals += 1,
            _ => panic!("status {status}: {said}"),
        }
    }

    fn kill_one(&mut self) {
        if !self.jobs.is_empty() {
            let at = self.dice.roll(self.jobs.len() as u64) as usize;
            drop(self.jobs.swap_remove(at));
            self.tally.kills += 1;
        }
    }

    fn collect(&mut self) {
        let options = self.dice.pick(&[
            "",
            "",
            " --max-size=1500kB",
            " --older-than=6h",
            " --min-free=30%",
            " --free=2MB",
        ]);
        let would = self.sc(&format!("--gc --dry-run{options}"), None).1;
        let crash = self.crash();
        let (status, printed, said) = self.sc(&format!("--gc{options}"), crash);
        self.tally.collections += 1;
        if status == -9 {
            assert!(crash.is_some());
            self.tally.kills += 1;
            return;
        }
        assert_eq!((status, printed.as_str()), (0, ""), "{said}");
        // what is evicted for room depends on how much there is by then
        for line in would.lines().filter(|line| !line.contains("evicted")) {
            let path = line.split('\t').nth(1).unwrap();
            assert!(
                !Path::new(path).join("repofile").exists(),
                "{line} is still there"
            );
        }
        let mut kept = 0;
        for row in self.list() {
            if row["holders"] != 0 {
                continue;
            }
            kept += row["size_bytes"].as_u64().unwrap();
            let is_in_time = row["kept_until_unix_s"]
                .as_u64()
                .is_some_and(|t| t > self.now);
            let is_young = options.contains("older") && row["state"] != "kept";
            assert!(is_in_time || is_young, "{row} is left");
        }
        assert!(
            !options.contains("max") || kept <= 1_500_000,
            "{kept} are kept"
        );
    }

    fn reboot(&mut self) {
        self.jobs.clear();
        self.boot += 1;
        self.tally.reboots += 1;
    }

    fn clear(&mut self) {
        let data = self.dice.roll(NAMES.len() as u64) as usize;
        let is_held = self.jobs.iter().any(|job| job.data == data);
        let (status, ..) = self.sc(&format!("--clear --name={}", NAMES[data]), None);
        assert_eq!(status, if is_held { 75 } else { 0 });
        let is_there = self.disk.join(NAMES[data]).exists();
        let left: Vec<_> = tree(&self.disk).into_keys().collect();
        assert_eq!(is_there, is_held, "{}: {left:#?}", NAMES[data]);
    }

    /// Others write to the disk, too.
    fn fill(&mut self) {
        let filler = self.disk.join("filler");
        let _ = fs::remove_file(&filler);
        if self.is_small {
            let bytes = self.dice.roll(self.free());
            let written = fs::write(&filler, vec![0; bytes as usize]);
            self.log
                .push(format!("{bytes} of something else: {written:?}"));
        }
    }

    fn check(&mut self) {
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for job in &self.jobs {
            *expected.entry(NAMES[job.data]).or_default() += 1;
            let (there, source) = (fs::read(self.file(job.data)), &self.files[job.data]);
            let is_whole = there.is_ok_and(|there| there == fs::read(source).unwrap());
            assert!(is_whole, "`{}` is held, and damaged", NAMES[job.data]);
        }
        let rows = self.list();
        let held: BTreeMap<&str, u64> = rows
            .iter()
            .filter(|row| row["holders"] != 0)
            .map(|row| {
                (
                    row["name"].as_str().unwrap(),
                    row["holders"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(held, expected);
        for row in rows {
            let state = row["state"].as_str().unwrap();
            assert_ne!(state, "loading");
            if matches!(state, "loaded" | "kept") {
                let data = NAMES.iter().position(|name| row["name"] == *name).unwrap();
                let (there, here) = (fs::metadata(self.file(data)), &self.files[data]);
                assert_eq!(there.unwrap().len(), fs::metadata(here).unwrap().len());
            }
        }
    }

    /// What is there and what is gone are counted together: each use once, and none is forgotten.
    fn check_counts(&mut self) {
        let (status, printed, said) = self.sc("--stats --json", None);
        self.log.pop();
        assert_eq!((status, said.as_str()), (0, ""));
        let stats: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let total = &stats["total"];
        assert_eq!(stats["directories"].as_array().unwrap().len(), 1);
        let names = [
            "uses",
            "loads",
            "hits",
            "failures",
            "spared_bytes",
            "reloads",
        ];
        for name in names {
            let count = total[name].as_u64().unwrap();
            let before = self.counts.insert(name, count).unwrap_or(0);
            assert!(count >= before, "{name} went back from {before}: {total}");
        }
        let (uses, hits) = (self.counts["uses"], self.counts["hits"]);
        assert_eq!(uses, self.counts["loads"] + hits);
        assert!(self.counts["reloads"] <= self.counts["loads"]);
        // of one that was killed nobody knows whether it had come
        let tally = &self.tally;
        assert!(uses >= tally.done, "{} have come: {total}", tally.done);
        assert!(uses <= tally.done + tally.killed_uses, "{tally:?}: {total}");
        assert!(hits >= tally.hits, "{tally:?}: {total}");
        assert_eq!(total["spared_bytes"].as_u64().unwrap() > 0, hits > 0);
    }

    /// Two months later nobody is there any more.
    fn close(&mut self) {
        self.jobs.clear();
        self.now += 60 * 86400;
        assert_eq!(self.sc("--gc", None).0, 0);
        self.check_counts();
        let _ = fs::remove_file(self.disk.join("filler"));
        let left = tree(&self.disk);
        // killed between the last two directories of a nested name
        let left: Vec<_> = left.into_keys().filter(|path| path != "exp").collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

fn live(disk: &Path, is_small: bool, seed: u64, steps: u64) {
    let sources = tempfile::tempdir().unwrap();
    let mut dice = Dice(seed);
    let files = NAMES.iter().map(|name| {
        let path = sources
            .path()
            .join(format!("data-{}", name.replace('/', "-")));
        let size = 50_000 + dice.roll(1_200_000);
        fs::write(&path, vec![name.as_bytes()[0]; size as usize]).unwrap();
        path
    });
    let files = files.collect();
    let mut month = Month {
        dice,
        disk: disk.to_owned(),
        is_small,
        files,
        jobs: Vec::new(),
        now: START,
        boot: 1,
        tally: Tally::default(),
        past: sources.path().to_owned(),
        counts: BTreeMap::new(),
        log: Vec::new(),
    };
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..steps {
            month.step();
        }
        month.close();
    }));
    if let Err(panic) = lived {
        let last = month.log.len().saturating_sub(25);
        eprintln!(
            "SC_MONTH_SEED={seed}, step by step:\n{}",
            month.log[last..].join("\n")
        );
        std::panic::resume_unwind(panic);
    }
    eprintln!("{} h: {:?}", (month.now - START) / 3600, month.tally);
    let tally = &month.tally;
    assert!(tally.hits * 10 > tally.uses, "{tally:?}");
    assert!(tally.kills > 5 && tally.collections > 5, "{tally:?}");
    assert!(!is_small || tally.refusals > 0, "{tally:?}");
}

#[test]
fn a_month_of_a_node_loses_nothing_and_leaves_nothing() {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("SC_MONTH_SEED").unwrap_or(7);
    let steps = number("SC_MONTH_STEPS").unwrap_or(250);
    if let Some(disk) = std::env::var_os("SC_MONTH_DISK") {
        return live(Path::new(&disk), true, seed, steps);
    }
    let place = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={DISK_BYTES} sc \"$SC_MONTH_DISK\"");
    // this test once more, in a mount namespace of its own
    let within = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-Urm", "sh", "-c", script]);
        command.arg(std::env::current_exe().unwrap());
        command.env("SC_MONTH_DISK", place.path());
        command.output().ok()
    };
    if !within(&mount).is_some_and(|output| output.status.success()) {
        eprintln!("SKIPPED in part: a small disk of its own needs user namespaces");
        return live(place.path(), false, seed, steps);
    }
    let test = "month::a_month_of_a_node_loses_nothing_and_leaves_nothing";
    let script = format!("{mount} && exec \"$0\" --exact {test} --nocapture");
    let output = within(&script).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    eprintln!("{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{printed}"
    );
}
