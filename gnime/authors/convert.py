"""Networks of the authors' release as this project's own: found where a network is looked for, and converted once."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints import check_fit, save_checkpoint
from ..errors import GnimeError
from ..models.injector import Injector
from ..networks import NetworkTask, TrainedModel, build, kept_when_converted
from ..store import inside
from ..system import say
from ..words import counted
from .bundle import Bundle, Entry

ORDER = ("conv", "fc", "dense", "encoder", "code", "bottleneck", "decoder")  # of the layers, in the release's networks
UNDEFENDED = ("predmi", "expmi")  # rows whose attackers the release stores

Layer = tuple[str, nn.Conv2d | nn.Linear]  # its name in the state dict, and the module


def has_source(task: NetworkTask) -> bool:
    """Whether the release's network lies where that of the task is looked for."""
    return task.identity.get("row", UNDEFENDED)[0] in UNDEFENDED and _source(task.path) is not None


def _source(path: Path) -> Path | None:
    """The checkpoint of the release where the network of `path` is looked for, without its endings; None: there is none.

    Of an injector it is the last `e<epoch>.ckpt` beside it, of other networks a SavedModel folder of the same name.
    """
    if path.name == "injector.pt":
        epochs = [int(found[1]) for file in path.parent.glob("e*.ckpt.index")
                  if (found := re.fullmatch(r"e([1-9][0-9]{0,5})\.ckpt\.index", file.name))]
        if not epochs and (left := sorted(path.parent.glob("e*.ckpt.data-*"))):
            raise GnimeError(f"{left[0]}: a checkpoint of the authors' release without its .index; copy that too, or move this "
                             "file away")
        return path.parent / f"e{max(epochs)}.ckpt" if epochs else None
    folder = path.with_suffix("")
    there = (folder / "saved_model.pb").exists() or (folder / "variables").exists()
    return folder / "variables" / "variables" if there else None


def convert(task: NetworkTask, root: Path, service: Callable[[], tuple[TrainedModel, dict]]) -> None:
    """Writes the release's network to `task.path`, with a record of where it came from.

    Args:
        service: the run's victim, and the record of the service that an injector protects; see `explanations.protects`.
            Called for inverters and injectors alone.

    Raises:
        GnimeError: the files are damaged, the network has other sizes than this run's, or belongs to another victim.
    """
    prefix = _source(task.path)
    for file in prefix.parent.glob(f"{prefix.name}.*"):
        inside(file, root)
    bundle, kind, report = Bundle(prefix), task.identity["kind"], {}
    origin = str((prefix if kind == "injector" else prefix.parent.parent).relative_to(root))
    network = build(task.spec)
    tensors = read_network(bundle, network, "noiser" if kind == "injector" else "")
    check_fit(network, tensors, bundle.data)
    if kind in ("injector", "inverter"):
        victim, protects = service()
        _check_victim(bundle, victim, kind, origin)
        report = {"protects": protects} if kind == "injector" else {}
    made_by = kept_when_converted(task.identity) | {"converted": {"from": origin, "sha256": bundle.digest()}}
    save_checkpoint(task.path, tensors, task.spec, made_by, report)
    say(f"{task.name:<13} {task.path}: converted from {origin} of the authors' release")


def read_network(bundle: Bundle, network: nn.Module, part: str = "") -> dict[str, Tensor]:
    """The state dict of `network` with the release's numbers; buffers keep their values.

    part: the attribute of the saved object that is the network; empty: the object itself.

    Raises:
        GnimeError: the files are damaged, or the release's network has other layers or sizes.
    """
    found, ours = bundle.layers(part), _layers(network)
    tensors = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    if len(found) != len(ours):
        raise GnimeError(f"{_place(bundle)}: does not fit: it has {counted(len(found), 'layer')} with weights, this run's "
                         f"network {len(ours)}; {_remedy(found, ours)}")
    for (name, layer), (kernel, bias) in zip(ours, found, strict=True):  # all shapes, before memory is taken for numbers
        wanted = tuple(layer.weight.shape[i] for i in ((2, 3, 1, 0) if layer.weight.ndim == 4 else (1, 0)))
        if kernel.shape != wanted or bias.shape != tuple(layer.bias.shape):
            raise GnimeError(f"{_place(bundle)}: does not fit: the kernel of its {name} has shape {kernel.shape}, this run's "
                             f"network needs {wanted}; {_remedy(found, ours)}")
    for i, ((name, layer), (kernel, bias)) in enumerate(zip(ours, found, strict=True)):
        numbers = torch.tensor(bundle.numbers(kernel))
        if isinstance(layer, nn.Conv2d):
            weight = numbers.permute(3, 2, 0, 1)  # (3, 3, I, O) -> (O, I, 3, 3)
        else:
            weight = numbers[_rows(ours, i)].T  # (I, O) -> (O, I)
        tensors[f"{name}.weight"] = weight.contiguous()
        tensors[f"{name}.bias"] = torch.tensor(bundle.numbers(bias))
    return tensors


def _place(bundle: Bundle) -> Path:
    """What the user has put there: the folder of a SavedModel, or a checkpoint's files by their common name."""
    folder = bundle.index.parent
    return folder.parent if folder.name == "variables" else bundle.index.with_suffix("")


def _layers(network: nn.Module) -> list[Layer]:
    """The layers with weights, in the release's order."""
    inner, prefix = (network.network, "network.") if isinstance(network, Injector) else (network, "")
    layers = [(name, layer) for name, layer in inner.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    layers.sort(key=lambda item: ORDER.index(re.match("[a-z]+", item[0])[0]))
    return [(prefix + name, layer) for name, layer in layers]


def _rows(layers: list[Layer], i: int) -> Tensor:
    """For each input of the i-th layer, a dense one, the row of the release's kernel. It flattens maps in (H, W, C) order."""
    (name, layer), before = layers[i], layers[i - 1][1]
    start, channels, side = 0, 0, 0  # of the maps among the inputs
    if i > 0 and isinstance(before, nn.Conv2d):
        channels, side = before.out_channels, math.isqrt(layer.in_features // before.out_channels)
    elif name.endswith("bottleneck"):  # its inputs are the code, the explanation and the prediction
        start, channels = before.out_features, layers[0][1].in_channels
        side = 2 << sum("encoder" in other for other, _ in layers)  # each halves it, down to 2
    rows, end = torch.arange(layer.in_features), start + channels * side * side
    rows[start:end] = rows[start:end].view(side, side, channels).permute(2, 0, 1).flatten()
    return rows


def _remedy(found: list[tuple[Entry, Entry]], ours: list[Layer]) -> str:
    """Of a network of other sizes. The width of inverters and injectors follows from their last dense layer."""
    share = {"bottleneck": 4, "dense": 2}  # the layer has width / share outputs
    for name, layer in ours:
        outputs = [kernel.shape[1] for kernel, _ in found if len(kernel.shape) == 2]
        times = share.get(name.rpartition(".")[2])
        if times and outputs and outputs[-1] != layer.out_features:
            return f"it is of --width {times * outputs[-1]}: give that, or move it away"
    return ("it is another network, or one of images, maps or classes of other sizes: give the --target or --image-size of "
            "those, or move it away")


def _check_victim(bundle: Bundle, victim: TrainedModel, kind: str, origin: str) -> None:
    """Refuses an injector or attacker of another victim. The checkpoint of an injector has its victim in it."""
    if kind == "injector":
        theirs, own = read_network(bundle, victim.network, "victim_model"), victim.network.state_dict()
        fits = all(theirs[name].equal(value.cpu()) for name, value in own.items())
    else:
        fits = not victim.made_by or "converted" in victim.made_by
    if not fits:
        raise GnimeError(f"{origin}: made for another victim than this run's; put it beside the release's victim in a new "
                         "--root and run prepare.py there, or move it away")


def split_warning(names: list[str], shuffled: bool) -> list[str]:
    """What a reader of results must know of converted networks: which images they may have seen.

    names: of the converted networks. shuffled: whether this project shuffled the images; False: they are arrays of the user's
    own, in the order that they have.
    """
    if not names:
        return []
    why = ("it split the images otherwise than this run" if shuffled else
           "its halves are those of this run only if the arrays in aux/ are its own")
    return [f"converted from the authors' release: {', '.join(names)}. They may have been trained on images that are the "
            f"attacker's or the test images here, because {why}; accuracies may be too high, and errors of converted attackers "
            "too small"]
