"""A hash of what a value holds: tensors, containers, functions with all that they refer to.

A result may be kept under such a hash only where everything it depends on is in it. So a function
counts with its code, its defaults, its closure and the globals that it names, and what cannot be
looked into (an open file, a data loader) has no digest at all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sysconfig
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Path, range, torch.dtype, np.generic)
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def content_digest(*values: Any) -> str | None:
    """Return 32 hex digits over the values; None where one of them cannot be looked into.

    >>> content_digest([1, 2.0]) == content_digest([1, 2.0]) != content_digest([1, 2])
    True
    """
    digest = _Digest()
    try:
        digest.feed(values)
    except _OpaqueError:
        return None
    return digest.hexdigest()


class _OpaqueError(Exception):
    """A value that cannot be looked into."""


class _Digest:
    """Feeds values into one hash; what was met before is only named again."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # ids are unique only while their objects live

    def hexdigest(self) -> str:
        """Return 32 hex digits."""
        return self._hash.hexdigest()[:32]

    def feed(self, value: Any) -> None:
        """Add a value; raise ``_OpaqueError`` where it cannot be looked into."""
        if isinstance(value, _PLAIN):
            self._text(f"{type(value).__name__}:{value!r}")
            return
        if id(value) in self._met:
            self._text(f"met:{self._met[id(value)]}")
            return
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        self._text(type(value).__qualname__)
        self._parts(value)

    def _text(self, text: str) -> None:
        data = text.encode()
        self._hash.update(len(data).to_bytes(8, "little") + data)

    def _all(self, values: Iterable[Any]) -> None:
        items = list(values)
        self._text(str(len(items)))
        for item in items:
            self.feed(item)

    def _parts(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, Mapping):
            self._all(part for item in value.items() for part in item)
        elif isinstance(value, (tuple, list)):
            self._all(value)
        elif isinstance(value, (set, frozenset)):
            self._all(sorted(value, key=repr))
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self._callable(value)
        elif isinstance(value, (types.BuiltinFunctionType, type)):
            self._text(f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, types.ModuleType):
            self._source(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif dataclasses.is_dataclass(value):
            self._all(getattr(value, f.name) for f in dataclasses.fields(value))
        else:
            raise _OpaqueError

    def _tensor(self, value: Tensor) -> None:
        if value.layout != torch.strided or value.is_quantized:
            raise _OpaqueError
        self._text(f"{value.dtype}{tuple(value.shape)}")
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._hash.update(flat.numpy().tobytes())

    def _array(self, value: np.ndarray) -> None:
        if value.dtype.hasobject:
            raise _OpaqueError
        self._text(f"{value.dtype.str}{value.shape}")
        self._hash.update(np.ascontiguousarray(value).tobytes())

    def _module(self, value: nn.Module) -> None:
        self._text(str(value))
        self.feed(type(value).forward)
        self._all(part for item in value.state_dict().items() for part in item)

    def _callable(self, value: Any) -> None:
        if isinstance(value, types.MethodType):
            self._all((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords))
        elif _installed(value.__code__.co_filename):
            self._text(f"{value.__module__}.{value.__qualname__}")
        else:
            self._function(value)

    def _function(self, value: types.FunctionType) -> None:
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        self._all((value.__code__, value.__defaults__, value.__kwdefaults__, cells))
        used = sorted(set(_names(value.__code__)) & set(value.__globals__))
        self._all(part for name in used for part in (name, value.__globals__[name]))

    def _code(self, value: types.CodeType) -> None:
        self._all((value.co_code, value.co_names, value.co_varnames, value.co_consts))

    def _source(self, value: types.ModuleType) -> None:
        self._text(f"{value.__name__} {getattr(value, '__version__', '')}")
        file = getattr(value, "__file__", None)
        if file and not _installed(file):
            self._text(Path(file).read_text(encoding="utf-8", errors="replace"))


def _installed(file: str) -> bool:
    """Tell whether a file belongs to Python or an installed package: its version stands for it."""
    return file.startswith((*_INSTALLED, "<frozen"))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(code: types.CodeType) -> Iterable[str]:
    """Yield the names that a function uses, also in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
