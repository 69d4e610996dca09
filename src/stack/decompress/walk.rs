//! Where the members of a file begin, found without decoding any.

use std::ops::Range;

use flate2::bufread::GzDecoder;

use super::super::growing::Stream;
use super::members::Member;
use super::{Source, ZSTD};

/// Members shorter than this together are no work for a thread.
pub(super) const LEAST: u64 = 256 << 10;

/// Of a zstd frame that is decoded ahead; `zstd -12` has that.
pub(super) const LARGEST_WINDOW: u64 = 4 << 20;

/// Headers that are passed over before somebody decodes again: a hostile file is made of nothing
/// else.
pub(super) const STEPS: usize = 1000;

/// The longest header: of a frame of zstd, or of a member of bgzip.
pub(super) const HEADER: usize = 18;

/// Members whose lengths can be told.
pub(super) trait Outline: Member {
    /// What was seen of a member that is not passed over yet.
    type Within: Copy + Default + Send;

    /// What begins with `head`: its length, and whether a member ends with it. `None`: that cannot
    /// be told, or it is not to be decoded ahead.
    fn step(within: &mut Self::Within, head: &[u8]) -> Option<(u64, bool)>;
}

/// Is this the header of a member of bgzip? Its length then.
pub(super) fn bgzip(head: &[u8]) -> Option<u64> {
    match head {
        [
            0x1f,
            0x8b,
            8,
            4,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            b'B',
            b'C',
            2,
            0,
            low,
            high,
            ..,
        ] => Some(u64::from(u16::from_le_bytes([*low, *high])) + 1),
        _ => None,
    }
}

impl Outline for GzDecoder<Source> {
    type Within = ();

    fn step(_: &mut (), head: &[u8]) -> Option<(u64, bool)> {
        bgzip(head).map(|length| (length, true))
    }
}

impl Outline for zstd::stream::read::Decoder<'static, Source> {
    /// In a frame: the bytes behind its last block.
    type Within = Option<u64>;

    fn step(within: &mut Option<u64>, head: &[u8]) -> Option<(u64, bool)> {
        let number = |at: usize, length: usize| {
            let bytes = head.get(at..at + length)?;
            let number = bytes.iter().rev();
            Some(number.fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
        };
        if let Some(behind) = *within {
            let block = number(0, 3)?;
            let content = match block >> 1 & 3 {
                0 | 2 => block >> 3,
                1 => 1,
                _ => return None,
            };
            let is_last = block & 1 == 1;
            if is_last {
                *within = None;
            }
            return Some((3 + content + if is_last { behind } else { 0 }, is_last));
        }
        if number(0, 4)? & 0xffff_fff0 == 0x184d_2a50 {
            return Some((8 + number(4, 4)?, false));
        }
        let descriptor = number(4, 1)?;
        if !head.starts_with(ZSTD) {
            return None;
        }
        let is_single = descriptor >> 5 & 1 == 1;
        let of_dictionary = [0, 1, 2, 4][(descriptor & 3) as usize];
        let of_size = match descriptor >> 6 {
            0 => usize::from(is_single),
            n => 1 << n,
        };
        let of_window = usize::from(!is_single);
        let window = match is_single {
            true => number(5 + of_dictionary, of_size)?,
            false => {
                let byte = number(5, 1)?;
                let base = 1 << (10 + (byte >> 3));
                base + base / 8 * (byte & 7)
            }
        };
        *within = Some(if descriptor >> 2 & 1 == 1 { 4 } else { 0 });
        let length = 5 + of_window + of_dictionary + of_size;
        (window <= LARGEST_WINDOW).then_some((length as u64, false))
    }
}

/// Looks where members begin, as far as the file is there.
pub(super) struct Walk<M: Outline> {
    pub(super) at: u64,
    within: M::Within,
    /// Where the next job begins: behind the first member, which somebody has in hand.
    from: Option<u64>,
}

impl<M: Outline> Walk<M> {
    pub fn from(at: u64) -> Walk<M> {
        Walk {
            at,
            within: M::Within::default(),
            from: None,
        }
    }

    /// Members that are worth a thread; `None`: not yet, or never.
    pub fn next(&mut self, file: &Stream) -> Option<Range<u64>> {
        for _ in 0..STEPS {
            let (is_member, is_end) = match self.step(file)? {
                Step::Part => (false, false),
                Step::Member => (true, false),
                Step::End => (false, true),
            };
            let from = match self.from {
                Some(from) => from,
                None if is_end => return None,
                None => {
                    self.from = is_member.then_some(self.at);
                    continue;
                }
            };
            if is_end || is_member && self.at - from >= LEAST {
                self.from = (!is_end).then_some(self.at);
                return (from < self.at).then_some(from..self.at);
            }
        }
        None
    }

    /// Passes over what comes next. `None`: it is not there yet.
    fn step(&mut self, file: &Stream) -> Option<Step> {
        let (length, is_whole) = file.growth().length();
        let there = length.saturating_sub(self.at);
        if there < HEADER as u64 && !is_whole {
            return None;
        }
        let mut head = [0; HEADER];
        let n = file.peek(self.at, &mut head).unwrap_or(0);
        let mut within = self.within;
        match M::step(&mut within, &head[..n]) {
            Some((bytes, is_member)) if bytes <= there => {
                self.within = within;
                self.at += bytes;
                Some(if is_member { Step::Member } else { Step::Part })
            }
            Some(_) if !is_whole => None,
            _ => Some(Step::End),
        }
    }
}

/// What was passed over.
enum Step {
    Part,
    /// A member has ended with it.
    Member,
    /// Nothing: the file ends here, or it cannot be told what comes.
    End,
}
