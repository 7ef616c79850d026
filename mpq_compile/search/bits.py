"""What a search learns of one tie of sites: how likely each way to round weights and inputs is.

A candidate is as likely as the product of its two branches [derived]: where every width of weights
is offered with every width of activations, the likeliest candidate has the argmax of each [source],
and where only some pairs are, it is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mpq_compile.types import Candidate

# What the logits start from [source]: all branches alike.
_START = 0.01


class Bits(nn.Module):
    """The logits of one tie: sites that share a weight share them.

    Args:
        names: The candidates to choose from.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.candidates = {name: Candidate.parse(name) for name in names}
        # One branch for each way to round; the first candidate that rounds so stands for it.
        self.weight_branches: dict[tuple[int, int | None], Candidate] = {}
        self.input_branches: dict[tuple[int, bool], Candidate] = {}
        for candidate in self.candidates.values():
            self.weight_branches.setdefault(_weight_branch(candidate), candidate)
            self.input_branches.setdefault(_input_branch(candidate), candidate)
        self.weight_logits = nn.Parameter(torch.full((len(self.weight_branches),), _START))
        self.input_logits = nn.Parameter(torch.full((len(self.input_branches),), _START))

    def expected_product(self) -> Tensor:
        """Return E[weight bits] · E[activation bits], a scalar."""
        weights = [float(c.weight_bits) for c in self.weight_branches.values()]
        inputs = [float(c.activation_bits) for c in self.input_branches.values()]
        shares = self.weight_logits.softmax(0), self.input_logits.softmax(0)
        return (shares[0] @ shares[0].new_tensor(weights)) * (
            shares[1] @ shares[1].new_tensor(inputs)
        )

    def scores(self) -> dict[str, float]:
        """Return the log-probability of each candidate: of its weight's and its input's branch."""
        weights = dict(zip(self.weight_branches, _log_shares(self.weight_logits), strict=True))
        inputs = dict(zip(self.input_branches, _log_shares(self.input_logits), strict=True))
        return {
            name: weights[_weight_branch(c)] + inputs[_input_branch(c)]
            for name, c in self.candidates.items()
        }


def _weight_branch(candidate: Candidate) -> tuple[int, int | None]:
    return candidate.weight_bits, candidate.group_size


def _input_branch(candidate: Candidate) -> tuple[int, bool]:
    return candidate.activation_bits, candidate.dynamic


def _log_shares(logits: Tensor) -> list[float]:
    values: list[float] = logits.detach().double().log_softmax(0).tolist()
    return values
