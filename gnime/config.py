"""Every number of the method, once: one frozen record per target, and the run that a command line resolves to.

Imports the standard library alone, so that `--help` answers at once.
Sources: [P] Jeong et al., NeurIPS 2022; [R] the authors' TensorFlow release; [G] our choice.
"""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path

SHUFFLE_SEED_PURPOSE = "shuffle"
TEST_FRACTION = 0.2  # of the attacker's half; no attacker trains on it [P]
VALIDATION_FRACTION = 0.1  # of what is left of the attacker's half, for early stopping [G]
PICTURE_EVERY = 50  # epochs between two checkpoints and pictures of the injector [R]


@dataclass(frozen=True)
class Stage:
    """How one kind of network is trained. Adam throughout."""

    epochs: int
    batch_size: int
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    patience: int = 10

    def identity(self) -> list:
        """What of it decides the weights after a given number of epochs."""
        return [self.batch_size, self.lr, list(self.betas), self.eps, self.patience]


@dataclass(frozen=True)
class Target:
    """A data set with the networks and the training that the paper gives it."""

    name: str
    channels: int
    size: int
    convs: tuple[int, ...]
    hidden: int
    dropout: float
    features: str  # layer that DeePSiM compares: "pool" (flattened last pooling) or "hidden"
    classifier: Stage
    inverter: Stage
    injector: Stage
    weight: float  # a in D - a V
    width: int = 2048
    source: str = "folder"
    folder: str = ""
    gradcam_pool: int = 256  # images that the authors' release averages Grad-CAM's weights over [R]


_CLASSIFIER = Stage(epochs=100, batch_size=256, betas=(0.5, 0.999))
_INVERTER = Stage(epochs=300, batch_size=128)
_INJECTOR = Stage(epochs=500, batch_size=1024)

_MNIST = Target("mnist", source="mnist", channels=1, size=32, convs=(128, 256), hidden=512, dropout=0.0, features="pool",
                classifier=_CLASSIFIER, inverter=_INVERTER, injector=_INJECTOR, weight=100.0)
_CELEBA = Target("celeba", folder="celeba_cropped_1000", channels=3, size=128, convs=(128, 256, 512), hidden=512,
                 dropout=0.5, features="hidden", classifier=replace(_CLASSIFIER, batch_size=128), inverter=_INVERTER,
                 injector=replace(_INJECTOR, batch_size=128), weight=500.0, gradcam_pool=64)

TARGETS = {
    "mnist": _MNIST,
    "cifar10": replace(_MNIST, name="cifar10", source="cifar10", folder="cifar10", channels=3),
    "celeba": _CELEBA,
    # scikit-learn's handwritten digits, 8x8: the embedded demonstration, minutes on two cores [G]
    "digits": Target("digits", channels=1, source="digits", size=16, convs=(32, 64), hidden=128, dropout=0.0,
                     features="pool", classifier=Stage(epochs=30, batch_size=32, lr=1e-3, betas=(0.5, 0.999)),
                     inverter=Stage(epochs=150, batch_size=32, lr=1e-3),
                     injector=Stage(epochs=250, batch_size=64, lr=1e-3), weight=300.0, width=256),
}

# where the authors' release differs from the paper (METHOD, last list), each of which can be repeated alone [R]
OFFICIAL = {
    "gradcam": "Grad-CAM's channel weights are averaged over a batch",
    "scale": "the clean explanation enters the injector's sparring inverter standardised",
    "order": "attackers see their data in one fixed order",
    "validation": "they validate on their test set, and train on what the default keeps for validation",
    "optimiser": "their batches and Adam's betas differ from setting to setting; its epsilon is 1e-7 for every network",
}

IMAGE_SIZES = (16, 32, 64, 128, 256)  # the networks halve and double: powers of two


def target(name: str, image_size: int | None = None) -> Target:
    """The record of `name`; any other name is a folder of class folders, treated as the paper treats faces."""
    found = TARGETS.get(name) or replace(_CELEBA, name=name, folder=name)
    return replace(found, size=image_size) if image_size else found


# controls that the release has not: trained as what they are compared with
AS_EXPMI = ("rnd-0", "negative", "permutation", "class-mean", "blank")


def official_stage(stage: Stage, target_name: str, network: str) -> Stage:
    """`stage` as the authors' release has it (the choice "optimiser").

    `network`: "classifier", "injector", or the setting whose inverter is trained.
    """
    stage = replace(stage, eps=1e-7)  # TensorFlow's Adam
    if target_name in ("mnist", "cifar10"):
        if network in ("predmi", "expmi", *AS_EXPMI):
            return replace(stage, batch_size=2 * stage.batch_size, betas=(0.5, 0.999))  # 256
        if network in ("rnd", "rnd-4"):
            return replace(stage, batch_size=2 * stage.batch_size)
    elif network == "predmi":
        return replace(stage, betas=(0.5, 0.999))
    return stage


@dataclass(frozen=True)
class Run:
    """A resolved command line: everything that decides what a script does."""

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
    settings: tuple[str, ...] = ()
    skip_bad: bool = False

    def repeats(self, *choices: str) -> list[str]:
        """Which of these choices of the authors it repeats: what an artifact that they act on must record."""
        return [choice for choice in choices if choice in self.official]

    def stage(self, network: str) -> Stage:
        """The training of `network`: "classifier", "injector", or a setting (its inverter)."""
        kind = network if network in ("classifier", "injector") else "inverter"
        stage = getattr(self.target, kind)
        if self.repeats("optimiser"):
            stage = official_stage(stage, self.target.name, network)
        own = {"prepare": "classifier", "train": "injector", "eval": "inverter"}[self.script]
        if kind == own:
            stage = replace(stage, **{k: v for k in ("epochs", "batch_size") if (v := getattr(self, k)) is not None})
        return stage

    def command(self, script: str) -> str:
        """The command line of a script for the same data; of this run's own script, with everything it was given."""
        flags = {"--target": self.target.name, "--xai": self.xai, "--limit": self.limit, "--seed": self.seed or None,
                 "--width": self.target.width if self.target.width != target(self.target.name).width else None,
                 "--image-size": self.target.size if self.target.size != target(self.target.name).size else None,
                 "--root": None if self.root == Path() else self.root,
                 "--datasets": None if self.datasets == self.root / "datasets" else self.datasets, "--gpu": self.gpu}
        switches = {}
        if script == self.script:
            usual = target(self.target.name).weight
            flags |= {"--epochs": self.epochs, "--batch-size": self.batch_size, "--precision": self.precision,
                      "--weight": self.target.weight if script == "train" and self.target.weight != usual else None}
            switches |= {"--deterministic": self.deterministic, "--skip-bad": self.skip_bad}
        words = [f"{flag} {shlex.quote(str(value))}" for flag, value in flags.items() if value is not None]
        words += [switch for switch, on in switches.items() if on] + self.official_flag()
        if script == self.script and self.settings:
            words += ["--settings", *self.settings]
        return " ".join(["python", f"{script}.py", *words])

    def official_flag(self) -> list[str]:
        """`--official` as this run was given it: alone it means every choice."""
        return ["--official", *(self.official if len(self.official) < len(OFFICIAL) else ())] if self.official else []

    def summary(self) -> str:
        """The resolved configuration in one line."""
        network = {"prepare": "classifier", "train": "injector", "eval": "expmi"}[self.script]
        stage, shape = self.stage(network), (self.target.channels, self.target.size, self.target.size)
        mode = " ".join(self.official_flag()).removeprefix("--") or "default"
        return ", ".join([
            f"target {self.target.name} {shape}", f"xai {self.xai}", f"seed {self.seed}", f"limit {self.limit or 'none'}",
            f"width {self.target.width}", f"weight {self.target.weight:g}", f"epochs {stage.epochs}",
            f"batch {stage.batch_size}", f"lr {stage.lr:g}", f"patience {stage.patience}",
            f"mode {mode}", f"root {self.root}", f"datasets {self.datasets}"])

    def describe(self) -> dict:
        """The configuration as plain data, for printing and for `results.json`."""
        plain = asdict(self)
        plain["target"] = self.target.name
        plain["root"], plain["datasets"] = str(self.root), str(self.datasets)
        plain |= {"image": [self.target.channels, self.target.size, self.target.size],
                  "width": self.target.width, "weight": self.target.weight,
                  "stages": {name: asdict(self.stage("expmi" if name == "inverter" else name))
                             for name in ("classifier", "injector", "inverter")}}
        return plain
