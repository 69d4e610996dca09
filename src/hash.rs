//! What a file's content digests to, as the journal keeps it: `ALGORITHM:HEX`, always the whole
//! digest. What sc digests for its own sake it digests with BLAKE3; where a checksum of the stack
//! has read the file anyway, that one's digest is what is kept.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A digest and its algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hash {
    Blake3([u8; 32]),
    /// `md5:…`, lower case.
    Other(Box<str>),
}

impl Hash {
    /// Of these pieces, one after the other.
    pub fn of(pieces: &[impl std::ops::Deref<Target = [u8]>]) -> Hash {
        if let [one] = pieces {
            return Hash::Blake3(*blake3::hash(one).as_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        for piece in pieces {
            hasher.update(piece);
        }
        hasher.into()
    }

    /// The text of a record. `None`: it is no hash.
    pub fn parse(text: &str) -> Option<Hash> {
        match text.split_once(':')? {
            ("blake3", hex) => {
                let mut bytes = [0; 32];
                match base16ct::lower::decode(hex, &mut bytes) {
                    Ok(decoded) if decoded.len() == 32 => Some(Hash::Blake3(bytes)),
                    _ => None,
                }
            }
            ("", _) | (_, "") => None,
            _ => Some(Hash::Other(text.into())),
        }
    }

    /// Which algorithm, and the digits.
    pub fn split(&self) -> (String, String) {
        let text = self.to_string();
        let (algorithm, hex) = text.split_once(':').unwrap_or((&text, ""));
        (algorithm.to_owned(), hex.to_owned())
    }
}

impl From<blake3::Hasher> for Hash {
    fn from(hasher: blake3::Hasher) -> Hash {
        Hash::Blake3(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hash::Blake3(bytes) => {
                let mut hex = [0; 64];
                let hex = base16ct::lower::encode_str(bytes, &mut hex).map_err(|_| fmt::Error)?;
                write!(f, "blake3:{hex}")
            }
            Hash::Other(text) => f.write_str(text),
        }
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(from)?;
        Hash::parse(&text).ok_or_else(|| serde::de::Error::custom("no hash"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_back_as_it_was_written() {
        let abc = Hash::of(&[&b"a"[..], b"bc"]);
        assert_eq!(abc, Hash::of(&[&b"abc"[..]]));
        let text = "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(abc.to_string(), text);
        assert_eq!(Hash::parse(text), Some(abc));
        let md5 = Hash::parse("md5:900150983cd24fb0d6963f7d28e17f72").unwrap();
        assert_eq!(
            md5.split(),
            ("md5".into(), "900150983cd24fb0d6963f7d28e17f72".into())
        );
    }

    #[test]
    fn what_is_no_hash_is_none() {
        for text in ["", "md5", "md5:", ":00", "blake3:00", "blake3:zz"] {
            assert_eq!(Hash::parse(text), None, "{text}");
        }
    }
}
