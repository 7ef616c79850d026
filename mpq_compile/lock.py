"""Locks between processes, and the cache folder they live in."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpq_compile.errors import DeviceError, ProfileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POLL_S = 0.02


def user_cache_dir() -> Path:
    """Return this user's cache folder of the package; it need not exist."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mpq_compile"


def make_cache_dir() -> Path:
    """Create the cache folder where it is missing, and return it; raise ``ProfileError``."""
    folder = user_cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(
            "the cache folder cannot be created",
            where=str(folder),
            expected="a folder that this user may write to",
            found=error,
            remedy="set XDG_CACHE_HOME to such a folder",
        ) from error
    return folder


@contextmanager
def timing_lock(timeout_s: float = 600.0, *, shared: bool = False) -> Iterator[None]:
    """Hold the one lock for anything timed on a device: two timings at once disturb each other.

    ``shared`` is for heavy work that is not timed: any number of those, but no timing beside them.
    The lock excludes other threads too and is not re-entrant. It ends with its process, however
    that ends. It covers the processes that share a cache folder, so usually those of one user.

    Raises:
        DeviceError: The lock was not free within ``timeout_s`` seconds, or there are no locks here.
    """
    with file_lock(make_cache_dir() / "timing.lock", timeout_s, shared=shared):
        yield


@contextmanager
def file_lock(path: Path, timeout_s: float, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on ``path``, a file that is created and never removed.

    Args:
        path: The file, on a local disk.
        timeout_s: Seconds to wait.
        shared: Hold it beside others that share it; otherwise alone.

    Raises:
        DeviceError: The lock was not free within ``timeout_s`` seconds, or there are no locks here.
    """
    if fcntl is None:
        raise DeviceError(
            "this system has no flock",
            where=str(path),
            expected="a POSIX system",
            found=sys.platform,
            remedy="run on Linux or macOS, or under WSL",
        )
    descriptor, owner = _opened(path), os.getpid()
    try:
        _acquire(descriptor, path, timeout_s, shared)
        try:
            _write_holder(descriptor, "" if shared else str(owner))
            yield
        finally:
            # A forked child has a copy of the descriptor: it must not unlock for its parent, and
            # must not keep the lock by its copy when the parent ends it.
            if os.getpid() == owner:
                _write_holder(descriptor, "")
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _acquire(descriptor: int, path: Path, timeout_s: float, shared: bool) -> None:
    """Poll for the lock: a blocking flock has no time limit."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                raise _unusable(path, error) from error
        if time.monotonic() >= deadline:
            raise _not_free(path, timeout_s, _holder(descriptor))
        time.sleep(_POLL_S)


def _write_holder(descriptor: int, pid: str) -> None:
    """Leave the holder's id, or none, for the message of whoever waits in vain."""
    with suppress(OSError):  # a full disk costs the message, not the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, pid.encode(), 0)


def _holder(descriptor: int) -> str:
    pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    if pid == str(os.getpid()):
        return "held by this process itself"
    return f"held by process {pid}" if pid else "held by another process"


def _not_free(path: Path, timeout_s: float, holder: str) -> DeviceError:
    return DeviceError(
        "the lock is taken",
        where=str(path),
        expected=f"a free lock within {timeout_s:g} s",
        found=holder,
        remedy="wait for the other run to end, or stop it; the lock ends with its process",
    )


def _unusable(path: Path, error: OSError) -> DeviceError:
    return DeviceError(
        "the lock file cannot be used",
        where=str(path),
        expected="a file on a local disk that this user may write to",
        found=error,
        remedy="set XDG_CACHE_HOME to such a folder",
    )
