"""A service's record: the table of the run that it was made of, and the same folder without predictions."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import ORDER, N, flags, save

from gnime import checks, pipeline
from gnime.cli import main, resolve
from gnime.errors import GnimeError
from gnime.experiment import Experiment
from gnime.networks import rebuild
from gnime.protected import Protected
from gnime.recorded import Recorded, open_run
from gnime.report import html, seeds
from gnime.report.docs import read_result
from gnime.sources import open_source
from gnime.system import permutation


@pytest.fixture(scope="module")
def audited(arrays, tmp_path_factory):
    """(datasets, root): an audit of the record without labels, trained as `small_root` is."""
    folder = tmp_path_factory.mktemp("audit")
    datasets, root = save(folder, **arrays | {"labels": None}), folder / "root"
    trained = "--epochs", 2, "--lr", 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "draw", lambda *_: None)
        assert main("prepare", flags(datasets, root)) == 0
        assert main("train", flags(datasets, root, *trained, "--batch-size", 64, "--weight", 300)) == 0
        assert main("eval", flags(datasets, root, *trained, "--batch-size", 32, "--settings", "predmi", "expmi", "gnime@300",
                                  "cond-mean", "--attackers", "kernel", "white-box")) == 0
    return datasets, root


def results(root, name):
    return json.loads((root / f"figures/{name}/results.json").read_text())


def test_the_table_is_that_of_the_run_that_the_record_was_made_of(audited, small_root):
    ours, theirs = results(audited[1], "service_ig")["settings"], results(small_root, "digits_lrp")["settings"]
    for row in ("predmi", "expmi"):
        for metric in ("mse", "psnr", "ssim", "mse_interval", "mse_quantiles", "mse_strongest"):
            assert ours[row][metric] == pytest.approx(theirs[row][metric], rel=1e-5), (row, metric)
        for attacker, numbers in ours[row]["attackers"].items():
            assert numbers == pytest.approx(theirs[row]["attackers"][attacker], rel=1e-5)
        assert ours[row]["best"]["attacker"] == theirs[row]["best"]["attacker"]
    assert {"kernel", "expmi"} <= ours["expmi"]["attackers"].keys()
    for name in ("distortion", "pearson", "spearman"):
        assert ours["expmi"][name] == pytest.approx(theirs["expmi"][name], abs=1e-6)


def test_the_injector_is_that_of_the_run_that_the_record_was_made_of(audited, small_root):
    found = rebuild(audited[1] / "models/def/service_ig/gnime@300/injector.pt").state_dict()
    for name, expected in rebuild(small_root / "models/def/digits_lrp/injector.pt").state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_nothing_of_a_victim_is_made_or_measured(audited, small_root):
    datasets, root = audited
    assert not [*(root / "models").glob("victim/*"), *(root / "models").glob("eval/*")]
    content, other = ({**results(*place), "pictures": {"rule": "", "images": []}}
                      for place in ((root, "service_ig"), (small_root, "digits_lrp")))
    for numbers in content["settings"].values():
        assert not {"accuracy", "tca", "deepsim", "deletion", "insertion"} & numbers.keys()
        assert "a record has no victim" in numbers["not_applicable"]["white-box"]
    assert {"accuracy", "tca", "deepsim"} <= other["settings"]["expmi"].keys(), "names that a run has"
    assert not {"victim", "evaluation"} & content["networks"].keys()
    assert content["configuration"]["stages"]["classifier"] is None
    page = html.render(content, {})
    assert "This is the audit of a record" in page and "This is the audit of a record" not in html.render(other, {})
    assert "Not measured: accuracy, DeePSiM, deletion, insertion, because a record has no victim" in page
    assert "Not measured: TCA, because the record has no labels" in page
    assert "with its prediction (logits)" in page and "For each seed the split, the victim" in seeds.render([other], {})
    assert "Every seed has the service's record" in seeds.render([content], {})
    record = read_result(root / "figures/service_ig/results.json")["record"]
    assert record["predictions"] == "logits" and record["files"] == {
        name: hashlib.sha256((datasets / "service" / name).read_bytes()).hexdigest()
        for name in ("predictions.npy", "explanations_ig.npy")}
    classes = [line.split(",")[1] for line in (root / "figures/service_ig/per_image.csv").read_text().splitlines()[1:]]
    test = Recorded(resolve("eval", flags(datasets, root))).predictions[-len(classes) :]
    assert classes == [f"predicted {label}" for label in test.argmax(1)]
    with pytest.raises(GnimeError, match="made from a service's record"):
        Protected.load(root / "models/def/service_ig/cond-mean.pt", torch.nn.Identity(), "lrp")


def test_what_changed_since_is_refused(audited, arrays, tmp_path):
    datasets, root = shutil.copytree(audited[0], tmp_path / "datasets"), audited[1]

    def audit():
        run = open_run(resolve("eval", flags(datasets, root)))
        return run.data, run.predictions, run.explanations

    audit()
    for name, words in (("predictions", "service_predictions.hkl: was not made of .*predictions.npy as that is now"),
                        ("explanations_ig", "service_ig.hkl: was not made of .*explanations_ig.npy as that is now"),
                        ("images", "made of 60 images in 10 classes; .* now has as many in other files")):
        changed = arrays[name].copy()
        changed[7] = changed[8]
        np.save(datasets / f"service/{name}.npy", changed)
        with pytest.raises(GnimeError, match=words):
            audit()
        np.save(datasets / f"service/{name}.npy", arrays[name])
    np.save(datasets / "service/labels.npy", arrays["labels"])
    with pytest.raises(GnimeError, match="now has as many in other files"):
        audit()
    with pytest.raises(GnimeError, match=r"service_ig.hkl: made with scale absolute, this run has signed"):
        open_run(resolve("eval", flags(audited[0], root, "--scale", "signed"))).explanations  # noqa: B018


def test_the_record_of_the_docs(tmp_path, monkeypatch):
    """Against scikit-learn's own numbers: a map's terms, with the intercept, are the decision of its class."""
    text = (Path(__file__).parent.parent / "docs/records.md").read_text()
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(re.search(r"`record.py`:\n\n```python\n(.*?)```", text, re.DOTALL)[1], made)
    command = re.search(r"python prepare.py (.*)", text)[1].split()
    run = Recorded(resolve("prepare", [*command, "--gpu", "-1"]))
    assert run.published == "probabilities" and run.data.images.shape == (1797, 1, 16, 16) and run.warnings == []
    half = np.arange(1797)
    half[:900] = np.random.default_rng(0).permutation(900)
    assert not checks.unrelated(run.data.images, run.explanations.rows[half]), "only a complete disorder is told"
    order = permutation(1797, 0, "shuffle").numpy()
    service, pixels = made["service"], made["pixels"][order]
    np.testing.assert_allclose(run.predictions, service.predict_proba(pixels), atol=1e-6)
    terms, best = made["maps"][order], service.decision_function(pixels).argmax(1)
    np.testing.assert_allclose(terms.sum(1) + service.intercept_[best], service.decision_function(pixels).max(1), atol=1e-9)
    low, high = np.abs(terms).min(1, keepdims=True), np.abs(terms).max(1, keepdims=True)
    np.testing.assert_allclose(run.explanations.rows.reshape(1797, -1), (np.abs(terms) - low) / (high - low), atol=1e-6)


def test_arrays_without_predictions_are_a_data_set(arrays, tmp_path, scripts):
    datasets = save(tmp_path, **arrays | {"predictions": None})
    run = open_run(resolve("prepare", flags(datasets, tmp_path / "root", xai="lrp")))
    assert type(run) is Experiment and run.data.classes == [str(i) for i in range(10)]
    np.testing.assert_array_equal(run.data.images, arrays["images"][ORDER])
    np.testing.assert_array_equal(run.data.labels, arrays["labels"][ORDER])
    first = run.data.labels_identity
    moved = datasets.rename(tmp_path / "moved")
    for script in ("prepare", "eval"):
        code, line = scripts.fails(script, tmp_path / "root", *flags(datasets, tmp_path / "root", "--width", 128, xai="lrp"),
                                   small=False)
        assert code == 1 and f"{datasets / 'service'}: " in line and "put them back" in line and "away" not in line
    moved.rename(datasets)
    np.save(datasets / "service/labels.npy", np.where(arrays["labels"] == 9, 99_999, arrays["labels"]))
    code, line = scripts.fails("prepare", tmp_path / "new", *flags(datasets, tmp_path / "new", xai="lrp"), small=False)
    assert code == 1 and "labels.npy: a class 99999 makes 100000 classes, and there are only 60 rows" in line
    np.save(datasets / "service/labels.npy", arrays["labels"][::-1])
    other = open_run(resolve("prepare", flags(datasets, tmp_path / "again", xai="lrp"))).data
    assert other.digest == run.data.digest and other.labels_identity != first, "a classifier of other labels is another one"
    (datasets / "service/labels.npy").unlink()
    code, line = scripts.fails("prepare", tmp_path / "new", *flags(datasets, tmp_path / "new", xai="lrp"), small=False)
    assert code == 1 and "labels.npy: no such file; a data set has images.npy and labels.npy" in line


def test_a_source_names_the_rows(arrays, tmp_path):
    source = open_source(resolve("prepare", flags(save(tmp_path, **arrays), tmp_path)))
    assert [source.origin(i) for i in (0, 59)] == ["0", "59"] and len(source.labels) == N
