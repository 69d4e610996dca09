//! Archives that were cut off, or have a wrong byte, or were never any.

use super::*;

#[test]
fn not_one_byte_is_no_archive() {
    for archive in [vec![], gzip(b"")] {
        let problem = refusal(&archive);
        assert_eq!(problem, "cannot unpack `a.tar`: it is empty");
    }
}

#[test]
fn cut_off_at_any_byte_a_compressed_archive_is_never_whole() {
    let archive = Craft::new().file("f", b"1").dir("d/").end();
    for (format, whole) in compressed(&archive) {
        for length in 0..whole.len() {
            let (result, _) = unpack_with(&PLAIN, &whole[..length]);
            let error = result.expect_err(&format!("{format} of {length} bytes is whole"));
            assert_eq!(error.exit_status(), 65, "{format} {length}: {error}");
        }
    }
}

#[test]
fn cut_off_inside_a_member_a_plain_archive_is_never_whole() {
    let archive = Craft::new().file("f", &[1; 600]).file("g", &[2; 5]).end();
    let boundaries = [1536, 2560, 3072, 3584];
    for length in 0..archive.len() {
        if !boundaries.contains(&length) {
            let (result, _) = unpack_with(&PLAIN, &archive[..length]);
            // Between the two zero blocks, or in them, nothing is lost.
            if length > 3072 {
                continue;
            }
            assert_eq!(result.unwrap_err().exit_status(), 65, "{length}");
        }
    }
}

/// Refused, or nothing changed: a bit that says nothing, such as the time in the header of gzip.
#[track_caller]
fn refused_or_the_same(damaged: &[u8], expected: &BTreeMap<PathBuf, Entry>, what: &str) {
    let (result, site) = unpack_with(&PLAIN, damaged);
    match result {
        Err(error) => assert_eq!(error.exit_status(), 65, "{what}: {error}"),
        Ok(()) => {
            let mut tree = tree(site.stage());
            tree.remove(Path::new("a.tar.list"));
            assert_eq!(&tree, expected, "{what}");
        }
    }
}

fn unpacked(archive: &[u8]) -> BTreeMap<PathBuf, Entry> {
    let mut tree = tree(unpack(archive).stage());
    tree.remove(Path::new("a.tar.list"));
    tree
}

#[test]
fn one_wrong_byte_in_a_compressed_archive_never_makes_another_file() {
    let archive = Craft::new().file("f", b"some content").dir("d/").end();
    let expected = unpacked(&archive);
    for (format, whole) in compressed(&archive) {
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= [1 << (at % 8), 0xff][at / 8 % 2];
            refused_or_the_same(&damaged, &expected, &format!("{format} {at}"));
        }
    }
}

/// Nothing in a plain archive tells whether content, or that of an extended header, is right.
#[test]
fn one_wrong_byte_in_a_header_never_makes_another_file() {
    let archive = Craft::new().file("f", b"some content").dir("d/").end();
    let expected = unpacked(&archive);
    let content = 512..1024;
    for at in (0..archive.len()).filter(|at| !content.contains(at)) {
        let mut damaged = archive.clone();
        damaged[at] ^= [1 << (at % 8), 0x80, 0xff][at % 3];
        refused_or_the_same(&damaged, &expected, &at.to_string());
    }
}

#[test]
fn what_is_no_archive_is_called_so() {
    for content in [
        &b"hello\n"[..],
        &[b'x'; 512],
        &[b'x'; 20_000],
        &gzip(b"hello"),
    ] {
        let problem = refusal(content);
        assert_eq!(problem, "cannot unpack `a.tar`: it is not a tar archive");
    }
}

#[test]
fn sizes_that_are_none_are_refused() {
    let mut blocks = Craft::new().file("f", b"").blocks;
    for size in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"99999999999\0",
    ] {
        blocks[124..136].copy_from_slice(size);
        let mut header = tar::Header::from_byte_slice(&blocks[..512]).clone();
        header.set_cksum();
        refusal(header.as_bytes());
    }
    for size in ["-1", "x", "99999999999999999999999"] {
        refusal(
            &Craft::new()
                .meta(b'x', &pax(&[("size", size.as_bytes())]))
                .file("f", b"")
                .end(),
        );
    }
    refusal(
        &Craft::new()
            .meta(b'x', &pax(&[("size", b"18446744073709551615")]))
            .file("f", b"")
            .end(),
    );
}

#[test]
fn damaged_pax_headers_are_refused() {
    for records in [
        &b"x"[..],
        b"5",
        b" a=b\n",
        b"0 a=b\n",
        b"3 \n",
        b"99 a=b\n",
        b"6 a=bc",
        b"5 ab\n",
        b"99999999999999 a=b\n",
        b"6 a=b\n\0",
        b"13 mtime=now\n",
    ] {
        refusal(&Craft::new().meta(b'x', records).file("f", b"").end());
        refusal(&Craft::new().meta(b'g', records).file("f", b"").end());
    }
}

#[test]
fn extended_headers_of_nothing_are_refused() {
    refusal(&Craft::new().long_name(b"n").end());
    refusal(&Craft::new().meta(b'x', &pax(&[("path", b"n")])).blocks);
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let with = |records: &[(&str, &[u8])], content: &[u8]| {
        let problem = refusal(
            &Craft::new()
                .meta(b'x', &pax(records))
                .file("f", content)
                .end(),
        );
        assert!(problem.contains("sparse"), "{problem}");
    };
    let text = |map: &str| {
        let mut content = map.as_bytes().to_vec();
        content.resize(512, 0);
        content.extend_from_slice(&[1; 512]);
        content
    };
    let v1 = |size: &'static str| -> Vec<(&str, &[u8])> {
        vec![
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ]
    };
    unpack(
        &Craft::new()
            .meta(b'x', &pax(&v1("9999")))
            .file("f", &text("1\n8\n512\n"))
            .end(),
    );
    for (size, map) in [
        ("9999", "1\n8\n513\n"),
        ("9999", "1\n8\n511\n"),
        ("100", "1\n8\n512\n"),
        ("9999", "2\n600\n256\n0\n256\n"),
        ("9999", "2\n0\n256\n600\n256\n"),
        ("9999", "2\n0\n512\n511\n0\n"),
        ("9999", "1\n18446744073709551615\n512\n"),
        ("18446744073709551615", "1\n8\n512\n"),
        ("9999", "99999999999\n"),
        ("9999", "1000001\n"),
        ("9999", "x"),
        ("9999", ""),
        ("9999", "1\n-8\n512\n"),
    ] {
        with(&v1(size), &text(map));
    }
    let v0: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1,2")];
    refusal(&Craft::new().meta(b'x', &pax(v0)).file("f", b"1").end());
    with(
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"8,2")],
        b"12",
    );
    with(
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"8")],
        b"",
    );
    with(&[("GNU.sparse.map", b"0,1")], b"1");
    with(
        &[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"1")],
        b"1",
    );
    // The old format: no map where there is content, and a map that goes on for ever.
    refusal(&Craft::new().raw(b'S', "f", "", 512, &[1; 512]).end());
}

proptest::proptest! {
    /// Whatever the bytes: no panic, and nothing beside the stage.
    #[test]
    fn damaged_archives_never_touch_anything_else(
        at in 0usize..4096,
        byte in proptest::num::u8::ANY,
        fix_sum in proptest::bool::ANY,
    ) {
        let mut archive = Craft::new()
            .meta(b'x', &pax(&[("mtime", b"1.5"), ("path", b"d/../f")]))
            .file("f", b"1")
            .symlink("s", "..")
            .file("s/x", b"2")
            .end();
        archive.truncate(4096);
        if let Some(place) = archive.get_mut(at) {
            *place = byte;
        }
        if fix_sum {
            let block = at / 512 * 512;
            if archive.len() >= block + 512 {
                let mut header = tar::Header::from_byte_slice(&archive[block..block + 512]).clone();
                header.set_cksum();
                archive[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        let (_, site) = unpack_with(&PLAIN, &archive);
        let around: Vec<_> = tree(site.root())
            .into_keys()
            .filter(|path| !path.starts_with("stage"))
            .collect();
        proptest::prop_assert_eq!(around, [Path::new("below"), Path::new("below/a.tar")]);
    }
}
