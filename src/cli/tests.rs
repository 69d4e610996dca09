use proptest::prelude::*;

use super::*;

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn parse(before: Vec<OsString>, line: Vec<OsString>) -> Result<Parsed> {
    let conf = Vec::new();
    let words = Words { conf, before, line };
    super::parse(words, &|_| false).map(|(parsed, _)| parsed)
}

fn typed(words: &[&str]) -> Typed {
    match parse(Vec::new(), os(words)) {
        Ok(Parsed::Typed(typed)) => *typed,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn error(words: &[&str]) -> (String, String) {
    match parse(Vec::new(), os(words)) {
        Err(Error::Usage { problem, hint }) => (problem, hint.unwrap_or_default()),
        other => panic!("{words:?}: {other:?}"),
    }
}

fn printed(words: &[&str]) -> String {
    match parse(Vec::new(), os(words)) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn clap_finds_nothing_wrong_with_the_options() {
    command().debug_assert();
}

#[test]
fn a_valued_option_is_read_in_every_spelling() {
    for (words, name, modules) in [
        (&["-n", "x"][..], "x", &[][..]),
        (&["-nx"], "x", &[]),
        (&["-n=x"], "=x", &[]),
        (&["--name", "x"], "x", &[]),
        (&["--name=x"], "x", &[]),
        (&["--name=x=y"], "x=y", &[]),
        (&["--na", "x"], "x", &[]),
        (&["--n=x"], "x", &[]),
        (&["--name="], "", &[]),
        (&["--name", ""], "", &[]),
        (&["-n", ""], "", &[]),
        // the next word, whatever it looks like
        (&["-n", "-x"], "-x", &[]),
        (&["-n", "--"], "--", &[]),
        (&["--name", "--use"], "--use", &[]),
        (&["--name", "--help"], "--help", &[]),
        (&["-n", "-d", "b"], "-d", &["b"]),
        // the last one wins
        (&["-n", "x", "--name=y"], "y", &[]),
        (&["--name=x", "m", "-ny"], "y", &["m"]),
        (&["--name=x", "--name="], "", &[]),
    ] {
        let expected = Typed {
            name: Some(name.into()),
            modules: os(modules),
            ..Typed::default()
        };
        assert_eq!(typed(words), expected, "{words:?}");
    }
}

#[test]
fn letters_without_a_value_may_be_bundled_with_others() {
    assert_eq!(
        typed(&["-dbn", "x"]),
        Typed {
            directories: Some("bn".into()),
            modules: os(&["x"]),
            ..Typed::default()
        }
    );
    assert_eq!(
        typed(&["-vvn", "x", "y"]),
        Typed {
            verbose: 2,
            name: Some("x".into()),
            modules: os(&["y"]),
            ..Typed::default()
        }
    );
}

#[test]
fn an_abbreviation_is_looked_up_in_the_reference_first() {
    for (word, full) in [
        ("--l", "location"),
        ("--loc", "location"),
        ("--us", "use"),
        ("--use", "use"),
        ("--un", "unuse"),
        // ours; `--n` and `--s` stay the reference's
        ("--ru", "run"),
        ("--no", "no_wait"),
        ("--statu", "status"),
        ("--js", "json"),
        ("--clo", "close"),
        ("--q", "quiet"),
    ] {
        let flag = |name: &str| full == name;
        let expected = Typed {
            use_: flag("use"),
            unuse: flag("unuse"),
            location: flag("location"),
            run: flag("run"),
            status: flag("status"),
            no_wait: flag("no_wait"),
            quiet: flag("quiet"),
            json: flag("json"),
            close: flag("close"),
            ..Typed::default()
        };
        assert_eq!(typed(&[word]), expected, "{word}");
    }
    for (word, of) in [
        ("--f=1", "file"),
        ("--d=1", "directories"),
        ("--dir=1", "directories"),
        ("--s=1", "size"),
        ("--si=1", "size"),
        ("--n=1", "name"),
        ("--pi=1", "pid"),
        ("--t=1", "timeout"),
        (
            "--sta=1",
            "--stall-timeout`, `--stats-dir`, `--stats` or `--status",
        ),
        ("--r=1", "--retries` or `--run"),
    ] {
        match parse(Vec::new(), os(&[word])) {
            Ok(Parsed::Typed(typed)) => {
                let one = Some(OsString::from("1"));
                let found = [
                    ("file", typed.file),
                    ("directories", typed.directories),
                    ("size", typed.size),
                    ("name", typed.name),
                    ("pid", typed.pid),
                    ("timeout", typed.timeout),
                ];
                assert_eq!(
                    found.iter().find(|(_, value)| *value == one).map(|f| f.0),
                    Some(of),
                    "{word}"
                );
            }
            Err(error) => assert!(error.to_string().contains(of), "{word}: {error}"),
            other => panic!("{word}: {other:?}"),
        }
    }
}

#[test]
fn options_and_modules_may_be_mixed() {
    assert_eq!(
        typed(&[
            "http:u", "--use", "-s", "1GB", "-", "md5:0", "--use", "", "-n", "x"
        ]),
        Typed {
            use_: true,
            size: Some("1GB".into()),
            name: Some("x".into()),
            modules: os(&["http:u", "-", "md5:0", ""]),
            ..Typed::default()
        }
    );
}

#[test]
fn modules_follow_two_dashes_and_with_run_the_command() {
    assert_eq!(
        typed(&["--use", "a", "--", "b", "--unuse", "--", "-n"]),
        Typed {
            use_: true,
            modules: os(&["a", "b", "--unuse", "--", "-n"]),
            ..Typed::default()
        }
    );
    assert_eq!(
        typed(&["a", "--run", "b", "--", "cmd", "--use", "--", "-n", ""]),
        Typed {
            run: true,
            modules: os(&["a", "b"]),
            command: os(&["cmd", "--use", "--", "-n", ""]),
            ..Typed::default()
        }
    );
    // not an option any more
    assert_eq!(
        typed(&["--", "--run", "--help"]),
        Typed {
            modules: os(&["--run", "--help"]),
            ..Typed::default()
        }
    );
}

#[test]
fn of_two_that_contradict_each_other_the_last_wins() {
    let waits = |words: &[&str]| {
        let typed = typed(words);
        (typed.no_wait, typed.timeout)
    };
    assert_eq!(waits(&["--timeout=5", "--no-wait"]), (true, None));
    assert_eq!(
        waits(&["--no-wait", "--timeout=5"]),
        (false, Some("5".into()))
    );
    let says = |words: &[&str]| {
        let typed = typed(words);
        (typed.quiet, typed.verbose)
    };
    assert_eq!(says(&["-v", "-q"]), (true, 0));
    assert_eq!(says(&["-q", "-vv"]), (false, 2));
    assert_eq!(says(&["-qq", "--quiet"]), (true, 0));
    let many = vec!["-v"; 300];
    assert!(says(&many).1 >= 2);
}

#[test]
fn words_need_not_be_utf8() {
    let raw = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let words = vec![
        raw(b"-n\xff"),
        raw(b"--directories=/\xfe"),
        raw(b"file:\xfd"),
    ];
    match parse(Vec::new(), words) {
        Ok(Parsed::Typed(typed)) => {
            assert_eq!(typed.name, Some(raw(b"\xff")));
            assert_eq!(typed.directories, Some(raw(b"/\xfe")));
            assert_eq!(typed.modules, [raw(b"file:\xfd")]);
        }
        other => panic!("{other:?}"),
    }
    for (word, problem) in [
        (&b"--na\xff"[..], "no such option: `--na\u{fffd}`"),
        (b"-\xff", "no such option: `-\u{fffd}`"),
        ("-é".as_bytes(), "no such option: `-é`"),
    ] {
        let error = parse(Vec::new(), vec![raw(word)]).unwrap_err();
        assert_eq!(error.to_string(), problem);
    }
}

#[test]
fn wrong_options_are_told_in_one_line() {
    let list = "`sc --help` lists the options";
    for (words, problem, hint) in [
        (&["--u"][..], "`--u` is ambiguous: `--unuse` or `--use`", ""),
        (
            &["--p=1"],
            "`--p` is ambiguous: `--paranoid`, `--pid`, `--progress` or `--prometheus`",
            "",
        ),
        (&["--location=1"], "`--location` takes no value", ""),
        (&["--loc="], "`--location` takes no value", ""),
        (&["--help=1"], "`--help` takes no value", ""),
        (&["--foo"], "no such option: `--foo`", list),
        // what follows may be a secret
        (
            &["--header=K: V"],
            "no such option: `--header`",
            "did you mean `--share`?",
        ),
        (
            &["--locaton"],
            "no such option: `--locaton`",
            "did you mean `--location`?",
        ),
        (
            &["--usee"],
            "no such option: `--usee`",
            "did you mean `--use`?",
        ),
        (&["--=x"], "no such option: `--`", list),
        (&["-x"], "no such option: `-x`", list),
        (&["-5"], "no such option: `-5`", list),
        (&["-vx"], "no such option: `-x`", list),
        (&["-v="], "no such option: `-=`", list),
        (&["-n"], "`-n` needs a value", "write `-n NAME`"),
        (
            &["x", "--na"],
            "`--name` needs a value",
            "write `--name NAME`",
        ),
        (&["-vs"], "`-s` needs a value", "write `-s SIZE`"),
    ] {
        assert_eq!(error(words), (problem.into(), hint.into()), "{words:?}");
    }
}

#[test]
fn what_is_not_built_yet_is_no_option() {
    for option in ["--mirror=u", "--header=x"] {
        let (problem, _) = error(&[option]);
        let name = option.split('=').next().unwrap();
        assert_eq!(problem, format!("no such option: `{name}`"));
    }
}

#[test]
fn help_acts_when_it_is_met() {
    let help = printed(&["--help"]);
    assert!(help.contains("Usage: sc --use"), "{help}");
    for words in [
        &["-h"][..],
        &["--h"],
        &["-h", "--foo"],
        &["-vh"],
        &["-hx"],
        &["unknown", "--use", "--he", "-n"],
    ] {
        assert_eq!(printed(words), help, "{words:?}");
    }
    assert_eq!(error(&["--foo", "-h"]).0, "no such option: `--foo`");
    assert_eq!(error(&["-xh"]).0, "no such option: `-x`");
    assert!(printed(&["--version", "--foo"]).starts_with("sc "));
    assert_eq!(typed(&["--", "-h"]).modules, os(&["-h"]));
}

#[test]
fn sc_options_stand_before_the_command_line() {
    let parsed = parse(
        os(&["-n", "a", "m", "--timeout=1"]),
        os(&["-nb", "--use", "n"]),
    );
    match parsed {
        Ok(Parsed::Typed(typed)) => assert_eq!(
            *typed,
            Typed {
                use_: true,
                name: Some("b".into()),
                timeout: Some("1".into()),
                modules: os(&["m", "n"]),
                ..Typed::default()
            }
        ),
        other => panic!("{other:?}"),
    }
    for (before, problem) in [
        (&["-n"][..], "in `SC_OPTIONS`: `-n` needs a value"),
        (&["--foo"], "in `SC_OPTIONS`: no such option: `--foo`"),
        (
            &["--"],
            "in `SC_OPTIONS`: `--` would make modules of the whole command line",
        ),
    ] {
        let error = parse(os(before), os(&["x"])).unwrap_err();
        assert_eq!(error.to_string(), problem);
    }
    assert!(matches!(
        parse(os(&["-h"]), os(&["--foo"])),
        Ok(Parsed::Print(_))
    ));
}

#[test]
fn a_site_s_defaults_give_way_to_variables_and_to_words() {
    let conf = || {
        let words = ["--retries=1", "--timeout", "5", "-q", "-n", "site"];
        let words = words.into_iter().enumerate();
        let path = || "/etc/sc.conf".into();
        words
            .map(|(n, word)| {
                (
                    word.into(),
                    Origin::Conf {
                        path: path(),
                        line: n,
                    },
                )
            })
            .collect::<Vec<Word>>()
    };
    let typed = |line: &[&str], set: &[&str]| {
        let words = Words {
            conf: conf(),
            before: os(&["--name=options"]),
            line: os(line),
        };
        match super::parse(words, &|name| set.contains(&name)) {
            Ok((Parsed::Typed(typed), _)) => *typed,
            other => panic!("{other:?}"),
        }
    };
    let mut expected = Typed {
        retries: Some("1".into()),
        timeout: Some("5".into()),
        quiet: true,
        name: Some("options".into()),
        ..Typed::default()
    };
    assert_eq!(typed(&[], &[]), expected);
    expected.timeout = None;
    expected.no_wait = true;
    assert_eq!(typed(&["--no-wait"], &[]), expected);
    expected.quiet = false;
    expected.verbose = 1;
    assert_eq!(typed(&["--no-wait", "-v"], &[]), expected);
    // a variable takes out every option that it stands for
    expected.verbose = 0;
    expected.no_wait = false;
    assert_eq!(typed(&[], &["SC_TIMEOUT", "SC_LOG", "SC_NAME"]), expected);
}

#[test]
fn every_option_is_in_the_help() {
    let help = printed(&["--help"]);
    for arg in command().get_arguments().filter(|arg| !arg.is_positional()) {
        let long = format!("--{}", arg.get_long().unwrap());
        assert!(help.contains(&long), "{long}");
        assert!(arg.get_help().is_some(), "{long}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn completions_know_every_option() {
    for what in [Generate::Bash, Generate::Zsh, Generate::Fish] {
        let script = generate(what);
        for arg in command().get_arguments().filter(|arg| !arg.is_positional()) {
            let long = arg.get_long().unwrap();
            assert!(script.contains(long), "{what:?}: {long}");
        }
        assert!(script.contains("always"), "{what:?}");
    }
}

proptest! {
    #[test]
    fn no_words_make_the_parser_panic(
        before in words(),
        words in words(),
    ) {
        let _ = parse(before, words);
    }

    #[test]
    fn the_words_of_a_command_arrive_as_typed(
        command in prop::collection::vec(prop::collection::vec(1u8..=255, 0..6), 1..5),
    ) {
        let command: Vec<_> = command.into_iter().map(OsString::from_vec).collect();
        let mut words = os(&["--run", "--"]);
        words.extend(command.clone());
        match parse(Vec::new(), words) {
            Ok(Parsed::Typed(typed)) => prop_assert_eq!(typed.command, command),
            other => panic!("{other:?}"),
        }
    }
}

fn words() -> impl Strategy<Value = Vec<OsString>> {
    let known = prop::sample::select(vec![
        "--use",
        "--unuse",
        "--run",
        "--",
        "-",
        "",
        "-n",
        "--name",
        "--name=",
        "-nx",
        "-q",
        "-vv",
        "--time",
        "--timeout=1",
        "--no-wait",
        "--u",
        "-h",
        "--version",
        "tar",
        "-s",
        "--=",
        "---",
        "--generate",
        "-n=",
    ]);
    let word = prop_oneof![
        3 => known.prop_map(OsString::from),
        1 => prop::collection::vec(1u8..=255, 0..8).prop_map(OsString::from_vec),
        1 => prop::collection::vec(1u8..=255, 0..4).prop_map(|mut bytes| {
            bytes.insert(0, b'-');
            OsString::from_vec(bytes)
        }),
    ];
    prop::collection::vec(word, 0..8)
}
