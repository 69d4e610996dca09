//! Several members of a file at once, where one can tell where they begin.
//!
//! bgzip writes into the header of each of its members how long it is, and the blocks of a zstd
//! frame say how long they are (pzstd, t2sz, files put one behind the other). So [`Walk`] finds
//! where later members begin, without decoding any, and threads decode those, each into chunks that
//! it has to wait for somebody to take. A file of one member, and what is not found, is decoded by
//! whoever reads, as if there were no threads.
//!
//! # Who is believed
//!
//! The decoders, never the walk: what a thread has decoded counts if it began where the decoder
//! before it has ended, and is thrown away if not. So the content, and what is an error, are the
//! same as if all were decoded one after the other.
//!
//! # Memory
//!
//! At most [`MOST_JOBS`] times [`AHEAD`] chunks and the largest window that [`Walk`] lets through.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::num::NonZero;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::Source;
use super::members::{Member, Members};
use super::walk::{Outline, Walk};
use crate::signal;

/// Members are decoded at once in so many places at most.
const MOST_JOBS: usize = 4;

/// Bytes of content in a chunk, and chunks that a job is ahead.
const CHUNK: usize = 256 << 10;
const AHEAD: usize = 8;

/// Used chunks, to be filled again.
type Pool = Arc<Mutex<Vec<Vec<u8>>>>;

enum Piece {
    Content(Vec<u8>),
    /// All of it is decoded, and the next member would begin there.
    End(u64),
}

/// Members that a thread decodes.
struct Job {
    from: u64,
    pieces: Option<Receiver<io::Result<Piece>>>,
    thread: Option<JoinHandle<()>>,
    /// What is left of the piece that came last.
    rest: Vec<u8>,
    taken: usize,
}

impl Job {
    fn begin<M: Member>(source: Source, until: u64, pool: &Pool) -> io::Result<Job> {
        let from = source.position();
        let (to_us, pieces) = mpsc::sync_channel(AHEAD);
        let pool = pool.clone();
        let thread = signal::quiet_thread("decompress", move || {
            if let Err(error) = work::<M>(source, until, &pool, &to_us) {
                let _ = to_us.send(Err(error));
            }
        })?;
        Ok(Job {
            from,
            pieces: Some(pieces),
            thread: Some(thread),
            rest: Vec::new(),
            taken: 0,
        })
    }
}

impl Drop for Job {
    /// The thread ends when nobody takes its pieces: within one of them.
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work<M: Member>(
    source: Source,
    until: u64,
    pool: &Pool,
    pieces: &SyncSender<io::Result<Piece>>,
) -> io::Result<()> {
    let mut members = Members::<M>::begin(source, until)?;
    loop {
        let used = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = used.unwrap_or_default();
        bytes.resize(CHUNK, 0);
        let mut filled = 0;
        let mut end = None;
        while filled < CHUNK && end.is_none() {
            match members.read(&mut bytes[filled..]) {
                Ok(0) => end = Some(members.behind().ok_or(ErrorKind::InvalidData)?.position()),
                Ok(n) => filled += n,
                Err(error) => {
                    bytes.truncate(filled);
                    let _ = pieces.send(Ok(Piece::Content(bytes)));
                    return Err(error);
                }
            }
        }
        bytes.truncate(filled);
        if pieces.send(Ok(Piece::Content(bytes))).is_err() {
            return Ok(());
        }
        if let Some(position) = end {
            let _ = pieces.send(Ok(Piece::End(position)));
            return Ok(());
        }
    }
}

/// The content of a file whose members are decoded ahead where they are found.
pub(super) struct Ahead<M: Outline> {
    /// Never read, but to make others of.
    file: Source,
    now: Now<M>,
    jobs: VecDeque<Job>,
    most_jobs: usize,
    walk: Walk<M>,
    pool: Pool,
}

/// Who has what is to be read next.
enum Now<M> {
    Here(Members<M>),
    Job(Job),
    Ended,
}

impl<M: Outline> Ahead<M> {
    pub fn new(source: Source) -> io::Result<Ahead<M>> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Ahead::with(if cores == 1 { 0 } else { cores }, source)
    }

    fn with(jobs: usize, source: Source) -> io::Result<Ahead<M>> {
        Ok(Ahead {
            file: source.at(0),
            now: Now::Here(Members::begin(source, 0)?),
            jobs: VecDeque::new(),
            most_jobs: jobs.min(MOST_JOBS),
            walk: Walk::from(0),
            pool: Pool::default(),
        })
    }

    /// Gives work to threads, as far as it is there.
    fn look_ahead(&mut self) {
        while self.jobs.len() < self.most_jobs {
            let Some(range) = self.walk.next(&self.file.file) else {
                return;
            };
            match Job::begin::<M>(self.file.at(range.start), range.end, &self.pool) {
                Ok(job) => self.jobs.push_back(job),
                // a user who may have no more threads is slower, not without his data
                Err(_) => self.most_jobs = 0,
            }
        }
    }

    /// All is read up to `position`: who goes on there?
    fn go_on(&mut self, position: u64) -> io::Result<()> {
        if self.jobs.front().is_some_and(|job| job.from == position)
            && let Some(job) = self.jobs.pop_front()
        {
            self.now = Now::Job(job);
            return Ok(());
        }
        self.jobs.clear();
        let mut source = self.file.at(position);
        self.now = match M::goes_on(&mut source)? {
            false => Now::Ended,
            true => Now::Here(Members::begin(source, 0)?),
        };
        self.walk = Walk::from(position);
        Ok(())
    }
}

impl<M: Outline> Read for Ahead<M> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            self.look_ahead();
            match &mut self.now {
                Now::Ended => return Ok(0),
                Now::Here(members) => match members.read(out)? {
                    0 => {
                        let position = members.behind().map(|source| source.position());
                        self.go_on(position.ok_or(ErrorKind::InvalidData)?)?;
                    }
                    n => return Ok(n),
                },
                Now::Job(job) => {
                    let rest = &job.rest[job.taken..];
                    if !rest.is_empty() {
                        let n = rest.len().min(out.len());
                        out[..n].copy_from_slice(&rest[..n]);
                        job.taken += n;
                        return Ok(n);
                    }
                    let used = std::mem::take(&mut job.rest);
                    if used.capacity() > 0 {
                        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
                        pool.push(used);
                    }
                    let pieces = job.pieces.as_ref().ok_or(ErrorKind::InvalidData)?;
                    match pieces.recv() {
                        Ok(Ok(Piece::Content(bytes))) => (job.rest, job.taken) = (bytes, 0),
                        Ok(Ok(Piece::End(position))) => self.go_on(position)?,
                        Ok(Err(error)) => return Err(error),
                        // its death would be a bug; it must not look like the end
                        Err(_) => {
                            return Err(io::Error::other("a decompressing thread is gone"));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use std::ops::Range;

    use flate2::bufread::GzDecoder;

    use super::super::tests::{noise, source};
    use super::super::walk::{LEAST, STEPS};
    use super::*;
    use crate::stack::growing::{Growth, Stream};

    type Zstd = zstd::stream::read::Decoder<'static, Source>;
    type Gzip = GzDecoder<Source>;

    /// As bgzip writes it: a member with its length in its header.
    fn member(content: &[u8]) -> Vec<u8> {
        let builder = flate2::GzBuilder::new().extra(*b"BC\x02\0??");
        let mut encoder = builder.write(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        let mut member = encoder.finish().unwrap();
        let length = u16::try_from(member.len() - 1).unwrap();
        member[16..18].copy_from_slice(&length.to_le_bytes());
        member
    }

    fn members(content: &[u8]) -> Vec<u8> {
        content.chunks(50_000).flat_map(member).collect()
    }

    fn frame(content: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder
            .include_checksum(window_log.is_multiple_of(2))
            .unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// As pzstd writes them, each behind a skippable one, and as `zstd -B` and others do.
    fn frames(content: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        for (n, content) in content.chunks(300_000).enumerate() {
            let frame = match n % 3 {
                0 => zstd::bulk::compress(content, 1).unwrap(),
                n => frame(content, 18 + n as u32),
            };
            if n % 2 == 0 {
                packed.extend(b"\x50\x2a\x4d\x18\x04\0\0\0....");
            }
            packed.extend(frame);
        }
        packed
    }

    /// What is read of `packed`, and how it ends.
    fn read(mut from: impl Read) -> (Vec<u8>, Result<(), String>) {
        let mut content = Vec::new();
        let result = from.read_to_end(&mut content);
        (content, result.map(drop).map_err(|error| error.to_string()))
    }

    fn compare<M: Outline>(packed: &[u8]) -> (Vec<u8>, Result<(), String>) {
        let expected = read(Members::<M>::begin(source(packed), u64::MAX).unwrap());
        for jobs in [0, 1, MOST_JOBS] {
            let (found, result) = read(Ahead::<M>::with(jobs, source(packed)).unwrap());
            assert_eq!(result, expected.1, "{jobs} jobs");
            // how much a decoder hands out before it finds damage depends on how it is fed
            let both = found.len().min(expected.0.len());
            assert!(found[..both] == expected.0[..both], "{jobs} jobs");
            assert!(result.is_err() || found.len() == expected.0.len());
        }
        expected
    }

    fn walked<M: Outline>(packed: &[u8]) -> Vec<Range<u64>> {
        let mut walk = Walk::<M>::from(0);
        let file = source(packed).file;
        std::iter::from_fn(|| walk.next(&file)).collect()
    }

    #[test]
    fn all_members_but_the_first_are_found_without_decoding_them() {
        let content = noise(3_000_000);
        let first = |range: &Range<u64>| range.start;
        for (packed, ranges) in [
            (members(&content), walked::<Gzip>(&members(&content))),
            (frames(&content), walked::<Zstd>(&frames(&content))),
        ] {
            assert!(ranges.len() >= 8, "{ranges:?}");
            assert!(ranges[0].start < LEAST + 100_000);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
                assert!(pair[0].end - first(&pair[0]) < 2 * LEAST);
            }
            assert_eq!(ranges.last().unwrap().end, packed.len() as u64);
        }
    }

    #[test]
    fn a_frame_that_takes_much_memory_is_not_decoded_ahead() {
        let content = vec![7; 600_000];
        let large = [
            frame(&content, 20),
            frame(&content, 23),
            frame(&content, 20),
        ]
        .concat();
        assert_eq!(walked::<Zstd>(&large), []);
        assert_eq!(compare::<Zstd>(&large).0.len(), 1_800_000);
    }

    #[test]
    fn a_frame_of_empty_blocks_keeps_nobody_for_long() {
        let mut packed = frame(b"x", 20)[..6].to_vec();
        packed.resize(100_000, 0);
        let mut walk = Walk::<Zstd>::from(0);
        assert_eq!(walk.next(&source(&packed).file), None);
        let passed = 2 * 3 * STEPS as u64;
        assert!(walk.at > 100 && walk.at < passed, "{}", walk.at);
        assert!(compare::<Zstd>(&packed).1.is_err());
    }

    #[test]
    fn chunks_are_filled_again_however_long_the_file_is() {
        let packed = members(&vec![7; 100 << 20]);
        let mut ahead = Ahead::<Gzip>::with(MOST_JOBS, source(&packed)).unwrap();
        assert!(walked::<Gzip>(&packed).len() > 1);
        assert_eq!(io::copy(&mut ahead, &mut io::sink()).unwrap(), 100 << 20);
        let chunks = ahead.pool.lock().unwrap().len();
        assert!(chunks <= MOST_JOBS * (AHEAD + 3), "{chunks} chunks");
    }

    #[test]
    fn what_is_decoded_ahead_is_what_is_decoded_in_order() {
        for length in [1, 300_000, 6_000_000] {
            let content = noise(length);
            let (found, result) = compare::<Gzip>(&members(&content));
            assert!(found == content && result.is_ok(), "gzip, {length}");
            if length > 0 {
                let (found, result) = compare::<Zstd>(&frames(&content));
                assert!(found == content && result.is_ok(), "zstd, {length}");
            }
        }
    }

    #[test]
    fn members_that_do_not_say_their_length_and_padding_may_follow() {
        let content = noise(1_000_000);
        let plain = zstd::bulk::compress(&content, 1).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&content).unwrap();
        let other = encoder.finish().unwrap();
        for behind in [&[0; 4096][..], &other, b"junk", b"\0\0\0\0junk"] {
            let packed = [&members(&content), behind, &members(&content)].concat();
            assert_eq!(
                compare::<Gzip>(&packed).1.is_ok(),
                behind == other,
                "{behind:?}"
            );
        }
        let packed = [&frames(&content)[..], &plain, b"junk"].concat();
        assert!(compare::<Zstd>(&packed).1.is_err());
    }

    #[test]
    fn damage_is_found_at_the_same_place_as_in_order() {
        let content = noise(1_200_000);
        let (gzip, zstd) = (members(&content), frames(&content));
        for n in 0..20 {
            for (packed, compare) in [
                (&gzip, compare::<Gzip> as fn(&[u8]) -> _),
                (&zstd, compare::<Zstd>),
            ] {
                let at = 20 + n * (packed.len() - 40) / 20;
                let mut damaged = packed.clone();
                damaged[at] ^= 0x10;
                let (found, result) = compare(&damaged);
                // frames of zstd may have no checksum
                let is_known = packed[0] == 0x1f;
                assert!(
                    !is_known || result.is_err() || found == content,
                    "damaged at {at}"
                );
                let (found, _) = compare(&packed[..at]);
                assert!(content.starts_with(&found), "cut at {at}");
            }
        }
    }

    #[test]
    fn a_file_that_is_coming_is_decoded_as_far_as_it_is_there() {
        let content = noise(3_000_000);
        for packed in [members(&content), frames(&content)] {
            let mut file = tempfile::tempfile().unwrap();
            let reader = file.try_clone().unwrap();
            let growth = std::sync::Arc::new(Growth::default());
            let stream = Stream::new(reader, growth.clone());
            let is_gzip = packed[0] == 0x1f;
            let content = std::thread::scope(|scope| {
                let reading = scope.spawn(move || {
                    let source = Source::new(stream, Default::default());
                    match is_gzip {
                        true => read(Ahead::<Gzip>::with(2, source).unwrap()),
                        false => read(Ahead::<Zstd>::with(2, source).unwrap()),
                    }
                });
                file.rewind().unwrap();
                let mut length = 0;
                for part in packed.chunks(77_777) {
                    file.write_all(part).unwrap();
                    length += part.len() as u64;
                    growth.reach(length);
                }
                growth.finish(length);
                reading.join().unwrap()
            });
            assert!(content == (noise(3_000_000), Ok(())), "{is_gzip}");
        }
    }
}
