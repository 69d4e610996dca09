//! A loader's file as those above it read it: from its first byte on, while its last is not there.
//!
//! The loader writes the file once and says how far it is ([`Growth::reach`]); whoever reads it
//! has a descriptor of his own and waits at that mark. So the file is the buffer between them: no
//! queue to bound, no reader that could hold up the connection, and a file that was there before
//! (continued, or finished long ago) is read like one that is just coming. The bytes were written a
//! moment ago and come out of the page cache.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::signal;

/// A signal or a bug is noticed after so long at most; the loader wakes its readers at once.
const LOOK: Duration = Duration::from_secs(1);

/// How far a file is.
#[derive(Debug, Default)]
pub struct Growth {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    length: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All of it is there.
    Whole,
    /// Nobody is interested any more, or it was thrown away.
    Abandoned,
}

impl Growth {
    /// The first `length` bytes are written, and stay.
    pub fn reach(&self, length: u64) {
        self.change(|state| state.length = length);
    }

    /// The file is complete, and has `length` bytes.
    pub fn finish(&self, length: u64) {
        self.change(|state| {
            state.length = length;
            state.end = state.end.or(Some(End::Whole));
        });
    }

    /// Length of the file, once it is complete.
    pub fn size(&self) -> Option<u64> {
        let state = *self.lock();
        (state.end == Some(End::Whole)).then_some(state.length)
    }

    /// How long it is now, and whether that is all.
    pub fn length(&self) -> (u64, bool) {
        let state = *self.lock();
        (state.length, state.end == Some(End::Whole))
    }

    /// Whoever reads it, or waits for more of it, fails.
    pub fn abandon(&self) {
        self.change(|state| state.end = Some(End::Abandoned));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is more than `length`, or an end.
    fn beyond(&self, length: u64) -> io::Result<State> {
        let mut state = self.lock();
        while state.end.is_none() && state.length <= length {
            if signal::check().is_err() {
                return Err(io::Error::other("interrupted"));
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(*state)
    }
}

/// Reads a growing file from its beginning; 0 is the end of the whole file.
#[derive(Debug)]
pub struct Stream {
    file: Arc<File>,
    at: u64,
    growth: Arc<Growth>,
}

impl Stream {
    pub fn new(file: File, growth: Arc<Growth>) -> Stream {
        Stream {
            file: Arc::new(file),
            at: 0,
            growth,
        }
    }

    pub fn growth(&self) -> &Arc<Growth> {
        &self.growth
    }

    /// Where the next byte is read.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Another stream of the same file.
    pub fn at(&self, position: u64) -> Stream {
        Stream {
            file: self.file.clone(),
            at: position,
            growth: self.growth.clone(),
        }
    }

    /// What is on disk from `position` on, as far as it fits, whatever was announced.
    pub fn peek(&self, position: u64, out: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(out, position)
    }
}

/// A file to which nothing is added.
impl From<File> for Stream {
    fn from(file: File) -> Stream {
        let growth = Growth::default();
        growth.finish(file.metadata().map_or(0, |metadata| metadata.len()));
        Stream::new(file, Arc::new(growth))
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let state = self.growth.beyond(self.at)?;
        let length = match state.end {
            Some(End::Abandoned) => return Err(io::Error::other("the file was given up")),
            Some(End::Whole) => out.len(),
            None => usize::try_from(state.length - self.at).map_or(out.len(), |n| n.min(out.len())),
        };
        let n = self.file.read_at(&mut out[..length], self.at)?;
        if n == 0 && length > 0 && state.end.is_none() {
            return Err(io::Error::other("the file has shrunk"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn growing() -> (File, Arc<Growth>, Stream) {
        let mut writer = tempfile::tempfile().unwrap();
        writer.write_all(b"0123456789").unwrap();
        let reader = writer.try_clone().unwrap();
        let growth = Arc::new(Growth::default());
        let stream = Stream::new(reader, growth.clone());
        (writer, growth, stream)
    }

    #[test]
    fn nothing_is_read_that_was_not_announced() {
        let (_writer, growth, mut stream) = growing();
        growth.reach(4);
        let mut buffer = [0; 100];
        assert_eq!(stream.read(&mut buffer).unwrap(), 4);
        growth.reach(7);
        assert_eq!(stream.read(&mut buffer).unwrap(), 3);
        assert_eq!(growth.size(), None);
        growth.finish(10);
        assert_eq!(growth.size(), Some(10));
        assert_eq!(stream.read(&mut buffer).unwrap(), 3);
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn a_reader_waits_for_more_and_for_the_end() {
        let (_writer, growth, mut stream) = growing();
        let reader = std::thread::spawn(move || {
            let mut content = Vec::new();
            stream.read_to_end(&mut content).map(|_| content)
        });
        for length in 1..=10 {
            growth.reach(length);
        }
        growth.finish(10);
        assert_eq!(reader.join().unwrap().unwrap(), b"0123456789");
    }

    #[test]
    fn a_reader_of_what_is_abandoned_fails_also_after_its_end() {
        let (_writer, growth, mut stream) = growing();
        growth.reach(10);
        growth.finish(10);
        let mut buffer = [0; 5];
        assert_eq!(stream.read(&mut buffer).unwrap(), 5);
        growth.abandon();
        assert!(stream.read(&mut buffer).is_err());
        let (_writer, growth, mut stream) = growing();
        let reader = std::thread::spawn(move || stream.read(&mut [0; 5]).is_err());
        growth.abandon();
        assert!(reader.join().unwrap());
    }

    #[test]
    fn a_file_that_was_cut_does_not_look_like_its_end() {
        let (writer, growth, mut stream) = growing();
        growth.reach(10);
        writer.set_len(0).unwrap();
        assert!(stream.read(&mut [0; 5]).is_err());
    }
}
