"""Hugging Face's decoders: a prompt without a cache, and a decode step with one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq_compile.capture import capture
from mpq_compile.errors import CaptureError
from mpq_compile.pipeline import assign_session
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

transformers = pytest.importorskip("transformers", reason="pip install transformers")
cache_utils = pytest.importorskip("transformers.cache_utils")
if not hasattr(cache_utils, "CacheLayerMixin"):
    pytest.skip("caches of this transformers have no layers", allow_module_level=True)

VOCABULARY, WIDTH, LAYERS, HEADS, SIZE = 96, 64, 1, 4, 24
# Relative to the largest logit: float32 sums in another order.
TOLERANCE = 1e-5


class WrittenLayer(cache_utils.CacheLayerMixin):
    """Keys and values of one layer as tensors that are replaced, not changed."""

    is_compileable, is_sliding = True, False

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.positions = keys, values, positions
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        self.keys = self.keys.index_copy(2, self.positions, key_states)
        self.values = self.values.index_copy(2, self.positions, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length


class Prompt(nn.Module):
    """tokens [B, T] → logits [B, T, V]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])
        # With a mask of their own, models do not look for several prompts in one row.
        return self.model(
            input_ids=tokens,
            position_ids=positions[None],
            attention_mask=seen(positions, len(positions)),
            use_cache=False,
        ).logits


def seen(positions: Tensor, keys: int) -> Tensor:
    """Return what is added to scores [1, 1, T, keys]: each token sees up to its own position."""
    return torch.where(torch.arange(keys) <= positions[:, None], 0.0, float("-inf"))[None, None]


class Step(nn.Module):
    """(tokens [1, 1], positions [1], cache…) → (logits [1, V], cache…)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, positions: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        layers = [
            WrittenLayer(keys, values, positions)
            for keys, values in zip(cache[::2], cache[1::2], strict=True)
        ]
        logits = self.model(
            input_ids=tokens,
            position_ids=positions[None],
            attention_mask=seen(positions, SIZE),
            past_key_values=cache_utils.Cache(layers=layers),
            use_cache=True,
        ).logits
        changed = [part for layer in layers for part in (layer.keys, layer.values)]
        return (logits[:, -1], *changed)


def llama(attention: str) -> tuple[nn.Module, int]:
    """Return a model and the heads of its keys."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=64,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval(), 2


def gpt2(attention: str) -> tuple[nn.Module, int]:
    """Return a model and the heads of its keys."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval(), HEADS


MODELS = {"llama": llama, "gpt2": gpt2}


def make(name: str, attention: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    return MODELS[name](attention)


def tokens(seed: int, count: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))


def step_inputs(heads: int, seed: int, position: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, SIZE, WIDTH // HEADS)
    cache = [torch.randn(shape, generator=generator) for _ in range(2 * LAYERS)]
    return tokens(seed, 1), torch.tensor([position]), *cache


def near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("name,attention", [("llama", "sdpa"), ("gpt2", "eager")])
def test_a_prompt(name: str, attention: str) -> None:
    model = Prompt(make(name, attention)[0])
    samples = [(tokens(seed, 9),) for seed in range(3)]
    recipe = Recipe(rounding="nearest")
    session = Session(model, samples[0], samples, recipe=recipe)
    net = assign_session(session, "fp32")
    with torch.no_grad():
        assert near(net(*samples[1]), model(*samples[1]))
    quantized = assign_session(session, "w8a8")
    assert near(quantized(*samples[1]), quantized.reference(*samples[1]), 0.02)
    assert quantized.manifest.notes == []


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_as_it_comes(name: str) -> None:
    model, _ = make(name, "sdpa")
    with pytest.raises(CaptureError, match="found: DynamicCache") as caught:
        capture(model, tokens(0, 8))
    assert "model.config.use_cache = False" in str(caught.value.remedy)
    model.config.use_cache = False
    graph = capture(model, tokens(0, 8))
    with torch.no_grad():
        assert near(graph.module(tokens(1, 8))[0], model(tokens(1, 8)).logits)


@pytest.mark.parametrize("name,attention", [("llama", "eager"), ("gpt2", "sdpa")])
def test_a_step(name: str, attention: str) -> None:
    model, heads = make(name, attention)
    samples = [step_inputs(heads, seed, 4 * seed) for seed in range(3)]
    recipe = Recipe(rounding="nearest")
    session = Session(Step(model), samples[0], samples, recipe=recipe)
    net = assign_session(session, "fp32")
    inputs = step_inputs(heads, 5, 11)
    with torch.no_grad():
        expected = session.model(*inputs)
    for found, value in zip(net(*inputs), expected, strict=True):
        assert near(found, value)
    assert len(net.manifest.updates) == 2 * LAYERS  # the caches are written in place
    kernels = {row.kernel.partition("/")[0] for row in net.audit}
    assert {"attention", "write_rows"} <= kernels
    assert name != "llama" or {"rotary", "rmsnorm"} <= kernels


def test_steps_of_llama_give_what_the_prompt_gives() -> None:
    model, heads = make("llama", "sdpa")
    prompt = tokens(3, 6)
    samples = [step_inputs(heads, seed, 4 * seed) for seed in range(2)]
    session = Session(Step(model), samples[0], samples)
    net = assign_session(session, "fp32")
    cache = [torch.zeros_like(part) for part in samples[0][2:]]
    for position in range(6):
        token = prompt[:, position : position + 1]
        logits, *cache = net(token, torch.tensor([position]), *cache, in_place=True)
    with torch.no_grad():
        assert near(logits, Prompt(model)(prompt)[:, -1])


class Static(nn.Module):
    """A model with a static cache of its own, which its forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.model, heads = llama("eager")
        self.cache = transformers.StaticCache(config=self.model.config, max_cache_len=SIZE)
        keys = torch.zeros(1, heads, 1, WIDTH // HEADS)
        for layer in self.cache.layers:
            layer.lazy_initialization(keys, keys)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.model(
            input_ids=tokens,
            position_ids=positions[None],
            cache_position=positions,
            past_key_values=self.cache,
        ).logits


def test_a_static_cache_is_refused() -> None:
    """What it writes would be lost."""
    with pytest.raises(CaptureError, match="write would be lost") as caught:
        capture(Static().eval(), (torch.tensor([[3]]), torch.tensor([2])))
    assert "cache.update" in str(caught.value.where)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPT2"])
def test_a_decoder_as_it_is_called(family: str) -> None:
    """Ids alone: the masks that Transformers makes of them depend on the batch's size alone."""
    sizes = {"vocab_size": VOCABULARY, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
    wide = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    wide["num_key_value_heads"] = HEADS
    own = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS} if family == "GPT2" else wide
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes, **own)
    kind = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    decoder = getattr(transformers, f"{family}{kind}")(config).eval()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decoder(tokens).logits

    tokens = torch.randint(0, VOCABULARY, (4, 10))
    session = Session(Logits(), tokens[:1], [tokens], recipe=Recipe(rounding="nearest"))
    assert session.network.captured.dynamic_batch
    network = assign_session(session, "w8a8")
    for batch in (tokens[:1], tokens[:3]):
        found, expected = network(batch), network.reference(batch)
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
