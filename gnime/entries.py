"""The kinds of entries of the registry. Imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from .ownfiles import is_own, load_own


def load(function: str) -> Callable:
    """The function that "module:function" names, or the object of "FILE.py:NAME"."""
    if is_own(function):
        return load_own(function)
    module, name = function.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Entry:
    """One name that a user can give.

    Attributes:
        name, title: on the command line, and in tables and figures.
        function: "module:function", or "FILE.py:NAME" of an object in a file of the user's own.
        version: raised when the function computes something else than before, and the digest of the user's file; part of the
            identity of its results.
    """

    name: str
    title: str
    function: str
    version: int | str = 1

    @property
    def own(self) -> bool:
        """Whether it is an object in a file of the user's own."""
        return is_own(self.function)

    def load(self) -> Callable:
        return load(self.function)


@dataclass(frozen=True)
class Explainer(Entry):
    """(model, images (N, C, H, W) in [0, 1]) -> explanations (N, K, h, w) in [0, 1], float32.

    Maps of the user's own explainers may have any range; `explanations.explainer` scales them.

    Attributes:
        layers: whether it takes `layer`, the name of the module whose output it explains.
    """

    layers: bool = False


@dataclass(frozen=True)
class Number:
    """The one parameter of a defence that the names of its rows carry, as in `prototypes-16` and `gnime@100`.

    Attributes:
        parameter, type: its name and type in the defence's function.
        letter: stands for it in --help and titles.
        pattern: regular expression of the numbers that are allowed, each in one spelling.
        words: the same in words.
        mark: between the defence's name and the number.
        instead_of: what the defence does not need where the number is given.
    """

    parameter: str
    type: type
    letter: str
    pattern: str
    words: str
    mark: str = "-"
    instead_of: str = ""


@dataclass(frozen=True)
class Defence(Entry):
    """(inputs: DefenceInputs, **parameters) -> protect(explanation, prediction, image, rows) -> maps.

    Attributes:
        colour: of its row in figures; empty: one of `registry.COLOURS`.
        needs: the fields of `DefenceInputs` that it uses beside the seed. They are made or found before it is called.
        fit: "module:function" (data: DefenderData, **parameters) -> Fit, of a defence that needs `fitted`.
        number: the parameter that its rows' names carry.
        bits: (**parameters) -> the most that a map can say about its image beyond what is published of the prediction; None:
            not known.
        draws: it adds noise that follows from the seed and the row, so another seed gives another map of the same image.
        quantises: it sends one of a few maps, so a map does not change with the explanation except in steps.
    """

    colour: str = ""
    needs: tuple[str, ...] = ()
    fit: str = ""
    number: Number | None = None
    bits: Callable[..., float] | None = None
    draws: bool = False
    quantises: bool = False


@dataclass(frozen=True)
class Attacker(Entry):
    """(experiment, row, shown: AttackerData) -> reconstruct(explanation or None, prediction) -> images, or a `Fitted`.

    One that knows more than the data gives no verdict: its numbers stand beside that. See `gnime.attackers` for its function.

    Attributes:
        without_maps: it can attack rows that withhold the explanation.
        rows: names of the rows that it attacks even where it is not asked for: they need its skill.
        knows: its knowledge, of "data" (images of the same kind with the service's answers), "victim", "defence" and "answers"
            (several to one image).
        stored: "row" or "run": it leaves a file for each row, or one for all, and can be trained beforehand; empty: none.
    """

    without_maps: bool = False
    rows: tuple[str, ...] = ()
    knows: tuple[str, ...] = ("data",)
    stored: str = ""

    @property
    def beside(self) -> bool:
        """Whether it knows more than the data."""
        return self.knows != ("data",)


@dataclass(frozen=True)
class Metric(Entry):
    """(the inputs that `takes` names, each one number or tensor an image) -> one number an image, (N,).

    Attributes:
        takes: of "image", "reconstruction", "label", "clean" and "protected" (explanations), "prediction", "victim" (the
            network), and "victim_logits", "evaluation_logits", "image_features", "reconstruction_features" (what the two
            classifiers compute).
        total: "module:function" (sum over images, number of images) -> the set's number; empty: the mean over images.
        form: format of its numbers in tables.
        scaled: whether its number is told as 0 for random maps and 1 for the clean ones; see `references`.
        safer: "higher" or "lower": which of two defences protects better; empty where that does not follow.
        useful: likewise, which of two maps keeps more of the explanation.
    """

    takes: tuple[str, ...] = ()
    total: str = ""
    form: str = ".4f"
    scaled: bool = False
    safer: str = ""
    useful: str = ""

    @property
    def direction(self) -> str:
        """In words."""
        return f"{self.safer}: safer" if self.safer else f"{self.useful}: keeps more" if self.useful else ""
