"""Defences and explanations that break their promises, and what `protect` keeps of those that hold them."""

import shutil

import numpy as np
import pytest
import torch
from bounded import DEVICE

from gnime import evaluate
from gnime.defences import DefenceInputs
from gnime.registry import DEFENCES, ROWS, Defence, Row


def broken(kind):
    def defence(inputs):
        def protect(explanation, prediction, image, rows):
            if kind == "late nan":  # not in the first batch
                return explanation if rows.start == 0 else torch.full_like(explanation, torch.nan)
            return {"nan": torch.full_like(explanation, torch.nan), "infinite": explanation / 0, "none": None,
                    "numpy": explanation.numpy(), "flat": explanation.flatten(1), "one": explanation[:1],
                    "larger": torch.cat([explanation, explanation], 3)}[kind]

        return None if kind == "no function" else protect  # `return protect` is easily forgotten

    return defence


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("kind", "words"), [
    ("nan", "not finite"), ("infinite", "not finite"), ("late nan", "not finite"), ("none", "NoneType, not a tensor"),
    ("no function", "NoneType, not a function that protects"),
    ("numpy", "ndarray, not a tensor"), ("flat", "(20, 256) of explanations (20, 1, 16, 16)"),
    ("one", "(1, 1, 16, 16) of explanations (20, 1, 16, 16)"), ("larger", "(20, 1, 16, 32)")])
def test_a_defence_that_returns_something_else_is_refused_before_training(scripts, root_copy, monkeypatch, kind, words):
    entry = Defence("broken", "broken", "somewhere:broken")
    monkeypatch.setitem(DEFENCES, "broken", entry)
    monkeypatch.setitem(ROWS, "broken", Row("broken", "broken"))
    monkeypatch.setattr(Defence, "load", lambda self: broken(kind) if self is entry else pytest.fail("another defence"))
    monkeypatch.setattr("gnime.batches.AT_ONCE", {"cpu": 20})
    shutil.rmtree(root_copy / "models/inv")
    rows = ["predmi", "broken"] if kind != "late nan" else ["broken"]
    code, line = scripts.fails("eval", root_copy, "--settings", *rows)
    assert code == 1 and "error: broken: its defence returned" in line and words in line and "mend somewhere:broken" in line
    assert not list((root_copy / "models/inv").glob("*.pt")), "no attacker was trained"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("image", "row"), [
    (45, "expmi"), (45, "mix-0.1"), (3, "prototypes-2"), (3, "cond-mean")])
def test_an_explanation_that_is_not_finite_is_refused(scripts, root_copy, monkeypatch, image, row):
    """A file of ours is trusted for its checksum, so a fault of an explainer would come this far."""
    from gnime.batches import gather_rows

    def spoilt(array, rows, device):
        batch = gather_rows(array, rows, device)
        if batch.shape[1:] == (1, 16, 16) and array.dtype == np.float32:
            at = [(rows if isinstance(rows, range) else rows.tolist()).index(i) for i in offsets if i in rows]
            batch = batch.clone()
            batch[at] = torch.nan
        return batch

    offsets = (image - 30,) if image >= 30 else (image,)
    monkeypatch.setattr("gnime.batches.gather_rows", spoilt)
    code, line = scripts.fails("eval", root_copy, "--settings", row)
    assert code == 1 and f"{row}: " in line and "not finite" in line and "prepare.py again" in line


def test_published_maps_are_what_protect_keeps(monkeypatch):
    """`protect` joins the batches in order, for a defence that changes maps and for none."""
    e, y, x = torch.rand(150, 1, 4, 4), torch.randn(150, 3), torch.rand(150, 1, 8, 8)

    class Half:
        explanations, predictions, images = e, y, x

    class Fake:
        attacker_data, device = Half, DEVICE

        class paths:
            aux = "."

        def defence_inputs(self, row):
            return DefenceInputs(0)

    np.testing.assert_allclose(evaluate.protect(Fake(), ROWS["negative"]), 1 - e)
    assert evaluate.protect(Fake(), ROWS["expmi"]) is e and evaluate.protect(Fake(), ROWS["predmi"]) is None
