"""Every explainer, defence, attacker, row and metric by name. The command line, identities, tables, figures and docs read it.

Imports nothing heavy: an entry names its function as "module:function", which is imported when it is first wanted.
CONTRIBUTING.md has a recipe for each kind of entry.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .entries import Attacker, Defence, Entry, Explainer, Metric, Number


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
    def paper_attacker(self) -> str:
        """The attacker whose numbers are comparable with the paper's table."""
        return "expmi" if self.defence else "predmi"

    def attackers(self, asked: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """Names of those of `asked` that attack this row, and why others cannot. The paper's attacker is always among them."""
        names, reasons = [], {}
        for attacker in ATTACKERS.values():
            wanted = attacker.name in (*asked, self.paper_attacker)
            if wanted and (reason := self._why_not(attacker)):
                reasons[attacker.name] = reason
            elif wanted or self.name in attacker.rows:
                names.append(attacker.name)
        return names, reasons

    def _why_not(self, attacker: Attacker) -> str:
        """Why the attacker cannot attack this row; empty if it can."""
        if not self.defence and not attacker.without_maps:
            return "it needs an explanation"
        if "answers" in attacker.knows and not DEFENCES[self.defence].draws:
            return "this defence draws nothing, so all answers to one image are the same map"
        return ""

    @property
    def draws(self) -> bool:
        """Whether its maps carry noise that is drawn; what they leak then holds for one answer to each image."""
        return self.defence is not None and DEFENCES[self.defence].draws

    @property
    def needs(self) -> tuple[str, ...]:
        if not self.defence:
            return ()
        needs, number = DEFENCES[self.defence].needs, DEFENCES[self.defence].number
        given = number is not None and number.parameter in self.parameters
        return tuple(need for need in needs if not (given and need == number.instead_of))

    def weight(self, usual: float) -> float:
        """The weight of the injector that it needs; `usual` where its name carries none."""
        return self.parameters.get("weight", usual)

    @property
    def needs_injector(self) -> bool:
        """Whether the noise injector must be trained: it protects, or its distortion is matched."""
        return bool({"injector", "variance"} & set(self.needs))

    @property
    def bits(self) -> float | None:
        """The most that a map can say about its image beyond what is published of the prediction, in bits; None: not known."""
        bound = DEFENCES[self.defence].bits if self.defence else None
        return bound(**self.parameters) if bound else None

    def identity(self) -> list:
        """The definition of its defence: name, version and parameters."""
        return [self.defence, DEFENCES[self.defence].version if self.defence else 1, self.parameters]


Named = TypeVar("Named", bound=Entry | Row)


def _by_name(*entries: Named) -> dict[str, Named]:
    return {entry.name: entry for entry in entries}


EXPLAINERS = _by_name(
    Explainer("grad", "Gradient", "gnime.explainers.grad:grad"),
    Explainer("gradcam", "Grad-CAM", "gnime.explainers.gradcam:gradcam", layers=True),
    Explainer("lrp", "LRP (z+)", "gnime.explainers.lrp:lrp"),
)
PAPER_EXPLAINERS = ("grad", "gradcam", "lrp")  # of the paper's table


def takes_layer(xai: str) -> bool:
    """Whether the explainer of that name can be told which layer it explains."""
    return xai in EXPLAINERS and EXPLAINERS[xai].layers


def _no_bits() -> float:
    """Of a map that follows from what is published of the prediction."""
    return 0.0


def _chosen(clusters: int) -> float:
    """Of a map that is one of `clusters`, once it is known what is published of the prediction."""
    return math.log2(clusters)


CLUSTERS = Number("clusters", int, "K", r"[1-9][0-9]{0,8}", "any whole K from 1")
_AMOUNT = r"(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{0,5}[1-9])?"
WEIGHT = Number("weight", float, "A", _AMOUNT, "any A from 0", mark="@")
DISTORTION = Number("distortion", float, "D", _AMOUNT, "any D from 0", mark="@", instead_of="variance")
SHARE = Number("share", float, "S", r"0\.[0-9]{0,5}[1-9]", "0 < S < 1")
FITTED = {"function": "gnime.defences.fitting:fitted", "needs": ("fitted",)}

DEFENCES = _by_name(
    Defence("none", "undefended", "gnime.defences.controls:none", colour="#d62728"),
    Defence("rnd", "Gaussian noise", "gnime.defences.noise:rnd", colour="#ff7f0e", needs=("variance",),
            number=DISTORTION, draws=True),
    Defence("ond", "adversarial noise (ours)", "gnime.defences.ond:ond", colour="#9467bd",
            needs=("variance", "frozen_inverter"), draws=True),
    Defence("gnime", "GNIME", "gnime.defences.gnime:gnime", colour="#1f77b4", needs=("injector",), number=WEIGHT),
    Defence("negative", "1 - e", "gnime.defences.controls:negative", colour="#8c564b"),
    Defence("permutation", "secret pixel permutation", "gnime.defences.controls:permutation", colour="#e377c2"),
    Defence("class-mean", "mean explanation of the predicted class", "gnime.defences.class_mean:class_mean", colour="#17becf",
            needs=("class_means",), bits=_no_bits),
    Defence("blank", "a blank explanation", "gnime.defences.controls:blank", colour="#bcbd22", bits=_no_bits),
    Defence("cond-mean", "mean explanation given the prediction", fit="gnime.defences.cond_mean:fit", colour="#2ca02c",
            bits=_no_bits, **FITTED),
    Defence("prototypes", "prototypes", fit="gnime.defences.prototypes:fit", colour="#393b79", number=CLUSTERS, bits=_chosen,
            quantises=True, **FITTED),
    Defence("cond-prototypes", "mean given the prediction and prototypes", fit="gnime.defences.prototypes:fit_conditional",
            colour="#637939", number=CLUSTERS, bits=_chosen, quantises=True, **FITTED),
    Defence("mix", "mixed with the class's mean", "gnime.defences.controls:mix", colour="#e7969c", needs=("class_means",),
            number=SHARE),
)

ATTACKERS = _by_name(
    Attacker("predmi", "PredMI", "gnime.attackers.inverter:predmi", without_maps=True, stored="run"),
    Attacker("expmi", "ExpMI", "gnime.attackers.inverter:expmi", stored="row"),
    Attacker("centred", "ExpMI on centred maps", "gnime.attackers.inverter:centred", rows=("negative",), stored="row"),
    Attacker("dense", "ExpMI behind a dense layer", "gnime.attackers.inverter:dense", rows=("permutation",), stored="row"),
    Attacker("unet", "residual U-Net", "gnime.attackers.unet:unet", without_maps=True, stored="row"),
    Attacker("kernel", "kernel ridge regression", "gnime.attackers.kernel:kernel", without_maps=True),
    Attacker("white-box", "optimisation through victim, explainer and defence", "gnime.attackers.white_box:white_box",
             without_maps=True, knows=("data", "victim", "defence")),
    Attacker("averaging", "mean of several answers", "gnime.attackers.averaging:averaging", knows=("data", "answers")),
)

METRICS = _by_name(
    Metric("mse", "MSE", "gnime.metrics.leakage:mse", takes=("image", "reconstruction"), safer="higher"),
    Metric("psnr", "PSNR", "gnime.metrics.leakage:psnr", takes=("image", "reconstruction"), form=".2f", safer="lower"),
    Metric("ssim", "SSIM", "gnime.metrics.leakage:ssim", takes=("image", "reconstruction"), safer="lower"),
    Metric("accuracy", "accuracy", "gnime.metrics.leakage:correct", takes=("victim_logits", "label")),
    Metric("tca", "TCA", "gnime.metrics.leakage:correct", takes=("evaluation_logits", "label")),
    Metric("deepsim", "DeePSiM", "gnime.metrics.leakage:squared_distance", takes=("image_features", "reconstruction_features"),
           total="gnime.metrics.leakage:deepsim_of"),
    Metric("distortion", "distortion", "gnime.metrics.leakage:mse", takes=("clean", "protected"), useful="lower"),
    Metric("pearson", "Pearson", "gnime.metrics.usefulness:pearson", takes=("clean", "protected"), useful="higher"),
    Metric("spearman", "Spearman", "gnime.metrics.usefulness:spearman", takes=("clean", "protected"), useful="higher"),
    Metric("top_overlap", "top-10 % overlap", "gnime.metrics.usefulness:top_overlap", takes=("clean", "protected"),
           useful="higher"),
    Metric("deletion", "deletion", "gnime.metrics.usefulness:deletion", takes=("victim", "image", "protected"), form=".2f",
           scaled=True, useful="higher"),
    Metric("insertion", "insertion", "gnime.metrics.usefulness:insertion", takes=("victim", "image", "protected"), form=".2f",
           scaled=True, useful="higher"),
)
USEFULNESS = "pearson"  # the metric that stands beside leakage: of a map against the clean one, which has 1
RESIDUAL = "residual_leakage"  # compares rows, so no metric of one; in every table after the metrics


def _rows(*rows: Row) -> dict[str, Row]:
    """In the order of tables. A defence that no row names has a row of its own name."""
    named = {row.defence for row in rows}
    return _by_name(*rows, *(Row(name, name) for name in DEFENCES if name not in named))


# the controls: noise of no size and of a larger one, three fake defences that hide nothing or little, and the least that
# an explanation can say
ROWS = _rows(
    Row("predmi", None, trained_as="predmi", title="prediction only", colour="#7f7f7f"),
    Row("expmi", "none"),
    Row("rnd", "rnd", trained_as="rnd"),
    Row("ond", "ond", trained_as="gnime"),
    Row("gnime", "gnime", trained_as="gnime"),
    Row("cond-mean", "cond-mean"),
    Row("prototypes-4", "prototypes", {"clusters": 4}, colour="#9c9ede"),
    Row("prototypes-16", "prototypes", {"clusters": 16}),
    Row("cond-prototypes-8", "cond-prototypes", {"clusters": 8}),
    Row("rnd-0", "rnd", {"level": 0.0}, control=True, title="no noise", colour="#f5c6a0"),
    Row("rnd-4", "rnd", {"level": 4.0}, trained_as="rnd", control=True, title="Gaussian noise, 4 times the distortion",
        colour="#a04000"),
    Row("negative", "negative", control=True),
    Row("permutation", "permutation", control=True),
    Row("mix-0.1", "mix", {"share": 0.1}, control=True),
    Row("class-mean", "class-mean", control=True),
    Row("blank", "blank", control=True),
)
PAPER_ROWS = ("predmi", "expmi", "rnd", "ond", "gnime")  # of the paper's table
DEFAULT_ROWS = ("predmi", "expmi", "rnd", "gnime")
DEFAULT_ATTACKERS = ("predmi", "expmi", "kernel")  # of every row: the paper's two, and one that needs no training
CONTROLS = tuple(row.name for row in ROWS.values() if row.control)


# a defence whose rows' names may carry a number has a row for every number, like the first of its rows in ROWS
FAMILIES = {defence.name: next(row for row in ROWS.values() if row.defence == defence.name)
            for defence in DEFENCES.values() if defence.number}
KNOWN = ", ".join([*ROWS, *(f"{name}{number.mark}{number.letter} ({number.words})"
                            for name in FAMILIES for number in [DEFENCES[name].number])])


def find_row(name: str) -> Row:
    """The row of that name: one of `ROWS`, or one of `FAMILIES` with another number, as "prototypes-6" or "gnime@100".

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    if name in ROWS:
        return ROWS[name]
    for family, first in FAMILIES.items():
        number = DEFENCES[family].number
        text = name.removeprefix(family + number.mark)
        if text != name and re.fullmatch(number.pattern, text):
            return replace(first, name=name, parameters={number.parameter: number.type(text)}, colour="")
    raise ValueError(f"{name!r} is none of {KNOWN}")


def _number(row: Row) -> float | None:
    """The number that the row's name carries."""
    number = DEFENCES[row.defence].number if row.defence else None
    return row.parameters.get(number.parameter) if number else None


def injector_weights(names: Iterable[str], usual: float) -> tuple[float, ...]:
    """The weights of the injectors that these rows need; `usual` is that of rows whose names carry none."""
    rows = [find_row(name) for name in names]
    return tuple(dict.fromkeys(row.weight(usual) for row in rows if row.needs_injector))


def injector_row(weight: float) -> str:
    """The name of the row of an injector of that weight. `find_row` knows it if its digits are few enough."""
    return f"gnime{WEIGHT.mark}{weight:g}"


def injector_entry(weight: float, usual: float) -> str:
    """The name of the injector of that weight among the networks in `results.json`."""
    return "injector" if weight == usual else f"{injector_row(weight)} injector"


def in_order(names: Iterable[str]) -> list[str]:
    """Names of rows in the order of tables: that of `ROWS`, and by their number within a family."""
    places = list(ROWS)

    def place(name: str) -> tuple[int, float]:
        row = find_row(name)
        number = _number(row)
        return (places.index(name), -1) if number is None else (places.index(FAMILIES[row.defence].name), number)

    return sorted(names, key=place)


def title(row: Row) -> str:
    """In tables and figures: "prototypes, K = 16"."""
    defence, value = DEFENCES.get(row.defence), _number(row)
    number = "" if value is None else f", {defence.number.letter} = {value:g}"
    return ("control: " if row.control else "") + (row.title or (defence.title + number if defence else row.name))


COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666")  # ColorBrewer, Dark2


def colour(row: Row) -> str:
    """In figures. Rows and defences that name none have one of `COLOURS` each, in turn."""
    own = row.colour or (DEFENCES[row.defence].colour if row.defence else "")
    bare = [name for name, other in ROWS.items() if not (other.colour or other.defence and DEFENCES[other.defence].colour)]
    return own or COLOURS[bare.index(row.name) % len(COLOURS) if row.name in bare else -1]
