"""Defences that are fitted on the defender's half: found in their file, or fitted in seconds and saved."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints import load_checkpoint, require, save_checkpoint
from ..device import Device, full_fp32
from ..entries import load
from ..errors import GnimeError
from ..networks import TrainedModel, rebuild_from
from ..registry import DEFENCES, Row
from ..store import artifact_lock, exists
from ..system import commit, say, say_once, warn
from . import DefenceInputs, DefenderData, Protect


def fitted(inputs: DefenceInputs, **parameters: object) -> Protect:
    """The map of the fitted module. Its `fit` took the parameters."""
    return lambda explanation, prediction, image, rows: inputs.fitted(explanation, prediction)


@dataclass
class FitTask:
    """A fitted defence that a run needs.

    Attributes:
        row: what is published with it.
        path, root, identity: its file under the run's root, and the plain data that decides its buffers.
        data: what it is fitted on, read where its file is missing.
    """

    row: Row
    path: Path
    root: Path
    identity: dict
    data: Callable[[], DefenderData]


def load_or_fit(task: FitTask, device: Device) -> TrainedModel:
    """The defence of `task.path`: used if it is there, fitted if not. Warns where it has less than was asked for.

    Raises:
        GnimeError: the file is damaged or belongs to another run.
    """
    path = task.path
    with artifact_lock(path, task.root, device):
        there = exists(path, task.root)
        device.barrier()
        if there:
            say_once(f"{task.row.name:<13} {path}: found")
        elif device.rank == 0:
            _fit(task)
        device.barrier()
    checkpoint = load_checkpoint(path)
    if not checkpoint.ours:
        raise GnimeError(f"{path}: does not say what made it; move it away and run the command again")
    require(path, checkpoint.made_by, task.identity)
    network = rebuild_from(checkpoint, path)
    if warning := checkpoint.extra.get("warning"):
        warn(f"{task.row.name}: {warning}")
    return TrainedModel(network.to(device.torch), checkpoint.digest, checkpoint.extra, checkpoint.made_by)


def _fit(task: FitTask) -> None:
    began = time.monotonic()
    with torch.no_grad(), full_fp32():
        data = task.data()
        if not data.class_means.isfinite().all():
            raise GnimeError(f"{task.row.name}: an explanation of the defender's half is not finite; move the explanations "
                             "away from aux/ and run prepare.py again")
        made = load(DEFENCES[task.row.defence].fit)(data, **task.row.parameters)
        if not all(tensor.isfinite().all() for tensor in made.tensors.values()):
            raise GnimeError(f"{task.row.name}: its fit is not finite; leave the row out, or give another victim")
    seconds = round(time.monotonic() - began, 2)
    report = made.report | {"seconds": seconds, "commit": commit(), "protects": data.protects}
    save_checkpoint(task.path, made.tensors, made.spec, task.identity, report)
    say(f"{task.row.name:<13} {task.path}: fitted in {seconds:.1f} s")
