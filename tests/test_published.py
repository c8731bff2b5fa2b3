"""What the service publishes of its predictions: the forms by hand, and that nothing else is seen, fitted or mixed."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from bounded import defender, made_up, network

from gnime import pipeline, reproduce
from gnime.cli import main, resolve
from gnime.config import PUBLISHED
from gnime.defences import DefenceInputs, cond_mean, prototypes
from gnime.defences.class_mean import class_means
from gnime.experiment import Experiment
from gnime.explanations import publish
from gnime.networks import rebuild
from gnime.registry import DEFENCES


def test_forms_by_hand():
    logits = torch.tensor([[math.log(1.0), math.log(3.0), math.log(4.0)], [2.0, 2.0, -1.0]])
    assert publish(logits, "logits") is logits
    torch.testing.assert_close(publish(logits, "probabilities")[0], torch.tensor([0.125, 0.375, 0.5]))
    assert publish(logits, "label").tolist() == [[0, 0, 1], [1, 0, 0]], "of equal logits the first"
    assert publish(logits, "nothing").tolist() == [[0, 0, 0], [0, 0, 0]]
    assert all(publish(logits, form).dtype == logits.dtype for form in PUBLISHED)


def published(form, **more):
    data = made_up(**more)
    data.predictions = publish(data.predictions, form)
    data.class_means = class_means(data.explanations, data.predictions, data.rows, data.device)
    return data


def sent(fit, data):
    with torch.no_grad():
        return network(fit)(data.explanations, data.predictions)


def test_where_only_the_label_is_published_the_conditional_mean_is_the_class_mean():
    """The regression's target has mean 0 in each class, and the label says no more than the class."""
    data, fresh = published("label"), published("label", seed=2)
    maps, labels = defender(data)
    means = torch.stack([maps[labels.argmax(1) == kind].mean(0) for kind in range(3)])
    found = sent(cond_mean.fit(data), fresh)
    torch.testing.assert_close(found, means[fresh.predictions.argmax(1)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_where_nothing_is_published_the_bits_are_all_that_a_map_says(noise):
    """By enumeration of the maps sent of fresh images, whatever their class: 1 of no bits, at most K of log2 K bits."""
    data, fresh = published("nothing", noise=noise), published("nothing", n=600, noise=0.5, seed=3)
    overall = defender(data)[0].mean(0)
    everywhere = overall.expand(len(fresh.explanations), -1, -1, -1)
    torch.testing.assert_close(sent(cond_mean.fit(data), fresh), everywhere, atol=1e-5, rtol=0)
    protect = DEFENCES["class-mean"].load()(DefenceInputs(0, class_means=data.class_means))
    torch.testing.assert_close(protect(fresh.explanations, fresh.predictions, None, None), everywhere)
    for fit in (prototypes.fit(data, 4), prototypes.fit_conditional(data, 4)):
        found = sent(fit, fresh).flatten(1).unique(dim=0)
        assert 1 < len(found) <= 4 and "warning" not in fit.report


@pytest.fixture(scope="module")
def both(small_root, tmp_path_factory):
    """A root of the paper's form in which the injector and the attackers were trained for labels too, and its files before."""
    root = tmp_path_factory.mktemp("both") / "root"
    shutil.copytree(small_root, root)
    before = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file() and path.suffix != ".lock"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_pictures", lambda *_: None)
        assert main("train", flags(root)) == 0
        assert main("eval", [*flags(root), "--settings", "predmi", "gnime", "cond-mean", "prototypes-2"]) == 0
    return root, before


def flags(root, form="label", epochs=1):
    return ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--epochs", str(epochs), "--root", str(root),
            "--published", form]


def test_forms_have_files_of_their_own(both):
    root, before = both
    assert {path: path.read_bytes() for path in before} == before
    made = {str(path.relative_to(root)) for path in root.rglob("*.*")} - {str(path.relative_to(root)) for path in before}
    new = {name for name in made if name.endswith((".pt", ".json")) and ".state." not in name}
    assert new == {"models/inv/digits_predmi_label.pt", "models/inv/digits_gnime_lrp_label.pt",
                   "models/inv/digits_cond-mean_lrp_label.pt", "models/inv/digits_prototypes-2_lrp_label.pt",
                   "models/def/digits_lrp_label/injector.pt", "models/def/digits_lrp_label/cond-mean.pt",
                   "models/def/digits_lrp_label/prototypes-2.pt", "figures/digits_lrp_label/results.json"}


def test_everybody_sees_the_form(both):
    root, _ = both
    experiment = Experiment(resolve("eval", flags(root)))
    images, _, predictions, _ = experiment.service
    with torch.no_grad():
        logits = rebuild(root / "models/victim/digits.pt")(torch.from_numpy(images / np.float32(255)))
    np.testing.assert_array_equal(predictions, np.eye(10)[logits.argmax(1)])
    np.testing.assert_array_equal(experiment.attacker_data.predictions, predictions[30:])
    np.testing.assert_array_equal(experiment.defender_data.predictions, predictions)
    centres = rebuild(root / "models/def/digits_lrp_label/cond-mean.pt").centres
    assert len(centres) == 30 and len(centres.unique(dim=0)) == len(logits[:30].argmax(1).unique())


def test_results_name_the_form_where_it_is_not_the_papers(both):
    root, _ = both
    usual, label = (json.loads((root / f"figures/digits_lrp{part}/results.json").read_text()) for part in ("", "_label"))
    assert "published" not in usual["configuration"] and "--published" not in usual["command"]
    assert label["configuration"]["published"] == "label" and "--published label" in label["command"]
    victims = [found["networks"]["victim"]["digest"] for found in (usual, label)]
    assert victims[0] == victims[1]


def test_forms_never_mix(both, scripts, tmp_path):
    root = shutil.copytree(both[0], tmp_path / "root")
    inverters, defences = root / "models/inv", root / "models/def"
    shutil.copy(inverters / "digits_gnime_lrp_label.pt", inverters / "digits_gnime_lrp.pt")
    for name in ("cond-mean", "injector"):
        (defences / "digits_lrp_nothing").mkdir(exist_ok=True)
        shutil.copy(defences / f"digits_lrp_label/{name}.pt", defences / f"digits_lrp_nothing/{name}.pt")
        row = {"injector": "gnime"}.get(name, name)
        code, line = scripts.fails("eval", root, "--published", "nothing", "--settings", row)
        assert code == 1 and f"{name}.pt: made with published label, this run has nothing" in line
    code, line = scripts.fails("eval", root, "--published", "probabilities")
    assert code == 1 and "digits_lrp_probabilities/injector.pt is missing" in line
    assert "python train.py" in line and "--published probabilities" in line
    assert scripts.fails("prepare", root, "--published", "logit")[0] == 2


def test_results_of_other_forms_lie_apart(tmp_path, runner):
    options = reproduce.parser().parse_args(["--published", "label", "--targets", "digits"])
    cell = "digits", "lrp", 0
    assert reproduce.result_path(options, cell).as_posix() == "results/paper_label/digits_lrp_seed0.json"
    usual = reproduce.parser().parse_args(["--targets", "digits"])
    assert reproduce.result_path(usual, cell).as_posix() == "results/paper/digits_lrp_seed0.json"
    assert reproduce.cell_run("eval", options, cell).root == reproduce.cell_run("eval", usual, cell).root, "one victim"
