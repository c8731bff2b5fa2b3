"""benchmarks/gpu: its rehearsal on a CPU from packing to results, and its parts against what they must agree with."""

import contextlib
import json
import math
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gnime import cells, ops, system
from gnime.config import Run, target
from gnime.models.classifier import Classifier
from gnime.models.inversion import Decoder, Encoder
from gnime.sources import open_source

REPOSITORY = Path(__file__).parent.parent
KIT = REPOSITORY / "benchmarks" / "gpu"
CELL, RESULT = "digits:lrp:0", "results/reduced/digits_lrp_seed0.json"


class Machine:
    """A folder in place of the GPU machine: bare, apart from the packages."""

    def __init__(self, folder, commit):
        self.packed, self.work, self.commit = folder / "packed", folder / "work", commit

    def run(self, script, *arguments, **variables):
        environment = os.environ | {"PY": sys.executable, "TINY": "1", "WORK": str(self.work), "OMP_NUM_THREADS": "1",
                                    "WHEELS": "0", **variables}
        run = subprocess.run(["bash", str(script), *map(str, arguments)], env=environment, cwd=self.packed.parent,
                             capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def read(self, name):
        return json.loads((self.work / name).read_text())


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """After the first command: packed from this checkout with its uncommitted changes, set up, one check, benchmark, a cell."""
    git = subprocess.run(["git", "stash", "create"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("not a git checkout: nothing can be packed from it")
    commit = git.stdout or subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True,
                                          check=True).stdout
    made = Machine(tmp_path_factory.mktemp("gpu"), commit.strip())
    made.run(KIT / "run.sh", "pack", "digits", "-", made.packed, made.commit)
    made.run(made.packed / "run.sh", "first", LIMIT="900", SMOKE="600", CHECKS="nets:fp32",
             BENCH="epochs ways pooling upsampling", BENCH_SECONDS="600", CELLS=CELL, SETTINGS="predmi expmi", MARGIN="30")
    return made


def test_rehearsal(machine):
    smoke, bench, result = (machine.read(file) for file in ("out/smoke.json", "out/bench.json", RESULT))
    errors = {name: found["error"] for name, found in smoke["checks"]["nets:fp32"]["found"].items()}
    assert {"digits injector", "digits expmi of Grad-CAM", "digits victim"} <= errors.keys()
    assert 0 < max(errors.values()) < 1e-4  # fp32: other formulations, the same numbers
    assert smoke["checks"]["nets:fp32"]["ok"] and smoke["decided"] == {"precisions": ["fp32"], "plain": False}

    assert not [name for name in bench if name.startswith("failed")]
    epochs = [value for name, value in bench.items() if "an epoch of" in name]
    assert len(epochs) == 4 and all(0 < value["share of matrix rate"] < 2 for value in epochs)
    steps = {name: ways for name, ways in bench.items() if "a step" in name}
    assert len(steps) == 4  # injector and ExpMI, tf32 and bf16
    for name, ways in steps.items():
        assert all(math.isfinite(number) for number in ways["eager"].values()), name
        assert "CUDA" in ways["graph"] or "cuda" in ways["graph"], "a CPU has no graphs, and the benchmark goes on"
    forms = [value for name, value in bench.items() if "ReLU and pooling" in name]
    assert len(forms) == 2 and all(len(value["plain"]) == 4 for value in forms)  # tf32 and bf16; the kernels need a GPU
    assert all(bench[f"injector {precision}: without fused pooling"]["eager"]["ms"] > 0 for precision in ("tf32", "bf16"))
    upsampling = [way for name, value in bench.items() if "->" in name for way in value.values()]
    assert len(upsampling) == 12 and all(isinstance(milliseconds, list) for milliseconds in upsampling)

    assert result["settings"].keys() == {"predmi", "expmi"} and result["configuration"]["limit"] == 100
    assert result["commit"] == machine.commit[:12]
    with tarfile.open(machine.work / "out/gpu.tar.gz") as tar:
        names = tar.getnames()
    assert {RESULT, "logs/digits_lrp_0.txt", "smoke/nets_fp32.json", "decided.json"} <= set(names)
    assert "root/reduced_seed0/figures/digits_lrp/comparison.png" in names


def test_the_shell_script_is_one():
    subprocess.run(["bash", "-n", str(KIT / "run.sh")], check=True)
    wrong = subprocess.run(["bash", str(KIT / "run.sh"), "frist"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "run.sh first" in wrong.stdout


def test_the_runbook_names_every_variable():
    sources = "".join(path.read_text() for path in KIT.iterdir() if path.suffix in (".py", ".sh"))
    table = [line for line in (KIT / "RUNBOOK.md").read_text().splitlines() if line.startswith("| `")]
    named = {name for line in table for name in line.split("|")[1].replace("`", "").replace(",", " ").split()}
    read = {name for name in named if f'environ.get("{name}"' in sources or f"${{{name}:" in sources}
    assert named == read
    assert named >= {"CELLS", "SETTINGS", "PRECISION", "MARGIN", "LIMIT", "TOTAL", "SMOKE", "BENCH", "TINY", "IN"}


@pytest.fixture
def kit(monkeypatch, tmp_path):
    """Imports a module of the kit, whose work is in `tmp_path`; neither it nor what it changes stays."""
    monkeypatch.setattr(cells, "REDUCED", dict(cells.REDUCED))
    monkeypatch.setattr(ops, "FAST", dict(ops.FAST))
    monkeypatch.setattr(system, "_deadline", system._deadline)
    for folder in (KIT.parent, KIT):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    monkeypatch.setenv("TINY", "1")
    before = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - before:
        if str(KIT.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_cell_that_its_deadline_cuts_leaves_the_finished_settings_and_goes_on(machine, kit, monkeypatch, capsys):
    """As `run.sh cells` does, with the cells in this process."""
    (machine.work / RESULT).unlink()
    monkeypatch.setenv("WORK", str(machine.work))
    env, cells, cell, collect = map(kit, ("env", "cells", "cell", "collect"))

    def popen(command, env, stdout, stderr):
        with contextlib.redirect_stdout(stdout):
            code = cell.main(*command[2:])
        return SimpleNamespace(poll=lambda: code, wait=lambda: code)

    def run(margin, *settings):
        """What is told of the result, and the result."""
        for name, value in {"SETTINGS": settings, "CELLS": [CELL], "MARGIN": margin}.items():
            monkeypatch.setattr(cells, name, value)
        monkeypatch.setattr(env, "DEADLINE", time.time() + 300)
        cells.main()
        capsys.readouterr()
        collect.wait(5)
        return capsys.readouterr().out, machine.read(RESULT)

    monkeypatch.setattr(cells, "subprocess", SimpleNamespace(Popen=popen, STDOUT=subprocess.STDOUT))
    monkeypatch.chdir(machine.work)
    left_out = "not finished, left out: gnime"
    out, result = run(300, "predmi", "expmi", "gnime")  # the margin begins at once, so nothing more is trained
    assert result["settings"].keys() == {"predmi", "expmi"} and "--settings predmi expmi" in result["command"]
    assert left_out in result["warnings"] and left_out in out
    out, result = run(30, "gnime")
    assert result["settings"].keys() == {"predmi", "expmi", "gnime"} and left_out not in result["warnings"]


def test_mosaics_are_the_same_images_in_the_same_order(kit, tmp_path):
    numbers = np.random.default_rng(0)
    originals, archive = tmp_path / "originals/cifar10", tmp_path / "cifar10.zip"
    with zipfile.ZipFile(archive, "w") as pictures:
        folders = ("test", "bird", 3), ("train", "bird", 21), ("train", "airplane", 30), ("test", "airplane", 2)
        for split, kind, count in folders:
            for i in numbers.permutation(count):  # the archive is in no order
                path = originals / split / kind / f"picture_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(numbers.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
                pictures.write(path, str(path.relative_to(originals)))
    mosaic = kit("mosaic")
    parts = tmp_path / "one/cifar_0.tar", tmp_path / "two/cifar_1.tar"
    mosaic.write_parts(archive, parts)
    for part in parts:
        mosaic.unpack_part(part, tmp_path / "unpacked/cifar10")

    def source(folder):
        return open_source(Run("prepare", target("cifar10"), "lrp", tmp_path, tmp_path / folder))

    expected, found = source("originals"), source("unpacked")
    assert len(found.labels) == 56 and found.classes == expected.classes == ["airplane", "bird"]
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.read(range(56)), expected.read(range(56)))


def test_networks_come_back_in_pieces(kit, tmp_path, monkeypatch):
    collect = kit("collect")
    monkeypatch.setattr(collect, "PIECE", 7000)
    models = tmp_path / "work/root/paper_seed0/models"
    content = {"inv/mnist_expmi_lrp.pt": b"one" * 5000, "inv/mnist_expmi_lrp.state.pt": b"state", "victim/mnist.pt": b"victim",
               "def/mnist_lrp/injector.pt": b"two", "def/mnist_lrp/epoch_0050.pt": b"older"}
    for name, data in content.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(data)

    def back(patterns):
        pieces = collect.networks(patterns)
        assert all(piece.stat().st_size <= 7000 for piece in pieces)
        into = tmp_path / f"back{len(patterns)}"
        collect.join(tmp_path / "work/out", into)
        files = {str(file.relative_to(into / "paper_seed0/models")): file.read_bytes() for file in into.rglob("*.pt")}
        return len(pieces), files

    count, files = back([])
    assert count > 2 and files == {name: content[name] for name in ("inv/mnist_expmi_lrp.pt", "def/mnist_lrp/injector.pt")}
    assert back(["victim/*.pt"])[1] == {"victim/mnist.pt": b"victim"}


def test_what_the_cells_use_after_the_checks(kit):
    decide = kit("smoke").decide

    def outcomes(**ok):
        return {name.replace("_", ":"): {"ok": value} for name, value in ok.items()}

    assert decide(outcomes(nets_tf32=True, nets_bf16=True), True) == {"precisions": ["tf32", "bf16"], "plain": False}
    assert decide(outcomes(nets_tf32=True, nets_bf16=True, scripts_tf32=False), True)["precisions"] == ["bf16", "tf32"]
    assert decide(outcomes(nets_tf32=None, nets_bf16=False), True)["precisions"] == ["tf32"]  # late is no failure
    failed = outcomes(nets_tf32=False, nets_bf16=False, plain_tf32=False, plain_bf16=True)
    assert decide(failed, True) == {"precisions": ["bf16"], "plain": True}
    assert decide(outcomes(nets_tf32=False, nets_bf16=False), True) == {"precisions": ["fp32"], "plain": False}
    assert decide(outcomes(nets_fp32=True), False) == {"precisions": ["fp32"], "plain": False}


def test_the_plain_fallback_accelerates_nothing(kit, monkeypatch, tmp_path):
    steps, cell, env = kit("steps"), kit("cell"), kit("env")
    fast = set(ops.FAST.values())
    monkeypatch.setattr(steps, "PLAIN", True)
    layers = {type(m) for kind in ("expmi", "victim") for net in steps.networks(kind, *tiny(steps, env)) for m in net.modules()}
    assert {Encoder, Decoder, Classifier} <= layers and not layers & fast

    monkeypatch.setattr(env, "decided", lambda: {"precisions": ["fp32"], "plain": True})
    cell.prepare()
    assert type(ops.accelerate(Encoder())) is Encoder


def test_a_cell_asks_for_its_settings_at_once(kit, monkeypatch):
    cell, told = kit("cell"), []
    monkeypatch.setattr(cell.reproduce, "main", told.append)
    cell.main("bf16", CELL, "predmi,expmi", "100", "30")
    options = cell.reproduce.parser().parse_args(told[0])
    assert (options.preset, options.targets, options.xai, options.seeds) == ("reduced", ["digits"], ["lrp"], [0])
    assert (options.settings, options.jobs, options.budget, options.margin) == (["predmi", "expmi"], 2, 100, 30)
    assert options.precision == "bf16" and "--precision" not in cell.flags("fp32", CELL, ["predmi"])


def tiny(steps, env):
    chosen = env.targets()[0]
    return chosen, steps.sides(chosen)[""], torch.device("cpu")


def test_a_step_has_the_plain_networks_losses_and_gradients(kit, monkeypatch):
    steps, ways = kit("steps"), kit("ways")
    for kind in steps.BATCH:
        found = ways.measure(kind, "fp32", ("eager",), 3)["eager"]
        monkeypatch.setattr(steps, "PLAIN", True)
        expected = ways.measure(kind, "fp32", ("eager",), 3)["eager"]
        monkeypatch.setattr(steps, "PLAIN", False)
        for number in ("loss", "gradient norm"):
            assert found[number] == pytest.approx(expected[number], rel=1e-3), (kind, number)


def test_compiled_steps_are_compared_with_eager_ones(kit, monkeypatch):
    ways = kit("ways")
    monkeypatch.setattr(ways, "BACKEND", "eager")  # what is traced, without the minutes of code generation
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    found = ways.measure("injector", "fp32", ("eager", "compiled"), 3)
    assert graphs["unique_graphs"] >= before + 2, "both networks were traced"
    for number in ("loss", "gradient norm"):
        assert found["compiled"][number] == pytest.approx(found["eager"][number], rel=1e-3)


def test_all_upsampling_formulations_are_one_function(kit):
    upsampling = kit("upsampling")
    x, weight, bias = (torch.randn(shape, dtype=torch.double) for shape in ((2, 6, 5, 4), (3, 6, 3, 3), (3,)))
    expected = torch.nn.functional.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, bias, padding=1)
    assert len(upsampling.WAYS) == 5
    for name, way in upsampling.WAYS.items():
        torch.testing.assert_close(way(x, weight, bias), expected, msg=name)


def test_the_next_cell_begins_when_the_injector_is_trained(kit, tmp_path, monkeypatch):
    cells, began = kit("cells"), []
    trained = tmp_path / "work/root/reduced_seed0/models/def/digits_lrp/injector.pt"
    trained.parent.mkdir(parents=True)
    running = SimpleNamespace(poll=lambda: None, wait=lambda: 0)

    def start(name, precision):
        began.append((name, trained.exists()))
        return running

    monkeypatch.setattr(cells, "start", start)
    monkeypatch.setattr(cells.time, "sleep", lambda seconds: trained.write_bytes(b""))
    cells.run(["digits:lrp:0", "digits:grad:0"])
    assert began == [("digits:lrp:0", False), ("digits:grad:0", True)]

    began.clear()
    monkeypatch.setattr(cells.env, "left", lambda: 1.9 * cells.MARGIN)
    cells.run(["digits:lrp:0", "digits:grad:0"])
    assert began == [("digits:lrp:0", True)], "trainings of a second cell would stop at once"


def test_a_second_run_of_cells_waits_for_the_first(kit, tmp_path, monkeypatch):
    import fcntl
    import threading

    (tmp_path / "work").mkdir()
    cells, began = kit("cells"), []
    monkeypatch.setattr(cells, "run", lambda names: began.append(time.monotonic()))
    with (tmp_path / "work/cells.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=cells.main)
        second.start()
        second.join(0.5)
        assert second.is_alive() and not began
    second.join(10)
    assert began and (tmp_path / "work/cells.done").exists()
