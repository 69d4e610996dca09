//! What is to be loaded, stage by stage, and the signatures that say when two loads are the same.
//!
//! A stage's signature is a digest of the stack up to it: of canonical spellings, so that the order
//! of options, the case of a checksum and defaults make no difference. Where a checksum says which
//! bytes a loader must bring, it does not matter whence they come, and the source is left out.

use std::ffi::OsStr;
use std::ops::Range;

use crate::durable::Dir;
use crate::error::Result;
use crate::stack::{Module, Stack};

/// What is to be loaded, stage by stage.
#[derive(Debug)]
pub struct Plan<'a> {
    pub stages: Vec<Stage<'a>>,
    /// Digest of all stacks: what the repository means.
    pub signature: String,
    /// The stacks as people read them.
    pub definition: String,
    /// Digest of where the bytes come from: two loads that agree in it fail alike.
    pub attempt: String,
}

#[derive(Debug)]
pub struct Stage<'a> {
    pub module: &'a Module,
    /// Digest of the stack up to here.
    pub signature: String,
    /// The stage of this stack's loader.
    pub loader: Option<usize>,
    /// Does a checksum stand somewhere above, or here?
    pub is_judged: bool,
    /// Is the file of this loader deleted when it is unpacked?
    pub is_dropped: bool,
}

fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

impl<'a> Plan<'a> {
    pub fn new(stacks: &'a [Stack]) -> Plan<'a> {
        let mut stages: Vec<Stage> = Vec::new();
        let mut attempt = Vec::new();
        for stack in stacks {
            let first = stages.len();
            let mut below = String::new();
            let loader = stack.loader().map(|_| first);
            for module in &stack.modules {
                let signature = match (module.file_name(), module.source()) {
                    (Some(name), Some(source)) => {
                        attempt.extend_from_slice(digest(&[source.as_encoded_bytes()]).as_bytes());
                        // Where a checksum says which bytes they are, it does not matter whence
                        // they come.
                        let content = match stack.pin() {
                            Some(pin) => pin.to_string().into_bytes(),
                            None => source.as_encoded_bytes().to_vec(),
                        };
                        digest(&[b"loader", name.as_encoded_bytes(), &content])
                    }
                    _ => digest(&[below.as_bytes(), module.to_string().as_bytes()]),
                };
                below.clone_from(&signature);
                stages.push(Stage {
                    module,
                    signature,
                    loader,
                    is_judged: stack
                        .modules
                        .iter()
                        .any(|m| matches!(m, Module::Checksum(_))),
                    is_dropped: module.is_loader()
                        && stack
                            .modules
                            .iter()
                            .any(|m| matches!(m, Module::Tar(tar) if tar.drop)),
                });
            }
        }
        let signatures: Vec<&[u8]> = stages
            .iter()
            .map(|stage| stage.signature.as_bytes())
            .collect();
        let definition: Vec<String> = stacks.iter().map(Stack::to_string).collect();
        Plan {
            signature: digest(&signatures),
            attempt: digest(&[&attempt]),
            definition: definition.join(" "),
            stages,
        }
    }

    /// The files that the loaders bring.
    pub fn files(&self) -> impl Iterator<Item = &OsStr> {
        self.stages
            .iter()
            .filter_map(|stage| stage.module.file_name())
    }

    /// The stages that may run at once, beginning with the `n`-th: a loader, and above it those that
    /// read nothing but its file.
    pub fn together(&self, n: usize) -> Range<usize> {
        let reads_file = |stage: &&Stage| stage.module.reads_file();
        let above = match self.stages[n].module.is_loader() || self.stages[n].module.reads_file() {
            true => self.stages[n + 1..].iter().take_while(reads_file).count(),
            false => 0,
        };
        n..n + 1 + above
    }

    /// The loader below stage `n`, or this one, if its file stays and no checksum above it digests
    /// it: 32-bit sums don't.
    pub fn undigested(&self, n: usize) -> Option<usize> {
        let loader = self.stages[n].loader?;
        let is_digest = |stage: &Stage| match stage.module {
            Module::Checksum(checksum) => stage.loader == Some(loader) && checksum.is_digest(),
            _ => false,
        };
        let is_wanted = !self.stages[loader].is_dropped && !self.stages.iter().any(is_digest);
        is_wanted.then_some(loader)
    }

    /// What these stacks bring and is not at the top of `root`, as far as names tell: all that can
    /// be asked of a repository that the reference loaded.
    pub fn missing(&self, root: &Dir) -> Result<Option<String>> {
        for stage in &self.stages {
            let Some(loader) = stage.loader.and_then(|loader| self.stages.get(loader)) else {
                continue;
            };
            let name = loader.module.file_name().unwrap_or_default();
            let mut list = name.to_owned();
            list.push(".list");
            let is_tar = matches!(stage.module, Module::Tar(_));
            let there = |name: &OsStr| root.lstat(name).map(|stat| stat.is_some());
            for name in [Some(name), is_tar.then_some(&*list)].into_iter().flatten() {
                if !there(name)? {
                    return Ok(Some(name.display().to_string()));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::stack;

    fn plan_of(words: &str) -> (String, String) {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        let (stacks, _) = stack::parse(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let plan = Plan::new(&stacks);
        (plan.signature, plan.definition)
    }

    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

    #[test]
    fn spelling_order_and_defaults_are_no_part_of_the_signature() {
        for (one, other) in [
            ("file:/a/f tar", "file:/a/f tar:strip=0"),
            ("file:/a/f tar:drop,strip=1", "file:/a/f tar:strip=1,drop"),
            ("file:/a/f tar:strip=1", "file:/a/f tar:strip=01"),
            ("file:/a/f adler32:00c0ffee", "file:/a/f adler32:C0FFEE"),
            ("file:/a/f crc32:0000000a", "file:/a/f crc32:A"),
            ("http:http://h/f", "http://h/f"),
            (
                "file:/a/f md5:d41d8cd98f00b204e9800998ecf8427e",
                "file:/a/f md5:D41D8CD98F00B204E9800998ECF8427E",
            ),
        ] {
            assert_eq!(plan_of(one), plan_of(other), "{one} and {other}");
        }
        // pinned by a checksum, the bytes are the same wherever they come from
        let pinned = |source: &str| plan_of(&format!("{source} md5:{MD5} tar")).0;
        assert_eq!(pinned("file:/a/f"), pinned("http://h/x/f"));
    }

    #[test]
    fn what_is_loaded_makes_the_signature() {
        let all = [
            "file:/a/f",
            "file:/b/f",
            "file:/a/g",
            "file:/a/f tar",
            "file:/a/f tar:drop",
            "file:/a/f tar:strip=1",
            "file:/a/f adler32:1",
            "file:/a/f adler32:2",
            "file:/a/f tar adler32:1",
            "file:/a/f adler32:1 tar",
            "file:/a/f file:/b/g",
            "file:/b/g file:/a/f",
            "http://h/f?a=1",
            "http://h/f?a=2",
            "dummy",
            "dummy dummy",
        ];
        let mut signatures: Vec<String> = all.iter().map(|words| plan_of(words).0).collect();
        signatures.sort();
        signatures.dedup();
        assert_eq!(signatures.len(), all.len());
    }
}
