"""The shape of the package: imports run one way, files and functions are short, the command line answers at once."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "gnime"
FILES = sorted(PACKAGE.rglob("*.py"))
# from the bottom up; a module may import from its own row and from earlier ones
LAYERS = [
    {"errors", "words", "npy", "ownfiles", "regular", "threads", "processor", "products", "_commit"},
    {"config", "filenames", "registry", "entries", "streams", "ownentries", "flagtypes", "flags", "paths", "targets"},
    {"system"}, {"device", "parallel"}, {"store"}, {"foreign"}, {"checkpoints", "arrays"},
    {"models", "explainers", "metrics"}, {"ops"},
    {"batches", "graphs", "duplicates", "pictures", "folders", "originals", "records", "sources"}, {"making"},
    {"data", "checks", "resuming"}, {"training"}, {"networks"}, {"explanations", "defences", "victims", "authors"},
    {"experiment"}, {"recorded"}, {"attackers"}, {"evaluate"}, {"references"}, {"comparison"},
    {"report", "protected", "formats"}, {"pipeline"}, {"cli"}, {"cells"}, {"reproduce", "export"},
    {"__init__"},  # the door, `gnime.Protected`
]
# take the network as an argument; import torch, themselves and the packages named here
PURE = {"processor": set(), "products": {"processor"}, "models": set(), "explainers": {"products"}, "metrics": set(),
        "ops": {"models", "processor", "products", "system"}}  # system: for a warning
OTHERS = {"metrics": {"pytorch_msssim"}, "ops": {"triton"}}  # libraries besides torch
# the command line answers at once
LIGHT = {"cells", "cli", "config", "entries", "errors", "filenames", "flags", "flagtypes", "ownentries", "ownfiles", "registry",
         "streams", "targets", "threads", "words", "__init__"}


def dotted(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def top(path):
    """The module or package directly in gnime that a file is, or is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path, everywhere=True):
    """Absolute names of the modules that a file imports; only those at its top unless `everywhere`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["gnime", *path.relative_to(PACKAGE).parts[:-1]] if path.is_relative_to(PACKAGE) else []
    modules = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            modules |= (names & {f"gnime.{dotted(file)}" for file in FILES}) or {module}
    return modules


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_the_parser_of_imports_sees_them():
    assert imported(PACKAGE / "explainers/lrp.py") >= {"torch", "gnime.explainers.stack"}
    assert imported(PACKAGE / "cli.py") >= {"gnime.pipeline", "gnime.config", "argparse"}
    assert "gnime.pipeline" not in imported(PACKAGE / "cli.py", everywhere=False)


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_run_one_way(path):
    rank = {name: i for i, row in enumerate(LAYERS) for name in row}
    ours = {module.split(".")[1] for module in imported(path) if module.startswith("gnime.")}
    above = {name for name in ours if rank[name] > rank[top(path)]}
    assert not above, f"{dotted(path)} imports from above: {above}"


def test_every_module_has_a_layer():
    assert {top(path) for path in FILES} == set().union(*LAYERS)


@pytest.mark.parametrize("path", [path for path in FILES if top(path) in PURE], ids=dotted)
def test_what_computes_imports_torch_alone(path):
    for module in imported(path):
        root, *below = module.split(".")
        allowed = {"torch"} | OTHERS.get(top(path), set())
        inside = root == "gnime" and below and below[0] in {top(path), *PURE[top(path)]}
        assert inside or root in allowed or root in sys.stdlib_module_names, module


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_modules_that_the_command_line_imports_are_light(name):
    allowed = {f"gnime.{light}" for light in LIGHT} | {"gnime"}
    for module in imported(PACKAGE / f"{name}.py", everywhere=False):
        assert module in allowed or module.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("script", ["prepare", "train", "eval"])
def test_scripts_are_thin(script):
    path = REPOSITORY / f"{script}.py"
    assert imported(path) == {"sys", "gnime.cli"}
    assert len(path.read_text().splitlines()) <= 12


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_files_functions_and_parameter_lists_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in functions(path):
        assert node.end_lineno - node.lineno < 60, node.name
        taken = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        assert len(taken) - (taken[:1] in (["self"], ["cls"])) <= 6, node.name


def test_packages_are_imported_when_they_are_needed():
    """By --help, then by a service, then by the scripts: each in the process of the one before."""
    steps = {"import gnime.cli; gnime.cli.parser('eval').format_help()": "torch numpy h5py matplotlib hickle PIL",
             "import gnime; gnime.Protected": "torchvision sklearn hickle matplotlib captum onnx",
             "import gnime.pipeline": "torchvision sklearn hickle matplotlib"}
    code = "import sys\n" + "\n".join(f"{step}\nprint(*sorted(set({heavy.split()}) & sys.modules.keys()))"
                                     for step, heavy in steps.items())
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "\n" * len(steps)


def test_artifact_folders_hold_nothing():
    for folder in ("models", "aux", "datasets", "figures"):
        run = subprocess.run(["git", "ls-files", folder], capture_output=True, text=True, cwd=REPOSITORY, check=False)
        if run.returncode:
            pytest.skip("not a git checkout")
        assert run.stdout.split() == [f"{folder}/.gitignore"]


def test_every_section_of_the_method_that_is_cited_is_there():
    """A citation is that file and the section in quotation marks; it may run over the end of a line."""
    sections = re.findall(r"^#+ (.+)$", (REPOSITORY / "docs/method.md").read_text(), re.MULTILINE)
    files = [file for folder in ("gnime", "tests", "benchmarks") for file in (REPOSITORY / folder).rglob("*.py")]
    cited = [" ".join(name.split()) for file in files
             for name in re.findall(r'docs/method\.md\s"([^"]+)"', file.read_text())]
    assert "Kernel attacker" in cited and set(cited) <= set(sections), sorted(set(cited) - set(sections))
