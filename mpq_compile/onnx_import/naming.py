"""Module paths of weights, from what exporters leave of them.

A weight is named as in the module it comes from where the file still knows it: by its initializer
(``layer1.0.conv1.weight``), by the scope that torch's exporter records beside a node, or by a
node's name (``/layer1/layer1.0/conv1/Conv``). Sites are named by their weights, so that plans move
between a module and its ONNX file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import fx

from mpq_compile.onnx_import.linears import TRANSPOSED
from mpq_compile.onnx_import.program import Node, Program
from mpq_compile.onnx_import.recurrences import PART, REVERSE

# conv1.weight, encoder.layers.0.self_attn.in_proj_weight: what a state dict may hold.
_PARAMETER = re.compile(r"(?:[A-Za-z_]\w*|\d+)(?:\.(?:[A-Za-z_]\w*|\d+))*\.\w*(?:weight|bias)\w*")
_UNSAFE = re.compile(r"\W+")
# What quantizers append to a weight's name.
_CODES = ("_DequantizeLinear_Output", "_dequantized", "_quantized")
# The inputs that are a module's own: weight and bias of layers, scale and bias of norms.
_ROLES: Mapping[str, tuple[str, ...]] = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Linear": ("", "weight", "bias"),
    "MatMul": ("", "weight"),
    "Gemm": ("", "weight", "bias"),
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "LayerNormalization": ("", "weight", "bias"),
    "RMSNormalization": ("", "weight"),
}


def parameter_paths(program: Program, scopes: Mapping[str, str]) -> dict[str, str]:
    """Return an attribute path for each constant that is read.

    No two are equal, nor is one the beginning of another.

    Args:
        program: Its nodes and constants.
        scopes: Module path by name of a node's first output.
    """
    read = {name for node in program.nodes for name in node.inputs} | set(program.outputs)
    used = [name for name in program.constants if name in read]
    wanted = {name: _known_path(name, program.origins) for name in used}
    layers: Counter[str] = Counter()
    for node in program.nodes:
        path = module_path(node, scopes)
        for name, role in zip(node.inputs, _roles(node, layers[path]), strict=False):
            if role and path and name in wanted and wanted[name] is None:
                wanted[name] = f"{path}.{role}"
        layers[path] += node.op == "Recurrent"
    return _distinct({name: path or _flat(name) for name, path in wanted.items()})


def _roles(node: Node, layer: int) -> Sequence[str]:
    """Return what each input is to its module; of a recurrent one this is the given layer."""
    if node.op != "Recurrent":
        return _ROLES.get(node.op, ())
    parts = [name.rpartition(PART)[2] if PART in name else "" for name in node.inputs]
    return [_of_layer(part, layer) if part else "" for part in parts]


def _of_layer(part: str, layer: int) -> str:
    """weight_ih_reverse → weight_ih_l0_reverse, as PyTorch names it."""
    name = part.removesuffix(REVERSE)
    return f"{name}_l{layer}{part[len(name) :]}"


def module_path(node: Node, scopes: Mapping[str, str]) -> str:
    """Return the path of the module that a node belongs to, or "" where nothing tells it.

    ``/layer1/layer1.0/conv1/Conv`` → ``layer1.0.conv1``: a scope names its module by the whole
    path below the last module that is no container.
    """
    scope = next((scopes[name] for name in node.outputs if scopes.get(name)), "")
    if scope or not node.name.startswith("/"):
        return _safe(scope)
    parts: list[str] = []
    for part in node.name.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return _safe(".".join(parts))


def _known_path(name: str, origins: Mapping[str, str]) -> str | None:
    """Return the path that a constant's name is, or that of what it was computed from."""
    name = name.removesuffix(TRANSPOSED)
    for path in (name, origins.get(name, name)):
        for ending in _CODES:
            path = path.removesuffix(ending)
        if _PARAMETER.fullmatch(path):
            return _safe(path)
    return None


def _safe(path: str) -> str:
    return ".".join(_UNSAFE.sub("_", part) for part in path.split(".") if part)


def _flat(name: str) -> str:
    """Return a name without dots that an attribute of a module may have."""
    flat = _UNSAFE.sub("_", name)
    return flat if flat.isidentifier() and not hasattr(fx.GraphModule, flat) else f"constant_{flat}"


def _distinct(wanted: Mapping[str, str]) -> dict[str, str]:
    """Number equal paths, and those that would be both a tensor and a module."""
    taken: set[str] = set()
    owners = {prefix for path in wanted.values() for prefix in _prefixes(path)}
    found: dict[str, str] = {}
    for name, path in wanted.items():
        fresh, count = path, 1
        while fresh in taken or fresh in owners:
            count += 1
            owner, _, leaf = path.rpartition(".")
            fresh = f"{owner}_{count}.{leaf}" if owner else f"{leaf}_{count}"
        taken.add(fresh)
        found[name] = fresh
    return found


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
