"""The timing lock excludes processes and threads, and ends with its holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mpq_compile import lock
from mpq_compile.errors import DeviceError, ProfileError
from mpq_compile.lock import file_lock, make_cache_dir, timing_lock, user_cache_dir

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from mpq_compile.lock import timing_lock
with timing_lock(5):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder() -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def test_another_process_is_excluded_and_named() -> None:
    with holder() as process:
        with pytest.raises(DeviceError, match="the lock is taken") as caught, timing_lock(0.1):
            pass
        assert caught.value.found == f"held by process {process.pid}"
        assert caught.value.remedy and str(caught.value.where).endswith("timing.lock")


def test_the_lock_is_waited_for() -> None:
    with holder() as process:
        assert process.stdin is not None
        threading.Timer(0.2, process.stdin.close).start()
        with timing_lock(10):
            pass


def test_a_killed_holder_frees_the_lock() -> None:
    with holder() as process:
        process.kill()
        process.wait()
        with timing_lock(5):
            pass


def test_threads_take_turns() -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with timing_lock(10):
                inside += 1
                most = max(most, inside)
                time.sleep(0.005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_it_is_not_reentrant_and_says_so() -> None:
    with timing_lock(1), pytest.raises(DeviceError) as caught, timing_lock(0.0):
        pass
    assert caught.value.found == "held by this process itself"


def test_an_error_inside_frees_the_lock() -> None:
    with pytest.raises(RuntimeError), timing_lock(1):
        raise RuntimeError
    with timing_lock(0.0):
        pass


def test_shared_holders_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, 0.0, shared=True), file_lock(path, 0.0, shared=True):
        with pytest.raises(DeviceError) as caught, file_lock(path, 0.0):
            pass
        assert caught.value.found == "held by another process"
    with file_lock(path, 0.0):
        with pytest.raises(DeviceError) as caught, file_lock(path, 0.0, shared=True):
            pass
        assert caught.value.found == "held by this process itself"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_free_the_lock(tmp_path: Path) -> None:
    with ExitStack() as held:
        held.enter_context(file_lock(tmp_path / "lock", 0.0))
        child = os.fork()
        if child == 0:
            held.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(DeviceError), file_lock(tmp_path / "lock", 0.0):
            pass


def test_without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.raises(DeviceError, match="no flock") as caught, timing_lock(1):
        pass
    assert caught.value.remedy


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(DeviceError, match="cannot be used"), timing_lock(1):
        pass


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    if sys.platform == "linux":
        assert user_cache_dir() == tmp_path / ".cache" / "mpq_compile"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ProfileError, match="cannot be created"):
        make_cache_dir()
