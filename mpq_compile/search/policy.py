"""A policy: the bits of every site, to be moved to another network of the same sites.

What was searched on a small data set is carried over by site ids to the network that is trained on
the large one, whose weights alone are adjusted (ASGA, arXiv 2505.04877). Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq_compile.errors import PlanError, nearest

if TYPE_CHECKING:
    from mpq_compile.passes.network import Network

POLICY_VERSION = 1
# Ids that an error lists of either kind.
_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a search found.

    Args:
        version: Of the layout.
        method: Name of the search.
        assignment: Candidate by site id.
        scores: Log-probability of each candidate by site id; 0 is certain.
        bops: Σ MACs · weight bits · activation bits, for the batch of the example inputs.
        seed: Of the order of samples.
        provenance: Options, versions and hashes that the policy depends on.
    """

    version: int
    method: str
    assignment: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    bops: int
    seed: int
    provenance: Mapping[str, str]

    @property
    def note(self) -> str:
        """What a plan says of it."""
        samples = self.provenance.get("samples", "?")
        return f"bits of a policy that {self.method} found on {samples} samples"

    def assignment_for(self, network: Network) -> dict[str, str]:
        """Return the assignment of another network with the same sites.

        Shapes, data and weights may differ; ids may not.

        Raises:
            PlanError: A site of the network has no entry, or an entry has no site there.
        """
        known = [site.id for site in network.sites]
        without = [site for site in known if site not in self.assignment]
        unknown = [site for site in self.assignment if site not in set(known)]
        if without or unknown:
            raise PlanError(
                "the policy is of another network: site ids do not match",
                where=(without or unknown)[0],
                expected=f"an entry for each of {len(known)} sites, and no other",
                found=f"sites without an entry: {_listed(without)}; "
                f"entries without a site: {_listed(unknown)}",
                remedy=_remedy(without, unknown),
            )
        return {site: self.assignment[site] for site in known}

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """Rebuild a policy from :meth:`to_json`; raise ``PlanError`` for another layout."""
        expected = {f.name for f in fields(cls)}
        if data.get("version") != POLICY_VERSION or set(data) != expected:
            raise PlanError(
                "not a policy of this version",
                expected=f"version {POLICY_VERSION} with {', '.join(sorted(expected))}",
                found=f"version {data.get('version')!r} with {', '.join(sorted(data))}",
                remedy="search again with `mpq search`",
            )
        return cls(**data)

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        text = json.dumps(self.to_json(), indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return (", ".join(ids[:_LISTED]) or "none") + more


def _remedy(without: list[str], unknown: list[str]) -> str:
    if without and unknown:
        return f"search on the same architecture; {without[0]!r}: {nearest(without[0], unknown)}"
    return "search on the same architecture"
