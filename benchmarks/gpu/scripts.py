"""Smoke checks of the whole: the three scripts on the embedded digits, and the project's own tests of CUDA."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import env

from gnime import cli
from gnime.checkpoints import load_checkpoint
from gnime.registry import ROWS

PROJECT = Path(__file__).resolve().parents[2]


def check_scripts(precision: str) -> dict:
    """Every row, and an injector's training that is stopped and goes on. Returns seconds of each command, and MSEs."""
    root = env.WORK / f"scripts_{precision}"
    return _run_scripts(root, precision, list(ROWS))


def check_deterministic() -> dict:
    """Two runs with `--deterministic`: whether they end with the same injector."""
    roots = [env.WORK / f"deterministic_{i}" for i in range(2)]
    times = [_run_scripts(root, "fp32", ["expmi", "gnime"], "--deterministic") for root in roots]
    digests = [load_checkpoint(root / "models/def/digits_lrp/injector.pt").digest for root in roots]
    return times[0] | {"repeats itself": digests[0] == digests[1]}


def _run_scripts(root: Path, precision: str, settings: list[str], *more: str) -> dict:
    shutil.rmtree(root, ignore_errors=True)
    gpu = 0 if env.on_gpu() else -1
    flags = ["--target", "digits", "--xai", "lrp", "--root", root, "--gpu", gpu, *more]
    flags += ["--precision", "fp32" if precision == "tf32" and gpu < 0 else precision]
    flags += ["--limit", 100, "--width", 64] if env.TINY else []
    seconds = {}
    for script, *own in (("prepare", "--epochs", 3), ("train", "--epochs", 1), ("train", "--epochs", 3),
                         ("eval", "--epochs", 2, "--settings", *settings)):
        began, told = time.perf_counter(), io.StringIO()
        with contextlib.redirect_stdout(told):
            code = cli.main(script, [str(flag) for flag in (*flags, *own)])
        assert code == 0, f"{script} ended with {code}: {told.getvalue()[-500:]}"
        seconds[f"{script} {own[1]}"] = round(time.perf_counter() - began, 2)
        if (script, own) == ("train", ["--epochs", 3]):
            assert "goes on from epoch 1" in told.getvalue(), "the injector did not go on"
    result = json.loads((root / "figures/digits_lrp/results.json").read_text())
    mse = {name: round(numbers["mse"], 5) for name, numbers in result["settings"].items()}
    return {"seconds": seconds, "mse": mse, "device": result["hardware"]["device"], "precision": result["precision"]}


def check_pytest() -> str:
    """The tests of the CUDA paths and of the fast formulations; returns pytest's last line."""
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py",
                          "tests/test_formulations.py"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, (run.stdout + run.stderr)[-1500:]
    return run.stdout.strip().splitlines()[-1]
