"""``torch.compile(model, backend="mpq")`` of transformers' networks."""

from __future__ import annotations

import pytest
import torch
from compiled_nets import QUICK, nothing_compiled  # noqa: F401 - for every test
from torch import Tensor

import mpq_compile as mpq

transformers = pytest.importorskip("transformers", reason="pip install transformers")


def _call(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, 50, (count, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones(count, 6, dtype=torch.long)}


@pytest.mark.parametrize("first", [1, 8])
def test_bert_runs_any_batch_on_the_network_of_the_first(first: int) -> None:
    """Buffers of positions and token types are expanded to the batch, which Dynamo writes down."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = transformers.BertModel(config).eval()
    options = {**QUICK, "assignment": "w8a8", "calibration": [_call(8), _call(8)]}
    compiled = torch.compile(model, backend="mpq", options=options)
    for count in (first, 3, 5):
        x = _call(count)
        found, exact = compiled(**x).last_hidden_state, model(**x).last_hidden_state
        assert not torch.equal(found, exact)
        assert (found - exact).norm() < 0.05 * exact.norm()
    [part] = mpq.explain(compiled).parts
    assert part.dynamic_batch and part.shapes == [[[first, 6]] * 2] and not part.eager_shapes
    assert "embeddings.token_type_embeddings:embedding#0" in part.assignment
