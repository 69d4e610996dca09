//! Many at once: one download for all, nobody reads what is not whole, and nothing is left.

use std::collections::BTreeSet;

use crate::dataset::Dataset;
use crate::node::{Fifo, Job, Node, Running};
use crate::server::{Gate, Reply};

const MANY: usize = 64;

/// Starts one `sc` for each id, all before the first has ended.
fn crowd(node: &Node, ids: std::ops::Range<usize>, words: &str) -> Vec<Running> {
    ids.map(|id| node.sc(&format!("{words} --id={id}")).spawn())
        .collect()
}

#[track_caller]
fn all_end_well(mut crowd: Vec<Running>) {
    for sc in &mut crowd {
        assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
    }
}

fn ids(node: &Node) -> BTreeSet<String> {
    let repofile = node.repofile("r");
    let holders = repofile["sc"]["holders"].as_array().unwrap();
    assert_eq!(
        repofile["readers"].as_array().unwrap().len(),
        holders.len(),
        "{repofile}"
    );
    assert!(
        holders.iter().all(|holder| holder["provisional"] == false),
        "{repofile}"
    );
    holders
        .iter()
        .map(|holder| holder["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn sixty_four_at_once_share_one_download_and_leave_nothing() {
    let node = Node::new();
    let data = Dataset::new(200_000);
    let gate = Gate::new();
    let server = data
        .served()
        .reply(Reply::ok().hold_after(1000, &gate))
        .start();
    let words = data.words(&server);

    // cold: the body is held back until all the others wait for it
    let mut cold = crowd(&node, 0..MANY, &format!("--use {words}"));
    gate.wait_for_visitor();
    let loader = node.repofile("r")["writer"].as_i64().unwrap();
    let mut waiters = 0;
    for sc in &mut cold {
        if i64::from(sc.pid()) != loader {
            sc.wait_for("sc: waiting: ");
            waiters += 1;
        }
    }
    assert_eq!(waiters, MANY - 1);
    gate.open();
    for sc in &mut cold {
        assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
        let lines = if i64::from(sc.pid()) == loader { 0 } else { 1 };
        assert_eq!(sc.said.lines().count(), lines, "{}", sc.said);
    }
    assert_eq!(server.requests(), 1);
    assert_eq!(server.bytes_sent(), data.archive.len() as u64);
    data.assert_whole(&node);
    assert_eq!(ids(&node), (0..MANY).map(|id| id.to_string()).collect());

    // warm
    let warm = crowd(&node, MANY..2 * MANY, &format!("-q --use {words}"));
    for mut sc in warm {
        assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
        assert_eq!(sc.said, "");
    }
    assert_eq!(server.requests(), 1);
    data.assert_whole(&node);
    assert_eq!(ids(&node), (0..2 * MANY).map(|id| id.to_string()).collect());

    all_end_well(crowd(&node, 0..MANY, "--unuse --name=r"));
    data.assert_whole(&node);
    all_end_well(crowd(&node, MANY..2 * MANY, "--unuse --name=r"));
    node.assert_empty();
}

/// As good as needed for a storm, and the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// One time in three, a kill at some change of the disk.
    fn crash(&mut self) -> String {
        match self.roll(3) {
            0 => format!("SC_CRASH_AT={} ", 1 + self.roll(60)),
            _ => String::new(),
        }
    }
}

const KILLED: i32 = 128 + 9;

/// One job in the storm; whether its use was ever registered.
fn job_in_the_storm(node: &Node, data: &Dataset, words: &str, dice: &mut Dice, fifo: &Fifo) {
    let mut job = node.job();
    let mut status = job.sh(&format!("{}\"$SC\" -q --use {words}", dice.crash()));
    if status.0 == KILLED {
        if dice.roll(2) == 0 {
            return job.kill();
        }
        status = job.sc(&format!("-q --use {words}"));
    }
    assert_eq!(status, (0, String::new()));
    for _ in 0..=dice.roll(3) {
        data.assert_whole(node);
    }
    match dice.roll(4) {
        // dies as holder
        0 => job.kill(),
        // dies while a second use of it is under way, which goes on alone
        1 => {
            let pause = fifo.at("create");
            let begun = format!("SC_PAUSE_AT='{pause}' \"$SC\" -q --use --id=2 {words} &");
            assert_eq!(job.sh(&begun).0, 0);
            let reached = fifo.reached();
            data.assert_whole(node);
            job.die();
            drop(reached);
            assert_eq!(job.rest(), "");
        }
        _ => leave(&mut job, dice),
    }
}

fn leave(job: &mut Job, dice: &mut Dice) {
    let (mut status, mut said) = job.sh(&format!("{}\"$SC\" -q --unuse --name=r", dice.crash()));
    if status == KILLED {
        (status, said) = job.sc("-q --unuse --name=r");
        // it may have been out already
        if status == 255 {
            status = 0;
        }
    }
    assert_eq!((status, said.as_str()), (0, ""));
}

#[test]
fn in_a_storm_of_uses_and_kills_every_holder_has_the_whole_data() {
    const WORKERS: u64 = 6;
    const JOBS: usize = 10;
    let node = Node::new();
    let data = Dataset::new(100_000);
    let server = data.served().start();
    let words = data.words(&server);
    std::thread::scope(|scope| {
        for worker in 1..=WORKERS {
            let (node, data, words) = (&node, &data, &words);
            scope.spawn(move || {
                let mut dice = Dice(worker.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let fifo = Fifo::named(node, &format!("fifo{worker}"));
                for _ in 0..JOBS {
                    job_in_the_storm(node, data, words, &mut dice, &fifo);
                }
            });
        }
    });
    node.sc(&format!("--use {words}")).run();
    data.assert_whole(&node);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}
