"""MiniLM by way of ONNX: plan → file → ONNX Runtime, and file → plan, against the module's own.

    pip install -e .[peers,transformers]
    python benchmarks/minilm_onnx.py [--tokens 32] [--sentences 200] [--candidates w8a8,w4a8]

Prints a row a candidate: mean cosines of the sentences' embeddings to float, as the oracle gives
them, as ONNX Runtime gives them from the exported file, and as the oracle gives them of the
network that was read from a ``.onnx`` file; how many sentences have the same nearest other one as
float finds (its top-1), each way; and the bytes of the exported file. Nothing is built: the oracle
stands for the deployed network, which equals it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from minilm_task import SentenceTask, cosines
from onnx_session import exact_session
from torch import Tensor

from mpq_compile.deploy import complete_assignment
from mpq_compile.integrations.qdq.graph import Export
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

HEAD = ("candidate", "sites", "oracle", "ONNX Runtime", "from .onnx", "nearest", "bytes")


def float_file(task: SentenceTask, path: Path) -> Path:
    """Write the float network's file."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(task.module, (task.example,), path, dynamo=False, input_names=["ids"])
    return path


def session_of(model: Any, task: SentenceTask) -> Session:
    """Return a session on what the sentences of calibration give."""
    recipe = Recipe(rounding="gptq")
    return Session(model, task.example, task.calibration, "bit_serial", recipe=recipe)


def runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a model in ONNX Runtime."""
    session = exact_session(onnxruntime, content)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def embeddings(run: Callable[[Tensor], Tensor], task: SentenceTask) -> list[Tensor]:
    """Return the vectors of all compared sentences."""
    with torch.no_grad():
        return [run(x) for x in task.compared]


def nearest(vectors: list[Tensor]) -> Tensor:
    """Return the index of each sentence's nearest other one, [sentences]."""
    stacked = torch.cat(vectors)
    return (stacked @ stacked.T).fill_diagonal_(-1).argmax(1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sentences", type=int, default=200, help="compared with float")
    parser.add_argument("--texts", type=int, default=64, help="sentences to calibrate on")
    parser.add_argument("--candidates", default="w8a8,w4a8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
        task = SentenceTask(options.tokens, options.texts, options.sentences, 1, Path(folder))
        exact = task.float_outputs()
        module = session_of(task.module, task)
        file = session_of(str(float_file(task, Path(folder) / "minilm.onnx")), task)
        print(" | ".join(HEAD))
        for candidate in options.candidates.split(","):
            graph = module.materialized(complete_assignment(module.network, candidate))
            content = Export(graph).model().SerializeToString()
            read = file.reference(complete_assignment(file.network, candidate))
            ways = [
                embeddings(lambda x, g=graph: g.module(x)[0], task),
                embeddings(runner(content), task),
                embeddings(read, task),
            ]
            same = [int((nearest(way) == nearest(exact)).sum()) for way in ways]
            cells = [f"{float(cosines(way, exact).mean()):.4f}" for way in ways]
            total = f"of {len(exact)}"
            row = (candidate, str(len(graph.records)), *cells, f"{same} {total}")
            print(" | ".join((*row, f"{len(content):,}")), flush=True)


if __name__ == "__main__":
    main()
