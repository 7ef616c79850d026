"""Transformers' networks, quantized, as ONNX: ONNX Runtime gives what the oracle gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exported import compare, materialized
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="pip install transformers")

IDS = torch.randint(1, 90, (4, 12), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
_WIDE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT = {**_WIDE, "intermediate_size": 64, "vocab_size": 100}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_TEXT, **_TOKENS, "num_key_value_heads": 1, "use_cache": False}
_VISION = {**_WIDE, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "Model", _TEXT),
    "roberta": ("Roberta", "Model", _TEXT),
    "mpnet": ("MPNet", "Model", _TEXT),
    "modernbert": (
        "ModernBert",
        "Model",
        {**_TEXT, **_TOKENS, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "t5": (
        "T5",
        "EncoderModel",
        {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1}
        | {"num_heads": 2},
    ),
    "gpt2": (
        "GPT2",
        "LMHeadModel",
        {"vocab_size": 100, "n_embd": 32, "n_layer": 1, "n_head": 2, "use_cache": False}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("Llama", "ForCausalLM", _DECODER),
    "qwen2": ("Qwen2", "ForCausalLM", _DECODER),
    "vit": ("ViT", "Model", _VISION),
    "dinov2": ("Dinov2", "Model", _VISION),
    "swin": (
        "Swin",
        "Model",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1]}
        | {"num_heads": [2, 2], "window_size": 4},
    ),
}


class First(nn.Module):
    """Ids, with a mask of what is no padding where the network takes one, or images → hidden."""

    def __init__(self, model: nn.Module, masked: bool) -> None:
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, x: Tensor) -> Tensor:
        more = {"attention_mask": (x != 0).long()} if self.masked else {}
        return self.model(x, **more)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_exported(name: str) -> None:
    family, kind, sizes = NETWORKS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    images = "image_size" in sizes
    x = IMAGES if images else IDS
    graph = materialized(First(model, masked=not images and kind != "ForCausalLM"), [x], "w8a8")
    assert (compare(graph, [x]) <= 1).mean() >= 0.999
