"""A contender in a process of its own, which sleeps on a pipe while the others are timed.

One process for each runtime keeps their thread pools, allocators and settings apart, and lets the
thread count stand in the environment before any of them is imported.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

from contenders import Contender

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MPQ_THREADS", "TVM_NUM_THREADS")
_ANSWER_S = 1800.0
_LEAST_CALLS = 3


class WorkerError(Exception):
    """A contender failed, or its process died."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """How long a block of calls is.

    Args:
        warm_s: Seconds of calls before it, not counted.
        seconds: Seconds of calls; at least three are made.
    """

    warm_s: float
    seconds: float


class Worker:
    """The parent's end: commands to one contender, and its answers."""

    def __init__(self, contender: Contender, task: Any, log: Path) -> None:
        self.name, self._log = contender.name, log
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, task.threads, str(log))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.prepare_s: float = self._ask("prepare", contender, task)
        except WorkerError:
            self.close()
            raise

    def outputs(self) -> list[Any]:
        """Return the float32 outputs on the inputs that are compared."""
        return self._ask("outputs")

    def block(self, block: Block) -> list[float]:
        """Return the milliseconds of each call of a block."""
        return self._ask("block", block)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, *command: Any) -> Any:
        with suppress(BrokenPipeError):  # _answer() says how it ended
            self._pipe.send(command)
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(_ANSWER_S):
                raise WorkerError(f"no answer within {_ANSWER_S:g} s; see {self._log}")
            done, value = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(10)
            code = self._process.exitcode
            raise WorkerError(f"its process ended with code {code}; see {self._log}") from error
        if not done:
            raise WorkerError(value)
        return value


def _serve(pipe: Connection, threads: int, log: str) -> None:
    """The worker's end: answer commands until the parent is gone."""
    os.environ.update({name: str(threads) for name in _THREAD_VARIABLES})
    # A pool of compiling processes would stay beside what is timed.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    _redirect(log)
    Thread(target=_end_with_parent, daemon=True).start()
    host = _Host()
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while True:
            command, *arguments = pipe.recv()
            pipe.send(_answered(partial(getattr(host, command), *arguments)))


def _end_with_parent() -> None:
    """End this process when its parent does: a command may take minutes without a look at it."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _answered(action: Callable[[], Any]) -> tuple[bool, Any]:
    """Return what ``action`` returns, or how it failed."""
    try:
        return True, action()
    except Exception as error:
        traceback.print_exc()
        return False, f"{type(error).__name__}: {str(error).strip()[:300]}"


def _redirect(log: str) -> None:
    """Send what runtimes print, from C too, to a file."""
    with open(log, "wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)


class _Host:
    """What a worker does; a public method is a command."""

    def __init__(self) -> None:
        self._prepared: Any = None

    def prepare(self, contender: Contender, task: Any) -> float:
        """Prepare the contender and call it once; return the seconds."""
        import torch

        torch.set_num_threads(task.threads)
        torch.set_grad_enabled(False)
        start = time.perf_counter()
        self._prepared = contender.prepare(task)
        self._prepared.run(self._prepared.example.clone())
        return time.perf_counter() - start

    def outputs(self) -> list[Any]:
        """Return float32 outputs on the compared inputs."""
        import numpy as np

        # A runtime may hand out a buffer that its next call overwrites.
        run = self._prepared.run
        return [np.array(run(x.clone()), np.float32) for x in self._prepared.compared]

    def block(self, block: Block) -> list[float]:
        """Return the milliseconds of single calls."""
        x = self._prepared.example.clone()
        buffer, source = x.numpy(), self._prepared.example.numpy()

        def call() -> float:
            # A frozen graph may write into its input. NumPy copies in this thread, where torch
            # would wake its pool beside another runtime's.
            buffer[...] = source
            start = time.perf_counter()
            self._prepared.run(x)
            return (time.perf_counter() - start) * 1e3 / self._prepared.repeats

        _calls(call, block.warm_s)
        return _calls(call, block.seconds)


def _calls(call: Callable[[], float], seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    samples = [call() for _ in range(_LEAST_CALLS)]
    while time.perf_counter() < end:
        samples.append(call())
    return samples
