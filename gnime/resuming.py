"""An unfinished training on disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .checkpoints import load_checkpoint, require, save_checkpoint
from .config import TrainConfig
from .device import Device
from .errors import GnimeError, Stopped
from .store import exists
from .system import Interrupt, say

SAVE_EVERY = 20.0  # seconds of training that a killed process may lose, to the end of the epoch


@dataclass(frozen=True)
class StateFile:
    """The file that an unfinished training is saved to, and the identity of that training."""

    path: Path
    root: Path
    identity: dict


class Resumable:
    """Networks and optimisers in training, saved at the end of an epoch.

    No generator's state is saved: every epoch draws from seeds of its own (`system.derive_seed`).
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
        """Writes the state if `now`, or if it was last written `SAVE_EVERY` seconds ago."""
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
        """Stops if Ctrl-C was pressed and the last finished epoch is saved. Call it after a step or an epoch."""
        if interrupt.asked and self._epoch_saved == self.plain["epoch"]:
            raise Stopped(f"stopped after epoch {self.plain['epoch']}; the same command goes on from {self.path}")

    def finish(self, losses: Tensor, finite: Tensor, epoch: int, steps: int) -> Tensor:
        """The epoch's losses, summed over the processes.

        Raises:
            GnimeError: a loss, or a weight after the last step, is not finite. The epoch is not saved then.
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
