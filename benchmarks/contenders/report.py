"""Tables for people and JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from contenders.goals import Verdict, timed
from contenders.interleave import Result, Schedule
from contenders.ratios import Ratio, ratio_to_best
from mpq_compile.kernels.tier import detect_tier, host_flags

_DISTRIBUTIONS = (
    "mpq_compile", "apache-tvm", "torch", "torchao", "onnxruntime", "openvino", "nncf", "onnx",
    "onnxscript", "numpy",
)  # fmt: skip
_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm",
)  # fmt: skip


def environment(threads: int) -> dict[str, Any]:
    """Return what the times depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in host_flags()],
        "tier": detect_tier().name,
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _DISTRIBUTIONS},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def comparisons(result: Result, results: Sequence[Result]) -> tuple[Ratio | None, Ratio | None]:
    """Return the ratios of one of ours to the best peer, and to the best of its precision."""
    peers = [r for r in timed(results).values() if not r.contender.ours]
    same = [r for r in peers if r.contender.precision == result.contender.precision]
    any_precision, own = (
        ratio_to_best(result.block_ms, {r.contender.name: r.block_ms for r in group})
        for group in (peers, same)
    )
    return any_precision, own


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of the table of one network."""
    wide = max(len(r.contender.name) for r in results)
    head = f"{'contender':{wide}s} {'median ms':>10s} {'spread':>7s} {'SQNR dB':>8s}"
    lines = [f"{head}  {'faster than the best peer':38s}  than the best of its precision"]
    return lines + [_row(result, results, wide) for result in results]


def _row(result: Result, results: Sequence[Result], wide: int) -> str:
    start = f"{result.contender.name:{wide}s}"
    if result.reason:
        return f"{start} {result.reason}"
    noise = "" if result.sqnr_db is None else f"{result.sqnr_db:.1f}"
    start += f" {result.median_ms:10.4f} {result.spread_ms:7.4f} {noise:>8s}"
    if not result.contender.ours:
        return start
    best, own = (str(ratio or "no peer ran") for ratio in comparisons(result, results))
    return f"{start}  {best:38s}  {own}"


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line for each goal."""
    return [_verdict_line(verdict) for verdict in verdicts]


def _verdict_line(verdict: Verdict) -> str:
    noise = "" if verdict.noise_db is None else f", SQNR {verdict.noise_db:+.1f} dB"
    if not verdict.met and verdict.ratio.low >= verdict.goal.at_least:
        noise += ", which is too much noise"
    against = " / ".join(verdict.goal.peers) or "the best peer"
    return (
        f"{'met   ' if verdict.met else 'missed'} {verdict.goal.ours} ≥ {verdict.goal.at_least:g}× "
        f"{against}: {verdict.ratio}{noise}"
    )


def section(
    results: Sequence[Result], verdicts: Sequence[Verdict], what: dict[str, Any]
) -> dict[str, Any]:
    """Return one network's results, JSON-ready; ``what`` names it."""
    return {
        **what,
        "contenders": [_entry(result, results) for result in results],
        "goals": [asdict(verdict) for verdict in verdicts],
    }


def _entry(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    contender = result.contender
    entry: dict[str, Any] = {
        "name": contender.name,
        "precision": contender.precision,
        "ours": contender.ours,
        "reason": result.reason or None,
    }
    if result.reason:
        return entry
    entry |= {
        "prepare_s": result.prepare_s,
        "sqnr_db": result.sqnr_db,
        "median_ms": result.median_ms,
        "spread_ms": result.spread_ms,
        "block_ms": result.block_ms,
        "calls": result.calls,
        "disturbed": result.disturbed,
    }
    if contender.ours:
        best, own = comparisons(result, results)
        entry["ratio_to_best"] = asdict(best) if best else None
        entry["ratio_to_best_of_precision"] = asdict(own) if own else None
    return entry


def document(threads: int, schedule: Schedule, sections: Sequence[Any]) -> dict[str, Any]:
    """Return the whole run, JSON-ready."""
    return {
        "environment": environment(threads),
        "schedule": asdict(schedule),
        "runs": list(sections),
    }
