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
    {"runtime", "explainers", "models", "metrics"},
    {"artifacts", "ops"},
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


def imports(path):
    """The modules of ours that a file imports, at any depth."""
    ours = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            level = len(path.relative_to(PACKAGE).parts) - node.level
            inside = path.parent != PACKAGE and level == 1
            if not inside:
                ours |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return ours


FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.parent.name if path.parent != PACKAGE else path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    rank = {name: i for i, row in enumerate(LAYERS) for name in row}
    above = {name for name in imports(path) if rank.get(name, 0) > rank[name_of(path)]}
    assert not above, f"{path.name} imports from above: {above}"


def test_every_module_has_a_layer():
    assert {name_of(path) for path in FILES} == set().union(*LAYERS)


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
