"""What the scripts leave behind, computed again from the files alone."""

import csv
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from root_files import SPLITS, Files, N, results
from scipy.stats import spearmanr

from gnime import experiment, training
from gnime.checkpoints import load_checkpoint
from gnime.data import Splits
from gnime.metrics import leakage
from gnime.networks import rebuild
from gnime.registry import EXPLAINERS


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


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_of_a_grey_target_are_grey(small_root):
    pixels = np.asarray(Image.open(small_root / "figures/digits_lrp/comparison.png").convert("RGB")).astype(int)
    assert pixels.std() > 30
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
