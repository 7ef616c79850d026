"""Compile a small decoder to 8- and 4-bit weights and generate greedily, a token a call.

    python examples/decoder/generate.py [--tokens 64]

The same decoder is compiled twice: for a prompt of eight tokens, and for one token at a position
that is an input. The cache that the prompt filled goes into the steps, which update it in place.
"""

import argparse
import time

import torch
from decoder import CACHE, VOCABULARY, Decoder, empty_cache
from torch import Tensor

import mpq_compile as mpq

PROMPT = 8


def inputs(seed: int, position: int, tokens: int) -> tuple[Tensor, ...]:
    """Return random tokens, their positions, and a cache that is filled up to them."""
    generator = torch.Generator().manual_seed(seed)
    cache = empty_cache()
    for part in cache:
        part[:, :, :position] = torch.randn(part[:, :, :position].shape, generator=generator)
    drawn = torch.randint(0, VOCABULARY, (1, tokens), generator=generator)
    return drawn, torch.arange(position, position + tokens), *cache


def compiled(model: Decoder, candidate: str, tokens: int) -> mpq.CompiledNetwork:
    """Return the decoder for so many tokens a call. Weights are rounded alike for any number."""
    samples = [inputs(seed, 16 * seed, tokens) for seed in range(4)]
    return mpq.assign(
        model, samples[0], samples, candidate, rounding="nearest", correction="none", tuned=False
    )


def generate(
    prefill: mpq.CompiledNetwork, step: mpq.CompiledNetwork, prompt: Tensor, count: int
) -> tuple[list[int], float]:
    """Return ``count`` tokens after the prompt, and the tokens a second of the steps."""
    logits, *cache = prefill(prompt, torch.arange(PROMPT), *empty_cache())
    tokens = [int(logits.argmax())]
    start = time.perf_counter()
    for position in range(PROMPT, PROMPT + count - 1):
        token = torch.tensor([[tokens[-1]]])
        logits, *cache = step(token, torch.tensor([position]), *cache, in_place=True)
        tokens.append(int(logits.argmax()))
    return tokens, (count - 1) / (time.perf_counter() - start)


def main() -> None:
    """Compile, generate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    count = min(parser.parse_args().tokens, CACHE - PROMPT)
    torch.manual_seed(0)
    model = Decoder().eval()
    prompt = torch.randint(0, VOCABULARY, (1, PROMPT))
    for candidate in ("w8a16", "w4a16g64"):
        prefill, step = (compiled(model, candidate, tokens) for tokens in (PROMPT, 1))
        tokens, rate = generate(prefill, step, prompt, count)
        print(f"{candidate}: {step.size_bytes / 1e6:.1f} MB, {rate:.0f} tokens/s")
        print(" ", *tokens[:12], "…")


if __name__ == "__main__":
    main()
