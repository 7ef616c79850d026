"""The table of contenders: ours and every peer, each in one precision.

A contender's ``entry`` names a function ``prepare(task) -> Prepared``. It is imported in a worker
process of its own, so that this table loads no runtime.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mpq_compile.types import Candidate


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to run the task.

    Args:
        name: Runtime and precision, as the tables print it.
        precision: "fp32", "bf16" or "int8", of the bulk of its multiplications.
        entry: ``"module:function"`` that prepares it.
        needs: Packages that it imports and that may be missing.
        ours: True for this project's networks.
        times: Preparing it times something, beside which nothing else may run.
        options: Passed on to the function by name.
    """

    name: str
    precision: str
    entry: str
    needs: tuple[str, ...] = ()
    ours: bool = False
    times: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def missing(self) -> str:
        """Return why it cannot run here, or ""."""
        absent = [package for package in self.needs if find_spec(package) is None]
        return f"not installed: {', '.join(absent)} (extra: peers)" if absent else ""

    def prepare(self, task: Any) -> Any:
        """Import the runtime and return the :class:`~contenders.task.Prepared` contender."""
        module, _, function = self.entry.partition(":")
        return getattr(importlib.import_module(module), function)(task, **dict(self.options))


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_OPENVINO = ("onnx", "onnxscript", "openvino")


def _openvino(precision: str, quantized: bool) -> Contender:
    label = f"int8{'+bf16' if precision == 'bf16' else ''}" if quantized else precision
    return Contender(
        name=f"OpenVINO {label}",
        precision="int8" if quantized else precision,
        entry="contenders.openvino_runtime:prepare",
        needs=(*_OPENVINO, "nncf") if quantized else _OPENVINO,
        options=(("precision", precision), ("quantized", quantized)),
    )


PEERS = (
    Contender(name="torch fp32", precision="fp32", entry="contenders.torch_runtime:eager"),
    Contender(name="Inductor fp32", precision="fp32", entry="contenders.torch_runtime:inductor"),
    Contender(
        name="Inductor int8",
        precision="int8",
        entry="contenders.torch_runtime:inductor_int8",
        needs=("torchao",),
    ),
    Contender(
        name="ONNX Runtime fp32",
        precision="fp32",
        entry="contenders.onnx_runtime:fp32",
        needs=_ONNX,
    ),
    Contender(
        name="ONNX Runtime int8",
        precision="int8",
        entry="contenders.onnx_runtime:int8",
        needs=_ONNX,
    ),
    _openvino("fp32", quantized=False),
    _openvino("bf16", quantized=False),
    _openvino("fp32", quantized=True),
    _openvino("bf16", quantized=True),
)


def ours(candidates: Sequence[str]) -> list[Contender]:
    """Return this project's contenders: of these candidates, or mixes (``w8a8+bf16@1.5``).

    Raises:
        ValueError: One is neither.
    """
    return [_ours(candidate) for candidate in candidates]


def _ours(text: str) -> Contender:
    candidates, at, limit = text.partition("@")
    names = tuple(Candidate.parse(name).name for name in candidates.split("+"))
    try:
        latency_ms = float(limit) if at else None
    except ValueError:
        latency_ms = math.nan
    if not (latency_ms > 0 if latency_ms is not None else len(names) == 1):
        raise ValueError(f"expected a candidate or a mix such as w8a8+bf16@1.5; found {text}")
    return Contender(
        name=f"ours {text}",
        precision=_highest(names),
        entry="contenders.ours:prepare",
        ours=True,
        times=latency_ms is not None,
        options=(("candidates", names), ("latency_ms", latency_ms)),
    )


def _highest(candidates: Sequence[str]) -> str:
    """Return the highest precision among candidates."""
    return next((p for p in ("fp32", "bf16") if p in candidates), "int8")


def named(contenders: Sequence[Contender], texts: Sequence[str]) -> list[Contender]:
    """Return the contenders whose name contains one of ``texts``; all of them for none."""
    wanted = [text.strip().lower() for text in texts if text.strip()]
    return [c for c in contenders if not wanted or any(t in c.name.lower() for t in wanted)]
