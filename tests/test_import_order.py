"""The layout: a module imports only from lines above it, and few modules import tvm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mpq_compile"

# One stage a line, in the order of the design's layout; modules of one line may import each other.
LINES: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "registry"),
    ("progress", "lock", "memo", "workpool"),
    ("solve",),
    ("quant",),
    ("kernels",),
    ("onnx_import",),
    ("capture", "dropout", "exporting", "in_place"),
    ("passes",),
    ("data",),
    ("calibrate",),
    ("sensitivity",),
    ("reconstruct",),
    ("training",),
    ("search",),
    ("lower",),
    ("runtime",),
    ("cost",),
    ("report",),
    (
        "pipeline",
        "closed_loop",
        "attempts",
        "session",
        "shared_tasks",
        "allocate",
        "infeasibility",
        "deploy",
        "building",
        "plan_records",
        "anchors",
        "costing",
        "inverse",
        "network_loss",
        "auto",
        "digest",
        "judging",
        "measuring",
        "tradeoff",
        "selfcheck",
        "sufficiency",
        "profiling",
        "searching",
        "finetuning",
        "recipe",
        "recording",
    ),
    ("integrations", "demo"),
    ("cli", "commands", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LINES) for name in names}
# Names that the package itself offers: it imports them when they are first used.
ROOT = "__init__"
TVM_USERS = ("kernels", "lower", "runtime")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield each module's path below the package, and its syntax tree."""
    for folder in (PACKAGE, *sorted(p for p in PACKAGE.iterdir() if p.is_dir())):
        pattern = "*.py" if folder == PACKAGE else "**/*.py"
        for path in sorted(folder.glob(pattern)):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield path.relative_to(PACKAGE).as_posix(), tree


SOURCES = dict(sources())


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield dotted names of what a module imports, also inside functions, not for types only."""
    skipped = {child for node in ast.walk(tree) if _for_types(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _for_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def line_of(path: str) -> str:
    """Return the stage of a module: its folder, or its own name."""
    return path.partition("/")[0].removesuffix(".py")


def test_every_module_has_a_line() -> None:
    unknown = {line_of(path) for path in SOURCES} - set(RANK) - {ROOT}
    assert not unknown, f"not in the layout: {sorted(unknown)}"


@pytest.mark.parametrize("path", SOURCES)
def test_imports_point_upwards(path: str) -> None:
    stage = line_of(path)
    if stage == ROOT:
        return
    inner = [name for name in imports(SOURCES[path]) if name.startswith("mpq_compile.")]
    used = {name.split(".")[1] for name in inner} & set(RANK)
    below = sorted(name for name in used if RANK[name] > RANK[stage])
    assert not below, f"{path} imports from below its line: {below}"


@pytest.mark.parametrize("path", SOURCES)
def test_few_modules_import_tvm(path: str) -> None:
    roots = {name.partition(".")[0] for name in imports(SOURCES[path])}
    if not path.startswith(TVM_USERS):
        assert not roots & {"tvm", "tvm_ffi"}


@pytest.mark.parametrize("path", [p for p in SOURCES if line_of(p) in ("solve", "allocate")])
def test_solvers_import_neither_torch_nor_tvm(path: str) -> None:
    roots = {name.partition(".")[0] for name in imports(SOURCES[path])}
    assert not roots & {"torch", "tvm", "tvm_ffi"}


@pytest.mark.parametrize("path", SOURCES)
def test_kernels_are_imported_by_their_full_name(path: str) -> None:
    roots = {name.partition(".")[0] for name in imports(SOURCES[path])}
    assert not roots & {"kernels", "hw_profiles"}


@pytest.mark.parametrize("path", SOURCES)
def test_no_pickle(path: str) -> None:
    roots = {name.partition(".")[0] for name in imports(SOURCES[path])}
    assert not roots & {"pickle", "dill", "cloudpickle", "joblib"}
