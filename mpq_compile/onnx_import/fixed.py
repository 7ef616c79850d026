"""What a file has quantized: ranges of what layers read, and codes of their weights.

A pair QuantizeLinear, DequantizeLinear rounds a tensor and goes on in float. Pairs of 8 bits or
fewer with one scale leave the graph, and the layers behind them keep the range; any other pair
stays and is computed as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnx import TensorProto

from mpq_compile.onnx_import.operators.quantizers import RANGES
from mpq_compile.onnx_import.program import Node, Program, QuantizedConstant

LAYERS = ("Conv", "ConvTranspose", "Linear")
# What passes a range on unchanged, from its first input to its output.
_MOVES = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "MaxPool"}
)


@dataclass(frozen=True, kw_only=True)
class FixedRange:
    """How a file quantizes a tensor: ``x = (code − zero_point) · scale``.

    Args:
        scale: Step.
        zero_point: Code of zero among the unsigned codes of ``bits`` bits.
        bits: 2 to 8.
    """

    scale: float
    zero_point: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class FixedSite:
    """What a file fixes of one layer.

    Args:
        weight: Codes of the weight, in the layout of ``torch.nn``; None where it is float.
        input: Range of the input; None where it is float.
    """

    weight: QuantizedConstant | None
    input: FixedRange | None


def without_pairs(program: Program) -> tuple[Program, dict[str, FixedRange]]:
    """Take out the pairs whose rounding is remembered.

    Returns:
        The program, and the range of a layer's input by the name of its weight.
    """
    pairs = _pairs(program)
    ranges = _input_ranges(program, {name: found for name, (_, found) in pairs.items()})
    sources = {name: source for name, (source, _) in pairs.items()}

    def source(name: str) -> str:
        while name in sources:
            name = sources[name]
        return name

    kept = [node for node in program.nodes if node.outputs[0] not in pairs]
    nodes = [replace(node, inputs=tuple(map(source, node.inputs))) for node in kept]
    read = {name for node in nodes for name in node.inputs} | set(program.outputs)
    nodes = [n for n in nodes if n.op != "QuantizeLinear" or n.outputs[0] in read]
    return program.with_nodes(nodes, {}), ranges


def fixed_sites(
    program: Program, ranges: Mapping[str, FixedRange], paths: Mapping[str, str]
) -> dict[str, FixedSite]:
    """Return what is fixed of each layer, by the attribute path of its weight."""
    found: dict[str, FixedSite] = {}
    for node in program.nodes:
        weight = node.inputs[1] if node.op in LAYERS else ""
        if weight in ranges or weight in program.quantized:
            found[paths[weight]] = FixedSite(
                weight=program.quantized.get(weight), input=ranges.get(weight)
            )
    return found


def _pairs(program: Program) -> dict[str, tuple[str, FixedRange]]:
    """Return, by the value behind each pair, the value before it and the pair's range."""
    producers = program.producers()
    found: dict[str, tuple[str, FixedRange]] = {}
    for node in program.nodes:
        before = producers.get(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if before is None or before.op != "QuantizeLinear" or node.outputs[0] in program.outputs:
            continue
        fixed = _range(before, node, program)
        if fixed is not None:
            found[node.outputs[0]] = (before.inputs[0], fixed)
    return found


def _range(quantize: Node, dequantize: Node, program: Program) -> FixedRange | None:
    """Return the range of a pair, or None where it is not one of 8 bits or fewer for all."""
    element = program.elements.get(quantize.outputs[0], TensorProto.UNDEFINED)
    same = quantize.inputs[1:] == dequantize.inputs[1:]
    parameters = [program.constants.get(name) for name in quantize.inputs[1:] if name]
    if element not in RANGES or not same or any(p is None or p.numel() != 1 for p in parameters):
        return None
    low, high = RANGES[element]
    bits = (high - low).bit_length()
    values = [float(p.reshape(-1)[0]) for p in parameters if p is not None]
    if bits > 8:
        return None
    zero = int(values[1]) if len(values) > 1 else 0
    return FixedRange(scale=values[0], zero_point=zero - low, bits=bits)


def _input_ranges(program: Program, behind: Mapping[str, FixedRange]) -> dict[str, FixedRange]:
    """Return the range of each layer's input by the name of its weight."""
    producers = program.producers()
    found: dict[str, FixedRange] = {}
    for node in program.nodes:
        if node.op not in LAYERS or node.inputs[1] not in program.constants:
            continue
        name = node.inputs[0]
        while name not in behind and name in producers and producers[name].op in _MOVES:
            name = producers[name].inputs[0]
        if name in behind:
            found[node.inputs[1]] = behind[name]
    return found
