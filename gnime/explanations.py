"""The victim's predictions and explanations for every image of a run. They stream to disk, so any number fits in memory."""

import functools
import time
from collections.abc import Callable, Iterator
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
from .store import Paths, artifact_lock, exists
from .system import say, warn


def predict(victim: nn.Module, data: Data, device: Device, folder: Path) -> np.ndarray:
    """The victim's logits for every image, (n, classes) float32, in a scratch file in `folder`."""
    logits = arrays.scratch((len(data.images), len(data.classes)), np.float32, folder)
    with torch.no_grad(), full_fp32():
        for rows, (images,) in iter_batches([data.images], range(len(data.images)), device.torch):
            logits[rows.start : rows.stop] = victim(images).cpu().numpy()
    return logits


def explainer(run: Run) -> tuple[Callable[[nn.Module, Tensor], Tensor], int | None]:
    """The run's explainer, and the number of images that it must be given at once; None: any number gives the same maps."""
    function, pool = EXPLAINERS[run.xai].load(), _pool(run)
    return (functools.partial(function, pool=pool) if pool else function), pool


def _pool(run: Run) -> int | None:
    """Images that Grad-CAM's channel weights are averaged over; None: each has its own."""
    return run.target.gradcam_pool if run.xai == "gradcam" and run.repeats("gradcam") else None


@dataclass(frozen=True)
class ExplanationTask:
    """The parts of a run that explanations follow from."""

    run: Run
    data: Data
    victim: nn.Module
    victim_digest: str

    def identity(self) -> dict:
        """Recorded with the explanations' file. The version of an explainer is told where it is not the first."""
        version = EXPLAINERS[self.run.xai].version
        return {"kind": "explanations", "target": self.run.target.name, "xai": self.run.xai, "images": self.data.digest,
                "victim": self.victim_digest, "pool": _pool(self.run)} | ({"version": version} if version > 1 else {})


def load_explanations(task: ExplanationTask, paths: Paths, device: Device, make: bool) -> arrays.Array:
    """The explanations of all images from `aux/`; `make` lets them be made.

    Raises:
        GnimeError: they are missing and may not be made, or were made by another victim or from other images.
    """
    path, run = paths.explanations, task.run
    with artifact_lock(path, device):
        there = exists(path, paths.root)
        device.barrier()
        if there:
            say(f"explanations  {path}: found")
        elif make:
            _make(task, path, device)
        else:
            raise Unfinished(f"{path} is missing; make it with: {run.command('prepare')}")
        device.barrier()
    loaded = arrays.load(path)
    function, _ = explainer(run)
    image = torch.zeros(1, *task.data.images.shape[1:], device=device.torch)
    shape = (len(task.data.images), *function(task.victim, image).shape[1:])
    if loaded.rows.shape != shape or loaded.rows.dtype.kind != "f":
        raise GnimeError(f"{path}: {loaded.rows.dtype} {loaded.rows.shape}, this run needs float32 {shape}; "
                         f"remove it or choose another --root")
    if loaded.record is None:
        warn(f"{path} does not say what made it; it is used as it is")
        _check_foreign(loaded)
    else:
        require(path, loaded.record, task.identity())
    return loaded


def _check_foreign(loaded: arrays.Array) -> None:
    for part in slices(range(len(loaded.rows)), CHUNK):
        rows = loaded.rows[part.start : part.stop]
        if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1):
            raise GnimeError(f"{loaded.path}: values outside [0, 1] in rows {part.start} to {part.stop - 1}; remove it")


def _make(task: ExplanationTask, path: Path, device: Device) -> None:
    began = time.monotonic()
    n = len(task.data.images)
    bar = tqdm(total=n, desc=task.run.xai, unit="image", disable=None if device.rank == 0 else True, leave=False)
    with full_fp32(), bar:
        maps = _explain(task, device)
        first = next(maps)
        if device.rank > 0:
            for _ in maps:
                pass
            return
        with arrays.create(path, (n, *first.shape[1:]), "float32", task.identity()) as writer:
            while first is not None:
                writer.write(first)
                bar.update(len(first))
                first = next(maps, None)
    seconds = time.monotonic() - began
    say(f"explanations  {path}: made in {seconds:.0f} s, {n / seconds:.0f} images/s")


def _explain(task: ExplanationTask, device: Device) -> Iterator[np.ndarray]:
    """Maps in order. Several processes take chunks in turn, and the first receives them all."""
    function, together = explainer(task.run)
    everything = slices(range(len(task.data.images)), together or AT_ONCE[device.torch.type])
    for turn in range(0, len(everything), device.world):
        mine = everything[turn : turn + device.world]
        maps = None
        if device.rank < len(mine):
            images = gather_rows(task.data.images, mine[device.rank], device.torch)
            maps = function(task.victim, images).float().cpu().numpy()
        if device.world > 1:
            gathered = [None] * device.world if device.rank == 0 else None
            dist.gather_object(maps, gathered)
            yield from ([m for m in gathered if m is not None] if device.rank == 0 else [maps])
        else:
            yield maps
