"""The test images that the pictures show, chosen by a rule before anybody has seen them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..batches import gather_rows
from ..errors import printable
from ..evaluate import Result, as_bytes
from ..experiment import Experiment
from ..registry import find_row, title
from .verdict import subject


@dataclass(frozen=True)
class Example:
    """A test image with what every row publishes of it, and what the row's best attacker makes of that.

    Attributes:
        why: "first", "median" or "worst".
        name, label: its file or its number; its class.
        image, explanation: (C, S, S) uint8.
        maps, found: row -> the protected map, None where it is withheld; the reconstruction. uint8.
        errors: row -> MSE of the reconstruction.
    """

    why: str
    name: str
    label: str
    image: Tensor
    explanation: Tensor
    maps: dict[str, Tensor | None]
    found: dict[str, Tensor]
    errors: dict[str, float]

    def plain(self) -> dict:
        return {"why": self.why, "name": self.name, "class": self.label, "mse": self.errors}


def drawable(picture: Tensor) -> np.ndarray:
    """(C, S, S) as pixels (S, S) or (S, S, 3): grey pictures and those of three colours as they are, of others the mean."""
    pixels = picture if len(picture) in (1, 3) else picture.float().mean(0, keepdim=True).to(picture.dtype)
    return pixels.permute(1, 2, 0).squeeze(2).numpy()


def names(experiment: Experiment) -> list[str]:
    """Of each test image, its file or its number in the source, or its number in `aux/` where these are not known."""
    test, file = experiment.data.splits.test, experiment.paths.files
    lines = file.read_text(encoding="utf-8", errors="backslashreplace").splitlines() if file.exists() else []
    return lines[test.start : test.stop] if len(lines) == len(experiment.data.images) else [str(i) for i in test]


def labels(experiment: Experiment) -> list[str]:
    """Of each test image, the name of its class, or of the predicted class where it is not known."""
    data, test = experiment.data, experiment.data.splits.test
    said = "" if data.labelled else "predicted "
    return [said + printable(data.classes[label]) for label in data.labels[test.start : test.stop].tolist()]


def choose(experiment: Experiment, results: dict[str, Result]) -> tuple[str, list[Example]]:
    """The rule in words, and the first test image, the one of median leak and the one of the largest.

    An image's leak is what the best attacker gains by the map of `verdict.subject` over the prediction alone. Only images of
    which every row has a reconstruction count.
    """
    judged = subject(list(results)) or list(results)[-1]
    n = min(len(result.shown) for result in results.values())
    gain = -results[judged].errors[:n]
    words = f"how well the best attacker recovers them from the maps of {title(find_row(judged))}"
    if judged != "predmi" and "predmi" in results:
        gain = gain + results["predmi"].errors[:n]
        words = f"how much the maps of {title(find_row(judged))} help the best attacker beyond the prediction"
    order = gain.argsort().tolist()
    rule = f"Of the first {n} test images: the first, and the median and the worst by {words}."
    picked = {"first": 0, "median": order[(n - 1) // 2], "worst": order[-1]}
    return rule, [_example(experiment, results, why, i) for why, i in picked.items()]


def _example(experiment: Experiment, results: dict[str, Result], why: str, i: int) -> Example:
    shown = experiment.attacker_data
    image, explanation = (as_bytes(gather_rows(array, shown.test[i : i + 1], experiment.device.torch))[0]
                          for array in (shown.images, shown.explanations))
    return Example(why, names(experiment)[i], labels(experiment)[i], image, explanation,
                   {name: None if result.shown_explanation is None else result.shown_explanation[i]
                    for name, result in results.items()},
                   {name: result.shown[i] for name, result in results.items()},
                   {name: result.errors[i].item() for name, result in results.items()})
