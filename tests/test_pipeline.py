"""What the scripts leave behind, computed again from the files alone; stopped evaluations."""

import csv
import json
import math
import shutil

import hickle
import numpy as np
import pytest
import torch
from conftest import Scripts
from helpers import Killed
from PIL import Image
from scipy.stats import spearmanr

from gnime import experiment, pipeline, resuming, training
from gnime.checkpoints import load_checkpoint
from gnime.cli import resolve
from gnime.data import Splits
from gnime.explainers.gradcam import gradcam
from gnime.metrics import leakage
from gnime.networks import rebuild
from gnime.registry import EXPLAINERS

N = 60  # images of `small_root`
SPLITS = Splits.from_count(N)


def results(root, xai="lrp"):
    return json.loads((root / f"figures/digits_{xai}/results.json").read_text())


def rows(array, split):
    return torch.from_numpy(np.asarray(array)[split.start : split.stop])


class Files:
    """The artifacts of a root, read without the code under test: arrays by hickle."""

    def __init__(self, root, xai="lrp"):
        self.root, self.xai = root, xai
        self.images = hickle.load(root / "aux/digits_imgs.hkl").astype(np.float32) / 255
        self.labels = hickle.load(root / "aux/digits_labels.hkl")
        self.maps = hickle.load(root / f"aux/digits_{xai}.hkl")
        self.victim, self.judge = rebuild(root / "models/victim/digits.pt"), rebuild(root / "models/eval/digits.pt")
        with torch.no_grad():
            self.logits = self.victim(torch.from_numpy(self.images)).numpy()

    def inverter(self, setting):
        name = setting if setting == "predmi" else f"{setting}_{self.xai}"
        return rebuild(self.root / f"models/inv/digits_{name}.pt")

    def of(self, split):
        return tuple(rows(array, split) for array in (self.images, self.labels, self.logits, self.maps))


@pytest.fixture(scope="module")
def files(small_root):
    return Files(small_root)


# --- the artifacts ---------------------------------------------------------------------------------------------------


def test_classifiers_are_judged_on_the_attackers_half(small_root, files):
    images, labels, _, _ = files.of(SPLITS.attacker)
    for name, network in (("victim", files.victim), ("eval", files.judge)):
        report = load_checkpoint(small_root / f"models/{name}/digits.pt").extra
        with torch.no_grad():
            assert report["score"] == (network(images).argmax(1) == labels).double().mean().item()
    different = [not a.equal(b) for a, b in zip(files.victim.parameters(), files.judge.parameters(), strict=True)]
    assert all(different), "another seed"


@pytest.mark.parametrize("xai", EXPLAINERS)
@pytest.mark.usefixtures("no_pictures")
def test_explainers_share_a_root(scripts, small_root, root_copy, xai):
    """Each image's map is what the explainer makes of it; nothing that is there is made again."""
    before = {p: p.stat().st_mtime_ns for folder in ("aux", "models") for p in (root_copy / folder).rglob("*") if p.is_file()
              and not p.name.endswith(".lock")}
    for script, flags in (("prepare", []), ("train", []), ("eval", ["--settings", "predmi", "expmi"])):
        code, out, _ = scripts(script, root_copy, "--xai", xai, *flags)
        assert code == 0 and "victim        " in out and "digits.pt: found" in out
    changed = {p.name for p in before if p.stat().st_mtime_ns != before[p]}
    assert changed <= {"training.png"}
    files = Files(root_copy, xai)
    expected = EXPLAINERS[xai].load()(files.victim, torch.from_numpy(files.images))
    np.testing.assert_allclose(files.maps, expected, atol=1e-5)
    assert list(results(root_copy, xai)["settings"]) == ["predmi", "expmi"]
    assert results(root_copy, xai)["settings"]["predmi"]["mse"] == results(small_root)["settings"]["predmi"]["mse"]
    assert not list(root_copy.rglob("*.part"))


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


def test_injector_is_scaled_by_the_defenders_half(small_root, files):
    injector = rebuild(small_root / "models/def/digits_lrp/injector.pt")
    half = files.maps[: len(SPLITS.defender)].astype(np.float64)
    assert injector.mean.item() == pytest.approx(half.mean(), rel=1e-6)
    assert injector.std.item() == pytest.approx(half.std(), rel=1e-6)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["predmi", "expmi", "gnime"])
def test_numbers_follow_from_the_files(small_root, files, setting):
    """Every number of the table, computed again with numpy from the images and networks on disk."""
    x, labels, y, e = files.of(SPLITS.test)
    with torch.no_grad():
        protect = rebuild(small_root / "models/def/digits_lrp/injector.pt")
        seen = {"predmi": None, "expmi": e, "gnime": protect(e, y)}[setting]
        r = files.inverter(setting)(seen, y).clamp(0, 1)
        said, judged = files.victim(r).argmax(1), files.judge(r).argmax(1)
        features = [files.victim.features(images).double().numpy() for images in (x, r)]
    squared = ((x.double() - r.double()) ** 2).flatten(1).mean(1).numpy()
    found = results(small_root)["settings"][setting]
    assert found["mse"] == pytest.approx(squared.mean(), rel=1e-5)
    assert found["psnr"] == pytest.approx((-10 * np.log10(squared)).mean(), rel=1e-5)
    assert found["ssim"] == pytest.approx(leakage.ssim(x, r).mean().item(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((said == labels).float().mean().item())
    assert found["tca"] == pytest.approx((judged == labels).float().mean().item())
    assert found["deepsim"] == pytest.approx(math.exp(-np.sqrt(((features[0] - features[1]) ** 2).sum()) / len(x)), rel=1e-5)
    assert found["mse_quantiles"] == pytest.approx(np.quantile(squared, [0.05, 0.25, 0.5, 0.75, 0.95]), rel=1e-5)
    if setting == "predmi":
        assert not {"distortion", "pearson", "spearman", "top_overlap"} & found.keys()
    else:
        assert found["distortion"] == pytest.approx(((seen - e) ** 2).mean().item(), rel=1e-5, abs=1e-12)
        pairs = list(zip(e.flatten(1).double().numpy(), seen.flatten(1).double().numpy(), strict=True))
        assert found["pearson"] == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]), rel=1e-4)
        assert found["spearman"] == pytest.approx(np.mean([spearmanr(a, b).statistic for a, b in pairs]), rel=1e-3)
        top = [[set(np.argsort(-m)[:26]) for m in pair] for pair in pairs]  # a tenth of 256
        assert found["top_overlap"] == pytest.approx(np.mean([len(a & b) / 26 for a, b in top]), abs=0.01)


@pytest.mark.parametrize("setting", ["predmi", "expmi", "gnime"])
def test_attackers_are_stopped_by_their_validation_images(small_root, files, setting):
    x, _, y, e = files.of(SPLITS.validation)
    with torch.no_grad():
        seen = rebuild(small_root / "models/def/digits_lrp/injector.pt")(e, y) if setting == "gnime" else e
        error = ((files.inverter(setting)(seen, y) - x) ** 2).mean().item()
    name = setting if setting == "predmi" else f"{setting}_lrp"
    report = load_checkpoint(small_root / f"models/inv/digits_{name}.pt").extra
    assert report["score"] == pytest.approx(error, rel=1e-5)
    assert report["score"] == min(score for _, score in report["history"])


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.usefixtures("no_pictures")
def test_no_attacker_trains_on_a_test_image(scripts, root_copy, monkeypatch, official):
    """Every row that a training may read, against the split. The defender's half is the victim's alone."""
    original, seen = training.fit, []

    def spy(task, *rest):
        seen.extend([] if task.higher else [task])  # inverters, not classifiers
        return original(task, *rest)

    monkeypatch.setattr(experiment, "fit", spy)
    if official:
        shutil.rmtree(root_copy)
        for script in ("prepare", "train"):
            assert scripts(script, root_copy, "--official", "--epochs", 1)[0] == 0
    else:
        shutil.rmtree(root_copy / "models/inv")
    assert scripts("eval", root_copy, *["--official"] * official, "--settings", "predmi", "expmi", "rnd", "gnime")[0] == 0
    files, splits = Files(root_copy), Splits.from_count(N, official)
    assert [task.name for task in seen] == ["predmi", "expmi", "rnd", "gnime"]
    for task in seen:
        explanations, predictions, images = task.sources
        expected = [torch.cat(parts) for parts in zip(files.of(splits.train), strict=True)]
        at = slice(task.rows.start, task.rows.stop)
        torch.testing.assert_close(torch.from_numpy(np.array(images[at])).float() / 255, expected[0])
        torch.testing.assert_close(torch.from_numpy(np.array(predictions[at])), expected[2])
        assert task.shuffle is not official
        if task.name == "expmi":
            torch.testing.assert_close(torch.from_numpy(np.array(explanations[at])), expected[3])
        elif task.name == "predmi":
            assert explanations is None
        else:
            assert explanations[at].shape == expected[3].shape
            assert np.abs(np.array(explanations[at]) - expected[3].numpy()).max() > 0.01


def test_noise_has_the_distortion_of_gnime(small_root):
    found = results(small_root)["settings"]
    assert found["rnd"]["distortion"] == pytest.approx(found["gnime"]["distortion"], rel=0.15)
    row, predmi, expmi = (found[name]["best"]["mse"] for name in ("gnime", "predmi", "expmi"))
    leak = found["gnime"]["residual_leakage"]
    assert leak == (pytest.approx((predmi - row) / (predmi - expmi)) if expmi < predmi else None)


@pytest.mark.usefixtures("no_pictures")
def test_noise_levels_are_variances_of_gnimes_distortion(small_root, scripts, root_copy):
    assert scripts("eval", root_copy, "--settings", "rnd-0", "rnd", "rnd-4", "gnime")[0] == 0
    found = {name: numbers["distortion"] for name, numbers in results(root_copy)["settings"].items()}
    assert found["rnd-0"] == 0 and found["rnd-4"] == pytest.approx(4 * found["rnd"], rel=0.15)
    assert found["rnd"] == pytest.approx(found["gnime"], rel=0.15)


@pytest.mark.usefixtures("no_pictures")
def test_the_table_is_the_same_in_every_form(scripts, root_copy):
    code, out, _ = scripts("eval", root_copy)
    assert code == 0
    found = results(root_copy)
    with (root_copy / "figures/digits_lrp/results.csv").open() as file:
        lines = {line["setting"]: line for line in csv.DictReader(file)}
    printed = [line.split() for line in out.split("setting ")[1].splitlines()[1:5]]
    table = {line[0]: line for line in printed}
    assert list(table) == list(lines) == list(found["settings"]) == ["predmi", "expmi", "rnd", "gnime"]
    for name, numbers in found["settings"].items():
        for metric in ("mse", "psnr", "ssim", "accuracy", "tca", "deepsim", "distortion", "pearson", "spearman",
                       "top_overlap", "residual_leakage"):
            text = lines[name][metric]
            assert (float(text) if text else None) == numbers.get(metric)
        shown = table[name]
        assert shown[1] == f"{numbers['mse']:.4f}" and shown[2] == f"{numbers['psnr']:.2f}"
    assert found["n"] == {"images": N, "test": len(SPLITS.test), "train": len(SPLITS.train)}
    assert found["seed"] == 0 and found["configuration"]["width"] == 64
    assert {"torch", "numpy", "gnime", "python"} <= found["versions"].keys()
    assert "source" in found and not {"root", "datasets"} & found["configuration"].keys()
    assert str(root_copy) not in (root_copy / "figures/digits_lrp/results.json").read_text(), "no place of one machine"
    assert found["hardware"]["device"].startswith("CPU") and float(found["duration"].split()[0]) > 0
    assert {network["commit"] for network in found["networks"].values()} == {found["commit"]}
    assert found["networks"]["victim"]["digest"] == load_checkpoint(root_copy / "models/victim/digits.pt").digest


# --- stopped and continued -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_killed_in_an_inverter_the_evaluation_ends_with_the_same_numbers(scripts, small_root, root_copy, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    shutil.rmtree(root_copy / "models/inv")
    shutil.rmtree(root_copy / "figures")
    steps, note = iter(range(1, 100)), training._note_finite

    def counted(*arguments):
        if next(steps) == 6:  # one step an epoch, two epochs an inverter: the third inverter's second epoch
            raise Killed
        return note(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_note_finite", counted)
        with pytest.raises(Killed):
            scripts("eval", root_copy)
    there = {p.name for p in (root_copy / "models/inv").glob("*.pt")}
    assert {"digits_predmi.pt", "digits_expmi_lrp.pt", "digits_rnd_lrp.state.pt"} <= there
    assert "digits_rnd_lrp.pt" not in there and not (root_copy / "figures/digits_lrp/results.json").exists()
    code, out, _ = scripts("eval", root_copy)
    assert code == 0 and out.count("goes on from epoch 1") == 1 and "digits_predmi.pt: found" in out
    assert results(root_copy)["settings"] == results(small_root)["settings"]
    assert not list(root_copy.rglob("*.part"))


@pytest.mark.usefixtures("no_pictures")
def test_more_epochs_later_are_as_many_at_once(scripts, root_copy, tmp_path):
    """2 + 2 = 4 through the scripts, bit for bit, for the injector and for an inverter."""
    again = shutil.copytree(root_copy, tmp_path / "again")
    shutil.rmtree(again / "models/def")
    shutil.rmtree(again / "models/inv")
    for root in (root_copy, again):
        assert scripts("train", root, "--epochs", 4)[0] == 0
    for setting in ("rnd", "gnime"):  # their attackers saw what another injector sent, or noise of its size
        code, line = scripts.fails("eval", root_copy, "--settings", setting)
        assert code == 1 and f"digits_{setting}_lrp.pt: made with injector" in line
        for left in (root_copy / "models/inv").glob(f"digits_{setting}_lrp*.pt"):
            left.unlink()
    for root in (root_copy, again):
        assert scripts("eval", root, "--epochs", 4, "--settings", "expmi", "gnime")[0] == 0
    for name in ("def/digits_lrp/injector", "inv/digits_expmi_lrp"):
        one, other = (load_checkpoint(root / f"models/{name}.pt") for root in (root_copy, again))
        assert one.extra["epochs"] == 4 and one.digest == other.digest
    assert results(root_copy)["settings"] == results(again)["settings"]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_of_a_grey_target_are_grey(small_root):
    pixels = np.asarray(Image.open(small_root / "figures/digits_lrp/comparison.png").convert("RGB")).astype(int)
    assert pixels.std() > 30
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()


# --- what a result says of itself ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_results_tell_how_networks_were_trained_whatever_the_last_flags(scripts, root_copy):
    shutil.rmtree(root_copy / "models/def")
    assert scripts("train", root_copy, "--weight", 7, "--batch-size", 16)[0] == 0
    shutil.rmtree(root_copy / "models/inv")
    code, line = scripts.fails("eval", root_copy, "--settings", "expmi", "gnime")  # which is the target's own weight
    assert code == 1 and "digits_lrp/injector.pt is missing; make it with: python train.py" in line
    code, line = scripts.fails("eval", root_copy, "--settings", "gnime@8", "rnd")
    assert code == 1 and "digits_lrp/gnime@8/injector.pt is missing" in line and line.endswith("--weight 8 300")
    assert scripts("eval", root_copy, "--batch-size", 8, "--settings", "expmi", "gnime@7")[0] == 0
    found = results(root_copy)
    assert found["networks"]["gnime@7 injector"]["weight"] == 7 and found["configuration"]["weight"] == 300, "the target's own"
    stages = found["configuration"]["stages"]
    assert [stages["injector"][key] for key in ("epochs", "batch_size")] == [2, 16]
    assert stages["classifier"]["epochs"] == 2 and found["networks"]["gnime@7"]["stage"][0] == 8
    assert found["command"].endswith("--epochs 2 --batch-size 8 --settings expmi gnime@7")
    assert found["commands"][1].endswith("--weight 7")


@pytest.mark.usefixtures("no_pictures")
def test_attackers_of_another_precision_or_another_ond_are_refused(scripts, root_copy):
    code, line = scripts.fails("eval", root_copy, "--precision", "bf16", "--settings", "expmi")
    assert code == 1 and "made with precision fp32, this run has bf16" in line
    assert scripts("eval", root_copy, "--settings", "ond")[0] == 0
    code, line = scripts.fails("eval", root_copy, "--settings", "ond", "--epochs", 4)  # the frozen inverter goes on
    assert code == 1 and "digits_ond_lrp.pt: made with ond-defender" in line and "changed since: move it away" in line


@pytest.mark.usefixtures("no_pictures")
def test_a_shared_predmi_is_trained_anew_for_other_epochs_or_batches(scripts, small_root, root_copy):
    """Another explainer trained it for longer: the table of this command stays the same."""
    assert scripts("prepare", root_copy, "--xai", "grad")[0] == 0
    assert scripts("eval", root_copy, "--xai", "grad", "--settings", "predmi", "--epochs", 4)[0] == 0
    assert results(root_copy, "grad")["settings"] != results(small_root)["settings"]
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi")
    assert code == 0 and "trained for 4 epochs, this run asks for 2; it is trained anew" in out
    assert "2 epochs, best validation MSE, before clipping, 0." in out
    assert results(root_copy)["settings"]["predmi"]["mse"] == results(small_root)["settings"]["predmi"]["mse"]
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "--batch-size", 5)
    assert code == 0 and "it is trained anew" in out and results(root_copy)["networks"]["predmi"]["stage"][0] == 5


@pytest.mark.usefixtures("no_pictures")
def test_the_precision_of_every_network_is_told(scripts, root_copy):
    _, out, _ = scripts("eval", root_copy)
    found = [line for line in out.splitlines() if ".pt: found" in line]
    assert {line.split()[0] for line in found} == {"victim", "evaluation", "injector", "predmi", "expmi", "rnd", "gnime"}
    assert all(line.endswith("2 epochs, fp32") for line in found)
    assert {network["precision"] for network in results(root_copy)["networks"].values()} == {"fp32"}


def test_fewer_epochs_than_asked_for_are_said(scripts, root_copy, capsys):
    assert scripts("prepare", root_copy)[0] == 0
    assert main_warns(root_copy, capsys, 2) == []
    warned = main_warns(root_copy, capsys, 9)
    assert len(warned) == 2 and all("trained for 2 epochs, this run asks for 9" in line for line in warned)


def main_warns(root, capsys, epochs):
    from gnime.cli import main

    capsys.readouterr()
    flags = ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--root", str(root)]
    assert main("prepare", [*flags, "--epochs", str(epochs)]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning:") and "near chance" not in line]


def test_the_accuracy_of_somebody_elses_victim_is_told(root_copy, capsys):
    """Its outputs are another program's classes: those of ours in another order."""
    path = root_copy / "models/victim/digits.pt"
    tensors, score = load_checkpoint(path).tensors, load_checkpoint(path).extra["score"]
    run = resolve("prepare", [*Scripts.flags, "--root", str(root_copy)])
    pipeline._tell_victim(experiment.Experiment(run))
    assert f"accuracy {score:.3f} on the attacker's half, chance 0." in capsys.readouterr().out
    last = [name for name in tensors if tensors[name].shape[0] == 10]
    files = Files(root_copy)
    images, labels, _, _ = files.of(SPLITS.attacker)
    with torch.no_grad():
        said = (files.victim(images).argmax(1) + 1) % 10
    torch.save({name: value.roll(1, 0) if name in last else value for name, value in tensors.items()}, path)
    pipeline._tell_victim(experiment.Experiment(run))
    out, err = capsys.readouterr()
    assert f"accuracy {(said == labels).double().mean():.3f} on" in out
    assert "sort them: 0: 0, 1: 1, 2: 2" in err


@pytest.mark.parametrize("label", [-1, 10**7])
def test_strangers_labels_are_looked_at(scripts, root_copy, label):
    labels = hickle.load(root_copy / "aux/digits_labels.hkl")
    labels[3] = label
    hickle.dump(labels, root_copy / "aux/digits_labels.hkl")
    code, line = scripts.fails("train", root_copy)
    assert code == 1 and "digits_labels.hkl: labels from" in line
