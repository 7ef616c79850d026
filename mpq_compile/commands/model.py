"""The model that a command names: ``file.py:factory``, or a ``.pt2`` or ``.onnx`` file."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from mpq_compile.errors import CaptureError, MpqError, nearest
from mpq_compile.registry import import_file

_EXPECTED = "file.py:factory, whose factory returns a module, or a .pt2 or .onnx file"
_FILES = (".pt2", ".onnx")


def read_model(name: str) -> tuple[Any, Any]:
    """Return the model and the example inputs that came with it, or None.

    A ``.pt2`` or ``.onnx`` file is returned as its path: capture reads it. The code of a Python
    file is run.

    Raises:
        CaptureError: No such file or factory, or the factory failed or returned something else.
    """
    file, separator, factory = name.rpartition(":")
    if not separator or name.endswith(_FILES):
        return _exported(Path(name)), None
    module = _import_file(_python_file(Path(file), name), name)
    return _checked(_made(module, factory, name), name)


def _exported(path: Path) -> Path:
    if path.suffix in _FILES and path.is_file():
        return path
    absent = "a folder" if path.is_dir() else "no such file"
    found = absent if path.suffix in _FILES else repr(str(path))
    remedy = f"name the factory: {path}:FACTORY" if path.suffix == ".py" else "correct the name"
    raise CaptureError(
        "no model of this name", where=str(path), expected=_EXPECTED, found=found, remedy=remedy
    )


def _python_file(path: Path, name: str) -> Path:
    if path.suffix == ".py" and path.is_file():
        return path
    raise CaptureError(
        "no such file of Python code",
        where=name,
        expected=_EXPECTED,
        found="no such file" if not path.is_file() else f"suffix {path.suffix!r}",
        remedy="correct the path before the colon",
    )


def _import_file(path: Path, name: str) -> ModuleType:
    try:
        return import_file(path)
    except (Exception, SystemExit) as error:
        raise _failed("the model's file cannot be imported", name, error) from error


def _made(module: ModuleType, factory: str, name: str) -> Any:
    own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    if not hasattr(module, factory):
        raise CaptureError(
            f"the file has no {factory!r}",
            where=name,
            expected="a function of the file that returns the model",
            found=repr(factory),
            remedy=nearest(factory, own),
        )
    value = getattr(module, factory)
    if not callable(value) or _is_module(value):
        return value
    try:
        return value()
    except MpqError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed("the factory failed", name, error) from error


def _checked(made: Any, name: str) -> tuple[Any, Any]:
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not _is_module(model) and not _is_program(model):
        raise CaptureError(
            "the factory did not return a model",
            where=name,
            expected="an nn.Module, or (module, example_inputs)",
            found=type(made).__name__,
            remedy="return the network itself, not its class or its state_dict",
        )
    return model, example


def _is_module(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _is_program(value: Any) -> bool:
    from torch.export import ExportedProgram

    return isinstance(value, ExportedProgram)


def _failed(message: str, name: str, error: BaseException) -> CaptureError:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    line = f" (line {last.lineno} of {last.filename})" if last else ""
    return CaptureError(
        message,
        where=name,
        expected="code that runs with no arguments",
        found=f"{type(error).__name__}: {str(error).strip()[:300]}{line}",
        remedy="run the file by itself, then call the factory",
    )
