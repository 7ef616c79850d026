"""The frontier of pretrained networks: every breakpoint, and top-1 at about ten of them.

    python benchmarks/frontier.py [--nets resnet20,dscnn] [--axis size_mb] [--out FOLDER]

Candidates w{2,3,4,5,6,8}a8. Each row is a measured point; "inverted" marks one that is worse than a
cheaper one by more than half a point, although the metric says otherwise; "line" is the top-1 that
the straight line between uniform assignments has at the same cost. Pictures are written to the
folder: NET.png, NET.html.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared_nets import SharedNet, load_net, top1
from torch import Tensor

from mpq_compile.report.frontier import FrontierReport, Point
from mpq_compile.report.frontier_page import save_frontier_page
from mpq_compile.report.frontier_plot import save_frontier_picture
from mpq_compile.session import Session
from mpq_compile.tradeoff import frontier_of

CANDIDATES = ["w8a8", "w6a8", "w5a8", "w4a8", "w3a8", "w2a8"]


def run(
    net: SharedNet, axis: str, target: str, points: int, tolerance: float
) -> tuple[FrontierReport, float]:
    """Return the frontier and the seconds that it took."""
    start = time.monotonic()
    images, labels = net.images, net.labels

    def evaluate(network: Callable[[Tensor], Tensor]) -> float:
        scores = torch.cat([network(part) for part in images.split(50)])
        return 100.0 * float(top1(scores, labels).double().mean())

    calibration = list(net.calibration.split(32))
    session = Session(net.model, net.example, calibration, target, candidates=CANDIDATES)
    report = frontier_of(session, axis, points=points, evaluate=evaluate, tolerance=tolerance)
    return report, time.monotonic() - start


def on_the_line(report: FrontierReport, cost: float) -> float | None:
    """Return the score of the straight line between uniform assignments; None beyond them."""
    known = [(p.cost, p.score) for p in report.uniform if p.score is not None]
    costs, scores = zip(*known, strict=True)
    if not costs[0] <= cost <= costs[-1]:
        return None
    return float(np.interp(cost, costs, scores))


def show(net: SharedNet, report: FrontierReport, seconds: float) -> None:
    """Print the points that were measured, uniform ones among them."""
    kind = "all" if report.complete else "some"
    print(
        f"\n{net.name}: {kind} {report.breakpoints} breakpoints on {report.axis}, {seconds:.1f} s"
    )
    print(f"float top-1 {report.float_score:.2f} on {len(net.labels)} samples")
    rows: list[Point] = sorted([*report.evaluated, *report.uniform], key=lambda p: p.cost)
    for point in rows:
        line = on_the_line(report, point.cost)
        name = f"all {point.uniform}" if point.uniform else "mixed"
        print(
            f"  {point.cost:9.4g} {report.unit}  loss {point.loss:9.3g}  top-1 {point.score:6.2f}  "
            f"line {'  –' if line is None else f'{line:6.2f}'}  "
            f"{point.costs['avg_bits']:.2f} bits  {name}{'  inverted' if point.inverted else ''}"
        )
    tau = "–" if report.concordance is None else f"{report.concordance:.3f}"
    print(
        f"  inversions between neighbours: {len(report.inversions)}; points worse than a cheaper "
        f"one: {sum(p.inverted for p in report.points)}; Kendall's tau {tau}"
    )


def main() -> None:
    """Print a frontier for each network and write its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="resnet20,dscnn")
    parser.add_argument("--axis", default="size_mb")
    parser.add_argument("--target", default="bit_serial", help="size needs no device")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument(
        "--tolerance", type=float, default=0.5, help="points of top-1 that are noise"
    )
    parser.add_argument("--samples", type=int, help="evaluation samples; 1,000 or 400 by default")
    parser.add_argument("--out", type=Path, default=Path("frontier_out"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.nets.split(","):
        net = load_net(name, options.samples)
        report, seconds = run(net, options.axis, options.target, options.points, options.tolerance)
        show(net, report, seconds)
        save_frontier_picture(report, options.out / f"{name}.png")
        save_frontier_page(report, options.out / f"{name}.html")
        text: dict[str, Any] = report.to_json()
        (options.out / f"{name}.json").write_text(json.dumps(text), encoding="utf-8")


if __name__ == "__main__":
    main()
