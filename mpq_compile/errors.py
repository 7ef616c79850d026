"""The errors of mpq_compile: each says where, what was expected, what was found and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MpqError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        message: What went wrong, in one sentence.
        where: Site, file and line, or node and source line.
        expected: What would have been accepted.
        found: What was there instead.
        remedy: What the user can do about it.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"{self.where}: {self.message}" if self.where else self.message]
        for label in ("expected", "found", "remedy"):
            value = getattr(self, label)
            if value is not None:
                lines.append(f"  {label}: {value}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, str | None]:
        """Return the parts of the error as JSON-ready strings."""
        parts = {name: getattr(self, name) for name in ("where", "expected", "found", "remedy")}
        return {
            "error": type(self).__name__,
            "message": self.message,
            **{k: None if v is None else str(v) for k, v in parts.items()},
        }


class CaptureError(MpqError):
    """The model could not be turned into a graph."""


class UnsupportedOpError(CaptureError):
    """The graph holds an operator that has no integer or float lowering."""


class CalibrationError(MpqError):
    """The calibration data is empty, malformed or not finite."""


class ProfileError(MpqError):
    """A hardware profile or the measurements database is wrong or missing."""


class PlanError(MpqError):
    """A plan, problem, constraint or assignment is malformed or does not fit the model."""


class InfeasibleBudgetError(MpqError):
    """No assignment fits the budget; the message says what is attainable."""

    exit_code = 1


class LoweringError(MpqError):
    """A graph could not be lowered to TVM."""


class ArtifactError(MpqError):
    """An artifact on disk is damaged, incomplete or of another version."""


class DeviceError(MpqError):
    """The device cannot run what was asked, or did not answer."""


class DeviceLostError(DeviceError):
    """A remote device no longer answers: its work can be done again, there or elsewhere."""


class TimeRanOutError(DeviceError):
    """The time allowed for measuring ended before everything was measured."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a remedy that suggests the known name nearest to ``name``, which may be no text."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    listing = "one of " + ", ".join(names) if names else "nothing is registered"
    return f"did you mean {close[0]!r}? ({listing})" if close else listing
