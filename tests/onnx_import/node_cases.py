"""ONNX's own cases for single operators, and the reasons for which some of them are left out."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx.numpy_helper import from_array
from torch import Tensor

from mpq_compile.errors import UnsupportedOpError
from mpq_compile.onnx_import.constants import fold_constants
from mpq_compile.onnx_import.linears import with_linears
from mpq_compile.onnx_import.naming import parameter_paths
from mpq_compile.onnx_import.network import OnnxNetwork
from mpq_compile.onnx_import.operators import OPERATORS
from mpq_compile.onnx_import.program import Program, program_of, tensor_of
from mpq_compile.onnx_import.source import normalise

# Operators that the table lacks, whether a case calls them or ONNX defines another one by them.
OPERATORS_LEFT_OUT = frozenset(
    [
        "Attention",
        "BitCast",
        "CausalConvWithState",
        "Col2Im",
        "Compress",
        "ConvInteger",
        "CumProd",
        "DFT",
        "DeformConv",
        "Det",
        "GridSample",
        "If",
        "ImageDecoder",
        "LinearAttention",
        "Loop",
        "LpPool",
        "MatMulInteger",
        "MaxUnpool",
        "MelWeightMatrix",
        "NonMaxSuppression",
        "NonZero",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RandomUniformLike",
        "ReverseSequence",
        "RoiAlign",
        "STFT",
        "Scan",
        "SplitToSequence",
        "TensorScatter",
        "TfIdfVectorizer",
        "Unique",
    ]
)
# Patterns of names by the reason for which cases are not run. Each listed case must fail.
SKIPPED: Mapping[str, tuple[str, ...]] = {
    "PyTorch lacks arithmetic on uint16, uint32 and uint64": (
        "test_add_uint*[246]",
        "test_bitwise_not_3d",
        "test_div_uint*[246]",
        "test_greater_uint*[246]",
        "test_greater_equal_uint*[246]*",
        "test_less_uint*[246]",
        "test_less_equal_uint*[246]*",
        "test_max_uint*[246]",
        "test_min_uint*[246]",
        "test_mod_uint*[246]",
        "test_sub_uint*[246]",
    ),
    "float8 and float4, which are not read": ("test_cast_*_to_FLOAT[48]*", "test_cast_e8m0_*"),
    "casts to types of 2 and 4 bits: tensors of them are held in bytes": (
        "test_cast*_to_*INT[24]",
        "test_castlike_*_to_*INT[24]_expanded",
    ),
    "halves, summed in another order than the reference's": ("test_attention_4d_causal_fp16*",),
    "numbers of bfloat16 that must be known, which NumPy lacks": (
        "test_attention_4d_*padded_kv_bf16_expanded",
        "test_attention_4d_attn_mask_causal_bf16",
        "test_range_bfloat16_type_positive_delta",
    ),
    "peepholes, which PyTorch's LSTM lacks": ("test_lstm_with_peepholes",),
    "training": (
        "test_batchnorm_*_training_mode",
        "test_training_dropout",
        "test_training_dropout_[dm]*",
    ),
    "the inliner of ONNX leaves out attributes that a function has defaults for": (
        "test_blackmanwindow",
        "test_blackmanwindow_symmetric",
        "test_hammingwindow",
        "test_hammingwindow_symmetric",
        "test_hannwindow",
        "test_hannwindow_symmetric",
        "test_mvn",
    ),
    "interpolation that PyTorch has no like of": (
        "test_resize_downsample_scales_*_align_corners",
        "test_resize_*_exclude_outside",
        "test_resize_*_antialias",
        "test_resize_upsample_scales_cubic_asymmetric",
        "test_resize_*_pytorch_half_pixel",
        "test_resize_*_half_pixel_symmetric",
        "test_resize_tf_crop_and_resize*",
    ),
    "repeated indices that multiply or compare": (
        "test_scatternd_multiply",
        "test_scatternd_max*",
        "test_scatternd_min*",
    ),
}


@cache
def cases() -> dict[str, Any]:
    """Return the cases of single operators, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return {case.name: case for case in found if case.model is not None}


def reason(name: str) -> str | None:
    """Return why a case is left out, or None."""
    for why, patterns in SKIPPED.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return why
    return None


def check(case: Any) -> None:
    """Import a case's model and hold its outputs against the expected ones."""
    copy = onnx.ModelProto.FromString(case.model.SerializeToString())
    program = program_of(normalise(copy, Path(f"{case.name}.onnx"), OPERATORS))
    names = [value.name for value in case.model.graph.input]
    arrays, expected = case.data_sets[0]
    inputs = {name: _tensor(value) for name, value in zip(names, arrays, strict=True)}
    try:
        found = _outputs(program, inputs, every=False)
    except UnsupportedOpError as error:
        if "computed from data" not in str(error):
            raise
        found = _outputs(program, inputs, every=True)
    for value, wanted in zip(found, map(_tensor, expected), strict=True):
        assert value.dtype == wanted.dtype
        rtol = 2**-6 if value.dtype == torch.bfloat16 else case.rtol
        torch.testing.assert_close(
            value, wanted, rtol=rtol, atol=case.atol, equal_nan=True, check_stride=False
        )


def _outputs(program: Program, inputs: Mapping[str, Tensor], every: bool) -> Sequence[Tensor]:
    """Run a program; inputs that must be known, or every one, become constants."""
    known = {
        name
        for node in program.nodes
        for i, name in enumerate(node.inputs)
        if node.op in OPERATORS and i in OPERATORS[node.op].known
    }
    constants = {name: value for name, value in inputs.items() if every or name in known}
    program = replace(
        program,
        constants={**program.constants, **constants},
        inputs={name: form for name, form in program.inputs.items() if name not in constants},
    )
    program = with_linears(fold_constants(program))
    network = OnnxNetwork(program, parameter_paths(program, {}))
    found = network(*(inputs[name] for name in program.inputs))
    return (found,) if isinstance(found, Tensor) else found


def _tensor(value: Any) -> Tensor:
    """Return an input or output of a case; narrow types are held in bytes, as programs do."""
    proto = value if isinstance(value, onnx.TensorProto) else from_array(np.asarray(value))
    return tensor_of(proto)
