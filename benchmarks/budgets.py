"""Latency budgets from the fastest network to float: are they kept when accepted, and later?

    python benchmarks/budgets.py [--nets resnet20,squeezenet] [--count 10] [--json FILE]

For each pretrained network, ``count`` budgets are spread evenly from the fastest assignment to the
float one, as this machine's profile predicts them, and each goes through the loop of
``mpq.compile`` with a latency model that knows nothing of the budgets before. What was accepted is
measured again afterwards, in one more fresh process each, all in an order of their own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shared_nets import load_net

from mpq_compile.closed_loop import compile_session
from mpq_compile.errors import InfeasibleBudgetError
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.verify import BLOCKS, settled
from mpq_compile.session import Session
from mpq_compile.types import Budget

CANDIDATES = ["fp32", "bf16", "w8a8", "w4a8"]
# How long to wait before each attempt to measure again while the machine is not as usual.
_PAUSES_S = (0.0, 1.0, 5.0, 15.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One budget. Times in ms; ``again_ms`` is the later measurement, settled or not."""

    net: str
    budget_ms: float
    status: str
    rounds: int
    predicted_ms: float | None = None
    measured_ms: float | None = None
    upper95_ms: float | None = None
    again_ms: float | None = None
    again_settled: bool | None = None
    reference_drift: float | None = None
    process_spread: float | None = None

    @property
    def slack(self) -> float:
        """Share of the budget that the accepted network leaves unused."""
        return 1 - (self.measured_ms or 0.0) / self.budget_ms


def budgets_of(session: Session, count: int) -> list[float]:
    """Return budgets in ms, from just above the fastest uniform network to the float one."""
    totals = {
        name: session.costing.latency.predict({site.id: name for site in session.network.sites})
        for name in CANDIDATES
    }
    fastest = min(totals.values(), key=lambda p: p.mean_us)
    slowest = totals["fp32"].mean_us
    # The fastest network itself must fit with its interval, or no budget could be kept.
    low = fastest.interval_us[1]
    step = (slowest - low) / max(count - 1, 1)
    return [(low + number * step) / 1e3 for number in range(count)]


def attempt(session: Session, name: str, budget_ms: float, folder: Path) -> Row:
    """Compile once from what a new session would know; keep what was accepted in ``folder``."""
    session.costing.forget()
    try:
        network = compile_session(session, Budget(latency_ms=budget_ms))
    except InfeasibleBudgetError:
        return Row(net=name, budget_ms=budget_ms, status="infeasible", rounds=0)
    seen = network.verification
    assert seen is not None
    network.save(folder)
    return Row(
        net=name,
        budget_ms=budget_ms,
        status=seen.status,
        rounds=seen.rounds,
        predicted_ms=network.plan.predicted.latency_ms,
        measured_ms=seen.latency_ms,
        upper95_ms=seen.latency_ms_upper95,
        reference_drift=seen.reference_drift,
        process_spread=seen.process_spread,
    )


def measured_again(session: Session, rows: Sequence[Row], folders: Sequence[Path]) -> list[Row]:
    """Measure what was accepted once more, each in a fresh process, in a random order.

    A process beside which the reference workload is off is repeated after a pause.
    """
    again: dict[int, tuple[float, bool]] = {}
    order = [number for number, row in enumerate(rows) if row.status == "accepted"]
    random.Random(0).shuffle(order)
    with session.device.lock():
        for number in order:
            for pause_s in _PAUSES_S:
                time.sleep(pause_s)
                timings = session.device.time_networks([folders[number]], BLOCKS)
                if settled([timings]):
                    break
            again[number] = statistics.median(timings.medians_ms(0)), settled([timings])
    return [
        Row(**{**asdict(row), "again_ms": ms, "again_settled": calm})
        for number, row in enumerate(rows)
        for ms, calm in [again.get(number, (None, None))]
    ]


def run(name: str, count: int) -> list[Row]:
    """Run all budgets of a network."""
    net = load_net(name)
    session = Session(
        net.model,
        net.example,
        [net.calibration[:64]],
        candidates=CANDIDATES,
        recipe=Recipe(rounding="nearest"),
    )
    with tempfile.TemporaryDirectory(prefix="mpq-budgets-") as folder:
        folders = [Path(folder) / str(number) for number in range(count)]
        rows = []
        for budget_ms, place in zip(budgets_of(session, count), folders, strict=True):
            rows.append(attempt(session, name, budget_ms, place))
            print(_line(rows[-1]), flush=True)
        return measured_again(session, rows, folders)


def _line(row: Row) -> str:
    if row.measured_ms is None or row.process_spread is None:
        return f"{row.net:10s} ≤ {row.budget_ms:.4f} ms  {row.status}"
    return (
        f"{row.net:10s} ≤ {row.budget_ms:.4f} ms  predicted {row.predicted_ms:.4f}  measured "
        f"{row.measured_ms:.4f} (upper {row.upper95_ms:.4f})  {row.status}, round {row.rounds}  "
        f"slack {100 * row.slack:.1f} %  between processes {100 * row.process_spread:.1f} %"
    )


def show(rows: Sequence[Row]) -> None:
    """Print what was asked."""
    accepted = [row for row in rows if row.status == "accepted"]
    violated = [row for row in accepted if (row.upper95_ms or 0) > row.budget_ms]
    later = [row for row in accepted if (row.again_ms or 0) > row.budget_ms]
    unsettled = sum(row.again_settled is False for row in accepted)
    rounds = [row.rounds for row in accepted]
    others = sorted({row.status for row in rows} - {"accepted"})
    print(
        f"{len(accepted)} of {len(rows)} accepted"
        + "".join(f", {sum(r.status == s for r in rows)} {s}" for s in others)
    )
    print(
        f"above the budget when accepted: {len(violated)}; when measured again: {len(later)} "
        f"({unsettled} of {len(accepted)} measured while the machine was not as usual)"
    )
    for row in later:
        state = "" if row.again_settled else ", the machine not as usual"
        print(f"  {row.net} ≤ {row.budget_ms:.4f} ms measured {row.again_ms:.4f} ms later{state}")
    if accepted:
        slack = statistics.fmean(row.slack for row in accepted)
        print(
            f"rounds {statistics.fmean(rounds):.1f} on average, {max(rounds)} at most; "
            f"slack {100 * slack:.1f} % on average"
        )


def main() -> None:
    """Run the networks, print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default="resnet20,squeezenet")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for name in options.nets.split(",") for row in run(name, options.count)]
    show(rows)
    if options.json:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
