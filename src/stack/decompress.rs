//! Reading a compressed file: which compression it is says its content, never its name.
//!
//! # What can go wrong
//!
//! * *A decoder that stops early.* Every one of these formats is a sequence of members (streams,
//!   frames), each with its checksum at its end. pigz, pbzip2, bgzip and `cat a.gz b.gz` write many
//!   of them. A decoder that stops after the first loses the rest, and a reader that stops at the
//!   end of the tar archive within never compares the last checksum: a damaged file would pass.
//!   So a [`Reader`] answers 0 only when every member has been decoded and verified to the end of
//!   the file; whoever has seen that 0 has seen the checksums agree.
//! * *What stands behind the last member.* Zeros are padding (tapes, block devices; `gzip -dc`
//!   accepts them). Anything else is refused: `gzip -dc` says "trailing garbage ignored" and
//!   status 2, with which GNU tar fails, too.
//! * *Memory.* A header may ask for gigabytes. xz has a limit of 256 MiB (`xz -9` needs 65), half
//!   of that for blocks decoded at once ([`xz`]). zstd allocates what the window says, but only
//!   the part that content has filled is ever touched; so windows up to the format's own limit
//!   are accepted (`zstd --long=31`).
//! * *Which error it is.* A disk that fails is not an archive that is damaged. Decoders hand on
//!   the errors of the file below unchanged, with their errno; errors of their own have none.
//!   [`Reader::error`] tells them apart by that.

mod ahead;
mod members;
mod walk;
mod xz;

use std::io::{self, BufRead, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::ahead::Ahead;
use self::members::Members;
use super::Product;
use super::growing::{Growth, Stream};
use crate::error::{Error, Result};
use crate::signal;

/// Bytes read from the file at a time.
const BUFFER: usize = 256 * 1024;

/// What `xz -9` (65 MiB) and some more need; not what a hostile header may ask for (4 GiB).
const XZ_MEMORY: u64 = 256 << 20;

/// The largest window there is on a 64-bit machine (2 GiB).
const ZSTD_WINDOW_LOG: u32 = 31;

/// The format of what is not compressed.
const PLAIN: &str = "plain";

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const LZ4: &[u8] = b"\x04\x22\x4d\x18";

/// The content of a file, decompressed as it is read.
///
/// Each `read` may block on the disk; it fails once a signal has arrived.
pub struct Reader {
    decoder: Decoder,
    /// What messages call the file.
    name: PathBuf,
    format: &'static str,
    growth: Arc<Growth>,
    consumed: Arc<AtomicU64>,
}

enum Decoder {
    Plain(Source),
    Gzip(Members<flate2::bufread::GzDecoder<Source>>),
    Bgzip(Ahead<flate2::bufread::GzDecoder<Source>>),
    Bzip2(Members<bzip2::bufread::BzDecoder<Source>>),
    Lz4(Members<Box<lz4_flex::frame::FrameDecoder<Source>>>),
    Xz(xz::Xz),
    Zstd(Ahead<zstd::stream::read::Decoder<'static, Source>>),
}

impl Reader {
    /// Opens the file that a loader brought.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Archive`] for a compression that we know but do not read.
    pub fn open(product: &Product) -> Result<Reader> {
        Reader::new(product.open()?, Path::new(product.name))
    }

    pub fn new(file: Stream, name: &Path) -> Result<Reader> {
        let consumed = Arc::new(AtomicU64::new(0));
        let growth = file.growth().clone();
        let mut source = Source::new(file, consumed.clone());
        let head = match source.peek(walk::HEADER) {
            Ok(head) => head,
            Err(error) => return Err(explain(error, name, "compressed")),
        };
        let (format, is_bgzip) = (detect(head), walk::bgzip(head).is_some());
        let decoder = match format {
            Err(format) => {
                return Err(Error::archive(
                    name,
                    format!("it is {format}, which is not supported"),
                ));
            }
            Ok("gzip") if is_bgzip => Ahead::new(source).map(Decoder::Bgzip),
            Ok("gzip") => Members::begin(source, u64::MAX).map(Decoder::Gzip),
            Ok("bzip2") => Members::begin(source, u64::MAX).map(Decoder::Bzip2),
            Ok("lz4") => Members::begin(source, u64::MAX).map(Decoder::Lz4),
            Ok("xz") => xz::Xz::new(source).map(Decoder::Xz),
            Ok("zstd") => Ahead::new(source).map(Decoder::Zstd),
            Ok(_) => Ok(Decoder::Plain(source)),
        };
        let format = format.unwrap_or(PLAIN);
        Ok(Reader {
            decoder: decoder.map_err(|error| explain(error, name, format))?,
            name: name.to_owned(),
            format,
            growth,
            consumed,
        })
    }

    /// What messages call the file.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Is there a checksum behind the content that only reading to the end compares?
    pub fn is_compressed(&self) -> bool {
        self.format != PLAIN
    }

    /// How far the file is that is read.
    pub fn growth(&self) -> &Arc<Growth> {
        &self.growth
    }

    /// How far the file has been read; counted on while others read.
    pub fn consumed(&self) -> &Arc<AtomicU64> {
        &self.consumed
    }

    /// What an error of [`Read::read`] means.
    pub fn error(&self, error: io::Error) -> Error {
        explain(error, &self.name, self.format)
    }
}

fn explain(error: io::Error, name: &Path, format: &str) -> Error {
    if let Err(interrupted) = signal::check() {
        return interrupted;
    }
    if error.raw_os_error().is_some() {
        return Error::Io {
            doing: "cannot read",
            path: name.to_owned(),
            source: error,
        };
    }
    match error.kind() {
        ErrorKind::UnexpectedEof => Error::archive(
            name,
            format!("the {format} data end too early: the file is cut off"),
        ),
        _ => Error::archive(name, format!("the {format} data are damaged: {error}")),
    }
}

/// The compression by its first bytes, or what else it is that we do not read.
fn detect(head: &[u8]) -> Result<&'static str, &'static str> {
    match head {
        [0x1f, 0x8b, ..] => Ok("gzip"),
        // The magic of bzip2 is three letters, and a member of a plain tar may be called `BZh9`:
        // so the first block's magic, or that of an empty stream, is looked for, too.
        [b'B', b'Z', b'h', b'1'..=b'9', block @ ..]
            if block.starts_with(b"1AY&SY") || block.starts_with(b"\x17\x72\x45\x38\x50\x90") =>
        {
            Ok("bzip2")
        }
        _ if head.starts_with(XZ) => Ok("xz"),
        _ if head.starts_with(ZSTD) => Ok("zstd"),
        _ if head.starts_with(LZ4) => Ok("lz4"),
        // A skippable frame is of either; pzstd begins with one.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok("zstd"),
        [0x02, 0x21, 0x4c, 0x18, ..] => Err("in the legacy format of lz4"),
        [0x1f, 0x9d, ..] => Err("compressed by `compress` (.Z)"),
        [b'L', b'Z', b'I', b'P', 1, ..] => Err("compressed by lzip"),
        [0x5d, 0, 0, _, _, 0xff, 0xff, 0xff, 0xff, ..] => Err("in the old format of lzma"),
        [b'P', b'K', 3 | 5, 4 | 6, ..] => Err("a zip archive"),
        [b'R', b'a', b'r', b'!', 0x1a, 7, ..] => Err("a rar archive"),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Err("a 7z archive"),
        _ => Ok(PLAIN),
    }
}

impl Read for Reader {
    /// 0 means: the end, and every checksum on the way was right.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        match &mut self.decoder {
            Decoder::Plain(source) => source.read(out),
            Decoder::Xz(decoder) => decoder.read(out),
            Decoder::Zstd(ahead) => ahead.read(out),
            Decoder::Gzip(members) => members.read(out),
            Decoder::Bgzip(ahead) => ahead.read(out),
            Decoder::Bzip2(members) => members.read(out),
            Decoder::Lz4(members) => members.read(out),
        }
    }
}

/// The file, buffered, with a look ahead.
struct Source {
    file: Stream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Has a `read` been answered with 0?
    found_end: bool,
    consumed: Arc<AtomicU64>,
}

impl Source {
    fn new(file: Stream, consumed: Arc<AtomicU64>) -> Source {
        Source {
            file,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            found_end: false,
            consumed,
        }
    }

    /// The same file from `position` on.
    fn at(&self, position: u64) -> Source {
        Source::new(self.file.at(position), self.consumed.clone())
    }

    /// Where the next byte is that a decoder has not taken.
    fn position(&self) -> u64 {
        self.file.position() - (self.end - self.start) as u64
    }

    /// One `read(2)`, repeated when a signal of no interest interrupts it.
    fn read_file(file: &mut Stream, out: &mut [u8], consumed: &AtomicU64) -> io::Result<usize> {
        loop {
            if signal::check().is_err() {
                // What it was, `explain` finds out again.
                return Err(io::Error::other("interrupted"));
            }
            match file.read(out) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(n) => {
                    consumed.fetch_max(file.position(), Ordering::Relaxed);
                    return Ok(n);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next bytes, at least `n` of them (`n` ≪ the buffer) unless the file ends before.
    fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        if self.end - self.start < n {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < n {
                let free = &mut self.buffer[self.end..];
                match Source::read_file(&mut self.file, free, &self.consumed)? {
                    0 => break,
                    n => self.end += n,
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// A member has ended: does another one follow? False at the end of the file, zeros before
    /// it passed over.
    fn goes_on(&mut self, magic: &[u8]) -> io::Result<bool> {
        if self.peek(magic.len())?.starts_with(magic) {
            return Ok(true);
        }
        loop {
            let rest = self.fill_buf()?;
            if rest.is_empty() {
                return Ok(false);
            }
            if rest.iter().any(|&byte| byte != 0) {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "something else follows them",
                ));
            }
            let n = rest.len();
            self.consume(n);
        }
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && out.len() >= self.buffer.len() {
            return Source::read_file(&mut self.file, out, &self.consumed);
        }
        let rest = self.fill_buf()?;
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.consume(n);
        self.found_end |= n == 0 && !out.is_empty();
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::*;
    use std::io::{Seek, Write};

    /// Both ways, which must agree.
    fn read(compressed: &[u8]) -> Result<Vec<u8>> {
        let here = read_as(compressed, Content::here);
        let ahead = read_as(compressed, Content::ahead);
        match (&here, &ahead) {
            (Ok(here), Ok(ahead)) => assert!(here == ahead),
            (Err(here), Err(ahead)) => assert_eq!(here.to_string(), ahead.to_string()),
            _ => panic!("{here:?} {ahead:?}"),
        }
        here
    }

    fn read_as(compressed: &[u8], how: fn(Reader) -> Content) -> Result<Vec<u8>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(compressed).unwrap();
        file.rewind().unwrap();
        let mut reader = how(Reader::new(file.into(), Path::new("f"))?);
        let mut content = Vec::new();
        let mut buffer = vec![0; 1000];
        loop {
            match reader.fill(&mut buffer)? {
                0 => return Ok(content),
                n => content.extend_from_slice(&buffer[..n]),
            }
        }
    }

    pub(super) fn source(content: &[u8]) -> Source {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        Source::new(file.into(), Arc::default())
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(content: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(content: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(content: &[u8]) -> Vec<u8> {
        let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    type Compress = fn(&[u8]) -> Vec<u8>;
    const FORMATS: [(&str, Compress); 5] = [
        ("gzip", gzip),
        ("bzip2", bzip2),
        ("xz", xz),
        ("zstd", zstd),
        ("lz4", lz4),
    ];

    /// Not easily compressed, so that a wrong bit matters everywhere.
    pub(super) fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as u8
        })
        .take(length)
        .collect()
    }

    #[test]
    fn every_format_gives_back_what_went_in() {
        for length in [0, 1, 700_000] {
            let content = noise(length);
            assert_eq!(read(&content).unwrap(), content);
            for (format, compress) in FORMATS {
                assert_eq!(read(&compress(&content)).unwrap(), content, "{format}");
            }
        }
    }

    #[test]
    fn a_thread_ahead_may_be_given_up_at_any_time() {
        for taken in [0, 1, 300_000] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&zstd(&vec![0; 50 << 20])).unwrap();
            file.rewind().unwrap();
            let mut content = Content::ahead(Reader::new(file.into(), Path::new("f")).unwrap());
            assert_eq!(content.fill(&mut vec![1; taken]).unwrap(), taken);
        }
    }

    #[test]
    fn members_one_after_the_other_are_one_content() {
        for (format, compress) in FORMATS {
            let parts = [compress(b"one "), compress(b""), compress(b"two")].concat();
            assert_eq!(read(&parts).unwrap(), b"one two", "{format}");
        }
    }

    #[test]
    fn zeros_behind_the_last_member_are_padding_as_for_gzip() {
        for (format, compress) in FORMATS {
            if format == "zstd" {
                continue; // its own tool refuses them
            }
            let mut padded = compress(b"content");
            padded.resize(padded.len() + 4096, 0);
            assert_eq!(read(&padded).unwrap(), b"content", "{format}");
        }
    }

    #[test]
    fn anything_else_behind_the_last_member_is_refused() {
        for (format, compress) in FORMATS {
            for junk in [&b"junk"[..], b"\0\0\0\0junk", b"\x1f"] {
                let error = read(&[&compress(b"content"), junk].concat()).unwrap_err();
                assert_eq!(error.exit_status(), 65, "{format}: {error}");
            }
        }
    }

    #[test]
    fn cut_off_anywhere_is_never_whole() {
        for (format, compress) in FORMATS {
            let whole = compress(&noise(300));
            for length in 1..whole.len() {
                // Too short to be told from a plain file: what reads it finds no archive in it.
                if detect(&whole[..length]) == Ok("plain") {
                    assert!(length < 10);
                    continue;
                }
                let error = read(&whole[..length]).expect_err(format);
                assert_eq!(error.exit_status(), 65, "{format} {length}: {error}");
            }
        }
    }

    #[test]
    fn a_wrong_bit_in_the_checksums_is_found() {
        for (format, compress) in FORMATS {
            let mut whole = compress(&noise(300));
            // gzip ends with CRC and length, the others with (or with the bits of) a checksum
            let at = whole.len() - if format == "xz" { 20 } else { 4 };
            whole[at] ^= 0x10;
            let error = read(&whole).expect_err(format);
            assert_eq!(error.exit_status(), 65, "{format}: {error}");
        }
    }

    #[test]
    fn a_member_of_a_plain_archive_may_be_called_like_a_magic_number() {
        assert_eq!(read(b"BZh9 report.txt").unwrap(), b"BZh9 report.txt");
    }

    #[test]
    fn formats_we_do_not_read_are_called_by_name() {
        for (head, name) in [
            (&b"\x1f\x9d\x90"[..], "`compress`"),
            (b"PK\x03\x04", "zip"),
            (b"LZIP\x01", "lzip"),
        ] {
            let error = read(head).unwrap_err();
            assert_eq!(error.exit_status(), 65);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_skippable_frame_comes_before_the_content() {
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        assert_eq!(read(&[&skipped[..], &zstd(b"x")].concat()).unwrap(), b"x");
    }

    #[test]
    fn an_xz_header_cannot_ask_for_gigabytes() {
        let mut filters = liblzma::stream::Filters::new();
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        options.dict_size(1 << 30);
        filters.lzma2(&options);
        // Encoding with such a dictionary would need it, too: so the size is put in by hand.
        let mut whole = xz(b"x");
        // Block header: size, flags, filter 0x21, properties' size 1, dictionary size, …, CRC32.
        assert_eq!(whole[14..16], [0x21, 1]);
        whole[16] = 40; // 4 GiB - 1
        let header = 12..12 + (usize::from(whole[12]) + 1) * 4 - 4;
        let crc = crc32fast::hash(&whole[header.clone()]);
        whole[header.end..header.end + 4].copy_from_slice(&crc.to_le_bytes());
        let error = read(&whole).unwrap_err();
        assert!(error.to_string().contains("memory limit"), "{error}");
    }
}
