//! Which action it is, and what goes with no other.

use super::given::{Given, Values, settings};
use super::{Action, Doctor, Form, Gc, Run, Verify};
use crate::cli::{Generate, Typed};
use crate::error::{Error, Result};
use crate::origin::Origin;
use crate::units::{self, Bytes};

/// The actions typed, as options.
fn actions(typed: &Typed) -> Vec<&'static str> {
    [
        ("--use", typed.use_),
        ("--unuse", typed.unuse),
        ("--location", typed.location),
        ("--run", typed.run),
        ("--status", typed.status),
        ("--list", typed.list),
        ("--stats", typed.stats),
        ("--verify", typed.verify),
        ("--gc", typed.gc),
        ("--clear", typed.clear),
        ("--doctor", typed.doctor),
        ("--generate", typed.generate.is_some()),
    ]
    .into_iter()
    .filter_map(|(option, typed)| typed.then_some(option))
    .collect()
}

/// `alone` stands alone: the other action, if there is one, is an error.
fn alone(typed: &Typed, alone: &str, reason: &str) -> Result<()> {
    match actions(typed).into_iter().find(|action| *action != alone) {
        None => Ok(()),
        Some(other) => Err(Error::Usage {
            problem: format!("`{alone}` and `{other}` exclude each other"),
            hint: Some(reason.to_owned()),
        }),
    }
}

pub(super) fn generated(typed: &Typed) -> Result<Option<Generate>> {
    let Some(value) = &typed.generate else {
        return Ok(None);
    };
    alone(
        typed,
        "--generate",
        "`--generate` prints a text and does nothing else",
    )?;
    let given = Given {
        value: value.clone(),
        name: "--generate",
        origin: Origin::CommandLine,
    };
    let what = |text: &str| match text {
        "man" => Ok(Generate::Man),
        "bash" => Ok(Generate::Bash),
        "zsh" => Ok(Generate::Zsh),
        "fish" => Ok(Generate::Fish),
        _ => Err(format!("`{text}` is nothing it can print")),
    };
    given
        .read(what, "known are `man`, `bash`, `zsh`, `fish`")
        .map(Some)
}

pub(super) fn read(typed: &Typed, values: &Values) -> Result<Action> {
    if typed.close && !typed.run {
        return Err(Error::usage("`--close` means nothing without `--run`"));
    }
    for (option, given, of) in [
        (
            "--json",
            typed.json,
            &["--status", "--list", "--stats", "--verify", "--doctor"][..],
        ),
        ("--prometheus", typed.prometheus, &["--stats"]),
        ("--paranoid", typed.paranoid, &["--verify"]),
        ("--repair", typed.repair, &["--verify"]),
        ("--dry-run", typed.dry_run, &["--gc", "--clear"]),
        ("--force", typed.force, &["--clear"]),
        ("--older-than", typed.older_than.is_some(), &["--gc"]),
        ("--free", typed.free.is_some(), &["--gc"]),
        ("--refresh", typed.refresh, &["--use", "--run"]),
    ] {
        let is_used = actions(typed).iter().any(|action| of.contains(action));
        if given && !is_used {
            let without: Vec<String> = of.iter().map(|action| format!("`{action}`")).collect();
            return Err(Error::usage(format!(
                "`{option}` means nothing without {}",
                without.join(" or ")
            )));
        }
    }
    if typed.run {
        alone(
            typed,
            "--run",
            "`--run` itself uses, tells CMD the place in `SC_LOCATION`, and gives back",
        )?;
        if typed.command.is_empty() {
            return Err(Error::Usage {
                problem: "`--run` needs a command after `--`".into(),
                hint: Some("write `sc --run [OPTION]... [MODULE]... -- CMD [ARG]...`".into()),
            });
        }
        return Ok(Action::Run(Run {
            command: typed.command.clone(),
            inherit: !typed.close,
        }));
    }
    if typed.status {
        alone(
            typed,
            "--status",
            "ask for the status in a command of its own",
        )?;
        return Ok(Action::Status { json: typed.json });
    }
    if typed.list {
        alone(typed, "--list", "ask for the list in a command of its own")?;
        return Ok(Action::List { json: typed.json });
    }
    if typed.stats {
        alone(typed, "--stats", "ask for them in a command of their own")?;
        let form = match (typed.json, typed.prometheus) {
            (true, true) => {
                return Err(Error::usage(
                    "`--json` and `--prometheus` exclude each other",
                ));
            }
            (true, false) => Form::Json,
            (false, true) => Form::Prometheus,
            (false, false) => Form::Text,
        };
        return Ok(Action::Stats(form));
    }
    if typed.verify {
        alone(
            typed,
            "--verify",
            "verify the repository in a command of its own",
        )?;
        if typed.repair && typed.modules.is_empty() {
            return Err(Error::Usage {
                problem: "`--repair` needs the modules, to load by".into(),
                hint: Some("say them as `--use` was told them".into()),
            });
        }
        return Ok(Action::Verify(Verify {
            json: typed.json,
            paranoid: typed.paranoid,
            repair: typed.repair,
        }));
    }
    if typed.gc {
        alone(typed, "--gc", "`--gc` is not about one repository")?;
        return Ok(Action::Gc(Gc {
            dry_run: typed.dry_run,
            older_than: match values.get(typed.older_than.clone(), "--older-than", "") {
                Some(given) => Some(given.read(units::duration, units::DURATIONS)?),
                None => None,
            },
            free: match values.get(typed.free.clone(), "--free", "") {
                Some(given) => Some(given.read(str::parse, Bytes::FORMS)?),
                None => None,
            },
        }));
    }
    if typed.clear {
        alone(typed, "--clear", "`--clear` deletes, and does nothing else")?;
        return Ok(Action::Clear {
            dry_run: typed.dry_run,
            force: typed.force,
        });
    }
    if typed.doctor {
        alone(typed, "--doctor", "ask the doctor in a command of its own")?;
        return Ok(Action::Doctor(Doctor {
            json: typed.json,
            settings: settings(values),
        }));
    }
    Ok(Action::InTurn {
        use_: typed.use_,
        unuse: typed.unuse,
        location: typed.location,
    })
}
