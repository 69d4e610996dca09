//! Several threads on one pile of work that grows while it is worked off.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

/// What is still to be done. Last in, first out: so a tree is walked depth first, and few of its
/// directories are open at a time.
pub struct Pile<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    tasks: Vec<T>,
    /// How many threads have one in hand, which may bring new ones.
    busy: usize,
    failed: Option<crate::error::Error>,
}

impl<T> Pile<T> {
    pub fn put(&self, task: T) {
        self.lock().tasks.push(task);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // a panic elsewhere ends the scope; what is in the state stays right
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task; `None` when there is none left and nobody who could bring one, or when a
    /// task has failed.
    fn take(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(task) = state.tasks.pop() {
                state.busy += 1;
                return Some(task);
            }
            if state.busy == 0 {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, result: Result<()>) {
        let mut state = self.lock();
        state.busy -= 1;
        if let Err(error) = result {
            state.failed.get_or_insert(error);
        }
        if state.busy == 0 || state.failed.is_some() {
            self.changed.notify_all();
        }
    }

    fn work(&self, each: &impl Fn(T, &Pile<T>) -> Result<()>, between: &mut impl FnMut()) {
        while let Some(task) = self.take() {
            let hand = Hand(self);
            let result = each(task, self);
            std::mem::forget(hand);
            self.done(result);
            between();
        }
    }
}

/// A task in hand: if it panics, the others must not wait for it.
struct Hand<'a, T>(&'a Pile<T>);

impl<T> Drop for Hand<'_, T> {
    fn drop(&mut self) {
        self.0.done(Ok(()));
    }
}

/// Does `first` and all that it brings, on up to `threads` threads; this one is among them and
/// calls `between` after each of its tasks. The first error ends it.
pub fn work_off<T: Send>(
    threads: usize,
    first: Vec<T>,
    each: impl Fn(T, &Pile<T>) -> Result<()> + Sync,
    mut between: impl FnMut(),
) -> Result<()> {
    let pile = Pile {
        state: Mutex::new(State {
            tasks: first,
            busy: 0,
            failed: None,
        }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // a user who may have no more threads is served by the ones there are
            let spawned =
                std::thread::Builder::new().spawn_scoped(scope, || pile.work(&each, &mut || {}));
            if spawned.is_err() {
                break;
            }
        }
        pile.work(&each, &mut between);
    });
    match pile.state.into_inner() {
        Ok(State {
            failed: Some(error),
            ..
        }) => Err(error),
        _ => Ok(()),
    }
}

/// How many threads are worth starting for so many pieces of work of some microseconds each.
pub fn threads_for(pieces: usize) -> usize {
    // starting one takes as long as some ten pieces
    let worth = 1 + pieces / 200;
    match worth {
        1 => 1,
        _ => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(worth)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn work_that_brings_work_is_done_to_the_end() {
        let done = AtomicUsize::new(0);
        let each = |depth: usize, pile: &Pile<usize>| {
            done.fetch_add(1, Ordering::SeqCst);
            for _ in 0..2 * depth.min(1) {
                pile.put(depth - 1);
            }
            Ok(())
        };
        work_off(3, vec![10], each, || {}).unwrap();
        assert_eq!(done.into_inner(), (1 << 11) - 1);
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let each = |task: usize, pile: &Pile<usize>| {
            pile.put(task + 1);
            match task {
                100 => Err(Error::Internal {
                    problem: "100".into(),
                }),
                _ => Ok(()),
            }
        };
        let error = work_off(2, vec![0], each, || {}).unwrap_err();
        assert!(error.to_string().contains("100"), "{error}");
    }
}
