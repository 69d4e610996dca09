//! The words after the options: parsing, canonical spelling, running.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::{Site, archive, checksum, dirac, file, http};
use crate::error::{Error, Result};

/// One module of a stack.
#[derive(Debug, Clone)]
pub enum Module {
    Http(http::Http),
    File(file::Copy),
    Dirac(dirac::Dirac),
    Checksum(checksum::Checksum),
    Tar(archive::Tar),
    Dummy,
}

/// A loader and what stands above it, lowest first; `dummy` may stand alone.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    pub modules: Vec<Module>,
}

const KNOWN: &str = "loaders `http:URL`, `https://…`, `file:PATH`, `dirac:LFN`; transformations \
     `md5:HEX` `sha1:HEX` `sha256:HEX` `sha512:HEX` `blake3:HEX` `adler32:HEX` `crc32:HEX`, \
     `tar`, `tar:drop`, `tar:strip=N`, `dummy`";

/// Reads the words of the command line. A loader begins a new stack. The warnings are for
/// arguments that are ignored, as the reference ignored them.
///
/// # Errors
/// [`Error::Usage`]: an unknown module, an argument that is none, a transformation without a
/// loader below it.
pub fn parse(words: &[OsString]) -> Result<(Vec<Stack>, Vec<String>)> {
    let mut stacks: Vec<Stack> = Vec::new();
    let mut warnings = Vec::new();
    for word in words {
        let bytes = word.as_bytes();
        let (class, argument) = match bytes.iter().position(|&byte| byte == b':') {
            Some(colon) => (
                &bytes[..colon],
                Some(OsStr::from_bytes(&bytes[colon + 1..])),
            ),
            None => (bytes, None),
        };
        let required = |form: &str| {
            argument
                .filter(|argument| !argument.is_empty())
                .ok_or_else(|| Error::Usage {
                    problem: format!("module `{}` needs an argument", word.display()),
                    hint: Some(format!("write `{form}`")),
                })
        };
        let module = match class {
            // `https://host/f` as typed is the URL itself, `http://host/f` (h20) likewise
            b"http" | b"https" if argument.is_some_and(|a| a.as_bytes().starts_with(b"//")) => {
                Module::Http(http::Http::parse(word)?)
            }
            b"http" => Module::Http(http::Http::parse(required("http:URL")?)?),
            b"file" => Module::File(file::Copy::parse(required("file:PATH")?)?),
            b"dirac" => Module::Dirac(dirac::Dirac::parse(required("dirac:LFN")?)?),
            b"tar" => {
                let (tar, warning) = archive::Tar::parse(argument)?;
                warnings.extend(warning);
                Module::Tar(tar)
            }
            b"dummy" => {
                if let Some(argument) = argument.filter(|argument| !argument.is_empty()) {
                    warnings.push(format!(
                        "`dummy` ignores its argument `{}`",
                        argument.display()
                    ));
                }
                Module::Dummy
            }
            _ => match checksum::Checksum::parse(class, argument)? {
                Some(checksum) => Module::Checksum(checksum),
                None => {
                    return Err(Error::Usage {
                        problem: format!("unknown module `{}`", word.display()),
                        hint: Some(format!("known are the {KNOWN}")),
                    });
                }
            },
        };
        if module.is_loader() || stacks.is_empty() {
            stacks.push(Stack::default());
        }
        let stack = stacks.last_mut().expect("just pushed");
        let needs_loader = !module.is_loader() && !matches!(module, Module::Dummy);
        if needs_loader && stack.loader().is_none() {
            return Err(Error::Usage {
                problem: format!("`{}` has no loader below it", word.display()),
                hint: Some(format!(
                    "put a loader to its left, as in `http:URL {}`",
                    word.display()
                )),
            });
        }
        stack.modules.push(module);
    }
    Ok((stacks, warnings))
}

impl Stack {
    pub fn loader(&self) -> Option<&Module> {
        self.modules.first().filter(|module| module.is_loader())
    }

    /// Does a checksum in this stack say which bytes the loader must bring? Then where they come
    /// from is no part of what the stack means. 32-bit sums and short prefixes pin nothing.
    pub fn pin(&self) -> Option<&checksum::Checksum> {
        self.modules.iter().find_map(|module| match module {
            Module::Checksum(checksum) if checksum.pins() => Some(checksum),
            _ => None,
        })
    }
}

impl Module {
    pub fn is_loader(&self) -> bool {
        matches!(self, Module::Http(_) | Module::File(_) | Module::Dirac(_))
    }

    /// Does it read the loader's file, and nothing that modules between them made? Then it may do so
    /// while the file comes.
    pub fn reads_file(&self) -> bool {
        matches!(self, Module::Checksum(_) | Module::Tar(_))
    }

    /// The name of the file a loader brings.
    pub fn file_name(&self) -> Option<&OsStr> {
        match self {
            Module::Http(http) => Some(http.file_name()),
            Module::File(file) => Some(file.file_name()),
            Module::Dirac(dirac) => Some(dirac.file_name()),
            _ => None,
        }
    }

    /// Where a loader's bytes come from, in full: part of the signature where nothing pins them.
    /// Never shown: it may carry secrets.
    pub fn source(&self) -> Option<&OsStr> {
        match self {
            Module::Http(http) => Some(http.source()),
            Module::File(file) => Some(file.source()),
            Module::Dirac(dirac) => Some(dirac.source()),
            _ => None,
        }
    }

    /// Does the work of this module.
    ///
    /// # Errors
    /// What the module's own page says; nothing of a failed run counts.
    pub fn run(&self, site: &mut dyn Site) -> Result<()> {
        match self {
            Module::Http(http) => http.run(site),
            Module::File(file) => file.run(site),
            Module::Dirac(dirac) => dirac.run(site),
            Module::Checksum(checksum) => checksum.run(site),
            Module::Tar(tar) => tar.run(site),
            Module::Dummy => {
                site.console().say("dummy: load");
                Ok(())
            }
        }
    }
}

/// One canonical spelling for each meaning, with no secrets in it (no user-info, no query).
impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Module::Http(http) => http.fmt(f),
            Module::File(file) => file.fmt(f),
            Module::Dirac(dirac) => dirac.fmt(f),
            Module::Checksum(checksum) => checksum.fmt(f),
            Module::Tar(tar) => tar.fmt(f),
            Module::Dummy => f.write_str("dummy"),
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, module) in self.modules.iter().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            module.fmt(f)?;
        }
        Ok(())
    }
}
