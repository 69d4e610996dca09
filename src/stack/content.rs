//! Decompressed content, in pieces that many may hold.
//!
//! Decompressing takes a processor, and so does writing many files: [`Content::ahead`] does the
//! former in a thread of its own. That thread only reads: no change of the disk, no message. What
//! it has decompressed it hands over in chunks, which are shared, not copied, by all who write
//! [`Slice`]s of them, and filled again when the last of these is gone.

use std::io::{ErrorKind, Read};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::decompress::Reader;
use super::growing::Growth;
use crate::error::{Error, Result};
use crate::signal;

/// Bytes of content in a chunk.
const CHUNK: usize = 256 * 1024;

/// How far [`Content::ahead`] is ahead, in chunks.
const AHEAD: usize = 3;

/// Used chunks, to be filled again: fresh memory costs more than what is done with it.
type Pool = Mutex<Vec<Vec<u8>>>;

/// A piece of content, shared by all who hold a [`Slice`] of it.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.push(std::mem::take(&mut self.bytes));
    }
}

/// Bytes that follow each other in the content.
#[derive(Debug, Clone)]
pub struct Slice {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl Slice {
    /// Takes the first `length` bytes off, or all there are.
    fn split_to(&mut self, length: usize) -> Slice {
        let middle = self.range.start + length.min(self.range.len());
        let first = Slice {
            chunk: self.chunk.clone(),
            range: self.range.start..middle,
        };
        self.range.start = middle;
        first
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.chunk.bytes[self.range.clone()]
    }
}

/// Fills chunks.
struct Work {
    reader: Reader,
    pool: Arc<Pool>,
    /// Comes behind what was read before it.
    failure: Option<Error>,
}

impl Work {
    /// The next chunk; `None` at the end, when every checksum was right.
    fn next(&mut self) -> Result<Option<Slice>> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let used = || {
            self.pool
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()
        };
        let mut bytes = used().unwrap_or_default();
        bytes.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < bytes.len() {
            match self.reader.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => signal::check()?,
                Err(error) if filled == 0 => return Err(self.reader.error(error)),
                Err(error) => {
                    self.failure = Some(self.reader.error(error));
                    break;
                }
            }
        }
        let pool = self.pool.clone();
        let chunk = Arc::new(Chunk { bytes, pool });
        Ok((filled > 0).then_some(Slice {
            chunk,
            range: 0..filled,
        }))
    }
}

/// Decompressed content, piece by piece.
pub struct Content {
    worker: Worker,
    /// What is left of the chunk that came last.
    rest: Option<Slice>,
    chunks: u64,
    has_ended: bool,
    name: PathBuf,
    is_compressed: bool,
    growth: Arc<Growth>,
    consumed: Arc<AtomicU64>,
}

enum Worker {
    Here(Box<Work>),
    Ahead {
        chunks: Option<Receiver<Result<Option<Slice>>>>,
        thread: Option<JoinHandle<()>>,
    },
}

impl Content {
    /// Decompresses when asked.
    pub fn here(reader: Reader) -> Content {
        Content {
            rest: None,
            chunks: 0,
            has_ended: false,
            name: reader.name().to_owned(),
            is_compressed: reader.is_compressed(),
            growth: reader.growth().clone(),
            consumed: reader.consumed().clone(),
            worker: Worker::Here(Box::new(Work {
                reader,
                pool: Arc::default(),
                failure: None,
            })),
        }
    }

    /// Another thread decompresses, while this one does something else. Where there can be no
    /// thread, and for plain files, it is this one all the same.
    pub fn ahead(reader: Reader) -> Content {
        let mut content = Content::here(reader);
        if !content.is_compressed {
            return content;
        }
        let (to_us, chunks) = mpsc::sync_channel(AHEAD);
        // The thread gets its work when there is a thread: a failed spawn would lose it.
        let (hand_over, job) = mpsc::channel::<Box<Work>>();
        let spawned = signal::quiet_thread("decompress", move || {
            let Ok(mut work) = job.recv() else { return };
            loop {
                let next = work.next();
                let is_end = !matches!(next, Ok(Some(_)));
                if to_us.send(next).is_err() || is_end {
                    return;
                }
            }
        });
        if let Ok(thread) = spawned {
            let ahead = Worker::Ahead {
                chunks: Some(chunks),
                thread: Some(thread),
            };
            if let Worker::Here(work) = std::mem::replace(&mut content.worker, ahead) {
                let _ = hand_over.send(work);
            }
        }
        content
    }

    /// What messages call the file.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Is there a checksum behind the content that only reading to the end compares?
    pub fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// Length of the file in bytes, as it is on disk, once it is all there.
    pub fn size(&self) -> Option<u64> {
        self.growth.size()
    }

    /// Bytes of the file that have been read.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// Chunks that have been begun.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The next bytes, at most `length` and as many as are in one piece; empty at the end.
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::Io`], [`Error::Interrupted`].
    pub fn take(&mut self, length: usize) -> Result<Option<Slice>> {
        let is_used_up = self.rest.as_ref().is_none_or(|rest| rest.is_empty());
        if is_used_up && !self.has_ended && length > 0 {
            // given back before the next one is asked for
            self.rest = None;
            self.rest = match &mut self.worker {
                Worker::Here(work) => work.next(),
                Worker::Ahead { chunks, .. } => match chunks.as_ref().map(Receiver::recv) {
                    Some(Ok(next)) => next,
                    // its death would be a bug; it must not look like the end
                    _ => Err(Error::Internal {
                        problem: "the decompressing thread is gone".into(),
                    }),
                },
            }?;
            self.has_ended = self.rest.is_none();
            self.chunks += 1;
        }
        let rest = self.rest.as_mut().filter(|rest| !rest.is_empty());
        Ok(rest.map(|rest| rest.split_to(length)))
    }

    /// Copies until `buffer` is full or the content ends; the number of bytes copied.
    ///
    /// # Errors
    /// As [`Content::take`].
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(slice) = self.take(buffer.len() - filled)? else {
                break;
            };
            buffer[filled..filled + slice.len()].copy_from_slice(&slice);
            filled += slice.len();
        }
        Ok(filled)
    }
}

impl Drop for Content {
    /// The thread ends when nobody takes its chunks: within one of them.
    fn drop(&mut self) {
        if let Worker::Ahead { chunks, thread } = &mut self.worker {
            *chunks = None;
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
