"""Numbers that describe a measured kernel, read back from the name it is stored under."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mpq_compile.kernels.workload import FEW_ROWS

# Before the kind of a kernel whose unpacked weights have few bits.
NARROW = "narrow "
_BYTES = {"u8": 1, "bf16": 2, "fp32": 4}
_INPUT_BYTES = {"int8": 1, "bf16": 2, "weight_only": 2, "fp32": 4}
_FORMATS = (
    r"_(?P<compute>int8|bf16|fp32|weight_only)(?:_r(?P<residual>u8|bf16|fp32))?_(?P<out>\w+?)"
)
_CONV = re.compile(
    r"conv_b(?P<batch>\d+)_(?P<height>\d+)x(?P<width>\d+)x(?P<channels>\d+)_n(?P<outputs>\d+)"
    r"_k(?P<kernel>\d+x\d+)_s(?P<stride>\d+x\d+)_p(?P<padding>-?\d+x-?\d+x-?\d+x-?\d+)"
    r"_d(?P<dilation>\d+x\d+)_g(?P<groups>\d+)(?:_i(?P<spread>\d+x\d+))?"
    r"(?:_w(?P<bits>\d))?(?:_bordered)?(?:_border[\dx]+)?" + _FORMATS + r"(?:/.*)?"
)
_LINEAR = re.compile(
    r"linear_m(?P<rows>\d+)_k(?P<inputs>\d+)_n(?P<outputs>\d+)(?:_w(?P<bits>\d))?"
    r"(?:_q(?P<group>\d+))?(?P<dynamic>_d)?" + _FORMATS + r"(?:/.*)?"
)
_CONVERT = re.compile(r"convert/(?P<size>\d+)/(?P<source>u8|bf16|fp32)-(?P<target>u8|bf16|fp32)")
_EMBEDDING = re.compile(
    r"embedding_m(?P<tokens>\d+)_r\d+_n(?P<width>\d+)(?:_w(?P<bits>\d))?(?:_q\d+)?"
    r"_(?P<compute>int|bf16|fp32)_int\d\d"
)
_ROWS = re.compile(r"quantize_rows/(?P<rows>\d+)x(?P<inputs>\d+)")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What decides how long a kernel takes.

    Args:
        shape: Names its shape without formats: what "another shape" means to a test of estimates.
        kind: What it is, and how it multiplies if it does: such kernels have one roofline.
        macs: Multiply-adds.
        bytes: Bytes of input, weights, output and residual.
        numbers: By name; sizes as they are, formats in bytes, yes or no as 1 or 0.
    """

    shape: str
    kind: str
    macs: int
    bytes: int
    numbers: Mapping[str, float]


def features_of(shape: str) -> Features | None:
    """Return the features of a kernel by its stored shape; None for one that is not known."""
    patterns = (
        (_CONV, _conv),
        (_LINEAR, _linear),
        (_CONVERT, _convert),
        (_ROWS, _quantize_rows),
        (_EMBEDDING, _embedding),
    )
    for pattern, read in patterns:
        found = pattern.fullmatch(shape)
        if found is not None:
            return read(found.groupdict())
    return None


def _convert(found: Mapping[str, str | None]) -> Features:
    size, source, target = int(found["size"] or 0), found["source"], found["target"]
    return _moving(f"convert {source}-{target}", size, _BYTES[source or ""] + _BYTES[target or ""])


def _quantize_rows(found: Mapping[str, str | None]) -> Features:
    rows, inputs = int(found["rows"] or 0), int(found["inputs"] or 0)
    return _moving("rows fp32", rows * inputs, _BYTES["fp32"] + _BYTES["u8"])


def _embedding(found: Mapping[str, str | None]) -> Features:
    cells = int(found["tokens"] or 0) * int(found["width"] or 0)
    item = {"int": 1, "bf16": 2, "fp32": 4}[found["compute"] or ""]
    return _moving(f"embedding {found['compute']}", cells, item + _BYTES["fp32"])


def _moving(kind: str, size: int, item_bytes: int) -> Features:
    """Return the features of a kernel that multiplies no matrices."""
    total = size * item_bytes
    numbers = {"pixels": size, "bytes": total}
    return Features(shape=f"{kind}_{size}", kind=kind, macs=0, bytes=total, numbers=numbers)


def _pair(text: str | None) -> tuple[int, int]:
    first, second = (int(number) for number in (text or "1x1").split("x"))
    return first, second


def _conv(found: Mapping[str, str | None]) -> Features:
    size = {name: int(found[name] or 0) for name in ("batch", "height", "width", "channels")}
    outputs, groups = int(found["outputs"] or 0), int(found["groups"] or 1)
    kernel, stride, dilation = (_pair(found[name]) for name in ("kernel", "stride", "dilation"))
    spread = _pair(found["spread"])
    top, left, bottom, right = (int(pad) for pad in re.findall(r"-?\d+", found["padding"] or ""))
    rows = _output(size["height"], spread[0], top + bottom, kernel[0], dilation[0], stride[0])
    columns = _output(size["width"], spread[1], left + right, kernel[1], dilation[1], stride[1])
    depth = kernel[0] * kernel[1] * size["channels"] // groups
    pixels = size["batch"] * rows * columns
    inputs = size["batch"] * size["height"] * size["width"] * size["channels"]
    depthwise = groups > 1 and groups == size["channels"] == outputs
    numbers = {
        "pixels": pixels,
        "columns": columns,
        "depth": depth,
        "outputs": outputs // groups,
        "groups": groups,
        "window": kernel[0] * kernel[1],
        "stride": stride[0] * stride[1],
        "spread": spread[0] * spread[1],
        "padded": float(any((top, left, bottom, right))),
    }
    return _features(
        found,
        "depthwise" if depthwise else _of_bits("conv", found),
        (found["compute"] or "", pixels * outputs * depth),
        (inputs, outputs * depth * _INPUT_BYTES[found["compute"] or ""], pixels * outputs),
        numbers,
    )


def _output(size: int, spread: int, pads: int, window: int, dilation: int, stride: int) -> int:
    return ((size - 1) * spread + pads - dilation * (window - 1)) // stride + 1


def _linear(found: Mapping[str, str | None]) -> Features:
    rows, inputs, outputs = (int(found[name] or 0) for name in ("rows", "inputs", "outputs"))
    bits = int(found["bits"] or 8)
    weights = inputs * outputs
    packed = bool(found["bits"]) and rows <= FEW_ROWS
    item_bits = bits if packed else 8 * _INPUT_BYTES[found["compute"] or ""]
    stored = weights * item_bits // 8
    numbers = {
        "pixels": rows,
        "columns": rows,
        "depth": inputs,
        "outputs": outputs,
        "groups": 1,
        "bits": bits,
        "group_size": int(found["group"] or 0),
        "dynamic": float(bool(found["dynamic"])),
    }
    # One row streams the weights, many rows reuse them: two rooflines.
    kind = "gemv" if rows <= FEW_ROWS else _of_bits("linear", found)
    macs = rows * weights
    return _features(
        found,
        kind,
        (found["compute"] or "", macs),
        (rows * inputs, stored, rows * outputs),
        numbers,
    )


def _of_bits(kind: str, found: Mapping[str, str | None]) -> str:
    """Return the kind of unpacked weights: fewer bits are named where they have another kernel."""
    return kind if (found["bits"] or "8") == "8" else NARROW + kind


def _features(
    found: Mapping[str, str | None],
    kind: str,
    work: tuple[str, int],
    sizes: tuple[int, int, int],
    numbers: Mapping[str, float],
) -> Features:
    """Return features; ``sizes`` are input elements, bytes of weights and output elements."""
    (compute, macs), (inputs, weights, outputs) = work, sizes
    stored = _BYTES.get(found["out"] or "", 4)
    residual = _BYTES.get(found["residual"] or "", 0)
    total = inputs * _INPUT_BYTES[compute] + weights + outputs * (stored + residual)
    sizes_text = "_".join(f"{name}{value:g}" for name, value in sorted(numbers.items()))
    formats = {"stored": stored, "residual": residual, "input": _INPUT_BYTES[compute]}
    formats["bits"] = int(found["bits"] or 8)
    return Features(
        shape=f"{kind.removeprefix(NARROW)}_{sizes_text}",
        kind=f"{kind} {compute}",
        macs=macs,
        bytes=total,
        numbers={**numbers, **formats, "macs": macs, "bytes": total, "weights": weights},
    )
