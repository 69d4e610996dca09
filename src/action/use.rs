//! `--use`: register a use; load first if nobody has.

use std::time::Duration;

use crate::console::Console;
use crate::durable::{Dir, Watch};
use crate::error::{Error, Result};
use crate::load::{self, Load, Plan, Published};
use crate::process::{self, Identity, Life};
use crate::repository::holder::{self, HeldLock, Holder};
use crate::repository::repofile::{FORMAT, Failure, Loader, Repofile, Sc, State};
use crate::repository::{Change, Held, Repository, Waiting};
use crate::request::Request;
use crate::signal::{self, Patience};

/// A use that is registered.
pub struct Use {
    pub repository: Repository,
    pub holder: Holder,
    /// The kernel's side of a `--run`'s hold.
    pub lock: Option<HeldLock>,
}

/// Registers a process: the one of `--pid`, or our parent.
pub fn by_process(request: &Request, patience: &Patience, console: &Console) -> Result<Use> {
    let holder = holder_of(request)?;
    hint_at_wrapper(request, console);
    register(request, patience, console, &mut |_| {
        Ok((holder.clone(), None))
    })
}

/// Registers a lock that a command will inherit.
pub fn by_lock(request: &Request, patience: &Patience, console: &Console) -> Result<Use> {
    register(request, patience, console, &mut |held| {
        let (lock, hold) = holder::make_lock(&held.control)?;
        let holder = Holder {
            hold,
            id: request.holder.id.clone(),
            since_unix_s: process::unix_time_s(),
            provisional: false,
        };
        Ok((holder, Some(lock)))
    })
}

/// Who registers.
///
/// # Errors
/// [`Error::Usage`]: `--pid` names no process.
pub fn holder_of(request: &Request) -> Result<Holder> {
    let pid = match request.holder.pid {
        Some(pid) if process::is_gone(pid) => {
            return Err(Error::Usage {
                problem: format!("there is no process {pid} (`--pid`)"),
                hint: None,
            });
        }
        Some(pid) => pid,
        // 0: our parent is in another pid namespace, and we are the first process of ours
        None => match nix::unistd::getppid().as_raw() {
            0 => std::process::id() as i32,
            parent => parent,
        },
    };
    Ok(Holder::process(pid, request.holder.id.clone()))
}

/// Some parents end with the command they started: a use by them is dead at once.
fn hint_at_wrapper(request: &Request, console: &Console) {
    if request.holder.pid.is_some() {
        return;
    }
    const WRAPPERS: &[&str] = &["make", "slurmstepd", "srun", "sudo", "timeout", "xargs"];
    let parent = nix::unistd::getppid().as_raw();
    let name = process::command_name(parent).filter(|name| WRAPPERS.contains(&name.as_str()));
    if let Some(name) = name {
        console.hint(format_args!(
            "the holder is `{name}` (pid {parent}), and the use ends with it; `--pid` names another"
        ));
    }
}

type MakeHolder<'a> = &'a mut dyn FnMut(&Held) -> Result<(Holder, Option<HeldLock>)>;

/// How a turn with the lock ended.
enum Turn {
    Registered(Use),
    /// A reference loads; it knows nothing of our lock.
    ReferenceLoads {
        pid: i64,
        root: Dir,
    },
    /// A reference was quicker: what the repofile says now counts.
    Again,
    /// The repository has appeared in a base directory before this one.
    Elsewhere,
}

fn register(
    request: &Request,
    patience: &Patience,
    console: &Console,
    make_holder: MakeHolder,
) -> Result<Use> {
    let plan = Plan::new(&request.stacks);
    let began_boot_ns = process::since_boot_ns();
    let mut said = false;
    loop {
        let repository = request.repository.choose(request.size, console)?;
        let waiting = Waiting { console, patience };
        let turn = repository.held(true, &waiting, |held| {
            let turn = turn(held, &waiting, request, &plan, began_boot_ns, make_holder);
            match &turn {
                // without the lock nothing here is ours to tidy
                Ok(_) | Err(Error::LockLost { .. }) => {}
                Err(_) => held.vanish_if_unused()?,
            }
            turn
        })?;
        match turn.expect("made, not looked for") {
            Turn::Registered(registered) => return Ok(registered),
            Turn::Elsewhere | Turn::Again => {}
            Turn::ReferenceLoads { pid, root } => {
                if !said && !patience.is_over() {
                    console.say(format_args!(
                        "waiting: pid {pid} is loading `{}`",
                        repository.location().display()
                    ));
                    said = true;
                }
                wait_for_writer(&repository, pid, &root, patience)?;
            }
        }
    }
}

/// Returns when `pid` no longer stands in the repofile as a living writer. Without our lock and
/// without the link lock, which is a file in the directory watched: two who took it to look would
/// wake each other for ever.
fn wait_for_writer(
    repository: &Repository,
    pid: i64,
    root: &Dir,
    patience: &Patience,
) -> Result<()> {
    loop {
        let watch = Watch::new(root)?; // first, so that no change is missed
        let writer = repository.peek()?.and_then(|now| living_writer(&now, None));
        if writer != Some(pid) {
            return Ok(());
        }
        if patience.is_over() {
            return Err(Error::Timeout {
                what: format!("`{}`", repository.location().display()),
                waited: patience.limit().filter(|limit| !limit.is_zero()),
                holder: format!("pid {pid} is loading it"),
            });
        }
        let limit = Duration::from_secs(1);
        watch.wait(limit.min(patience.left().unwrap_or(limit)))?;
        signal::check()?;
    }
}

/// What the repofile says is to be done.
enum Verdict {
    Joined,
    Load {
        repofile: Box<Repofile>,
        reason: String,
    },
    ReferenceLoads(i64),
    Again,
}

fn turn(
    held: &Held,
    waiting: &Waiting,
    request: &Request,
    plan: &Plan,
    began_boot_ns: u64,
    make_holder: MakeHolder,
) -> Result<Turn> {
    // Two may have chosen at once, with different space left: the earlier base wins, unless the
    // one in the later base was quicker.
    let found = request.repository.find()?;
    if found.is_some_and(|found| found != *held.repository)
        || held.is_unused()? && is_in_later_base(request, held, waiting)?
    {
        held.vanish_if_unused()?;
        // what cannot vanish would be chosen again
        if request.repository.find()?.as_ref() != Some(held.repository) {
            return Ok(Turn::Elsewhere);
        }
    }
    let (root, made) = match held.root()? {
        Some(root) => (root, false),
        None => load::make_root(held)?,
    };
    let generation = held.generation()?;
    let (holder, lock) = make_holder(held)?;
    let verdict = held.update(&root, |repofile| {
        decide(
            held,
            &root,
            repofile,
            plan,
            generation.as_deref(),
            began_boot_ns,
            &holder,
        )
    });
    let verdict = match verdict {
        Ok(Verdict::Load { repofile, reason }) => {
            held.console().detail(format_args!(
                "loading `{}`: {reason}",
                root.path().display()
            ));
            load_and_register(held, &root, request, plan, *repofile, &holder, made)
        }
        other => other,
    };
    match verdict {
        Ok(Verdict::ReferenceLoads(pid)) => {
            forget(held, &holder)?;
            Ok(Turn::ReferenceLoads { pid, root })
        }
        Ok(Verdict::Again) => {
            forget(held, &holder)?;
            Ok(Turn::Again)
        }
        Ok(_) => Ok(Turn::Registered(Use {
            repository: held.repository.clone(),
            holder,
            lock,
        })),
        // the last reference has just removed the directory
        Err(Error::Io { .. }) if !held.is_root(&root)? => {
            forget(held, &holder)?;
            Ok(Turn::Again)
        }
        Err(error @ Error::LockLost { .. }) => Err(error),
        Err(error) => {
            forget(held, &holder)?;
            Err(error)
        }
    }
}

/// Has the repository appeared in a base directory after this one? Whoever is at work there is
/// waited for, which is safe: nobody waits for an earlier base while he holds a later one.
fn is_in_later_base(request: &Request, held: &Held, waiting: &Waiting) -> Result<bool> {
    for later in request.repository.later_than(held.repository) {
        // what cannot be looked into is no reason to go there
        if !later.exists().unwrap_or(false) {
            continue;
        }
        match later.held(false, waiting, |_| Ok(())) {
            Err(error @ (Error::Timeout { .. } | Error::Interrupted { .. })) => return Err(error),
            Err(_) => {}
            Ok(_) if later.peek().is_ok_and(|repofile| repofile.is_some()) => return Ok(true),
            Ok(_) => {}
        }
    }
    Ok(false)
}

fn forget(held: &Held, holder: &Holder) -> Result<()> {
    match &holder.hold {
        holder::Hold::Lock { file, .. } => holder::forget_lock(&held.control, file),
        holder::Hold::Process(_) => Ok(()),
    }
}

fn decide(
    held: &Held,
    root: &Dir,
    repofile: &mut Repofile,
    plan: &Plan,
    generation: Option<&str>,
    began_boot_ns: u64,
    holder: &Holder,
) -> Result<Change<Verdict>> {
    if let Some(pid) = living_writer(repofile, Some(held)) {
        return Ok(Change::None(Verdict::ReferenceLoads(pid)));
    }
    for name in repofile.reap(&held.control)? {
        held.console()
            .detail(format_args!("{name} is dead and holds no more"));
    }
    let ours = repofile.is_of(generation);
    let same = repofile.sc.signature.as_deref() == Some(&plan.signature);
    let loaded = repofile.state == State::Ok && repofile.writer.is_none();
    let holders = repofile.readers.len();
    let own = repofile.position(holder);
    // Our word on what is loaded stands without the journal too, which a cleaner may have taken.
    let known = ours || repofile.sc.state == State::Ok && repofile.sc.signature.is_some();
    let damaged = |repofile: &Repofile, entry: String| Error::Damaged {
        location: held.repository.location(),
        entry,
        holders: repofile.holders(),
    };

    let reload = |repofile: &mut Repofile, reason: String| {
        // I7: nobody may believe the data while it is taken away
        repofile.state = State::Unknown;
        repofile.writer = None;
        repofile.sc.signature = None;
        let verdict = Verdict::Load {
            repofile: Box::new(repofile.clone()),
            reason,
        };
        Ok(Change::Commit(verdict))
    };
    if loaded && known && !same {
        if holders > 0 {
            return Err(Error::OtherDefinition {
                location: held.repository.location(),
                asked: plan.definition.clone(),
                loaded: repofile.sc.definition.clone().unwrap_or_default(),
                holders: repofile.holders(),
            });
        }
        return reload(repofile, "it holds something else that nobody uses".into());
    }
    if loaded && ours && repofile.sc.boot_id != process::boot_id() && holders == 0 {
        return reload(repofile, "it was loaded before the last boot".into());
    }
    if loaded {
        let mut gone = match known {
            true => missing(root, repofile)?,
            false => plan.missing(root)?,
        };
        if gone.is_none() && ours && held.has_broken() {
            gone = load::missing_below(held, root, repofile)?;
        }
        if let Some(entry) = gone {
            if holders > usize::from(own.is_some()) {
                return Err(damaged(repofile, entry));
            }
            if let Some(own) = own {
                repofile.remove(own);
            }
            return reload(repofile, format!("`{entry}` is gone"));
        }
        if own.is_some() {
            return Ok(Change::None(Verdict::Joined));
        }
        if !known {
            repofile.disown();
        }
        repofile.add(holder.clone());
        return Ok(Change::Commit(Verdict::Joined)); // the instant the use exists
    }
    if let Some(failure) = &repofile.sc.failure
        && ours
        && repofile.state == State::Broken
        && failure.ended_boot_ns > began_boot_ns
        && failure.boot_id == process::boot_id()
        && failure.signature == plan.signature
        && failure.attempt == plan.attempt
    {
        return Err(Error::Relayed {
            message: failure.message.clone(),
            status: failure.exit_status,
        });
    }
    let reason = match (repofile.exists, repofile.state) {
        (false, _) => "it is not there yet".into(),
        (_, State::InProgress) => "its loader died".into(),
        (_, State::Broken) => "the last load failed".into(),
        (_, State::Unknown) => "its last load was not finished".into(),
        (_, State::Ok) => "its writer died".into(),
    };
    let verdict = Verdict::Load {
        repofile: Box::new(repofile.clone()),
        reason,
    };
    Ok(Change::None(verdict))
}

/// The pid of a loader that is at work though the lock is ours: a reference, or an sc whose lock
/// file was taken away.
pub fn living_writer(repofile: &Repofile, held: Option<&Held>) -> Option<i64> {
    let pid = repofile.writer?;
    if pid == i64::from(std::process::id()) {
        return None;
    }
    let dead = match &repofile.sc.loader {
        Some(loader) if i64::from(loader.process.pid) == pid => {
            held.is_some_and(|held| held.lock_inode() == (loader.lock_dev, loader.lock_ino))
                || loader.process.life() == Life::Dead
        }
        _ => process::is_number_dead(pid),
    };
    (!dead).then_some(pid)
}

/// The first published entry that is gone.
fn missing(root: &Dir, repofile: &Repofile) -> Result<Option<String>> {
    if repofile.sc.entries.is_none() && repofile.sc.entry_count > 0 {
        let there = root.names()?.len() as u64;
        let gone = there < repofile.sc.entry_count;
        return Ok(gone.then(|| format!("some of {} entries", repofile.sc.entry_count)));
    }
    for entry in repofile.entries() {
        if root.lstat(entry.as_os_str())?.is_none() {
            return Ok(Some(entry.display().to_string()));
        }
    }
    Ok(None)
}

/// A reference that tears down under us is met so often; more than that is no accident.
const MOST_DELETIONS: u32 = 5;

/// Loads, with a provisional holder in `readers` for references to see, and commits how it ended.
/// What a reference deletes meanwhile, which knows nothing of our lock, is loaded again.
fn load_and_register(
    held: &Held,
    root: &Dir,
    request: &Request,
    plan: &Plan,
    repofile: Repofile,
    holder: &Holder,
    made: bool,
) -> Result<Verdict> {
    let made = made || !repofile.exists && held.is_only_claims(root)?;
    let (mut root, mut made, mut repofile) = (root.try_clone()?, made, repofile);
    for deletions in 1.. {
        let loaded = load_once(held, &root, request, plan, &mut repofile, holder, made);
        let gone = match loaded {
            Ok(Outcome::Deleted(entry)) => entry,
            Ok(Outcome::Verdict(verdict)) => return Ok(verdict),
            Err(Error::Io { .. }) if !held.is_root(&root)? => "repofile".into(),
            Err(error @ Error::LockLost { .. }) => return Err(error),
            Err(error) => {
                return match give_up(held, &root, plan, holder, &error) {
                    Some(verdict) => Ok(verdict),
                    None => Err(error),
                };
            }
        };
        let deleted = Error::Damaged {
            location: held.repository.location(),
            entry: gone.clone(),
            holders: "its loader".into(),
        };
        if deletions == MOST_DELETIONS {
            give_up(held, &root, plan, holder, &deleted);
            return Err(deleted);
        }
        held.console().warn(format_args!(
            "another program deleted `{gone}` in `{}` during the load; loading again",
            root.path().display()
        ));
        let remade;
        (root, remade) = held.make_root()?;
        made |= remade;
    }
    unreachable!("the loop above ends by returning")
}

enum Outcome {
    Verdict(Verdict),
    /// This entry was published and is gone.
    Deleted(String),
}

/// One load; `repofile` is what was read last, and then what was committed at its begin.
fn load_once(
    held: &Held,
    root: &Dir,
    request: &Request,
    plan: &Plan,
    repofile: &mut Repofile,
    holder: &Holder,
    made: bool,
) -> Result<Outcome> {
    let Some(prepared) = load::prepare(held, root, repofile, plan, made)? else {
        return Ok(Outcome::Verdict(Verdict::Again));
    };
    let generation = prepared.generation.clone();
    let begun = held.update(root, |repofile| {
        if let Some(pid) = living_writer(repofile, Some(held)) {
            // it came between our look and now
            return Ok(Change::None(Err(pid)));
        }
        repofile.reap(&held.control)?;
        let me = Identity::of(std::process::id() as i32);
        repofile.state = State::InProgress;
        repofile.writer = Some(i64::from(me.pid));
        let sc = &mut repofile.sc;
        describe(sc, &generation, plan);
        sc.loaded_unix_s = None;
        (sc.entries, sc.entry_count) = (None, 0);
        sc.failure = None;
        sc.loader = Some(Loader {
            process: me,
            since_boot_ns: process::since_boot_ns(),
            lock_dev: held.lock_inode().0,
            lock_ino: held.lock_inode().1,
        });
        repofile.add(Holder {
            provisional: true,
            ..holder.clone()
        });
        repofile.sc.state = repofile.state;
        repofile.sc.format = FORMAT;
        Ok(Change::Commit(Ok(repofile.clone())))
    })?;
    match begun {
        Ok(begun) => *repofile = begun,
        Err(pid) => return Ok(Outcome::Verdict(Verdict::ReferenceLoads(pid))),
    }
    let _guards = (root.flock_shared(), held.control.flock_shared());
    let published = Load::new(held, root, plan, &request.settings, prepared).run()?;
    let accepted = accept(held, root, holder, &generation, plan, &published)?;
    if let Outcome::Verdict(Verdict::Joined) = accepted
        && let Err(error) = held.clear_staging()
    {
        // The use stands: what is left there is the next one's to clear.
        held.console().detail(error);
    }
    Ok(accepted)
}

/// What a load makes of the repository.
fn describe(sc: &mut Sc, generation: &str, plan: &Plan) {
    sc.generation = Some(generation.to_owned());
    sc.signature = Some(plan.signature.clone());
    sc.definition = Some(plan.definition.clone());
    sc.boot_id = process::boot_id();
}

/// Has nobody put himself in our place? A reference does that where it cannot see our pid.
fn is_writer_us(repofile: &Repofile) -> bool {
    let us = i64::from(std::process::id());
    repofile.writer.is_none_or(|writer| writer == us)
}

/// Looks at what was published, under the link lock, and commits OK (I5).
fn accept(
    held: &Held,
    root: &Dir,
    holder: &Holder,
    generation: &str,
    plan: &Plan,
    published: &Published,
) -> Result<Outcome> {
    held.update(root, |repofile| {
        if let Some(pid) = living_writer(repofile, Some(held)) {
            // It took us for dead, and loads into the same directory: what it leaves is its own.
            drop_holder(repofile, holder);
            return Ok(Change::Commit(Outcome::Verdict(Verdict::ReferenceLoads(
                pid,
            ))));
        }
        if !is_writer_us(repofile) {
            // it may live where we cannot see it
            return Err(Error::LockLost {
                path: root.path_of(held.repository.repofile()),
            });
        }
        if let Some(entry) = published.missing(root)? {
            let entry = entry.display().to_string();
            return Ok(Change::None(Outcome::Deleted(entry)));
        }
        repofile.state = State::Ok;
        repofile.writer = None;
        repofile.sc.loader = None;
        // all of it: the file may have been taken away meanwhile
        describe(&mut repofile.sc, generation, plan);
        repofile.sc.loaded_unix_s = Some(process::unix_time_s());
        (repofile.sc.entries, repofile.sc.entry_count) = published.entries();
        match repofile.position(holder) {
            Some(at) => repofile.sc.holders[at].provisional = false,
            // a reference reaped it
            None => repofile.add(holder.clone()),
        }
        Ok(Change::Commit(Outcome::Verdict(Verdict::Joined)))
    })
}

fn drop_holder(repofile: &mut Repofile, holder: &Holder) {
    if let Some(at) = repofile.position(holder) {
        repofile.remove(at);
    }
}

/// Records that the load failed: BROKEN with the error; UNKNOWN after a signal. If a reference
/// took the load over meanwhile, nothing is recorded: what it does counts now, and is returned.
fn give_up(
    held: &Held,
    root: &Dir,
    plan: &Plan,
    holder: &Holder,
    error: &Error,
) -> Option<Verdict> {
    let recorded = held.update(root, |repofile| {
        let interrupted = matches!(error, Error::Interrupted { .. });
        let other = match living_writer(repofile, Some(held)) {
            Some(pid) => Some(Verdict::ReferenceLoads(pid)),
            None if repofile.writer.is_none() && repofile.state == State::Ok => {
                Some(Verdict::Again)
            }
            None => None,
        };
        if other.is_none() && !is_writer_us(repofile) {
            return Ok(Change::None(None));
        }
        drop_holder(repofile, holder);
        if other.is_some() {
            return Ok(Change::Commit(other.filter(|_| !interrupted)));
        }
        repofile.writer = None;
        repofile.sc.loader = None;
        repofile.state = match interrupted {
            true => State::Unknown,
            false => State::Broken,
        };
        repofile.sc.failure = (repofile.state == State::Broken).then(|| Failure {
            message: error.to_string(),
            exit_status: error.exit_status(),
            ended_boot_ns: process::since_boot_ns(),
            ended_unix_s: process::unix_time_s(),
            boot_id: process::boot_id(),
            signature: plan.signature.clone(),
            attempt: plan.attempt.clone(),
        });
        Ok(Change::Commit(None))
    });
    recorded.unwrap_or_else(|second| {
        // the next sc finds a writer that is dead, and goes on from there
        held.console()
            .detail(format_args!("the failure could not be recorded: {second}"));
        None
    })
}
