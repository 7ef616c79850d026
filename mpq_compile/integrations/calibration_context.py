"""Calibration of compiled models by context: show them data, and they are compiled on leaving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpq_compile.errors import CalibrationError
from mpq_compile.integrations.compilation import known_compilation
from mpq_compile.integrations.recording import Recording, recorded
from mpq_compile.integrations.running_call import context_of


@contextmanager
def calibrating(compiled: Any = None) -> Iterator[None]:
    """Run compiled models in float and record what each part sees; plan and build on leaving.

    The shapes of the first call are those that are deployed. A model that has a plan already gets
    a new one. Nothing is built where the block raises.

    Args:
        compiled: What ``torch.compile(model, backend="mpq")`` returned; None for all that are
            called.

    Raises:
        CalibrationError: Nothing was called.
        MpqError: As ``mpq.plan`` and ``mpq.compile``.

    Example::

        compiled = torch.compile(model, backend="mpq", options={"budget": {"size_mb": 1}})
        with mpq.calibrating(compiled):
            for batch in batches:
                compiled(batch)
    """
    context = None if compiled is None else context_of(compiled)
    recording = _Recording(context)
    with recorded(recording):
        yield
    if not recording.seen:
        raise CalibrationError(
            "no compiled model was called while calibrating",
            expected="calls of what torch.compile(model, backend='mpq') returned",
            found="none, or only models of which Dynamo made no graph",
            remedy="call it on some batches within the block; TORCH_LOGS=graph_breaks says why "
            "there is no graph",
        )
    for compilation in list(recording.seen):
        compilation.finish(recording)


class _Recording(Recording):
    """A recording of one compiled model, which may not have been called yet, or of all."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self._context = context

    def accepts(self, compilation: Any) -> bool:
        """Tell whether a compilation is recorded."""
        return self._context is None or known_compilation(self._context) is compilation
