"""The operators that are read, by their names in ONNX; one family a file."""

from __future__ import annotations

from collections.abc import Mapping

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.operators.activations import ACTIVATIONS
from mpq_compile.onnx_import.operators.arithmetic import ARITHMETIC
from mpq_compile.onnx_import.operators.comparisons import COMPARISONS
from mpq_compile.onnx_import.operators.convolutions import CONVOLUTIONS
from mpq_compile.onnx_import.operators.indexing import INDEXING
from mpq_compile.onnx_import.operators.layouts import LAYOUTS
from mpq_compile.onnx_import.operators.norms import NORMS
from mpq_compile.onnx_import.operators.pooling import POOLING
from mpq_compile.onnx_import.operators.products import PRODUCTS
from mpq_compile.onnx_import.operators.quantizers import QUANTIZERS
from mpq_compile.onnx_import.operators.recurrent import RECURRENT
from mpq_compile.onnx_import.operators.reductions import REDUCTIONS
from mpq_compile.onnx_import.operators.resize import RESIZE
from mpq_compile.onnx_import.operators.sources import SOURCES

OPERATORS: Mapping[str, Operator] = {
    **ACTIVATIONS,
    **ARITHMETIC,
    **COMPARISONS,
    **CONVOLUTIONS,
    **INDEXING,
    **LAYOUTS,
    **NORMS,
    **POOLING,
    **PRODUCTS,
    **QUANTIZERS,
    **RECURRENT,
    **REDUCTIONS,
    **RESIZE,
    **SOURCES,
}
