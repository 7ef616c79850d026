"""Encodings → the network that they were exported from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpq_compile.cost.targets import TargetLike
from mpq_compile.errors import PlanError, nearest
from mpq_compile.integrations.encodings.file import read_encodings
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import with_constants
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight, weight_spec
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Candidate, QParams, QSpec

_SITES, _TENSORS = "param_encodings", "activation_encodings"


def from_encodings(
    model: Any,
    example_inputs: Any,
    encodings: str | Path | Mapping[str, Any],
    calibration: Any = None,
    target: TargetLike = "local",
    *,
    allow_float: bool = False,
    tuned: bool = True,
) -> CompiledNetwork:
    """Build a network with exactly the scales, zero points and integer weights of encodings.

    Where the encodings name no file of parameters, weights are rounded to nearest by their scales
    and biases are the model's.

    Args:
        model, example_inputs: As for :func:`mpq_compile.compile`.
        encodings: A file of :func:`mpq_compile.export_encodings`, or its JSON as a mapping.
        calibration: Inputs that the built network is first run on, beside its oracle; None for the
            example inputs.
        target, allow_float, tuned: As for :func:`mpq_compile.assign`.

    Raises:
        PlanError: The encodings are malformed, or of another network: a site or tensor is unknown,
            missing or there twice, a shape differs, or a scale is not finite and positive.
        CalibrationError: A tensor that the network stores as codes has no encoding.
    """
    name, body, tensors = read_encodings(encodings)
    _refuse_repeated(body, name)
    session = Session(
        model,
        example_inputs,
        [example_inputs] if calibration is None else calibration,
        target,
        recipe=Recipe(rounding="nearest", correction="none"),
        allow_float=allow_float,
        tuned=tuned,
    )
    network = _with_constants(session.network, tensors, name)
    session.network = network
    assignment = _assignment(network, body[_SITES], name)
    session.keep(assignment, _calibration(network, body, tensors, name))
    plan = session.bare_plan(assignment)
    return session.build(replace(plan, notes=[f"scales, zero points and weights are of {name}"]))


def _refuse_repeated(body: Mapping[str, Any], name: str) -> None:
    """Raise ``PlanError`` where two entries speak of one site, or of one tensor at one width."""
    sites = [entry["name"] for entry in body[_SITES]]
    tensors = [f"{entry['name']} at {entry['bitwidth']} bits" for entry in body[_TENSORS]]
    for kind, found in ((_SITES, sites), (_TENSORS, tensors)):
        repeated = [one for one, count in Counter(found).items() if count > 1]
        if repeated:
            raise PlanError(
                "an entry of the encodings stands twice",
                where=f"{name}: {kind}",
                expected="one entry each",
                found=f"several for {', '.join(repeated[:5])}",
                remedy="remove all but one, or export the encodings again",
            )


def _with_constants(network: Network, tensors: Mapping[str, Tensor], name: str) -> Network:
    known = network.constants()
    given = {
        key.removeprefix("constant/"): value
        for key, value in tensors.items()
        if key.startswith("constant/")
    }
    for key, value in given.items():
        there = known.get(key)
        if there is None:
            raise _unknown("constant", key, list(known), name)
        _check_shape(value, there.shape, f"{name}: constant {key}")
    return with_constants(network, given, network.statistics) if given else network


def _assignment(
    network: Network, entries: Sequence[Mapping[str, Any]], name: str
) -> dict[str, str]:
    found = {entry["name"]: entry["candidate"] for entry in entries}
    known = [site.id for site in network.sites]
    for site in found:
        if site not in known:
            raise _unknown("site", site, known, name)
    missing = [site for site in known if site not in found]
    if missing:
        raise PlanError(
            "the encodings leave sites out",
            where=f"{name}: {_SITES}",
            expected=f"an entry for each of {len(known)} sites",
            found=f"none for {', '.join(missing[:5])}",
            remedy="add the entries, or export the encodings again from this model",
        )
    return {site: found[site] for site in known}


def _calibration(
    network: Network, body: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> Calibration:
    """Return a calibration that holds what the encodings say, and nothing else."""
    weights: dict[tuple[str, QSpec], QuantizedWeight] = {}
    biases: dict[tuple[str, QSpec], Tensor] = {}
    for entry in body[_SITES]:
        if entry["dtype"] == "float":
            continue
        site = entry["name"]
        weight = _weight(network, entry, tensors, name)
        weights[site, weight.spec] = weight
        if f"bias/{site}" in tensors:
            bias = tensors[f"bias/{site}"]
            _check_shape(bias, (len(weight.codes),), f"{name}: bias of {site}")
            biases[site, weight.spec] = bias
    ranges = _ranges(network, body[_TENSORS], name)
    given = Calibration(histograms={}, observer="given", samples=0, weights=weights, biases=biases)
    return given.with_qparams(ranges)


def _weight(
    network: Network, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> QuantizedWeight:
    site, candidate = entry["name"], Candidate.parse(entry["candidate"])
    real, spec = network.weight(site).float(), weight_spec(candidate)
    where = f"{name}: {site}"
    if (entry["bitwidth"], entry.get("block_size")) != (spec.bits, spec.group_size):
        raise PlanError(
            "bits or block size are not those of the candidate",
            where=where,
            expected=f"bitwidth {spec.bits} and block_size {spec.group_size} of {candidate.name}",
            found=f"{entry['bitwidth']} and {entry.get('block_size')}",
            remedy="correct one of them",
        )
    scale = _scale(entry["scale"], f"{where}: scale")
    blocks = () if spec.group_size is None else (real[0].numel() // spec.group_size,)
    _check_shape(scale, (len(real), *blocks), f"{where}: scale")
    codes = tensors.get(f"codes/{site}")
    if codes is None:
        rows = real.reshape(*scale.shape, -1) / scale.unsqueeze(-1)
        codes = torch.clamp(torch.round(rows), spec.qmin, spec.qmax).to(torch.int8)
        codes = codes.reshape(real.shape)
    _check_shape(codes, real.shape, f"{where}: codes")
    return QuantizedWeight(codes=codes, scale=scale, spec=spec)


def _scale(values: Any, where: str) -> Tensor:
    try:
        scale = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise PlanError(
            "scales are no array",
            where=where,
            expected="numbers, or lists of as many numbers each",
            found=str(error)[:200],
            remedy="correct the list",
        ) from error
    # As float32: what is positive in the file may be rounded to zero, or be out of its range.
    wrong = scale[~(scale.isfinite() & (scale > 0))]
    if len(wrong):
        raise PlanError(
            "a scale is not positive",
            where=where,
            expected="finite numbers above 0",
            found=f"{wrong[0].item():g}",
            remedy="correct the scale, or export the encodings again",
        )
    return scale


def _ranges(
    network: Network, entries: Sequence[Mapping[str, Any]], name: str
) -> dict[tuple[str, int], QParams]:
    known = [node.name for node in network.module.graph.nodes if node.op != "output"]
    found = {}
    for entry in entries:
        node, bits = entry["name"], entry["bitwidth"]
        if node not in known:
            raise _unknown("tensor", node, known, name)
        _scale(entry["scale"], f"{name}: {node}: scale")
        found[node, bits] = QParams(
            spec=QSpec(bits=bits, signed=False, symmetric=False),
            scale=entry["scale"],
            zero_point=entry["zero_point"],
        )
    return found


def _check_shape(value: Tensor, expected: Sequence[int], where: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise PlanError(
            "the encodings are of another shape than the model",
            where=where,
            expected=str(tuple(expected)),
            found=str(tuple(value.shape)),
            remedy="export the encodings again from this model",
        )


def _unknown(kind: str, found: str, known: Sequence[str], name: str) -> PlanError:
    return PlanError(
        f"the encodings name a {kind} that the model does not have",
        where=name,
        expected=f"a {kind} of the model",
        found=found,
        remedy=nearest(found, known),
    )
