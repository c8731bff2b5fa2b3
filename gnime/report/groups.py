"""Runs that differ in their seed alone, and what can be averaged over them. Pure."""

from collections import defaultdict

from ..config import OFFICIAL
from ..registry import RESIDUAL, in_order

DEFAULT, RELEASE = (), tuple(OFFICIAL)  # none of the authors' choices repeated, and all


def group(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Runs that differ in their seed alone: (target, xai, official) -> runs."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups[run["target"], run["xai"], tuple(run["configuration"]["official"])].append(run)
    return groups


def whole_modes(runs: list[dict]) -> dict[tuple, list[dict]]:
    """The groups of the default mode and of the whole release; runs of single choices are only compared with them."""
    return {key: seeds for key, seeds in group(runs).items() if key[2] in (DEFAULT, RELEASE)}


def values(runs: list[dict], setting: str, metric: str) -> list:
    """A metric of every run that has it; residual leakage only of the runs that `comparable` returns."""
    chosen = comparable(runs) if metric == RESIDUAL else runs
    found = [run["settings"][setting].get(metric) for run in chosen if setting in run["settings"]]
    return [value for value in found if value is not None]


def comparable(runs: list[dict]) -> list[dict]:
    """The runs whose residual leakage can be averaged: those with the most attackers, all with the same."""
    batteries = [run["configuration"].get("attackers", []) for run in runs]
    return [run for run, battery in zip(runs, batteries, strict=True) if battery == max(batteries, key=len)]


def settings_of(runs: list[dict]) -> list[str]:
    """Rows that any of the runs has, in the order of tables."""
    return in_order({setting for run in runs for setting in run["settings"]})
