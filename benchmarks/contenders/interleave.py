"""One run of all contenders in turns, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contenders import Contender
from contenders.ratios import sqnr_db
from contenders.usual_speed import UsualSpeed
from contenders.worker import Block, Worker, WorkerError
from mpq_compile.lock import timing_lock

# A run is long: it outwaits other timings.
_LOCK_S = 3600.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a run is timed.

    Args:
        rounds: Blocks of each contender.
        pause_s: Seconds before each block, in which the last one's threads fall asleep.
        block: Warm-up and length of a block.
        tries: How often a block is taken at most, where the machine was slow beside it.
        patience_s: Seconds to wait before each try until the machine is as usual.
    """

    rounds: int = 12
    pause_s: float = 0.3
    block: Block = Block(warm_s=0.1, seconds=0.2)
    tries: int = 2
    patience_s: float = 1.0


QUICK = Schedule(
    rounds=3, pause_s=0.02, block=Block(warm_s=0.01, seconds=0.03), tries=1, patience_s=0.0
)


@dataclass(kw_only=True)
class Result:
    """What one contender did.

    Args:
        contender: Which.
        reason: Why it has no times, or "".
        prepare_s: Seconds of export, quantization and compilation.
        sqnr_db: Signal of the float output over the noise in its own, dB; None where not compared.
        block_ms: Median of each block of calls, ms, by round.
        calls: Calls that were timed.
        disturbed: Blocks that count although the machine was slow beside every try.
    """

    contender: Contender
    reason: str = ""
    prepare_s: float = 0.0
    sqnr_db: float | None = None
    block_ms: list[float] = field(default_factory=list)
    calls: int = 0
    disturbed: int = 0

    @property
    def median_ms(self) -> float:
        """Median of the blocks."""
        return statistics.median(self.block_ms)

    @property
    def spread_ms(self) -> float:
        """Interquartile range of the blocks."""
        low, high = np.quantile(self.block_ms, [0.25, 0.75])
        return float(high - low)


def run(
    contenders: Sequence[Contender],
    task: Any,
    schedule: Schedule,
    expected: Sequence[Any] = (),
    say: Say = lambda text: None,
) -> list[Result]:
    """Prepare all contenders, compare their outputs with float, time them in turns.

    Args:
        contenders: What runs; what cannot is reported with its reason.
        task: Given to each; has ``threads`` and ``folder``.
        schedule: How it is timed.
        expected: Float outputs on the task's compared inputs; none for no comparison.
        say: Told of progress.
    """
    results = [Result(contender=c, reason=c.missing()) for c in contenders]
    workers: dict[str, Worker] = {}
    try:
        for result in results:
            if not result.reason:
                say(f"preparing {result.contender.name}")
                _prepare(result, task, expected, workers)
        _time_in_turns({r.contender.name: r for r in results}, workers, schedule, task.threads, say)
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _prepare(
    result: Result, task: Any, expected: Sequence[Any], workers: dict[str, Worker]
) -> None:
    name = result.contender.name
    try:
        # Preparing keeps the machine busy: nothing may be timed beside it, but by itself.
        with nullcontext() if result.contender.times else timing_lock(_LOCK_S, shared=True):
            worker = Worker(result.contender, task, _log(task.folder, name))
            workers[name] = worker
            result.prepare_s = worker.prepare_s
            if len(expected):
                result.sqnr_db = sqnr_db(worker.outputs(), expected)
    except WorkerError as error:
        result.reason = str(error)
        if name in workers:
            workers.pop(name).close()


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '_')}.log"


def _time_in_turns(
    results: Mapping[str, Result],
    workers: Mapping[str, Worker],
    schedule: Schedule,
    threads: int,
    say: Say,
) -> None:
    """Fill in the blocks; the order within a round is drawn anew each time."""
    order, usual = random.Random(0), None
    for number in range(schedule.rounds):
        say(f"round {number + 1} of {schedule.rounds}")
        alive = [name for name in workers if not results[name].reason]
        with timing_lock(_LOCK_S):
            usual = usual or UsualSpeed(threads)
            for name in order.sample(alive, len(alive)):
                _time_block(results[name], workers[name], schedule, usual)


def _time_block(result: Result, worker: Worker, schedule: Schedule, usual: UsualSpeed) -> None:
    """Take one block, again where the machine was slow beside it."""
    for _ in range(schedule.tries):
        usual.wait(schedule.patience_s)
        time.sleep(schedule.pause_s)
        try:
            samples = worker.block(schedule.block)
        except WorkerError as error:
            result.reason = str(error)
            return
        time.sleep(schedule.pause_s / 4)
        calm = usual.holds()
        if calm:
            break
    result.block_ms.append(statistics.median(samples))
    result.calls += len(samples)
    result.disturbed += not calm
