"""Protected explanations where they are served: explainer and defence in one object."""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .batches import at_once, channels_last
from .checkpoints import load_checkpoint
from .errors import GnimeError
from .explainers.graph import NotedLogits
from .explainers.lrp import lrp, of_frozen
from .explainers.stack import minmax
from .explanations import own_maps, publish
from .networks import rebuild_from
from .ops import accelerate, plain
from .ownfiles import digest, is_own, load_own, own_name
from .registry import EXPLAINERS, PAPER_EXPLAINERS
from .store import weights_digest
from .words import counted

SERVED = ("injector", "cond-mean", "prototypes", "cond-prototypes")  # networks that are defences
MARGIN = 0.1  # by which pixels may leave [0, 1], because metrics of explanations perturb images a little
SAME = 1e-3  # the most by which maps of one explainer differ between two formulations of it

Explain = Callable[[nn.Module, Tensor], Tensor]  # (model, images (N, C, H, W)) -> maps (N, K, h, w)


class Protected:
    """The protected explanations of one victim, by one explainer and one defence, as a service publishes them.

    It keeps a copy of the victim, so the model that it was given stays as it is, and later changes of that model change no map.
    No call changes the object: several threads may use it at once if they may use the explainer so (GNIME's own may), and its
    memory does not grow. A defence that needs the prediction alone (`cond-mean`) answers without running the explainer. The map
    of an image in a batch is its map alone up to rounding: the sums of a batch are added in another order. A choice of a
    prototype can then differ where two prototypes are equally near (docs/serving.md).

    Attributes:
        record: what the defence was made for: "victim" (hash of its weights), "xai" and its "version", "pool", "image" and
            "maps" (shapes of one of each), "classes", "published" (the form of predictions), "digest" (of the file); of an
            explainer of one's own also "scale", and of one at another layer than the usual one "layer".
    """

    def __init__(self, victim: nn.Module, explain: Explain, defence: nn.Module, record: dict):
        """Of parts that fit each other; `load` verifies them. Victim and defence must be frozen and in evaluation mode."""
        self.record = record
        self._at_once = at_once([probe(record)], _device_of(victim))
        self._needs_explanation = getattr(defence, "needs_explanation", True)
        self._victim, self._explain, self._defence = victim, of_frozen(victim) if explain is lrp else explain, defence
        # another explainer may evaluate the victim at other images
        function = explain.func if isinstance(explain, functools.partial) else explain
        self._is_ours = any(function is EXPLAINERS[name].load() for name in PAPER_EXPLAINERS)

    @classmethod
    @torch.inference_mode(False)  # what is made in inference mode could not be differentiated later
    def load(cls, path: Path | str, model: nn.Module, explainer: str | Explain) -> "Protected":
        """The explanations that the defence in a file protects: `Protected.load("injector.pt", model, "lrp")`.

        Args:
            path: of an injector or of a fitted defence (`cond-mean`, `prototypes-K`, `cond-prototypes-K`).
            model: the victim, an `nn.Module` from images (N, C, H, W) in [0, 1] to logits (N, classes). It is not changed.
            explainer: a name of the registry, or a function (model, images) -> maps that computes the same maps. The file
                records the layer of Grad-CAM. An explainer of one's own, which the scripts were given as FILE.py:NAME, is
                given so here too; the file is run.

        Raises:
            GnimeError: the file is missing, damaged, no defence, or does not record its victim; or it was made for another
                victim, explainer, scaling or size; or one's own explainer cannot be run. The message says which.
            TypeError: the explainer does not take such a model.
        """
        path = Path(path)
        defence, record = load_defence(path)
        if record["victim"] is None:
            raise GnimeError(f"{path}: made from a service's record, so nothing says which model it protects; export it with "
                             "python -m gnime.export, and give it the service's own explanations and predictions")
        found = weights_digest(model)
        if found != record["victim"]:
            raise GnimeError(f"{path}: made for a victim whose weights have the hash {record['victim'][:12]}, this model's "
                             f"have {found[:12]}; give that victim, or the defence of this model")
        victim = plain(copy.deepcopy(model)).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        device = _device_of(victim)
        explain = _explainer(explainer, record, path)
        check_explainer(explain, victim, record, path)
        return cls(victim, explain, accelerate(defence).to(device).requires_grad_(False), record)

    def attribute(self, images: Tensor | tuple[Tensor], target: int | Sequence[int] | Tensor | None = None,
                  ) -> Tensor | tuple[Tensor]:
        """The protected explanation of the victim's decision, one map for each image, detached.

        Args:
            images: (N, C, H, W), floating-point, in [0, 1], on the victim's device; or a tuple of one such tensor.
            target: None, or the predicted class of all images or of each. It chooses nothing, because a defence protects
                explanations of the predicted class.

        Returns:
            Maps (N, K, h, w) in [0, 1], float32, of the shape of the explainer's; a tuple of them if `images` is a tuple.

        Raises:
            ValueError: the images have another size, type or scaling, or `target` is another class than the predicted one.
        """
        if isinstance(images, tuple):  # captum's metrics give and expect tuples
            if len(images) != 1:
                raise ValueError(f"images: a tuple of {len(images)} tensors; the victim takes one")
            return (self.attribute(images[0], target),)
        self._check_images(images)
        kind = images.device.type
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(kind):
            # explainers differentiate, and maps are of 32-bit numbers
            with torch.inference_mode(False), torch.autocast(kind, enabled=False):
                return self.attribute(images, target)
        images = images.detach().float()
        if len(images) <= self._at_once:
            maps, prediction = self._protect(images)
        else:
            parts = zip(*map(self._protect, images.split(self._at_once)), strict=True)
            maps, prediction = map(torch.cat, parts)
        if target is not None:
            _check_target(target, prediction.argmax(1))
        return maps.detach()

    def _protect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Protected maps (N, K, h, w) and logits (N, classes)."""
        images = channels_last(images)
        if not self._needs_explanation:
            prediction = self._victim(images)
            return self._defence(None, self._public(prediction)), prediction
        with NotedLogits() as noted:  # computed on the way, so the victim runs once
            clean = self._explain(self._victim, images).detach()  # an explainer of one's own may keep its graph
        at_hand = self._is_ours and noted and len(noted[-1]) == len(images)
        prediction = noted[-1] if at_hand else self._victim(images)
        return self._defence(clean, self._public(prediction)), prediction

    def _public(self, logits: Tensor) -> Tensor:
        return publish(logits, self.record.get("published", "logits"))

    def _check_images(self, images: Tensor) -> None:
        wanted = tuple(self.record["image"])
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images: {kind}; give a tensor of floating-point numbers in [0, 1]")
        if images.ndim != 4 or images.shape[1:] != wanted:
            raise ValueError(f"images: shape {tuple(images.shape)}; the defence was made for images of size {wanted}")
        if len(images):
            low, high = (value.item() for value in images.detach().aminmax())
            if not (low >= -MARGIN and high <= 1 + MARGIN):
                raise ValueError(f"images: scaled to [{low:g}, {high:g}]; the defence was made for pixels in [0, 1]")


def load_defence(path: Path) -> tuple[nn.Module, dict]:
    """The injector or fitted defence in a file, plain and in evaluation mode, and the record of what it was made for.

    Raises:
        GnimeError: the file is missing, damaged, no defence, does not record its victim, or protects maps that depend on
            other images.
    """
    if not path.exists():
        raise GnimeError(f"{path} is missing")
    checkpoint = load_checkpoint(path)
    spec = checkpoint.spec or {}
    kind = spec.get("network")
    if kind not in SERVED:
        raise GnimeError(f"{path}: holds {kind or 'a network without a record'}, not an injector or a fitted defence")
    record = (checkpoint.extra or {}).get("protects")
    if record is None:
        maker = "train.py" if kind == "injector" else "eval.py"
        raise GnimeError(f"{path}: an older version wrote it, which did not record the victim; move it away and make it again "
                         f"with {maker}")
    if record["pool"]:
        raise GnimeError(f"{path}: made with --official gradcam, whose maps depend on the other images of a batch; make it "
                         "without")
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # a fresh network draws weights
        defence = rebuild_from(checkpoint, path)
    return defence, record | {"digest": checkpoint.digest}


def _explainer(explainer: str | Explain, record: dict, path: Path) -> Explain:
    """The function of that name, if the defence was made for it; a function is returned as it is."""
    name = record["xai"]
    if _is_own(record):
        return _own_explainer(explainer, record, path)
    if isinstance(explainer, str) and explainer != name:
        raise GnimeError(f"{path}: made for explanations by {name}, not by {explainer}")
    if name not in EXPLAINERS:
        raise GnimeError(f"{path}: made for explanations by {name}, which gnime/registry.py does not list")
    if EXPLAINERS[name].version != record["version"]:
        raise GnimeError(f"{path}: made for version {record['version']} of {name}, this is version {EXPLAINERS[name].version}; "
                         "make it again")
    return _registered(record) if isinstance(explainer, str) else explainer


def _registered(record: dict) -> Explain:
    """The registry's explainer of that name, at the record's layer."""
    function = EXPLAINERS[record["xai"]].load()
    return functools.partial(function, layer=record["layer"]) if "layer" in record else function


def _is_own(record: dict) -> bool:
    """Whether the explainer is in a file of the user's own, whose digest is its version."""
    return isinstance(record["version"], str)


def _own_explainer(explainer: str | Explain, record: dict, path: Path) -> Explain:
    """The explainer FILE.py:NAME, its maps scaled as those that the defence was made for.

    A function is refused, because there is nothing to compare its maps with. A file is compared by its digest.
    """
    name = record["xai"]
    if "scale" not in record:
        raise GnimeError(f"{path}: an older version wrote it, which did not record how the maps of {name} are scaled; move it "
                         "away and make it again")
    if not isinstance(explainer, str) or not is_own(explainer) or own_name(explainer) != name:
        raise GnimeError(f"{path}: made for explanations by {name}, in a file of your own; give the explainer as "
                         f"\"FILE.py:{name}\"")
    if digest(explainer) != record["version"]:
        raise GnimeError(f"{path}: made for another content of {explainer.rpartition(':')[0]}; give the file as it was, or "
                         "make the defence again")
    return functools.partial(own_maps, load_own(explainer), explainer, record["scale"], math.inf)


def check_explainer(explain: Explain, victim: nn.Module, record: dict, path: Path) -> None:
    """Compares the explainer's maps of two random images with those of the registry's explainer of the record.

    Of the user's own explainer only the size is compared: its file is known to be that of the record.

    Raises:
        GnimeError: size, scaling or explainer differ; the message says which.
    """
    images, name = probe(record).to(_device_of(victim)), record["xai"]
    found = explain(victim, images).detach()
    if list(found.shape[1:]) != record["maps"]:
        raise GnimeError(f"{path}: made for maps of size {record['maps']}, this explainer's have {list(found.shape[1:])}")
    if _is_own(record):
        return
    expected = _registered(record)(victim, images)
    if (found - expected).abs().max() <= SAME:
        return
    shifted = found - found.amin((2, 3), keepdim=True)
    if any((minmax(other) - expected).abs().max() <= SAME for other in (found, shifted)):
        raise GnimeError(f"{path}: this explainer's maps are those of {name} in another scaling; scale them to [0, 1] per "
                         "image and channel (gnime.explainers.stack.minmax)")
    raise GnimeError(f"{path}: made for explanations by {name}; this explainer computes other maps")


def probe(record: dict) -> Tensor:
    """Two random images (2, C, H, W) in [0, 1] of the record's size, always the same. The caller's random state stays."""
    return torch.rand(2, *record["image"], generator=torch.Generator().manual_seed(0))


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _check_target(target: int | Sequence[int] | Tensor, predicted: Tensor) -> None:
    """predicted: (N,)."""
    asked = torch.as_tensor(target, device=predicted.device)
    if asked.shape not in ((), (1,), predicted.shape):
        raise ValueError(f"target: shape {tuple(asked.shape)}; give one class, or one for each of "
                         f"{counted(len(predicted), 'image')}")
    for i in (asked != predicted).nonzero().flatten()[:1].tolist():
        raise ValueError(f"target: image {i} is predicted as class {predicted[i]}, not {asked.expand_as(predicted)[i]}; a "
                         "defence protects explanations of the predicted class; leave target out")
