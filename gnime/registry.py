"""Every explainer, defence, attacker, row and metric by name. The command line, identities, tables, figures and docs read it.

Imports nothing heavy: an entry names its function as "module:function", which is imported when it is first wanted.
CONTRIBUTING.md has a recipe for each kind of entry.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TypeVar


@dataclass(frozen=True)
class Entry:
    """One name that a user can give.

    Attributes:
        name, title: on the command line, and in tables and figures.
        function: "module:function".
        version: raised when the function computes something else than before; part of the identity of its results.
    """

    name: str
    title: str
    function: str
    version: int = 1

    def load(self) -> Callable:
        module, name = self.function.split(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class Explainer(Entry):
    """(model, images (N, C, H, W) in [0, 1]) -> explanations (N, K, h, w) in [0, 1], float32."""


@dataclass(frozen=True)
class Defence(Entry):
    """(inputs: DefenceInputs, **parameters) -> protect(explanation, prediction, image, rows) -> maps.

    Attributes:
        colour: of its row in figures.
        needs: the fields of `DefenceInputs` that it uses beside the seed. They are made or found before it is called.
    """

    colour: str = "#555555"
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attacker(Entry):
    """(experiment, row, shown: AttackerData) -> reconstruct(explanation or None, prediction) -> images, or a `Fitted`.

    Attributes:
        rows: names of the rows that it attacks; empty: every row that publishes an explanation.
        knows: its knowledge, of "data" (images of the same kind with the service's answers), "victim" and "defence".
    """

    rows: tuple[str, ...] = ()
    knows: tuple[str, ...] = ("data",)


@dataclass(frozen=True)
class Metric(Entry):
    """(the inputs that `takes` names, each one number or tensor an image) -> one number an image, (N,).

    Attributes:
        takes: of "image", "reconstruction", "label", "clean" and "protected" (explanations), "prediction", and "victim_logits",
            "evaluation_logits", "image_features", "reconstruction_features" (what the two classifiers compute).
        total: "module:function" (sum over images, number of images) -> the set's number; empty: the mean over images.
        form: format of its numbers in tables.
        safer: "higher" or "lower": which of two defences protects better; empty where that does not follow.
    """

    takes: tuple[str, ...] = ()
    total: str = ""
    form: str = ".4f"
    safer: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table: what a service publishes, and the attackers that see it.

    Attributes:
        defence: name of the defence; None: the explanation is withheld.
        parameters: arguments of the defence.
        trained_as: the paper's setting whose batch and optimiser `--official optimiser` repeats for its attackers.
        control: whether it tests the evaluation itself.
        title, colour: the defence's where they are empty.
    """

    name: str
    defence: str | None
    parameters: dict = field(default_factory=dict)
    trained_as: str = "expmi"
    control: bool = False
    title: str = ""
    colour: str = ""

    @property
    def attackers(self) -> tuple[str, ...]:
        """Names of those that attack it. The one with the lowest validation error counts."""
        return tuple(attacker.name for attacker in ATTACKERS.values()
                     if self.name in attacker.rows or (self.defence and not attacker.rows))

    @property
    def needs(self) -> tuple[str, ...]:
        return DEFENCES[self.defence].needs if self.defence else ()

    @property
    def needs_injector(self) -> bool:
        """Whether the noise injector must be trained: it protects, or its distortion is matched."""
        return bool({"injector", "variance"} & set(self.needs))

    def identity(self) -> list:
        """The definition of its defence: name, version and parameters."""
        return [self.defence, DEFENCES[self.defence].version if self.defence else 1, self.parameters]


Named = TypeVar("Named", bound=Entry | Row)


def _by_name(*entries: Named) -> dict[str, Named]:
    return {entry.name: entry for entry in entries}


EXPLAINERS = _by_name(
    Explainer("grad", "Gradient", "gnime.explainers.grad:grad"),
    Explainer("gradcam", "Grad-CAM", "gnime.explainers.gradcam:gradcam"),
    Explainer("lrp", "LRP (z+)", "gnime.explainers.lrp:lrp"),
)
PAPER_EXPLAINERS = ("grad", "gradcam", "lrp")  # of the paper's table

DEFENCES = _by_name(
    Defence("none", "undefended", "gnime.defences.controls:none", colour="#d62728"),
    Defence("rnd", "Gaussian noise", "gnime.defences.noise:rnd", colour="#ff7f0e", needs=("variance",)),
    Defence("ond", "adversarial noise (ours)", "gnime.defences.ond:ond", colour="#9467bd",
            needs=("variance", "frozen_inverter")),
    Defence("gnime", "GNIME", "gnime.defences.gnime:gnime", colour="#1f77b4", needs=("injector",)),
    Defence("negative", "1 - e", "gnime.defences.controls:negative", colour="#8c564b"),
    Defence("permutation", "secret pixel permutation", "gnime.defences.controls:permutation", colour="#e377c2"),
    Defence("class-mean", "mean explanation of the predicted class", "gnime.defences.class_mean:class_mean", colour="#17becf",
            needs=("class_means",)),
    Defence("blank", "a blank explanation", "gnime.defences.controls:blank", colour="#bcbd22"),
)

ATTACKERS = _by_name(
    Attacker("predmi", "PredMI", "gnime.attackers.inverter:predmi", rows=("predmi",)),
    Attacker("expmi", "ExpMI", "gnime.attackers.inverter:expmi"),
    Attacker("centred", "ExpMI on centred maps", "gnime.attackers.inverter:centred", rows=("negative",)),
    Attacker("dense", "ExpMI behind a dense layer", "gnime.attackers.inverter:dense", rows=("permutation",)),
)

METRICS = _by_name(
    Metric("mse", "MSE", "gnime.metrics.leakage:mse", takes=("image", "reconstruction"), safer="higher"),
    Metric("psnr", "PSNR", "gnime.metrics.leakage:psnr", takes=("image", "reconstruction"), form=".2f", safer="lower"),
    Metric("ssim", "SSIM", "gnime.metrics.leakage:ssim", takes=("image", "reconstruction"), safer="lower"),
    Metric("accuracy", "accuracy", "gnime.metrics.leakage:correct", takes=("victim_logits", "label")),
    Metric("tca", "TCA", "gnime.metrics.leakage:correct", takes=("evaluation_logits", "label")),
    Metric("deepsim", "DeePSiM", "gnime.metrics.leakage:squared_distance", takes=("image_features", "reconstruction_features"),
           total="gnime.metrics.leakage:deepsim_of"),
    Metric("distortion", "distortion", "gnime.metrics.leakage:mse", takes=("clean", "protected")),
)
RESIDUAL = "residual_leakage"  # compares rows, so no metric of one; in every table after the metrics


def _rows(*rows: Row) -> dict[str, Row]:
    """In the order of tables. A defence that no row names has a row of its own name."""
    named = {row.defence for row in rows}
    return _by_name(*rows, *(Row(name, name) for name in DEFENCES if name not in named))


# the controls: noise of no size and of a larger one, two fake defences that hide nothing, and the least that an
# explanation can say
ROWS = _rows(
    Row("predmi", None, trained_as="predmi", title="prediction only", colour="#7f7f7f"),
    Row("expmi", "none"),
    Row("rnd", "rnd", trained_as="rnd"),
    Row("ond", "ond", trained_as="gnime"),
    Row("gnime", "gnime", trained_as="gnime"),
    Row("rnd-0", "rnd", {"level": 0.0}, control=True, title="no noise", colour="#f5c6a0"),
    Row("rnd-4", "rnd", {"level": 4.0}, trained_as="rnd", control=True, title="Gaussian noise, 4 times the distortion",
        colour="#a04000"),
    Row("negative", "negative", control=True),
    Row("permutation", "permutation", control=True),
    Row("class-mean", "class-mean", control=True),
    Row("blank", "blank", control=True),
)
PAPER_ROWS = ("predmi", "expmi", "rnd", "ond", "gnime")  # of the paper's table
DEFAULT_ROWS = ("predmi", "expmi", "rnd", "gnime")
CONTROLS = tuple(row.name for row in ROWS.values() if row.control)


def title(row: Row) -> str:
    return ("control: " if row.control else "") + (row.title or DEFENCES[row.defence].title)


def colour(row: Row) -> str:
    return row.colour or DEFENCES[row.defence].colour
