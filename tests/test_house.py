"""The law of the house: who may import whom, and what a wheel holds."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cache", "extract", "federate")
FOLDERS = (*PACKAGES, "tests")
ALLOWED = {"cache": {"cache"}, "extract": {"extract", "cache"}, "federate": {"federate", "cache"}}

# Stage two runs where none of these is installed.
NOT_FOR_FEDERATE = ("open_clip", "torchvision", "timm", "transformers", "tokenizers", "PIL")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Give every import of a file as the number of dots and the dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name) for name in names)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_itself_and_the_cache(package: str) -> None:
    assert modules(package)
    for path in modules(package):
        depth = len(path.relative_to(ROOT).parts)
        for level, name in imports(path):
            first = name.split(".")[0]
            if level == depth:
                assert first in ALLOWED[package] | {"__version__"}, f"{path}: {name}"
            assert level <= depth, f"{path}: {name}"
            if level == 0:
                assert first != "fedclip", f"{path}: imports inside the package are relative"
                assert first not in PACKAGES, f"{path}: {name}"
                assert package == "extract" or first not in NOT_FOR_FEDERATE, f"{path}: {name}"


def test_no_imports_run_in_a_circle() -> None:
    def name_of(path: Path) -> str:
        parts = path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    paths = {name_of(path): path for package in PACKAGES for path in modules(package)}
    graph: dict[str, set[str]] = {module: set() for module in paths}
    for module, path in paths.items():
        folders = path.relative_to(ROOT).parts[:-1]
        for level, name in imports(path):
            asked = ".".join([*folders[: len(folders) - level + 1], name])
            if level and asked in paths:
                graph[module].add(asked)
    assert sum(map(len, graph.values())) > len(paths)
    TopologicalSorter(graph).prepare()  # raises an error that shows the circle


def test_the_federation_runs_where_no_encoder_is_installed(hangs: int) -> None:
    code = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_FOR_FEDERATE!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import pkgutil
from importlib.util import find_spec
import fedclip.cache, fedclip.federate
for package in (fedclip.cache, fedclip.federate):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if find_spec("flwr") or not module.name.startswith("fedclip.federate.flower."):
            __import__(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=hangs)


def test_every_package_of_the_tree_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(["fedclip", *path.parent.relative_to(ROOT).parts])
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == {"fedclip", *folders}


def test_a_wheel_installs_nothing_but_fedclip(tmp_path: Path) -> None:
    source = tmp_path / "any-name"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed"):
        shutil.copy(ROOT / name, source)
    model = (ROOT / "extract" / "demo" / "tinyclip").iterdir()
    sources = (path for name in FOLDERS for path in modules(name))
    grids = (ROOT / "federate" / "ablations" / "grids").glob("*.toml")
    for path in (*ROOT.glob("*.py"), *sources, *model, *grids):
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    code = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fedclip"}
    assert {
        "fedclip/py.typed",
        "fedclip/cli.py",
        "fedclip/federate/strategies/fedavg.py",
        "fedclip/federate/ablations/grids/strategies.toml",
        "fedclip/extract/demo/tinyclip/open_clip_config.json",
        "fedclip/extract/demo/tinyclip/open_clip_model.safetensors",
    } <= {*names}
    assert wheel.stat().st_size < 6_000_000
    assert not [name for name in names if name.startswith("fedclip/tests")]
