"""Float ATen operators as Relax functions: everything that our own kernels do not compute.

One node of the captured graph becomes a module with one function ``main``, by exporting a small
torch module that calls the operator and importing that. ``embed`` puts the function into a larger
module that a ``BlockBuilder`` is building, as a private function that is inlined later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tvm_ffi
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from tvm import IRModule, ir, relax
from tvm.relax.frontend.torch import from_exported_program

from mpq_compile.errors import UnsupportedOpError


class _OneOp(torch.nn.Module):
    """Calls one operator; the tensors among its arguments are the inputs."""

    def __init__(self, target: Any, leaves: Sequence[Any], layout: pytree.TreeSpec) -> None:
        super().__init__()
        self.target = target
        self.leaves = list(leaves)
        self.layout = layout

    def forward(self, *tensors: Tensor) -> Any:
        """Return the operator's result."""
        remaining = iter(tensors)
        leaves = [next(remaining) if _is_tensor(leaf) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.layout)
        return self.target(*args, **kwargs)


def import_float_op(
    target: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    example_tensors: Sequence[Tensor],
) -> IRModule:
    """Return a module whose ``main`` computes ``target(*args, **kwargs)``.

    ``main`` takes one parameter for each tensor among the arguments, in the order in which they
    stand there (lists such as those of ``aten.cat`` included), and returns a tensor, or a tuple
    where the operator has several results.

    Args:
        target: The operator, such as ``torch.ops.aten.softmax.int``.
        args: Its positional arguments; ``fx.Node`` and tensors mark the inputs, all else is fixed.
        kwargs: Its keyword arguments, likewise.
        example_tensors: A tensor of the right shape and dtype for each input, in that order.

    Raises:
        UnsupportedOpError: Torch cannot export the call, or TVM cannot import it.
    """
    leaves, layout = pytree.tree_flatten((tuple(args), dict(kwargs)))
    leaves = [leaf.tensor if isinstance(leaf, _Input) else leaf for leaf in leaves]
    inputs = sum(map(_is_tensor, leaves))
    if inputs != len(example_tensors):
        raise UnsupportedOpError(
            f"{target} takes another number of tensors than there are examples",
            expected=f"{inputs} example tensors",
            found=len(example_tensors),
        )
    # Memory order and sharing between the examples must not leave traces in the export.
    examples = tuple(tensor.detach().clone(memory_format=torch.contiguous_format)
                     for tensor in example_tensors)
    fixed = [None if _is_tensor(leaf) else leaf for leaf in leaves]
    try:
        with torch.no_grad():
            program = torch.export.export(_OneOp(target, leaves, layout).eval(), examples)
            module = from_exported_program(program)
    except Exception as error:
        raise UnsupportedOpError(
            f"no float lowering for {target}",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}",
            remedy="replace the operator in the model",
        ) from error
    return module
