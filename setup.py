"""Package metadata. ``torch`` is pinned; the Makefile installs its CPU build first."""

from pathlib import Path

from setuptools import find_packages, setup

RUNTIME = [
    "torch==2.13.0",
    "apache-tvm==0.27.0.post1",
    # Later releases crash the process in tvm.ir.save_json and in meta_schedule.
    "apache-tvm-ffi==0.1.14.post1",
    "onnx>=1.23",  # opset 28
    "numpy>=1.26",
    "pyyaml>=6",
    "scipy>=1.11",
    "rich>=13",
    "typer>=0.12",
    "jsonschema>=4.20",
    "matplotlib>=3.8",
    "safetensors>=0.4",
    "tornado>=6",  # TVM's RPC tracker
    "scikit-learn>=1.4",
]
DEVELOPMENT = ["pytest>=8", "hypothesis>=6", "ruff>=0.6", "mypy>=1.10", "types-PyYAML"]
# What benchmarks/peers.py compares with: ratios are to these versions.
PEERS = [
    "torchao==0.18.0",
    "onnxruntime==1.32.0",
    "onnxscript==0.7.2",
    "openvino==2026.4.1",
    "nncf==3.4.0",
]

IMAGES = ["pillow>=10"]
# Nothing imports it: data sets are taken as they look, and tests do so with real ones.
DATASETS = ["datasets>=3"]
# Links libraries for another architecture (85 MB, so it is no requirement).
CROSS = ["ziglang==0.15.2"]

setup(
    name="mpq_compile",
    version="0.1.0",
    description="Mixed-precision quantization that meets a measured budget",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["mpq_compile*"]) + ["mpq_compile.kernels"],
    package_data={
        "mpq_compile": [
            "hw_profiles/*.yaml",
            "hw_profiles/*.json",
            "hw_profiles/measurements/*.jsonl.gz",
            "schemas/*.json",
            "report/*.html",
            "py.typed",
        ]
    },
    install_requires=RUNTIME,
    extras_require={
        "dev": [*DEVELOPMENT, *IMAGES, *CROSS],
        "peers": PEERS,
        "cross": CROSS,
        "images": IMAGES,
        "datasets": DATASETS,
    },
    entry_points={"console_scripts": ["mpq = mpq_compile.cli:main"]},
)
