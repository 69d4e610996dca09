//! `--use`: register a use; load first if nobody has.

use std::time::Duration;

use super::loading::Loading;
use super::verdict::{Proved, Verdict, Wish, decide};
use super::{room, who};
use crate::console::Console;
use crate::durable::{Dir, Watch};
use crate::error::{Error, Result};
use crate::load;
use crate::mounts::{Place, Shared};
use crate::plan::Plan;
use crate::process;
use crate::repository::holder::{self, HeldLock, Holder};
use crate::repository::repofile::Repofile;
use crate::repository::{Change, Held, Repository, Waiting, guest, past, space};
use crate::request::{HolderSpec, Request};
use crate::share::Kind;
use crate::signal::{self, Patience};
use crate::verify;

/// A use that is registered.
pub struct Use {
    pub repository: Repository,
    pub holder: Holder,
    /// The kernel's side of a `--run`'s hold.
    pub lock: Option<HeldLock>,
}

/// Registers whoever was named, or our parent.
pub fn by_caller(request: &Request, patience: &Patience, console: &Console) -> Result<Use> {
    let holder = who::comes(request, console)?;
    register(request, patience, console, &mut |held| {
        Ok((holder.clone().on_node_of(held), None))
    })
}

/// Registers a lock that a command will inherit.
pub fn by_lock(request: &Request, patience: &Patience, console: &Console) -> Result<Use> {
    register(request, patience, console, &mut |held| {
        let (lock, hold) = holder::make_lock(held)?;
        let HolderSpec { id, lease_s, .. } = &request.holder;
        let holder = Holder::new(hold, id.clone(), *lease_s);
        Ok((holder, Some(lock)))
    })
}

/// A base directory that one job alone sees looks like any other, and nothing is ever shared there.
/// Whoever loads is told, and he alone.
fn warn_if_private(held: &Held, request: &Request) {
    let base = held.repository.base();
    let shared = Place::of(base).map(|place| place.is_shared(&request.jobs));
    if let Some(Shared::No(why)) = shared {
        held.console().warn(format_args!(
            "`{}` is {why}; no other job shares what is loaded there (`--directories`)",
            base.display()
        ));
    }
}

/// Who may join need not be able to read: that is the umask's.
fn warn_if_closed(held: &Held) {
    let (who, needed) = match held.control.share().kind() {
        Kind::User => return,
        Kind::Group => ("the group", 0o050),
        Kind::All => ("others", 0o005),
    };
    let umask = process::umask();
    if umask & needed != 0 {
        held.console().warn(format_args!(
            "`{}` is loaded with umask {umask:04o}: {who} may join, and cannot read all of it",
            held.repository.location().display()
        ));
    }
}

type MakeHolder<'a> = &'a mut dyn FnMut(&Held) -> Result<(Holder, Option<HeldLock>)>;

/// How a turn with the lock ended.
enum Turn {
    Registered(Box<Use>),
    /// A reference loads; it knows nothing of our lock.
    ReferenceLoads {
        pid: i64,
        root: Dir,
    },
    /// A reference was quicker: what the repofile says now counts.
    Again,
    /// The repository has appeared in a base directory before this one.
    Elsewhere,
    /// What is to be loaded does not fit beside what is kept and what others load.
    NoRoom,
}

fn register(
    request: &Request,
    patience: &Patience,
    console: &Console,
    make_holder: MakeHolder,
) -> Result<Use> {
    let plan = Plan::new(&request.stacks);
    let began = (process::since_boot_ns(), process::unix_time_s());
    let mut said = false;
    // All was tried to make room where the repository is; then the load itself must tell.
    let mut made_room = false;
    loop {
        let repository = room::choose(request, console)?;
        repository.may_join()?;
        let waiting = Waiting { console, patience };
        let turn = repository.held(true, &waiting, |held| {
            let turn = turn(
                held,
                &waiting,
                request,
                &plan,
                began,
                made_room,
                make_holder,
            );
            match &turn {
                // without the lock nothing here is ours to tidy
                Ok(_) | Err(Error::LockLost { .. }) => {}
                Err(_) => held.vanish_if_unused()?,
            }
            turn
        })?;
        match turn.expect("made, not looked for") {
            Turn::Registered(registered) => return Ok(*registered),
            Turn::Elsewhere | Turn::Again => {}
            Turn::NoRoom => {
                // what a killed process left here keeps it from being placed elsewhere
                made_room = request.repository.find()?.as_ref() == Some(&repository);
                if made_room {
                    room::make(request, &repository, console)?;
                }
            }
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
        let writer = repository.peek()?.and_then(|now| now.living_writer(None));
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

fn turn(
    held: &Held,
    waiting: &Waiting,
    request: &Request,
    plan: &Plan,
    (began_boot_ns, began_unix_s): (u64, u64),
    made_room: bool,
    make_holder: MakeHolder,
) -> Result<Turn> {
    // Two may have chosen at once, with different space left: the earlier base wins, unless the
    // one in the later base was quicker.
    let spec = &request.repository;
    let is_elsewhere = spec.is_in_earlier_base(held.repository)
        || spec.later_than(held.repository).next().is_some()
            && held.is_unused()?
            && is_in_later_base(request, held, waiting)?;
    if is_elsewhere {
        held.vanish_if_unused()?;
        // what cannot vanish would be chosen again
        if spec.find()?.as_ref() != Some(held.repository) {
            return Ok(Turn::Elsewhere);
        }
    }
    // it may be another one than a moment ago
    held.may_join()?;
    if let Some(said) = request.repository.share
        && !is_shared_so(held, said)?
    {
        return Ok(Turn::Again);
    }
    if held.is_guest() {
        return join(
            held,
            request,
            plan,
            (began_boot_ns, began_unix_s),
            make_holder,
        );
    }
    let directories = &request.repository.directories;
    let mut claim = None;
    if request.need.is_something() && held.is_unused()? {
        claim = space::claim(held, &request.need, directories, made_room)?;
        if claim.is_none() {
            held.vanish_if_unused()?;
            return Ok(Turn::NoRoom);
        }
    }
    let (root, made) = match held.root()? {
        Some(root) => (root, false),
        None => load::make_root(held)?,
    };
    let generation = held.generation()?;
    let (holder, lock) = make_holder(held)?;
    let mut wish = Wish {
        plan,
        terms: &request.terms,
        holder: &holder,
        beside: true,
        began_boot_ns,
        began_unix_s,
        proved: None,
    };
    let verdict = loop {
        let verdict = held.update(&root, |repofile| {
            decide(held, &root, repofile, generation.as_deref(), &wish)
        });
        let (repofile, why, beside) = match verdict {
            Ok(Verdict::Load {
                repofile,
                why,
                beside,
            }) => (repofile, why, beside),
            // without the link lock: a reference would break it before all is read
            Ok(Verdict::Prove(repofile)) => match prove(held, &root, &repofile) {
                Ok(proved) => {
                    wish.proved = Some(proved);
                    continue;
                }
                Err(error) => break Err(error),
            },
            other => break other,
        };
        if claim.is_none() && request.need.size.0 > 0 {
            claim = space::claim(held, &request.need, directories, made_room && !beside)?;
            if claim.is_none() && beside {
                wish.beside = false;
                continue;
            }
            if claim.is_none() {
                forget(held, &holder)?;
                return Ok(Turn::NoRoom);
            }
        }
        let past = past::look(held);
        let deleted = past
            .as_ref()
            .and_then(|past| past.deleted_unix_s(held.repository));
        let why = why.after_deletion(deleted);
        held.console()
            .detail(format_args!("loading `{}`: {why}", root.path().display()));
        warn_if_private(held, request);
        warn_if_closed(held);
        let loading = Loading {
            held,
            request,
            plan,
            holder: &holder,
            beside,
            why,
            past,
            began_ns: process::since_boot_ns(),
        };
        match loading.load_and_register(&root, *repofile, made) {
            // what is to be replaced takes the room that its successor needs
            Err(error) if beside && error.is_full() => {
                held.console().detail(format_args!(
                    "{error}; what has expired goes first, to make room"
                ));
                wish.beside = false;
            }
            loaded => break loaded,
        }
    };
    drop(claim);
    match verdict {
        Ok(Verdict::ReferenceLoads(pid)) => {
            forget(held, &holder)?;
            Ok(Turn::ReferenceLoads { pid, root })
        }
        Ok(Verdict::Again) => {
            forget(held, &holder)?;
            Ok(Turn::Again)
        }
        Ok(_) => {
            held.refresh(&root);
            Ok(Turn::Registered(Box::new(Use {
                repository: held.repository.clone(),
                holder,
                lock,
            })))
        }
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

/// Is it shared as was said? What nobody uses is made anew so: false, then it is gone.
///
/// # Errors
/// [`Error::OtherShare`]: more may join than shall.
fn is_shared_so(held: &Held, said: Kind) -> Result<bool> {
    let there = held.control.share().kind();
    if said == there {
        return Ok(true);
    }
    if held.is_unused()? {
        held.vanish_if_unused()?;
        if !held.is_held()? {
            return Ok(false);
        }
    }
    let location = held.repository.location();
    if said < there {
        return Err(Error::OtherShare {
            location,
            asked: said.word(),
            there: there.word(),
        });
    }
    held.console().warn(format_args!(
        "`{}` stays as it is (`--share={}`): `--share={}` counts when it is made anew",
        location.display(),
        there.word(),
        said.word()
    ));
    Ok(true)
}

/// Joins what another user has loaded and shares with all; all that a guest can do.
fn join(
    held: &Held,
    request: &Request,
    plan: &Plan,
    (began_boot_ns, began_unix_s): (u64, u64),
    make_holder: MakeHolder,
) -> Result<Turn> {
    let refused = |why: &str| {
        let problem = format!("only he can load it: {why}");
        held.not_for_guests(&problem, "wait until he has")
    };
    let root = held.root()?;
    let repofile = match &root {
        Some(root) => held.read_as_guest(root)?,
        None => None,
    };
    let (Some(root), Some(mut repofile)) = (root, repofile) else {
        return Err(refused("it is not there"));
    };
    let generation = held.generation()?;
    let (holder, lock) = make_holder(held)?;
    let wish = Wish {
        plan,
        terms: &request.terms,
        holder: &holder,
        began_boot_ns,
        began_unix_s,
        beside: false,
        proved: None,
    };
    let joined = match decide(held, &root, &mut repofile, generation.as_deref(), &wish) {
        Ok(Change::None(verdict) | Change::Commit(verdict)) => match verdict {
            Verdict::Joined => guest::join(held, &holder).map(|()| None),
            Verdict::Load { why, .. } => Err(refused(&why.reason)),
            Verdict::Prove(_) => Err(refused("it was loaded before the last boot")),
            Verdict::ReferenceLoads(pid) => Ok(Some(Turn::ReferenceLoads { pid, root })),
            Verdict::Again => Ok(Some(Turn::Again)),
        },
        Err(error) => Err(error),
    };
    if !matches!(joined, Ok(None)) {
        forget(held, &holder)?;
    }
    Ok(match joined? {
        Some(turn) => turn,
        None => Turn::Registered(Box::new(Use {
            repository: held.repository.clone(),
            holder,
            lock,
        })),
    })
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

/// Data of another boot are read to the last byte, which takes less than to load them again.
fn prove(held: &Held, root: &Dir, repofile: &Repofile) -> Result<Proved> {
    held.console().detail(format_args!(
        "`{}` was loaded before the last boot: it is verified",
        root.path().display()
    ));
    Ok(Proved {
        generation: repofile.sc.generation.clone(),
        wrong: verify::prove(held, root, repofile)?,
    })
}

fn forget(held: &Held, holder: &Holder) -> Result<()> {
    holder.forget(&held.control)
}
