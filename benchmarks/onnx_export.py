"""torch → plan → QDQ ONNX → ONNX Runtime, on the four networks with real data.

    python benchmarks/onnx_export.py [--nets resnet20,dscnn] [--candidates w8a8,w4a8]
                                     [--samples 1000] [--rounding gptq]
                                     [--forms float32,int32,exact]

Nothing is built: the oracle stands for the deployed network, which equals it. Prints one row a
network, candidate and form (biases in float32 or int32 between QuantizeLinear and DequantizeLinear,
or integers as deployed): bytes of the file, the share of outputs within one step of
eight bits over their range, the farthest in steps, top-1 (%) of float, of the oracle and of ONNX
Runtime, and for how many samples the last two differ in their first class.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime
import torch
from onnx_session import exact_session
from shared_nets import NAMES, SharedNet, load_net, top1
from torch import Tensor

from mpq_compile.deploy import complete_assignment
from mpq_compile.integrations.qdq.graph import Export
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

BATCH = 50
HEAD = ("network", "candidate", "form", "bytes", "within one step", "farthest")
HEAD += ("float", "oracle", "ONNX Runtime", "other class")


def runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a model in ONNX Runtime."""
    session = exact_session(onnxruntime, content)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def scores(run: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Return the outputs of all images, [N, classes]."""
    with torch.no_grad():
        return torch.cat([run(x).flatten(1) for x in images.split(BATCH)])


def rows(
    net: SharedNet, candidates: Sequence[str], rounding: str, forms: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the table's rows of one network."""
    recipe = Recipe(rounding=rounding)
    # Codes depend on no target: an accelerator is not timed.
    session = Session(net.model, net.example, [net.calibration], "bit_serial", recipe=recipe)
    images, labels = net.images, net.labels
    in_float = share(top1(scores(net.model, images), labels))
    found = []
    for candidate in candidates:
        graph = session.materialized(complete_assignment(session.network, candidate))
        oracle = scores(lambda x, g=graph: g.module(x)[0], images)
        step = (oracle.max() - oracle.min()) / 255
        for form in forms:
            content = Export(graph, form == "int32", form == "exact").model().SerializeToString()
            ours = scores(runner(content), images)
            off = (ours - oracle).abs() / step
            other = int((ours.argmax(1) != oracle.argmax(1)).sum())
            found.append(
                (
                    net.name,
                    candidate,
                    form,
                    f"{len(content):,}",
                    f"{100 * share(off <= 1):.3f} %",
                    f"{float(off.max()):.2f}",
                    f"{100 * in_float:.2f}",
                    f"{100 * share(top1(oracle, labels)):.2f}",
                    f"{100 * share(top1(ours, labels)):.2f}",
                    f"{other}/{len(labels)}",
                )
            )
    return found


def share(right: Tensor) -> float:
    """Return how many are true, as a share."""
    return float(right.double().mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--candidates", default="w8a8,w4a8")
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--forms", default="float32,exact")
    options = parser.parse_args()
    print(" | ".join(HEAD))
    for name in options.nets.split(","):
        net = load_net(name, options.samples)
        names = options.candidates.split(",")
        for row in rows(net, names, options.rounding, options.forms.split(",")):
            print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
