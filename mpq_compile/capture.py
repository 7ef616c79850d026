"""``nn.Module``, ``ExportedProgram``, ``.pt2`` or ``.onnx`` file → a flat FX graph of ATen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.fx.graph import CodeGen
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree

from mpq_compile.dropout import switch_off_dropout
from mpq_compile.errors import CaptureError
from mpq_compile.exporting import export, no_tensors
from mpq_compile.in_place import functional, is_in_place, writes_into_alias, written_by
from mpq_compile.onnx_import.fixed import FixedSite
from mpq_compile.onnx_import.model import import_onnx

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CapturedGraph:
    """A network as ATen operators.

    Args:
        module: Graph with flat tensor inputs and a flat tuple of outputs; parameters are
            attributes under their original names.
        example_inputs: Flat example tensors; their shapes are the ones that are compiled.
        out_spec: Tree of the outputs, to give back what the model returns.
        dynamic_batch: True where dimension 0 of every input may change from call to call.
        met: Where the graph is one part of a model: how many sites of a path and operator
            (``"fc:linear"``) the parts before it have. Ids count on from there.
        fixed: What a file came quantized with, by the name of a layer's weight.
    """

    module: fx.GraphModule
    example_inputs: tuple[Tensor, ...]
    out_spec: pytree.TreeSpec
    dynamic_batch: bool
    met: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, FixedSite] = field(default_factory=dict)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the flat inputs, as ``forward`` has them."""
        nodes = self.module.graph.nodes
        return tuple(str(node.target) for node in nodes if node.op == "placeholder")


def as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """Return positional arguments: a tensor alone becomes a tuple of one."""
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    return (example_inputs,)


def source_line(node: fx.Node) -> str:
    """Return the user's line that made the node, or the node's name where it is unknown."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    frames = [i for i, line in enumerate(lines) if line.startswith("File ")]
    # The innermost frame outside torch is the user's; its own modules are not what he wrote.
    outside = [i for i in frames if "/torch/" not in lines[i]] or frames
    if not outside:
        return f"node {node.name}"
    index = outside[-1]
    code = lines[index + 1] if index + 1 < len(lines) and index + 1 not in frames else ""
    return f"{lines[index]}: {code}" if code else lines[index]


def capture(
    model: nn.Module | ExportedProgram | CapturedGraph | str | Path, example_inputs: Any = None
) -> CapturedGraph:
    """Trace ``model`` with ``torch.export``.

    The batch (dimension 0 of every input) is left free where the model allows it, so that
    calibration and evaluation may use other batch sizes than the deployed one.

    Args:
        model: An ``nn.Module`` (traced in eval mode; the model itself is not changed), an
            ``ExportedProgram``, the path of a ``.pt2`` or ``.onnx`` file, or a graph that was
            captured already.
        example_inputs: A tensor or a tuple of tensors; optional for exported programs, and for
            ``.onnx`` files that fix all sizes but the first one.

    Raises:
        CaptureError: The model cannot be traced, or the inputs do not fit it.
    """
    if isinstance(model, CapturedGraph):
        return model
    if isinstance(model, (str, Path)) and Path(model).suffix == ".onnx":
        return _capture_onnx(Path(model), example_inputs)
    if isinstance(model, (str, Path)):
        model = _load(Path(model))
    if isinstance(model, ExportedProgram):
        inputs = as_inputs(model.example_inputs[0] if example_inputs is None else example_inputs)
        return _flatten(model, _tensors(inputs))
    if not isinstance(model, nn.Module):
        raise CaptureError(
            "not a model",
            expected="an nn.Module, an ExportedProgram or the path of a .pt2 or .onnx file",
            found=type(model).__name__,
            remedy="pass the network itself, not its class or its state_dict",
        )
    inputs = as_inputs(example_inputs)
    tensors = _tensors(inputs)
    _check_float32(model, tensors)
    with in_eval_mode(model):
        program = _export_dynamic(model, inputs, tensors) or export(model, inputs, None)
    return _flatten(program, tensors)


def _capture_onnx(path: Path, example_inputs: Any) -> CapturedGraph:
    model = import_onnx(path)
    given = model.example_inputs() if example_inputs is None else as_inputs(example_inputs)
    tensors = _tensors(given)
    model.check(tensors)
    with preserve_node_meta():  # the network says which node of the file it is at
        captured = capture(model.network, tensors)
    model.describe(captured.module)
    return replace(captured, fixed=model.fixed)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode and give every module its own mode back: nothing is copied."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _check_float32(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    named: dict[str, Tensor] = dict(model.named_parameters())
    named.update({f"example input {i}": value for i, value in enumerate(inputs)})
    for name, value in named.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise CaptureError(
                "the model does not compute in float32",
                where=name,
                expected="float32 parameters and inputs",
                found=str(value.dtype),
                remedy="pass model.float() and inputs.float(); bf16 is a candidate to choose",
            )


def _load(path: Path) -> ExportedProgram:
    if path.suffix != ".pt2" or not path.is_file():
        absent = "a folder" if path.is_dir() else "no such file"
        raise CaptureError(
            "cannot read the model",
            where=str(path),
            expected="an existing .pt2 file, written by torch.export.save, or a .onnx file",
            found=absent if not path.is_file() else f"suffix {path.suffix!r}",
            remedy="export the model with torch.export, or name file.py:factory",
        )
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise CaptureError(
            "the .pt2 file cannot be loaded",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
            remedy="write it again with torch.export.save",
        ) from error


def _tensors(inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    flat = pytree.tree_leaves(inputs)
    if not flat or not all(isinstance(value, Tensor) for value in flat):
        raise CaptureError(
            "example inputs must be tensors",
            expected="a tensor or a tuple of tensors",
            found=", ".join(type(value).__name__ for value in flat) or "nothing",
            remedy="pass the tensors the model is called with; bind other arguments beforehand",
        )
    return tuple(flat)


def _export_dynamic(
    model: nn.Module, inputs: tuple[Any, ...], tensors: tuple[Tensor, ...]
) -> ExportedProgram | None:
    """Export with a free batch, or return None where the model fixes it."""
    if any(t.dim() == 0 or t.shape[0] != tensors[0].shape[0] for t in tensors):
        return None
    # Export specialises a batch of one: trace with two copies of the example.
    doubled = pytree.tree_map(lambda t: torch.cat([t, t]), inputs)
    # One name for the batch of several inputs: symbols of their own would never compare as equal.
    for dim in (Dim("batch"), Dim.AUTO) if len(tensors) > 1 else (Dim.AUTO,):
        shapes = pytree.tree_map(lambda t, dim=dim: {0: dim}, inputs)
        try:
            program = export(model, doubled, shapes)
        except CaptureError as error:
            log.debug("free batch refused: %s", error)
            continue
        users = [n for n in program.graph.nodes if n.op == "placeholder"][-len(tensors) :]
        # A size that the model asks for as a number, as len() does, is a symbol fixed to it.
        return program if not any(is_concrete_int(n.meta["val"].shape[0]) for n in users) else None
    return None


def _flatten(program: ExportedProgram, tensors: tuple[Tensor, ...]) -> CapturedGraph:
    if any(writes_into_alias(node) for node in program.graph.nodes):
        program = _with_writes_as_values(program)
    _refuse_state(program)
    module = _without_gradients(program.module(check_guards=False))
    module.graph.set_codegen(CodeGen())
    for node in module.graph.nodes:
        if is_in_place(node):
            node.target = functional(node.target)
    if dropping := switch_off_dropout(module.graph):
        warnings.warn(
            f"mpq: {source_line(dropping[0])}: dropout that is active in eval mode is left out; "
            "pass training=self.training to torch.nn.functional.dropout",
            RuntimeWarning,
            stacklevel=2,
        )
    module.recompile()
    outputs = _run(module, tensors)
    return CapturedGraph(
        module=module,
        example_inputs=tensors,
        out_spec=program.call_spec.out_spec,
        dynamic_batch=_batch_is_free(module) and _samples_are_apart(module, tensors, outputs),
    )


def _with_writes_as_values(program: ExportedProgram) -> ExportedProgram:
    """Make every write a value of its own; a buffer that is written becomes an output."""
    try:
        return program.run_decompositions({})
    except Exception as error:
        found = str(error).strip()[:600]
        if "mutated" in found:  # torch takes no writes into tensors that are not registered
            constants = program.graph_signature.inputs_to_lifted_tensor_constants
            writes = filter(is_in_place, program.graph.nodes)
            lines = [source_line(n) for n in writes if written_by(n).name in constants]
            raise _stateful(found, next(iter(lines), None)) from error
        raise CaptureError(
            "writes into tensors that have another name cannot be made values of their own",
            expected="a forward that torch.export can decompose",
            found=f"{type(error).__name__}: {found}",
            remedy="replace in-place operations by those that return a new tensor",
        ) from error


def _refuse_state(program: ExportedProgram) -> None:
    """Raise ``CaptureError`` where ``forward`` writes into what the model holds.

    A network has no state: the write would be lost, and the next call would read old values.
    """
    signature = program.graph_signature
    written = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}
    if written:
        nodes = {node.name: node for node in program.graph.nodes}
        names = ", ".join(dict.fromkeys(written.values()))
        raise _stateful(f"a write into {names}", source_line(nodes[next(iter(written))]))


def _stateful(found: str, where: str | None = None) -> CaptureError:
    return CaptureError(
        "forward writes into a tensor that the model holds, and the write would be lost",
        where=where,
        expected="a forward without state: what a call needs of the one before is passed to it",
        found=found,
        remedy="take the tensor as an input and return it as it is after the call; a KV cache so "
        "written stays with the caller (net(…, in_place=True), docs/decoders_and_encoders.md)",
    )


def _without_gradients(module: fx.GraphModule) -> fx.GraphModule:
    """Give the graph parameters of its own: it shares the model's, which must not change."""
    for owner in module.modules():
        for name, value in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(value.detach(), requires_grad=False))
    return module


def _batch_is_free(module: fx.GraphModule) -> bool:
    """Tell whether dimension 0 of every input is a symbol, and that of every output one of them."""
    sources = [n for n in module.graph.nodes if n.op == "placeholder"]
    results = next(n for n in module.graph.nodes if n.op == "output").args[0]
    free = {str(size) for n in sources if isinstance(size := _length(n), torch.SymInt)}
    return bool(free) and all(str(_length(n)) in free for n in (*sources, *results))


def _length(node: fx.Node) -> int | torch.SymInt | None:
    value = node.meta.get("val")
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else None


def _samples_are_apart(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor]
) -> bool:
    """Tell whether the samples of a batch do not change each other's results."""
    size = len(inputs[0])
    others = tuple(_other_sample(value) for value in inputs)
    # Also behind others: every sample may read the first one's numbers.
    before = _run(module, tuple(torch.cat(pair) for pair in zip(inputs, others, strict=True)))
    behind = _run(module, tuple(torch.cat(pair) for pair in zip(others, inputs, strict=True)))
    found = [[value[:size] for value in before], [value[size:] for value in behind]]
    return all(
        same.shape == value.shape
        and torch.allclose(same, value, rtol=1e-3, atol=_near(value), equal_nan=True)
        for values in found
        for same, value in zip(values, outputs, strict=True)
    )


def _near(value: Tensor) -> float:
    """Return what is small beside the values of a tensor; what overflowed is no measure."""
    return 1e-3 * float(value.abs().nan_to_num(0.0, 0.0).max()) if value.numel() else 0.0


def _other_sample(value: Tensor) -> Tensor:
    """Return a sample that differs from ``value``, even where that is constant."""
    if not value.is_floating_point():
        return value.flip(-1)
    generator = torch.Generator().manual_seed(0)
    return value + torch.randn(value.shape, generator=generator) * (value.abs().mean() + 1)


def _run(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
    try:
        with torch.no_grad():
            outputs = module(*inputs)
    except Exception as error:
        raise CaptureError(
            "the captured graph does not run on the example inputs",
            found=f"{type(error).__name__}: {error}",
            remedy="check the shapes and dtypes of the example inputs",
        ) from error
    if not all(isinstance(value, Tensor) for value in outputs):
        raise no_tensors(", ".join(type(value).__name__ for value in outputs))
    return outputs
