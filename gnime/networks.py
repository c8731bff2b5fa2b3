"""Networks by name: built from a specification that is plain data, and rebuilt from their file alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoints import Checkpoint, check_fit, load_checkpoint, load_into, require
from .config import Target, TrainConfig
from .device import Device
from .errors import GnimeError
from .models.classifier import Classifier
from .models.conditional_mean import ConditionalMean
from .models.injector import Injector
from .models.inversion import CentredExpMI, DenseExpMI, ExpMI, PredMI
from .models.prototypes import ConditionalPrototypes, Prototypes
from .models.unet import UNet
from .ops import plain
from .resuming import FROZEN, StateFile, to_train_anew
from .store import exists
from .system import derive_seed, say, say_once, warn
from .words import counted, difference

NETWORKS = {"classifier": Classifier, "predmi": PredMI, "expmi": ExpMI, "dense": DenseExpMI,
            "centred": CentredExpMI, "injector": Injector, "cond-mean": ConditionalMean, "prototypes": Prototypes,
            "cond-prototypes": ConditionalPrototypes, "unet": UNet}


def classifier_spec(target: Target, classes: int) -> dict:
    return {"network": "classifier", "image": [target.channels, target.size], "classes": classes,
            "convs": list(target.convs), "hidden": target.hidden, "dropout": target.dropout, "features": target.features}


def inverter_spec(kind: str, target: Target, explanation: tuple[int, int], classes: int) -> dict:
    """explanation: channels and side. PredMI sees none, and the U-Net those of any side."""
    sees = dict(zip(("explanation_channels", "explanation_size"), explanation, strict=True))
    sees = {name: sees[name] for name in {"predmi": [], "unet": ["explanation_channels"]}.get(kind, sees)}
    return {"network": kind, **sees, "classes": classes, "channels": target.channels, "size": target.size,
            "width": target.width}


def injector_spec(target: Target, explanation: tuple[int, int], classes: int, mean: float, std: float) -> dict:
    return {"network": "injector", "channels": explanation[0], "size": explanation[1], "classes": classes,
            "width": target.width, "mean": mean, "std": std}


def build(spec: dict, seed: int = 0, *purpose: object) -> nn.Module:
    """A fresh plain network; its weights follow from seed and purpose."""
    torch.manual_seed(derive_seed(seed, *purpose, "weights"))
    arguments = {name: value for name, value in spec.items() if name != "network"}
    return NETWORKS[spec["network"]](**arguments)


def rebuild(path: Path | str) -> nn.Module:
    """The network in a file of ours, plain, in evaluation mode and frozen: `rebuild("models/def/mnist_lrp/injector.pt")`.

    Raises:
        GnimeError: the file is missing, damaged, or somebody else's (then nothing says which network it is).
    """
    path = Path(path)
    if not path.exists():
        raise GnimeError(f"{path} is missing")
    return rebuild_from(load_checkpoint(path), path)


def rebuild_from(checkpoint: Checkpoint, path: Path) -> nn.Module:
    """The network in the content of `path`. Its specification is compared with its tensors before memory is taken for it.

    Raises:
        GnimeError: the file does not say which network it is, or its tensors are not those of its specification.
    """
    spec = checkpoint.spec
    if not checkpoint.ours or not isinstance(spec, dict) or str(spec.get("network")) not in NETWORKS:
        raise GnimeError(f"{path}: does not say which network it holds; move it away and run the command again")
    try:
        with torch.device("meta"):  # shapes without numbers
            shapes = build(spec)
    except (TypeError, ValueError, RuntimeError, KeyError, OverflowError):  # what the constructors make of wrong arguments
        raise GnimeError(f"{path}: its specification is of no network; move it away and run the command again") from None
    check_fit(shapes, checkpoint.tensors, path)
    network = build(spec)
    load_into(network, checkpoint, path)
    return network.eval().requires_grad_(False)


@dataclass
class TrainedModel:
    """A network that is ready, and the digest of its file, which everything made with it records."""

    network: nn.Module
    digest: str
    report: dict  # epochs, best epoch, score, history, seconds; empty for somebody else's file
    made_by: dict  # the identity that it was trained with; empty likewise

    def summary(self) -> dict:
        """For `results.json`: its training as its file records it, whatever this run's flags say."""
        how = {k: self.made_by[k] for k in ("stage", "weight", "precision", "converted") if k in self.made_by}
        return {"digest": self.digest, **how, **{k: v for k, v in self.report.items() if k != "history"}}


@dataclass
class NetworkTask:
    """A network that a run needs.

    Attributes:
        name: in messages.
        path, spec, identity: its file, its specification, and the plain data that decides its weights.
        config: of its training.
        purpose: seeds its first weights.
        train: (network, state file) -> report with epochs, history, seconds.
        extend: a file of fewer epochs than asked for is trained further, if its state is there.
        own_folder: the file's folder belongs to this artifact alone.
        explained: explainers take the network, so it is kept plain outside training.
        score: what its training reports as the best, in words.
        anew: of attackers: a file whose epochs, batch size or learning rate are not this run's is trained anew. A battery of
            networks that were trained for different times would compare rows with another baseline than their own.
    """

    name: str
    path: Path
    spec: dict
    identity: dict
    config: TrainConfig
    purpose: tuple
    train: Callable[[nn.Module, StateFile], dict]
    extend: bool = True
    own_folder: bool = False
    explained: bool = False
    score: str = "validation MSE, before clipping,"
    anew: bool = False


def kept_when_converted(identity: dict) -> dict:
    """The part of a task's identity that also holds for a network that another program trained: what it is for."""
    return {key: identity[key] for key in ("kind", "target", "xai", "row", "attacker", "victim") if key in identity}


def check_record(checkpoint: Checkpoint, task: NetworkTask) -> None:
    """Compares the record of a file of ours with the task. Raises as `checkpoints.require` does."""
    if checkpoint.ours:
        wanted = kept_when_converted(task.identity) if checkpoint.origin else task.identity
        require(task.path, checkpoint.made_by, wanted)
        require(task.path, checkpoint.spec, task.spec)


def find(task: NetworkTask, state: StateFile, device: Device, trains: bool) -> Checkpoint | None:
    """The content of the task's file. None where it is not there, or is to be trained anew, which is said if the run `trains`.

    Raises:
        GnimeError: the file is damaged, or an attacker's of another run in more than its training.
    """
    if not exists(task.path, state.root):
        return None
    checkpoint = load_checkpoint(task.path)
    if not (task.anew and checkpoint.trained):
        return checkpoint
    require(task.path, checkpoint.made_by, {key: value for key, value in task.identity.items() if key not in ("stage", FROZEN)})
    other = trained_otherwise(checkpoint, task.config, state)
    if not other and checkpoint.made_by.get(FROZEN) != task.identity.get(FROZEN):
        other = f"made with another network of {FROZEN}"
    if other and trains:
        say(f"{task.name:<13} {task.path}: {other}; it is trained anew")
        stopped_before = state.leads_to(task.config)
        device.barrier()  # each process has read it
        if not stopped_before:
            state.path.unlink(missing_ok=True)
    return None if other else checkpoint


def trained_otherwise(checkpoint: Checkpoint, config: TrainConfig, state: StateFile | None) -> str:
    """How the training of a file of ours differs from this run's; empty where it does not, or where `state` goes on to it."""
    if not checkpoint.trained or "epochs" not in checkpoint.extra:
        return ""
    epochs, of_classifiers = checkpoint.extra["epochs"], checkpoint.extra.get("stage", config.identity())
    stage = checkpoint.made_by.get("stage", of_classifiers)
    if stage != config.identity():
        return f"trained with {difference('stage', stage, config.identity())}"
    other = epochs > config.epochs or is_unfinished(checkpoint, config) and not (state and state.leads_to(config))
    return f"trained for {counted(epochs, 'epoch')}, this run asks for {config.epochs}" if other else ""


def trained_less(report: dict, config: TrainConfig) -> str:
    """How the training of a classifier of ours differs from this run's, more epochs excepted; empty where it does not."""
    if not report:
        return ""
    if report["epochs"] < config.epochs and not report["early"]:
        return f"trained for {counted(report['epochs'], 'epoch')}, this run asks for {config.epochs}"
    stage = report.get("stage", config.identity())
    return "" if stage == config.identity() else f"trained with {difference('stage', stage, config.identity())}"


def is_unfinished(checkpoint: Checkpoint, config: TrainConfig) -> bool:
    return checkpoint.trained and checkpoint.extra["epochs"] < config.epochs and not checkpoint.extra.get("early")


def ready_to_use(network: nn.Module, task: NetworkTask) -> nn.Module:
    """For use only: no gradients of its weights are computed."""
    network = plain(network) if task.explained else network
    return network.eval().requires_grad_(False)


def use(task: NetworkTask, network: nn.Module, checkpoint: Checkpoint, device: torch.device) -> TrainedModel:
    """The network with the file's numbers, on the device, for use only. Raises as `checkpoints.load_into` does."""
    load_into(network, checkpoint, task.path)
    network = ready_to_use(network.to(device, memory_format=torch.channels_last), task)
    return TrainedModel(network, checkpoint.digest, checkpoint.extra or {}, checkpoint.made_by or {})


def tell_found(task: NetworkTask, checkpoint: Checkpoint, state: Path) -> None:
    """Tells epochs and precision of a file that is used; warns where its epochs are not those that are asked for."""
    if not checkpoint.trained:
        say_once(f"{task.name:<13} {task.path}: found" + (f", converted from {checkpoint.origin}" if checkpoint.origin else ""))
        return
    epochs = checkpoint.extra["epochs"]
    precision = checkpoint.made_by.get("precision", checkpoint.extra.get("precision"))
    say_once(f"{task.name:<13} {task.path}: found, {counted(epochs, 'epoch')}, {precision}")
    if task.extend and epochs != task.config.epochs and not checkpoint.extra.get("early"):
        warn(f"{task.path} was trained for {counted(epochs, 'epoch')}, this run asks for {task.config.epochs}: it is used as "
             f"it is; {to_train_anew(task.path, state)}")
