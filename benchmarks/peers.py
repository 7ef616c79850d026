"""Whole networks, ours against every peer, in one interleaved run.

    pip install -e .[peers]
    python benchmarks/peers.py --net resnet18,encoder [--batch 1] [--candidates w8a8,bf16,fp32]
    python benchmarks/peers.py --gemv

Every contender takes the same contiguous float32 input (NCHW) and gives float32, conversions
counted, with the same threads, in a process of its own. Rounds visit all contenders in an order
drawn anew: a pause, a warm-up, a block of single calls; a block beside which the cores were slower
than at best is taken again, a few times. The table shows the median of the blocks'
medians, their interquartile range, SQNR against the float network, and for ours the peer's time
over ours with its 95 % bootstrap interval over rounds; below it stand the goals.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from contenders import PEERS, named, ours
from contenders.gemv import SIZES, GemvTask, gemv_contenders, gemv_goals
from contenders.goals import goals_of, judged
from contenders.interleave import QUICK, Schedule, run
from contenders.report import document, section, table, verdict_lines
from contenders.task import NetTask
from peer_nets import NETWORKS

from mpq_compile.errors import PlanError
from mpq_compile.runtime.threads import physical_cores


def say(text: str) -> None:
    """Report progress where it does not mix with the tables."""
    print(f"… {text}", file=sys.stderr, flush=True)


def network_section(
    name: str, batch: int, options: argparse.Namespace, schedule: Schedule
) -> dict[str, Any]:
    """Run one network at one batch; print its table and return its JSON."""
    contenders = named(
        [*ours(options.candidates.split(",")), *PEERS], options.contenders.split(",")
    )
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        task = NetTask(NETWORKS[name], batch, options.threads, Path(folder))
        results = run(contenders, task, schedule, task.float_outputs(), say)
    mixes = [c.name for c in contenders if c.ours and c.times]
    verdicts = judged(results, goals_of(name, batch, mixes))
    title = f"{name}, batch {batch}, {options.threads} threads, {schedule.rounds} rounds"
    print("\n".join(["", title, *table(results), *verdict_lines(verdicts)]), flush=True)
    return section(results, verdicts, {"network": name, "batch": batch})


def gemv_section(
    size: tuple[int, int], options: argparse.Namespace, schedule: Schedule
) -> dict[str, Any]:
    """Run one-row linears of one size; print the table and return its JSON."""
    contenders = named(gemv_contenders(), options.contenders.split(","))
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        task = GemvTask(*size, options.threads, Path(folder), quick=options.quick)
        results = run(contenders, task, schedule, say=say)
    verdicts = judged(results, gemv_goals())
    title = f"GEMV {size[0]}×{size[1]}, {options.threads} threads, {schedule.rounds} rounds"
    print("\n".join(["", title, *table(results), *verdict_lines(verdicts)]), flush=True)
    return section(results, verdicts, {"gemv": list(size)})


def all_sections(options: argparse.Namespace, schedule: Schedule) -> Iterator[dict[str, Any]]:
    """Run what the command line names, one after the other."""
    for name in filter(None, options.net.split(",")):
        for batch in options.batch.split(","):
            yield network_section(name, int(batch), options, schedule)
    for size in SIZES if options.gemv else ():
        yield gemv_section(size, options, schedule)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="", help=f"of {', '.join(NETWORKS)}; comma-separated")
    parser.add_argument("--gemv", action="store_true", help="one-row linears from memory instead")
    parser.add_argument("--batch", default="1", help="samples of a call, comma-separated")
    parser.add_argument(
        "--candidates",
        default="w8a8,bf16,fp32",
        help="of ours; w8a8+bf16@1.5 is the most accurate mix within 1.5 ms",
    )
    parser.add_argument("--contenders", default="", help="only names with one of these texts")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--quick", action="store_true", help="to try it: times mean little")
    options = parser.parse_args(arguments)
    unknown = sorted(set(filter(None, options.net.split(","))) - set(NETWORKS))
    if unknown or not (options.net or options.gemv):
        found = ", ".join(unknown) or "nothing"
        parser.error(f"--net: expected some of {', '.join(NETWORKS)}; found {found}")
    try:
        ours(options.candidates.split(","))
    except (PlanError, ValueError) as error:
        parser.error(f"--candidates: {error}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and write the JSON."""
    options = parsed(arguments)
    schedule = QUICK if options.quick else Schedule()
    if options.rounds:
        schedule = replace(schedule, rounds=options.rounds)
    sections: list[dict[str, Any]] = []
    for found in all_sections(options, schedule):
        sections.append(found)
        if options.json:  # after each, so that a long run that is stopped leaves what it has
            text = json.dumps(document(options.threads, schedule, sections), indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
