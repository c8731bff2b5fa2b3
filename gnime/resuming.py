"""A training on disk, from which it goes on: of one that was stopped, or of one that more epochs could continue."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .checkpoints import Checkpoint, check_fit, load_checkpoint, require, save_checkpoint
from .config import TrainConfig
from .device import Device
from .errors import GnimeError, Stopped
from .store import exists
from .system import Interrupt, say
from .words import counted

FROZEN = "ond-defender"  # in an identity: OND's own inverter, which may be trained anew as attackers are
SAVE_EVERY = 20.0  # seconds between two saves, each at the end of an epoch


@dataclass(frozen=True)
class StateFile:
    """The file of a training's state, and the identity of that training.

    Attributes:
        root: of the run; the file must be inside it.
        identity: plain data that decides the result. A file with another identity is refused.
    """

    path: Path
    root: Path
    identity: dict

    def leads_to(self, config: TrainConfig) -> bool:
        """Whether it is there and going on from it ends as a training anew with this configuration does.

        Raises:
            GnimeError: the file is damaged.
        """
        if not exists(self.path, self.root):
            return False
        state = load_checkpoint(self.path)
        wanted = {"stage": config.identity(), FROZEN: self.identity.get(FROZEN)}
        return (state.ours and all(state.made_by.get(key) == value for key, value in wanted.items())
                and state.extra.get("epoch") in range(1, config.epochs + 1))


def to_train_anew(path: Path, state: Path, *more: str) -> str:
    """What to do with a network's file and the state of its training, from which a training would go on."""
    files = [str(file) for file in (path, state) if file.exists()]
    return f"to train it anew, move {' and '.join([*files, *more])} away"


class Resumable:
    """Networks and optimisers in training. Their state is saved at the end of an epoch and loaded if its file exists.

    No generator's state is saved, because every epoch has seeds of its own (`system.derive_seed`).

    Raises:
        GnimeError: the file is damaged, of another training, or has more epochs than are asked for.
    """

    def __init__(self, file: StateFile, networks: Sequence[nn.Module], config: TrainConfig, device: Device):
        self.path, self.identity, self.networks, self.device = file.path, file.identity, networks, device
        for network in networks:
            network.to(device.torch, memory_format=torch.channels_last)
        self.optimisers = [torch.optim.Adam(network.parameters(), config.lr, config.betas, config.eps, fused=True)
                           for network in networks]
        self.best: dict[str, Tensor] = {}
        self.plain: dict = {"epoch": 0, "seconds": 0.0, "history": []}
        self._saved, self._epoch_saved, self._clock = time.monotonic(), -1, time.monotonic()
        if exists(file.path, file.root):
            self._load(config.epochs)

    def _load(self, epochs: int) -> None:
        checkpoint = load_checkpoint(self.path)
        if not checkpoint.ours or checkpoint.spec != {"state": len(self.networks)}:
            raise GnimeError(f"{self.path}: not the state of this kind of training; move it away")
        require(self.path, checkpoint.made_by, self.identity)
        try:
            self._restore(checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):  # its structure is another
            raise GnimeError(f"{self.path}: damaged (it is no state of this training); move it away and run the command "
                             "again") from None
        if (had := self.plain["epoch"]) > epochs:
            network = self.path.with_name(self.path.name.replace(".state", ""))
            raise GnimeError(f"{self.path}: has {counted(had, 'finished epoch')}, this run asks for {epochs}; give --epochs "
                             f"{had} or more, or another --root; {to_train_anew(network, self.path)}")
        say(f"              goes on from epoch {self.plain['epoch']} ({self.path})")

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Takes over what a file holds. Nothing of it is trusted: a checksum proves no origin."""
        tensors, plain, early = checkpoint.tensors, checkpoint.extra, len(self.networks) == 1
        _check_plain(plain, early)
        for network, weights in zip(self.networks, tensors["networks"], strict=True):
            check_fit(network, weights, self.path)
            network.load_state_dict(weights)
        for optimiser, state in zip(self.optimisers, tensors["optimisers"], strict=True):
            _check_moments(optimiser, state["state"])
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state["state"]})  # the learning rate is this run's
        if early:
            check_fit(self.networks[0], tensors["best"], self.path)
        self.best = {name: value.to(self.device.torch) for name, value in tensors["best"].items()}
        self.plain, self._epoch_saved = plain, plain["epoch"]

    def save(self, now: bool = False) -> None:
        """Writes the state if `now`, or if the last save was `SAVE_EVERY` seconds ago."""
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

    def stop_if(self, interrupt: Interrupt) -> None:
        """Raises `Stopped` if it is asked for and the last finished epoch is saved. Call it at each step and epoch."""
        if interrupt.asked and self._epoch_saved == self.plain["epoch"]:
            raise Stopped(f"stopped after epoch {self.plain['epoch']}; the same command goes on from {self.path}")

    def finish(self, losses: Tensor, finite: Tensor, epoch: int, steps: int) -> Tensor:
        """The epoch's losses, summed over the processes.

        Args:
            losses: this process's sums over the steps.
            finite: number of steps before the first loss that is not finite; `steps` if all are finite.

        Raises:
            GnimeError: a loss, or a weight after the last step, is not finite. Then the epoch is not saved.
        """
        if self.device.world > 1:
            dist.all_reduce(losses)
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        good = int(finite)
        if good < steps or not all(p.isfinite().all() for network in self.networks for p in network.parameters()):
            kept = f"{self.path} keeps epoch {self._epoch_saved}" if self._epoch_saved > 0 else "nothing was saved yet"
            what, step = ("loss is", good + 1) if good < steps else ("weights are", steps)
            raise GnimeError(f"training {self.path.stem.removesuffix('.state')}: the {what} not finite at epoch {epoch + 1}, "
                             f"step {step} of {steps}; {kept}; try fp32 precision, another seed or a smaller --batch-size")
        return losses


def _check_plain(plain: dict, early: bool) -> None:
    """Raises `ValueError`, or what another structure raises, unless `plain` is of a training, with `early` stopping or not."""
    epoch, history = plain["epoch"], plain["history"]
    numbers = [plain["seconds"], *(number for losses in history for number in losses)]
    counted, widths = [epoch], {len(losses) for losses in history}
    if early:
        numbers, counted = [*numbers, plain["best_score"]], [plain["best_epoch"], epoch]
    whole = all(type(number) is int for number in counted) and 1 <= counted[0] <= epoch == len(history)
    if not (whole and widths == {2 if early else 3} and all(map(math.isfinite, numbers))):
        raise ValueError


def _check_moments(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Raises `ValueError`, or what another structure raises, unless `state` is Adam's for the optimiser's parameters."""
    parameters = optimiser.param_groups[0]["params"]
    for number, moments in state.items():
        shapes = {"step": torch.Size(), "exp_avg": parameters[number].shape, "exp_avg_sq": parameters[number].shape}
        if {name: value.shape for name, value in moments.items()} != shapes:
            raise ValueError
        if not all(value.is_floating_point() and value.isfinite().all() for value in moments.values()):
            raise ValueError
        if moments["step"] < 1 or (moments["exp_avg_sq"] < 0).any():
            raise ValueError
