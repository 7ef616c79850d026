"""Names of storage formats by torch dtype."""

from __future__ import annotations

import torch

STORAGE = {
    torch.uint8: "u8",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}
