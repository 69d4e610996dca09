//! In which base directory a repository is, or will be.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::AccessFlags;

use super::{Repository, network};
use crate::console::Console;
use crate::durable::Dir;
use crate::error::{Error, Result, spoken};
use crate::units::Bytes;

/// What the command line says of where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Base directories, in order of preference.
    pub directories: Vec<PathBuf>,
    /// Folded and checked; `None` for the base itself.
    pub name: Option<PathBuf>,
    /// The repofile's name, or an absolute path.
    pub file: PathBuf,
    /// May it be on a network file system, where locks prove to work?
    pub allow_network_fs: bool,
}

impl Spec {
    /// Where it could be, best first.
    pub fn candidates(&self) -> impl Iterator<Item = Repository> {
        self.directories
            .iter()
            .map(|base| Repository::new(base, self))
    }

    /// Where it could also be: the base directories after that of `repository`.
    pub fn later_than(&self, repository: &Repository) -> impl Iterator<Item = Repository> {
        self.candidates()
            .skip_while(move |candidate| candidate != repository)
            .skip(1)
    }

    /// The repository, where it already is: the first base that has it.
    pub fn find(&self) -> Result<Option<Repository>> {
        let mut problems = Vec::new();
        for repository in self.candidates() {
            match repository.exists() {
                Ok(true) => return Ok(Some(repository)),
                found => problems.push(found.err()),
            }
        }
        // A base that can't be looked into may hold it. One on a network file system does not
        // count, unless there is no other.
        let on_network = |problem: &Option<Error>| matches!(problem, Some(Error::NetworkFs { .. }));
        let only_network = problems.iter().all(on_network);
        let mut problems = problems.into_iter().flatten();
        match problems.find(|problem| only_network || matches!(problem, Error::Foreign { .. })) {
            Some(problem) => Err(problem),
            None => Ok(None),
        }
    }

    /// Where the repository is, or the first base whose usable space holds `size`.
    ///
    /// # Errors
    /// [`Error::NoPlace`]
    pub fn choose(&self, size: Bytes, console: &Console) -> Result<Repository> {
        if let Some(repository) = self.find()? {
            return Ok(repository);
        }
        let mut problems = Vec::new();
        for repository in self.candidates() {
            match self.usable(repository.base(), size) {
                Ok(()) => {
                    for problem in problems {
                        console.warn(problem);
                    }
                    return Ok(repository);
                }
                Err(problem) => problems.push(problem),
            }
        }
        Err(Error::NoPlace {
            problem: problems.join("; "),
        })
    }

    /// Can `base` take a repository of this size? What a plain user may write counts (`f_bavail`),
    /// not what is reserved for root.
    fn usable(&self, base: &Path, size: Bytes) -> Result<(), String> {
        let shown = if base.as_os_str().is_empty() {
            Path::new(".")
        } else {
            base
        };
        let cannot = |errno: nix::errno::Errno| {
            format!(
                "`{}` cannot be used: {}",
                shown.display(),
                spoken(&errno.into())
            )
        };
        // The reference made the base of an unnamed repository.
        let mut at = shown;
        if self.name.is_none() && !at.exists() {
            at = at
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
        }
        let access = AccessFlags::W_OK | AccessFlags::X_OK;
        nix::unistd::eaccess(at, access).map_err(cannot)?;
        if !self.allow_network_fs {
            let local = Dir::open(at).and_then(|dir| network::refuse(&dir));
            local.map_err(|error| error.to_string())?;
        }
        let free = fs2::available_space(at)
            .map_err(|error| format!("`{}` cannot be used: {}", shown.display(), spoken(&error)))?;
        if free < size.0 {
            let free = Bytes(free);
            return Err(format!(
                "`{}` has {free} of the {size} needed",
                shown.display()
            ));
        }
        let inodes = statvfs(at).map_err(cannot)?;
        if size.0 > 0 && inodes.files() > 0 && inodes.files_available() == 0 {
            return Err(format!("`{}` has no inodes left", shown.display()));
        }
        Ok(())
    }
}
