//! `--doctor`: would the other actions work here, and if not, why?
//!
//! What each `sc` takes for granted is looked at, and told line by line: the base directories, the
//! holder, proxies and authorities, and every setting with where it comes from. Nothing is changed;
//! what must be tried is tried in a directory of our own, which is gone afterwards.
//!
//! The exit status is that of the first error told. A base directory that cannot be used is a
//! warning while another one can: `--use` passes over it as well.

mod directory;

use serde_json::{Value, json};

use super::who;
use crate::console;
use crate::error::Result;
use crate::origin::Origin;
use crate::process;
use crate::report;
use crate::request::{Doctor, Request, Setting, Who};

/// What was found out about one thing.
struct Finding {
    verdict: Verdict,
    /// Stable, for programs: `locks`.
    check: &'static str,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Not good, not bad; or nothing is proven.
    Note,
    /// Works here and now, and may not for long.
    Warning,
    /// Does not work: the exit status of the action that meets it.
    Error(u8),
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Good => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Error(_) => "error",
        }
    }
}

fn finding(verdict: Verdict, check: &'static str, text: impl Into<String>) -> Finding {
    let text = console::shown(&text.into());
    Finding {
        verdict,
        check,
        text,
    }
}

/// Returns the exit status.
pub fn doctor(request: &Request, doctor: &Doctor) -> Result<u8> {
    let mut findings = directory::all(request);
    findings.push(holder(request));
    network(request, &mut findings);
    let status = findings.iter().find_map(|finding| match finding.verdict {
        Verdict::Error(status) => Some(status),
        _ => None,
    });
    let status = status.unwrap_or(0);
    report::text(&match doctor.json {
        true => format!("{}\n", as_json(&findings, &doctor.settings, status)),
        false => as_text(&findings, &doctor.settings),
    })?;
    Ok(status)
}

/// Whom a `--use` from here would be registered for.
fn holder(request: &Request) -> Finding {
    let say = |verdict, text| finding(verdict, "holder", text);
    match request.holder.who {
        Who::Parent => {}
        Who::Process(pid) if process::is_gone(pid) => {
            return say(
                Verdict::Error(2),
                format!("holder: there is no process {pid} (`--pid`)"),
            );
        }
        Who::Process(_) | Who::Descriptor(_) | Who::Job(_) => {
            return match who::goes(request) {
                Ok(holder) => say(Verdict::Good, format!("holder: {holder}")),
                Err(error) => say(
                    Verdict::Error(error.exit_status()),
                    format!("holder: {error}"),
                ),
            };
        }
    }
    let parent = nix::unistd::getppid().as_raw();
    match (who::wrapper(), process::command_name(parent)) {
        (Some(name), _) => say(
            Verdict::Warning,
            format!(
                "holder: `{name}` (pid {parent}) ends with the command that it runs, and a use \
                 ends with it; `--pid` names another, `--run` needs none"
            ),
        ),
        (None, Some(name)) => say(Verdict::Good, format!("holder: `{name}` (pid {parent})")),
        (None, None) => say(
            Verdict::Note,
            format!("holder: pid {parent}, of which nothing can be read in /proc"),
        ),
    }
}

fn network(request: &Request, findings: &mut Vec<Finding>) {
    let network = &request.settings.network;
    for (scheme, is_secure) in [("http", false), ("https", true)] {
        let (verdict, text) = match network.shown(is_secure) {
            Ok(None) => (Verdict::Good, "none".into()),
            Ok(Some((proxy, variable))) => (Verdict::Good, format!("{proxy} (`{variable}`)")),
            Err(problem) => (Verdict::Error(69), problem),
        };
        let text = format!("proxy for {scheme}: {text}");
        findings.push(finding(verdict, "proxy", text));
    }
    if network.is_misspelled() {
        findings.push(finding(
            Verdict::Warning,
            "proxy",
            "proxy for http: `HTTP_PROXY` in capitals is not read; set `http_proxy`",
        ));
    }
    if let Some((hosts, variable)) = network.exceptions() {
        findings.push(finding(
            Verdict::Good,
            "proxy",
            format!("no proxy for: {hosts} (`{variable}`)"),
        ));
    }
    match network.authorities() {
        Ok(sources) => findings.extend(sources.into_iter().map(|(source, found)| {
            let verdict = if found == 0 {
                Verdict::Note
            } else {
                Verdict::Good
            };
            finding(
                verdict,
                "authorities",
                format!("authorities for https: {found} from {source}"),
            )
        })),
        Err(problem) => findings.push(finding(
            Verdict::Error(69),
            "authorities",
            format!("authorities for https: {problem}"),
        )),
    }
}

fn as_text(findings: &[Finding], settings: &[Setting]) -> String {
    let mut text = String::new();
    for finding in findings {
        text += &format!("{:<8} {}\n", finding.verdict.word(), finding.text);
    }
    for setting in settings {
        let value = setting.value.as_deref().map(console::shown);
        let value = value.as_deref().unwrap_or("not set");
        text += &match &setting.origin {
            Origin::Default => format!("setting  {}: {value}\n", setting.variable),
            origin => format!("setting  {}: {value} (from {origin})\n", setting.variable),
        };
    }
    text
}

fn as_json(findings: &[Finding], settings: &[Setting], status: u8) -> Value {
    let findings = findings.iter().map(|finding| {
        json!({
            "verdict": finding.verdict.word(),
            "check": finding.check,
            "text": finding.text,
        })
    });
    let settings = settings.iter().map(|setting| {
        let (origin, line) = match &setting.origin {
            Origin::Conf { path, line } => (path.to_string_lossy().into_owned(), Some(line)),
            Origin::CommandLine => ("command line".into(), None),
            Origin::Options => ("SC_OPTIONS".into(), None),
            Origin::Variable(name) => (name.clone(), None),
            Origin::Default => ("default".into(), None),
        };
        json!({
            "variable": setting.variable,
            "value": setting.value.as_deref().map(console::shown),
            "origin": origin,
            "line": line,
        })
    });
    json!({
        "version": report::JSON_VERSION,
        "status": status,
        "findings": findings.collect::<Vec<_>>(),
        "settings": settings.collect::<Vec<_>>(),
    })
}
