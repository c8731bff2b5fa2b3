"""Explainers, defences and attackers of the user's own in the registry, under the names that they have in the user's files."""

from collections.abc import Iterable

from .entries import Attacker, Defence, Explainer, load
from .errors import GnimeError
from .ownfiles import digest, own_name
from .registry import ATTACKERS, DEFENCES, EXPLAINERS, ROWS, Row

OWN_KINDS = {"xai": EXPLAINERS, "settings": DEFENCES, "attackers": ATTACKERS}  # by flag
OWN_NEEDS = ("injector", "variance", "frozen_inverter", "class_means")
OWN_COLOURS = ("#006d77", "#b5179e", "#7f4f24", "#3a0ca3", "#588157", "#ef476f")


def register(files: Iterable[tuple[str, str]]) -> None:
    """Enters objects in the user's own files, pairs of a flag of `OWN_KINDS` and FILE.py:NAME, under NAME. Runs the files.

    Those of an earlier call leave, so the registry follows from `files` alone. A process that others are started from does
    not pass its registry on: each calls this for its run. An object may have attributes with the meaning that they have in
    `entries`: a defence `needs`, `draws` and `quantises`, an attacker `without_maps`.

    Raises:
        GnimeError: a file cannot be run, or has no such object.
    """
    for table in OWN_KINDS.values():
        for name in [name for name, entry in table.items() if entry.own]:
            del table[name]
    for name in [name for name, row in ROWS.items() if row.defence and row.defence not in DEFENCES]:
        del ROWS[name]
    for kind, spec in files:
        name, found = own_name(spec), load(spec)
        about = {"name": name, "title": f"{name} (own)", "function": spec, "version": digest(spec)}
        if kind == "xai":
            EXPLAINERS[name] = Explainer(**about)
        elif kind == "attackers":
            ATTACKERS[name] = Attacker(**about, without_maps=bool(getattr(found, "without_maps", False)))
        else:
            colour = OWN_COLOURS[sum(entry.own for entry in DEFENCES.values()) % len(OWN_COLOURS)]
            needs = tuple(getattr(found, "needs", ()))
            if unknown := [need for need in needs if need not in OWN_NEEDS]:
                raise GnimeError(f"{spec}: needs {', '.join(map(str, unknown))}; a defence may need {', '.join(OWN_NEEDS)}")
            kind_of = {key: bool(getattr(found, key, False)) for key in ("draws", "quantises")}
            DEFENCES[name] = Defence(**about, needs=needs, colour=colour, **kind_of)
            ROWS[name] = Row(name, name)
