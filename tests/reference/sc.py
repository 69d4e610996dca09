#!/usr/bin/env python3
"""A test double of the Python 2 program `sc` that this project replaces: its lock, its state file,
its order of events and its mistakes. Written from a description of what that program does.

What the original does wrong is done wrong here too, and an uncaught exception is a traceback with
status 1, as there: a test that meets one has found what an operator would meet.

The environment makes it fast, and stops it where a test wants it:

    REF_POLL   seconds between two looks at a load (1)
    REF_RETRY  longest pause between two tries for the lock (2)
    REF_LEASE  seconds from a touch of the lock to the end of its lease (15); may be negative
    REF_GRACE  seconds after that until the lock is broken (10); may be negative
    REF_PAUSE_AT  LABEL:FIFO  at the first point of that name, wait until FIFO is closed
    REF_KILL_AT   N           SIGKILL to itself at the N-th point
"""

import errno
import hashlib
import json
import optparse
import os
import random
import signal
import socket
import sys
import tarfile
import time
import urllib.request

POLL = float(os.environ.get("REF_POLL", 1))
RETRY = float(os.environ.get("REF_RETRY", 2))
LEASE = int(os.environ.get("REF_LEASE", 15))
GRACE = int(os.environ.get("REF_GRACE", 10))
PAUSE_AT = os.environ.get("REF_PAUSE_AT", ":").split(":", 1)
KILL_AT = int(os.environ.get("REF_KILL_AT", 0))

points = 0


def point(label):
    """A place where a test may stop or kill this process."""
    global points
    points += 1
    if points == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    if label == PAUSE_AT[0]:
        PAUSE_AT[0] = None
        with open(PAUSE_AT[1]) as fifo:
            fifo.read()


def say(*words):
    print(*words, flush=True)


class AlreadyLocked(Exception):
    pass


class NotLocked(Exception):
    pass


class LinkLock:
    """The lock: a hard link to a claim file that contains its own path."""

    def __init__(self, path):
        self.path = path
        number = random.SystemRandom().randrange(2**63)
        self.claim = "|".join([path, socket.getfqdn(), str(os.getpid()), str(number)])
        self.owner = os.getpid()

    @staticmethod
    def touch(path):
        end = int(time.time()) + LEASE
        os.utime(path, (end, end))

    def read(self):
        with open(self.path) as file:
            return file.read()

    def take(self):
        point("claim")
        with open(self.claim, "w") as file:
            file.write(self.claim)
        self.touch(self.claim)
        while True:
            try:
                point("link")
                os.link(self.claim, self.path)
            except OSError as error:
                if error.errno == errno.EEXIST:
                    try:
                        if self.read() == self.claim:
                            raise AlreadyLocked(self.path)
                    except FileNotFoundError:
                        pass
                elif error.errno != errno.ENOENT:
                    os.unlink(self.claim)
                    raise
            else:
                self.touch(self.claim)
                point("locked")
                return
            self.break_if_stale()
            time.sleep(min(0.01, RETRY) + random.random() * RETRY)

    def break_if_stale(self):
        try:
            end = os.stat(self.path).st_mtime
        except FileNotFoundError:
            return
        if time.time() <= end + GRACE:
            return
        point("break")
        try:
            self.touch(self.path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOENT):
                raise
        try:
            winner = self.read()
            os.unlink(self.path)
        except FileNotFoundError:
            return
        if winner:
            try:
                os.unlink(winner)
            except FileNotFoundError:
                pass

    def is_locked(self):
        try:
            self.touch(self.claim)
        except FileNotFoundError:
            pass
        try:
            return os.stat(self.path).st_nlink == 2 and self.read() == self.claim
        except FileNotFoundError:
            return False

    def give_back(self, is_end=False):
        point("give back")
        is_ours = self.is_locked()
        if not is_ours and not is_end:
            raise NotLocked(self.path)
        for path in [self.path] * is_ours + [self.claim]:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def is_alive(pid):
    return os.path.isdir("/proc/%d" % pid)


class Loader:
    """What stands below everything: nothing, loaded in a second."""

    def __init__(self, repo, argument):
        self.repo, self.argument = repo, argument

    def load(self, report):
        time.sleep(POLL)
        report("OK")
        return "OK"

    def paths(self):
        return []

    def delete(self):
        pass


class Http(Loader):
    def __init__(self, repo, argument):
        super().__init__(repo, argument)
        self.file = os.path.join(repo, argument.rsplit("/", 1)[-1])

    def load(self, report):
        report("IN_PROGRESS")
        point("download")
        try:
            try:
                body = urllib.request.urlopen(self.argument).read()
            except urllib.error.HTTPError as reply:
                body = reply.read()
            with open(self.file, "wb") as file:
                point("content")
                file.write(body)
        except Exception as error:
            say(error)
            report("BROKEN")
            return "BROKEN"
        report("OK")
        return "OK"

    def paths(self):
        return [self.file]

    def delete(self):
        point("delete")
        os.unlink(self.file)


class Transformation(Loader):
    """Works on what is below it; reports nothing until that has been loaded."""

    def __init__(self, repo, argument, below):
        super().__init__(repo, argument)
        self.below = below

    def load(self, report):
        state = self.below.load(lambda state: None)
        if state == "OK":
            report("IN_PROGRESS")
            state = self.work()
        report(state)
        return state

    def work(self):
        return "OK"

    def paths(self):
        return self.below.paths()

    def delete(self):
        self.delete_own()
        self.below.delete()

    def delete_own(self):
        pass


class Md5(Transformation):
    def work(self):
        digest = hashlib.md5()
        for path in self.paths():
            with open(path, "rb") as file:
                digest.update(file.read())
        return "OK" if digest.hexdigest() == self.argument else "BROKEN"


class Tar(Transformation):
    def work(self):
        for path in self.paths():
            with tarfile.open(path) as archive:
                point("extract")
                if hasattr(tarfile, "fully_trusted_filter"):
                    archive.extraction_filter = staticmethod(tarfile.fully_trusted_filter)
                archive.extractall(self.repo)
                with open(path + ".list", "w") as names:
                    for name in archive.getnames():
                        say("archive content", name)
                        names.write(name + "\n")
        return "OK"

    def delete_own(self):
        for path in self.paths():
            directories = []
            with open(path + ".list") as names:
                for line in names:
                    member = os.path.join(self.repo, line.strip())
                    if os.path.isdir(member):
                        directories.append(member)
                    else:
                        point("delete")
                        say("delete file", member)
                        os.unlink(member)
            point("delete")
            os.unlink(path + ".list")
            for directory in sorted(directories, reverse=True):
                point("delete")
                say("delete directory", directory)
                os.rmdir(directory)


class Dummy(Transformation):
    def work(self):
        say("DummyLoaderDecorator postLoad OK")
        return "OK"

    def delete_own(self):
        say("DummyLoaderDecorator preDelete")


LOADERS = {"http": Http}
TRANSFORMATIONS = {"md5": Md5, "tar": Tar, "dummy": Dummy}


def build(repo, words):
    stack = Loader(repo, None)
    for word in words:
        name, colon, argument = word.partition(":")
        argument = argument if colon else None
        if name in LOADERS:
            stack = LOADERS[name](repo, argument)
        elif name in TRANSFORMATIONS:
            stack = TRANSFORMATIONS[name](repo, argument, stack)
        else:
            say("unknown loader class:", name)
            sys.exit(255)
    return stack


class Repository:
    def __init__(self, state_file, stack, is_named):
        self.state_file, self.stack, self.is_named = state_file, stack, is_named
        self.holder = os.getppid() or os.getpid()
        self.lock = LinkLock(state_file + ".lock")
        self.data = {"state": "UNKNOWN", "readers": [], "writer": None}

    def open(self):
        self.lock.take()
        try:
            with open(self.state_file) as file:
                # what this process knows already stays, if the file has it no more
                self.data.update(json.load(file))
        except FileNotFoundError:
            pass

    def write(self):
        point("write")
        with open(self.state_file, "w") as file:
            point("truncated")
            json.dump(self.data, file)

    def close(self):
        self.write()
        self.lock.give_back()

    def register(self):
        if self.holder not in self.data["readers"]:
            self.data["readers"].append(self.holder)

    def use(self):
        say(self.holder, "try use")
        self.open()
        while self.data["state"] == "IN_PROGRESS" or self.data["writer"] is not None:
            if not is_alive(self.data["writer"]):
                self.data["writer"] = None
                self.data["state"] = "BROKEN"
            self.register()
            self.close()
            say(self.holder, "waits")
            point("waits")
            time.sleep(POLL)
            self.open()
        if self.data["state"] == "OK":
            self.register()
            self.close()
            say(self.holder, "use registered in repo", self.state_file)
            return True
        if self.data["state"] in ("UNKNOWN", "BROKEN"):
            return self.load()
        say(self.holder, "uh? should not happen in Repo.use()", self.data["state"])
        self.close()
        return False

    def load(self):
        say(self.holder, "loading")
        self.data["writer"] = self.holder
        reports, queue = os.pipe()
        if os.fork() == 0:
            # The lock is the parent's: no destructor runs here.
            status = 1
            try:
                os.close(reports)
                self.stack.load(lambda state: os.write(queue, (state + "\n").encode()))
                status = 0
            except Exception:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(queue)
        os.set_blocking(reports, False)
        state = "UNKNOWN"
        self.data["state"] = state
        self.close()
        while state not in ("OK", "BROKEN"):
            point("poll")
            time.sleep(POLL)
            try:
                state = (os.read(reports, 4096).decode().split() or [state])[-1]
            except BlockingIOError:
                pass
            self.open()
            self.data["state"] = state
            self.close()
        point("loaded")
        self.open()
        self.data["writer"] = None
        if state == "OK":
            self.register()
        self.close()
        say(self.holder, "got use", state == "OK")
        return state == "OK"

    def unuse(self):
        self.open()
        readers = self.data["readers"]
        if self.holder not in readers:
            say(self.holder, "uh? should not happen in Repo.unuse()", self.data["state"])
            return False
        readers.remove(self.holder)
        say(self.holder, "other readers", readers)
        for reader in readers:  # changed while it is walked: of two dead neighbours one stays
            if not is_alive(reader):
                readers.remove(reader)
        if readers:
            self.close()
            return True
        say(self.holder, "destroy")
        point("teardown")
        self.stack.delete()
        point("delete")
        os.unlink(self.state_file)
        self.lock.give_back()
        point("rmdir")
        if self.is_named:
            os.rmdir(os.path.dirname(self.state_file))
        return True

    def increment(self, times):
        """Not in the original: a counter in the state file, to see whether an update is lost."""
        for _ in range(times):
            self.open()
            self.data["counter"] = self.data.get("counter", 0) + 1
            self.close()
        return True


def size_of(text):
    units = {"": 1, "B": 1, "k": 10**3, "kB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9}
    digits = text.rstrip("BkMG")
    return int(digits) * units.get(text[len(digits):], 0) if digits.isdigit() else 0


def choose(directories, file, size):
    for base in directories:
        if os.path.isfile(os.path.join(base, file)):
            return base
    if size <= 0:
        return directories[0]
    for base in directories:
        room = os.statvfs(base)
        if room.f_bsize * room.f_bfree >= size:
            return base
    sys.stderr.write("ERROR: Could not find a place to put repository\n")
    sys.exit(255)


def main():
    parser = optparse.OptionParser()
    parser.add_option("-f", "--file", default="repofile")
    parser.add_option("-d", "--directories", default="/tmp:/var/tmp")
    parser.add_option("-s", "--size", default="0")
    parser.add_option("-n", "--name", default="")
    for flag in ("--use", "--unuse", "--location"):
        parser.add_option(flag, action="store_true", default=False)
    parser.add_option("--increment", type="int", default=0, help=optparse.SUPPRESS_HELP)
    options, words = parser.parse_args()
    base = choose(options.directories.split(":"), options.file, size_of(options.size))
    repo = os.path.normpath(os.path.join(base, options.name))
    if not os.path.isdir(repo):
        point("mkdir")
        os.mkdir(repo)
    point("directory")
    stack = build(repo, words)
    repository = Repository(os.path.join(repo, options.file), stack, bool(options.name))
    good = True
    try:
        if options.use:
            good = repository.use() and good
        if options.unuse:
            good = repository.unuse() and good
            say(repository.holder, "ok", good)
        if options.increment:
            repository.increment(options.increment)
    finally:
        if os.getpid() == repository.lock.owner:
            repository.lock.give_back(is_end=True)
    if not good:
        sys.exit(255)
    if options.location:
        say(repo)


if __name__ == "__main__":
    main()
