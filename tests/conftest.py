import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the networks here are small

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from recording import FILES, unshuffled  # noqa: E402

from gnime import cells, pipeline, reproduce, system  # noqa: E402
from gnime.cli import main, resolve  # noqa: E402
from gnime.config import target  # noqa: E402
from gnime.experiment import Experiment  # noqa: E402
from gnime.report import figures, seeds  # noqa: E402

HERE = Path(__file__).parent

# hypothesis draws the same examples in every run, so that a change is judged by what it changes;
# `pytest --hypothesis-profile default` explores new ones
settings.load_profile("ci")


# started in the background of a shell, a process ignores Ctrl-C, and so would the trainings that tests stop by it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--vectors", default=str(HERE / "vectors"), help="folder of reference vectors (*.npz)")


def pytest_generate_tests(metafunc):
    """A test with an argument `<kind>_file` runs once for each file `<kind>_*.npz` of --vectors."""
    for kind in ("explainers", "gnime", "metrics"):
        if f"{kind}_file" in metafunc.fixturenames:
            files = sorted(Path(metafunc.config.getoption("--vectors")).glob(f"{kind}_*.npz"))
            empty = [pytest.param(None, marks=pytest.mark.skip(reason=f"no {kind}_*.npz in --vectors"))]
            metafunc.parametrize(f"{kind}_file", files or empty, ids=lambda f: f.stem if f else "none")


# the files that take longest, in this order: of two processes, neither is left with one of them at the end
LONGEST = ("test_gpu_kit", "test_recipes", "test_cuda", "test_scripts", "test_reproduce", "test_package", "test_artifacts",
           "test_fuzz", "test_parallel", "test_pipeline", "test_later_runs", "test_official", "test_cli", "test_training")


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Scripts:
    """Calls the scripts in this process, on the CPU, with the digits cut small."""

    flags = ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--epochs", "2"]

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, script, root, *flags, small=True):
        """(exit code, standard output, the lines of an error)."""
        self.capsys.readouterr()
        try:
            code = main(script, [*(self.flags if small else []), "--root", str(root), *map(str, flags)])
        except SystemExit as stopped:
            code = stopped.code
        out, err = self.capsys.readouterr()
        return code, out, [line for line in err.splitlines() if not line.startswith("warning:")]

    def fails(self, script, root, *flags, small=True):
        """(exit code, the one line that says why)."""
        code, _, lines = self(script, root, *flags, small=small)
        assert len(lines) == 1, lines
        assert re.match(rf"{script}\.py: error: \S", lines[0]), lines
        return code, lines[0]


@pytest.fixture
def scripts(capsys):
    return Scripts(capsys)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory):
    """A root where the three scripts ran for lrp. Not to be changed; see `root_copy`."""
    root = tmp_path_factory.mktemp("small")
    for script in ("prepare", "train", "eval"):
        assert main(script, [*Scripts.flags, "--root", str(root)]) == 0
    return root


@pytest.fixture
def root_copy(small_root, tmp_path):
    return Path(shutil.copytree(small_root, tmp_path / "copy"))


TINY = cells.Reduced(
    60, *(replace(getattr(target("digits"), stage), epochs=2) for stage in ("classifier", "injector", "inverter")), width=64)


class Runner:
    """Calls the runner of the paper's table in a folder of its own, the digits cut to what `small_root` is."""

    def __init__(self, capsys, folder):
        self.capsys, self.folder = capsys, folder
        self.result = folder / "results/reduced/digits_lrp_seed0.json"
        self.root = folder / ".reproduce/reduced_seed0"

    def __call__(self, *flags):
        """(exit code, standard output, the lines of an error)."""
        self.capsys.readouterr()
        try:
            code = reproduce.main([str(flag) for flag in flags])
        except SystemExit as stopped:
            code = stopped.code
        out, err = self.capsys.readouterr()
        return code, out, [line for line in err.splitlines() if not line.startswith("warning:")]

    def fails(self, *flags):
        """(exit code, the one line that says why)."""
        code, _, lines = self(*flags)
        assert len(lines) == 1 and lines[0].startswith("python -m gnime.reproduce: error: "), lines
        return code, lines[0]

    def measured(self):
        return json.loads(self.result.read_text())


@pytest.fixture
def no_pictures(monkeypatch):
    """Most of a small evaluation's time; `small_root` has them, and one that fails is only a warning."""
    monkeypatch.setattr(pipeline, "_pictures", lambda *_: None)


@pytest.fixture
def runner(capsys, tmp_path, monkeypatch, no_pictures):
    monkeypatch.setitem(cells.REDUCED, "digits", TINY)
    monkeypatch.setattr(figures, "injector_losses", lambda *_: None)
    monkeypatch.setattr(seeds, "frontiers", lambda *_: {})
    monkeypatch.setattr(system, "_deadline", math.inf)  # a --budget ends with its test
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(HERE.parent / "docs/table1.csv", tmp_path / "docs")
    return Runner(capsys, tmp_path)


@pytest.fixture(scope="session")
def arrays(small_root):
    """What the service of `small_root` sent, in the order in which a record of it is shuffled to what `small_root` has."""
    run = Experiment(resolve("eval", ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--root",
                                      str(small_root)]))
    rows = run.data.images, run.data.labels, run.predictions, run.explanations.rows
    return {name: unshuffled(np.array(array)) for name, array in zip(FILES, rows, strict=True)}
