"""How much worse than float an assignment is, measured on its oracle: no build is needed for that.

The user's ``evaluate`` measures, or one of these, which compare with the float network:

| name | what | labels |
|---|---|---|
| ``top1`` | share (%) of samples whose top-1 class differs from float | no |
| ``kl`` | KL divergence of the classes' distribution from float's, nats a sample | no |
| ``noise`` | Σ‖y_q − y‖² / Σ‖y‖² over all outputs (the reciprocal of the SQNR) | no |
| ``accuracy`` | top-1 accuracy (%) lost | yes |
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpq_compile.calibrate import Batch
from mpq_compile.capture import in_eval_mode
from mpq_compile.digest import content_digest
from mpq_compile.errors import PlanError, nearest
from mpq_compile.memo import Memo, evaluations_dir
from mpq_compile.runtime.fingerprint import kernel_hash
from mpq_compile.sensitivity.labels import class_index
from mpq_compile.sensitivity.sqnr import noise_to_signal

if TYPE_CHECKING:
    from mpq_compile.session import Session

log = logging.getLogger(__name__)

Evaluate = Callable[[Callable[..., Any]], float]
Outputs = Sequence[Tensor]

UNITS: Mapping[str, str] = {"top1": "% differ", "kl": "nats", "noise": "noise/signal"}
ACCURACY = "accuracy"
MEASURES = (*UNITS, ACCURACY)
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was measured of an assignment.

    Args:
        drop: How much worse than float it is; lower is better.
        score: What ``evaluate`` returned, higher is better; None where there is no such thing.
    """

    drop: float
    score: float | None = None


def is_named(evaluate: Evaluate | str | None) -> bool:
    """Tell whether a drop is measured on calibration data, as by default, not by a function."""
    return evaluate is None or isinstance(evaluate, str)


class Judge:
    """Measures assignments of a session, each once; what was measured is kept on disk.

    Args:
        session: Gives the oracles.
        evaluate: The user's function, higher is better; or a name of ``MEASURES``.
        batches: Data for the named ones.
        memo: Where results are kept; by default the user's cache folder. Nothing is kept there
            for a function that refers to what cannot be hashed.

    Attributes:
        name: ``evaluate`` for a function, else the name.
        fresh: Assignments that were measured here, others than those found on disk.
    """

    def __init__(
        self,
        session: Session,
        evaluate: Evaluate | str,
        batches: Sequence[Batch],
        memo: Memo | None = None,
    ) -> None:
        if not isinstance(evaluate, str) and not callable(evaluate):
            raise _no_measure(evaluate)
        self.name = evaluate if isinstance(evaluate, str) else "evaluate"
        self.fresh = 0
        self._session, self._batches = session, batches
        self._function = None if isinstance(evaluate, str) else evaluate
        self._memo = memo or Memo(evaluations_dir())
        self._measured: dict[tuple[str, ...], Judgement] = {}
        _check_name(self.name)
        if self.name == ACCURACY and any(batch.labels is None for batch in batches):
            raise PlanError(
                "the accuracy needs labels",
                expected="labelled samples",
                found="samples without labels",
                remedy="give labels, or measure top1, kl or noise, which compare with float",
            )

    @property
    def unit(self) -> str:
        """Unit of the drop."""
        return UNITS.get(self.name, "% points" if self.name == ACCURACY else "of evaluate")

    def of(self, assignment: Mapping[str, str]) -> Judgement:
        """Return what is measured of an assignment."""
        key = tuple(assignment[site.id] for site in self._session.network.sites)
        if key not in self._measured:
            self._measured[key] = self._kept(key) or self._judged(assignment, key)
        return self._measured[key]

    @property
    def float_score(self) -> float | None:
        """Score of the float network; None for measures that compare with it."""
        if self.name in UNITS:
            return None
        return self._float_score

    @cached_property
    def _float_score(self) -> float:
        if self._function is None:
            return _accuracy([reference[0] for reference in self._references], self._batches)
        own = self._session.model
        model = own if isinstance(own, nn.Module) else self._session.float_graph()
        with torch.no_grad(), in_eval_mode(model):
            return self._evaluated(model)

    @cached_property
    def _content(self) -> str | None:
        """Hash of all that a result follows from but the assignment; None where it is not known."""
        session = self._session
        found = content_digest(
            [kernel_hash(_PACKAGE / folder) for folder in ("quant", "passes", "reconstruct")],
            session.digest(),
            session.network.constants(),
            [batch.inputs for batch in session.batches],
            session.recipe.provenance(),
            session.allow_float,
            self.name,
            self._function,
            [] if self._function else [(b.inputs, b.labels) for b in self._batches],
        )
        if found is None:
            log.info("evaluate refers to what cannot be hashed: its results are not kept on disk")
        return found

    def _key(self, names: tuple[str, ...]) -> str | None:
        return content_digest(self._content, names) if self._content else None

    def _kept(self, names: tuple[str, ...]) -> Judgement | None:
        key = self._key(names)
        found = None if key is None else self._memo.get(key)
        return None if found is None else Judgement(**found)

    def _judged(self, assignment: Mapping[str, str], names: tuple[str, ...]) -> Judgement:
        judgement = self._measure(self._session.reference(assignment))
        self.fresh += 1
        key = self._key(names)
        if key is not None:
            self._memo.put(key, asdict(judgement))
        return judgement

    def _measure(self, reference: nn.Module) -> Judgement:
        if self._function is not None:
            with torch.no_grad():
                score = self._evaluated(reference)
            return Judgement(drop=self._float_score - score, score=score)
        outputs = [_leaves(reference, batch) for batch in self._batches]
        if self.name == ACCURACY:
            score = _accuracy([output[0] for output in outputs], self._batches)
            return Judgement(drop=self._float_score - score, score=score)
        return Judgement(drop=_COMPARE[self.name](outputs, self._references))

    def _evaluated(self, network: Callable[..., Any]) -> float:
        assert self._function is not None
        value = self._function(network)
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if math.isfinite(number):
            return number
        raise PlanError(
            "evaluate did not return a finite number",
            expected="a number, higher where the network is better",
            found=repr(value)[:80],
            remedy="repair the function",
        )

    @cached_property
    def _references(self) -> list[Outputs]:
        with torch.no_grad():
            return [self._session.network.module(*batch.inputs) for batch in self._batches]


def default_measure(session: Session) -> str:
    """Return the finest measure without labels that fits the network's outputs."""
    with torch.no_grad():
        first = session.network.module(*session.network.captured.example_inputs)[0]
    return "kl" if first.dim() >= 2 and first.shape[1] > 1 else "noise"


def _check_name(name: str) -> None:
    if name in MEASURES or name == "evaluate":
        return
    raise _no_measure(name)


def _no_measure(given: object) -> PlanError:
    return PlanError(
        f"unknown measure {given!r}",
        expected=f"a function, or one of {', '.join(MEASURES)}",
        found=repr(given),
        remedy=nearest(str(given), MEASURES),
    )


def _leaves(network: nn.Module, batch: Batch) -> Outputs:
    with torch.no_grad():
        leaves: list[Tensor] = pytree.tree_leaves(network(*batch.inputs))
    return leaves


def _accuracy(scores: Sequence[Tensor], batches: Sequence[Batch]) -> float:
    labels = [batch.labels for batch in batches if batch.labels is not None]
    right = []
    for score, label in zip(scores, labels, strict=True):
        classes = _classes(score).reshape(*score.shape[:2], -1)
        index = class_index(label, classes.shape)
        right.append((classes.argmax(1, keepdim=True) == index).flatten())
    return 100.0 * float(torch.cat(right).double().mean())


def _disagreement(outputs: Sequence[Outputs], references: Sequence[Outputs]) -> float:
    rows = zip(outputs, references, strict=True)
    differing = [(_top1(found[0]) != _top1(exact[0])).flatten() for found, exact in rows]
    return 100.0 * float(torch.cat(differing).double().mean())


def _divergence(outputs: Sequence[Outputs], references: Sequence[Outputs]) -> float:
    """Return the mean over samples of Σ_c p_c (log p_c − log q_c), p of float; float64."""
    values = []
    for found, exact in zip(outputs, references, strict=True):
        p, q = (_classes(rows[0]).double().log_softmax(1) for rows in (exact, found))
        values.append((p.exp() * (p - q)).sum(1).flatten())
    return max(0.0, float(torch.cat(values).mean()))


def _noise(outputs: Sequence[Outputs], references: Sequence[Outputs]) -> float:
    rows = zip(outputs, references, strict=True)
    ratios = [noise_to_signal(found, exact) for found, exact in rows]
    return sum(ratios) / len(ratios)


_COMPARE: Mapping[str, Callable[[Sequence[Outputs], Sequence[Outputs]], float]] = {
    "top1": _disagreement,
    "kl": _divergence,
    "noise": _noise,
}


def _top1(output: Tensor) -> Tensor:
    return _classes(output).argmax(1)


def _classes(output: Tensor) -> Tensor:
    if output.dim() < 2 or output.shape[1] < 2:
        raise PlanError(
            "this measure needs a classifier",
            expected="a first output [batch, classes, ...]",
            found=str(list(output.shape)),
            remedy="pass evaluate=..., which returns your measure of a network, or noise",
        )
    return output
