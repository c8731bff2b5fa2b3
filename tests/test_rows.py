"""Rows with a number in their names, and the bits that they send."""

import math

import pytest
import torch

from gnime.cli import resolve
from gnime.evaluate import Result
from gnime.registry import CONTROLS, DEFAULT_ROWS, DEFENCES, FAMILIES, ROWS, colour, find_row, in_order, title
from gnime.report import results


def test_rows_with_a_number():
    row = find_row("prototypes-6")
    assert (row.defence, row.parameters, title(row)) == ("prototypes", {"clusters": 6}, "prototypes, K = 6")
    assert find_row("prototypes-16") is ROWS["prototypes-16"] and find_row("gnime") is ROWS["gnime"]
    assert title(ROWS["prototypes-16"]) == "prototypes, K = 16" and find_row("prototypes-16").colour == ""
    mixed = find_row("mix-0.35")
    assert mixed.control and mixed.parameters == {"share": 0.35} and title(mixed).endswith("S = 0.35")
    assert colour(find_row("prototypes-5")) == DEFENCES["prototypes"].colour
    assert FAMILIES.keys() == {"rnd", "gnime", "prototypes", "cond-prototypes", "mix"}
    assert "mix-0.1" in CONTROLS and not {"cond-mean", "prototypes-16"} & {*CONTROLS, *DEFAULT_ROWS}
    names = ["predmi", "prototypes-4", "prototypes-8", "prototypes-16", "prototypes-100", "cond-prototypes-2", "mix-0.05",
             "mix-0.1", "blank"]
    assert in_order(reversed(names)) == names


@pytest.mark.parametrize("name", ["prototypes-0", "prototypes-x", "prototypes-", "prototypes", "prototypes-016",
                                  "prototypes--1", "prototypes-1.5", "prototypes-1_0",
                                  "prototypes-٣", "mix-2", "mix-1", "mix-0.0", "mix-.1",
                                  "mix-0.10", "mix-nan", "gnime-4", "rnd-2", "", "-1", "cond-mean-1", "prototypes-16\n"])
def test_names_that_no_row_has(scripts, runner, tmp_path, name):
    with pytest.raises(ValueError, match="prototypes-K"):
        find_row(name)
    code, line = scripts.fails("eval", tmp_path, f"--settings={name}")
    assert code == 2 and "argument --settings: " in line and "prototypes-K (any whole K from 1)" in line and "gnime" in line
    assert runner.fails(f"--settings={name}")[0] == 2


def test_bits_by_hand():
    expected = {"predmi": None, "expmi": None, "gnime": None, "cond-mean": 0, "class-mean": 0, "blank": 0, "prototypes-16": 4,
                "prototypes-1": 0, "prototypes-6": math.log2(6), "cond-prototypes-8": 3, "mix-0.1": None, "rnd": None,
                "negative": None, "permutation": None}
    assert {name: find_row(name).bits for name in expected} == expected
    empty = Result({}, {}, torch.empty(0), None)
    assert results.bounds(dict.fromkeys(["expmi", "cond-mean", "prototypes-2", "prototypes-6"], empty)) == [
        "cond-mean: at most 0 bits beyond the prediction", "prototypes-2: at most 1 bit beyond the prediction",
        "prototypes-6: at most 2.59 bits beyond the prediction"]


def test_help_names_the_families(capsys):
    with pytest.raises(SystemExit):
        resolve("eval", ["--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(name in shown for name in (",prototypes-K(anywholeKfrom1)", "cond-prototypes-K", "mix-S(0<S<1)"))
