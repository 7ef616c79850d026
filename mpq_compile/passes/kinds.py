"""Kinds of operators: what the materializer does with each call of a network."""

from __future__ import annotations

import operator
from enum import Enum, auto

import torch
from torch import fx

from mpq_compile.capture import source_line
from mpq_compile.errors import UnsupportedOpError
from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, is_call, target_name
from mpq_compile.passes.index_ops import INDEX_OPS
from mpq_compile.passes.network import Network

aten = torch.ops.aten

# Of a function of one code, a byte each.
TABLE_ENTRIES = 256


class Kind(Enum):
    """What the materializer does with a node."""

    SITE = auto()
    EMBEDDING = auto()  # a site too: rows of a table by number; stores fp32
    ADD = auto()
    MULTIPLY = auto()
    AFFINE = auto()
    CLAMP = auto()
    AVERAGE = auto()
    MAX_POOL = auto()
    TABLE = auto()  # unary function: a table on codes
    MOVE = auto()  # values are moved, not changed: any format, the input's quantizer
    PICK = auto()  # one of several results
    CONCAT = auto()
    ATTENTION = auto()  # in the format of its operands; stores any
    FLOAT = auto()  # fp32 in, fp32 out
    SHAPE = auto()  # integers, not tensors
    UNSUPPORTED = auto()


RESHAPES = (
    aten.reshape.default,
    aten.view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
)
MOVES = frozenset(
    {
        *RESHAPES,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.expand.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest2d.default,
        aten.pixel_shuffle.default,
        aten.flip.default,
        aten.roll.default,
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
    }
)
PAD = aten.constant_pad_nd.default
_TABLES = frozenset(
    {
        aten.sigmoid.default,
        aten.silu.default,
        aten.gelu.default,
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.tanh.default,
        aten.leaky_relu.default,
        aten.elu.default,
        aten.selu.default,
        aten.softplus.default,
        aten.mish.default,
        aten.log_sigmoid.default,
        aten.softshrink.default,
        aten.hardshrink.default,
        aten.threshold.default,
        aten.abs.default,
        aten.neg.default,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.rsub.Scalar,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.pow.Tensor_Scalar,
    }
)
_FLOATS = INDEX_OPS | frozenset(
    {
        aten.softmax.int,
        aten._softmax.default,
        aten.log_softmax.int,
        aten.layer_norm.default,
        aten.rms_norm.default,
        aten.embedding.default,
        aten.upsample_bilinear2d.vec,
        aten.group_norm.default,
        aten.scaled_dot_product_attention.default,
        aten.matmul.default,
        aten.bmm.default,
        # With weights or biases that the network computes itself; otherwise these are sites.
        aten.linear.default,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv_transpose2d.input,
        aten.mean.dim,
        aten.sum.dim_IntList,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.max.dim,
        aten.topk.default,
        aten.sort.default,
        aten.exp.default,
        aten.log.default,
        aten.log1p.default,
        aten.erf.default,
        aten.expm1.default,
        aten.log2.default,
        aten.log10.default,
        aten.reciprocal.default,
        aten.tan.default,
        aten.atan.default,
        aten.asin.default,
        aten.acos.default,
        aten.atan2.default,
        aten.sign.default,
        aten.floor.default,
        aten.ceil.default,
        aten.round.default,
        aten.trunc.default,
        aten.pow.Scalar,
        aten.pow.Tensor_Tensor,
        aten.tril.default,
        aten.triu.default,
        aten.scatter.src,
        aten.scatter.value,
        aten.sqrt.default,
        aten.rsqrt.default,
        aten.sin.default,
        aten.cos.default,
        ops.write_rows,
        ops.rotary,
        ops.lstm_step,
        ops.gru_step,
        aten.linalg_vector_norm.default,
        aten.upsample_bicubic2d.vec,
        aten.constant_pad_nd.default,  # of another value than zero
        ops.add,
        ops.subtract,
        ops.multiply,
        ops.channel_affine,
    }
)
# Of integers and truth values, exact; and what makes floats of them.
_LOGIC = frozenset(
    {
        aten.to.dtype,
        aten.type_as.default,
        aten.gather.default,
        aten.cumsum.default,
        aten.remainder.Scalar,
        aten.floor_divide.default,
        aten.any.dim,
        aten.all.dim,
        aten.argmax.default,
        aten.argmin.default,
        aten.where.self,
        aten.where.Scalar,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.masked_fill.Scalar,
        aten.__and__.Tensor,
        aten.__or__.Tensor,
        aten.bitwise_and.Tensor,
        aten.bitwise_or.Tensor,
        aten.bitwise_not.default,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_not.default,
        *(getattr(aten, name).Scalar for name in ("eq", "ne", "lt", "le", "gt", "ge")),
        *(getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    }
)


def classify(network: Network, node: fx.Node) -> Kind | None:
    """Return what kind of operator ``node`` is; None for placeholders, constants and output."""
    if node.op != "call_function":
        return None
    if is_call(node, *ops.SITE_OPS):
        return Kind.SITE
    if is_call(node, ops.site_embedding):
        return Kind.EMBEDDING
    if node.target is operator.getitem:
        return Kind.PICK
    if node.name not in network.shapes and not _has_several_results(node):
        return Kind.SHAPE
    for matches, kind in _RULES:
        if matches(network, node):
            return kind
    return Kind.UNSUPPORTED


def _has_several_results(node: fx.Node) -> bool:
    return any(user.target is operator.getitem for user in node.users)


def _shape(network: Network, node: object) -> tuple[int, ...] | None:
    return (
        network.shapes[node.name][0]
        if isinstance(node, fx.Node) and (node.name in network.shapes)
        else None
    )


def _same_shapes(network: Network, node: fx.Node) -> bool:
    shapes = [_shape(network, value) for value in (node, node.args[0], node.args[1])]
    return shapes[0] is not None and shapes.count(shapes[0]) == 3


def _is_sum(network: Network, node: fx.Node) -> bool:
    return is_call(node, ops.add, ops.subtract) and _same_shapes(network, node)


def _broadcasts_pixels(network: Network, node: fx.Node) -> bool:
    """[B, C, H, W] · [B, C, 1, 1], either way round."""
    out = _shape(network, node)
    shapes = [_shape(network, value) for value in node.args[:2]]
    return out is not None and len(out) == 4 and out in shapes and (*out[:2], 1, 1) in shapes


def _is_multiply(network: Network, node: fx.Node) -> bool:
    fits = is_call(node, ops.multiply)
    return fits and (_same_shapes(network, node) or _broadcasts_pixels(network, node))


def _is_average(network: Network, node: fx.Node) -> bool:
    if is_call(node, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default):
        return len(_shape(network, node.args[0]) or ()) == 4
    if not is_call(node, aten.mean.dim) or len(_shape(network, node.args[0]) or ()) != 4:
        return False
    axes = argument(node, 1, "dim")
    return isinstance(axes, (list, tuple)) and sorted(int(a) % 4 for a in axes) == [2, 3]


def _is_table(network: Network, node: fx.Node) -> bool:
    if node.target not in _TABLES or not isinstance(node.args[0], fx.Node):
        return False
    same = _is_float(network, node) and _is_float(network, node.args[0])
    return len(node.all_input_nodes) == 1 and same


def _is_float(network: Network, node: fx.Node) -> bool:
    entry = network.shapes.get(node.name)
    return entry is not None and entry[1] == torch.float32


def _is_move(network: Network, node: fx.Node) -> bool:
    if is_call(node, PAD):
        return argument(node, 2, "value", 0) == 0
    return node.target in MOVES or is_call(node, ops.frames_beside)


def _is_max_pool(network: Network, node: fx.Node) -> bool:
    fits = is_call(node, aten.max_pool2d.default)
    return fits and len(_shape(network, node.args[0]) or ()) == 4


def _is_attention(network: Network, node: fx.Node) -> bool:
    """Tell whether ``node`` is attention of [B, H, T, D] or [B, T, D] operands that our kernel
    computes: no dropout, no shared heads, a mask that broadcasts to the scores."""
    if not is_call(node, aten.scaled_dot_product_attention.default):
        return False
    shapes = [_shape(network, value) for value in node.args[:3]]
    if None in shapes or len(shapes[0] or ()) not in (3, 4):
        return False
    q, k, v = (tuple(shape or ()) for shape in shapes)
    mask = argument(node, 3, "attn_mask")
    plain = not argument(node, 4, "dropout_p", 0.0) and not node.kwargs.get("enable_gqa", False)
    same = len(q) == len(k) == len(v) and q[:-2] == k[:-2] == v[:-2]
    if not (plain and same and all(_is_float(network, n) for n in node.args[:3])):
        return False
    return mask is None or len(_shape(network, mask) or q + (0,)) <= len(q)


def _is_affine(network: Network, node: fx.Node) -> bool:
    fits = is_call(node, ops.channel_affine)
    return fits and len(_shape(network, node.args[0]) or ()) == 4


_RULES = (
    (_is_max_pool, Kind.MAX_POOL),
    (_is_move, Kind.MOVE),
    (lambda _, node: is_call(node, aten.cat.default), Kind.CONCAT),
    (_is_sum, Kind.ADD),
    (_is_multiply, Kind.MULTIPLY),
    (_is_affine, Kind.AFFINE),
    (_is_attention, Kind.ATTENTION),
    (lambda _, node: is_call(node, ops.clamp), Kind.CLAMP),
    (_is_average, Kind.AVERAGE),
    (_is_table, Kind.TABLE),
    (lambda _, node: node.target in _FLOATS or node.target in _LOGIC, Kind.FLOAT),
)


def kinds(network: Network, allow_float: bool = False) -> dict[str, Kind]:
    """Classify every call of the network.

    Raises:
        UnsupportedOpError: An operator has no lowering and ``allow_float`` is False.
    """
    classified = {node: classify(network, node) for node in network.module.graph.nodes}
    refused = [node for node, kind in classified.items() if kind is Kind.UNSUPPORTED]
    if refused and not allow_float:
        names = list(dict.fromkeys(target_name(node) for node in refused))
        raise UnsupportedOpError(
            f"operator {names[0]} is not supported",
            where=f"node {refused[0].name}, {source_line(refused[0])}",
            expected="operators of the README's list",
            found=", ".join(names),
            remedy="replace it, or pass allow_float=True to run it in float on TVM",
        )
    return {
        node.name: Kind.FLOAT if kind is Kind.UNSUPPORTED else kind
        for node, kind in classified.items()
        if kind is not None
    }
