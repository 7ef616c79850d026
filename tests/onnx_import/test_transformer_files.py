"""Files of transformers: masks by position, shapes of shapes, norms as exporters write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_round_trips import imported, sites
from torch import Tensor, nn

from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare
from mpq_compile.session import Session

IDS = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(3))
IDS[1, 4:] = 0


class Encoder(nn.Module):
    """One layer, as Transformers writes it: ids → hidden values [B, 6, 16].

    The mask is looked up by sample and position, token types are expanded from a buffer, and the
    norm is written out.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.words, self.types = nn.Embedding(20, 16), nn.Embedding(2, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16, bias=False)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)
        self.register_buffer("type_ids", torch.zeros(1, 32, dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        types = self.type_ids[:, :length].expand(batch, length)
        x = self.words(ids) + self.types(types)
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.seen(ids))
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, -1))
        return self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def seen(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        keys = torch.arange(length)[None, None, None, :]
        samples = torch.arange(batch)[:, None, None, None]
        return (ids != 0)[samples, keys].expand(batch, 1, length, length)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_an_encoder_with_masks_by_position(tmp_path: Path, dynamo: bool, free: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    model = Encoder().eval()
    network = imported(model, IDS, tmp_path / "net.onnx", dynamo=dynamo, free=free)
    assert network.captured.dynamic_batch == free
    # With a fixed batch, what token types look up depends on nothing, and is a constant.
    known = [site for site in sites(prepare(capture(model, IDS[:1]))) if "types" not in site[0]]
    assert [site for site in sites(network) if "types" not in site[0]] == known
    called = {str(node.target) for node in network.module.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in called
    assert "aten.rms_norm.default" in called
    # Nothing has to run in float.
    batch = len(network.captured.example_inputs[0])
    Session(str(tmp_path / "net.onnx"), None, [IDS[:batch]], "bit_serial")


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
_WIDE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT = {**_WIDE, "intermediate_size": 64, "vocab_size": 20}
_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bert": _TEXT,
    "DistilBert": {"vocab_size": 20, "dim": 32, "n_heads": 2, "n_layers": 1, "hidden_dim": 64},
    "MPNet": _TEXT,
    "ModernBert": {**_TEXT, **_MARKS, "cls_token_id": 1, "sep_token_id": 2},
    "ViT": {**_WIDE, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1]}
    | {"num_heads": [2, 2], "window_size": 4},
}
# What torch.export cannot decompose for the exporter.
NOT_EXPORTED = {("Swin", True)}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("dynamo", [False, True])
def test_networks_of_transformers(tmp_path: Path, name: str, dynamo: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    if (name, dynamo) in NOT_EXPORTED:
        pytest.skip("the exporter cannot write it")
    images = "image_size" in TRANSFORMERS[name]

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(8)
            config = getattr(transformers, f"{name}Config")(**TRANSFORMERS[name])
            self.model = getattr(transformers, f"{name}Model")(config)

        def forward(self, x: Tensor) -> Tensor:
            more = {} if images else {"attention_mask": (x != 0).long()}
            return self.model(x, **more)[0]

    model, x = Hidden().eval(), IMAGES if images else IDS
    network = imported(model, x, tmp_path / "net.onnx", dynamo=dynamo)
    assert network.captured.dynamic_batch
    assert sites(network) == sites(prepare(capture(model, x[:1])))
    Session(str(tmp_path / "net.onnx"), None, [x], "bit_serial")
