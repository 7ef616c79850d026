"""Look-ups that number the batch become choices along one dimension; others stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs import after, assert_same, calls, captured
from torch import Tensor, nn

from mpq_compile.passes.batch_indices import BatchIndices
from mpq_compile.passes.fold_constants import FoldConstants
from mpq_compile.passes.remove_identity import RemoveIdentity
from mpq_compile.session import Session

Formula = Callable[[Tensor, Tensor], Tensor]


class Looked(nn.Module):
    """Applies a formula to values [B, 6, 4] and the numbers of their samples [B]."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc, self.formula = nn.Linear(4, 4), formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self.fc(x), torch.arange(x.shape[0]))


def rows(places: Tensor) -> Formula:
    """As exporters write it: rows of what is flattened."""

    def formula(x: Tensor, samples: Tensor) -> Tensor:
        chosen = (samples[:, None] * 6 + places).reshape(-1)
        return x.flatten(0, 1).index_select(0, chosen).reshape(x.shape[0], len(places), 4)

    return formula


PASSES = (RemoveIdentity(), FoldConstants(), BatchIndices())
ORDER = torch.tensor([5, 0, 0, 3])
CHOICES: dict[str, Formula] = {
    "pairs": lambda x, b: x[b[:, None], ORDER],
    "more_axes": lambda x, b: x[b[:, None, None, None], ORDER[None, None, None]],
    "repeated": lambda x, b: x[b[:, None].expand(-1, 4), ORDER[None].expand(x.shape[0], -1)],
    "all_places": lambda x, b: x[b[:, None], torch.arange(6)],
    "rows": rows(ORDER),
    "all_rows": rows(torch.arange(6)),
}
OTHERS: dict[str, Formula] = {
    "samples_turned": lambda x, b: x[b.flip(0)[:, None], ORDER],
    "first_sample": lambda x, b: x[(b * 0)[:, None], ORDER],
    "places_of_samples": lambda x, b: x[b[:, None], (ORDER + b[:, None]) % 6],
    "of_twice_the_batch": lambda x, b: torch.cat([x, x + 1])[b[:, None], ORDER],
    "of_data_of_others": lambda x, b: x[b.flip(0)[:, None], (x[:, :4, 0] > 0).long()],
    "one_row_on": lambda x, b: x.flatten(0, 1)[(b * 6 + 1).clamp(max=3)],
}


@pytest.mark.parametrize("name", CHOICES)
def test_samples_that_read_themselves(name: str) -> None:
    model, x = Looked(CHOICES[name]), torch.randn(3, 6, 4)
    graph = captured(model, x)
    module = after(graph.module, *PASSES)
    found = calls(module)
    assert not found["index"]
    assert found["index_select"] == ("all" not in name)
    assert_same(model, module, (x,))
    assert_same(model, module, (x[:2],))
    # Nothing is left of the numbers of samples: the network runs without operators in float.
    Session(model, x[:1], [x], "bit_serial")


OF_DATA: dict[str, Formula] = {
    "one": lambda x, b: x[b, x[:, :, 0].argmax(1)],
    "one_from_the_end": lambda x, b: x[b, x[:, :, 0].argmax(1) - 6],
    "several": lambda x, b: x[b[:, None], (x[:, :4, 0] > 0).long()],
    "neighbours": lambda x, b: x[b[:, None, None], (x @ x.mT).topk(3)[1]],
    "numbers": lambda x, b: x[:, :, 0][b, x[:, :, 1].argmin(1)],
}


@pytest.mark.parametrize("name", OF_DATA)
def test_places_that_data_tell_for_each_sample(name: str) -> None:
    model, x = Looked(OF_DATA[name]), torch.randn(3, 6, 4)
    module = after(captured(model, x).module, *PASSES)
    assert not calls(module)["index"] and calls(module)["gather"] == 1
    assert_same(model, module, (x,))
    assert_same(model, module, (x[:2],))


@pytest.mark.parametrize("name", OTHERS)
def test_other_look_ups_stay(name: str) -> None:
    model, x = Looked(OTHERS[name]), torch.randn(3, 6, 4)
    module = after(captured(model, x).module, *PASSES)
    assert calls(module)["index"] or name == "one_row_on"
    assert_same(model, module, (x,))
    assert_same(model, module, (x[:2],))


def causal(b: Tensor) -> Tensor:
    places = torch.arange(6).expand(b.shape[0], 6)
    return places[:, None, :] <= places[:, :, None]


SAME: dict[str, Formula] = {
    "mask": lambda x, b: x.mT @ causal(b).float(),
    "differences": lambda x, b: (
        x
        + torch.diff(
            torch.arange(6).expand(b.shape[0], 6), prepend=b.new_zeros(b.shape[0], 1)
        ).cumsum(1)[:, :, None]
    ),
}
APART: dict[str, Formula] = {
    "numbers": lambda x, b: x * (b[:, None, None] + 1),
    "size": lambda x, b: x * b.sum(),
    "of_size": lambda x, b: x * b.sum().expand(x.shape[0])[:, None, None],
}


@pytest.mark.parametrize("name", SAME)
def test_rows_that_are_the_same_for_each_sample(name: str) -> None:
    model, x = Looked(SAME[name]), torch.randn(3, 6, 4)
    module = after(captured(model, x).module, *PASSES)
    left = calls(module)
    assert not left.keys() & {"arange", "le", "diff", "cumsum"}
    assert_same(model, module, (x,))
    assert_same(model, module, (x[:2],))


@pytest.mark.parametrize("name", APART)
def test_what_differs_between_samples_or_sizes_stays(name: str) -> None:
    model, x = Looked(APART[name]), torch.randn(3, 6, 4)
    module = after(captured(model, x).module, *PASSES)
    assert not any("_row" in str(node.target) for node in module.graph.nodes)
    assert_same(model, module, (x,))
    assert_same(model, module, (x[:2],))
