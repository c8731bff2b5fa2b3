"""The victim's predictions and explanations of all images of a run, written to disk batch by batch."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from . import arrays
from .batches import AT_ONCE, CHUNK, gather_rows, iter_batches, slices
from .checkpoints import require
from .config import Run
from .data import Data
from .device import Device, full_fp32
from .errors import GnimeError, Unfinished
from .registry import EXPLAINERS
from .store import Paths, artifact_lock, exists, weights_digest
from .system import say, warn

COMPARED = 32  # of somebody else's maps are made anew
SAME_MAPS = 0.9  # correlation with them from which they are taken as the same


def publish(logits: Tensor, form: str) -> Tensor:
    """What a service publishes of its predictions (n, classes), in the same shape; `form` is a name in `config.PUBLISHED`.

    "label" is 1 at the predicted class, of equal logits the first, and 0 elsewhere. "nothing" is zeros.
    """
    if form == "probabilities":
        return logits.softmax(1)
    if form == "label":
        return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    return torch.zeros_like(logits) if form == "nothing" else logits


def predict(victim: nn.Module, data: Data, device: Device, run: Run) -> np.ndarray:
    """The victim's predictions of all images as the run publishes them, (n, classes) float32, in a temporary file in `aux/`."""
    found = arrays.scratch((len(data.images), len(data.classes)), np.float32, Paths(run).aux)
    with torch.no_grad(), full_fp32():
        for rows, (images,) in iter_batches([data.images], range(len(data.images)), device.torch):
            logits = victim(images)
            if not logits.isfinite().all():
                raise GnimeError("victim: its predictions are not finite, so its weights are not sound; give others")
            found[rows.start : rows.stop] = publish(logits, run.published).cpu().numpy()
    return found


def explainer(run: Run) -> tuple[Callable[[nn.Module, Tensor], Tensor], int | None]:
    """The run's explainer, and the batch size that its maps depend on; None: they do not depend on it."""
    function, pool = EXPLAINERS[run.xai].load(), _pool(run)
    return (functools.partial(function, pool=pool) if pool else function), pool


def _pool(run: Run) -> int | None:
    """Number of images over which Grad-CAM's channel weights are averaged; None: each image has weights of its own."""
    return run.target.gradcam_pool if run.xai == "gradcam" and run.repeats("gradcam") else None


@dataclass(frozen=True)
class ExplanationTask:
    """The parts of a run that decide its explanations."""

    run: Run
    data: Data
    victim: nn.Module
    victim_digest: str

    def identity(self) -> dict:
        """The record of the explanations' file. It has the version of the explainer if that is not 1."""
        version = EXPLAINERS[self.run.xai].version
        return {"kind": "explanations", "target": self.run.target.name, "xai": self.run.xai, "images": self.data.digest,
                "victim": self.victim_digest, "pool": _pool(self.run)} | ({"version": version} if version > 1 else {})


def protects(run: Run, data: Data, victim: nn.Module, maps: Sequence[int]) -> dict:
    """The service that a defence is made for, as plain data: `Protected` refuses any other. maps: shape of one map."""
    return {"victim": weights_digest(victim), "xai": run.xai, "version": EXPLAINERS[run.xai].version, "pool": _pool(run),
            "image": list(data.images.shape[1:]), "maps": list(maps), "classes": len(data.classes),
            "published": run.published}


def load_explanations(task: ExplanationTask, paths: Paths, device: Device, make: bool) -> arrays.Array:
    """The explanations of all images, (n, K, h, w) in [0, 1], from `aux/`. If they are missing and `make`, they are computed.

    Raises:
        GnimeError: they are missing and not `make`; or the file is damaged, or of another victim, explainer or other images.
    """
    path, run = paths.explanations, task.run
    with artifact_lock(path, paths.root, device):
        finished = exists(path, paths.root)
        device.barrier()
        if finished:
            say(f"explanations  {path}: found")
        elif make:
            _make(task, path, device)
        else:
            raise Unfinished(f"{path} is missing; make it with: {run.command('prepare')}")
        device.barrier()
    maps = arrays.load(path)
    function, _ = explainer(run)
    image = torch.zeros(1, *task.data.images.shape[1:], device=device.torch)
    shape = (len(task.data.images), *function(task.victim, image).shape[1:])
    if maps.rows.shape != shape or maps.rows.dtype.kind != "f":
        raise GnimeError(f"{path}: {maps.rows.dtype} {maps.rows.shape}, this run needs float32 {shape}; "
                         f"move it away, or choose another --root")
    if maps.record is None:
        warn(f"{path} has no record of how it was made; it is used as it is")
        _check_foreign(maps)
        _check_order(maps, task, device)
    else:
        require(path, maps.record, task.identity())
    return maps


def _check_foreign(maps: arrays.Array) -> None:
    for part in slices(range(len(maps.rows)), CHUNK):
        rows = maps.rows[part.start : part.stop]
        if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1):
            raise GnimeError(f"{maps.path}: values outside [0, 1] in rows {part.start} to {part.stop - 1}; scale them to it")


def _check_order(maps: arrays.Array, task: ExplanationTask, device: Device) -> None:
    """Compares a few of somebody else's maps with the victim's, made anew.

    Raises:
        GnimeError: they fit other images as well as their own, so the rows are in another order or of another victim.
    """
    function, pool = explainer(task.run)
    images = task.data.images
    rows = torch.linspace(0, len(images) - 1, min(len(images), pool or COMPARED)).long()
    with full_fp32():
        anew = function(task.victim, gather_rows(images, rows, device.torch)).float().cpu().flatten(1)
    found = gather_rows(maps.rows, rows, torch.device("cpu")).flatten(1)
    correlation = torch.corrcoef(torch.cat([found, anew]).double()).nan_to_num()[: len(rows), len(rows) :]
    own, other = correlation.diagonal().mean().item(), (correlation.sum() - correlation.trace()).item()
    other /= len(rows) * (len(rows) - 1)
    if own >= SAME_MAPS:
        return
    what = f"{maps.path}: correlates by {own:.2f} with the maps that {task.run.xai} makes of the same images"
    if own - other < 0.1:
        raise GnimeError(f"{what}, and by {other:.2f} with those of other images: its rows are in another order than the "
                         f"images, or another victim explained them; row i explains row i of the images "
                         f"({Paths(task.run).files.name} names their pictures)")
    warn(f"{what}: another explainer or another victim made it")


def _make(task: ExplanationTask, path: Path, device: Device) -> None:
    began = time.monotonic()
    n = len(task.data.images)
    bar = tqdm(total=n, desc=task.run.xai, unit="image", disable=None if device.rank == 0 else True, leave=False)
    with full_fp32(), bar:
        batches = _explain(task, device)
        batch = next(batches)
        if device.rank > 0:
            for _ in batches:
                pass
            return
        with arrays.create(path, (n, *batch.shape[1:]), "float32", task.identity()) as writer:
            while batch is not None:
                if not np.isfinite(batch).all():
                    raise GnimeError(f"--xai {task.run.xai}: the victim's maps are not finite, so its weights are not sound; "
                                     "nothing was written")
                writer.write(batch)
                bar.update(len(batch))
                batch = next(batches, None)
    seconds = time.monotonic() - began
    say(f"explanations  {path}: made in {seconds:.0f} s, {n / seconds:.0f} images/s")


def _explain(task: ExplanationTask, device: Device) -> Iterator[np.ndarray]:
    """Batches of maps in order. In a distributed run the processes compute batches in turn, and the first receives all."""
    function, pool = explainer(task.run)
    batches = slices(range(len(task.data.images)), pool or AT_ONCE[device.torch.type])
    for start in range(0, len(batches), device.world):
        turn = batches[start : start + device.world]  # one batch per process
        maps = None
        if device.rank < len(turn):
            images = gather_rows(task.data.images, turn[device.rank], device.torch)
            maps = function(task.victim, images).float().cpu().numpy()
        if device.world > 1:
            gathered = [None] * device.world if device.rank == 0 else None
            dist.gather_object(maps, gathered)
            yield from ([m for m in gathered if m is not None] if device.rank == 0 else [maps])
        else:
            yield maps
