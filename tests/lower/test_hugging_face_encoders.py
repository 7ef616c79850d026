"""Encoders of Hugging Face as they come: ids, masks and dataclasses; both kinds of attention."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.cost.table import counted_costs
from mpq_compile.passes.kinds import Kind, kinds
from mpq_compile.passes.network import Network, prepare
from mpq_compile.selfcheck import agreement_decibels
from mpq_compile.sensitivity.sqnr import SqnrMetric
from mpq_compile.session import Session
from mpq_compile.types import Candidate

transformers = pytest.importorskip(
    "transformers", reason="needs pip install mpq_compile[transformers]"
)

TOKENS, WORDS = 12, 60
SIZES = {
    "vocab_size": WORDS,
    "max_position_embeddings": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
}
DISTIL = {"vocab_size": WORDS, "max_position_embeddings": 32, "n_layers": 2, "n_heads": 2,
          "dim": 32, "hidden_dim": 48}  # fmt: skip
# The oracle's float parts differ in the order of sums; a code that flips there is noise after it.
LEAST_DECIBELS = {"fp32": 100.0, "bf16": 30.0, "w8a8": 30.0, "w8a8d": 30.0, "w4a8": 25.0}


class Pooled(nn.Module):
    """Mean over what is seen, normalised: how sentence embeddings are made."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def bert(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, attn_implementation=attention)
    model = transformers.BertModel(config).eval()
    for module in model.modules():  # as after training; biases start at zero
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, std=0.02)
    return model


def roberta() -> nn.Module:
    torch.manual_seed(1)
    return transformers.RobertaModel(transformers.RobertaConfig(**SIZES)).eval()


def distilbert() -> nn.Module:
    torch.manual_seed(2)
    return transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)).eval()


def albert() -> nn.Module:
    """One layer that is used twice."""
    torch.manual_seed(3)
    config = transformers.AlbertConfig(**SIZES, embedding_size=16)
    return transformers.AlbertModel(config).eval()


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids and masks of sentences of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, WORDS, (count, TOKENS), generator=generator)
    lengths = torch.randint(3, TOKENS + 1, (count, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    return ids * mask + (1 - mask), mask


@cache
def network(attention: str = "sdpa") -> Network:
    return prepare(capture(Pooled(bert(attention)), samples(1)))


@cache
def compiled(candidate: str) -> Any:
    return mpq.assign(Pooled(bert()), samples(1), [samples(70, seed=1)], candidate, tuned=False)


@pytest.mark.parametrize("candidate", LEAST_DECIBELS)
def test_equals_its_oracle(candidate: str) -> None:
    net, x = compiled(candidate), samples(3, seed=2)
    found, oracle = net(*x), net.reference(*x)
    assert agreement_decibels(found, oracle) > LEAST_DECIBELS[candidate]


def test_both_attentions_have_the_same_sites_and_one_kernel() -> None:
    graphs = [network(attention) for attention in ("sdpa", "eager")]
    first, second = ([site.id for site in graph.sites] for graph in graphs)
    assert first == second and len(first) == 14
    for graph in graphs:
        assert list(kinds(graph).values()).count(Kind.ATTENTION) == 2


@pytest.mark.parametrize("make", [bert, roberta, distilbert, albert])
def test_a_model_is_called_as_it_comes(make: Callable[[], nn.Module]) -> None:
    model, x = make(), samples(1)
    net = mpq.assign(model, x, [samples(64, seed=1)], "fp32", tuned=False)
    found, exact = net(*x), model(*x)
    assert type(found) is type(exact)
    assert torch.allclose(found.last_hidden_state, exact.last_hidden_state, atol=1e-5)


def test_a_layer_that_is_used_again_is_stored_once() -> None:
    model, x = albert(), samples(1)
    net = mpq.assign(model, x, [samples(64, seed=1)], "w8a8", tuned=False)
    # A table that no site reads codes of is counted, and not stored.
    assert 0 <= net.plan.predicted.size_bytes - net.size_bytes <= 256
    weights = sum(p.numel() for p in model.parameters())
    assert net.size_bytes < 2 * weights  # scales and biases of each use; twice the codes are more
    assert sum(name.endswith("ffn:linear#1") for name in net.plan.assignment) == 1


def test_the_batch_is_free_and_the_length_is_not() -> None:
    net, x = compiled("w8a8"), samples(3, seed=3)
    alone = torch.cat([net(*(value[i : i + 1] for value in x)) for i in range(3)])
    assert torch.equal(net(*x), alone)
    with pytest.raises(mpq.MpqError, match="wrong input"):
        net(*(value[:, :5] for value in x))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_ids_of_another_type_are_refused(dtype: torch.dtype) -> None:
    ids, mask = samples(1)
    with pytest.raises(mpq.MpqError, match="wrong input") as caught:
        compiled("w8a8")(ids.to(dtype), mask)
    assert "int64[1, 12]" in str(caught.value)


def test_a_loaded_artifact_needs_no_torch(tmp_path: Path) -> None:
    net, (ids, mask) = compiled("w4a8"), samples(2, seed=4)
    folder = net.save(tmp_path / "net")
    np.savez(tmp_path / "x.npz", ids=ids.numpy(), mask=mask.numpy())
    code = (
        "import sys, numpy as np, mpq_compile as mpq\n"
        f"x = np.load({str(tmp_path / 'x.npz')!r})\n"
        f"y = mpq.load({str(folder)!r})(x['ids'], x['mask'])\n"
        "assert 'torch' not in sys.modules\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, y)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "y.npy"), net(ids, mask).numpy())


def test_embeddings_are_sites_whose_sizes_are_counted() -> None:
    tables = [site for site in network().sites if site.op == "embedding"]
    assert [site.weight_shape for site in tables] == [(WORDS, 32), (2, 32)]
    sizes = [
        counted_costs(network(), tables[0], Candidate.parse(name))["size_bytes"]
        for name in ("fp32", "w8a8", "w4a8")
    ]
    assert sizes == [WORDS * 32 * 4, WORDS * (32 + 4), WORDS * (16 + 4)]
    # Look-up tables of GELU are stored too, as many for either.
    wide, narrow = (compiled(name) for name in ("w8a8", "w4a8"))
    saved = wide.plan.predicted.size_bytes - narrow.plan.predicted.size_bytes
    assert wide.size_bytes - narrow.size_bytes == saved > 0


def test_the_audit_names_the_kernel_and_the_bits_of_an_embedding() -> None:
    rows = {row.site: row for row in compiled("w4a8").audit}
    row = rows["encoder.embeddings.word_embeddings:embedding#0"]
    assert (row.stored_bits, row.kernel) == (4, "embedding_m12_r60_n32_w4_int_int64")


def test_fewer_bits_of_an_embedding_lose_more() -> None:
    session = Session(Pooled(bert()), samples(1), [samples(70, seed=1)])
    site = next(site.id for site in session.network.sites if site.op == "embedding")
    choices = {site: ["fp32", "bf16", "w8a8", "w4a8", "w2a8"]}
    seen = session.calibration_for(choices)
    losses = SqnrMetric(samples=16)(session.network, seen, session.batches, choices).loss[site]
    ordered = [losses[name] for name in choices[site]]
    assert ordered == sorted(ordered) and ordered[0] == 0 < ordered[2]
