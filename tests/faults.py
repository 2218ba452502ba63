"""A disk that fails as a test says: a shim in C before libc's own calls."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* FAULT_AT: the beginning of the names of files that are on the disk; FAULT: a file of two numbers,
   the errno of each write and that of each read; 0 for none, and without the file there is none. */
static int fault(int reading) {
    static int (*real)(const char *, int, ...);
    static ssize_t (*get)(int, void *, size_t);
    const char *file = getenv("FAULT");
    char text[64];
    int number[2] = {0, 0}, fd;
    if (!real) real = dlsym(RTLD_NEXT, "open");
    if (!get) get = dlsym(RTLD_NEXT, "read");
    if (!file || (fd = real(file, O_RDONLY)) < 0) return 0;
    ssize_t length = get(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = 0;
    sscanf(text, "%d %d", number, number + 1);
    return number[reading];
}
static int ours(const char *name) {
    const char *begin = getenv("FAULT_AT");
    return begin && !strncmp(name, begin, strlen(begin));
}
static int hit(int fd, int reading) {
    char link[64], name[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, PATH_MAX);
    if (length < 0) return 0;
    name[length] = 0;
    int number = ours(name) ? fault(reading) : 0;
    if (number) errno = number;
    return number;
}
#define CALL(type, name, reading, args, given) \
    type name args { \
        static type (*real) args; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return hit(fd, reading) ? -1 : real given; \
    }
CALL(ssize_t, write, 0, (int fd, const void *data, size_t size), (fd, data, size))
CALL(ssize_t, pwrite, 0, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
CALL(ssize_t, pwrite64, 0, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
CALL(ssize_t, pread, 1, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
CALL(ssize_t, pread64, 1, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
CALL(int, ftruncate, 0, (int fd, off_t size), (fd, size))
CALL(int, ftruncate64, 0, (int fd, off64_t size), (fd, size))
CALL(int, fsync, 0, (int fd), (fd))
CALL(int, fdatasync, 0, (int fd), (fd))
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        static int (*real)(const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (flags & (O_WRONLY | O_RDWR) && ours(path) && fault(0) == EROFS) { \
            errno = EROFS; \
            return -1; \
        } \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
"""


@functools.cache
def compiled(source: str) -> Path:
    """A shim, compiled; the test is skipped where there is no compiler or no LD_PRELOAD."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = Path(tempfile.mkdtemp(prefix="minris-shim-"))
    (folder / "shim.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", "shim.so", "shim.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "shim.so"


class Disk:
    """The disk below some files, and how it fails: `environ` for the process that is to meet it."""

    def __init__(self, at: Path, control: Path) -> None:
        self.control = control
        self.environ = {
            "LD_PRELOAD": str(compiled(SHIM)), "FAULT": str(control), "FAULT_AT": str(at),
        }  # fmt: skip

    def fails(self, writing: int = 0, reading: int = 0) -> None:
        """From now on each write and each read ends with these numbers; 0 for success."""
        new = self.control.with_suffix(".new")
        new.write_text(f"{writing} {reading}")
        os.replace(new, self.control)

    def works(self) -> None:
        """From now on it works."""
        self.fails()
