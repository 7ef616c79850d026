"""Networks of Hugging Face beside plain encoders: speech, images and words, states, detection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mpq_compile as mpq
from mpq_compile.selfcheck import agreement_decibels

transformers = pytest.importorskip(
    "transformers", reason="needs pip install mpq_compile[transformers]"
)

WORDS, TOKENS = 60, 12
# The oracle's float parts differ in the order of sums; a code that flips there is noise after it.
LEAST_DECIBELS = 40.0
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
DECODER = {**TEXT, "intermediate_size": 48, "use_cache": False}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
    "vocab_size": 32,
}
WHISPER = {
    "vocab_size": WORDS,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 10,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}


def words(count: int, tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, WORDS, (count, tokens))


def masked(count: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (count, 1))
    return words(count), (torch.arange(TOKENS) < lengths).long()


class Named(nn.Module):
    """A model that is called by the names of its arguments, without a cache."""

    def __init__(self, model: nn.Module, *names: str, result: str = "logits") -> None:
        super().__init__()
        self.model, self.names, self.result = model, names, result

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        values = [first] if second is None else [first, second]
        arguments = dict(zip(self.names, values, strict=True))
        return getattr(self.model(**arguments, use_cache=False), self.result)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model of a class, with its configuration, and inputs for a batch."""

    name: str
    config: dict[str, Any]
    inputs: Callable[[int], Any]
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model

    def build(self) -> nn.Module:
        model_class = getattr(transformers, self.name)
        torch.manual_seed(0)
        return self.wrap(model_class(model_class.config_class(**self.config)).eval())


FAMILIES = {
    "deberta_v2": Family(
        name="DebertaV2Model",
        config={
            **TEXT,
            "intermediate_size": 48,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
        inputs=masked,
    ),
    "xlnet": Family(
        name="XLNetModel",
        config={
            "vocab_size": WORDS,
            "d_model": 32,
            "n_layer": 1,
            "n_head": 2,
            "d_inner": 48,
            "use_mems_eval": False,
        },
        inputs=masked,
    ),
    "phi3": Family(name="Phi3ForCausalLM", config={**DECODER, "pad_token_id": 0}, inputs=words),
    "falcon": Family(name="FalconForCausalLM", config=DECODER, inputs=words),
    "bloom": Family(
        name="BloomForCausalLM",
        config={"vocab_size": WORDS, "hidden_size": 32, "n_layer": 1, "n_head": 4},
        inputs=masked,
        wrap=lambda model: Named(model, "input_ids", "attention_mask"),
    ),
    "mamba": Family(
        name="MambaForCausalLM",
        config={"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
        inputs=words,
        wrap=lambda model: Named(model, "input_ids"),
    ),
    "gpt2_classes": Family(
        name="GPT2ForSequenceClassification",
        config={
            "vocab_size": WORDS,
            "n_embd": 32,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 32,
            "pad_token_id": 0,
            "use_cache": False,
        },
        inputs=words,
    ),
    "whisper": Family(
        name="WhisperForConditionalGeneration",
        config=WHISPER,
        inputs=lambda count: (torch.randn(count, 8, 20), words(count, 6)),
        wrap=lambda model: Named(model, "input_features", "decoder_input_ids"),
    ),
    "wav2vec2": Family(
        name="Wav2Vec2ForCTC", config=SPEECH, inputs=lambda count: torch.randn(count, 800)
    ),
    "wavlm": Family(name="WavLMModel", config=SPEECH, inputs=lambda count: torch.randn(count, 800)),
    "swin": Family(
        name="SwinForImageClassification",
        config={
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        inputs=lambda count: torch.randn(count, 3, 32, 32),
    ),
    "videomae": Family(
        name="VideoMAEForVideoClassification",
        config={
            **{key: SPEECH[key] for key in ("hidden_size", "num_attention_heads")},
            "num_hidden_layers": 1,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 8,
            "num_frames": 4,
        },
        inputs=lambda count: torch.randn(count, 4, 3, 16, 16),
    ),
}
# The others run with ``pytest -m slow``.
SOME = ("falcon", "gpt2_classes", "whisper", "wav2vec2")


@pytest.mark.parametrize(
    "name",
    [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_networks_equal_their_oracle(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    batches = [family.inputs(8) for _ in range(2)]
    torch.manual_seed(1)
    example, x = family.inputs(1), family.inputs(3)
    net = mpq.assign(model, example, batches, "w8a8", tuned=False)
    inputs = x if isinstance(x, tuple) else (x,)
    pairs = zip(*map(pytree.tree_leaves, (net(*inputs), net.reference(*inputs))), strict=True)
    for found, expected in pairs:
        assert agreement_decibels(found, expected) > LEAST_DECIBELS
