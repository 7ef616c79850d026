"""The four networks through ``mpq.compile``: latency, size, both, and ``max_drop``.

    python benchmarks/budgets_real.py [--nets resnet20,dscnn] [--json FILE]

Each network is measured against float (all fp32) as the demo's parts are; the latency budget lies
midway between the fastest and the best fp32 network, as predicted from this machine's profile.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from shared_nets import NAMES, SharedNet, load_net, paired_standard_error, top1

from mpq_compile.closed_loop import compile_session
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Budget

CANDIDATES = ["fp32", "bf16", "w8a8", "w6a8", "w4a8"]


def budgets(session: Session) -> dict[str, Budget]:
    """Return the four budgets of a network."""
    allocation = session.allocation()
    usage = {
        name: allocation.usage({site.id: name for site in session.network.sites})
        for name in CANDIDATES
    }
    fastest = min(u["latency_us"] for u in usage.values())
    latency = (fastest + usage["fp32"]["latency_us"]) / 2e3
    size = (usage["w4a8"]["size_bytes"] + usage["w8a8"]["size_bytes"]) / 2e6
    return {
        "latency": Budget(latency_ms=latency),
        "size": Budget(size_mb=size),
        "both": Budget(latency_ms=latency, size_mb=size),
        "max_drop": Budget(max_drop=1.0),
    }


def run(net: SharedNet, name: str, budget: Budget, session: Session) -> dict[str, Any]:
    """Compile once; return what was chosen and measured."""
    start = time.monotonic()
    few = slice(0, 200)

    def evaluate(network: Any) -> float:
        scores = torch.cat([network(part) for part in net.images[few].split(50)])
        return 100.0 * float(top1(scores, net.labels[few]).float().mean())

    inverse = budget.max_drop is not None
    network = compile_session(
        session, budget, "size" if inverse else None, evaluate if inverse else None
    )
    return describe(net, name, budget, network, time.monotonic() - start)


def describe(
    net: SharedNet, name: str, budget: Budget, network: CompiledNetwork, seconds: float
) -> dict[str, Any]:
    """Return one row."""
    right = top1(network(net.images), net.labels)
    with torch.no_grad():
        exact = torch.cat([net.model(part) for part in net.images.split(50)])
    right_float = top1(exact, net.labels)
    verification = network.verification
    counts: dict[str, int] = {}
    for candidate in network.plan.assignment.values():
        counts[candidate] = counts.get(candidate, 0) + 1
    return {
        "net": net.name,
        "budget": name,
        "limits": budget.given(),
        "top1": 100.0 * float(right.float().mean()),
        "top1_float": 100.0 * float(right_float.float().mean()),
        "paired_se": paired_standard_error(right, right_float),
        "size_kb": network.size_bytes / 1e3,
        "predicted_ms": network.plan.predicted.latency_ms,
        "measured_ms": verification.latency_ms if verification else None,
        "upper95_ms": verification.latency_ms_upper95 if verification else None,
        "status": verification.status if verification else None,
        "rounds": verification.rounds if verification else None,
        "sites": counts,
        "seconds": seconds,
    }


def main() -> None:
    """Print a row for each network and budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    print("net        budget    top-1 (float, paired SE)   size kB  predicted  measured (upper)  ")
    for name in options.nets.split(","):
        net = load_net(name)
        session = Session(net.model, net.example, [net.calibration[:64]], candidates=CANDIDATES)
        for kind, budget in budgets(session).items():
            session.costing.forget()
            row = run(net, kind, budget, session)
            rows.append(row)
            limits = ", ".join(f"{k} ≤ {v:.4g}" for k, v in row["limits"].items())
            print(
                f"{name:10s} {kind:9s} {row['top1']:6.2f} ({row['top1_float']:.2f}, "
                f"{row['paired_se']:.2f})  {row['size_kb']:8.1f} kB  {row['predicted_ms']:.3f} ms  "
                f"{row['measured_ms']:.3f} ({row['upper95_ms']:.3f}) ms {row['status']}, round "
                f"{row['rounds']}  {row['sites']}  [{limits}]  {row['seconds']:.0f} s",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(rows, stream, indent=1)


if __name__ == "__main__":
    main()
