"""Warnings of the package that a user must see, as notes of a command's outcome."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mpq_compile.commands.outcome import Outcome
from mpq_compile.cost.recovery import RecoveryWarning


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect what is warned of a damaged database; all other warnings appear as ever."""
    notes: list[str] = []
    show = warnings.showwarning

    def note(message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, RecoveryWarning):
            notes.append(str(message))
        else:
            show(message, category, *place, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RecoveryWarning)
        warnings.showwarning = note
        yield notes


def with_notes(outcome: Outcome, notes: list[str]) -> Outcome:
    """Return the outcome with the notes in its JSON object."""
    if not notes:
        return outcome
    own = list(outcome.data.get("notes") or ())
    return replace(outcome, data={**outcome.data, "notes": [*own, *notes]})
