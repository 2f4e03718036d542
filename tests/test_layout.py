"""How the house is laid out: imports run one way, and nothing that is loaded can run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.package", "torch.hub", "torch.serialization"),
    *("np.load", "numpy.load", "np.save", "np.savez", "pd.read_pickle", "yaml.load", "yaml.unsafe_load"),
    *("eval", "exec"),
}


def files_of(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no sources in {package}"
    return files


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, anywhere in it, by its full name."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(part for part in (base, node.module) if part)


def uses(path: Path) -> Iterator[str]:
    """Every name in the file as it is written (``torch.load``), and every name that is imported from a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute | ast.Name):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("worldvae", {"agents", "scripts", "tests"}), ("agents", {"scripts", "tests"}), ("scripts", {"tests"})],
)
def test_imports_run_one_way(package: str, forbidden: set[str]) -> None:
    backwards = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(package)
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert backwards == []


@pytest.mark.parametrize("package", ["worldvae", "agents", "scripts"])
def test_nothing_is_pickled(package: str) -> None:
    unsafe = []
    for path in files_of(package):
        unsafe += [f"{path.name} imports {name}" for name in imports(path) if name.split(".")[0] in UNSAFE_MODULES]
        unsafe += [f"{path.name} uses {name}" for name in uses(path) if name in UNSAFE_CALLS]
    assert unsafe == []


def test_the_import_reader_sees_nested_and_relative_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "house").mkdir()
    file = tmp_path / "house" / "room.py"
    file.write_text("def f():\n    import agents.sac as s\nfrom .cellar import x\nfrom . import attic\n")
    assert sorted(imports(file)) == ["agents.sac", "house", "house.cellar"]


def test_the_reader_of_names_sees_calls_and_imports(tmp_path: Path) -> None:
    file = tmp_path / "room.py"
    file.write_text("from torch import load\nimport torch\ntorch.jit.load('x')\nmodel.eval()\nexec('1')\n")
    assert UNSAFE_CALLS & set(uses(file)) == {"torch.load", "torch.jit.load", "exec"}
