"""ATen operators on float tensors → ONNX nodes: elementwise functions, sums, norms, softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import numpy as np
import torch

from mpq_compile.integrations.qdq.dtypes import as_type
from mpq_compile.integrations.qdq.shapes import Sizes
from mpq_compile.integrations.qdq.values import Call
from mpq_compile.integrations.qdq.writer import Writer
from mpq_compile.passes import ops

aten = torch.ops.aten
_NORMS = {1.0: "ReduceL1", 2.0: "ReduceL2"}
Rule = Callable[[Writer, Sizes, Call], "str | list[str]"]


def _unary(kind: str, **attributes: float) -> Rule:
    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        return writer.op(kind, call.x.name, into=call.name, **attributes)

    return rule


def _silu(writer: Writer, _: Sizes, call: Call) -> str:
    gate = writer.op("Sigmoid", call.x.name, into=f"{call.name}_gate")
    return writer.op("Mul", call.x.name, gate, into=call.name)


def _gelu(writer: Writer, _: Sizes, call: Call) -> str:
    how = call.argument(1, "approximate", "none")
    return writer.op("Gelu", call.x.name, into=call.name, approximate=how)


def _leaky_relu(writer: Writer, _: Sizes, call: Call) -> str:
    slope = float(call.argument(1, "negative_slope", 0.01))
    return writer.op("LeakyRelu", call.x.name, into=call.name, alpha=slope)


def _elu(writer: Writer, _: Sizes, call: Call) -> str:
    """scale · elu(input_scale · x), where the input is scaled below zero only."""
    alpha, scale, input_scale = (
        float(call.argument(1 + index, name, 1.0))
        for index, name in enumerate(("alpha", "scale", "input_scale"))
    )
    if scale == input_scale == 1.0:
        return writer.op("Elu", call.x.name, into=call.name, alpha=alpha)
    below = writer.clip(call.x.name, -inf, 0.0, into=f"{call.name}_below")
    scaled = writer.op("Mul", below, writer.scalar(input_scale), into=f"{call.name}_scaled")
    bent = writer.op("Elu", scaled, into=f"{call.name}_bent", alpha=alpha)
    above = writer.op("Relu", call.x.name, into=f"{call.name}_above")
    whole = writer.op("Add", above, bent, into=call.name)
    return writer.op("Mul", whole, writer.scalar(scale), into=f"{call.name}_whole")


def _log1p(writer: Writer, _: Sizes, call: Call) -> str:
    more = writer.op("Add", call.x.name, writer.scalar(1.0), into=f"{call.name}_more")
    return writer.op("Log", more, into=call.name)


def _log_sigmoid(writer: Writer, _: Sizes, call: Call) -> str:
    negated = writer.op("Neg", call.x.name, into=f"{call.name}_negated")
    soft = writer.op("Softplus", negated, into=f"{call.name}_soft")
    return writer.op("Neg", soft, into=call.name)


def _shrink(soft: bool) -> Rule:
    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        least = float(call.argument(1, "lambd", 0.5))
        bias = least if soft else 0.0
        return writer.op("Shrink", call.x.name, into=call.name, lambd=least, bias=bias)

    return rule


def _threshold(writer: Writer, _: Sizes, call: Call) -> str:
    above, other = (writer.scalar(float(value)) for value in call.args[1:3])
    passes = writer.op("Greater", call.x.name, above, into=f"{call.name}_passes")
    return writer.op("Where", passes, call.x.name, other, into=call.name)


def _greatest(writer: Writer, _: Sizes, call: Call) -> list[str]:
    """The greatest along a dimension, and where it stands."""
    axis, kept = int(call.argument(1, "dim")), int(bool(call.argument(2, "keepdim", False)))
    values = writer.op("ReduceMax", call.x.name, writer.sizes(axis), into=call.name, keepdims=kept)
    places = writer.op("ArgMax", call.x.name, into=f"{call.name}_at", axis=axis, keepdims=kept)
    return [values, places]


def _place(kind: str) -> Rule:
    """Where the greatest or least stands: along a dimension, or among all values."""

    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        axis, x = call.argument(1, "dim"), call.x.name
        kept = int(bool(call.argument(2, "keepdim", False)))
        if axis is None:
            x = writer.op("Reshape", x, writer.sizes(-1), into=f"{call.name}_flat")
            axis, kept = 0, 0
        return writer.op(kind, x, into=call.name, axis=int(axis), keepdims=kept)

    return rule


def _softplus(writer: Writer, _: Sizes, call: Call) -> str:
    """ln(1 + exp(β x)) ÷ β; PyTorch's threshold only keeps exp from overflowing."""
    beta = float(call.argument(1, "beta", 1.0))
    if beta == 1.0:
        return writer.op("Softplus", call.x.name, into=call.name)
    scaled = writer.op("Mul", call.x.name, writer.scalar(beta), into=f"{call.name}_scaled")
    soft = writer.op("Softplus", scaled, into=f"{call.name}_soft")
    return writer.op("Div", soft, writer.scalar(beta), into=call.name)


def _rsqrt(writer: Writer, _: Sizes, call: Call) -> str:
    root = writer.op("Sqrt", call.x.name, into=f"{call.name}_root")
    return writer.op("Reciprocal", root, into=call.name)


def _binary(kind: str, swapped: bool = False) -> Rule:
    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        dtype = call.out.dtype
        first, second = (as_type(writer, value, dtype) for value in call.args[:2])
        factor = call.kwargs.get("alpha", 1)
        if factor != 1:
            scaled = as_type(writer, factor, dtype)
            second = writer.op("Mul", second, scaled, into=f"{call.name}_scaled")
        order = (second, first) if swapped else (first, second)
        return writer.op(kind, *order, into=call.name)

    return rule


def _clamped(kind: str) -> Rule:
    """``passes.ops.add`` and ``multiply``, with the clamp behind them."""

    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        result = writer.op(kind, call.args[0].name, call.args[1].name, into=call.name)
        return writer.clip(result, *(call.args[2:] or (-inf, inf)), into=call.name)

    return rule


def _rotary(writer: Writer, _: Sizes, call: Call) -> str:
    """x · cos + (−x₂, x₁) · sin, of the halves x₁ and x₂ of the last dimension."""
    x, cos, sin = (value.name for value in call.args)
    half = call.x.shape[-1] // 2
    into = [f"{call.name}_{part}" for part in ("first", "second")]
    first, second = writer.ops("Split", x, writer.sizes(half, half), into=into, axis=-1)
    negated = writer.op("Neg", second, into=f"{call.name}_negated")
    turned = writer.op("Concat", negated, first, into=f"{call.name}_turned", axis=-1)
    parts = [
        writer.op("Mul", *pair, into=f"{call.name}_part") for pair in ((x, cos), (turned, sin))
    ]
    return writer.op("Add", *parts, into=call.name)


def _gates(writer: Writer, x: str, width: int, count: int, into: str) -> list[str]:
    """Split the last dimension into the gates of a recurrent layer."""
    names = [f"{into}_gate{index}" for index in range(count)]
    return writer.ops("Split", x, writer.sizes(*[width] * count), into=names, axis=-1)


def _lstm_step(writer: Writer, _: Sizes, call: Call) -> list[str]:
    """Hidden and cell state of a step."""
    inner, outer, cell = call.args
    gates = inner.name
    if outer is not None:
        gates = writer.op("Add", outer.name, gates, into=f"{call.name}_sum")
    i, f, g, o = _gates(writer, gates, inner.shape[-1] // 4, 4, call.name)
    i, o = (writer.op("Sigmoid", gate, into=f"{gate}_open") for gate in (i, o))
    new = writer.op("Mul", i, writer.op("Tanh", g, into=f"{g}_tanh"), into=f"{call.name}_new")
    if cell is not None:
        kept = writer.op("Sigmoid", f, into=f"{f}_open")
        kept = writer.op("Mul", kept, cell.name, into=f"{call.name}_kept")
        new = writer.op("Add", kept, new, into=f"{call.name}_cell")
    bent = writer.op("Tanh", new, into=f"{call.name}_bent")
    return [writer.op("Mul", o, bent, into=call.name), new]


def _gru_step(writer: Writer, _: Sizes, call: Call) -> str:
    """The hidden state of a step."""
    inner, outer, hidden = call.args
    width = inner.shape[-1] // 3
    r, z, n = _gates(writer, inner.name, width, 3, f"{call.name}_x")
    if outer is not None:
        r_h, z_h, n_h = _gates(writer, outer.name, width, 3, f"{call.name}_h")
        r = writer.op("Add", r, r_h, into=f"{call.name}_r")
        z = writer.op("Add", z, z_h, into=f"{call.name}_z")
        reset = writer.op("Sigmoid", r, into=f"{call.name}_reset")
        n = writer.op("Add", n, writer.op("Mul", reset, n_h, into=f"{call.name}_n"), into=n)
    z = writer.op("Sigmoid", z, into=f"{call.name}_update")
    n = writer.op("Tanh", n, into=f"{call.name}_new")
    if hidden is None:
        return writer.op("Sub", n, writer.op("Mul", z, n, into=f"{call.name}_part"), into=call.name)
    apart = writer.op("Sub", hidden.name, n, into=f"{call.name}_apart")
    return writer.op("Add", n, writer.op("Mul", z, apart, into=f"{call.name}_part"), into=call.name)


def _clamp(writer: Writer, _: Sizes, call: Call) -> str:
    return writer.clip(call.x.name, *call.args[1:3], into=call.name)


def _channel_affine(writer: Writer, sizes: Sizes, call: Call) -> str:
    factors = []
    for value in call.args[1:3]:
        shape = writer.sizes(-1, *(1,) * (call.x.rank - 2))
        factors.append(writer.op("Reshape", value.name, shape, into=f"{value.name}_column"))
    scaled = writer.op("Mul", call.x.name, factors[0], into=f"{call.name}_scaled")
    shifted = writer.op("Add", scaled, factors[1], into=call.name)
    return writer.clip(shifted, *(call.args[3:] or (-inf, inf)), into=call.name)


def _softmax(kind: str) -> Rule:
    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        return writer.op(kind, call.x.name, into=call.name, axis=int(call.argument(1, "dim")))

    return rule


def _columns(writer: Writer, call: Call, index: int, name: str, value: float) -> str:
    """Return the scale or shift of a norm; constant where the call has none."""
    given = call.argument(index, name)
    if given is not None:
        return given.name
    return writer.constant(np.full(call.args[1], value, np.float32))


def _layer_norm(writer: Writer, _: Sizes, call: Call) -> str:
    columns = [_columns(writer, call, 2, "weight", 1.0), _columns(writer, call, 3, "bias", 0.0)]
    axis, epsilon = -len(call.args[1]), float(call.argument(4, "eps", 1e-5))
    return writer.op(
        "LayerNormalization", call.x.name, *columns, into=call.name, axis=axis, epsilon=epsilon
    )


def _rms_norm(writer: Writer, _: Sizes, call: Call) -> str:
    """x ÷ √(mean x² + ε) · weight: an operator of its own only from operator set 23 on."""
    epsilon = call.argument(3, "eps")
    epsilon = torch.finfo(torch.float32).eps if epsilon is None else float(epsilon)
    axes = writer.sizes(*range(-len(call.args[1]), 0))
    square = writer.op("Mul", call.x.name, call.x.name, into=f"{call.name}_square")
    mean = writer.op("ReduceMean", square, axes, into=f"{call.name}_mean", keepdims=1)
    kept = writer.op("Add", mean, writer.scalar(epsilon), into=f"{call.name}_kept")
    root = writer.op("Sqrt", kept, into=f"{call.name}_root")
    normed = writer.op("Div", call.x.name, root, into=f"{call.name}_normed")
    return writer.op("Mul", normed, _columns(writer, call, 2, "weight", 1.0), into=call.name)


def _group_norm(writer: Writer, _: Sizes, call: Call) -> str:
    channels = call.x.shape[1]
    columns = [
        value.name if value is not None else writer.constant(np.full(channels, fill, np.float32))
        for value, fill in ((call.argument(2, "weight"), 1.0), (call.argument(3, "bias"), 0.0))
    ]
    epsilon, groups = float(call.argument(4, "eps", 1e-5)), int(call.args[1])
    kind = "GroupNormalization"
    return writer.op(
        kind, call.x.name, *columns, into=call.name, num_groups=groups, epsilon=epsilon
    )


def _reduced(writer: Writer, kind: str, x: str, call: Call, first: int = 1) -> str:
    """Write a reduction of ``x`` over the dimensions that argument ``first`` names, or all."""
    axes = call.argument(first, "dim")
    axes = [axes] if isinstance(axes, int) else axes or range(call.x.rank)
    kept = int(bool(call.argument(first + 1, "keepdim", False)))
    return writer.op(kind, x, writer.sizes(*axes), into=call.name, keepdims=kept)


def _reduce(kind: str) -> Rule:
    def rule(writer: Writer, _: Sizes, call: Call) -> str:
        return _reduced(writer, kind, call.x.name, call)

    return rule


def _vector_norm(writer: Writer, _: Sizes, call: Call) -> str:
    """The norm over some dimensions, of any order."""
    order, x = float(call.argument(1, "ord", 2.0)), call.x.name
    if order in _NORMS:
        return _reduced(writer, _NORMS[order], x, call, 2)
    size = writer.op("Abs", x, into=f"{call.name}_size")
    if order == inf:
        return _reduced(writer, "ReduceMax", size, call, 2)
    power = writer.op("Pow", size, writer.scalar(order), into=f"{call.name}_power")
    total = _reduced(writer, "ReduceSum", power, call, 2)
    return writer.op("Pow", total, writer.scalar(1 / order), into=f"{call.name}_root")


def _matmul(writer: Writer, _: Sizes, call: Call) -> str:
    return writer.op("MatMul", call.args[0].name, call.args[1].name, into=call.name)


def _linear(writer: Writer, _: Sizes, call: Call) -> str:
    """A linear layer whose weight the network computes."""
    weight = writer.op("Transpose", call.args[1].name, into=f"{call.name}_weight", perm=[1, 0])
    product = writer.op("MatMul", call.x.name, weight, into=call.name)
    bias = call.argument(2, "bias")
    if bias is None:
        return product
    return writer.op("Add", product, bias.name, into=f"{call.name}_biased")


def _embedding(writer: Writer, _: Sizes, call: Call) -> str:
    return writer.op("Gather", call.args[0].name, call.args[1].name, into=call.name, axis=0)


UNARY: Mapping[Any, Rule] = {
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.tanh.default: _unary("Tanh"),
    aten.abs.default: _unary("Abs"),
    aten.neg.default: _unary("Neg"),
    aten.exp.default: _unary("Exp"),
    aten.sqrt.default: _unary("Sqrt"),
    aten.log.default: _unary("Log"),
    aten.erf.default: _unary("Erf"),
    aten.sin.default: _unary("Sin"),
    aten.cos.default: _unary("Cos"),
    aten.reciprocal.default: _unary("Reciprocal"),
    aten.floor.default: _unary("Floor"),
    aten.sign.default: _unary("Sign"),
    aten.rsqrt.default: _rsqrt,
    aten.relu.default: _unary("Relu"),
    aten.hardswish.default: _unary("HardSwish"),
    aten.hardsigmoid.default: _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.mish.default: _unary("Mish"),
    aten.softplus.default: _softplus,
    aten.selu.default: _unary("Selu"),
    aten.silu.default: _silu,
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.log1p.default: _log1p,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.softshrink.default: _shrink(soft=True),
    aten.hardshrink.default: _shrink(soft=False),
    aten.threshold.default: _threshold,
}
FLOATS: Mapping[Any, Rule] = {
    **UNARY,
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.rsub.Scalar: _binary("Sub", swapped=True),
    aten.mul.Tensor: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.pow.Tensor_Scalar: _binary("Pow"),
    aten.pow.Tensor_Tensor: _binary("Pow"),
    ops.add: _clamped("Add"),
    ops.subtract: _clamped("Sub"),
    ops.multiply: _clamped("Mul"),
    ops.rotary: _rotary,
    ops.lstm_step: _lstm_step,
    ops.gru_step: _gru_step,
    ops.clamp: _clamp,
    ops.channel_affine: _channel_affine,
    aten.softmax.int: _softmax("Softmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.log_softmax.int: _softmax("LogSoftmax"),
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.mean.dim: _reduce("ReduceMean"),
    aten.sum.dim_IntList: _reduce("ReduceSum"),
    aten.max.dim: _greatest,
    aten.argmax.default: _place("ArgMax"),
    aten.argmin.default: _place("ArgMin"),
    aten.amax.default: _reduce("ReduceMax"),
    aten.amin.default: _reduce("ReduceMin"),
    aten.linalg_vector_norm.default: _vector_norm,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
}
