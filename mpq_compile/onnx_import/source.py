"""A ``.onnx`` file → a checked model of one opset, its shapes inferred."""

from __future__ import annotations

import ast
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import (
    ModelProto,
    TensorProto,
    checker,
    helper,
    inliner,
    shape_inference,
    version_converter,
)

from mpq_compile.errors import CaptureError, UnsupportedOpError

log = logging.getLogger(__name__)

# The opset that every model is converted to: the operators of the table are of this one.
OPSET = 28
_DEFAULT_DOMAINS = ("", "ai.onnx")
# Larger initializers wait outside while ONNX's own tools work: those copy the whole model as one
# protobuf, which may not exceed 2 GB.
_LARGE = 1024
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A normalised model and what normalising would have lost.

    Args:
        model: Opset ``OPSET``, shapes inferred, local functions inlined.
        path: The file.
        opset: The file's own opset.
        scopes: Module path that torch's exporter recorded, by name of a node's first output.
    """

    model: ModelProto
    path: Path
    opset: int
    scopes: dict[str, str]


def read(path: Path, known: Collection[str]) -> Source:
    """Read, check and normalise a file.

    Args:
        path: A ``.onnx`` file; external data lie beside it.
        known: Operators that stay; others are replaced by the functions that ONNX defines them by,
            where it does.

    Raises:
        CaptureError: No such file, damaged, external data missing, or not convertible.
        UnsupportedOpError: An operator of another domain than ONNX's own.
    """
    return normalise(_load(path), path, known)


def normalise(model: ModelProto, path: Path, known: Collection[str]) -> Source:
    """Check a model and bring it to ``OPSET``; ``model`` itself is changed."""
    large = _take_large(model)
    with _explained("the model is not valid ONNX", path):
        checker.check_model(model)
    scopes = _scopes(model)
    with _explained("local functions cannot be inlined", path):
        model = inliner.inline_local_functions(model)
    _refuse_other_domains(model, path)
    opset = _opset(model)
    if opset != OPSET:
        with _explained(f"opset {opset} cannot be converted to {OPSET}", path):
            model = version_converter.convert_version(model, OPSET)
    with _explained("shapes cannot be inferred", path):
        # Twice: what defines an operator may depend on types.
        model = shape_inference.infer_shapes(model)
        model = shape_inference.infer_shapes(_by_functions(model, known))
    _put_back(model, large)
    return Source(model=model, path=path, opset=opset, scopes=scopes)


def _load(path: Path) -> ModelProto:
    if not path.is_file():
        raise CaptureError(
            "cannot read the model",
            where=str(path),
            expected="an existing .onnx file",
            found="a folder" if path.is_dir() else "no such file",
            remedy="correct the path",
        )
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise _no_model(path, error) from error
    except (OSError, ValueError, checker.ValidationError) as error:
        raise CaptureError(
            "external data of the model cannot be read",
            where=str(path),
            expected="the files that the model names, beside it",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            remedy="copy them to the folder of the .onnx file, or save the model in one file",
        ) from error
    # An empty file, and now and then another one, reads as a message without fields.
    if not model.HasField("graph"):
        raise _no_model(path, f"{path.stat().st_size} bytes without a graph")
    return model


def _no_model(path: Path, found: object) -> CaptureError:
    return CaptureError(
        "the file is damaged or no ONNX model",
        where=str(path),
        expected="a ModelProto, as torch.onnx.export and onnx.save write it",
        found=found,
        remedy="correct the path, or export the model again",
    )


@contextmanager
def _explained(message: str, path: Path) -> Iterator[None]:
    """Turn whatever one of ONNX's own tools raises into a ``CaptureError``."""
    try:
        yield
    except Exception as error:  # they raise many kinds
        raise CaptureError(
            message,
            where=str(path),
            expected=f"a valid model of opset {OPSET} or lower",
            found=f"{type(error).__name__}: {str(error).strip()[:400]}",
            remedy=f"export the model again, with opset {OPSET} or lower",
        ) from error


def _by_functions(model: ModelProto, known: Collection[str]) -> ModelProto:
    """Replace unknown operators by the functions that ONNX defines them by.

    Its inliner fails on some operators with inputs left out: they stay, and are refused by name.
    """
    keep = [*(("", name) for name in known), ("", "CastLike")]
    try:
        return inliner.inline_selected_functions(model, keep, True, True)
    except RuntimeError as error:
        log.debug("functions are not inlined: %s", error)
        return model


def _opset(model: ModelProto) -> int:
    versions = [o.version for o in model.opset_import if o.domain in _DEFAULT_DOMAINS]
    return versions[0] if versions else OPSET


def _scopes(model: ModelProto) -> dict[str, str]:
    """Return the module path of each node that torch's exporter recorded one for."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        for entry in node.metadata_props:
            if entry.key == _SCOPES:
                # ["", "encoder", "encoder.fc", "linear_3"]: full paths, then the node's own name.
                scopes = ast.literal_eval(entry.value)
                found[node.output[0]] = scopes[-2] if len(scopes) > 1 else ""
    return found


def _refuse_other_domains(model: ModelProto, path: Path) -> None:
    for node in model.graph.node:
        if node.domain not in _DEFAULT_DOMAINS:
            raise UnsupportedOpError(
                f"{node.domain}.{node.op_type} is no operator of ONNX itself",
                where=f"{path}, node {node.name or node.output[0]!r}",
                expected="operators of the domain ai.onnx",
                found=f"domain {node.domain!r}",
                remedy="export the model without the fusions of a runtime, such as those that "
                "ONNX Runtime's optimizer writes",
            )


def _take_large(model: ModelProto) -> list[TensorProto]:
    """Take large initializers out; they become inputs, so that their types stay known."""
    graph = model.graph
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > _LARGE]
    names = {tensor.name for tensor in large}
    given = {value.name for value in graph.input}
    small = [tensor for tensor in graph.initializer if tensor.name not in names]
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in large
        if tensor.name not in given
    )
    del graph.initializer[:]
    graph.initializer.extend(small)
    return large


def _put_back(model: ModelProto, large: list[TensorProto]) -> None:
    """Give the model its large initializers; no initializer is an input."""
    graph = model.graph
    graph.initializer.extend(large)
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)
