//! The bytes of a tar archive as members: headers, their extensions, the bounds of their content.
//!
//! An archive is a sequence of blocks of 512 bytes. A member is a header block and its content,
//! filled up with zeros; a block of zeros ends the archive. Members of type `L` and `K` (GNU) and
//! `x` and `g` (PAX) say what the next one's header has no place for.
//!
//! The `tar` crate gives the layout of a header. Its iterator is not used: it reads extended
//! headers of any length into memory, does not apply global ones, splits PAX values at newlines,
//! and takes a sparse file in PAX format for an ordinary one, whose content it is not
//! (tar-rs#295).
//!
//! # Where readers disagree, and what is done here
//!
//! Two readers that see different members in the same bytes are how a harmless-looking archive
//! becomes a harmful one. GNU tar is followed:
//!
//! * A PAX `size` is that of the next real member, not of an extended header in between
//!   (GHSA-3cv2-h65g-fgmm).
//! * Links and directories have no content, whatever their size field says.
//! * The header's sum may have been made of signed bytes or of unsigned ones.
//! * A header that is none, other than at the beginning, is a damaged archive; nothing is
//!   searched for behind it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::content::{Content, Slice};
use crate::error::{Error, Result};

pub const BLOCK: usize = 512;

/// Names and PAX records. The kernel takes no path of more than 4096 bytes.
const EXTENSION_MAX: u64 = 1 << 20;

/// Extended headers of one member. Two kinds of GNU's and two of PAX may stand there once.
const EXTENSIONS_MAX: u32 = 64;

/// Pieces of one sparse file: 16 bytes of memory each.
const PIECES_MAX: usize = 1_000_000;

/// Content behind the end of the archive: a few blocks of padding are usual.
const TRAILER_MAX: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    /// Nothing to unpack: what it is.
    Note(&'static str),
}

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, i64);

#[derive(Debug)]
pub struct Member {
    /// As it stands in the archive.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Target of a link, as it stands in the archive.
    pub link: Vec<u8>,
    pub mode: u32,
    pub mtime: Time,
    /// Bytes of content in the archive.
    pub stored: u64,
    /// The pieces of a file with holes.
    pub sparse: Option<Sparse>,
    /// A type letter that nobody knows: it is taken for a file.
    pub unknown: Option<u8>,
}

impl Member {
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.name))
    }
}

/// Where the content of a file with holes goes.
#[derive(Debug, Default)]
pub struct Sparse {
    /// Length of the file, holes and all.
    pub size: u64,
    /// Offset and length of each piece: ascending, apart from each other, inside the file.
    pub pieces: Vec<(u64, u64)>,
}

/// What PAX records say of a member.
#[derive(Debug, Default, Clone)]
struct Pax {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<Time>,
    sparse: PaxSparse,
}

/// The `GNU.sparse.*` records of formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone)]
struct PaxSparse {
    present: bool,
    major: u64,
    minor: u64,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
    pieces: Vec<(u64, u64)>,
}

/// Goes through an archive from its beginning to its end.
pub struct Members {
    reader: Content,
    /// Content of the current member that has not been read.
    left: u64,
    /// Bytes between that and the next header.
    padding: u64,
    at_start: bool,
    global: Pax,
}

impl Members {
    pub fn new(reader: Content) -> Members {
        Members {
            reader,
            left: 0,
            padding: 0,
            at_start: true,
            global: Pax::default(),
        }
    }

    pub fn reader(&self) -> &Content {
        &self.reader
    }

    fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::archive(self.reader.name(), problem)
    }

    /// The next member; `None` at the end. What has not been read of the one before is skipped.
    ///
    /// # Errors
    /// [`Error::Archive`] where the bytes are no archive, or end too early.
    pub fn next(&mut self) -> Result<Option<Member>> {
        let mut pax: Option<Pax> = None;
        let (mut long_name, mut long_link) = (None, None);
        for _ in 0..=EXTENSIONS_MAX {
            self.skip()?;
            let mut block = [0; BLOCK];
            let is_pending = pax.is_some() || long_name.is_some() || long_link.is_some();
            if !self.header(&mut block)? {
                if is_pending {
                    return Err(self.damaged("the archive ends where a member should follow"));
                }
                return Ok(None);
            }
            let header = tar::Header::from_byte_slice(&block).as_old();
            let letter = header.linkflag[0];
            let size = number(&header.size)
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| self.damaged("a member has no valid size"))?;
            match letter {
                b'L' => long_name = Some(self.extension(size)?),
                b'K' => long_link = Some(self.extension(size)?),
                b'g' => {
                    let records = self.extension(size)?;
                    let mut global = std::mem::take(&mut self.global);
                    self.records(&records, &mut global)?;
                    // A map of pieces that is every file's map is nobody's.
                    global.sparse = PaxSparse::default();
                    self.global = global;
                }
                b'x' | b'X' => {
                    let records = self.extension(size)?;
                    let mut local = self.global.clone();
                    self.records(&records, &mut local)?;
                    pax = Some(local);
                }
                _ => {
                    let pax = pax.unwrap_or_else(|| self.global.clone());
                    return self
                        .member(&block, size, pax, long_name, long_link)
                        .map(Some);
                }
            }
        }
        Err(self.damaged("its extended headers go on and on"))
    }

    /// Reads a header block; false at the end of the archive.
    fn header(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let at_start = std::mem::replace(&mut self.at_start, false);
        match self.reader.fill(block)? {
            // An archive of nothing has its end blocks. What has nothing at all is what a full
            // disk, or a server in trouble, makes of any file.
            0 if at_start => return Err(self.damaged("it is empty")),
            0 => return Ok(false),
            BLOCK => {}
            _ if at_start => return Err(self.damaged("it is not a tar archive")),
            _ => return Err(self.damaged("the archive is cut off")),
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(false);
        }
        let header = tar::Header::from_byte_slice(block);
        let expected = number(&header.as_old().cksum);
        // The sum is made with its own field as blanks.
        let (mut unsigned, mut signed) = (8 * 32, 8 * 32);
        for &byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if expected == Some(unsigned) || expected == Some(signed) {
            return Ok(true);
        }
        Err(self.damaged(match at_start {
            true => "it is not a tar archive",
            false => "the archive is damaged: a header has a wrong sum",
        }))
    }

    /// The content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(self.damaged(format!(
                "an extended header of {size} bytes (at most {EXTENSION_MAX} are accepted)"
            )));
        }
        self.begin(size)?;
        let mut content = vec![0; size as usize];
        self.read(&mut content)?;
        Ok(content)
    }

    fn begin(&mut self, stored: u64) -> Result<()> {
        if stored > i64::MAX as u64 {
            return Err(self.damaged("a member has no valid size"));
        }
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        Ok(())
    }

    fn member(
        &mut self,
        block: &[u8; BLOCK],
        size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member> {
        let header = tar::Header::from_byte_slice(block);
        let old = header.as_old();
        let mut name = match (&pax.sparse.name, pax.path, long_name) {
            (Some(name), _, _) => name.clone(),
            (None, Some(name), _) => name,
            (None, None, Some(name)) => without_end(name),
            (None, None, None) => short_name(block),
        };
        if pax.sparse.present && pax.sparse.name.is_none() && name.is_empty() {
            name = short_name(block);
        }
        let link = match (pax.linkpath, long_link) {
            (Some(link), _) => link,
            (None, Some(link)) => without_end(link),
            (None, None) => until_nul(&old.linkname).to_vec(),
        };
        let mut member = Member {
            name,
            kind: Kind::File,
            link,
            mode: number(&old.mode).unwrap_or(0o644) as u32,
            mtime: pax.mtime.unwrap_or((number(&old.mtime).unwrap_or(0), 0)),
            stored: pax.size.unwrap_or(size),
            sparse: None,
            unknown: None,
        };
        let refuse = |problem: &str| {
            Err(Error::member(
                self.reader.name(),
                Path::new(OsStr::from_bytes(&member.name)),
                problem,
            ))
        };
        let is_gnu_sparse = old.linkflag[0] == b'S';
        member.kind = match old.linkflag[0] {
            // The old formats say "directory" by a slash alone.
            0 | b'0' | b'7' if member.name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => return refuse("is a character device"),
            b'4' => return refuse("is a block device"),
            b'5' => Kind::Directory,
            b'6' => return refuse("is a FIFO"),
            b'D' => Kind::Directory,
            b'M' => return refuse("begins on another volume of a multi-volume archive"),
            b'N' => Kind::Note("a list of long names in an obsolete format"),
            b'V' => Kind::Note("a volume label"),
            letter => {
                member.unknown = Some(letter);
                Kind::File
            }
        };
        // `D` is a directory of an incremental archive: its content lists names.
        let has_content =
            matches!(member.kind, Kind::File | Kind::Note(_)) || old.linkflag[0] == b'D';
        if !has_content {
            member.stored = 0;
        }
        self.begin(member.stored)?;
        if member.kind == Kind::File {
            if is_gnu_sparse {
                member.sparse = Some(self.gnu_pieces(&member, header)?);
            } else if pax.sparse.present {
                member.sparse = Some(self.pax_pieces(&member, pax.sparse)?);
            }
            member.stored = self.left;
            self.check_pieces(&member)?;
        }
        Ok(member)
    }

    /// Reads content of the current member; 0 at its end. Fills `buffer` unless it ends before.
    ///
    /// # Errors
    /// [`Error::Archive`] where the archive ends first.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = self.left.min(buffer.len() as u64) as usize;
        if self.reader.fill(&mut buffer[..n])? < n {
            return Err(self.damaged("the archive is cut off"));
        }
        self.left -= n as u64;
        Ok(n)
    }

    /// The next bytes of the current member's content, at most `length`, without copying them.
    ///
    /// # Errors
    /// [`Error::Archive`] where the archive ends first.
    pub fn take(&mut self, length: u64) -> Result<Slice> {
        let n = self.left.min(length).min(usize::MAX as u64) as usize;
        let Some(slice) = self.reader.take(n)? else {
            return Err(self.damaged("the archive is cut off"));
        };
        self.left -= slice.len() as u64;
        Ok(slice)
    }

    fn skip(&mut self) -> Result<()> {
        self.left += std::mem::take(&mut self.padding);
        let mut buffer = [0; 16 * BLOCK];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The end of the archive is not the end of the file: goes on to where the last checksum of
    /// the compression has been compared.
    pub fn finish(&mut self) -> Result<()> {
        if !self.reader.is_compressed() {
            return Ok(());
        }
        let mut buffer = vec![0; 64 * 1024];
        let mut trailer = 0;
        loop {
            match self.reader.fill(&mut buffer)? {
                0 => return Ok(()),
                n => trailer += n as u64,
            }
            if trailer > TRAILER_MAX {
                return Err(self.damaged("the data go on for more than 1 GiB after its end"));
            }
        }
    }

    /// The pieces of a file in GNU's old format: four in the header, the others in blocks of 21
    /// between header and content.
    fn gnu_pieces(&mut self, member: &Member, header: &tar::Header) -> Result<Sparse> {
        let wrong = || self.wrong_pieces(member);
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        let mut sparse = Sparse {
            size: number(&gnu.realsize)
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(wrong)?,
            pieces: Vec::new(),
        };
        let mut is_extended = gnu.isextended[0] != 0;
        let mut extra = tar::GnuExtSparseHeader::new();
        let mut pieces = &gnu.sparse[..];
        loop {
            for piece in pieces {
                // An unused place: the pieces end here.
                if piece.numbytes[0] == 0 {
                    break;
                }
                let value = |field| number(field).and_then(|value| u64::try_from(value).ok());
                match (value(&piece.offset), value(&piece.numbytes)) {
                    (Some(offset), Some(length)) if sparse.pieces.len() < PIECES_MAX => {
                        sparse.pieces.push((offset, length));
                    }
                    _ => return Err(self.wrong_pieces(member)),
                }
            }
            if !is_extended {
                return Ok(sparse);
            }
            // Not a part of the content: the header's size does not count it.
            if self.reader.fill(extra.as_mut_bytes())? < BLOCK {
                return Err(self.damaged("the archive is cut off"));
            }
            is_extended = extra.isextended[0] != 0;
            pieces = &extra.sparse[..];
        }
    }

    /// The pieces of a file in one of the PAX formats: in the records (0.0 and 0.1), or as text
    /// at the beginning of the content (1.0).
    fn pax_pieces(&mut self, member: &Member, pax: PaxSparse) -> Result<Sparse> {
        let mut sparse = Sparse {
            size: pax.size.ok_or_else(|| self.wrong_pieces(member))?,
            pieces: pax.pieces,
        };
        match (pax.major, pax.minor) {
            (0, _) if pax.offset.is_none() => return Ok(sparse),
            (1, 0) => {}
            (0, _) => return Err(self.wrong_pieces(member)),
            (major, minor) => {
                return Err(Error::member(
                    self.reader.name(),
                    member.path(),
                    format!("is a sparse file in the unknown format {major}.{minor}"),
                ));
            }
        }
        let mut text = Decimal::default();
        let count = text.next(self, member)?;
        if count > PIECES_MAX as u64 {
            return Err(self.wrong_pieces(member));
        }
        for _ in 0..count {
            let offset = text.next(self, member)?;
            sparse.pieces.push((offset, text.next(self, member)?));
        }
        Ok(sparse)
    }

    fn wrong_pieces(&self, member: &Member) -> Error {
        Error::member(
            self.reader.name(),
            member.path(),
            "has a damaged list of the pieces of a sparse file",
        )
    }

    fn check_pieces(&self, member: &Member) -> Result<()> {
        let Some(sparse) = &member.sparse else {
            return Ok(());
        };
        let (mut end, mut stored) = (0, 0u64);
        for &(offset, length) in &sparse.pieces {
            // In the archive each piece begins a block. libarchive lets them follow each other
            // directly; where that makes a difference, nobody can know what was meant.
            let is_aligned = stored.is_multiple_of(BLOCK as u64) || length == 0;
            if offset < end || !is_aligned {
                return Err(self.wrong_pieces(member));
            }
            end = offset
                .checked_add(length)
                .ok_or_else(|| self.wrong_pieces(member))?;
            stored += length; // the sum is below `end`
        }
        if end > sparse.size || stored != member.stored || sparse.size > i64::MAX as u64 {
            return Err(self.wrong_pieces(member));
        }
        Ok(())
    }

    /// PAX records: `LENGTH KEY=VALUE\n`, the length counting all of it. A value may hold
    /// anything, newlines and `=` too. An empty one takes back what was said before.
    fn records(&self, mut records: &[u8], pax: &mut Pax) -> Result<()> {
        let wrong = || self.damaged("a PAX header is damaged");
        while !records.is_empty() {
            let blank = records
                .iter()
                .take(8)
                .position(|&byte| byte == b' ')
                .ok_or_else(wrong)?;
            let length = decimal(&records[..blank]).ok_or_else(wrong)? as usize;
            if length <= blank + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &records[blank + 1..length - 1];
            let equals = record
                .iter()
                .position(|&byte| byte == b'=')
                .ok_or_else(wrong)?;
            pax.set(&record[..equals], &record[equals + 1..])
                .ok_or_else(wrong)?;
            records = &records[length..];
        }
        Ok(())
    }
}

impl Pax {
    /// `None` where the value makes no sense.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            [] => Some(None),
            _ => decimal(value).map(Some),
        };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.linkpath = text,
            b"size" => self.size = number()?,
            b"mtime" => {
                self.mtime = match value {
                    [] => None,
                    _ => Some(timestamp(value)?),
                }
            }
            b"GNU.sparse.major" => self.sparse.major = decimal(value)?,
            b"GNU.sparse.minor" => self.sparse.minor = decimal(value)?,
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = number()?,
            // 0.0: the two keys take turns.
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take()?;
                self.sparse.pieces.push((offset, decimal(value)?));
            }
            // 0.1: all in one.
            b"GNU.sparse.map" => {
                self.sparse.pieces.clear();
                let mut numbers = value.split(|&byte| byte == b',');
                while let Some(offset) = numbers.next() {
                    if offset.is_empty() && self.sparse.pieces.is_empty() {
                        break;
                    }
                    let piece = (decimal(offset)?, decimal(numbers.next()?)?);
                    self.sparse.pieces.push(piece);
                }
            }
            _ => {}
        }
        self.sparse.present |= key.starts_with(b"GNU.sparse.");
        Some(())
    }
}

/// The numbers of a 1.0 map: one a line, in as many blocks of the content as they need.
#[derive(Default)]
struct Decimal {
    block: Vec<u8>,
    at: usize,
}

impl Decimal {
    fn next(&mut self, members: &mut Members, member: &Member) -> Result<u64> {
        let mut value: Option<u64> = None;
        loop {
            if self.at == self.block.len() {
                self.block.resize(BLOCK, 0);
                self.at = 0;
                if members.read(&mut self.block)? < BLOCK {
                    return Err(members.wrong_pieces(member));
                }
            }
            let byte = self.block[self.at];
            self.at += 1;
            value = match (byte, value) {
                (b'0'..=b'9', value) => value
                    .unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(u64::from(byte - b'0'))),
                (b'\n', Some(value)) => return Ok(value),
                _ => None,
            };
            if value.is_none() {
                return Err(members.wrong_pieces(member));
            }
        }
    }
}

/// A number of a header: octal text, or GNU's base 256. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    match field {
        [0x80, rest @ ..] => rest.iter().try_fold(0i64, |value, &byte| {
            Some(value.checked_mul(256)? | i64::from(byte))
        }),
        [0xff, rest @ ..] => rest.iter().try_fold(-1i64, |value, &byte| {
            Some(value.checked_mul(256)? | i64::from(byte))
        }),
        _ => {
            let text = until_nul(field).trim_ascii();
            text.iter().try_fold(0i64, |value, &byte| match byte {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
                _ => None,
            })
        }
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// `-12.345`: seconds and what is left above them, as `timespec` has it.
fn timestamp(text: &[u8]) -> Option<Time> {
    let (is_negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |digit| digit - b'0');
        nanoseconds = nanoseconds * 10 + i64::from(digit);
    }
    Some(match (is_negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// The content of an `L` or `K` member without the NUL that ends it.
fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}

/// The name as the header alone has it.
fn short_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    let prefix = until_nul(&block[345..500]);
    // POSIX archives have a prefix there; GNU's, with another magic, something else.
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", name].concat();
    }
    name.to_vec()
}
