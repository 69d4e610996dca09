//! `--status`: what is there, who holds it. Takes no lock and makes nothing.

use crate::error::Result;
use crate::report;
use crate::request::Request;

pub fn status(request: &Request, json: bool) -> Result<()> {
    let repository = request.repository.find()?;
    let repofile = match &repository {
        Some(repository) => repository.peek()?,
        None => None,
    };
    // what is not ours has no holders that could be judged
    let control = repository.as_ref().and_then(|it| it.control().ok()?);
    let location = repository.map(|repository| repository.location());
    report::status(
        location.as_deref(),
        repofile.as_ref(),
        control.as_ref(),
        json,
    )
}
