//! Checksums: is the loader's file the one that was asked for?
//!
//! A checksum always looks at the file of the loader below it, also when it stands above `tar`,
//! as in the reference.
//!
//! What can go wrong here is a comparison that is too kind. A prefix (`HEX*`) needs eight digits,
//! or `md5:*` would accept everything; a short digest without the `*` is a typing error, not a
//! prefix; and 32-bit sums are compared as numbers, because catalogues lose their leading zeros
//! (rucio#4127), but have no prefix form: a prefix of 32 bits proves nothing. For the same
//! reason neither they nor prefixes *pin* a content: see [`Checksum::pins`].

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use digest::Digest as _;

use super::Site;
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::signal;

/// Bytes read at a time.
const BUFFER: usize = 256 * 1024;

/// Digits that a prefix must have at least: with fewer, another file passes by accident.
const SHORTEST_PREFIX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Adler32,
    Blake3,
    Crc32,
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn parse(class: &[u8]) -> Option<Algorithm> {
        Some(match class {
            b"adler32" => Algorithm::Adler32,
            b"blake3" => Algorithm::Blake3,
            b"crc32" => Algorithm::Crc32,
            b"md5" => Algorithm::Md5,
            b"sha1" => Algorithm::Sha1,
            b"sha256" => Algorithm::Sha256,
            b"sha512" => Algorithm::Sha512,
            _ => return None,
        })
    }

    /// The module's name.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Adler32 => "adler32",
            Algorithm::Blake3 => "blake3",
            Algorithm::Crc32 => "crc32",
            Algorithm::Md5 => "md5",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Hexadecimal digits of a whole digest.
    fn digits(self) -> usize {
        match self {
            Algorithm::Adler32 | Algorithm::Crc32 => 8,
            Algorithm::Md5 => 32,
            Algorithm::Sha1 => 40,
            Algorithm::Blake3 | Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }

    /// Is it a 32-bit sum, which finds accidents but no malice?
    fn is_sum(self) -> bool {
        matches!(self, Algorithm::Adler32 | Algorithm::Crc32)
    }
}

/// A digest that the file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    /// Lower case; all digits, or only the first ones.
    hex: String,
}

impl Checksum {
    /// `None` where `class` is no checksum.
    ///
    /// # Errors
    /// [`Error::Usage`]: no digits, too few, too many, or something else than digits.
    pub fn parse(class: &[u8], argument: Option<&OsStr>) -> Result<Option<Checksum>> {
        let Some(algorithm) = Algorithm::parse(class) else {
            return Ok(None);
        };
        let argument = argument.unwrap_or_default();
        let (text, is_prefix) = match argument.as_bytes() {
            [text @ .., b'*'] => (text, true),
            text => (text, false),
        };
        let wrong = |problem: String| {
            let form = match algorithm.is_sum() {
                true => format!("`{}:HEX`, 1 to 8 digits", algorithm.name()),
                false => format!(
                    "`{}:HEX`, {} digits, or at least the first {SHORTEST_PREFIX} and a `*`",
                    algorithm.name(),
                    algorithm.digits()
                ),
            };
            Err(Error::Usage {
                problem: format!("`{}:{}`: {problem}", algorithm.name(), argument.display()),
                hint: Some(format!("write {form}")),
            })
        };
        if !text.iter().all(u8::is_ascii_hexdigit) {
            return wrong("not a hexadecimal number".into());
        }
        if is_prefix && algorithm.is_sum() {
            return wrong("a 32-bit sum has no prefix form".into());
        }
        let (found, all) = (text.len(), algorithm.digits());
        let right = match (algorithm.is_sum(), is_prefix) {
            (true, _) => (1..=all).contains(&found),
            (false, true) => (SHORTEST_PREFIX..=all).contains(&found),
            (false, false) => found == all,
        };
        if !right {
            return wrong(match (found, algorithm.is_sum()) {
                (0, _) => "the digits are missing".into(),
                (_, true) => format!("{found} digits where at most {all} are expected"),
                (_, false) => format!("{found} digits where {all} are expected"),
            });
        }
        let hex = String::from_utf8_lossy(text).to_ascii_lowercase();
        let hex = match algorithm.is_sum() {
            true => format!("{hex:0>all$}"),
            false => hex,
        };
        Ok(Some(Checksum { algorithm, hex }))
    }

    /// Is this digest one that it asks for? `None`: it is of another algorithm.
    pub fn fits(&self, hash: &Hash) -> Option<bool> {
        let (algorithm, hex) = hash.split();
        (algorithm == self.algorithm.name()).then(|| hex.starts_with(&self.hex))
    }

    /// Does it say more than a 32-bit sum, so that its digest may stand for the content?
    pub fn is_digest(&self) -> bool {
        !self.algorithm.is_sum()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Does it say which bytes they must be: a whole cryptographic digest?
    pub fn pins(&self) -> bool {
        !self.algorithm.is_sum() && !self.is_prefix()
    }

    fn is_prefix(&self) -> bool {
        self.hex.len() < self.algorithm.digits()
    }

    /// A hasher for the bytes that [`Checksum::verify`] is to judge.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm)
    }

    /// Compares what a hasher of this checksum's algorithm found in `file`.
    ///
    /// # Errors
    /// [`Error::Checksum`] with both digests.
    pub fn verify(&self, file: &Path, digest: &Digest) -> Result<()> {
        if digest.algorithm == self.algorithm && digest.hex.starts_with(&self.hex) {
            return Ok(());
        }
        Err(Error::Checksum {
            file: file.to_owned(),
            algorithm: self.algorithm.name(),
            expected: match self.is_prefix() {
                true => format!("{}*", self.hex),
                false => self.hex.clone(),
            },
            actual: digest.hex.clone(),
        })
    }

    /// Reads the loader's file and compares.
    ///
    /// # Errors
    /// [`Error::Checksum`]; [`Error::Io`]; [`Error::Interrupted`].
    pub fn run(&self, site: &mut dyn Site) -> Result<()> {
        let product = site.below().ok_or_else(|| Error::Internal {
            problem: format!("`{self}` has no file below it"),
        })?;
        let path = Path::new(product.name);
        let mut file = product.open()?;
        let mut hasher = self.hasher();
        let mut buffer = vec![0; BUFFER];
        loop {
            signal::check()?;
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hasher.update(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    signal::check()?;
                    return Err(error).io("cannot read", path);
                }
            }
        }
        let digest = hasher.finish();
        self.verify(path, &digest)?;
        // a 32-bit sum finds accidents; what is recorded shall find all
        if !self.algorithm.is_sum()
            && let Some(hash) = Hash::parse(&format!("{}:{}", self.algorithm.name(), digest.hex))
        {
            site.digested(hash);
        }
        Ok(())
    }
}

/// One canonical spelling: lower case, `*` after a prefix, sums with all their zeros.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)?;
        if self.is_prefix() {
            f.write_str("*")?;
        }
        Ok(())
    }
}

/// What a [`Hasher`] found: lower-case hexadecimal digits, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

/// Digests bytes as they come by, so that a download need not be read a second time.
pub struct Hasher {
    algorithm: Algorithm,
    state: State,
}

enum State {
    Adler32(simd_adler32::Adler32),
    Blake3(Box<blake3::Hasher>),
    Crc32(crc32fast::Hasher),
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Of the algorithm of this name, if there is one.
    pub fn called(name: &str) -> Option<Hasher> {
        Algorithm::parse(name.as_bytes()).map(Hasher::new)
    }

    pub fn new(algorithm: Algorithm) -> Hasher {
        let state = match algorithm {
            Algorithm::Adler32 => State::Adler32(simd_adler32::Adler32::new()),
            Algorithm::Blake3 => State::Blake3(Box::default()),
            Algorithm::Crc32 => State::Crc32(crc32fast::Hasher::new()),
            Algorithm::Md5 => State::Md5(md5::Md5::new()),
            Algorithm::Sha1 => State::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        };
        Hasher { algorithm, state }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Adler32(state) => state.write(bytes),
            State::Blake3(state) => drop(state.update(bytes)),
            State::Crc32(state) => state.update(bytes),
            State::Md5(state) => state.update(bytes),
            State::Sha1(state) => state.update(bytes),
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let hex = base16ct::lower::encode_string;
        Digest {
            algorithm: self.algorithm,
            hex: match self.state {
                State::Adler32(state) => hex(&state.finish().to_be_bytes()),
                State::Blake3(state) => hex(state.finalize().as_bytes()),
                State::Crc32(state) => hex(&state.finalize().to_be_bytes()),
                State::Md5(state) => hex(&state.finalize()),
                State::Sha1(state) => hex(&state.finalize()),
                State::Sha256(state) => hex(&state.finalize()),
                State::Sha512(state) => hex(&state.finalize()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::testing::transformation::FakeSite;

    fn parse(word: &str) -> Result<Checksum> {
        let (class, argument) = match word.split_once(':') {
            Some((class, argument)) => (class, Some(OsStr::new(argument))),
            None => (word, None),
        };
        Ok(Checksum::parse(class.as_bytes(), argument)?.expect("a checksum"))
    }

    fn problem(word: &str) -> String {
        match parse(word) {
            Err(Error::Usage { problem, .. }) => problem,
            other => panic!("{word}: {other:?}"),
        }
    }

    /// Digests of `abc`: RFC 1321, FIPS 180-4, the BLAKE3 test vectors, zlib.
    const OF_ABC: [&str; 7] = [
        "md5:900150983cd24fb0d6963f7d28e17f72",
        "sha1:a9993e364706816aba3e25717850c26c9cd0d89d",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
         2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
        "adler32:024d0127",
        "crc32:352441c2",
    ];

    #[test]
    fn each_algorithm_knows_its_published_digest_of_abc() {
        for word in OF_ABC {
            let checksum = parse(word).unwrap();
            assert_eq!(checksum.to_string(), word);
            let mut site = FakeSite::with_archive("f", b"abc");
            checksum.run(&mut site).unwrap();
            let mut hasher = checksum.hasher();
            hasher.update(b"a");
            hasher.update(b"");
            hasher.update(b"bc");
            checksum.verify(Path::new("f"), &hasher.finish()).unwrap();
        }
    }

    #[test]
    fn each_algorithm_refuses_another_file() {
        for word in OF_ABC {
            let mut site = FakeSite::with_archive("f", b"abd");
            let error = parse(word).unwrap().run(&mut site).unwrap_err();
            assert_eq!(error.exit_status(), 65, "{error}");
        }
    }

    #[test]
    fn upper_case_digits_mean_the_same() {
        for word in OF_ABC {
            let (class, hex) = word.split_once(':').unwrap();
            let upper = format!("{class}:{}", hex.to_ascii_uppercase());
            assert_eq!(parse(&upper).unwrap(), parse(word).unwrap());
        }
    }

    #[test]
    fn a_prefix_of_eight_digits_is_enough_and_pins_nothing() {
        let checksum = parse("sha256:BA7816BF*").unwrap();
        assert_eq!(checksum.to_string(), "sha256:ba7816bf*");
        assert!(!checksum.pins());
        let mut site = FakeSite::with_archive("f", b"abc");
        checksum.run(&mut site).unwrap();
        let error = parse("sha256:ba7816be*")
            .unwrap()
            .run(&mut site)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "wrong sha256 of `f`: expected ba7816be*, got \
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_prefix_of_all_digits_is_the_digest() {
        let checksum = parse("md5:900150983cd24fb0d6963f7d28e17f72*").unwrap();
        assert_eq!(checksum.to_string(), "md5:900150983cd24fb0d6963f7d28e17f72");
        assert!(checksum.pins());
    }

    #[test]
    fn sums_are_numbers_and_pin_nothing() {
        let checksum = parse("adler32:24D0127").unwrap();
        assert_eq!(checksum.to_string(), "adler32:024d0127");
        assert!(!checksum.pins());
        checksum
            .run(&mut FakeSite::with_archive("f", b"abc"))
            .unwrap();
        assert_eq!(parse("crc32:0").unwrap().to_string(), "crc32:00000000");
        parse("crc32:0")
            .unwrap()
            .run(&mut FakeSite::with_archive("f", b""))
            .unwrap();
    }

    #[test]
    fn a_wrong_argument_is_a_usage_error_that_says_what_is_expected() {
        assert_eq!(problem("md5"), "`md5:`: the digits are missing");
        assert_eq!(problem("md5:"), "`md5:`: the digits are missing");
        assert_eq!(problem("md5:*"), "`md5:*`: the digits are missing");
        assert_eq!(
            problem("md5:abcdef"),
            "`md5:abcdef`: 6 digits where 32 are expected"
        );
        assert_eq!(
            problem("md5:abcdef0*"),
            "`md5:abcdef0*`: 7 digits where 32 are expected"
        );
        assert_eq!(problem("sha1:xyz"), "`sha1:xyz`: not a hexadecimal number");
        assert_eq!(problem("sha1: 12"), "`sha1: 12`: not a hexadecimal number");
        assert_eq!(
            problem("crc32:123456789"),
            "`crc32:123456789`: 9 digits where at most 8 are expected"
        );
        assert_eq!(
            problem("adler32:12345678*"),
            "`adler32:12345678*`: a 32-bit sum has no prefix form"
        );
        assert_eq!(problem("adler32:"), "`adler32:`: the digits are missing");
    }

    #[test]
    fn other_words_are_no_checksums() {
        assert_eq!(Checksum::parse(b"MD5", None).unwrap(), None);
        assert_eq!(Checksum::parse(b"tar", None).unwrap(), None);
    }
}
