//! Processes as the kernel knows them: who one is, and whether it still lives.
//!
//! A pid alone names nobody for long. What names a process is its pid *and* start time, within
//! one boot and one pid namespace; [`Identity`] holds the four. Death is told only on proof:
//! ESRCH from `kill(pid, 0)` in the same namespace, or a start time that was read and differs.
//! An unreadable /proc, a hidden process, a foreign namespace are doubt, and doubt is life.

use std::fs;
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Start in clock ticks since boot, without the reader's time namespace offset; absent where
    /// /proc could not be read.
    pub start_ticks: Option<u64>,
    pub boot_id: Option<String>,
    /// Inode of the pid namespace that `pid` is a number of.
    pub pid_ns: Option<u64>,
    /// Inode of the time namespace it was recorded in; kept for people who look.
    pub time_ns: Option<u64>,
    /// The node, where others read this too: on a network file system. Their boots are no death.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Alive,
    Dead,
    /// Nothing can be proven; counts as alive.
    Doubt,
}

impl Identity {
    /// Who `pid` is now.
    pub fn of(pid: i32) -> Identity {
        Identity {
            pid,
            start_ticks: match look(pid) {
                Look::Started(ticks) => Some(ticks),
                _ => None,
            },
            boot_id: boot_id(),
            pid_ns: namespace("pid"),
            time_ns: namespace("time"),
            host: None,
        }
    }

    pub fn life(&self) -> Life {
        match (&self.boot_id, boot_id()) {
            (Some(then), Some(now)) if *then != now => return after_boot(self.host.as_deref()),
            (Some(_), Some(_)) => {}
            _ => return Life::Doubt,
        }
        let Some(namespace_then) = self.pid_ns else {
            return Life::Doubt;
        };
        if namespace("pid") != Some(namespace_then) {
            return match is_namespace_empty(namespace_then) {
                true => Life::Dead,
                false => Life::Doubt,
            };
        }
        if is_gone(self.pid) {
            return Life::Dead;
        }
        match (look(self.pid), self.start_ticks) {
            (Look::Zombie, _) => Life::Dead,
            // One tick of slack: the offset of a time namespace need not be a whole tick.
            (Look::Started(now), Some(then)) if now.abs_diff(then) > 1 => Life::Dead,
            (Look::Started(_), Some(_)) => Life::Alive,
            _ => Life::Doubt,
        }
    }

    /// Could these be the same process? What could not be read fits anything.
    pub fn is_same(&self, other: &Identity) -> bool {
        fn fits<T>(one: &Option<T>, two: &Option<T>, same: impl Fn(&T, &T) -> bool) -> bool {
            one.as_ref()
                .zip(two.as_ref())
                .is_none_or(|(one, two)| same(one, two))
        }
        self.pid == other.pid
            && fits(&self.boot_id, &other.boot_id, String::eq)
            && fits(&self.pid_ns, &other.pid_ns, u64::eq)
            && fits(&self.start_ticks, &other.start_ticks, |one, two| {
                one.abs_diff(*two) <= 1
            })
    }
}

/// What another boot than this one means for a process that `host` ran, if it was written down.
pub fn after_boot(host: Option<&str>) -> Life {
    match host {
        Some(host) if host != self::host() => Life::Doubt,
        _ => Life::Dead,
    }
}

/// The name of this node.
pub fn host() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The user we act as. (nix has it behind the feature that brings getpwuid, which crashes a
/// static binary on a node with SSSD.)
pub fn user() -> u32 {
    // SAFETY: geteuid(2) cannot fail and touches no memory.
    unsafe { libc::geteuid() }
}

/// Are we in this group, by our effective or a supplementary one?
pub fn is_in_group(gid: u32) -> bool {
    group() == gid || groups().contains(&gid)
}

/// The group we act as.
pub fn group() -> u32 {
    // SAFETY: getegid(2) cannot fail and touches no memory.
    unsafe { libc::getegid() }
}

fn groups() -> &'static [u32] {
    static GROUPS: OnceLock<Vec<u32>> = OnceLock::new();
    GROUPS.get_or_init(|| {
        // SAFETY: with 0 it only counts; then the buffer is as long as is said.
        unsafe {
            let count = libc::getgroups(0, std::ptr::null_mut()).max(0);
            let mut groups = vec![0; count as usize];
            let got = libc::getgroups(count, groups.as_mut_ptr()).max(0);
            groups.truncate(got as usize);
            groups
        }
    })
}

/// What the umask takes away. To look at it is to change it for an instant: not while there are
/// threads that make files.
pub fn umask() -> u32 {
    use nix::sys::stat::{Mode, umask};
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    mask.bits()
}

/// A umask that takes our own rights away would shut us out of what we make; only what others may
/// is its business.
pub fn keep_own_rights() {
    use nix::sys::stat::umask;
    let mask = umask(Mode::empty());
    umask(mask - Mode::S_IRWXU);
}

/// What was closed when we were started (`2>&-`) is /dev/null from now on: the next file opened
/// would get its number, and what we say be written into it.
pub fn open_standard_descriptors() {
    let closed = |fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    };
    let mut fds = [0, 1, 2].map(closed);
    loop {
        // SAFETY: the array outlives the call, which is told its length.
        match unsafe { libc::poll(fds.as_mut_ptr(), 3, 0) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return,
            _ => break,
        }
    }
    for fd in fds.iter().filter(|fd| fd.revents & libc::POLLNVAL != 0) {
        // not O_CLOEXEC: children want them as well
        let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR, Mode::empty());
        match null.map(IntoRawFd::into_raw_fd) {
            Ok(opened) if opened == fd.fd => {}
            _ => std::process::abort(),
        }
    }
}

/// Is there certainly no process with this number here? EPERM means there is one.
pub fn is_gone(pid: i32) -> bool {
    pid <= 0 || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// Is a bare number in `readers`, of which nothing else is known, certainly no living process
/// here? Zombies are dead; what is no pid at all never lived.
pub fn is_number_dead(number: i64) -> bool {
    match i32::try_from(number) {
        Ok(pid) => is_gone(pid) || matches!(look(pid), Look::Zombie),
        Err(_) => true,
    }
}

/// For how many seconds a living process of our own user has been running.
pub fn age_s(pid: i32) -> Option<i64> {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    match look(pid) {
        Look::Started(ticks) if owner == user() => {
            let started_s = ticks / ticks_per_second() as u64;
            // the start is without the reader's time namespace, the clock is within
            let now_ticks = since_boot_ns() as i64 / 1_000_000_000 * ticks_per_second()
                - boot_time_offset_ticks();
            Some(now_ticks / ticks_per_second() - started_s as i64)
        }
        _ => None,
    }
}

enum Look {
    Started(u64),
    Zombie,
    Unknown,
}

/// A short file of /proc: with the size it does not tell, `fs::read` takes six reads for a line.
fn read_line(path: &str) -> std::io::Result<Vec<u8>> {
    let mut text = vec![0; 4096];
    let mut file = fs::File::open(path)?;
    let mut length = 0;
    loop {
        match file.read(&mut text[length..])? {
            0 => break,
            read => length += read,
        }
    }
    text.truncate(length);
    Ok(text)
}

fn look(pid: i32) -> Look {
    let Ok(text) = read_line(&format!("/proc/{pid}/stat")) else {
        return Look::Unknown;
    };
    let Some((state, started)) = state_and_start(&text) else {
        return Look::Unknown;
    };
    if matches!(state, b'Z' | b'X') {
        return Look::Zombie;
    }
    // /proc/PID/stat adds the reader's own boot time offset; take it off, so that readers in
    // different time namespaces mean the same number.
    Look::Started((started - boot_time_offset_ticks()) as u64)
}

/// Fields 3 and 22 of /proc/PID/stat (proc(5)). The command's name before them is in parentheses,
/// and may have blanks and parentheses itself.
fn state_and_start(stat: &[u8]) -> Option<(u8, i64)> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = stat[name_end + 1..].split(u8::is_ascii_whitespace).skip(1);
    let state = *fields.next()?.first()?;
    let started = std::str::from_utf8(fields.nth(18)?).ok()?;
    Some((state, started.parse().ok()?))
}

fn ticks_per_second() -> i64 {
    static TICKS: OnceLock<i64> = OnceLock::new();
    // SAFETY: sysconf(3) touches no memory of ours.
    *TICKS.get_or_init(|| unsafe { libc::sysconf(libc::_SC_CLK_TCK) })
}

fn boot_time_offset_ticks() -> i64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        let Ok(text) = read_line("/proc/self/timens_offsets") else {
            return 0;
        };
        let text = String::from_utf8_lossy(&text);
        let ticks = ticks_per_second();
        text.lines()
            .find_map(|line| {
                let mut words = line.split_whitespace();
                let clock = words.next()?;
                let seconds: i64 = words.next()?.parse().ok()?;
                let nanoseconds: i64 = words.next()?.parse().ok()?;
                (clock == "boottime").then(|| seconds * ticks + nanoseconds * ticks / 1_000_000_000)
            })
            .unwrap_or(0)
    })
}

/// The random name the kernel gave itself at boot.
pub fn boot_id() -> Option<String> {
    if let Some(pretended) = pretended("SC_BOOT_ID") {
        return Some(pretended);
    }
    static BOOT_ID: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let text = String::from_utf8(read_line("/proc/sys/kernel/random/boot_id").ok()?).ok()?;
        Some(text.trim().to_owned())
    };
    BOOT_ID.get_or_init(read).clone()
}

/// The inode that names our namespace of this kind.
pub fn namespace(kind: &'static str) -> Option<u64> {
    static PID: OnceLock<Option<u64>> = OnceLock::new();
    match kind {
        "pid" => *PID.get_or_init(|| namespace_of("self", kind)),
        _ => namespace_of("self", kind),
    }
}

fn namespace_of(process: &str, kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?;
    link.to_str()?
        .strip_suffix(']')?
        .split_once(":[")?
        .1
        .parse()
        .ok()
}

/// Inode of the initial pid namespace (PROC_PID_INIT_INO of linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Is there certainly no process left in that pid namespace? Only root in the initial namespace
/// sees them all; one process that cannot be looked at is doubt.
fn is_namespace_empty(inode: u64) -> bool {
    if user() != 0 || namespace("pid") != Some(INITIAL_PID_NAMESPACE) {
        return false;
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    for process in processes {
        let Ok(process) = process else { return false };
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.parse::<i32>().is_ok()) else {
            continue;
        };
        match namespace_of(pid, "pid") {
            // the first process of the initial namespace is in it, whether we may look or not
            _ if pid == "1" => {}
            Some(other) if other == inode => return false,
            Some(_) => {}
            // Zombies and kernel threads that are just going have none.
            None if is_gone(pid.parse().unwrap_or(0)) => {}
            None if matches!(look(pid.parse().unwrap_or(0)), Look::Zombie) => {}
            None => return false,
        }
    }
    true
}

/// Nanoseconds since boot, sleep included (CLOCK_BOOTTIME): never set back, unlike the date.
pub fn since_boot_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}

/// Seconds since boot, the same for every time namespace.
pub fn since_boot_s() -> u64 {
    if let Some(pretended) = pretended("SC_SINCE_BOOT").and_then(|text| text.parse().ok()) {
        return pretended;
    }
    let offset_s = boot_time_offset_ticks() / ticks_per_second();
    (since_boot_ns() / 1_000_000_000).saturating_add_signed(-offset_s)
}

/// In builds with debug assertions a test may say what time it is (`SC_UNIX_TIME`), for how long
/// the kernel runs (`SC_SINCE_BOOT`) and which boot it is (`SC_BOOT_ID`): a month need not be
/// waited for.
#[cfg(debug_assertions)]
pub fn pretended(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

#[cfg(not(debug_assertions))]
pub fn pretended(_: &str) -> Option<String> {
    None
}

/// Seconds since 1970.
pub fn unix_time_s() -> u64 {
    if let Some(pretended) = pretended("SC_UNIX_TIME").and_then(|text| text.parse().ok()) {
        return pretended;
    }
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The pid that holds a flock on this inode (dev, ino), where /proc/locks shows one.
pub fn flock_owner((device, inode): (u64, u64)) -> Option<i32> {
    let text = fs::read_to_string("/proc/locks").ok()?;
    let major = nix::sys::stat::major(device);
    let minor = nix::sys::stat::minor(device);
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    // 1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF; waiters have `->` in the second column
    text.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok(),
            _ => None,
        }
    })
}

/// Has nobody a flock on `inode`? `own` is a lock of ours: while /proc/locks does not show even
/// that one, it shows nothing of this file system (btrfs and overlay have other device numbers
/// there than in stat(2)), and nothing is certain.
///
/// The kernel gives the list a page at a time, and counts on from there: a lock is missed when one
/// before it is given back between two pages. So it must be missing many times.
pub fn is_surely_unlocked(inode: (u64, u64), own: (u64, u64)) -> bool {
    let me = std::process::id() as i32;
    let mut missed = 0;
    for _ in 0..64 {
        if flock_owner(inode).is_some() {
            return false;
        }
        if flock_owner(own) == Some(me) {
            missed += 1;
        }
        if missed == 8 {
            return true;
        }
    }
    false
}

/// The command name of a process, for messages.
pub fn command_name(pid: i32) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

/// A name that nobody else draws: 128 bits from the kernel.
pub fn random_name() -> String {
    let mut bytes = [0u8; 16];
    // The system call itself: its function in glibc is younger (2.25) than the oldest we run on.
    // SAFETY: the buffer is valid for its length; requests of up to 256 bytes are never cut short
    // once the pool is ready (getrandom(2)).
    let got = unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
    if got != bytes.len() as libc::c_long {
        // A kernel without getrandom: pid and time since boot do not repeat within one boot.
        bytes[..8].copy_from_slice(&since_boot_ns().to_le_bytes());
        bytes[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    }
    base16ct::lower::encode_string(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive_and_ourselves() {
        let me = Identity::of(std::process::id() as i32);
        assert!(me.start_ticks.is_some(), "{me:?}");
        assert_eq!(me.life(), Life::Alive);
        assert!(me.is_same(&Identity::of(me.pid)));
    }

    #[test]
    fn a_command_may_be_called_anything() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["(sleep)", "(a b)", "(x) S 1 (y)", "())"] {
            let stat = format!("42 {name} {rest}");
            assert_eq!(
                state_and_start(stat.as_bytes()),
                Some((b'S', 4711)),
                "{name}"
            );
        }
        for cut in ["", "42 (x", "42 (x) S 1 2", "42 (x) "] {
            assert_eq!(state_and_start(cut.as_bytes()), None, "{cut}");
        }
    }

    #[test]
    fn a_recycled_pid_is_another_process() {
        let me = Identity::of(std::process::id() as i32);
        let before = Identity {
            start_ticks: me.start_ticks.map(|ticks| ticks - 100),
            ..me.clone()
        };
        assert_eq!(before.life(), Life::Dead);
        assert!(!before.is_same(&me));
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        let identity = Identity {
            start_ticks: Some(0),
            ..Identity::of(std::process::id() as i32)
        };
        let identity = Identity { pid, ..identity };
        // waitid with WNOWAIT returns when it has ended and leaves the zombie
        let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(nix::sys::wait::Id::Pid(Pid::from_raw(pid)), flags).unwrap();
        assert_eq!(identity.life(), Life::Dead);
        child.wait().unwrap();
    }

    #[test]
    fn another_boot_is_death_and_a_foreign_namespace_is_doubt() {
        let me = Identity::of(std::process::id() as i32);
        let rebooted = Identity {
            boot_id: Some("another".into()),
            ..me.clone()
        };
        assert_eq!(rebooted.life(), Life::Dead);
        let unknown = Identity {
            boot_id: None,
            ..me.clone()
        };
        assert_eq!(unknown.life(), Life::Doubt);
        let no_namespace = Identity { pid_ns: None, ..me };
        assert_eq!(no_namespace.life(), Life::Doubt);
    }
}
