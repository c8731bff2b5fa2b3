"""The choices of the authors' release: each acts where it should, and alone."""

import shutil

import numpy as np
import pytest
import torch
from root_files import Files, N

from gnime import experiment, pipeline
from gnime.data import Splits
from gnime.explainers.gradcam import gradcam


def test_official_gradcam_is_pooled(scripts, tmp_path):
    assert scripts("prepare", tmp_path, "--xai", "gradcam", "--official")[0] == 0
    files = Files(tmp_path, "gradcam")
    images = torch.from_numpy(files.images)
    np.testing.assert_allclose(files.maps, gradcam(files.victim, images, pool=256), atol=1e-5)
    assert np.abs(files.maps - gradcam(files.victim, images).numpy()).max() > 0.01


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("choice", "refused"), [
    ("gradcam", {}), ("scale", {"gnime": "injector.pt"}),
    ("order", {"predmi": "digits_predmi.pt", "gnime": "digits_predmi.pt"}),
    ("validation", {"predmi": "digits_predmi.pt", "gnime": "digits_predmi.pt"}),
    ("optimiser", {"predmi": "victim/digits.pt", "gnime": "victim/digits.pt"})])
def test_a_choice_of_the_authors_refuses_what_it_acts_on_alone(scripts, root_copy, monkeypatch, choice, refused):
    """Made in the default mode, asked for with one choice of the release: lrp has no Grad-CAM to average."""
    warned = []
    monkeypatch.setattr(pipeline, "warn", warned.append)
    for setting in ("predmi", "gnime"):
        code, _, lines = scripts("eval", root_copy, "--official", choice, "--settings", setting)
        if setting in refused:
            assert code == 1 and refused[setting] in lines[0] and "official" in lines[0], lines
        else:
            assert code == 0, lines
    assert ("--official gradcam changes nothing with --xai lrp" in warned) == (choice == "gradcam")


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("choice", ["scale", "order", "validation", "optimiser"])
def test_a_choice_of_the_authors_is_made_alone(scripts, root_copy, monkeypatch, choice):
    tasks, games, originals = [], [], (experiment.fit, pipeline.fit_minmax)
    monkeypatch.setattr(experiment, "fit", lambda task, *rest: tasks.append(task) or originals[0](task, *rest))
    monkeypatch.setattr(pipeline, "fit_minmax", lambda game, *rest: games.append(game) or originals[1](game, *rest))
    shutil.rmtree(root_copy / "models")
    (root_copy / "aux/digits_lrp.hkl").unlink()
    for script in ("prepare", "train", "eval"):
        assert scripts(script, root_copy, "--official", choice)[0] == 0
    splits = Splits.from_count(N, choice == "validation")
    assert [game.official for game in games] == [choice == "scale"]
    inverters = [task for task in tasks if not task.higher]
    assert {task.shuffle for task in inverters} == {choice != "order"}
    assert {len(task.rows) for task in inverters} == {len(splits.train)}
    assert {task.config.eps for task in tasks} == {games[0].config.eps} == {1e-7 if choice == "optimiser" else 1e-8}
