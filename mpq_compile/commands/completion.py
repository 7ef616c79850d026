"""What a shell offers for a value of an option. Imports neither torch nor TVM: a shell waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mpq_compile.cost.profile import list_profiles

Complete = Callable[[str], list[str]]


def names_of(names: Iterable[str]) -> Complete:
    """Return the completion of one of some names, such as those of a registry."""

    def complete(incomplete: str) -> list[str]:
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


def profile_names(incomplete: str) -> list[str]:
    """Complete a target: this machine, or a profile that ships."""
    return names_of(["local", *list_profiles()])(incomplete)
