"""Averaging a randomised defence's answers against hand arithmetic, and both attackers that know more through the scripts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gnime import checks
from gnime.attackers import averaging as module
from gnime.attackers import white_box
from gnime.data import AttackerData
from gnime.defences import DefenceInputs
from gnime.defences.noise import row_noise
from gnime.registry import ROWS
from gnime.system import derive_seed

VARIANCE = 0.04


@pytest.fixture
def there(tmp_path):
    n = 300  # more than one batch, and more than the rows whose noise is drawn together
    clean = AttackerData(np.zeros((n, 1, 4, 4), np.uint8), np.zeros(n), np.zeros((n, 3), np.float32),
                         np.random.default_rng(0).random((n, 1, 8, 8), np.float32), range(100), range(100, 120), range(120, n))
    return SimpleNamespace(attacker_data=clean, paths=SimpleNamespace(aux=tmp_path), run=SimpleNamespace(seed=3),
                           device=SimpleNamespace(torch=torch.device("cpu")),
                           defence_inputs=lambda row: DefenceInputs(3, variance=VARIANCE))


def test_the_variance_of_the_mean_falls_with_the_answers(there, monkeypatch):
    """k draws of variance v have a mean of variance v / k, of which 300 x 64 numbers show all but about 1 %."""
    clean, seen = there.attacker_data, {}

    def kernel(experiment, row, shown):
        return SimpleNamespace(reconstruct=None, summary={"score": 0.5})

    monkeypatch.setattr(module, "kernel", kernel)
    first = clean.explanations + VARIANCE**0.5 * row_noise(3, "rnd", torch.tensor(clean.explanations), range(300)).numpy()
    shown = AttackerData(**vars(clean) | {"explanations": first})
    for trial in module.averaging(there, ROWS["rnd"], shown, best=None):
        seen[trial.summary["answers"]] = trial.shown.explanations.copy()
        assert trial.shown.test == clean.test and trial.name == f"averaging {trial.summary['answers']}"
        assert trial.summary["score"] == 0.5
    assert list(seen) == [1, 4, 16, 64]
    assert np.array_equal(seen[1], first), "one answer is the row's own map"
    for answers, maps in seen.items():
        assert np.square(maps - clean.explanations).mean() == pytest.approx(VARIANCE / answers, rel=0.05)
    draws = [first] + [clean.explanations + VARIANCE**0.5 * row_noise(
        derive_seed(3, "answer", given), "rnd", torch.tensor(clean.explanations), range(300)).numpy() for given in (2, 3, 4)]
    np.testing.assert_allclose(seen[4], np.mean(draws, 0, dtype=float), atol=1e-6)
    assert np.array_equal(shown.explanations, first), "what the other attackers see stays"


@pytest.mark.usefixtures("no_pictures")
def test_both_attackers_that_know_more_through_the_scripts(scripts, root_copy, monkeypatch):
    monkeypatch.setattr(white_box, "STEPS", 2)
    monkeypatch.setattr(module, "ANSWERS", (1, 2))
    monkeypatch.setattr(checks, "BURST", 0)
    code, out, errors = scripts("eval", root_copy, "--attackers", "kernel", "white-box", "averaging")
    assert code == 0, errors
    found = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())
    assert any(line.startswith("models/victim/digits.pt: ") and "is near chance" in line for line in found["warnings"])
    assert any(line.startswith("injector: its training was not steady") for line in found["warnings"])
    for name, row in found["settings"].items():
        drawn = ["averaging 1", "averaging 2"] if name == "rnd" else []
        assert list(row["beside"]) == ["white-box", *drawn] and row["answers"] == (1 if name == "rnd" else None)
        assert row["best"]["attacker"] in row["attackers"] and not {"white-box", "averaging"} & row["attackers"].keys()
        assert row["beside"]["white-box"]["n"] == 6 and found["costs"][name]["white-box"] >= 0
    kernel, once = found["settings"]["rnd"]["attackers"]["kernel"], found["settings"]["rnd"]["beside"]["averaging 1"]
    assert once["mse"] == pytest.approx(kernel["mse"], rel=1e-6), "one answer is what the kernel attacker saw"
    assert "gnime: not attacked by averaging: this defence draws nothing" in out
    assert "predmi: not attacked by averaging: it needs an explanation" in out
    assert "rnd: its residual leakage holds for one answer to each image" in out
    assert "attackers that know more than the data" in out
