//! Odd but honest: what other programs write, and what is left of archives. The oracle is GNU
//! tar: where it unpacks, we unpack the same; where it fails, we refuse.
//!
//! libarchive and Go publish collections of such archives. Their kinds are made here, at run
//! time, by the programs themselves.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;

fn as_gnu_tar_does(archive: &[u8]) {
    match by_gnu_tar(archive) {
        Some(_) => drop(same_as_gnu_tar(archive)),
        None => drop(refusal(archive)),
    }
}

/// The output of a program, or `None`, loudly, where that is not to be had.
fn made_by(command: &mut Command) -> Option<Vec<u8>> {
    match command.stderr(Stdio::null()).output() {
        Ok(output) if output.status.success() => Some(output.stdout),
        outcome => {
            eprintln!("SKIPPED: {command:?}: {:?}", outcome.map(|out| out.status));
            None
        }
    }
}

/// Names, times, modes and sizes that one format or the other has no place for.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at(&format!("d/{}", "e".repeat(90)))).unwrap();
    fs::write(
        at(&format!("d/{}/{}", "e".repeat(90), "f".repeat(90))),
        b"deep",
    )
    .unwrap();
    fs::write(at("f"), b"content\n").unwrap();
    fs::hard_link(at("f"), at("d/hard")).unwrap();
    symlink("../f", at("d/symlink")).unwrap();
    fs::write(at("large"), vec![b'x'; 70_001]).unwrap();
    fs::set_permissions(at("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(at("caf\u{e9}"), b"1").unwrap();
    let mut holes = fs::File::create(at("holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    holes.write_all(b"begin").unwrap();
    for (name, time) in [
        ("large", "2001-02-03 04:05:06.789"),
        ("f", "1970-01-01 00:00:01.5"),
    ] {
        run(Command::new("touch").args(["-d", time]).arg(at(name)));
    }
    dir
}

#[test]
fn what_libarchive_writes_is_unpacked_as_gnu_tar_does() {
    let source = source();
    for args in [
        &["--format=ustar"][..],
        &["--format=pax"],
        &["--format=pax", "--read-sparse"],
        &["--format=restricted"],
        &["--format=gnutar"],
        &["--format=v7tar"],
        // no tar at all
        &["--format=cpio"],
        &["--format=newc"],
    ] {
        let mut bsdtar = Command::new("bsdtar");
        bsdtar.args(["-cf", "-"]).args(args);
        bsdtar.arg("-C").arg(source.path()).arg(".");
        // names too long for a format are left out, with a complaint
        if let Ok(output) = bsdtar.stderr(Stdio::null()).output() {
            as_gnu_tar_does(&output.stdout);
        } else {
            eprintln!("SKIPPED: bsdtar is not installed");
        }
    }
}

#[test]
fn what_python_writes_is_unpacked_as_gnu_tar_does() {
    let source = source();
    for format in ["USTAR", "GNU", "PAX"] {
        let script = format!(
            "import sys, tarfile\n\
             t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.{format}_FORMAT)\n\
             t.add(sys.argv[1], arcname='top')\n\
             t.close()"
        );
        let mut python = Command::new("python3");
        if let Some(archive) = made_by(python.args(["-c", &script]).arg(source.path())) {
            as_gnu_tar_does(&archive);
        }
    }
}

/// The archive of all oddities by which Python tests its own reader, without the devices that
/// we refuse.
#[test]
fn the_test_archive_of_python_is_unpacked_as_gnu_tar_does() {
    let script = "\
import os, sys, sysconfig, tarfile
test = os.path.join(sysconfig.get_path('stdlib'), 'test')
name = next(name for name in (test + '/testtar.tar', test + '/archivetestdata/testtar.tar')
            if os.path.exists(name))
data = open(name, 'rb').read()
archive = tarfile.open(name)
members = archive.getmembers()
ends = [member.offset for member in members[1:]] + [archive.offset]
for member, end in zip(members, ends):
    if not member.isdev():
        sys.stdout.buffer.write(data[member.offset:end])
";
    if let Some(archive) = made_by(Command::new("python3").args(["-c", script])) {
        assert!(archive.len() > 100_000);
        let site = same_as_gnu_tar(&archive);
        assert!(tree(site.stage()).len() > 300);
    }
}

#[test]
fn volumes_of_a_larger_archive_are_taken_as_gnu_tar_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(dir.path().join(name), vec![name.as_bytes()[0]; 15_000]).unwrap();
    }
    let mut compared = 0;
    for format in ["gnu", "posix"] {
        let out = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(dir.path());
        tar.args(["-cM", "-L", "20", &format!("--format={format}")]);
        let volumes: Vec<_> = (0..4).map(|n| out.path().join(n.to_string())).collect();
        for volume in &volumes {
            tar.arg("-f").arg(volume);
        }
        run(tar.args(["a", "b", "c", "d"]));
        for volume in volumes.iter().filter(|volume| volume.exists()) {
            as_gnu_tar_does(&fs::read(volume).unwrap());
            compared += 1;
        }
    }
    assert!(compared >= 6, "{compared}");
}

#[test]
fn members_before_and_behind_other_bytes_are_taken_as_gnu_tar_takes_them() {
    let one = || Craft::new().file("f", b"1");
    let garbage = [b'x'; 700];
    for archive in [
        // the end is in the middle
        [one().end(), Craft::new().file("g", b"2").end()].concat(),
        [one().end(), garbage.to_vec()].concat(),
        [one().end(), vec![0; 100_000]].concat(),
        // one block of zeros, and then more
        [
            one().blocks,
            vec![0; 512],
            Craft::new().file("g", b"2").end(),
        ]
        .concat(),
        [one().blocks, vec![0; 512], garbage.to_vec()].concat(),
        // no end at all
        one().blocks,
        [one().blocks, garbage.to_vec()].concat(),
        [vec![0; 512], one().end()].concat(),
        [garbage.to_vec(), one().end()].concat(),
    ] {
        as_gnu_tar_does(&archive);
    }
}
