"""Imports run one way, and what must answer at once imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gnime"
# from the bottom up; a module may import from rows above its own, and from its own
LAYERS = [
    {"errors", "__init__"},
    {"config", "settings"},
    {"runtime", "explainers", "classifiers", "convolutions", "inversion", "metrics"},
    {"artifacts", "injector"},
    {"arrays"},
    {"sources"},
    {"data", "defences"},
    {"training"},
    {"networks", "explaining"},
    {"evaluation"},
    {"figures", "report", "tables"},
    {"pipeline", "docs"},
    {"cli"},
    {"reproduce"},
]
PURE = {"classifiers", "convolutions", "inversion", "injector", "metrics", "explainers"}  # torch alone, and each other


def imports(path):
    """(modules of ours, packages of others) that a file imports, at any depth."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            level = len(path.relative_to(PACKAGE).parts) - node.level
            inside = path.parent != PACKAGE and level == 1
            if not inside:
                ours |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.parent.name if path.parent != PACKAGE else path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    rank = {name: i for i, row in enumerate(LAYERS) for name in row}
    ours, others = imports(path)
    above = {name for name in ours if rank.get(name, 0) > rank[name_of(path)]}
    assert not above, f"{path.name} imports from above: {above}"
    if name_of(path) in PURE:
        assert others <= {"torch", "pytorch_msssim", *sys.stdlib_module_names}


def test_every_module_has_a_layer():
    assert {name_of(path) for path in FILES} == set().union(*LAYERS)


def test_files_are_short():
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > 400] == []


def test_command_line_imports_nothing_heavy():
    code = ("import sys, gnime.cli, gnime.settings, gnime.explainers; gnime.cli.parser('eval').format_help(); "
            "print([m for m in ('torch', 'numpy', 'h5py', 'matplotlib', 'hickle', 'PIL') if m in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert run.stdout.strip() == "[]"


def test_artifact_folders_hold_nothing():
    for folder in ("models", "aux", "datasets", "figures"):
        run = subprocess.run(["git", "ls-files", folder], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
        if run.returncode:
            pytest.skip("not a git checkout")
        assert run.stdout.split() == [f"{folder}/.gitignore"]
