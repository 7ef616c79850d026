"""MiniLM's sentence embeddings: ours against ONNX Runtime and OpenVINO, in one interleaved run.

    pip install -e .[peers,transformers]
    python benchmarks/minilm.py [--tokens 128] [--rounds 12] [--json results.json]
    python benchmarks/minilm.py --accuracy    # ours alone, and no times

Each contender takes int64 ids [1, tokens] and gives a unit vector, in a process of its own; rounds
visit all of them in an order drawn anew, with a pause before each (as ``peers.py`` does). The
cosine is the mean over sentences that no quantizer saw, to the float network's embedding; "linear
MB" are the stored weights of linear layers with their scales. Ours are the uniform assignments
w8a8 and w8a8d (a scale for each row, found at run time), and a mixed plan of at most half of the
linear weights of w8a8, rounded by ``gptq``; with ``--steps`` ``mpq.finetune`` trains it, without
labels, on sentences of the words that calibration has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import PEERS, Contender, named
from contenders.goals import Goal, judged
from contenders.interleave import QUICK, Result, Schedule, run
from contenders.report import document, section, verdict_lines
from contenders.task import Prepared
from minilm_task import SentenceTask, cosines, mean_cosine

import mpq_compile as mpq
from mpq_compile.allocate import Allocation, solve_allocation
from mpq_compile.cost.table import counted_costs
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.threads import physical_cores
from mpq_compile.session import Session
from mpq_compile.training.defaults import RATE
from mpq_compile.types import Candidate, CostTable

# What the mixed plan chooses from, and the share of the w8a8 linear weights it may take.
MIXED, SHARE = ("w8a8", "w8a8d", "w5a8d", "w4a8d", "w3a8d"), 0.5
UNIFORM = "w8a8"
# Texts that sensitivities are measured on, and samples of a step of training: most of the time of
# a step goes into weights, however many samples it has.
PLANNED, BATCH = 24, 32
UNIFORMS = (UNIFORM, "w8a8d")
GOALS = tuple(Goal(ours=f"ours {name}", at_least=1.3) for name in UNIFORMS)


def linear_bytes(session: Session, assignment: Mapping[str, str]) -> float:
    """Return the stored bytes of the linear layers' weights, with scales and biases."""
    network = session.network
    return sum(
        counted_costs(network, site, Candidate.parse(assignment[site.id]))["size_bytes"]
        for site in network.sites
        if site.op == "linear"
    )


def mixed_plan(session: Session) -> mpq.Plan:
    """Return the plan of least loss whose linear layers take ``SHARE`` of w8a8's bytes.

    Bytes are counted: nothing is timed for it.
    """
    network, choices = session.network, session.choices
    costs = {
        site.id: {
            name: counted_costs(network, site, Candidate.parse(name)) for name in choices[site.id]
        }
        for site in network.sites
    }
    allocation = Allocation(
        sites=network.sites,
        choices=choices,
        sensitivity=session.sensitivity,
        costs=CostTable(costs=costs),
    )
    uniform = {site.id: UNIFORM for site in network.sites}
    linear = linear_bytes(session, uniform)
    rest = allocation.usage(uniform)["size_bytes"] - linear
    budget = mpq.Budget(size_mb=(rest + SHARE * linear) / 1e6)
    return session.bare_plan(allocation.expand(solve_allocation(allocation, budget, "exact")))


def built(task: SentenceTask, steps: int, rate: float, rounding: str) -> dict[str, dict[str, Any]]:
    """Build ours in the task's folder; return what is known of each beside its time."""
    session = Session(
        task.module,
        task.example,
        task.calibration[:PLANNED],
        candidates=MIXED,
        constraints={"re:.*embeddings.*": UNIFORM},
        recipe=Recipe(rounding=rounding),
    )
    began = time.monotonic()
    plan = mixed_plan(session)
    planned_s = time.monotonic() - began
    given = task.module, task.example, task.calibration
    uniform = {name: mpq.assign(*given, name) for name in UNIFORMS}
    began = time.monotonic()
    if steps:
        mixed = mpq.finetune(
            plan,
            task.training(steps * BATCH),
            *given,
            epochs=1,
            batch_size=BATCH,
            rate=rate,
            verify=False,
        )
    else:
        mixed = mpq.compile(*given, plan=plan, verify=False)
    built_s = time.monotonic() - began
    found = {}
    for name, net in {**uniform, "mixed": mixed}.items():
        net.save(task.folder / name)
        apart = cosines([net(x) for x in task.compared], task.float_outputs())
        found[f"ours {name}"] = {
            "linear_mb": linear_bytes(session, net.plan.assignment) / 1e6,
            "stored_mb": net.size_bytes / 1e6,
            "cosine": float(apart.mean()),
            "least_cosine": float(apart.min()),
            "notes": list(net.plan.notes),
            "assignment": dict(net.plan.assignment),
        }
    found["ours mixed"] |= {"planned_s": planned_s, "built_s": built_s}
    return found


def of_ours(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines that say how far ours are from float."""
    lines = [
        f"{name}: cosine {one['cosine']:.4f}, least {one['least_cosine']:.4f}, linear "
        f"{one['linear_mb']:.2f} MB, stored {one['stored_mb']:.1f} MB"
        for name, one in known.items()
    ]
    mixed = known["ours mixed"]
    return [
        *lines,
        f"mixed: planned in {mixed['planned_s']:.0f} s, built in {mixed['built_s']:.0f} s",
        *(f"mixed: {note}" for note in mixed["notes"]),
    ]


def saved(task: SentenceTask, name: str) -> Prepared:
    """Return one of ours, loaded from the task's folder."""
    return task.prepared(mpq.load(task.folder / name))


def contenders() -> list[Contender]:
    """Return ours, and the peers that run transformers."""
    mine = [
        Contender(
            name=f"ours {name}",
            precision="int8",
            entry="minilm:saved",
            ours=True,
            options=(("name", name),),
        )
        for name in (*UNIFORMS, "mixed")
    ]
    dynamic = Contender(
        name="ONNX Runtime int8 dynamic",
        precision="int8",
        entry="contenders.onnx_runtime:int8_dynamic",
        needs=("onnx", "onnxscript", "onnxruntime"),
    )
    return [*mine, dynamic, *named(PEERS, ("ONNX Runtime", "OpenVINO"))]


def rows(results: Sequence[Result], known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the table shows, one row a contender."""
    return [
        {
            "contender": result.contender.name,
            "reason": result.reason,
            "median_ms": None if result.reason else result.median_ms,
            "spread_ms": None if result.reason else result.spread_ms,
            "cosine": mean_cosine(result.sqnr_db),
            "linear_mb": known.get(result.contender.name, {}).get("linear_mb"),
        }
        for result in results
    ]


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table."""
    lines = [
        f"{'contender':28s} {'median ms':>10s} {'spread':>8s} {'cosine':>8s} {'linear MB':>10s}"
    ]
    for row in found:
        if row["reason"]:
            lines.append(f"{row['contender']:28s} {row['reason']}")
            continue
        cosine = "" if row["cosine"] is None else f"{row['cosine']:.4f}"
        size = "" if row["linear_mb"] is None else f"{row['linear_mb']:.2f}"
        times = f"{row['median_ms']:10.3f} {row['spread_ms']:8.3f}"
        lines.append(f"{row['contender']:28s} {times} {cosine:>8s} {size:>10s}")
    return lines


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=128, help="length of the input")
    parser.add_argument("--sentences", type=int, default=300, help="compared with float")
    parser.add_argument("--texts", type=int, default=512, help="sentences to calibrate on")
    parser.add_argument("--contenders", default="", help="only names with one of these texts")
    parser.add_argument("--steps", type=int, default=0, help="of training for the mixed plan")
    parser.add_argument("--rate", type=float, default=RATE, help="largest move of a step, in codes")
    parser.add_argument("--rounding", default="gptq", help="what training of the mix starts from")
    parser.add_argument("--accuracy", action="store_true", help="only how far ours are from float")
    parser.add_argument("--measure-s", type=float, default=60.0, help="to tune and time kernels")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, physical_cores()))
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--quick", action="store_true", help="to try it: times mean little")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print the table and write the JSON."""
    options = parsed(arguments)
    schedule = QUICK if options.quick else Schedule()
    if options.rounds:
        schedule = Schedule(rounds=options.rounds, pause_s=schedule.pause_s, block=schedule.block)
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
        task = SentenceTask(
            options.tokens, options.texts, options.sentences, options.threads, Path(folder)
        )
        if not options.accuracy:
            few = task.calibration[:PLANNED]
            # Kernels of both are tuned by it.
            mpq.profile(
                task.module, task.example, few, candidates=MIXED, budget_s=options.measure_s
            )
        known = built(task, options.steps, options.rate, options.rounding)
        print("\n".join(of_ours(known)), flush=True)
        if options.accuracy:
            return
        chosen = named(contenders(), options.contenders.split(","))
        results = run(chosen, task, schedule, task.float_outputs(), _say)
    verdicts, found = judged(results, GOALS), rows(results, known)
    title = f"MiniLM, {options.tokens} tokens, batch 1, {options.threads} threads"
    print("\n".join([title, *table(found), *verdict_lines(verdicts)]), flush=True)
    if options.json:
        extra = {"network": "minilm", "batch": 1, "rows": found, "ours": known}
        sections = [section(results, verdicts, extra)]
        text = json.dumps(document(options.threads, schedule, sections), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
