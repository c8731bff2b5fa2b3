"""Compares the rows of the table: residual leakage, and warnings where the evaluation contradicts itself."""

import itertools
import math

from torch import Tensor

from .evaluate import Result
from .metrics.leakage import LEAST_LEAK, bootstrap_interval, paired_interval, residual_leakage
from .registry import ATTACKERS, RESIDUAL, find_row

SAME = 0.1  # MSE, relative: two attackers of the same data may differ so much by their weights at the start


def compare(results: dict[str, Result]) -> list[str]:
    """Adds residual leakage to each row's numbers; returns warnings where the evaluation contradicts itself."""
    for name, result in results.items():
        result.numbers[RESIDUAL] = None
        if {"predmi", "expmi"} <= results.keys():
            parts = result.errors, results["predmi"].errors, results["expmi"].errors
            result.numbers[RESIDUAL] = residual_leakage(*(part.double().mean().item() for part in parts))
            if name not in ("predmi", "expmi"):  # which are 0 and 1 by definition
                result.numbers |= {f"{RESIDUAL}_interval": paired_interval(*parts), f"{RESIDUAL}_exposed": exposed(*parts)}
    return [*_unlearnt(results), *_noise_that_leaks(results), *_more_than_its_bits(results)]


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


def _unlearnt(results: dict[str, Result]) -> list[str]:
    """Rows whose paper's attacker does worse than another of the paper's attackers that knows no more."""
    mse_of = {name: result.numbers["mse"] for name, result in results.items()}
    interval = {name: result.numbers["mse_interval"] for name, result in results.items()}
    warnings = []
    for name, result in results.items():
        if name != "predmi" and "predmi" in mse_of and interval[name][0] > interval["predmi"][1]:
            warnings.append(f"{name}: the paper's attacker does worse (MSE {mse_of[name]:.4f}) than one without explanations "
                            f"({mse_of['predmi']:.4f}), which it could imitate: it has not converged; train it longer")
        if name != "expmi" and "expmi" in mse_of and _distortion(result, 1.0) < 1e-9:
            if abs(mse_of[name] / mse_of["expmi"] - 1) > SAME:
                warnings.append(f"{name}: distorts nothing, but its attacker's MSE is {mse_of[name]:.4f} and the undefended "
                                f"one's {mse_of['expmi']:.4f}: one of them has not converged; train them longer")
    return warnings


def _distortion(result: Result, unknown: float) -> float:
    """`unknown` where the row publishes no map, or the number is not finite."""
    distortion = result.numbers.get("distortion")
    return unknown if distortion is None else distortion


def _more_than_its_bits(results: dict[str, Result]) -> list[str]:
    """Rows whose maps add nothing to the prediction, and that leak all the same."""
    warnings = []
    for name, result in results.items():
        interval = result.numbers.get(f"{RESIDUAL}_interval")
        if find_row(name).bits == 0 and interval and interval[0] > 0:
            warnings.append(f"{name}: its maps add nothing to the prediction, but residual leakage is "
                            f"{result.numbers[RESIDUAL]:.0%}: attackers learn less from the prediction than it tells, or the "
                            "maps tell of the defender's images; the other rows' leakage is too large by as much")
    return warnings


def _noise_that_leaks(results: dict[str, Result]) -> list[str]:
    """Pairs of rows of which the noisier one is recovered better."""
    mse_of = {name: result.numbers["mse"] for name, result in results.items()}
    interval = {name: result.numbers["mse_interval"] for name, result in results.items()}
    noisy = [name for name in results if find_row(name).defence in ("none", "rnd")]
    noisy.sort(key=lambda name: _distortion(results[name], math.inf))
    return [f"{more}: more noise than {less}, but its attacker recovers more (MSE {mse_of[more]:.4f} and {mse_of[less]:.4f}): "
            f"{less}'s has not converged; train it longer" for less, more in itertools.pairwise(noisy)
            if interval[more][1] < interval[less][0] and mse_of[more] < (1 - SAME) * mse_of[less]]


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
                if result not in references:
                    numbers[f"{RESIDUAL}_interval"] = paired_interval(errors, *same)
            repeats = "answers" in ATTACKERS[numbers["attacker"]].knows  # it is asked more than the verdict assumes
            if result not in references and not repeats and numbers["gain"][0] > 0:
                warnings.append(_optimistic(row, name, numbers))
    return warnings


def _optimistic(row: str, name: str, numbers: dict) -> str:
    line = (f"{row}: the verdict is optimistic: of the first {numbers['n']} test images {name} recovers more (MSE "
            f"{numbers['mse']:.4f}) than the best attacker that knows the data alone ({numbers['best_mse']:.4f})")
    leaks = numbers.get(RESIDUAL), numbers.get(f"best_{RESIDUAL}")
    return line if None in leaks else line + "; residual leakage there is {:.0%}, not {:.0%}".format(*leaks)


def _mean(errors: Tensor) -> float:
    return errors.double().mean().item()
