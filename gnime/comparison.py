"""Compares the rows of the table: residual leakage, and warnings where the evaluation contradicts itself."""

import itertools
import math

from torch import Tensor

from .evaluate import Result
from .metrics.leakage import (
    LEAST_LEAK,
    NOTHING,
    bootstrap_interval,
    is_possible,
    paired_interval,
    residual_leakage,
)
from .registry import ATTACKERS, RESIDUAL, find_row
from .words import counted

FEW = 20  # test images; a bootstrap's interval is too narrow by sqrt((n - 1) / n) and Student's t: 9 % with 20, 18 % with 10
SAME = 0.1  # MSE, relative: two attackers of the same data may differ so much by their weights at the start


def compare(results: dict[str, Result], remedy: str = "train longer") -> list[str]:
    """Adds residual leakage to each row's numbers; returns warnings where the evaluation contradicts itself.

    remedy: against attackers that have not converged.
    """
    for name, result in results.items():
        result.numbers[RESIDUAL] = None
        if {"predmi", "expmi"} <= results.keys():
            parts = result.errors, results["predmi"].errors, results["expmi"].errors
            result.numbers[RESIDUAL] = residual_leakage(*(part.double().mean().item() for part in parts))
            if name not in ("predmi", "expmi"):  # which are 0 and 1 by definition
                interval = paired_interval(*parts)
                result.numbers |= {f"{RESIDUAL}_interval": interval,
                                   f"{RESIDUAL}_exposed": exposed(*parts) if interval else None}
    warnings = [*_few_images(results), *_unlearnt(results, remedy), *_noise_that_leaks(results, remedy),
                *_more_than_its_bits(results)]
    told = {warning.split(":")[0] for warning in warnings}
    return warnings + [warning for warning in _impossible(results, remedy) if warning.split(":")[0] not in told]


def _few_images(results: dict[str, Result]) -> list[str]:
    tested = min((len(result.errors) for result in results.values()), default=FEW)
    return [f"{counted(tested, 'test image')} cannot carry a verdict: over fewer than {FEW} the intervals are too narrow; give "
            "more images"] if tested < FEW else []


def exposed(row: Tensor, prediction: Tensor, undefended: Tensor) -> float | None:
    """Residual leakage of the 5 % of the images that the row exposes most.

    row, prediction, undefended: (n,) squared errors of the best attackers of the row, of the row without explanations, and of
    the undefended one. The images are those whose error falls most below that without explanations. Chance selects them too,
    and raises the error of as many others by as much, so the rise at that end is subtracted. None for fewer than 5 images.
    """
    gain = (prediction - row).double()
    order, count = gain.argsort(), round(EXPOSED * len(row))
    if count < 5:
        return None
    most, least = order[-count:], order[:count]
    leak = (prediction - undefended)[most].double().mean().item()
    return (gain[most].mean().item() + min(gain[least].mean().item(), 0.0)) / leak if leak > LEAST_LEAK else None


EXPOSED = 0.05  # share of the test images


def _impossible(results: dict[str, Result], remedy: str) -> list[str]:
    """Rows whose residual leakage is not from 0 to 1, by more than chance. Where the undefended leak is too small for an
    interval, nothing is said."""
    warnings = []
    for name, result in results.items():
        leak, interval = result.numbers[RESIDUAL], result.numbers.get(f"{RESIDUAL}_interval", ())
        if leak is not None and interval is not None and not is_possible(leak, interval):
            side = "less than one without explanations" if leak < 0 else "more than one of the undefended explanations"
            warnings.append(f"{name}: the best attacker recovers {side} (residual leakage {leak:.0%}): attackers have not "
                            f"converged; {remedy}")
    return warnings


def _unlearnt(results: dict[str, Result], remedy: str) -> list[str]:
    """Rows whose paper's attacker does worse than another of the paper's attackers that knows no more.

    Worse by more than chance: by `SAME`, or so that the intervals of the two do not meet.
    """
    mse_of = {name: result.numbers["mse"] for name, result in results.items()}
    interval = {name: result.numbers["mse_interval"] for name, result in results.items()}
    warnings = []
    for name, result in results.items():
        if name != "predmi" and "predmi" in mse_of and (
                interval[name][0] > interval["predmi"][1] or mse_of[name] > (1 + SAME) * mse_of["predmi"]):
            warnings.append(f"{name}: the paper's attacker does worse (MSE {mse_of[name]:.4f}) than one without explanations "
                            f"({mse_of['predmi']:.4f}), which it could imitate: it has not converged; "
                            f"{_instead(result, remedy)}")
        if name != "expmi" and "expmi" in mse_of and _distortion(result, 1.0) < 1e-9:
            if abs(mse_of[name] / mse_of["expmi"] - 1) > SAME:
                warnings.append(f"{name}: distorts nothing, but its attacker's MSE is {mse_of[name]:.4f} and the undefended "
                                f"one's {mse_of['expmi']:.4f}: one of them has not converged; {remedy}")
    return warnings


def _instead(result: Result, remedy: str) -> str:
    """The remedy, unless the paper's attacker of the row stopped because it learnt nothing more."""
    if not result.attacker.get("early"):
        return remedy
    return (f"it stopped after {counted(result.attacker['epochs'], 'epoch')}, because it learnt nothing more: give more "
            "images, or another --lr or --width")


def _distortion(result: Result, unknown: float) -> float:
    """`unknown` where the row publishes no map, or the number is not finite."""
    distortion = result.numbers.get("distortion")
    return unknown if distortion is None else distortion


def _more_than_its_bits(results: dict[str, Result]) -> list[str]:
    """Rows whose maps add nothing to the prediction, and that leak all the same."""
    warnings = []
    for name, result in results.items():
        leak, interval = result.numbers[RESIDUAL], result.numbers.get(f"{RESIDUAL}_interval")
        if find_row(name).bits == 0 and interval and interval[0] >= NOTHING:
            warnings.append(f"{name}: its maps add nothing to the prediction, but residual leakage is {leak:.0%}: attackers "
                            "learn less from the prediction than it tells, and then the other rows' leakage is too large "
                            "too, by up to about as much; or the maps tell of the defender's images")
    return warnings


def _noise_that_leaks(results: dict[str, Result], remedy: str) -> list[str]:
    """Pairs of rows of which the noisier one is recovered better, by more than `SAME`."""
    mse_of = {name: result.numbers["mse"] for name, result in results.items()}
    noisy = [name for name in results if find_row(name).defence in ("none", "rnd")]
    noisy.sort(key=lambda name: _distortion(results[name], math.inf))
    return [f"{less}: its attacker recovers less (MSE {mse_of[less]:.4f}) than that of {more} ({mse_of[more]:.4f}), which has "
            f"more noise: it has not converged; {_instead(results[less], remedy)}" for less, more in itertools.pairwise(noisy)
            if mse_of[more] < (1 - SAME) * mse_of[less]]


def compare_beside(results: dict[str, Result]) -> list[str]:
    """Adds to the numbers of attackers that know more than the data; returns warnings where they recover more.

    Added: "n", how many of the test images they attacked, the first; "best_mse", of the best attacker that knows the data
    alone, on these images; "gain", interval of the mean of what they recover more, in squared error; residual leakage by
    them, its interval, and that of the best attacker, "best_residual_leakage". The errors of the rows without explanation and
    undefended, to which it is relative, are those of the same attacker where it attacks them, otherwise the best one's.
    """
    warnings, references = [], [results.get(name) for name in ("predmi", "expmi")]
    for row, result in results.items():
        for name, errors in result.beside.items():
            numbers, best = result.numbers["beside"][name], result.errors[: len(errors)]
            numbers |= {"n": len(errors), "best_mse": _mean(best), "gain": list(bootstrap_interval(best - errors))}
            if all(references):
                same = [reference.beside.get(name, reference.errors)[: len(errors)] for reference in references]
                others = [reference.errors[: len(errors)] for reference in references]
                numbers |= {RESIDUAL: residual_leakage(*map(_mean, (errors, *same))),
                            f"best_{RESIDUAL}": residual_leakage(*map(_mean, (best, *others)))}
                if row not in ("predmi", "expmi"):
                    numbers[f"{RESIDUAL}_interval"] = paired_interval(errors, *same)
            if row not in ("predmi", "expmi") and _optimistic(numbers):
                warnings.append(_optimism(row, name, numbers))
    return warnings


def _optimistic(numbers: dict) -> bool:
    """Whether the attacker recovers more than the best one of the battery, and, where that is known, more of the leak.

    One that only learns more from the prediction recovers more in every row, and makes none leakier.
    """
    if "answers" in ATTACKERS[numbers["attacker"]].knows:
        return False  # it is asked more often than the verdict assumes
    interval, best = numbers.get(f"{RESIDUAL}_interval"), numbers.get(f"best_{RESIDUAL}")
    return numbers["gain"][0] > 0 and (None in (interval, best) or interval[0] > best)


def _optimism(row: str, name: str, numbers: dict) -> str:
    line = (f"{row}: the verdict is optimistic: of the first {numbers['n']} test images {name} recovers more (MSE "
            f"{numbers['mse']:.4f}) than the best attacker that knows the data alone ({numbers['best_mse']:.4f})")
    leaks = numbers.get(RESIDUAL), numbers.get(f"best_{RESIDUAL}")
    return line if None in leaks else line + "; residual leakage there is {:.0%}, not {:.0%}".format(*leaks)


def _mean(errors: Tensor) -> float:
    return errors.double().mean().item()
