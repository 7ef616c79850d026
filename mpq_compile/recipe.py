"""How a network is quantized beyond its bits: ranges, rounding, corrections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, TypedDict

from mpq_compile.errors import CalibrationError
from mpq_compile.passes.balance import check_balance
from mpq_compile.quant.observers import AUTO, check_observer
from mpq_compile.reconstruct.correction import check_correction
from mpq_compile.reconstruct.per_site import check_weights
from mpq_compile.registry import ROUNDINGS

# Share of the calibration data that named measures are taken on, and nothing else.
HELD_OUT = 0.25


class RecipeOptions(TypedDict, total=False):
    """Keywords of ``plan``, ``compile``, ``assign`` and ``frontier``: the fields of a recipe."""

    observer: str
    correction: str
    rounding: str
    sensitivity_on: str
    equalize: str
    migration: str
    samples: int | None
    held_out: float | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that turns a float network and an assignment into codes; plans record it.

    Args:
        observer: Range estimator of activations: "minmax", "percentile", "entropy"; "mse", least
            squared error of the tensor, and "mse2", "mse4" and "mse16", where the error of what is
            cut off counts twice and so on; or "auto": at each width that of these, "percentile" and
            "entropy" apart, whose ranges make the least noise at the network's outputs on
            calibration data.
        correction: What is fitted to each output channel of rounded weights in closed form: its
            gain and shift ("affine"), its shift ("bias", empirical bias correction; "analytic",
            from batch norms instead of data), or "none". Sensitivities are measured with it; in
            the network that is built, a rounding that searches scales and biases takes its place.
        rounding: How codes of weights below 8 bits are found for the network that is built, and
            for those whose drop is measured: "gptq", integer least squares on what the quantized
            network computes, site after site; "per_site", the same on what the float network
            computes, once for each candidate of a site and then for any number of assignments;
            "adaround", each code up or down by gradient, site after site; "brecq" and "qdrop",
            block after block, which start from what "gptq" finds and take the most time; or
            "nearest", which costs nothing.
        sensitivity_on: The weights that sensitivities are measured on: "nearest" codes, or
            "rounded" as by "per_site".
        equalize: How scales of channels are evened out between sites before anything is quantized:
            "auto" where that lowers the error of sites on calibration data, "cross_layer" by the
            ranges of weights, or "none".
        migration: How they are moved from the inputs of linear layers into their weights:
            "smoothquant", "awq" or "none".
        samples: Most samples of the calibration data that are used, drawn where they can be; None
            for all that are given, or for 256 of a data set or a folder of images.
        held_out: Share of the calibration data that nothing is fitted to, at most a half: drops
            that are bounded or compared by name are measured on it. None for a quarter where there
            are such drops, and nothing elsewhere.

    Raises:
        MpqError: A name is unknown, or a number is out of range.
    """

    observer: str = AUTO
    correction: str = "affine"
    rounding: str = "gptq"
    sensitivity_on: str = "nearest"
    equalize: str = "none"
    migration: str = "none"
    samples: int | None = None
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_observer(self.observer, (AUTO,))
        check_correction(self.correction)
        ROUNDINGS.load(self.rounding)
        check_weights(self.sensitivity_on)
        check_balance(self.equalize, self.migration)
        if self.samples is not None and not _within(self.samples, Integral, 1, math.inf):
            raise CalibrationError(
                "no samples are asked for",
                where="samples",
                expected="a whole number, 1 or more",
                found=repr(self.samples),
                remedy="correct the number, or leave it out",
            )
        if self.held_out is not None and not _within(self.held_out, Real, 0, 0.5):
            raise CalibrationError(
                "no such share of the data can be held out",
                where="held_out",
                expected="0 to 0.5",
                found=repr(self.held_out),
                remedy="correct the share, or leave it out",
            )

    def judged_apart(self) -> Recipe:
        """Return the recipe that keeps samples apart to measure drops on, unless it says how."""
        return self if self.held_out is not None else replace(self, held_out=HELD_OUT)

    def as_given(self) -> Recipe:
        """Return the recipe that leaves codes and scales as they came: nothing is searched."""
        return replace(
            self,
            observer=self.first_observer,
            correction="none",
            rounding="nearest",
            equalize="none",
            migration="none",
        )

    @property
    def first_observer(self) -> str:
        """The observer of what ranges are needed for before the network can choose."""
        return "mse" if self.observer == AUTO else self.observer

    def provenance(self) -> dict[str, str]:
        """Return what a plan records of it."""
        return {name: str(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of_plan(cls, provenance: Mapping[str, str]) -> Recipe:
        """Return the recipe that a plan was made with; plans of before an option lack it."""
        recorded: dict[str, Any] = {**_BEFORE, **provenance}
        if "samples" in recorded:
            recorded["samples"] = int(recorded["samples"])
        if "held_out" in recorded:
            recorded["held_out"] = float(recorded["held_out"])
        return cls(**{f.name: recorded[f.name] for f in fields(cls) if f.name in recorded})


def _within(value: Any, kind: type[Any], low: float, high: float) -> bool:
    """Tell whether a user's value is a number of a kind, and within bounds."""
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


# What was done before an option was there, where that is not its default.
_BEFORE = {"rounding": "nearest"}
