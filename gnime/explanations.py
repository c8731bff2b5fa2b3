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
from .batches import at_once, gather_rows, iter_batches, rows_at_once, slices
from .checkpoints import require
from .config import Run
from .data import Data
from .device import Device, full_fp32
from .errors import GnimeError, Unfinished, UsageError, brief, place
from .explainers.feature_map import WrongLayer
from .explainers.stack import minmax, signed
from .models.inversion import working_side
from .paths import Paths
from .registry import EXPLAINERS
from .store import artifact_lock, digest_of, exists, weights_digest
from .system import Forecast, generator, say, say_once, warn

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
    """The run's explainer, and the batch size that its maps depend on; None: they do not depend on it.

    The maps of the user's own explainers are checked and scaled.
    """
    entry, pool = EXPLAINERS[run.xai], _pool(run)
    function = entry.load()
    if entry.own:
        return functools.partial(own_maps, function, entry.function, run.scale, run.target.width), None
    if run.layer:
        function = functools.partial(_at_layer, function, run.layer)
    return (functools.partial(function, pool=pool) if pool else function), pool


def _at_layer(function: Callable, layer: str, model: nn.Module, images: Tensor, **options: int) -> Tensor:
    """The maps of an explainer at a layer. Raises UsageError where the network has no such layer, or it returns no maps."""
    try:
        return function(model, images, layer=layer, **options)
    except WrongLayer as error:
        raise UsageError(str(error)) from None


def _pool(run: Run) -> int | None:
    """Number of images over which Grad-CAM's channel weights are averaged; None: each image has weights of its own."""
    return run.target.gradcam_pool if run.xai == "gradcam" and run.repeats("gradcam") else None


def own_maps(function: Callable, name: str, scale: str, width: float, model: nn.Module, images: Tensor) -> Tensor:
    """The maps of the user's own explainer, scaled to [0, 1] per image and channel.

    Args:
        name: FILE.py:NAME, for messages.
        scale: "absolute" or "signed", as in `Run.scale`.
        width: of the networks that take the maps.

    Raises:
        GnimeError: they are not maps (N, K, S, S) of finite numbers that the networks can take.
    """
    with torch.enable_grad():  # a service may call within no_grad
        maps = function(model, images.detach().contiguous().clone())
    if fault := _fault(maps, len(images), width):
        raise GnimeError(f"--xai {name}: {fault}")
    maps = maps.detach().to(images.device, torch.float32)
    if not maps.isfinite().all():
        raise GnimeError(f"--xai {name}: returns numbers that are not finite")
    return minmax(maps) if scale == "absolute" else signed(maps)


def _fault(maps: object, n: int, width: float) -> str:
    """Why these cannot be the maps of n images; empty where they can."""
    if not isinstance(maps, Tensor):
        return f"returns {type(maps).__name__}, not a tensor of maps (N, K, S, S)"
    shape = tuple(maps.shape)
    if maps.ndim != 4 or not maps.is_floating_point():
        return f"returns {maps.dtype} {shape}; maps are floating-point (N, K, S, S)"
    if len(maps) != n:
        return f"returns {shape}, and needs a map for each image: ({n}, K, S, S)"
    if shape[2] != shape[3] or shape[2] < 2:
        return f"returns maps of {shape[2]} x {shape[3]}; they must be square and at least 2 x 2: resize them in your function"
    if working_side(shape[2]) > width:
        return f"returns maps of side {shape[2]}, which need a --width of at least {working_side(shape[2])}"
    return ""


def trial_images(run: Run, device: Device) -> Tensor:
    """A batch of noise, (3, C, S, S) in [0, 1], on which models and explainers are tried before anything is written."""
    shape = 3, run.target.channels, run.target.size, run.target.size
    return torch.rand(shape, generator=generator(run.seed, "trial images")).to(device.torch)


def try_explainer(run: Run, model: nn.Module, images: Tensor) -> None:
    """Explains one batch, so that an explainer which fails is refused before anything is trained or written.

    Raises:
        GnimeError: it raises, returns something else than maps, or leaves the model changed.
    """
    (function, _), entry = explainer(run), EXPLAINERS[run.xai]
    name, before = f"--xai {entry.function if entry.own else run.xai}:", digest_of(model.state_dict())
    try:
        maps, first = function(model, images), function(model, images[:1])
    except GnimeError:
        raise
    except Exception as error:
        where = f" in {place(error)}" if place(error) else ""
        if isinstance(error, (TypeError, ValueError)) and not (entry.own or where):  # it says itself what it does not take
            raise GnimeError(f"{name} {str(error).removeprefix(f'{run.xai}: ')}") from None
        raise GnimeError(f"{name} raises{where} on images {tuple(images.shape)}: {brief(error)}") from None
    if fault := _fault(maps, len(images), run.target.width):
        raise GnimeError(f"{name} {fault}")
    if first.shape[1:] != maps.shape[1:]:
        raise GnimeError(f"{name} returns {tuple(maps.shape)} for {len(images)} images and {tuple(first.shape)} for one")
    if model.training or digest_of(model.state_dict()) != before:
        raise GnimeError(f"{name} leaves the model changed; an explainer must leave its weights, buffers and mode alone")
    if entry.own and (far := (first - maps[:1]).abs().max().item()) > 0.05:
        warn(f"{name} an image's map differs by up to {far:.2f} when it is explained alone; it depends on chance, or on other "
             "images")


@dataclass(frozen=True)
class ExplanationTask:
    """The parts of a run that decide its explanations."""

    run: Run
    data: Data
    victim: nn.Module
    victim_digest: str

    def identity(self) -> dict:
        """The record of the explanations' file. It has the explainer's version if that is not 1, and of one's own the scale."""
        explainer, scale = EXPLAINERS[self.run.xai], self.run.scale
        return {"kind": "explanations", "target": self.run.target.name, **self.run.xai_identity, "images": self.data.digest,
                "victim": self.victim_digest, "pool": _pool(self.run)} | (
                    {"version": explainer.version} if explainer.version != 1 else {}) | (
                    {"scale": scale} if explainer.own else {})


def protects(run: Run, data: Data, victim: nn.Module, maps: Sequence[int]) -> dict:
    """The service that a defence is made for, as plain data: `Protected` refuses any other. maps: shape of one map.

    Of the user's own explainer, "version" is the digest of its file, and "scale" says how its maps are scaled.
    """
    scale = {"scale": run.scale} if EXPLAINERS[run.xai].own else {}
    return {"victim": weights_digest(victim), **run.xai_identity, "version": EXPLAINERS[run.xai].version, "pool": _pool(run),
            "image": list(data.images.shape[1:]), "maps": list(maps), "classes": len(data.classes),
            "published": run.published} | scale


def load_explanations(task: ExplanationTask, paths: Paths, device: Device, make: bool) -> arrays.Array:
    """The explanations of all images, (n, K, h, w) in [0, 1], from `aux/`. If they are missing and `make`, they are computed.

    Raises:
        GnimeError: they are missing and not `make`; or the file is damaged, or of another victim, explainer or other images.
    """
    path, run = paths.explanations, task.run
    function, _ = explainer(run)
    image = gather_rows(task.data.images, range(1), device.torch)
    shape = (len(task.data.images), *function(task.victim, image).shape[1:])
    with artifact_lock(path, paths.root, device):
        finished = exists(path, paths.root)
        device.barrier()
        if finished:
            say_once(f"explanations  {path}: found")
        elif make:
            _make(task, path, device)
        else:
            raise Unfinished(f"{path} is missing; make it with: {run.command('prepare')}")
        device.barrier()
    maps = arrays.load(path)
    loaded, maps = maps, arrays.channels_first(maps, shape[1:])
    if maps is not loaded:
        say_once(f"explanations  {path}: {loaded.rows.shape}, channels last; turned")
    if maps.rows.shape != shape or maps.rows.dtype.kind != "f":
        raise GnimeError(f"{path}: {maps.rows.dtype} {maps.rows.shape}, this run needs float32 {shape}; "
                         f"move it away, or choose another --root")
    if maps.record is None:
        warn(f"{path} has no record of how it was made; it is used as it is")
        _check_foreign(maps)
        _check_order(maps, task, device)
    else:
        require(path, maps.record, task.identity())
    tell_sides(run.target.size, shape[2])
    return maps


def tell_sides(image: int, explanation: int) -> None:
    """Tells at which sides the networks work, where those of images and maps are no powers of two."""
    for what, side in (("images", image), ("maps", explanation)):
        if (within := working_side(side)) != side:
            say_once(f"{what:<13} {side} x {side}: networks work at {within} x {within}; what enters and leaves is resized")


def _check_foreign(maps: arrays.Array) -> None:
    for part in slices(range(len(maps.rows)), rows_at_once(maps.rows.shape[1:])):
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
    began, n = time.monotonic(), len(task.data.images)
    forecast = Forecast("explanations", n, f"for {n} images")
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
                forecast.step(len(batch))
                batch = next(batches, None)
    seconds = time.monotonic() - began
    say(f"explanations  {path}: made in {seconds:.0f} s, {n / seconds:.0f} images/s")


def _explain(task: ExplanationTask, device: Device) -> Iterator[np.ndarray]:
    """Batches of maps in order. In a distributed run the processes compute batches in turn, and the first receives all."""
    function, pool = explainer(task.run)
    batches = slices(range(len(task.data.images)), pool or at_once([task.data.images], device.torch))
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
