//! The fuzz targets without a fuzzer: their seeds, which include what fuzzers have found, and
//! some mutations of them. `scripts/fuzz` looks further.

#[path = "../fuzz/properties.rs"]
mod properties;

use std::path::Path;

/// Mutates as simply as can be, the same way in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides.max(1)
    }

    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.roll(seeds.len())].clone();
        for _ in 0..=self.roll(4) {
            let at = self.roll(data.len() + 1);
            let end = (at + self.roll(64)).min(data.len());
            match self.roll(6) {
                0 if at < data.len() => data[at] ^= 1 << self.roll(8),
                1 if at < data.len() => data[at] = self.roll(256) as u8,
                2 => data.truncate(at),
                3 => drop(data.drain(at..end)),
                4 => {
                    let copy = data[at..end].to_vec();
                    let to = self.roll(data.len() + 1);
                    data.splice(to..to, copy);
                }
                _ => {
                    let other = &seeds[self.roll(seeds.len())];
                    let from = self.roll(other.len());
                    let to = (from + self.roll(600)).min(other.len());
                    let end = (at + to - from).min(data.len());
                    data.splice(at..end, other[from..to].iter().copied());
                }
            }
        }
        data
    }
}

fn holds(target: &str, property: fn(&[u8]), mutations: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/seeds")
        .join(target);
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let check = |input: &[u8], origin: &str| {
        let outcome = std::panic::catch_unwind(|| property(input));
        assert!(
            outcome.is_ok(),
            "{target}: {origin}: {}",
            input.escape_ascii()
        );
    };
    for (path, seed) in paths.iter().zip(&seeds) {
        check(seed, &path.display().to_string());
    }
    let mut dice = Dice(0x5c);
    for n in 0..mutations {
        check(&dice.mutate(&seeds), &format!("mutation {n}"));
    }
}

#[test]
fn no_archive_changes_anything_else() {
    holds("archive", properties::archive, 2000);
}

#[test]
fn no_journal_leads_elsewhere() {
    holds("journal", properties::journal, 4000);
}

#[test]
fn no_repofile_is_a_bug() {
    holds("repofile", properties::repofile, 4000);
}

#[test]
fn no_command_line_is_a_bug() {
    holds("words", properties::words, 6000);
}

#[test]
fn no_answer_is_a_bug() {
    holds("answers", properties::answers, 1000);
}
