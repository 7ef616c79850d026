"""Which call of ``torch.compile`` runs: found on the stack, since Dynamo does not tell its backend.

Dynamo hands a backend one graph after the other, with neither the model nor the function that
they come from. Both, and the arguments of the call that runs, stand in the frame of Dynamo's own
wrapper around the compiled function; this module alone knows how it looks.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn
from torch._dynamo import eval_frame

from mpq_compile.errors import MpqError

_WRAPPER = "compile_wrapper"
# OptimizedModule.__call__, _wrapped_call_impl and _call_impl stand above the wrapper.
_FRAMES_OF_A_MODULE = 3


@dataclass(frozen=True, kw_only=True)
class RunningCall:
    """A call of a compiled model or function.

    Args:
        context: Dynamo's object for one call of ``torch.compile``; what its parts belong to.
        model: The model; None where a function was compiled.
        run: Calls it again, with other arguments.
        name: Of the class or the function.
        parameters: Names of its positional parameters.
        args, kwargs: What it was called with.
    """

    context: Any
    model: nn.Module | None
    run: Callable[..., Any]
    name: str
    parameters: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def running_call() -> RunningCall:
    """Return the innermost call of something that ``torch.compile`` made.

    Raises:
        MpqError: There is none: the backend's function was taken out of Dynamo's hands.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == _WRAPPER and code.co_filename == eval_frame.__file__:
            return _described(frame)
        frame = frame.f_back
    raise MpqError(
        "the compiled graph was not called through torch.compile",
        expected="a call of what torch.compile(model, backend='mpq') returned",
        remedy="call that, or use mpq.compile without Dynamo",
    )


def context_of(compiled: Any) -> Any:
    """Return Dynamo's object for the call of ``torch.compile`` that made ``compiled``.

    Raises:
        MpqError: ``torch.compile`` did not make it.
    """
    if isinstance(compiled, eval_frame.OptimizedModule):
        return compiled.dynamo_ctx
    function = compiled
    if isinstance(compiled, nn.Module):  # model.compile(…) compiles in place
        function = compiled._compiled_call_impl
    function = getattr(function, "__func__", function)
    if inspect.isfunction(function) and function.__code__.co_name == _WRAPPER:
        return inspect.getclosurevars(function).nonlocals["self"]
    raise MpqError(
        "not a compiled model",
        expected="what torch.compile(model, backend='mpq') returned",
        found=type(compiled).__name__,
        remedy="pass the compiled model, not the model",
    )


def _described(frame: FrameType) -> RunningCall:
    names = frame.f_locals
    context, function = names["self"], names["fn"]
    model = _model(frame, function)
    forward = function if model is None else model.forward
    return RunningCall(
        context=context,
        model=model,
        run=context(function),
        name=getattr(function, "__name__", "?") if model is None else type(model).__name__,
        parameters=tuple(inspect.signature(forward).parameters),
        args=names["args"],
        kwargs=names["kwargs"],
    )


def _model(frame: FrameType, function: Any) -> nn.Module | None:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        return owner
    above = frame.f_back
    for _ in range(_FRAMES_OF_A_MODULE):
        found = above.f_locals.get("self") if above is not None else None
        if isinstance(found, eval_frame.OptimizedModule):
            return found._orig_mod
        above = above.f_back if above is not None else None
    return None
