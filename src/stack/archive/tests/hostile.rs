//! Archives that would write somewhere else, take names that mean something, or never end.

use std::fs;

use super::*;
use crate::units::Bytes;

#[test]
fn absolute_names_are_refused() {
    let problem = refusal(&Craft::new().file("/etc/f", b"x").end());
    assert_eq!(
        problem,
        "cannot unpack `a.tar`: member `/etc/f`: has an absolute name"
    );
}

#[test]
fn dot_dot_is_refused_wherever_it_stands() {
    for name in ["..", "../f", "a/../f", "a/b/../../../f", "./..", "a/.."] {
        let problem = refusal(&Craft::new().file(name, b"x").end());
        assert!(problem.contains("`..`"), "{problem}");
        refusal(&Craft::new().dir(name).end());
        refusal(
            &Craft::new()
                .meta(b'x', &pax(&[("path", name.as_bytes())]))
                .file("f", b"")
                .end(),
        );
    }
}

#[test]
fn dot_dot_is_refused_also_where_it_would_be_stripped_off() {
    let archive = Craft::new().file("../f", b"x").end();
    let (result, _) = unpack_with(
        &Tar {
            drop: false,
            strip: 1,
        },
        &archive,
    );
    assert_eq!(result.unwrap_err().exit_status(), 65);
}

#[test]
fn nothing_is_written_through_a_symlink() {
    for target in ["..", "/tmp", ".", "d", "../below"] {
        for archive in [
            Craft::new().dir("d").symlink("s", target).file("s/f", b"x"),
            Craft::new().dir("d").symlink("s", target).dir("s/d"),
            Craft::new()
                .dir("d")
                .symlink("s", target)
                .symlink("s/l", "x"),
            Craft::new()
                .dir("d")
                .file("f", b"")
                .symlink("s", target)
                .hard_link("s/l", "f"),
            Craft::new()
                .dir("d")
                .symlink("d/s", target)
                .file("d/s/e/f", b"x"),
        ] {
            let problem = refusal(&archive.end());
            assert!(problem.contains("is a symlink"), "{problem}");
        }
    }
}

#[test]
fn a_file_takes_the_place_of_a_symlink_and_not_of_its_target() {
    let archive = Craft::new()
        .symlink("s", "../below/a.tar")
        .file("s", b"new")
        .end();
    let site = unpack(&archive);
    assert_eq!(fs::read(site.stage().join("s")).unwrap(), b"new");
    assert_eq!(fs::read(site.root().join("below/a.tar")).unwrap(), archive);
}

#[test]
fn hard_links_out_of_the_stage_are_refused() {
    for target in [
        "/etc/passwd",
        "../below/a.tar",
        "s/a.tar",
        "nothing",
        "",
        ".",
        "d",
        "x/y",
    ] {
        let archive = Craft::new()
            .dir("d")
            .symlink("s", "../below")
            .hard_link("h", target)
            .end();
        refusal(&archive);
    }
}

#[test]
fn a_hard_link_to_the_list_is_refused() {
    let archive = Craft::new()
        .hard_link("h", "a.tar.list")
        .file("h", b"x")
        .end();
    refusal(&archive);
}

#[test]
fn a_hard_link_to_itself_keeps_the_file() {
    let archive = Craft::new().file("f", b"x").hard_link("f", "./f").end();
    assert_eq!(fs::read(unpack(&archive).stage().join("f")).unwrap(), b"x");
}

#[test]
fn directories_and_other_things_do_not_replace_each_other() {
    for archive in [
        Craft::new().dir("d").symlink("d", "/tmp"),
        Craft::new().dir("d").file("d", b""),
        Craft::new().dir("d").file("f", b"").hard_link("d", "f"),
        Craft::new().symlink("d", "/tmp").dir("d"),
        Craft::new().file("d", b"").dir("d"),
        Craft::new().file("d", b"").file("d/f", b""),
        Craft::new().file("d/f", b"").symlink("d", "/tmp"),
    ] {
        let problem = refusal(&archive.end());
        assert!(problem.contains("member `d"), "{problem}");
    }
}

#[test]
fn devices_and_fifos_are_refused() {
    for (letter, what) in [(b'3', "character"), (b'4', "block"), (b'6', "FIFO")] {
        let problem = refusal(&Craft::new().raw(letter, "dev", "", 0, b"").end());
        assert!(
            problem.contains(what) && problem.contains("`dev`"),
            "{problem}"
        );
    }
}

#[test]
fn reserved_names_are_refused_at_the_top_and_ours_everywhere() {
    for name in [
        "repofile",
        "./repofile",
        "repofile/x",
        "repofile.lock",
        "a.tar",
        "a.tar.list",
        ".sc",
        ".sc.x/journal",
        "d/.sc",
        "d/.sc.lock/f",
    ] {
        let problem = refusal(&Craft::new().file(name, b"x").end());
        assert!(problem.contains("reserved"), "{problem}");
    }
    unpack(
        &Craft::new()
            .file("d/repofile", b"")
            .file(".scx", b"")
            .file("d/a.tar", b"")
            .end(),
    );
}

#[test]
fn a_reserved_name_that_stripping_brings_to_the_top_is_refused() {
    let archive = Craft::new().file("d/repofile", b"x").end();
    let (result, _) = unpack_with(
        &Tar {
            drop: false,
            strip: 1,
        },
        &archive,
    );
    assert_eq!(result.unwrap_err().exit_status(), 65);
}

#[test]
fn a_nul_in_a_name_is_refused() {
    let problem = refusal(
        &Craft::new()
            .meta(b'x', &pax(&[("path", b"a\0b")]))
            .file("f", b"")
            .end(),
    );
    assert!(problem.contains("NUL"), "{problem}");
    refusal(&Craft::new().long_name(b"a\0b").file("f", b"").end());
    refusal(
        &Craft::new()
            .meta(b'x', &pax(&[("linkpath", b"a\0b")]))
            .symlink("f", "")
            .end(),
    );
}

#[test]
fn names_that_are_too_long_are_refused() {
    let component = "n".repeat(256);
    let problem = refusal(
        &Craft::new()
            .long_name(component.as_bytes())
            .file("f", b"")
            .end(),
    );
    assert!(problem.contains("255"), "{problem}");
    let path = "n/".repeat(2100);
    let problem = refusal(&Craft::new().long_name(path.as_bytes()).file("f", b"").end());
    assert!(problem.contains("4096"), "{problem}");
    refusal(
        &Craft::new()
            .meta(b'K', &[b't'; 5000])
            .symlink("s", "")
            .end(),
    );
}

#[test]
fn a_gigantic_extended_header_is_refused_before_it_is_read() {
    for letter in [b'x', b'g', b'L', b'K'] {
        for size in [(1 << 20) + 1, 1 << 40, i64::MAX as u64] {
            let problem = refusal(&Craft::new().raw(letter, "m", "", size, b"").end());
            assert!(problem.contains("extended header"), "{problem}");
        }
    }
}

#[test]
fn a_bomb_ends_before_the_disk_is_full() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let bomb = Craft::new().raw(b'0', "bomb", "", 1 << 40, b"").blocks;
    encoder.write_all(&bomb).unwrap();
    encoder.write_all(&[0; 100_000]).unwrap();
    let mut site = FakeSite::with_archive("a.tar", &encoder.finish().unwrap());
    site.room = 1 << 30;
    let error = PLAIN.run(&mut site).unwrap_err();
    assert_eq!(error.exit_status(), 73);
    assert_eq!(
        error.to_string(),
        "not enough room: member `bomb` of `a.tar` has 1.1 TB, and 1.1 GB are left"
    );
    assert!(!site.stage().join("bomb").exists());
}

#[test]
fn an_archive_that_holds_more_than_was_asked_for_is_refused() {
    let archive = Craft::new().file("a", &[1; 60]).file("b", &[1; 41]).end();
    let mut site = FakeSite::with_archive("a.tar", &archive);
    site.limit = Bytes(101);
    PLAIN.run(&mut site).unwrap();
    let mut site = FakeSite::with_archive("a.tar", &archive);
    site.limit = Bytes(100);
    let error = PLAIN.run(&mut site).unwrap_err();
    assert_eq!(error.exit_status(), 73);
    assert_eq!(
        error.to_string(),
        "not enough room: `a.tar`, with its member `b`, takes more than 100 B (`--size`)"
    );
    assert!(!site.stage().join("b").exists());
}

#[test]
fn members_without_content_use_up_inodes() {
    for one in [
        |craft: Craft, n| craft.file(&format!("f{n}"), b""),
        |craft: Craft, n| craft.dir(&format!("f{n}")),
        |craft: Craft, n| craft.symlink(&format!("f{n}"), "x"),
        |craft: Craft, n| craft.file(&format!("f{n}/g"), b""),
    ] {
        let archive = (0..10).fold(Craft::new(), one).end();
        let mut site = FakeSite::with_archive("a.tar", &archive);
        site.inodes = 7;
        let error = PLAIN.run(&mut site).unwrap_err();
        assert_eq!(error.exit_status(), 73);
        assert!(error.to_string().ends_with("no inodes are left"), "{error}");
    }
}

#[test]
fn many_small_members_use_up_the_room_too() {
    let mut craft = Craft::new();
    for n in 0..10 {
        craft = craft.file(&format!("f{n}"), &[1; 1000]);
    }
    let mut site = FakeSite::with_archive("a.tar", &craft.end());
    site.room = 9999;
    let error = PLAIN.run(&mut site).unwrap_err();
    assert_eq!(error.exit_status(), 73);
    assert!(error.to_string().contains("`f9`"), "{error}");
}

#[test]
fn owners_are_ignored() {
    let mut archive = Craft::new().file("f", b"x").dir("d/").end();
    for block in [0, 1024] {
        let mut header = tar::Header::from_byte_slice(&archive[block..block + 512]).clone();
        header.set_uid(12345);
        header.set_gid(12345);
        header.set_cksum();
        archive[block..block + 512].copy_from_slice(header.as_bytes());
    }
    let site = unpack(&archive);
    for name in ["f", "d"] {
        let meta = fs::metadata(site.stage().join(name)).unwrap();
        assert_eq!(meta.uid(), crate::process::user());
    }
}

#[test]
fn extended_headers_without_end_are_refused() {
    for letter in [b'x', b'g', b'L', b'K'] {
        let content = match letter {
            b'x' | b'g' => pax(&[("comment", b"x")]),
            _ => b"name\0".to_vec(),
        };
        let headers = |n| (0..n).fold(Craft::new(), |craft, _| craft.meta(letter, &content));
        unpack(&headers(60).file("f", b"1").end());
        let problem = refusal(&headers(70).file("f", b"1").end());
        assert!(problem.contains("extended headers"), "{problem}");
    }
}
