"""What ``--evaluate`` names: a measure, or a function of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpq_compile.errors import PlanError, nearest
from mpq_compile.registry import import_file

_NAMES = ("top1", "kl", "noise", "accuracy")


def read_evaluate(text: str | None) -> Callable[..., float] | str | None:
    """Return the function of ``file.py:function``, or the name of a measure; this runs the file.

    Raises:
        PlanError: No such measure, file or function.
    """
    if text is None or text in _NAMES:
        return text
    file, separator, name = text.rpartition(":")
    path = Path(file)
    if not separator or path.suffix != ".py" or not path.is_file():
        raise PlanError(
            "no such measure",
            where="--evaluate",
            expected=f"file.py:function, or one of {', '.join(_NAMES)}",
            found=repr(text),
            remedy="correct the path before the colon" if separator else nearest(text, _NAMES),
        )
    return _function(path, name)


def _function(path: Path, name: str) -> Callable[..., float]:
    try:
        module = import_file(path)
    except (Exception, SystemExit) as error:
        raise PlanError(
            "the file of --evaluate cannot be imported",
            where=str(path),
            expected="a file of Python code",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            remedy="run the file by itself",
        ) from error
    found: Any = getattr(module, name, None)
    if callable(found):
        function: Callable[..., float] = found
        return function
    own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    raise PlanError(
        f"the file has no function {name!r}",
        where=str(path),
        expected="evaluate(net) -> float, higher is better",
        found=repr(name),
        remedy=nearest(name, own),
    )
