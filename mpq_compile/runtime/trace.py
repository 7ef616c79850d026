"""Where the time of a deployed network goes: ``python -m mpq_compile.runtime.trace CALLS FOLDER``.

On demand a network writes down when each task began and ended each piece of a kernel
(``lower.entry``). Calls that do so and calls that do not run in turns here, so that what looking at
the clock costs is known too. Needs TVM's runtime and NumPy, no torch.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import ArtifactError
from mpq_compile.lower.interface import Step
from mpq_compile.runtime.artifact import TRACE, Manifest, open_artifact
from mpq_compile.runtime.executor import Executor
from mpq_compile.runtime.native import as_tensor
from mpq_compile.runtime.threads import thread_count
from mpq_compile.runtime.timing import example_inputs
from mpq_compile.types import Plan

CALLS = 200
# Seconds of warming up, and after which no further call is begun.
_WARM_S, _MOST_S = 0.3, 20.0
_LEAST_CALLS = 5


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """A kernel of a network.

    Args:
        name: The site, or the node of the graph, that it computes.
        kernel: Its function.
        time_us: From the end of the kernel before it to its own end, waiting of tasks for each
            other counted: the median over calls, in µs.
        busy: Share of that in which the threads computed; the rest is waiting.
    """

    name: str
    kernel: str
    time_us: float
    busy: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What single calls took, kernel by kernel.

    Args:
        steps: In the order in which they run.
        total_us: Of a traced call, from its first kernel to the end of its last: the median, µs.
        call_us: Of a call of the network as it is deployed: the median, µs.
        calls: How many of each were timed.
        threads: That share the tasks of each kernel; fewer than there are tasks where the network
            was built for more.
    """

    steps: Sequence[TracedStep]
    total_us: float
    call_us: float
    calls: int
    threads: int

    def of_names(self) -> dict[str, float]:
        """Return the µs of each name, all its kernels together, in the order of the network."""
        sums: dict[str, float] = {}
        for step in self.steps:
            sums[step.name] = sums.get(step.name, 0.0) + step.time_us
        return sums

    def __str__(self) -> str:
        """Return a table of the kernels, in their order."""
        width = max(len(step.name) for step in self.steps)
        lines = [f"{'site or node':{width}s} {'µs':>9s} {'share':>6s} {'busy':>5s}"]
        lines += [
            f"{step.name:{width}s} {step.time_us:9.2f} {step.time_us / self.total_us:6.1%} "
            f"{step.busy:5.0%}"
            for step in self.steps
        ]
        return "\n".join([*lines, f"a call: {self.call_us:.4g} µs, {self.threads} threads"])

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        """Rebuild from :meth:`to_json`."""
        steps = [
            TracedStep(
                name=str(step["name"]),
                kernel=str(step["kernel"]),
                time_us=float(step["time_us"]),
                busy=float(step["busy"]),
            )
            for step in data["steps"]
        ]
        return cls(
            steps=steps,
            total_us=float(data["total_us"]),
            call_us=float(data["call_us"]),
            calls=int(data["calls"]),
            threads=int(data["threads"]),
        )


def traceable(folder: Path) -> tuple[Manifest, Plan]:
    """Open an artifact that says which kernels it calls.

    Raises:
        ArtifactError: It does not, is missing or damaged.
    """
    manifest, plan = open_artifact(folder)
    if manifest.steps:
        return manifest, plan
    machine = manifest.arena is None
    raise ArtifactError(
        "the artifact does not say which kernels it calls",
        where=str(folder),
        expected="a network that is one function",
        found="one that Relax's virtual machine runs" if machine else "an older artifact",
        remedy="`mpq verify` times it as a whole" if machine else "compile the network again",
    )


def write_trace(folder: Path, trace: Trace) -> None:
    """Put a trace beside an artifact, which itself does not change."""
    text = json.dumps(trace.to_json(), indent=1) + "\n"
    # A report that is written meanwhile reads the whole of one trace.
    partial = folder / f"{TRACE}.{os.getpid()}"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / TRACE)
    finally:
        partial.unlink(missing_ok=True)


def read_trace(folder: Path) -> Trace | None:
    """Return the last trace of an artifact, or None.

    Raises:
        ArtifactError: The file is damaged.
    """
    path = folder / TRACE
    if not path.is_file():
        return None
    try:
        return Trace.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            "the trace beside the artifact is damaged",
            where=str(path),
            expected="what `mpq trace` wrote",
            found=str(error)[:200],
            remedy="delete the file; `mpq trace` measures again",
        ) from error


def trace_folder(folder: Path, calls: int = CALLS) -> Trace:
    """Load an artifact into this process and trace it on random inputs.

    Raises:
        ArtifactError: It does not say which kernels it calls.
    """
    manifest, _ = traceable(folder)
    executor = Executor(folder, manifest)
    tensors = [as_tensor(value) for value in example_inputs(executor)]
    shape = sum(step.phases for step in manifest.steps), manifest.threads, 2
    stop = time.perf_counter() + _WARM_S
    while time.perf_counter() < stop:
        executor.run_flat(tensors)
        executor.traced(tensors, shape)
    looks: list[np.ndarray] = []
    whole_us: list[float] = []
    stop = time.perf_counter() + _MOST_S
    while len(looks) < calls and (len(looks) < _LEAST_CALLS or time.perf_counter() < stop):
        start = time.perf_counter()
        executor.run_flat(tensors)
        whole_us.append((time.perf_counter() - start) * 1e6)
        looks.append(executor.traced(tensors, shape)[1])
    threads = min(manifest.threads, thread_count())
    return summary(manifest.steps, np.stack(looks), statistics.median(whole_us), threads)


def summary(steps: Sequence[Step], stamps: np.ndarray, call_us: float, threads: int) -> Trace:
    """Return the medians of what was written down.

    Args:
        steps: The kernels, of one phase at least each.
        stamps: When tasks began and ended, int64 ns [calls, phases, tasks, 2].
        call_us: Of a call that is not traced, in µs.
        threads: That shared the tasks.
    """
    ends = stamps[..., 1].max(-1)
    start = stamps[:, 0, :, 0].min(-1)
    # A phase lasts from when the last task has finished the one before it.
    spans = np.diff(ends, prepend=start[:, None])
    worked = (stamps[..., 1] - stamps[..., 0]).sum(-1) / threads
    firsts = np.cumsum([0, *(step.phases for step in steps[:-1])])
    times_ns = np.add.reduceat(spans, firsts, axis=1)
    shares = np.add.reduceat(worked, firsts, axis=1) / np.maximum(times_ns, 1)
    columns = zip(np.median(times_ns, 0), np.median(shares, 0), strict=True)
    return Trace(
        steps=[
            TracedStep(
                name=step.name,
                kernel=step.kernel,
                time_us=float(time_ns) * 1e-3,
                busy=float(np.clip(share, 0.0, 1.0)),
            )
            for step, (time_ns, share) in zip(steps, columns, strict=True)
        ],
        total_us=float(np.median(ends[:, -1] - start)) * 1e-3,
        call_us=call_us,
        calls=len(stamps),
        threads=threads,
    )


def main(arguments: Sequence[str]) -> None:
    """Trace an artifact: the number of calls, then the folder; print the trace as JSON."""
    calls, folder = arguments
    print(json.dumps(trace_folder(Path(folder), int(calls)).to_json()))


if __name__ == "__main__":
    main(sys.argv[1:])
