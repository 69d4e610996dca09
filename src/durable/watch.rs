//! Waiting for a change that nobody tells of.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use super::Dir;
use crate::error::{IoContext, Result};

/// Wakes when something in a directory changes.
#[derive(Debug)]
pub struct Watch(Option<nix::sys::inotify::Inotify>);

impl Watch {
    /// Where inotify is not to be had (too many watches), the waits just end by their limit.
    pub fn new(dir: &Dir) -> Result<Watch> {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        use std::os::fd::AsRawFd;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF;
        let path = format!("/proc/self/fd/{}", dir.fd.as_raw_fd());
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .and_then(|inotify| inotify.add_watch(path.as_str(), flags).map(|_| inotify));
        Ok(Watch(watch.ok()))
    }

    /// Returns after a change, a signal, or `limit`.
    pub fn wait(&self, limit: std::time::Duration) -> Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let polled = match &self.0 {
            Some(inotify) => {
                let polled = poll(
                    &mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)],
                    timeout,
                );
                let _ = inotify.read_events();
                polled
            }
            None => poll(&mut [], timeout),
        };
        match polled {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).io("cannot wait for", Path::new("inotify")),
        }
    }
}
