"""What the tests of fits share."""

from __future__ import annotations

from typing import Any

import pytest

from mpq_compile.reconstruct.site_fit import SiteProblem


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sites that were solved, each time."""
    seen: list[str] = []
    of = SiteProblem.of

    def noted(site: str, *rest: Any) -> SiteProblem | None:
        seen.append(site)
        return of(site, *rest)

    monkeypatch.setattr(SiteProblem, "of", noted)
    return seen
