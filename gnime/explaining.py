"""The victim's predictions and explanations for every image of a run, streamed to disk whatever their number."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from . import arrays
from .artifacts import Paths, alone, exists, require
from .config import Run
from .data import AT_ONCE, CHUNK, Data, slices, take
from .errors import GnimeError
from .explainers import EXPLAINERS
from .runtime import Device, exact, say, warn
from .training import through


def predictions(victim: nn.Module, data: Data, device: Device, run: Run) -> np.ndarray:
    """The victim's logits for every image, (n, classes) float32, in a scratch file."""
    logits = arrays.scratch((len(data.images), len(data.classes)), np.float32, run.root / "aux")
    with torch.no_grad(), exact():
        for rows, (images,) in through([data.images], range(len(data.images)), device):
            logits[rows.start : rows.stop] = victim(images).cpu().numpy()
    return logits


def explainer(run: Run) -> tuple[Callable[[nn.Module, Tensor], Tensor], int | None]:
    """The run's explainer and the images it must be given at once; None: any number gives the same maps."""
    function = EXPLAINERS[run.xai].load()
    pool = _pool(run)
    return (functools.partial(function, pool=pool) if pool else function), pool


def _pool(run: Run) -> int | None:
    """Images that Grad-CAM's channel weights are averaged over; None: each has its own."""
    return run.target.gradcam_pool if run.xai == "gradcam" and run.repeats("gradcam") else None


def identity(run: Run, data: Data, victim_digest: str) -> dict:
    return {"kind": "explanations", "target": run.target.name, "xai": run.xai, "images": data.digest,
            "victim": victim_digest, "pool": _pool(run)}


def load_explanations(run: Run, paths: Paths, data: Data, victim: nn.Module, victim_digest: str, device: Device,
                      make: bool) -> arrays.Array:
    """The explanations of all images from `aux/`; `make` lets them be made.

    Raises:
        GnimeError: they are missing and may not be made, or were made by another victim or from other images.
    """
    path, made_by = paths.explanations, identity(run, data, victim_digest)
    with alone(path, device):
        found = exists(path, paths.root)
        device.barrier()
        if found:
            say(f"explanations  {path}: found")
        elif make:
            _make(run, path, data, victim, made_by, device)
        else:
            raise GnimeError(f"{path} is missing; make it with: {run.command('prepare')}")
        device.barrier()
    loaded = arrays.load(path)
    function, _ = explainer(run)
    shape = (len(data.images), *function(victim, torch.zeros(1, *data.images.shape[1:], device=device.torch)).shape[1:])
    if loaded.rows.shape != shape or loaded.rows.dtype.kind != "f":
        raise GnimeError(f"{path}: {loaded.rows.dtype} {loaded.rows.shape}, this run needs float32 {shape}; "
                         f"remove it or choose another --root")
    if loaded.record is None:
        warn(f"{path} does not say what made it; it is used as it is")
        _check_foreign(loaded)
    else:
        require(path, loaded.record, made_by)
    return loaded


def _check_foreign(loaded: arrays.Array) -> None:
    for part in slices(range(len(loaded.rows)), CHUNK):
        rows = loaded.rows[part.start : part.stop]
        if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1):
            raise GnimeError(f"{loaded.path}: values outside [0, 1] in rows {part.start} to {part.stop - 1}; remove it")


def _make(run: Run, path, data: Data, victim: nn.Module, made_by: dict, device: Device) -> None:
    import time

    began = time.monotonic()
    function, together = explainer(run)
    chunk = together or AT_ONCE[device.torch.type]
    n = len(data.images)
    bar = tqdm(total=n, desc=run.xai, unit="image", disable=None if device.rank == 0 else True, leave=False)
    with exact(), bar:
        maps = _explain(function, victim, data, chunk, device)
        first = next(maps)
        if device.rank > 0:
            for _ in maps:
                pass
            return
        with arrays.create(path, (n, *first.shape[1:]), "float32", made_by) as writer:
            while first is not None:
                writer.write(first)
                bar.update(len(first))
                first = next(maps, None)
    seconds = time.monotonic() - began
    say(f"explanations  {path}: made in {seconds:.0f} s, {n / seconds:.0f} images/s")


def _explain(function, victim: nn.Module, data: Data, chunk: int, device: Device) -> Iterator[np.ndarray]:
    """Maps in order. Several processes take chunks in turn, and the first receives them all."""
    everything = slices(range(len(data.images)), chunk)
    for turn in range(0, len(everything), device.world):
        mine = everything[turn : turn + device.world]
        maps = None
        if device.rank < len(mine):
            maps = function(victim, take(data.images, mine[device.rank], device.torch)).float().cpu().numpy()
        if device.world > 1:
            gathered = [None] * device.world if device.rank == 0 else None
            dist.gather_object(maps, gathered)
            yield from ([m for m in gathered if m is not None] if device.rank == 0 else [maps])
        else:
            yield maps


def moments(array: np.ndarray | Tensor, rows: range) -> tuple[float, float]:
    """Mean and standard deviation of all numbers in the rows, as scalars."""
    count = total = squared = 0.0
    for part in slices(rows, CHUNK):
        values = array[part.start : part.stop]
        values = np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64)
        count, total, squared = count + values.size, total + values.sum(), squared + np.square(values).sum()
    mean = total / count
    return float(mean), float(max(squared / count - mean**2, 0.0) ** 0.5)
