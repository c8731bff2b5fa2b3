"""Networks by name: built from a specification that is plain data, and found again from their file alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .artifacts import Checkpoint, alone, exists, load_checkpoint, load_into, require, save_checkpoint
from .config import Stage, Target
from .errors import GnimeError
from .models.classifier import Classifier
from .models.injector import Injector
from .models.inversion import CentredExpMI, DenseExpMI, ExpMI, PredMI
from .ops import accelerate, plain
from .runtime import Device, commit, derive, hand_back_memory, say
from .training import state_path

NETWORKS = {"classifier": Classifier, "predmi": PredMI, "expmi": ExpMI, "dense": DenseExpMI,
            "centred": CentredExpMI, "injector": Injector}


def classifier_spec(target: Target, classes: int) -> dict:
    return {"network": "classifier", "channels": target.channels, "size": target.size, "classes": classes,
            "convs": list(target.convs), "hidden": target.hidden, "dropout": target.dropout, "features": target.features}


def inverter_spec(kind: str, target: Target, explanation: tuple[int, int], classes: int) -> dict:
    """explanation: channels and side. PredMI sees none."""
    sees = {} if kind == "predmi" else {"explanation_channels": explanation[0], "explanation_size": explanation[1]}
    return {"network": kind, **sees, "classes": classes, "channels": target.channels, "size": target.size,
            "width": target.width}


def injector_spec(target: Target, explanation: tuple[int, int], classes: int, mean: float, std: float) -> dict:
    return {"network": "injector", "channels": explanation[0], "size": explanation[1], "classes": classes,
            "width": target.width, "mean": mean, "std": std}


def build(spec: dict, seed: int = 0, *purpose: object) -> nn.Module:
    """A fresh plain network; its weights follow from seed and purpose."""
    torch.manual_seed(derive(seed, *purpose, "weights"))
    arguments = {name: value for name, value in spec.items() if name != "network"}
    if spec["network"] == "classifier":  # its files state channels and size apart
        arguments["image"] = arguments.pop("channels"), arguments.pop("size")
    return NETWORKS[spec["network"]](**arguments)


def rebuild(path: Path | str) -> nn.Module:
    """The trained network in a file of ours, plain and in evaluation mode: `rebuild("models/def/mnist_lrp/injector.pt")`.

    Raises:
        GnimeError: the file is missing, damaged, or somebody else's (then nothing says which network it is).
    """
    path = Path(path)
    if not path.exists():
        raise GnimeError(f"{path} is missing")
    checkpoint = load_checkpoint(path)
    if not checkpoint.ours or checkpoint.spec.get("network") not in NETWORKS:
        raise GnimeError(f"{path}: does not say which network it holds")
    network = build(checkpoint.spec)
    load_into(network, checkpoint, path)
    return network.eval()


@dataclass
class Trained:
    """A network that is ready, and the identity of its file: what is made with it carries that."""

    network: nn.Module
    digest: str
    report: dict  # epochs, best epoch, score, history, seconds; empty for somebody else's file
    made_by: dict  # what decided its weights; empty likewise

    def summary(self) -> dict:
        """For `results.json`: how it was really trained, whatever this run's flags say."""
        how = {k: self.made_by[k] for k in ("stage", "weight", "precision") if k in self.made_by}
        return {"digest": self.digest, **how, **{k: v for k, v in self.report.items() if k != "history"}}


def obtain(path: Path, root: Path, spec: dict, identity: dict, stage: Stage, seed: int, device: Device, what: str,
           make: Callable[[nn.Module, Path], dict], go_on: bool = True, folder: bool = False) -> Trained:
    """The network of `path`: used if it is there, trained by `make(network, state path)` if not.

    identity: plain data that decides the result; a file made from anything else is refused. go_on: train a found
    network further if more epochs are asked for than it has seen, and its state is there. folder: the file's folder is
    its own.

    Raises:
        GnimeError: the file is damaged or belongs to another run.
    """
    state = state_path(path)
    with alone(path, device, folder):
        found = load_checkpoint(path) if exists(path, root) else None
        network = accelerate(build(spec, seed, what))
        if found is not None:
            _check(path, found, spec, identity)
            unfinished = (go_on and found.ours and found.extra["epochs"] < stage.epochs and not found.extra.get("early")
                          and exists(state, root))
            if not unfinished:
                load_into(network, found, path)
                network.to(device.torch, memory_format=torch.channels_last)
                epochs = f", {found.extra['epochs']} epochs" if found.ours else ""
                say(f"{what:<13} {path}: found{epochs}")
                return Trained(_ready(network), found.digest, found.extra or {}, found.made_by or {})
        say(f"{what:<13} training, at most {stage.epochs} epochs, batch {stage.batch_size}")
        report = make(network, state) | {"commit": commit()}
        hand_back_memory()
        device.barrier()
        tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        made_by = identity | {"epochs": report["epochs"]}
        digest = save_checkpoint(path, tensors, spec, made_by, report) if device.rank == 0 else ""
        if report.get("early"):  # more epochs would change nothing: the state has done its work
            state.unlink(missing_ok=True)
        device.barrier()
        digest = digest or load_checkpoint(path).digest
        score = f", best {report['score']:.4g} at epoch {report['best_epoch']}" if "score" in report else ""
        say(f"{what:<13} {path}: made in {report['seconds']:.0f} s, {report['epochs']} epochs{score}")
        return Trained(_ready(network), digest, report, made_by)


def _ready(network: nn.Module) -> nn.Module:
    """For use alone: nothing computes gradients of its weights. Explainers need a classifier's own layers."""
    if isinstance(network, Classifier):
        plain(network)
    return network.eval().requires_grad_(False)


def _check(path: Path, found: Checkpoint, spec: dict, identity: dict) -> None:
    if found.ours:
        require(path, found.made_by, identity)
        require(path, found.spec, spec)
