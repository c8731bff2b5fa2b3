"""Where a run on a GPU machine works, until when, and in which sizes: read from the environment, once. See RUNBOOK.md."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from gnime.cells import Reduced
from gnime.config import TARGETS, Target

WORK = Path(os.environ.get("WORK", "/tmp/gnime-gpu"))
OUT = Path(os.environ.get("OUT", WORK / "out"))
BEGAN = time.time()
DEADLINE = float(os.environ.get("DEADLINE", BEGAN + 560))  # unix seconds at which everything has ended
TINY = os.environ.get("TINY") == "1"  # sizes of a rehearsal on a CPU
DECIDED = WORK / "decided.json"  # what the smoke checks found out


def left() -> float:
    """Seconds until the deadline."""
    return DEADLINE - time.time()


def log(*words: object) -> None:
    print(f"[{time.time() - BEGAN:6.1f}]", *words, flush=True)


def put(name: str, value: object) -> None:
    """Writes one small JSON file in OUT, whole at any moment."""
    OUT.mkdir(parents=True, exist_ok=True)
    part = OUT / f".{name}"
    part.write_text(json.dumps(value, indent=1, default=str) + "\n")
    part.replace(OUT / name)


def decided() -> dict:
    """"precisions": those that work, best first; "plain": whether only the plain networks do."""
    return json.loads(DECIDED.read_text()) if DECIDED.exists() else {"precisions": ["tf32"], "plain": False}


def on_gpu() -> bool:
    """A rehearsal is a CPU's."""
    if TINY:
        return False
    import torch

    return torch.cuda.is_available()


def open_device(precision: str):
    """The GPU in that precision; on a CPU, which has no tf32, in fp32 instead of tf32."""
    import device

    gpu = 0 if on_gpu() else -1
    return device.open_device(gpu, "fp32" if precision == "tf32" and gpu < 0 else precision)


def reduced(name: str) -> Reduced:
    """The target for a rehearsal: it shows that everything runs, and nothing else."""
    classifier, injector, inverter = (
        replace(config, epochs=2, batch_size=min(32, config.batch_size))
        for config in (TARGETS[name].classifier, TARGETS[name].injector, TARGETS[name].inverter))
    return Reduced(100, classifier, injector, inverter, width=64)


def targets() -> list[Target]:
    """Those whose networks the smoke checks try."""
    return [reduced("digits").of("digits")] if TINY else [TARGETS["mnist"], TARGETS["cifar10"]]
