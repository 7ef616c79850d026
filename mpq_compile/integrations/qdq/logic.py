"""ATen operators of masks → ONNX nodes: comparisons, logic, changes of type, picks by index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpq_compile.integrations.qdq.dtypes import as_type, common_type, onnx_type
from mpq_compile.integrations.qdq.floats import Rule
from mpq_compile.integrations.qdq.shapes import Sizes
from mpq_compile.integrations.qdq.values import Call
from mpq_compile.integrations.qdq.writer import END, Writer

aten = torch.ops.aten


def _compared(kind: str, negated: bool = False) -> Rule:
    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        dtype = common_type(*call.args[:2])
        pair = [as_type(writer, value, dtype) for value in call.args[:2]]
        if not negated:
            return writer.op(kind, *pair, into=call.name)
        return writer.op("Not", writer.op(kind, *pair, into=f"{call.name}_of"), into=call.name)

    return rule


def _logical(kind: str) -> Rule:
    """Of anything: what is not zero is true."""

    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        truths = [as_type(writer, value, torch.bool) for value in call.args]
        return writer.op(kind, *truths, into=call.name)

    return rule


def _bitwise(kind: str) -> Rule:
    """Of truth values this is logic."""

    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        name = kind if call.out.dtype == torch.bool else f"Bitwise{kind}"
        parts = [as_type(writer, value, call.out.dtype) for value in call.args]
        return writer.op(name, *parts, into=call.name)

    return rule


def _cast(writer: Writer, _: Sizes, call: Call) -> str:
    return writer.op("Cast", call.x.name, into=call.name, to=onnx_type(call.out.dtype))


def _same(writer: Writer, _: Sizes, call: Call) -> str:
    return writer.op("Identity", call.x.name, into=call.name)


def _where(writer: Writer, _: Sizes, call: Call) -> str:
    picked = [as_type(writer, value, call.out.dtype) for value in call.args[1:3]]
    return writer.op("Where", call.x.name, *picked, into=call.name)


def _masked_fill(writer: Writer, _: Sizes, call: Call) -> str:
    filled = as_type(writer, call.args[2], call.out.dtype)
    return writer.op("Where", call.args[1].name, filled, call.x.name, into=call.name)


def _bounded(kind: str) -> Rule:
    """The larger, or the smaller, of two."""

    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        pair = [as_type(writer, value, call.out.dtype) for value in call.args[:2]]
        return writer.op(kind, *pair, into=call.name)

    return rule


def _picked(kind: str) -> Rule:
    """Take entries along a dimension by their indices."""

    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        axis = int(call.args[1])
        return writer.op(kind, call.x.name, call.args[2].name, into=call.name, axis=axis)

    return rule


def _remainder(writer: Writer, _: Sizes, call: Call) -> str:
    """x − y ⌊x ÷ y⌋, of the sign of y: ONNX's Mod has no other for integers."""
    dtype = call.out.dtype
    x, y = (as_type(writer, value, dtype) for value in call.args[:2])
    if not dtype.is_floating_point:
        return writer.op("Mod", x, y, into=call.name)
    ratio = writer.op("Div", x, y, into=f"{call.name}_ratio")
    whole = writer.op("Floor", ratio, into=f"{call.name}_whole")
    part = writer.op("Mul", whole, y, into=f"{call.name}_part")
    return writer.op("Sub", x, part, into=call.name)


def _cumsum(writer: Writer, _: Sizes, call: Call) -> str:
    axis = writer.constant(np.int64(call.argument(1, "dim")))
    x = as_type(writer, call.x, call.out.dtype)
    return writer.op("CumSum", x, axis, into=call.name)


def _diff(writer: Writer, _: Sizes, call: Call) -> str:
    """Differences of neighbours; of truth values, whether they differ."""
    axis, x = int(call.argument(2, "dim", -1)) % call.x.rank, call.x.name
    before, after = call.argument(3, "prepend"), call.argument(4, "append")
    parts = [part.name for part in (before, call.x, after) if part is not None]
    if len(parts) > 1:
        x = writer.op("Concat", *parts, into=f"{call.name}_whole", axis=axis)
    kind = "Xor" if call.x.dtype == torch.bool else "Sub"
    for _step in range(int(call.argument(1, "n", 1))):
        later = writer.sliced(x, axis, 1, END, into=f"{call.name}_later")
        sooner = writer.sliced(x, axis, 0, -1, into=f"{call.name}_sooner")
        x = writer.op(kind, later, sooner, into=call.name)
    return x


LOGIC: Mapping[Any, Rule] = {
    **dict.fromkeys((aten.eq.Scalar, aten.eq.Tensor), _compared("Equal")),
    **dict.fromkeys((aten.ne.Scalar, aten.ne.Tensor), _compared("Equal", negated=True)),
    **dict.fromkeys((aten.lt.Scalar, aten.lt.Tensor), _compared("Less")),
    **dict.fromkeys((aten.le.Scalar, aten.le.Tensor), _compared("LessOrEqual")),
    **dict.fromkeys((aten.gt.Scalar, aten.gt.Tensor), _compared("Greater")),
    **dict.fromkeys((aten.ge.Scalar, aten.ge.Tensor), _compared("GreaterOrEqual")),
    aten.logical_and.default: _logical("And"),
    aten.logical_or.default: _logical("Or"),
    aten.logical_xor.default: _logical("Xor"),
    aten.logical_not.default: _logical("Not"),
    **dict.fromkeys((aten.bitwise_and.Tensor, aten.bitwise_and.Scalar), _bitwise("And")),
    **dict.fromkeys((aten.bitwise_or.Tensor, aten.bitwise_or.Scalar), _bitwise("Or")),
    **dict.fromkeys((aten.__and__.Tensor, aten.__and__.Scalar), _bitwise("And")),
    **dict.fromkeys((aten.__or__.Tensor, aten.__or__.Scalar), _bitwise("Or")),
    aten.bitwise_not.default: _bitwise("Not"),
    aten.to.dtype: _cast,
    aten._to_copy.default: _cast,
    aten.type_as.default: _cast,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    **dict.fromkeys((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf), _where),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _masked_fill),
    **dict.fromkeys((aten.clamp_min.default, aten.maximum.default), _bounded("Max")),
    **dict.fromkeys((aten.clamp_max.default, aten.minimum.default), _bounded("Min")),
    **dict.fromkeys((aten.remainder.Scalar, aten.remainder.Tensor), _remainder),
    aten.cumsum.default: _cumsum,
    aten.diff.default: _diff,
    aten.gather.default: _picked("GatherElements"),
    aten.index_select.default: _picked("Gather"),
}
