"""Every number of the method: one frozen record per target, and the run that a command line resolves to.

Imports the standard library only, so that `--help` is fast.
Sources: [P] Jeong et al., NeurIPS 2022; [R] the authors' TensorFlow release; [G] our choice.
"""

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .ownfiles import own_name
from .registry import DEFAULT_ATTACKERS, injector_row, injector_weights

SHUFFLE_SEED_PURPOSE = "shuffle"
TEST_FRACTION = 0.2  # of the attacker's half; no attacker trains on it [P]
VALIDATION_FRACTION = 0.1  # of the rest of the attacker's half, for early stopping [G]
PICTURE_EVERY = 50  # epochs between two checkpoints and pictures of the injector [R]


@dataclass(frozen=True)
class TrainConfig:
    """How one kind of network is trained. Adam throughout."""

    epochs: int
    batch_size: int
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    patience: int = 10

    def identity(self) -> list:
        """The numbers that decide the weights after a given number of epochs."""
        return [self.batch_size, self.lr, list(self.betas), self.eps, self.patience]


@dataclass(frozen=True)
class Target:
    """A data set, and the sizes and the training of its networks.

    Attributes:
        channels, size: the images are (channels, size, size).
        convs, hidden, dropout: of the classifiers; see `models.classifier.Classifier`.
        features: the layer that DeePSiM compares, "pool" (the flattened last pooling) or "hidden".
        inversion_weight: a in the injector's loss D - a V.
        width: of inverters and injector.
        source: "mnist", "cifar10", "digits", "folder", or "arrays" and "record" of .npy files; see `sources.open_source`.
        folder: name of the folder in --datasets.
        gradcam_pool: number of images over which the authors' release averages Grad-CAM's channel weights [R].
    """

    name: str
    channels: int
    size: int
    convs: tuple[int, ...]
    hidden: int
    dropout: float
    features: str
    classifier: TrainConfig
    inverter: TrainConfig
    injector: TrainConfig
    inversion_weight: float
    width: int = 2048
    source: str = "folder"
    folder: str = ""
    gradcam_pool: int = 256


_CLASSIFIER = TrainConfig(epochs=100, batch_size=256, betas=(0.5, 0.999))
_INVERTER = TrainConfig(epochs=300, batch_size=128, lr=1e-4)  # of attackers
_INJECTOR = TrainConfig(epochs=500, batch_size=1024)

_MNIST = Target("mnist", source="mnist", channels=1, size=32, convs=(128, 256), hidden=512, dropout=0.0, features="pool",
                classifier=_CLASSIFIER, inverter=_INVERTER, injector=_INJECTOR, inversion_weight=100.0)
_CELEBA = Target("celeba", folder="celeba_cropped_1000", channels=3, size=128, convs=(128, 256, 512), hidden=512,
                 dropout=0.5, features="hidden", classifier=replace(_CLASSIFIER, batch_size=128), inverter=_INVERTER,
                 injector=replace(_INJECTOR, batch_size=128), inversion_weight=500.0, gradcam_pool=64)

TARGETS = {
    "mnist": _MNIST,
    "cifar10": replace(_MNIST, name="cifar10", source="cifar10", folder="cifar10", channels=3),
    "celeba": _CELEBA,
    # scikit-learn's handwritten digits, 8x8, for the demo: minutes on two cores [G]
    "digits": Target("digits", channels=1, source="digits", size=16, convs=(32, 64), hidden=128, dropout=0.0,
                     features="pool", classifier=TrainConfig(epochs=30, batch_size=32, lr=1e-3, betas=(0.5, 0.999)),
                     inverter=TrainConfig(epochs=150, batch_size=32, lr=1e-3),
                     injector=TrainConfig(epochs=250, batch_size=64, lr=1e-3), inversion_weight=300.0, width=256),
}

# Where the authors' release differs from the paper (docs/method.md "Where the release differs"). Each
# choice can be repeated on its own [R].
OFFICIAL = {
    "gradcam": "Grad-CAM's channel weights are averaged over a batch",
    "scale": "the clean explanation enters the injector's sparring inverter standardised",
    "order": "attackers see their data in one fixed order",
    "validation": "attackers validate on the test set, and train on the images that the default keeps for validation",
    "optimiser": "attackers' batches and Adam's betas differ between settings; Adam's epsilon is 1e-7 for every network",
}

# What a service may publish of its prediction, and how the bits of a map are then told [G]. The paper's are logits.
PUBLISHED = {
    "logits": "beyond the prediction",
    "probabilities": "beyond the published probabilities",
    "label": "beyond the published label",
    "nothing": "in all, because nothing of the prediction is published",
}

# Channels that an inverter needs at the side of the images; it has width / side. On 1,000 digits, 1, 2, 4 and 8 of them gave an
# MSE of .012, .005, .005 and .002 after 80 epochs [G]
CHANNELS = 8
IMAGE_SIZES = (16, 512)  # smallest and largest side; `models.inversion.bring` says how a side meets the networks


def target(name: str, image_size: int | None = None) -> Target:
    """The record of `name` in `TARGETS`. Any other name is a folder of class folders, with the networks of celeba."""
    record = TARGETS.get(name) or replace(_CELEBA, name=name, folder=name)
    return replace(record, size=image_size) if image_size else record


def official_config(config: TrainConfig, target_name: str, network: str) -> TrainConfig:
    """`config` as the authors' release has it (the choice "optimiser").

    `network`: "classifier", "injector", or the paper's setting whose inverter is trained: "predmi", "expmi", "rnd", "gnime".
    """
    config = replace(config, eps=1e-7)  # TensorFlow's Adam
    if target_name in ("mnist", "cifar10"):
        if network in ("predmi", "expmi"):
            return replace(config, batch_size=2 * config.batch_size, betas=(0.5, 0.999))  # 256
        if network == "rnd":
            return replace(config, batch_size=2 * config.batch_size)
    elif network == "predmi":
        return replace(config, betas=(0.5, 0.999))
    return config


def program(script: str) -> str:
    """The command of a script: `gnime-train` where the installed package's command was started, else `python train.py`."""
    return f"gnime-{script}" if Path(sys.argv[0]).name.startswith("gnime-") else f"python {script}.py"


@dataclass(frozen=True)
class Run:
    """A resolved command line. It decides everything that a script does."""

    script: str
    target: Target
    xai: str
    root: Path
    datasets: Path
    seed: int = 0
    limit: int | None = None
    official: tuple[str, ...] = ()  # names in OFFICIAL, in that order
    gpu: int = 0
    precision: str | None = None
    deterministic: bool = False
    epochs: int | None = None
    batch_size: int | None = None
    rows: tuple[str, ...] = ()  # names in registry.ROWS, of the table that eval.py prints
    attackers: tuple[str, ...] = DEFAULT_ATTACKERS  # names in registry.ATTACKERS, that attack every row
    skip_bad: bool = False
    drop_duplicates: str | None = None  # "exact" or "near": which copies of pictures are left out
    jobs: int = 1  # attackers that are trained at once
    published: str = "logits"  # a name in PUBLISHED: the form in which all but the victim see a prediction
    lr: float | None = None
    weights: tuple[float, ...] = ()  # of the inversion loss, of train.py: one injector each; empty: the target's alone
    victim: str = ""  # FILE.py:NAME of a model of the user's own; empty: the paper's classifier, which prepare.py trains
    scale: str = "absolute"  # "absolute" or "signed", of maps by an explainer of the user's own, or of a record
    layer: str = ""  # the module whose output Grad-CAM explains; empty: the last convolution
    files: tuple[tuple[str, str], ...] = ()  # other objects of the user's own; see ownentries.register

    @property
    def record(self) -> bool:
        """Whether a service's record is audited. It has predictions and maps, so there is no victim and no explainer."""
        return self.target.source == "record"

    @property
    def published_part(self) -> str:
        """The part of a name that keeps artifacts of another published form apart."""
        return "" if self.published == "logits" else f"_{self.published}"

    @property
    def published_identity(self) -> dict:
        """The part of an artifact's identity that does."""
        return {"published": self.published} if self.published_part else {}

    @property
    def xai_identity(self) -> dict:
        """The part of an artifact's identity that says which explainer made its maps."""
        return {"xai": self.xai, **({"layer": self.layer} if self.layer else {})}

    def given(self, kind: str, name: str) -> str:
        """The name of an explainer, a setting or an attacker as the command line has it, that is FILE.py:NAME of one's own."""
        return next((spec for flag, spec in self.files if flag == kind and own_name(spec) == name), name)

    def repeats(self, *choices: str) -> list[str]:
        """Those of these choices of the authors that this run repeats. An artifact records the choices that act on it."""
        return [choice for choice in choices if choice in self.official]

    def train_config(self, network: str) -> TrainConfig:
        """The training of `network`: "classifier", "injector", or the paper's setting whose inverter is trained ("expmi", ...).

        The flags --epochs, --batch-size and --lr apply to the networks that the script itself trains.
        """
        kind = network if network in ("classifier", "injector") else "inverter"
        config = getattr(self.target, kind)
        if self.repeats("optimiser"):
            config = official_config(config, self.target.name, network)
        own = {"prepare": "classifier", "train": "injector", "eval": "inverter"}[self.script]
        if kind == own:
            config = replace(config, **{k: v for k in ("epochs", "batch_size", "lr") if (v := getattr(self, k)) is not None})
        return config

    def command(self, script: str) -> str:
        """The command line of a script for the same data. For this run's own script it has all the flags that were given."""
        flags = {"--target": self.target.name, "--victim": self.victim or None, "--xai": self.given("xai", self.xai),
                 "--layer": self.layer or None, "--scale": None if self.scale == "absolute" else self.scale,
                 "--limit": self.limit, "--seed": self.seed or None,
                 "--width": self.target.width if self.target.width != target(self.target.name).width else None,
                 "--image-size": self.target.size if self.target.size != target(self.target.name).size else None,
                 "--root": None if self.root == Path() else self.root,
                 "--datasets": None if self.datasets == self.root / "datasets" else self.datasets, "--gpu": self.gpu,
                 "--published": self.published if self.published_part else None}
        if script == "prepare":
            flags["--drop-duplicates"] = self.drop_duplicates
        switches = {}
        if script == self.script:
            flags |= {"--epochs": self.epochs, "--batch-size": self.batch_size, "--lr": self.lr, "--precision": self.precision}
            flags["--jobs"] = self.jobs if self.jobs > 1 else None
            switches |= {"--deterministic": self.deterministic, "--skip-bad": self.skip_bad}
        words = [f"{flag} {shlex.quote(str(value))}" for flag, value in flags.items() if value is not None]
        words += [switch for switch, on in switches.items() if on] + self.official_flag()
        usual = self.target.inversion_weight
        weights = self.weights or injector_weights(self.rows, usual)
        if script == "train" and weights not in ((), (usual,)):
            words += ["--weight", *(f"{weight:g}" for weight in weights)]
        if script == self.script and self.rows:
            words += ["--settings", *(shlex.quote(self.given("settings", name)) for name in self.rows)]
        elif script == "eval" and self.weights not in ((), (usual,)):
            words += ["--settings", "predmi", "expmi", *(["rnd", "gnime"] if usual in weights else []),
                      *(injector_row(weight) for weight in weights if weight != usual)]
        if script == self.script and self.attackers not in ((), DEFAULT_ATTACKERS):
            words += ["--attackers", *(shlex.quote(self.given("attackers", name)) for name in self.attackers)]
        return " ".join([program(script), *words])

    @property
    def sensible_width(self) -> int:
        """The smallest width at which the inverters' last convolutions have enough channels; see `CHANNELS`."""
        return -(-CHANNELS * self.target.size // 64) * 64

    def official_flag(self) -> list[str]:
        """`--official` as this run was given it. Without names it means every choice."""
        return ["--official", *(self.official if len(self.official) < len(OFFICIAL) else ())] if self.official else []

    def summary(self) -> str:
        """The resolved configuration in one line."""
        network = {"prepare": "classifier", "train": "injector", "eval": "expmi"}[self.script]
        config, shape = self.train_config(network), (self.target.channels, self.target.size, self.target.size)
        weights = " ".join(f"{weight:g}" for weight in self.weights or (self.target.inversion_weight,))
        mode = " ".join(self.official_flag()).removeprefix("--") or "default"
        own = [f"victim {self.victim}"] if self.victim else []
        return ", ".join([
            f"target {self.target.name} {shape}", *own, f"xai {self.given('xai', self.xai)}",
            *([f"layer {self.layer}"] if self.layer else []), f"seed {self.seed}", f"limit {self.limit or 'none'}",
            f"width {self.target.width}", f"weight {weights}", f"epochs {config.epochs}",
            f"batch {config.batch_size}", f"lr {config.lr:g}", f"patience {config.patience}",
            f"mode {mode}", *([f"published {self.published}"] if self.published_part else []), f"root {self.root}",
            f"datasets {self.datasets}"])

    def describe(self) -> dict:
        """The configuration as plain data, for `results.json`."""
        plain = asdict(self)
        plain["settings"] = plain.pop("rows")
        del plain["jobs"], plain["weights"]  # the one changes no result, the other is told by each injector's own file
        if not self.published_part:
            del plain["published"]  # files of the paper's form say nothing of it
        for name in ("victim", "scale", "layer", "files"):  # only where they are given
            if plain[name] == getattr(Run, name):
                del plain[name]
        plain["target"] = self.target.name
        del plain["root"], plain["datasets"]  # places of one machine; the fingerprint of the data stands in the results
        plain |= {"image": [self.target.channels, self.target.size, self.target.size],
                  "width": self.target.width, "weight": self.target.inversion_weight,
                  "stages": {name: asdict(self.train_config("expmi" if name == "inverter" else name))
                             for name in ("classifier", "injector", "inverter")}}
        return plain
