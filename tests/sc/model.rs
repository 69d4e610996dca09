//! Random histories against a model: several jobs use and give up one repository, are killed,
//! have their sc killed or its disk fail at the n-th change, and delete or add files.
//!
//! Of an sc that was killed nobody knows how far it came. So the model keeps every [`World`] that
//! may be: a step yields, for each world, the exit statuses it could have and the worlds after
//! them; what is then seen (status, holders in the repofile) rules worlds out. None left: sc did
//! what no order of events explains. Besides, whoever holds has whole data, and when all is given
//! up only what never came from sc stays, or what nothing tells any more that it did.
//!
//! Each history has a seed of its own, told when it fails; `SC_MODEL_SEED=N` runs that one alone,
//! `SC_MODEL_CASES=N` runs more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::node::{Job, Node, md5, tar_gz, tree};

const JOBS: usize = 3;
/// Members of what the two definitions bring; the first is deleted by [`Step::DeleteData`].
const MEMBERS: [&[(&str, &str)]; 2] = [
    &[("a", "1"), ("bin/b", "22"), ("bin/deep/c", "333")],
    &[("x", "4"), ("lib/y", "55")],
];
const ARCHIVES: [&str; 2] = ["one.tar.gz", "two.tar.gz"];
const KILLED: i32 = 137;

type Definition = usize;
/// A job, and which of its two `--id`s.
type Holder = (usize, bool);

#[derive(Debug, Clone)]
enum Call {
    Use(Holder, Definition),
    Unuse(Holder),
    /// By the test process; its command looks for the data.
    Run(Definition),
}

#[derive(Debug, Clone)]
enum Trouble {
    Crash(u32),
    /// errno, and whether it lasts
    Fault(u32, i32, bool),
}

#[derive(Debug, Clone)]
enum Step {
    Call(Call),
    Troubled(Call, Trouble),
    /// Two jobs at once.
    Race(Call, Call),
    KillJob(usize),
    DeleteData(Definition),
    DeleteLock,
    DeleteJournal,
    DeleteRepofile,
    AddForeign(bool),
}

fn holders() -> impl Strategy<Value = Holder> {
    (0..JOBS, any::<bool>())
}

fn calls() -> impl Strategy<Value = Call> {
    // the first definition more often: strangers would hardly ever share
    let definition = || prop_oneof![3 => Just(0), 1 => Just(1)];
    prop_oneof![
        5 => (holders(), definition()).prop_map(|(holder, of)| Call::Use(holder, of)),
        4 => holders().prop_map(Call::Unuse),
        1 => definition().prop_map(Call::Run),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let trouble = || {
        prop_oneof![
            3 => (1..90u32).prop_map(Trouble::Crash),
            2 => (1..90u32, prop_oneof![Just(5), Just(28)], any::<bool>())
                .prop_map(|(n, errno, lasts)| Trouble::Fault(n, errno, lasts)),
        ]
    };
    prop_oneof![
        10 => calls().prop_map(Step::Call),
        5 => (calls(), trouble()).prop_map(|(call, trouble)| Step::Troubled(call, trouble)),
        2 => (calls(), calls()).prop_map(|(one, two)| Step::Race(one, two)),
        2 => (0..JOBS).prop_map(Step::KillJob),
        1 => (0..MEMBERS.len()).prop_map(Step::DeleteData),
        1 => Just(Step::DeleteLock),
        1 => Just(Step::DeleteJournal),
        1 => Just(Step::DeleteRepofile),
        2 => any::<bool>().prop_map(Step::AddForeign),
    ]
}

/// What may be the case.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    /// What the repofile says is there; none where a load or a teardown is not finished, or
    /// nothing ever began.
    loaded: Option<Definition>,
    /// A published entry was deleted.
    is_damaged: bool,
    /// Those who live.
    holders: BTreeSet<Holder>,
    /// Whose load was killed.
    provisional: Option<Holder>,
}

impl World {
    /// What an undisturbed call does: exit status, and the world after it.
    fn after(&self, call: &Call, strays: &BTreeSet<String>) -> (i32, World) {
        match call {
            Call::Use(holder, of) => match self.used(Some(*holder), *of, strays) {
                Ok(world) => (0, world),
                Err((status, world)) => (status, world),
            },
            Call::Unuse(holder) => self.unused(*holder),
            Call::Run(of) => match self.used(None, *of, strays) {
                Ok(world) => (0, world.left()),
                Err((_, world)) => (125, world),
            },
        }
    }

    /// A use by somebody who is no job of ours is not counted among `holders`.
    fn used(
        &self,
        holder: Option<Holder>,
        of: Definition,
        strays: &BTreeSet<String>,
    ) -> Result<World, (i32, World)> {
        let others = self.holders.iter().any(|other| Some(*other) != holder);
        match self.loaded {
            Some(loaded) if loaded != of && !self.holders.is_empty() => {
                return Err((78, self.clone()));
            }
            Some(loaded) if loaded == of && self.is_damaged && others => {
                return Err((74, self.clone()));
            }
            Some(loaded) if loaded == of && !self.is_damaged => {
                let mut world = self.clone();
                world.holders.extend(holder);
                return Ok(world);
            }
            _ => {}
        }
        if published(of).keys().any(|path| strays.contains(path)) {
            return Err((77, World::default()));
        }
        Ok(World {
            loaded: Some(of),
            holders: holder.into_iter().collect(),
            ..World::default()
        })
    }

    fn unused(&self, holder: Holder) -> (i32, World) {
        let mut world = self.clone();
        if world.holders.remove(&holder) {
            return (0, world.left());
        }
        match self.provisional == Some(holder) {
            true => (0, World::default()),
            false => (255, world),
        }
    }

    /// The last one has left: all is torn down.
    fn left(self) -> World {
        match self.holders.is_empty() {
            true => World::default(),
            false => self,
        }
    }

    /// Where a call may have been stopped.
    fn midway(&self, call: &Call, strays: &BTreeSet<String>) -> Vec<World> {
        let (status, done) = self.after(call, strays);
        let mut worlds = vec![self.clone(), done.clone()];
        let loads = |provisional| World {
            provisional,
            ..World::default()
        };
        let may_load = |of: &Definition| {
            self.loaded != Some(*of) && self.holders.is_empty() || self.is_damaged || status == 77
        };
        match call {
            Call::Use(holder, of) if may_load(of) && !matches!(status, 74 | 78) => {
                worlds.extend([loads(None), loads(Some(*holder))]);
            }
            Call::Run(of) => {
                // its lock is free at once: what it loaded is there, and nobody holds it
                if let Ok(world) = self.used(None, *of, strays) {
                    worlds.push(world);
                }
                if may_load(of) {
                    worlds.push(loads(None));
                }
            }
            Call::Unuse(_) if done.loaded.is_none() => worlds.push(loads(self.provisional)),
            _ => {}
        }
        worlds
    }
}

/// Files below the repository once this definition is loaded.
fn published(of: Definition) -> BTreeMap<String, Option<&'static str>> {
    let members = MEMBERS[of].iter();
    let mut files: BTreeMap<_, _> = members
        .map(|(path, content)| (path.to_string(), Some(*content)))
        .collect();
    files.insert(ARCHIVES[of].into(), None);
    files.insert(format!("{}.list", ARCHIVES[of]), None);
    files
}

struct History {
    node: Node,
    /// The repository and its control directory, below the base.
    root: &'static str,
    control: &'static str,
    words: [String; 2],
    jobs: Vec<Job>,
    worlds: BTreeSet<World>,
    /// Paths in the repository that came from sc, but whose journal is gone.
    strays: BTreeSet<String>,
    stray_dirs: BTreeSet<String>,
    foreign: BTreeSet<String>,
}

impl History {
    fn new(is_nested: bool) -> History {
        let node = Node::new();
        let (root, control) = match is_nested {
            true => ("p/r", "p/.sc.r"),
            false => ("r", ".sc.r"),
        };
        let words = [0, 1].map(|of| {
            let archive = tar_gz(&node, ARCHIVES[of], MEMBERS[of]);
            format!("file:{} md5:{} tar", archive.display(), md5(&archive))
        });
        History {
            jobs: (0..JOBS).map(|_| node.job()).collect(),
            node,
            root,
            control,
            words,
            worlds: [World::default()].into(),
            strays: BTreeSet::new(),
            stray_dirs: BTreeSet::new(),
            foreign: BTreeSet::new(),
        }
    }

    fn line(&self, call: &Call) -> String {
        let id = |holder: &Holder| if holder.1 { "--id=2" } else { "" };
        let name = self.root;
        match call {
            Call::Use(holder, of) => {
                format!(
                    "\"$SC\" --use --name={name} {} {}",
                    id(holder),
                    self.words[*of]
                )
            }
            Call::Unuse(holder) => format!("\"$SC\" --unuse --name={name} {}", id(holder)),
            Call::Run(of) => format!(
                "\"$SC\" --run --name={name} {} -- test -e {}",
                self.words[*of], ARCHIVES[*of]
            )
            .replace("test -e ", "sh -c 'test -e \"$SC_LOCATION\"/\"$0\"' "),
        }
    }

    /// Who runs the line; a `--run` holds by its own lock, whoever starts it.
    fn job(call: &Call) -> usize {
        match call {
            Call::Use((job, _), _) | Call::Unuse((job, _)) => *job,
            Call::Run(_) => 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.path(self.root).join(name)
    }

    /// Files (and directories) in the repository that sc brought.
    fn data(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let all = tree(&self.node.path(self.root)).into_iter();
        let all = all.filter(|(path, _)| {
            !path.starts_with("repofile") && !self.foreign.contains(path.as_str())
        });
        let (dirs, files): (Vec<_>, Vec<_>) = all.partition(|(_, what)| what == "dir");
        let names = |list: Vec<(String, String)>| list.into_iter().map(|(path, _)| path).collect();
        (names(files), names(dirs))
    }

    /// Does the repofile name what was published? Then the lists tell the rest without a journal.
    fn names_entries(&self) -> bool {
        let text = fs::read_to_string(self.path("repofile")).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        json["sc"]["entries"].is_array()
    }

    fn step(&mut self, n: usize, step: &Step) {
        match step {
            Step::Call(call) => {
                let line = self.line(call);
                let (status, said) = self.jobs[Self::job(call)].sh(&line);
                self.see(
                    step,
                    &said,
                    |world, strays| match world.after(call, strays) {
                        (expected, after) if expected == status => vec![after],
                        _ => Vec::new(),
                    },
                    &format!("status {status}"),
                );
                self.look_at_data(call, status);
                // whoever was the last, whatever was there before him
                let is_left = self.worlds.iter().all(|world| *world == World::default());
                if is_left && status == 0 && !matches!(call, Call::Use(..)) {
                    self.assert_left();
                }
            }
            Step::Troubled(call, trouble) => {
                let variable = match trouble {
                    Trouble::Crash(n) => format!("SC_CRASH_AT={n}"),
                    Trouble::Fault(n, errno, lasts) => {
                        format!("SC_FAULT_AT={n}{}:{errno}", if *lasts { "+" } else { "" })
                    }
                };
                let line = format!("{variable} {}", self.line(call));
                let (status, said) = self.jobs[Self::job(call)].sh(&line);
                assert!(!said.contains("panicked"), "{said}");
                let is_run = matches!(call, Call::Run(_));
                self.see(
                    step,
                    &said,
                    |world, strays| {
                        let (expected, after) = world.after(call, strays);
                        match trouble {
                            Trouble::Crash(_) if status == KILLED => world.midway(call, strays),
                            Trouble::Crash(_) if status == expected => vec![after],
                            Trouble::Crash(_) => Vec::new(),
                            // --run tells the status of its command, whatever became of its unuse
                            Trouble::Fault(..) if is_run && matches!(status, 0 | 125) => {
                                world.midway(call, strays)
                            }
                            Trouble::Fault(..) if status == 0 && expected == 0 => vec![after],
                            Trouble::Fault(..)
                                if status == expected || matches!(status, 73 | 74) =>
                            {
                                world.midway(call, strays)
                            }
                            Trouble::Fault(..) => Vec::new(),
                        }
                    },
                    &format!("status {status}"),
                );
                self.look_at_data(call, status);
            }
            Step::Race(one, two) => {
                let (first, second) = (Self::job(one), Self::job(two));
                if first == second {
                    return;
                }
                let lines = [self.line(one), self.line(two)];
                let mut jobs: Vec<_> = self.jobs.iter_mut().collect();
                let b = jobs.remove(first.max(second));
                let a = jobs.remove(first.min(second));
                let (a, b) = if first < second { (a, b) } else { (b, a) };
                let (one_ended, two_ended) = std::thread::scope(|scope| {
                    let one = scope.spawn(|| a.sh(&lines[0]));
                    let two = b.sh(&lines[1]);
                    (one.join().unwrap(), two)
                });
                let seen = (one_ended.0, two_ended.0);
                let said = one_ended.1 + &two_ended.1;
                self.see(
                    step,
                    &said,
                    |world, strays| {
                        let (status_one, between) = world.after(one, strays);
                        let (status_two, after) = between.after(two, strays);
                        let in_order = ((status_one, status_two), after);
                        let (status_two, between) = world.after(two, strays);
                        let (status_one, after) = between.after(one, strays);
                        let mut possible = vec![in_order, ((status_one, status_two), after)];
                        // a run is two steps, and the other call may come between them
                        possible.extend(world.around(one, two, strays));
                        possible.extend(
                            world
                                .around(two, one, strays)
                                .into_iter()
                                .map(|((two, one), after)| ((one, two), after)),
                        );
                        possible.retain(|(statuses, _)| *statuses == seen);
                        possible.into_iter().map(|(_, after)| after).collect()
                    },
                    &format!("statuses {seen:?}"),
                );
            }
            Step::KillJob(job) => {
                std::mem::replace(&mut self.jobs[*job], self.node.job()).kill();
                self.each(|world| {
                    world.holders.retain(|(other, _)| other != job);
                    world.provisional = world.provisional.filter(|(other, _)| other != job);
                });
            }
            Step::DeleteData(of) => {
                let name = MEMBERS[*of][0].0;
                if fs::remove_file(self.path(name)).is_ok() {
                    self.strays.remove(name);
                    self.each(|world| world.is_damaged |= world.loaded == Some(*of));
                }
            }
            Step::DeleteLock => {
                let _ = fs::remove_file(self.node.path(self.control).join("lock"));
            }
            Step::DeleteJournal => {
                // with a teardown under way there are two of them, and one is in its trash
                let control = self.node.path(self.control);
                let is_trash = |name: &String| name.starts_with("trash-");
                if !tree(&control).keys().any(is_trash)
                    && fs::remove_file(control.join("journal")).is_ok()
                    && !self.names_entries()
                {
                    let (files, dirs) = self.data();
                    self.strays.extend(files);
                    self.stray_dirs.extend(dirs);
                    self.stray_dirs.insert(String::new());
                }
            }
            Step::DeleteRepofile => {
                if fs::remove_file(self.path("repofile")).is_ok() {
                    // the last that told what sc brought
                    let control = tree(&self.node.path(self.control));
                    let tells = |name: &String| name.contains("journal");
                    if !control.keys().any(tells) {
                        let (files, dirs) = self.data();
                        self.strays.extend(files);
                        self.stray_dirs.extend(dirs);
                        self.stray_dirs.insert(String::new());
                    }
                    self.worlds = [World::default()].into();
                }
            }
            Step::AddForeign(is_deep) => {
                let name = format!("{}mine-{n}", if *is_deep { "bin/" } else { "" });
                if fs::write(self.path(&name), "mine").is_ok() {
                    self.foreign.insert(name);
                }
            }
        }
    }

    fn each(&mut self, change: impl Fn(&mut World)) {
        self.worlds = std::mem::take(&mut self.worlds)
            .into_iter()
            .map(|mut world| {
                change(&mut world);
                world
            })
            .collect();
    }

    /// Goes from each world to those that explain what was seen, and that agree with the holders
    /// in the repofile.
    fn see(
        &mut self,
        step: &Step,
        said: &str,
        explain: impl Fn(&World, &BTreeSet<String>) -> Vec<World>,
        seen: &str,
    ) {
        let before = std::mem::take(&mut self.worlds);
        let recorded = self.recorded_holders();
        self.worlds = before
            .iter()
            .flat_map(|world| explain(world, &self.strays))
            .filter(|world| world.holders == recorded)
            .collect();
        assert!(
            !self.worlds.is_empty(),
            "nothing explains what {step:?} did: {seen}, holders {recorded:?}; it said:\n{said}\
             before it: {before:#?}, strays {:?}\nnow: {:#?}",
            self.strays,
            self.node.tree().keys(),
        );
        let whole = self
            .worlds
            .iter()
            .all(|world| world.loaded.is_some() && !world.holders.is_empty() && !world.is_damaged);
        if whole {
            let of = self.worlds.iter().find_map(|world| world.loaded).unwrap();
            self.assert_whole(of);
        }
    }

    fn look_at_data(&self, call: &Call, status: i32) {
        if let (Call::Use(_, of), 0) = (call, status) {
            self.assert_whole(*of);
        }
    }

    fn assert_whole(&self, of: Definition) {
        let there = tree(&self.node.path(self.root));
        for (path, content) in published(of) {
            let found = there.get(&path);
            let is_whole = match content {
                Some(content) => found.is_some_and(|found| found == content),
                None => found.is_some(),
            };
            assert!(is_whole, "`{path}` is not whole: {there:?}");
        }
    }

    fn recorded_holders(&self) -> BTreeSet<Holder> {
        let Ok(text) = fs::read_to_string(self.path("repofile")) else {
            return BTreeSet::new();
        };
        let json: serde_json::Value = serde_json::from_str(&text).expect("I2: a whole repofile");
        let none = Vec::new();
        json["sc"]["holders"]
            .as_array()
            .unwrap_or(&none)
            .iter()
            .filter(|holder| holder["provisional"] == false)
            .filter_map(|holder| {
                let is_its = |job: &Job| holder["pid"] == job.pid();
                let job = self.jobs.iter().position(is_its)?;
                Some((job, !holder["id"].is_null()))
            })
            .collect()
    }

    /// Everybody dies; somebody uses and gives up: what stays is nobody's business of ours.
    fn end(mut self) {
        for job in std::mem::take(&mut self.jobs) {
            job.kill();
        }
        let name = format!("--name={} --id=end", self.root);
        for action in ["--use", "--unuse"] {
            let output = self.node.sc(&format!("{action} {name}")).output();
            assert!(output.status.success(), "{action} at the end: {output:?}");
        }
        self.assert_left();
    }

    /// Nothing of ours is there.
    fn assert_left(&self) {
        let in_root = |path: &str| format!("{}/{path}", self.root);
        let expected: BTreeSet<_> = self
            .foreign
            .iter()
            .chain(&self.strays)
            .map(|path| in_root(path))
            .collect();
        let there = self.node.tree();
        for path in &expected {
            assert!(there.contains_key(path), "`{path}` is gone: {there:#?}");
        }
        for (path, what) in &there {
            let is_above = expected
                .iter()
                .any(|file| file.starts_with(&format!("{path}/")));
            let may_stay = |dir: &String| {
                let dir = in_root(dir);
                let dir = dir.trim_end_matches('/');
                path == dir || dir.starts_with(&format!("{path}/"))
            };
            let is_explained = match what.as_str() {
                "dir" => is_above || self.stray_dirs.iter().any(may_stay),
                _ => expected.contains(path),
            };
            assert!(is_explained, "`{path}` stays: {there:#?}");
        }
    }
}

impl World {
    /// What `other` may meet between the use and the unuse of a `--run`: statuses, and the world
    /// after all.
    fn around(
        &self,
        run: &Call,
        other: &Call,
        strays: &BTreeSet<String>,
    ) -> Vec<((i32, i32), World)> {
        // The holder of the run is a job that doesn't exist.
        const RUN: Holder = (JOBS, false);
        let Call::Run(of) = run else {
            return Vec::new();
        };
        let Ok(running) = self.used(Some(RUN), *of, strays) else {
            return Vec::new();
        };
        let (status, between) = running.after(other, strays);
        let (_, after) = between.unused(RUN);
        vec![((0, status), after)]
    }
}

fn run(is_nested: bool, steps: &[Step]) {
    let mut history = History::new(is_nested);
    for (n, step) in steps.iter().enumerate() {
        history.step(n, step);
    }
    history.end();
}

#[test]
fn no_history_of_uses_kills_and_losses_has_an_end_that_nothing_explains() {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let only = number("SC_MODEL_SEED");
    let cases = number("SC_MODEL_CASES").unwrap_or(40);
    let seeds = only.map_or(0..cases, |seed| seed..seed + 1);
    let next = std::sync::Mutex::new(seeds);
    let each = || {
        while let Some(seed) = { next.lock().unwrap().next() } {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            let config = Config {
                cases: 1,
                max_shrink_iters: if only.is_some() { 200 } else { 0 },
                failure_persistence: None,
                ..Config::default()
            };
            let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
            let histories = (any::<bool>(), prop::collection::vec(steps(), 10..20));
            let ended =
                TestRunner::new_with_rng(config, rng).run(&histories, |(is_nested, steps)| {
                    run(is_nested, &steps);
                    Ok(())
                });
            match ended {
                Ok(()) => {}
                Err(TestError::Fail(reason, steps)) => {
                    panic!("SC_MODEL_SEED={seed}: {reason}\nthe history: {steps:?}")
                }
                Err(error) => panic!("SC_MODEL_SEED={seed}: {error}"),
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(each)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
