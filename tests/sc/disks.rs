//! Small real file systems that run full: tmpfs by bytes and by inodes, ext4 on a loop device.
//! Mounting takes root; each test mounts in a namespace of its own.

use crate::node::{Node, tar_gz};

/// Each of these mounts a small file system at `$base`.
const MOUNTS: [&str; 3] = [
    "mount -t tmpfs -o size=600k,nr_inodes=200 none \"$base\"",
    "mount -t tmpfs -o size=8m,nr_inodes=24 none \"$base\"",
    "truncate -s 2M image && mkfs.ext4 -q -O ^has_journal -m 0 -N 32 image && mount -o loop image \"$base\" && \
     rmdir \"$base/lost+found\"",
];

/// Shell functions for the scripts below: `fill` takes what is left, bytes and inodes; `sane` is
/// what must hold whatever has happened.
const PRELUDE: &str = "
    export base=\"$SC_DIRECTORIES\"
    fill() {
        mkdir -p \"$base/fill\"
        dd if=/dev/zero of=\"$base/fill/bytes\" bs=1k status=none 2>/dev/null
        cat /dev/zero >> \"$base/fill/bytes\" 2>/dev/null
        n=0; while true > \"$base/fill/$n\"; do n=$((n+1)); done 2>/dev/null
        n=0; while mkdir \"$base/fill/d$n\"; do n=$((n+1)); done 2>/dev/null
    }
    empty() { test -z \"$(ls -A \"$base\")\" || { ls -AR \"$base\"; echo \"left: $1\"; exit 8; }; }
    sc() { \"$SC\" \"$@\" --pid=$$; }
";

/// Runs a script on each file system, where that can be made.
#[track_caller]
fn on_each(script: &str) {
    for mount in MOUNTS {
        let node = Node::new();
        let long = "x".repeat(5000);
        let members: Vec<(String, &str)> = (0..6)
            .map(|n| (format!("bin/{n}"), long.as_str()))
            .collect();
        let members: Vec<(&str, &str)> = members
            .iter()
            .map(|(name, content)| (name.as_str(), *content))
            .collect();
        tar_gz(&node, "small.tar.gz", &members);
        let large = "y".repeat(900_000);
        let many: Vec<String> = (0..40).map(|n| format!("many/{n}")).collect();
        let mut members: Vec<(&str, &str)> = many.iter().map(|n| (n.as_str(), "")).collect();
        members.push(("large", &large));
        members.push(("larger", &large));
        members.push(("largest", &large));
        tar_gz(&node, "large.tar.gz", &members);
        node.file("script", format!("{PRELUDE}\n{mount} || exit 99\n{script}"));
        let mut job = node.job();
        let (status, said) = job.sh("unshare -m timeout -s KILL 100 sh ./script");
        if status == 99 || said.contains("unshare: ") {
            eprintln!("SKIPPED: `{mount}` cannot be done here: {said}");
            continue;
        }
        assert_eq!(status, 0, "{mount}\n{said}");
    }
}

#[test]
fn a_load_that_fills_the_disk_is_73_and_leaves_nothing_half_done() {
    on_each(
        "said=$(sc --use --name=r file:large.tar.gz tar 2>&1); status=$?
         test $status = 73 || { echo \"$status: $said\"; exit 1; }
         echo \"$said\" | grep -q '^hint: ' || { echo \"no hint: $said\"; exit 2; }
         # nothing but the state of a load that failed
         left=$(ls -A \"$base/r\" 2>/dev/null | grep -v '^repofile')
         test -z \"$left\" || { echo \"left: $left\"; exit 3; }
         # the lock is free, and there is room again
         sc --use --no-wait --name=r file:small.tar.gz tar || exit 4
         test -s \"$base/r/bin/5\" || exit 5
         sc --unuse --name=r || exit 6
         empty 'after the load that failed'",
    );
}

#[test]
fn on_a_disk_without_one_block_nobody_comes_and_everybody_may_leave() {
    on_each(
        "sc --use --name=r --id=1 file:small.tar.gz tar || exit 1
         sc --use --name=r --id=2 file:small.tar.gz tar || exit 2
         fill
         said=$(sc --use --name=r2 file:small.tar.gz tar 2>&1); status=$?
         test $status = 73 || { echo \"$status: $said\"; exit 3; }
         test -s \"$base/r/bin/5\" || exit 4
         sc --unuse --name=r --id=2 || { df \"$base\"; df -i \"$base\"; exit 5; }
         test -s \"$base/r/bin/5\" || exit 6
         sc --unuse --name=r --id=1 || exit 7
         rm -r \"$base/fill\"
         # what the refused one left
         sc --use --name=r2 || exit 9
         sc --unuse --name=r2 || exit 9
         empty 'after the unuses on a full disk'",
    );
}

#[test]
fn a_use_that_cannot_be_written_down_is_73_and_changes_nothing_for_the_others() {
    on_each(
        "sc --use --name=r --id=1 file:small.tar.gz tar || exit 1
         fill
         # a name that does not fit into the block that is there
         long=$(printf '%4000s' x | tr ' ' x)
         said=$(sc --use --name=r --id=$long file:small.tar.gz tar 2>&1); status=$?
         test $status = 73 || { echo \"$status: $said\" | cut -c 1-300; exit 2; }
         test -s \"$base/r/bin/5\" || exit 3
         \"$SC\" --status --name=r | grep -q 'holder.*pid' || { \"$SC\" --status --name=r; exit 4; }
         rm -r \"$base/fill\"
         sc --use --name=r --id=$long file:small.tar.gz tar || exit 5
         sc --unuse --name=r --id=$long || exit 6
         sc --unuse --name=r --id=1 || exit 7
         empty 'after a use that could not be'",
    );
}
