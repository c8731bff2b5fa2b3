"""Training that can be stopped at any moment and goes on to the same result: one loop for classifiers and inverters,
one for the injector and its sparring inverter."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from .artifacts import exists, load_checkpoint, require, save_checkpoint
from .config import Stage
from .data import AT_ONCE, batches, slices
from .errors import GnimeError, Stopped
from .models.injector import Injector, two_player_step
from .runtime import Device, Interrupt, average_gradients, derive, permutation, say

SAVE_EVERY = 20.0  # seconds of training that a killed process may lose, to the end of the epoch


class Resumable:
    """Networks and optimisers in training, on disk as of the end of some epoch.

    Nothing random is kept: every epoch draws from seeds of its own (`runtime.derive`).
    """

    def __init__(self, path: Path, root: Path, identity: dict, networks: Sequence[nn.Module], stage: Stage, device: Device):
        self.path, self.identity, self.networks, self.device = path, identity, networks, device
        for network in networks:
            network.to(device.torch, memory_format=torch.channels_last)
        self.optimisers = [torch.optim.Adam(network.parameters(), stage.lr, stage.betas, stage.eps, fused=True)
                           for network in networks]
        self.best: dict[str, Tensor] = {}
        self.plain: dict = {"epoch": 0, "seconds": 0.0, "history": []}
        self._saved, self._epoch_saved, self._clock = time.monotonic(), -1, time.monotonic()
        if exists(path, root):
            self._load()

    def _load(self) -> None:
        found = load_checkpoint(self.path)
        if not found.ours or found.spec != {"state": len(self.networks)}:
            raise GnimeError(f"{self.path}: not the state of such a training; remove it")
        require(self.path, found.made_by, self.identity)  # the specification included: shapes then fit
        for network, tensors in zip(self.networks, found.tensors["networks"], strict=True):
            network.load_state_dict(tensors)
        for optimiser, state in zip(self.optimisers, found.tensors["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.best = {name: value.to(self.device.torch) for name, value in found.tensors["best"].items()}
        self.plain = found.extra
        self._epoch_saved = self.plain["epoch"]
        say(f"              goes on from epoch {self.plain['epoch']} ({self.path})")

    def save(self, now: bool = False) -> None:
        """Writes the state if `now`, or if the last writing is long ago."""
        if not now and time.monotonic() - self._saved < SAVE_EVERY:
            return
        self._count_seconds()
        if self.device.rank == 0 and self._epoch_saved != self.plain["epoch"]:
            tensors = {"networks": [network.state_dict() for network in self.networks],
                       "optimisers": [optimiser.state_dict() for optimiser in self.optimisers], "best": self.best}
            save_checkpoint(self.path, tensors, {"state": len(self.networks)}, self.identity, self.plain)
        self._saved, self._epoch_saved = time.monotonic(), self.plain["epoch"]

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.plain["seconds"] += now - self._clock
        self._clock = now

    def remove(self) -> None:
        if self.device.rank == 0:
            self.path.unlink(missing_ok=True)

    def stop_if(self, interrupt: Interrupt) -> None:
        """At a step or an epoch's end: stops if Ctrl-C was pressed and everything up to the last epoch's end is saved."""
        if interrupt.asked and self._epoch_saved == self.plain["epoch"]:
            raise Stopped(f"stopped after epoch {self.plain['epoch']}; the same command goes on from {self.path}")

    def finish(self, losses: Tensor, finite: Tensor, epoch: int, steps: int) -> Tensor:
        """The epoch's losses, summed over the processes.

        Raises:
            GnimeError: one was not finite, or the last step left weights that are not: before that is saved.
        """
        if self.device.world > 1:
            dist.all_reduce(losses)
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        bad = int(finite)
        if bad < steps or not all(p.isfinite().all() for network in self.networks for p in network.parameters()):
            kept = f"{self.path} keeps epoch {self._epoch_saved}" if self._epoch_saved > 0 else "nothing was saved yet"
            what, step = ("loss is", bad + 1) if bad < steps else ("weights are", steps)
            raise GnimeError(f"training {self.path.stem.removesuffix('.state')}: the {what} not finite at epoch {epoch + 1}, "
                             f"step {step} of {steps}; {kept}; try fp32 precision, another seed or a smaller --batch-size")
        return losses


def state_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.state.pt")


def _share(rows: Tensor, device: Device) -> tuple[Tensor, float]:
    """This process's part of a batch, and the part's share of it."""
    part = rows.tensor_split(device.world)[device.rank]
    return part, len(part) / len(rows)


def _note_finite(finite: Tensor, loss: Tensor, step: int) -> Tensor:
    """Number of steps before the first loss that is not finite; stays on the device, so that nothing waits for it."""
    return torch.where(loss.isfinite(), finite, finite.clamp(max=step))


@dataclass
class Task:
    """A network to be trained with early stopping.

    Attributes:
        sources, rows: arrays and the range of their rows to train on.
        loss: (network, batch) -> mean loss over the batch.
        validate: network -> score on images it is not trained on.
        higher: whether a higher score is better.
        shuffle: a new order every epoch; otherwise one for all, as in the authors' release.
    """

    name: str
    network: nn.Module
    stage: Stage
    sources: Sequence[np.ndarray | Tensor | None]
    rows: range
    loss: Callable[[nn.Module, list], Tensor]
    validate: Callable[[nn.Module], float]
    higher: bool
    seed: int
    shuffle: bool = True


def fit(task: Task, path: Path, root: Path, identity: dict, device: Device) -> dict:
    """Trains `task.network` and leaves its best weights in it. Returns epochs, best epoch, score, history, seconds.

    Raises:
        GnimeError: a loss was not finite. Stopped: Ctrl-C.
    """
    with Interrupt() as interrupt:
        return _fit(task, path, root, identity, device, interrupt)


def _fit(task: Task, path: Path, root: Path, identity: dict, device: Device, interrupt: Interrupt) -> dict:
    network, stage = task.network, task.stage
    run = Resumable(path, root, identity, [network], stage, device)
    (optimiser,), plain = run.optimisers, run.plain
    plain.setdefault("best_score", None)
    plain.setdefault("best_epoch", 0)
    bar = tqdm(total=stage.epochs, initial=min(plain["epoch"], stage.epochs), desc=task.name, unit="epoch",
               disable=None if device.rank == 0 else True, leave=False)
    with bar:
        while plain["epoch"] < stage.epochs and not _stale(plain, stage):
            epoch = plain["epoch"]
            order = permutation(len(task.rows), task.seed, task.name, "order", epoch if task.shuffle else 0) + task.rows.start
            train_loss = _epoch(task, run, optimiser, order, epoch, device, interrupt)
            score = _agreed(_validate(task, device), device)
            if plain["best_score"] is None or (score > plain["best_score"]) == task.higher and score != plain["best_score"]:
                plain["best_score"], plain["best_epoch"] = score, epoch + 1
                run.best = {name: value.detach().clone() for name, value in network.state_dict().items()}
            plain["history"].append([train_loss, score])
            plain["epoch"] = epoch + 1
            bar.update()
            bar.set_postfix(loss=f"{train_loss:.4g}", validation=f"{score:.4g}")
            run.save(now=interrupt.asked)
            run.stop_if(interrupt)
    run.save(now=True)
    network.load_state_dict(run.best)
    network.eval()
    return {"epochs": plain["epoch"], "best_epoch": plain["best_epoch"], "score": plain["best_score"],
            "history": plain["history"], "seconds": round(plain["seconds"], 2), "early": _stale(plain, stage)}


def _stale(plain: dict, stage: Stage) -> bool:
    return plain["epoch"] - plain["best_epoch"] >= stage.patience


def _agreed(score: float, device: Device) -> float:
    """The first process's score, for all: they must stop together."""
    if device.world == 1:
        return score
    box = [score]
    dist.broadcast_object_list(box, 0)
    return box[0]


def _validate(task: Task, device: Device) -> float:
    task.network.eval()
    with torch.no_grad(), device.autocast():
        score = task.validate(task.network)
    if not math.isfinite(score):
        raise GnimeError(f"training {task.name}: the validation score is not finite; try another seed or fp32 precision")
    return score


def _epoch(task: Task, run: Resumable, optimiser: torch.optim.Optimizer, order: Tensor, epoch: int, device: Device,
           interrupt: Interrupt) -> float:
    network = task.network
    network.train()
    torch.manual_seed(derive(task.seed, task.name, "dropout", epoch, device.rank))
    parts = order.split(task.stage.batch_size)
    total, finite = torch.zeros((), device=device.torch), torch.tensor(len(parts), device=device.torch)
    shares = [_share(part, device) for part in parts]
    fetched = batches(task.sources, [rows for rows, _ in shares], device.torch)
    for step, (batch, (rows, share), part) in enumerate(zip(fetched, shares, parts, strict=True)):
        run.stop_if(interrupt)
        optimiser.zero_grad()
        if len(rows):
            with device.autocast():
                loss = task.loss(network, batch)
            (loss * share).backward()
            total += loss.detach() * share * len(part)
            finite = _note_finite(finite, loss.detach(), step)
        average_gradients(network, device.world)
        optimiser.step()
    return run.finish(total, finite, epoch, len(parts)).item() / len(order)


@dataclass
class Game:
    """The injector, the inverter it spars with, and the defender's rows of images, explanations and predictions."""

    injector: Injector
    inverter: nn.Module
    stage: Stage
    sources: Sequence[np.ndarray | Tensor]  # explanations, predictions, images
    rows: range
    weight: float
    seed: int
    official: bool = False


def play(game: Game, path: Path, root: Path, identity: dict, device: Device,
         every: int, checkpoint: Callable[[int], None]) -> dict:
    """Trains the injector against its inverter; `checkpoint(epoch)` is called every `every` epochs.

    Batches are drawn without replacement, floor(n / batch) an epoch. Returns epochs, history (distortion, inversion,
    inverter's loss per epoch) and seconds.

    Raises:
        GnimeError: a loss was not finite. Stopped: Ctrl-C.
    """
    with Interrupt() as interrupt:
        return _play(game, path, root, identity, device, every, checkpoint, interrupt)


def _play(game: Game, path: Path, root: Path, identity: dict, device: Device, every: int, checkpoint: Callable[[int], None],
          interrupt: Interrupt) -> dict:
    run = Resumable(path, root, identity, [game.injector, game.inverter], game.stage, device)
    plain, n = run.plain, len(game.rows)
    size = min(game.stage.batch_size, n)
    bar = tqdm(total=game.stage.epochs, initial=min(plain["epoch"], game.stage.epochs), desc="injector", unit="epoch",
               disable=None if device.rank == 0 else True, leave=False)
    with bar:
        while plain["epoch"] < game.stage.epochs:
            epoch = plain["epoch"]
            order = permutation(n, game.seed, "injector", "order", epoch)[: n // size * size] + game.rows.start
            plain["history"].append(_round(game, run, order.split(size), epoch, device, interrupt))
            plain["epoch"] = epoch + 1
            bar.update()
            bar.set_postfix(distortion=f"{plain['history'][-1][0]:.4g}", inversion=f"{plain['history'][-1][1]:.4g}")
            if (epoch + 1) % every == 0 and device.rank == 0:
                checkpoint(epoch + 1)
            run.save(now=interrupt.asked)
            run.stop_if(interrupt)
    run.save(now=True)
    game.injector.eval()
    return {"epochs": plain["epoch"], "history": plain["history"], "seconds": round(plain["seconds"], 2)}


def _round(game: Game, run: Resumable, parts: Sequence[Tensor], epoch: int, device: Device,
           interrupt: Interrupt) -> list[float]:
    """One epoch of steps; the mean of each loss."""
    total, finite = torch.zeros(3, device=device.torch), torch.tensor(len(parts), device=device.torch)
    shares = [_share(part, device) for part in parts]
    fetched = batches(game.sources, [rows for rows, _ in shares], device.torch)
    for step, (batch, (rows, share)) in enumerate(zip(fetched, shares, strict=True)):
        run.stop_if(interrupt)
        for optimiser in run.optimisers:
            optimiser.zero_grad()
        if len(rows):
            with device.autocast():
                losses = two_player_step(game.injector, game.inverter, batch, game.weight, game.official, share)
            now = torch.stack([losses.distortion, losses.inversion, losses.inverter])
            total += now * share
            finite = _note_finite(finite, now.sum(), step)
        for network, optimiser in zip(run.networks, run.optimisers, strict=True):
            average_gradients(network, device.world)
            optimiser.step()
    return (run.finish(total, finite, epoch, len(parts)) / len(parts)).tolist()


def through(sources: Sequence[np.ndarray | Tensor | None], rows: range,
            device: Device) -> Iterator[tuple[range, list]]:
    """All `rows` in order, in batches on the device, of as many as suit it."""
    cut = slices(rows, AT_ONCE[device.torch.type])
    yield from zip(cut, batches(sources, cut, device.torch), strict=True)


def mean_squared_error(network: nn.Module, batch: list) -> Tensor:
    """Inverters' loss. batch: explanations or None, predictions, images."""
    explanation, prediction, image = batch
    return (network(explanation, prediction).float() - image).square().mean()


def cross_entropy(network: nn.Module, batch: list) -> Tensor:
    """Classifiers' loss. batch: images, labels."""
    images, labels = batch
    return nn.functional.cross_entropy(network(images).float(), labels)
