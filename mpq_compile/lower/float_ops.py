"""Float ATen operators as Relax functions: everything that our own kernels do not compute.

One node of the captured graph becomes a module with one function ``main``, by exporting a small
torch module that calls the operator and importing that. ``embed`` puts the function into a larger
module that a ``BlockBuilder`` is building, as a private function that is inlined later.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tvm_ffi
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from tvm import IRModule, ir, relax
from tvm.relax.frontend.torch import from_exported_program

from mpq_compile.errors import UnsupportedOpError
from mpq_compile.lower.naming import numbered


class _OneOp(torch.nn.Module):
    """Calls one operator; ``slots`` tells which input each leaf of its arguments is, if any."""

    def __init__(
        self, target: Any, leaves: Sequence[Any], slots: Sequence[int], layout: pytree.TreeSpec
    ) -> None:
        super().__init__()
        self.target = target
        self.leaves = list(leaves)
        self.slots = list(slots)
        self.layout = layout

    def forward(self, *tensors: Tensor) -> Any:
        """Return the operator's result."""
        leaves = [
            leaf if slot < 0 else tensors[slot]
            for leaf, slot in zip(self.leaves, self.slots, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.layout)
        return self.target(*args, **kwargs)


def import_float_op(
    target: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    example_tensors: Sequence[Tensor],
) -> IRModule:
    """Return a module whose ``main`` computes ``target(*args, **kwargs)``.

    ``main`` takes one parameter for each distinct tensor among the arguments, in the order in
    which they first stand there (lists such as those of ``aten.cat`` included), and returns a
    tensor, or a tuple where the operator has several results.

    Args:
        target: The operator, such as ``torch.ops.aten.softmax.int``.
        args: Its positional arguments; ``fx.Node`` and tensors mark the inputs, all else is fixed.
        kwargs: Its keyword arguments, likewise.
        example_tensors: A tensor of the right shape and dtype for each input, in that order.

    Raises:
        UnsupportedOpError: Torch cannot export the call, or TVM cannot import it.
    """
    leaves, layout = pytree.tree_flatten((tuple(args), dict(kwargs)))
    slots = _input_slots(leaves)
    if max(slots, default=-1) + 1 != len(example_tensors):
        raise UnsupportedOpError(
            f"{target} takes another number of tensors than there are examples",
            expected=f"{max(slots, default=-1) + 1} example tensors",
            found=len(example_tensors),
        )
    fixed = [leaf if slot < 0 else None for leaf, slot in zip(leaves, slots, strict=True)]
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in example_tensors)
    # Numbers are told apart by how they are written: 1, 1.0 and True are equal.
    key = (target, tuple(map(repr, fixed)), tuple(slots), layout, shapes)
    if key not in _IMPORTED:
        if len(_IMPORTED) >= _MOST_IMPORTED:
            del _IMPORTED[next(iter(_IMPORTED))]
        _IMPORTED[key] = _imported(_OneOp(target, fixed, slots, layout), shapes)
    return _IMPORTED[key]


# What was imported before: networks that are unrolled call the same operator at every step, and
# exporting one takes a tenth of a second.
_IMPORTED: dict[Any, IRModule] = {}
_MOST_IMPORTED = 512


def _imported(operator: _OneOp, shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> IRModule:
    """Export a call of an operator, and import it."""
    examples = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in shapes)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(operator.eval(), examples)
            module = from_exported_program(program)
    except Exception as error:
        raise UnsupportedOpError(
            f"no float lowering for {operator.target}",
            found=f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[-1][:200]}",
            remedy="replace the operator in the model",
        ) from error
    return _returning_tensor(module) if program.call_spec.out_spec.is_leaf() else module


def embed(
    builder: relax.BlockBuilder, op_module: IRModule, name: str, args: Sequence[Any]
) -> relax.Var:
    """Add ``op_module`` to the builder's module and emit a call of its ``main``.

    Args:
        builder: Is inside a function, and a dataflow block if it is to be fused.
        op_module: What ``import_float_op`` returned.
        name: Wish for the name of the private function; made unique.
        args: One expression for each parameter of ``main``.

    Returns:
        The variable that holds the result: a tensor, or a tuple.
    """
    renamed = {
        old: builder.add_func(func, f"{name}_{old.name_hint}")
        for old, func in op_module.functions.items()
        if not isinstance(func, relax.Function)
    }
    main = tvm_ffi.structural_map(
        op_module["main"], (ir.GlobalVar, lambda old: renamed.get(old, old))
    )
    main = _with_names(main, name)
    function = builder.add_func(main.without_attr("global_symbol"), f"{name}_float")
    return builder.emit(relax.Call(function, list(args)), name)


def _with_names(main: relax.Function, name: str) -> relax.Function:
    """Name the variables of a function, which are the network's once it is inlined."""
    fresh: dict[Any, Any] = {}

    def named(old: Any) -> Any:
        if old not in fresh:
            fresh[old] = type(old)(numbered(name, len(fresh)), old.ty)
        return fresh[old]

    return tvm_ffi.structural_map(main, ((relax.Var, relax.DataflowVar), named))


def _input_slots(leaves: Sequence[Any]) -> list[int]:
    """Return for each leaf the number of its input, or −1 where it is a fixed argument."""
    seen: dict[int, int] = {}
    return [
        seen.setdefault(id(leaf), len(seen)) if isinstance(leaf, (Tensor, fx.Node)) else -1
        for leaf in leaves
    ]


def _returning_tensor(module: IRModule) -> IRModule:
    """Unpack the tuple of one into which the importer puts a single result."""
    main = module["main"]
    body = relax.SeqExpr(main.body.blocks, relax.TupleGetItem(main.body.body, 0))
    unpacked = relax.Function(main.params, body, main.ret_ty.fields[0], main.is_pure, main.attrs)
    result = module.clone()
    result.update_func(module.get_global_var("main"), unpacked)
    return relax.transform.Normalize()(result)
