//! In which base directory a repository is, or will be.

use std::path::PathBuf;

use super::past::StatsDir;
use super::space::{self, Need, Obstacle};
use super::{Repository, network};
use crate::console::Console;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::share::Kind;

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
    /// `--share`, if it was said.
    pub share: Option<Kind>,
    /// Where it is written down what repositories came to that are gone.
    pub stats_dir: Option<StatsDir>,
}

impl Spec {
    /// Where it could be, best first.
    pub fn candidates(&self) -> impl Iterator<Item = Repository> {
        self.directories
            .iter()
            .map(|base| Repository::new(base, self))
    }

    /// Is it in a base directory before that of `repository` as well?
    pub fn is_in_earlier_base(&self, repository: &Repository) -> bool {
        self.candidates()
            .take_while(|candidate| candidate != repository)
            // one that cannot be looked into was no reason not to come here either
            .any(|earlier| earlier.exists().unwrap_or(false))
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

    /// Where the repository is, or the first base that can take what is needed. `make_room` may
    /// delete what nobody holds in a base that has too little: true if it has enough now.
    ///
    /// # Errors
    /// [`Error::NoPlace`]
    pub fn choose(
        &self,
        need: &Need,
        console: &Console,
        make_room: &mut dyn FnMut(&Repository, u64) -> Result<bool>,
    ) -> Result<Repository> {
        if let Some(repository) = self.find()? {
            return Ok(repository);
        }
        let mut problems = Vec::new();
        for repository in self.candidates() {
            let obstacle = self.usable(&repository, need).err();
            let fits = match &obstacle {
                None => true,
                Some(Obstacle::Room { missing, .. }) => make_room(&repository, *missing)?,
                Some(Obstacle::Other(_)) => false,
            };
            if fits {
                for problem in problems {
                    console.warn(problem);
                }
                return Ok(repository);
            }
            problems.extend(obstacle.map(|obstacle| obstacle.to_string()));
        }
        Err(Error::NoPlace {
            problem: problems.join("; "),
        })
    }

    /// Can the base of `repository` take what is needed?
    pub fn usable(&self, repository: &Repository, need: &Need) -> Result<(), Obstacle> {
        if !self.allow_network_fs
            && let Ok(base) = Dir::open(repository.base())
        {
            network::refuse(&base).map_err(|error| Obstacle::Other(error.to_string()))?;
        }
        space::usable(
            repository.base(),
            self.name.is_none(),
            need,
            &self.directories,
        )
    }
}
