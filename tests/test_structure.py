"""The shape that DESIGN.md gives the package, beside the layers of test_layout.py: what is pure, thin, short and lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "gnime"
FILES = sorted(PACKAGE.rglob("*.py"))
# package or module: those of ours that it may import besides itself; of others, torch alone
PURE = {"models": set(), "explainers": set(), "metrics": set(), "ops": {"models"}}
LIGHT = {"cli", "config", "errors", "settings", "explainers", "__init__"}  # the command line answers at once


def dotted(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path, everywhere=True):
    """Absolute names of the modules that a file imports; only those at its top unless `everywhere`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["gnime", *path.relative_to(PACKAGE).parts[:-1]] if path.is_relative_to(PACKAGE) else []
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            known = {f"gnime.{dotted(file)}" for file in FILES}
            found |= (names & known) or {module}
    return found


def test_the_parser_of_imports_sees_them():
    assert imported(PACKAGE / "explainers/lrp.py") >= {"torch", "gnime.explainers.stack"}
    assert imported(PACKAGE / "cli.py") >= {"gnime.pipeline", "gnime.config", "argparse"}
    assert "gnime.pipeline" not in imported(PACKAGE / "cli.py", everywhere=False)


def test_no_import_leads_back():
    graph = {f"gnime.{dotted(path)}": imported(path) for path in FILES}
    path = []

    def visit(name):
        assert name not in path, f"{' -> '.join(path[path.index(name):])} -> {name}"
        path.append(name)
        for other in sorted(graph[name] & graph.keys()):
            if other != "gnime.__init__":
                visit(other)
        path.pop()

    lazy = "gnime.explainers"  # the registry names its explainers, which import from its package
    graph[lazy] = imported(PACKAGE / "explainers/__init__.py", everywhere=False)
    for name in graph:
        visit(name)


PURE_FILES = [path for path in FILES if dotted(path).split(".")[0] in PURE]


@pytest.mark.parametrize("path", PURE_FILES, ids=dotted)
def test_networks_explainers_and_metrics_import_torch_alone(path):
    own = dotted(path).split(".")[0]
    for module in imported(path):
        root, *below = module.split(".")
        allowed = {"torch", "pytorch_msssim"} if own == "metrics" else {"torch"}
        inside = root == "gnime" and below and below[0] in {own, *PURE[own]}
        assert inside or root in allowed or root in sys.stdlib_module_names, module


@pytest.mark.parametrize("path", PURE_FILES, ids=dotted)
def test_what_is_pure_is_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            taken = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len(taken) - (taken[:1] == ["self"]) <= 6, node.name


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_what_the_command_line_imports_first_is_light(name):
    path = PACKAGE / f"{name}.py"
    path = path if path.exists() else PACKAGE / name / "__init__.py"
    allowed = {f"gnime.{light}" for light in LIGHT} | {"gnime"}
    for module in imported(path, everywhere=False):
        assert module in allowed or module.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("script", ["prepare", "train", "eval"])
def test_scripts_are_thin(script):
    path = REPOSITORY / f"{script}.py"
    assert imported(path) == {"sys", "gnime.cli"}
    assert len(path.read_text().splitlines()) <= 12


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, node.name


def test_rarely_needed_packages_wait_until_they_are():
    code = "import sys, gnime.pipeline; print(*sorted({'torchvision', 'sklearn', 'hickle'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
