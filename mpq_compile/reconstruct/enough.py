"""Is there enough data for what is fitted to a site?"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod

from mpq_compile.passes.network import Network
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.types import Candidate, Site


def samples_needed(network: Network, site: Site) -> int:
    """Return how many samples show 64 values of each of a site's output channels.

    A convolution sees one at each position of a sample, a linear layer one in each row.
    """
    example = network.captured.example_inputs[0]
    rows = len(example) if example.dim() else 1
    values = prod(site.output_shape) / site.out_channels
    return ceil(FEWEST * rows / values)


def shortage(
    network: Network, samples: int, assignment: Mapping[str, str], methods: Mapping[str, str]
) -> list[str]:
    """Say which sites are left as they are for want of data, and how many samples they need.

    Args:
        network: The prepared network.
        samples: Samples that there are.
        assignment: A candidate for every site.
        methods: What is fitted to weights below 8 bits: the option, and its value.
    """
    fitted = [name for name in methods.values() if name not in ("none", "nearest")]
    fitting = [site for site in network.sites if site.multiplies]
    narrow = [s for s in fitting if Candidate.parse(assignment[s.id]).weight_bits < 8]
    needs = {site.id: samples_needed(network, site) for site in narrow}
    short = [site for site, needed in needs.items() if needed > samples]
    if not fitted or not short:
        return []
    return [
        f"too few samples for {' and '.join(fitted)} at {len(short)} of {len(needs)} sites, such "
        f"as {short[0]}: {samples} given, {max(needs.values())} needed; they are left as they are"
    ]
