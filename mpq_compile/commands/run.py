"""``mpq run``: run an artifact on the samples of a file. Imports no torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.image_options import read_folder, refuse_for_arrays
from mpq_compile.commands.outcome import Outcome
from mpq_compile.data.images import read_images
from mpq_compile.data.npz import in_order, read_npz
from mpq_compile.data.samples import Samples
from mpq_compile.data.wanted import Wanted
from mpq_compile.runtime.rpc_address import is_address

if TYPE_CHECKING:
    from mpq_compile.runtime.device import Device
    from mpq_compile.runtime.network import CompiledNetwork


@grouped
def run(
    artifact: options.Artifact,
    data: options.DataFile,
    images: options.Images,
    samples: options.Samples = None,
    target: options.RunTarget = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="out.npz", help="Write the outputs."),
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Run the samples; print shapes, latency of a call, and top-1 where there are labels."""
    from mpq_compile.runtime.network import load

    if data.is_dir():
        folder = read_folder(data, images)
        network = load(artifact, _device(target))
        found = read_images(folder, _wanted(network.manifest.inputs, samples))
    else:
        refuse_for_arrays(data, images)
        given = read_npz(data).first(samples)
        network = load(artifact, _device(target))
        found = in_order(given, _names(network.manifest.inputs))
    outputs, calls_ms = _run_all(network, found)
    if output is not None:
        # A stream: to a path without suffix NumPy would add one.
        with output.open("wb") as stream:
            np.savez(stream, **_named(outputs))  # type: ignore[arg-type]
    return _outcome(network, found, outputs, calls_ms, output)


def _wanted(inputs: Sequence[Mapping[str, Any]], samples: int | None) -> Wanted:
    """Return what an artifact wants of a folder of images."""
    return Wanted(
        names=_names(inputs),
        shapes=tuple(tuple(entry["shape"]) for entry in inputs),
        dtypes=tuple(entry["dtype"] for entry in inputs),
        samples=samples,
    )


def _names(inputs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the inputs' names; artifacts of before they were kept have numbers."""
    return tuple(entry.get("name", f"input{index}") for index, entry in enumerate(inputs))


def _device(target: str | None) -> Device | None:
    """Return the device that was asked for; None for the artifact's own."""
    if target is None:
        return None
    from mpq_compile.cost.targets import running_device

    return running_device(target)


def _run_all(network: CompiledNetwork, data: Samples) -> tuple[list[np.ndarray], list[float]]:
    """Run the samples in pieces of the compiled batch; return outputs and ms of each call."""
    size = network.manifest.inputs[0]["shape"][0]
    pieces: list[Sequence[np.ndarray]] = []
    calls_ms = []
    for start in range(0, data.count, size):
        part = [array[start : start + size] for array in data.inputs.values()]
        begin = time.perf_counter()
        made = network(*part)
        calls_ms.append((time.perf_counter() - begin) * 1e3)
        pieces.append(made if isinstance(made, tuple) else (made,))
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)], calls_ms


def _named(outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"output{index}": array for index, array in enumerate(outputs)}


def top1_percent(scores: np.ndarray, labels: np.ndarray | None) -> tuple[float | None, str]:
    """Return the share of right classes, or None and the reason; no reason without labels."""
    if labels is None:
        return None, ""
    found = scores.argmax(1) if scores.ndim > 1 else scores
    if scores.ndim < 2 or found.shape != labels.shape:
        return None, f"scores of shape {list(scores.shape)}, labels of {list(labels.shape)}"
    classes = scores.shape[1]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        return None, f"labels from {labels.min()} to {labels.max()}, scores of {classes} classes"
    return float((found == labels).mean() * 100), ""


def _outcome(
    network: CompiledNetwork,
    data: Samples,
    outputs: Sequence[np.ndarray],
    calls_ms: Sequence[float],
    output: Path | None,
) -> Outcome:
    # The first call wakes the threads and touches the memory for the first time.
    latency = statistics.median(calls_ms[1:] or calls_ms)
    round_trip = is_address(network.device.name)
    batch = network.manifest.inputs[0]["shape"][0]
    accuracy, why_not = top1_percent(outputs[0], data.labels)
    shapes: list[dict[str, Any]] = [
        {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in _named(outputs).items()
    ]

    def show(console: Console) -> None:
        for entry in shapes:
            console.print(f"{entry['name']}: {entry['dtype']}{entry['shape']}")
        if accuracy is not None:
            console.print(f"top-1: {accuracy:.2f} % of {data.count} samples")
        elif why_not:
            console.print(f"no top-1: {why_not}")
        name = "round trip (arrays sent and fetched)" if round_trip else "latency"
        console.print(f"{name}: {latency:.4g} ms, the median of {len(calls_ms)} calls of {batch}")
        # A few calls one after the other are its first ones.
        own = "the network's own latency there" if round_trip else "settled, in fresh processes"
        console.print(f"{own}: mpq verify")
        if output is not None:
            console.print(f"outputs written to {output}")

    record = {
        "samples": data.count,
        "outputs": shapes,
        "top1_percent": accuracy,
        "latency_ms": latency,
        "round_trip": round_trip,
        "calls": len(calls_ms),
        "batch": batch,
        "output": output,
    }
    return Outcome(data=record, show=show)
