"""A process that dies by SIGKILL at its n-th write to a file: a shim in C before libc's own.

With the power cut as well, what it had not synced by then is lost, or a part of that.
"""

import collections
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT
from faults import compiled

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* KILL_FILE: the beginning of the names of files whose writes count, or with KILL_EXACT the name;
   KILL_AT: the number of the write before which the process dies. */
static void count(int fd) {
    static int seen;
    const char *file = getenv("KILL_FILE"), *at = getenv("KILL_AT");
    char link[64], name[PATH_MAX + 1];
    if (!file || !at) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, PATH_MAX);
    if (length < 0) return;
    name[length] = 0;
    if (getenv("KILL_EXACT") ? strcmp(name, file) : strncmp(name, file, strlen(file))) return;
    if (__atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) == atoi(at)) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

/* CUT_LOG: a file that gets each write, with what it overwrites, and each sync. */
static pthread_mutex_t one_by_one = PTHREAD_MUTEX_INITIALIZER;
static void note(int fd, const void *data, size_t size, int64_t at) {
    static int log = -1;
    const char *file = getenv("KILL_FILE"), *to = getenv("CUT_LOG");
    char link[64], name[PATH_MAX + 1];
    struct stat now;
    if (!file || !to) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, PATH_MAX);
    if (length < 0) return;
    name[length] = 0;
    if (strncmp(name, file, strlen(file)) || fstat(fd, &now)) return;
    if (log < 0) log = open(to, O_CREAT | O_WRONLY | O_APPEND, 0600);
    char *old = malloc(size + 1);
    ssize_t had = data ? pread(fd, old, size, at) : 0;
    int64_t head[5] = {length, at, had < 0 ? 0 : had, data ? (int64_t) size : -1, now.st_size};
    if (write(log, head, sizeof head) < 0 || write(log, name, length) < 0) abort();
    if (data && (write(log, old, head[2]) < 0 || write(log, data, size) < 0)) abort();
    free(old);
}

#define WRITES(name, offset) \
    ssize_t name(int fd, const void *data, size_t size, offset at) { \
        static ssize_t (*real)(int, const void *, size_t, offset); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        pthread_mutex_lock(&one_by_one); \
        count(fd); \
        note(fd, data, size, at); \
        ssize_t done = real(fd, data, size, at); \
        pthread_mutex_unlock(&one_by_one); \
        return done; \
    }
#define SYNCS(name) \
    int name(int fd) { \
        static int (*real)(int); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        pthread_mutex_lock(&one_by_one); \
        int done = real(fd); \
        note(fd, 0, 0, 0); \
        pthread_mutex_unlock(&one_by_one); \
        return done; \
    }
SYNCS(fsync)
SYNCS(fdatasync)
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)
"""

# Registers without a pause, in four threads; a line for each that was acknowledged.
LOAD = """
import os, pathlib, sys, threading
from minris.store.models import database
from minris.store.sqlite import StoreLock, backup_store, open_store
from minris.store.writer import Writer

path, mixed = pathlib.Path(sys.argv[1]), "mixed" in sys.argv
lock = StoreLock(path)
open_store(path)
if "careless" in sys.argv:
    database.obj._pragmas = [*database.obj._pragmas, ("synchronous", "off")]
writer = Writer()

def count(name):
    sql = "INSERT INTO counter (name, last) VALUES (?, 1)"
    database.execute_sql(sql, (name + " " + "x" * 3000,))

def client(who):
    for number in range(3000):
        name = f"{os.getpid()}-{who}-{number}"
        writer.submit(count, name).result()
        os.write(1, f"{name}\\n".encode())

def copies():
    while True:
        backup_store(path, path.with_name("copy.db"))

for who in range(4):
    threading.Thread(target=client, args=(who,)).start()
if mixed:
    threading.Thread(target=copies, daemon=True).start()
"""

# A restore in each of many copies of a folder, dying at its first, second, … step with a file.
CUT_RESTORES = """
import os, pathlib, shutil, signal, sys
from minris.access.context import Context
from minris.config.ini import load_config
from minris.housekeeping.restoring import restore as restore_whole
from minris.store.sqlite import StoreLock, restore_store

state, backup, copies = map(pathlib.Path, sys.argv[1:4])
whole, config = sys.argv[4] == "whole", load_config()
STEPS = {"os.rename", "os.remove", "os.link", "open", "sqlite3.connect"}

def restore(path, steps):
    def hook(event, arguments):
        nonlocal steps
        steps -= event in STEPS
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    with StoreLock(path):
        if whole:
            restore_whole(Context(config), path, backup)
        else:
            restore_store(path, backup)
    os._exit(0)

for steps in range(200):
    folder = copies / str(steps)
    shutil.copytree(state, folder)
    child = os.fork()
    if not child:
        restore(folder / "minris.db", steps)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


class Unsynced(NamedTuple):
    """A write that was not synced: the file's size before it, what it overwrote, what it wrote."""

    at: int
    size: int
    old: bytes
    new: bytes


def cut_power(log: Path, chance: random.Random) -> int:
    """Lose what was not synced when the process died, all or some of it; return how many writes.

    A write that is kept may be torn at a sector; whatever order they were made in says nothing.
    """
    left: dict[Path, list[Unsynced]] = collections.defaultdict(list)
    with log.open("rb") as file:
        while len(head := file.read(40)) == 40:
            length, at, had, given, size = struct.unpack("5q", head)
            path = Path(file.read(length).decode())
            if given < 0:
                left.pop(path, None)
            else:
                left[path].append(Unsynced(at, size, file.read(had), file.read(given)))
    kept = chance.choice((0.0, 0.5, 0.9))
    for path, writes in left.items():
        if not path.exists():
            continue
        with path.open("r+b") as file:
            for one in reversed(writes):
                file.seek(one.at)
                file.write(one.old)
                file.truncate(one.size)
            for one in writes:
                if chance.random() < kept:
                    torn = chance.randrange(0, len(one.new) + 1, 512) or len(one.new)
                    file.seek(one.at)
                    file.write(one.new[: torn if chance.random() < 0.2 else None])
    log.unlink()
    return sum(map(len, left.values()))


def cut_restores(state: Path, backup: Path, copies: Path, how: str = "") -> list[Path]:
    """The folders in which a restore over a state was killed, and the last where it was not.

    how  "whole": with all that is carried over, as the command does it
    """
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", CUT_RESTORES, *map(str, (state, backup, copies, how))]
    subprocess.run(command, cwd=state, env=environ, check=True, timeout=120)
    return sorted(copies.iterdir(), key=lambda folder: int(folder.name))


def killed_at(number: int, script: str, path: Path, *arguments: object, **more: str) -> list[str]:
    """Run a script on a store until its n-th write to the store's file; its lines of output.

    more  KILL_FILE="…": the files whose names begin so, rather than the store's own file
    """
    environ = {"KILL_AT": str(number), **(more or {"KILL_FILE": str(path), "KILL_EXACT": "1"})}
    environ |= {"LD_PRELOAD": str(compiled(SHIM)), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), *map(str, arguments)],
        cwd=path.parent, env=os.environ | environ,
        stdout=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, "it ended before that write"
    whole = done.stdout if done.stdout.endswith("\n") else done.stdout.rpartition("\n")[0]
    return whole.splitlines()
