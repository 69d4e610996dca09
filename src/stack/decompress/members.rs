//! What a compressed file is made of: members (streams, frames), one after the other.

use std::io::{self, ErrorKind, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lz4_flex::frame::FrameDecoder;

use super::{Source, ZSTD_WINDOW_LOG};

/// A decoder of one member, which ends with it.
pub(super) trait Member: Read + Sized + Send + 'static {
    fn begin(source: Source) -> io::Result<Self>;

    /// What is behind it, once it has been read to its end.
    fn end(self) -> io::Result<Source>;

    /// One has ended: does another one follow?
    fn goes_on(source: &mut Source) -> io::Result<bool>;
}

impl Member for GzDecoder<Source> {
    fn begin(source: Source) -> io::Result<Self> {
        Ok(GzDecoder::new(source))
    }

    fn end(self) -> io::Result<Source> {
        Ok(self.into_inner())
    }

    fn goes_on(source: &mut Source) -> io::Result<bool> {
        source.goes_on(b"\x1f\x8b")
    }
}

impl Member for BzDecoder<Source> {
    fn begin(source: Source) -> io::Result<Self> {
        Ok(BzDecoder::new(source))
    }

    fn end(self) -> io::Result<Source> {
        Ok(self.into_inner())
    }

    fn goes_on(source: &mut Source) -> io::Result<bool> {
        source.goes_on(b"BZh")
    }
}

/// Each frame has a decoder of its own: one that goes on with a frame of another block size is out
/// of its depth (a failed assertion).
impl Member for Box<FrameDecoder<Source>> {
    fn begin(source: Source) -> io::Result<Self> {
        Ok(Box::new(FrameDecoder::new(source)))
    }

    /// The decoder takes the end of the file between two blocks for the end of the frame; but then
    /// it has asked for more, which after an end mark it has not.
    fn end(self) -> io::Result<Source> {
        let source = self.into_inner();
        match source.found_end {
            true => Err(ErrorKind::UnexpectedEof.into()),
            false => Ok(source),
        }
    }

    fn goes_on(source: &mut Source) -> io::Result<bool> {
        source.goes_on(super::LZ4)
    }
}

/// A frame; a skippable one is an empty one.
impl Member for zstd::stream::read::Decoder<'static, Source> {
    fn begin(source: Source) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?.single_frame();
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Ok(decoder)
    }

    fn end(self) -> io::Result<Source> {
        Ok(self.finish())
    }

    /// zstd's own tool takes no padding either: what is no frame is an error of the next decoder.
    fn goes_on(source: &mut Source) -> io::Result<bool> {
        Ok(!source.peek(1)?.is_empty())
    }
}

/// The content of members that follow each other.
pub(super) struct Members<M> {
    state: State<M>,
    until: u64,
}

enum State<M> {
    Within(M),
    Behind(Source),
    /// An error was told; it must not look like the end afterwards.
    Failed,
}

impl<M: Member> Members<M> {
    /// Decodes a first member in any case, and ends with the one that ends at `until` or behind it;
    /// at the latest with the file.
    pub fn begin(source: Source, until: u64) -> io::Result<Members<M>> {
        Ok(Members {
            state: State::Within(M::begin(source)?),
            until,
        })
    }

    /// What is behind the last one, once there is no more to be read.
    pub fn behind(&mut self) -> Option<&mut Source> {
        match &mut self.state {
            State::Behind(source) => Some(source),
            _ => None,
        }
    }
}

impl<M: Member> Read for Members<M> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let member = match &mut self.state {
                State::Within(member) => member,
                State::Behind(_) => return Ok(0),
                State::Failed => return Err(ErrorKind::InvalidData.into()),
            };
            let n = member.read(out)?;
            if n > 0 {
                return Ok(n);
            }
            if let State::Within(member) = std::mem::replace(&mut self.state, State::Failed) {
                let mut source = member.end()?;
                let goes_on = source.position() < self.until && M::goes_on(&mut source)?;
                self.state = match goes_on {
                    true => State::Within(M::begin(source)?),
                    false => State::Behind(source),
                };
            }
        }
    }
}
