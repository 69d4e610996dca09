//! The load as the repofile tells it: a provisional holder and IN_PROGRESS before, OK or BROKEN
//! after, and what to do about references that were at work meanwhile.

use super::verdict::Verdict;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::load::{self, Load, Published};
use crate::plan::Plan;
use crate::process::{self, Identity};
use crate::repository::counts::{Counts, Why};
use crate::repository::holder::Holder;
use crate::repository::past::{self, Past};
use crate::repository::repofile::{FORMAT, Failure, Loader, Repofile, Sc, State};
use crate::repository::{Change, Held};
use crate::request::{Request, Terms};
use crate::share::Share;
use crate::teardown;

/// A reference that tears down under us is met so often; more than that is no accident.
const MOST_DELETIONS: u32 = 5;

/// A load that somebody asked for.
pub(super) struct Loading<'a> {
    pub held: &'a Held<'a>,
    pub request: &'a Request,
    pub plan: &'a Plan<'a>,
    pub holder: &'a Holder,
    /// The data that are there stay until their successor is staged.
    pub beside: bool,
    pub why: Why,
    /// What is known of the repository's earlier lives.
    pub past: Option<Past>,
    /// Since boot.
    pub began_ns: u64,
}

enum Outcome {
    Verdict(Verdict),
    /// This entry was published and is gone.
    Deleted(String),
}

impl Loading<'_> {
    /// Loads, with a provisional holder in `readers` for references to see, and commits how it
    /// ended. What a reference deletes meanwhile, which knows nothing of our lock, is loaded again.
    ///
    /// # Errors
    /// Those of the load, which are recorded; [`Error::is_full`] of one beside other data, which
    /// is not: without them there may be room.
    pub(super) fn load_and_register(
        &self,
        root: &Dir,
        repofile: Repofile,
        made: bool,
    ) -> Result<Verdict> {
        let held = self.held;
        let made = made || !repofile.exists && held.is_only_claims(root)?;
        let (mut root, mut made, mut repofile) = (root.try_clone()?, made, repofile);
        for deletions in 1.. {
            let loaded = self.load_once(&root, &mut repofile, made);
            let gone = match loaded {
                Ok(Outcome::Deleted(entry)) => entry,
                Ok(Outcome::Verdict(verdict)) => return Ok(verdict),
                Err(Error::Io { .. }) if !held.is_root(&root)? => "repofile".into(),
                Err(error @ Error::LockLost { .. }) => return Err(error),
                // the data that was here before is just being deleted
                Err(error) if error.is_full() && teardown::wait_for_room(held)? => continue,
                Err(error) if error.is_full() && self.beside => return Err(error),
                Err(error) => {
                    return match self.give_up(&root, &error) {
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
            if deletions >= MOST_DELETIONS {
                self.give_up(&root, &deleted);
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

    /// One load; `repofile` is what was read last, and then what was committed at its begin.
    fn load_once(&self, root: &Dir, repofile: &mut Repofile, made: bool) -> Result<Outcome> {
        let held = self.held;
        let prepared = match self.beside {
            true => load::prepare_beside(held, self.plan)?,
            false => match load::prepare(held, root, repofile, self.plan, made)? {
                Some(prepared) => prepared,
                None => return Ok(Outcome::Verdict(Verdict::Again)),
            },
        };
        held.tag();
        if held.control.share() == Share::All {
            held.holders()?;
        }
        let generation = prepared.generation.clone();
        let old = repofile.sc.generation.clone();
        let begun = held.update(root, |repofile| {
            if let Some(pid) = repofile.living_writer(Some(held.lock_inode())) {
                // it came between our look and now
                return Ok(Change::None(Err(Verdict::ReferenceLoads(pid))));
            }
            match self.beside {
                false => self.begin(repofile, &generation)?,
                true if is_free(held, repofile, old.as_deref())? => {
                    repofile.sc.loader = Some(self.loader());
                }
                true => return Ok(Change::None(Err(Verdict::Again))),
            }
            Ok(Change::Commit(Ok(repofile.clone())))
        })?;
        match begun {
            Ok(begun) => *repofile = begun,
            Err(verdict) => return Ok(Outcome::Verdict(verdict)),
        }
        let _guards = (root.flock_shared(), held.control.flock_shared());
        let staged = Load::new(held, root, self.plan, &self.request.settings, prepared)
            .read_only(self.request.read_only)
            .stage()?;
        if self.beside
            && let Some(verdict) = self.take_over(root, &generation, old.as_deref())?
        {
            return Ok(Outcome::Verdict(verdict));
        }
        let published = staged.publish()?;
        let accepted = self.accept(root, &generation, &published)?;
        if let Outcome::Verdict(Verdict::Joined) = accepted {
            // The use stands: what is left there is the next one's to clear.
            let cleared = held.clear_staging().and_then(|()| match self.beside {
                true => teardown::sweep(held),
                false => Ok(()),
            });
            if let Err(error) = cleared {
                held.console().detail(error);
            }
            let past = self.past.as_ref();
            if past.is_some_and(|past| past.deleted_unix_s(held.repository).is_some()) {
                past::reloaded(held, self.why.began_unix_s);
            }
        }
        Ok(accepted)
    }

    /// What the repofile says from now on: we load (I7: whatever was there counts no more).
    fn begin(&self, repofile: &mut Repofile, generation: &str) -> Result<()> {
        repofile.reap(&self.held.control)?;
        repofile.state = State::InProgress;
        repofile.writer = Some(i64::from(std::process::id()));
        let sc = &mut repofile.sc;
        self.describe(sc, generation);
        (sc.loaded_unix_s, sc.expires_unix_s, sc.size_bytes) = (None, None, None);
        (sc.keep_s, sc.kept_until_unix_s) = (0, None);
        sc.used_unix_s = Some(process::unix_time_s());
        (sc.entries, sc.entry_count) = (None, 0);
        sc.failure = None;
        sc.load = Some(self.why.clone());
        // a deletion that was killed has added them
        let past = self.past.as_ref();
        if past.is_some_and(|past| past.has(self.held.repository, sc.counts.since_ns)) {
            sc.counts = Counts::default();
        }
        sc.counts.begin();
        sc.loader = Some(self.loader());
        repofile.add(Holder {
            provisional: true,
            ..self.holder.clone()
        });
        repofile.sc.state = repofile.state;
        repofile.sc.format = FORMAT;
        Ok(())
    }

    fn loader(&self) -> Loader {
        let me = Identity::of(std::process::id() as i32);
        Loader {
            process: self.held.of_this_node(me),
            since_boot_ns: process::since_boot_ns(),
            lock_dev: self.held.lock_inode().0,
            lock_ino: self.held.lock_inode().1,
        }
    }

    /// What a load makes of the repository.
    fn describe(&self, sc: &mut Sc, generation: &str) {
        sc.location = Some(self.held.repository.absolute_location());
        sc.generation = Some(generation.to_owned());
        sc.signature = Some(self.plan.signature.clone());
        sc.definition = Some(self.plan.definition.clone());
        sc.boot_id = process::boot_id();
    }

    /// All is staged: the data of generation `old` go, if nobody has come to hold them meanwhile,
    /// as a reference can. Else they are what there is, and the verdict what is to be done.
    fn take_over(
        &self,
        root: &Dir,
        generation: &str,
        old: Option<&str>,
    ) -> Result<Option<Verdict>> {
        let held = self.held;
        loop {
            let link = held.link(root)?;
            let mut repofile = link.read()?;
            if let Some(pid) = repofile.living_writer(Some(held.lock_inode())) {
                return Ok(Some(Verdict::ReferenceLoads(pid)));
            }
            if !is_free(held, &mut repofile, old)? {
                held.clear_staging()?;
                return Ok(Some(Verdict::Again));
            }
            self.begin(&mut repofile, generation)?;
            if link.try_commit(&repofile)? {
                let taken = load::succeed(held, root, &link)?;
                return Ok((!taken).then_some(Verdict::Again));
            }
        }
    }

    /// Looks at what was published, under the link lock, and commits OK (I5).
    fn accept(&self, root: &Dir, generation: &str, published: &Published) -> Result<Outcome> {
        let held = self.held;
        held.update(root, |repofile| {
            if let Some(pid) = repofile.living_writer(Some(held.lock_inode())) {
                // It took us for dead, and loads into the same directory: what it leaves is its own.
                drop_holder(repofile, self.holder);
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
            self.describe(&mut repofile.sc, generation);
            let took_ns = process::since_boot_ns().saturating_sub(self.began_ns);
            repofile.sc.load = Some(Why {
                took_ms: Some(took_ns / 1_000_000),
                brought_bytes: Some(published.brought_bytes),
                ..self.why.clone()
            });
            repofile.sc.counts.loaded();
            repofile.sc.loaded_unix_s = Some(process::unix_time_s());
            repofile.sc.size_bytes = Some(published.size_bytes);
            // new data, new terms
            (repofile.sc.keep_s, repofile.sc.expires_unix_s) = (0, None);
            agree(&mut repofile.sc, &self.request.terms);
            (repofile.sc.entries, repofile.sc.entry_count) = published.entries();
            match repofile.position(self.holder) {
                Some(at) => {
                    let own = &mut repofile.sc.holders[at];
                    own.provisional = false;
                    own.renew();
                }
                // a reference reaped it
                None => repofile.add(self.holder.clone()),
            }
            Ok(Change::Commit(Outcome::Verdict(Verdict::Joined)))
        })
    }

    /// Records that the load failed: BROKEN with the error; UNKNOWN after a signal; OK where other
    /// data are still there. If a reference took the load over meanwhile, nothing is recorded: what
    /// it does counts now, and is returned.
    fn give_up(&self, root: &Dir, error: &Error) -> Option<Verdict> {
        let held = self.held;
        let recorded = held.update(root, |repofile| {
            let interrupted = matches!(error, Error::Interrupted { .. });
            // what we would have replaced; what a reference has loaded, `sc` tells nothing of
            let stays = self.beside && repofile.sc.state == repofile.state;
            let other = match repofile.living_writer(Some(held.lock_inode())) {
                Some(pid) => Some(Verdict::ReferenceLoads(pid)),
                None if repofile.writer.is_none() && repofile.state == State::Ok && !stays => {
                    Some(Verdict::Again)
                }
                None => None,
            };
            if other.is_none() && !is_writer_us(repofile) {
                return Ok(Change::None(None));
            }
            drop_holder(repofile, self.holder);
            if other.is_some() {
                return Ok(Change::Commit(other.filter(|_| !interrupted)));
            }
            repofile.sc.loader = None;
            if repofile.state != State::Ok {
                repofile.writer = None;
                repofile.state = match interrupted {
                    true => State::Unknown,
                    false => State::Broken,
                };
            }
            if !interrupted {
                repofile.sc.counts.failed();
            }
            repofile.sc.failure = (!interrupted).then(|| Failure {
                message: error.to_string(),
                exit_status: error.exit_status(),
                ended_boot_ns: process::since_boot_ns(),
                ended_unix_s: process::unix_time_s(),
                boot_id: process::boot_id(),
                signature: self.plan.signature.clone(),
                attempt: self.plan.attempt.clone(),
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
}

/// Are the data of this generation there, and held by nobody?
fn is_free(held: &Held, repofile: &mut Repofile, generation: Option<&str>) -> Result<bool> {
    repofile.reap(&held.control)?;
    Ok(repofile.state == State::Ok
        && repofile.writer.is_none()
        && repofile.holds() == 0
        && repofile.is_of(generation))
}

/// Has nobody put himself in our place? A reference does that where it cannot see our pid.
fn is_writer_us(repofile: &Repofile) -> bool {
    let us = i64::from(std::process::id());
    repofile.writer.is_none_or(|writer| writer == us)
}

fn drop_holder(repofile: &mut Repofile, holder: &Holder) {
    if let Some(at) = repofile.position(holder) {
        repofile.remove(at);
    }
}

/// Somebody uses the data, on these terms.
pub(super) fn agree(sc: &mut Sc, terms: &Terms) {
    sc.kept_until_unix_s = None;
    sc.used_unix_s = Some(process::unix_time_s());
    sc.keep_s = terms.keep_s.unwrap_or(sc.keep_s);
    if let (Some(expires), Some(loaded)) = (terms.expires, sc.loaded_unix_s) {
        sc.expires_unix_s = Some(expires.at(loaded));
    }
}
