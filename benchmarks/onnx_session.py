"""ONNX Runtime on exported networks, where its products are exact."""

from __future__ import annotations

from typing import Any

from mpq_compile.kernels.tier import host_flags


def exact_session(runtime: Any, content: bytes, threads: int = 0) -> Any:
    """Return an ``InferenceSession`` of the module ``runtime`` on the CPU.

    On x86 without VNNI its integer kernels sum products in 16 bits, which those of 8-bit weights
    overflow: there it multiplies in float between the codes (``docs/onnx.md``).
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if "avx2" in host_flags() and not host_flags() & {"avx512_vnni", "avx_vnni"}:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
