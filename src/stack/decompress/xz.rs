//! xz, on several processors where the file was written for it.
//!
//! `xz -T` (the default since 5.6) and pixz write blocks that know their lengths: liblzma decodes
//! several of them at once, and hands them on in order. A file of one block, or of blocks that
//! don't know their lengths, it decodes by and by, as if there were one thread.
//!
//! Each thread needs its block whole, packed and unpacked: 24 MiB and what they were packed into,
//! if `xz -6` made it. [`TOGETHER`] bounds what all of them need; a block that does not fit is
//! decoded by and by, too.
//!
//! liblzma starts its threads when their blocks come, and a thread that can't be started is an
//! error to it, wherever it is in the file. Then one thread begins anew, and passes over what was
//! handed on before: a user who may have no more threads is slower, not without his data.

use std::io::{self, BufRead, ErrorKind, Read};
use std::num::NonZero;

use liblzma::stream::{Action, Error, MtStreamBuilder, Status, Stream};

use super::{Source, XZ, XZ_MEMORY};

/// What blocks that are decoded at once may take: two threads of `xz -6 -T0` need 80 MiB.
const TOGETHER: u64 = 128 << 20;

/// More would not find room in [`TOGETHER`].
const MOST_THREADS: usize = 4;

/// Zeros between streams come in groups of so many.
const PADDING: u64 = 4;

pub struct Xz {
    source: Source,
    /// The one being decoded; `None` behind the last one.
    stream: Option<Stream>,
    threads: usize,
    /// Bytes of content that were handed on.
    given: u64,
}

impl Xz {
    pub fn new(source: Source) -> io::Result<Xz> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Xz::on(cores.min(MOST_THREADS), source)
    }

    fn on(threads: usize, source: Source) -> io::Result<Xz> {
        Ok(Xz {
            source,
            stream: Some(decoder(threads)?),
            threads,
            given: 0,
        })
    }

    /// Begins anew with one thread, up to where we are.
    fn go_on_alone(&mut self) -> io::Result<()> {
        self.stream = None;
        let mut alone = Xz::on(1, self.source.at(0))?;
        if io::copy(&mut (&mut alone).take(self.given), &mut io::sink())? < self.given {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        *self = alone;
        Ok(())
    }

    /// A stream has ended: does another one follow? Zeros before it are passed over.
    fn goes_on(&mut self) -> io::Result<bool> {
        let mut zeros = 0;
        loop {
            let rest = self.source.fill_buf()?;
            let n = rest.iter().take_while(|&&byte| byte == 0).count();
            let is_passed = n == rest.len() && n > 0;
            self.source.consume(n);
            zeros += n as u64;
            if !is_passed {
                break;
            }
        }
        let next = self.source.peek(XZ.len())?;
        if zeros.is_multiple_of(PADDING) && (next.is_empty() || next.starts_with(XZ)) {
            return Ok(!next.is_empty());
        }
        let problem = "something else follows them";
        Err(io::Error::new(ErrorKind::InvalidData, problem))
    }
}

fn decoder(threads: usize) -> io::Result<Stream> {
    Ok(match threads {
        0 | 1 => Stream::new_stream_decoder(XZ_MEMORY, 0),
        threads => MtStreamBuilder::new()
            .threads(threads as u32)
            .memlimit_threading(TOGETHER)
            .memlimit_stop(XZ_MEMORY)
            .decoder(),
    }?)
}

impl Read for Xz {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // liblzma gives out nothing and takes nothing once, and says so the second time
        let mut is_stuck = false;
        while let Some(stream) = &mut self.stream {
            let input = self.source.fill_buf()?;
            let is_end = input.is_empty();
            let action = if is_end { Action::Finish } else { Action::Run };
            let (before_in, before_out) = (stream.total_in(), stream.total_out());
            let status = stream.process(input, out, action);
            let taken = (stream.total_in() - before_in) as usize;
            let n = (stream.total_out() - before_out) as usize;
            self.source.consume(taken);
            self.given += n as u64;
            match status {
                // a thread, or the memory for its block, is not to be had
                Err(Error::Mem) if self.threads > 1 => self.go_on_alone()?,
                Err(error) => return Err(error.into()),
                Ok(_) if n > 0 => {}
                Ok(Status::StreamEnd) => {
                    self.stream = None;
                    if self.goes_on()? {
                        self.stream = Some(decoder(self.threads)?);
                    }
                }
                Ok(_) if is_end => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if taken > 0 => is_stuck = false,
                Ok(_) if is_stuck => return Err(Error::Data.into()),
                Ok(_) => is_stuck = true,
            }
            if n > 0 {
                return Ok(n);
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{noise, source};
    use super::*;
    use std::io::Write;

    /// Blocks of 64 kB that know their lengths.
    fn blocks(content: &[u8]) -> Vec<u8> {
        let mut builder = MtStreamBuilder::new();
        builder.threads(2).block_size(64 << 10).preset(0);
        builder.check(liblzma::stream::Check::Crc64);
        let encoder = builder.encoder().unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), encoder);
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn blocks_come_in_order_whatever_the_number_of_threads() {
        let content = noise(3_000_000);
        let packed = [blocks(&content), vec![0; 8], blocks(&content)].concat();
        for threads in 1..=MOST_THREADS {
            let mut found = Vec::new();
            let mut xz = Xz::on(threads, source(&packed)).unwrap();
            xz.read_to_end(&mut found).unwrap();
            assert!(found == [&content[..], &content].concat(), "{threads}");
        }
    }

    #[test]
    fn one_thread_goes_on_where_several_had_to_stop() {
        let content = noise(1_000_000);
        let packed = blocks(&content);
        for stop in [0, 1, 65_536, 700_001, content.len()] {
            let mut found = vec![0; stop];
            let mut xz = Xz::on(2, source(&packed)).unwrap();
            xz.read_exact(&mut found).unwrap();
            xz.go_on_alone().unwrap();
            assert_eq!(xz.threads, 1);
            xz.read_to_end(&mut found).unwrap();
            assert!(found == content, "stopped at {stop}");
        }
    }

    #[test]
    fn a_damaged_block_is_found_by_several_threads_too() {
        let packed = blocks(&noise(1_000_000));
        for at in (100..packed.len()).step_by(packed.len() / 50) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            let mut xz = Xz::on(2, source(&damaged)).unwrap();
            assert!(xz.read_to_end(&mut Vec::new()).is_err(), "byte {at}");
            let mut xz = Xz::on(2, source(&packed[..at])).unwrap();
            assert!(xz.read_to_end(&mut Vec::new()).is_err(), "cut at {at}");
        }
    }
}
