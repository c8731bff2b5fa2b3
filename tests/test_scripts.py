"""The three scripts from end to end on the embedded digits, small; and what a user may do wrong."""

import json
import shutil
from functools import partial
from pathlib import Path

import hickle
import numpy as np
import pytest
import torch
from PIL import Image
from works import as_rank, free_port, run_scripts

from gnime.cli import main
from gnime.networks import rebuild
from gnime.parallel import run_side_by_side

REPOSITORY = Path(__file__).parent.parent
SMALL = ["--target", "digits", "--gpu", "-1", "--limit", "200", "--width", "64", "--epochs", "2"]


def run(script, root, *flags):
    return main(script, [*SMALL, "--root", str(root), *map(str, flags)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root where all three scripts ran for lrp."""
    root = tmp_path_factory.mktemp("finished")
    for script in ("prepare", "train", "eval"):
        assert run(script, root) == 0
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of it to break."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def the_error(capsys):
    """The one line that a failed script prints."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1, lines
    return lines[0]


def left_over(root):
    return list(root.rglob("*.part"))


def test_results(finished):
    folder = finished / "figures" / "digits_lrp"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["settings"]) == ["predmi", "expmi", "rnd", "gnime"]
    assert results["n"] == {"images": 200, "test": 20, "train": 72}
    for setting in results["settings"].values():
        assert {"mse", "psnr", "ssim", "accuracy", "tca", "deepsim", "residual_leakage", "mse_interval"} <= setting.keys()
        assert setting["mse_interval"][0] <= setting["mse"] <= setting["mse_interval"][1]
    assert results["settings"]["expmi"]["distortion"] == 0
    assert results["settings"]["rnd"]["distortion"] == pytest.approx(results["settings"]["gnime"]["distortion"], rel=0.1)
    assert {"versions", "hardware", "seed", "configuration", "networks", "command"} <= results.keys()
    assert len((folder / "results.csv").read_text().splitlines()) == 5


def test_pictures_show_something(finished):
    pictures = list((finished / "figures" / "digits_lrp").glob("*.png"))
    assert {p.name for p in pictures} == {"comparison.png", "metrics.png", "training.png", "frontier.png"}
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 200 and pixels.std() > 10


def test_hickle_opens_the_arrays(finished):
    images = hickle.load(finished / "aux" / "digits_imgs.hkl")
    maps = hickle.load(finished / "aux" / "digits_lrp.hkl")
    labels = hickle.load(finished / "aux" / "digits_labels.hkl")
    assert (images.shape, images.dtype) == ((200, 1, 16, 16), np.uint8)
    assert (maps.shape, maps.dtype, maps.min(), maps.max()) == ((200, 1, 16, 16), np.float32, 0, pytest.approx(1))
    assert sorted(set(labels)) == list(range(10))


@pytest.mark.usefixtures("no_pictures")
def test_found_artifacts_are_not_made_again(finished):
    before = {p: p.stat().st_mtime_ns for folder in ("models", "aux") for p in (finished / folder).rglob("*.*") if p.is_file()
              and not p.name.endswith(".lock")}
    for script in ("prepare", "train", "eval"):
        assert run(script, finished) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before or [
        p.name for p in before if p.stat().st_mtime_ns != before[p]] == ["training.png"]


@pytest.mark.usefixtures("no_pictures")
def test_controls_and_ond(root):
    assert run("eval", root, "--settings", "ond", "negative", "permutation", "class-mean", "blank") == 0
    settings = json.loads((root / "figures/digits_lrp/results.json").read_text())["settings"]
    assert settings["permutation"]["attackers"].keys() == {"predmi", "expmi", "dense", "kernel"}
    assert settings["negative"]["attackers"].keys() == {"predmi", "expmi", "centred", "kernel"}
    found = rebuild(root / "models/inv/digits_negative_lrp_centred.pt")
    seen = 1 - hickle.load(root / "aux/digits_lrp.hkl")[100:172].astype(np.float64)  # what the attacker trains on
    assert found.mean.item() == pytest.approx(seen.mean(), rel=1e-5)
    explanations = hickle.load(root / "aux/digits_lrp.hkl")[180:].astype(np.float64)  # the test set
    assert settings["negative"]["distortion"] == pytest.approx(np.square(1 - 2 * explanations).mean(), rel=1e-5)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("xai", ["lrp", "gradcam"])
def test_official_mode(tmp_path, xai):
    for script in ("prepare", "train", "eval"):
        assert run(script, tmp_path, "--xai", xai, "--official") == 0


def test_rebuilt_from_its_file_alone(finished):
    injector = rebuild(finished / "models/def/digits_lrp/injector.pt")
    protected = injector(torch.rand(3, 1, 16, 16), torch.randn(3, 10))
    assert protected.shape == (3, 1, 16, 16) and 0 <= protected.min() <= protected.max() <= 1


def test_somebody_elses_files_are_used_with_a_warning(root, capsys):
    path = root / "models/victim/digits.pt"
    torch.save(rebuild(path).state_dict(), path)
    images = hickle.load(root / "aux/digits_imgs.hkl")
    hickle.dump(images, root / "aux/digits_imgs.hkl", mode="w", compression="gzip")
    (root / "aux/digits_lrp.hkl").unlink()
    (root / "models/eval/digits.pt").unlink()
    (root / "models/eval/digits.state.pt").unlink()
    hickle.dump(hickle.load(root / "aux/digits_labels.hkl"), root / "aux/digits_labels.hkl", mode="w")
    assert run("prepare", root) == 0
    warned = capsys.readouterr().err
    assert all(name in warned for name in ("digits.pt", "digits_imgs.hkl", "digits_labels.hkl"))


def test_explanations_of_another_victim_are_refused(root, tmp_path, capsys):
    other = tmp_path / "other"
    assert run("prepare", other, "--epochs", 1) == 0
    shutil.copy(other / "models/victim/digits.pt", root / "models/victim/digits.pt")
    capsys.readouterr()
    assert run("train", root) == 1
    line = the_error(capsys)
    assert "digits_lrp.hkl" in line and "victim" in line and "--root" in line


@pytest.mark.parametrize("flags, named", [
    (["--seed", "1"], "seed"), (["--limit", "100"], "--limit 200"), (["--target", "mnist"], "mnist_imgs.hkl is missing")])
def test_artifacts_of_another_run_are_refused(root, capsys, flags, named):
    capsys.readouterr()
    assert run("train", root, *flags) == 1
    assert named in the_error(capsys)


@pytest.mark.parametrize("script, gone, command", [
    ("train", "aux/digits_lrp.hkl", "prepare.py"), ("train", "models/victim/digits.pt", "prepare.py"),
    ("eval", "models/def/digits_lrp/injector.pt", "train.py"), ("eval", "models/eval/digits.pt", "prepare.py")])
def test_a_missing_input_names_its_command(root, capsys, script, gone, command):
    (root / gone).unlink()
    capsys.readouterr()
    assert run(script, root) == 1
    line = the_error(capsys)
    assert gone in line and f"python {command} --target digits --xai lrp --limit 200" in line


@pytest.mark.parametrize("flags, code, named", [
    (["--target", "../../etc"], 2, "--target"), (["--target", "nowhere"], 1, "nowhere"), (["--limit", "1"], 2, "--limit 1"),
    (["--epochs", "-1"], 2, "--epochs"), (["--epochs", "1.5"], 2, "--epochs"), (["--width", "100"], 2, "--width"),
    (["--xai", "shap"], 2, "--xai"), (["--gpu", "-2"], 2, "--gpu"), (["--image-size", "64"], 2, "--image-size"),
    (["--precision", "tf32"], 2, "--precision"), (["--batch-size", "0"], 2, "--batch-size"), (["--bogus"], 2, "--bogus")])
def test_bad_usage_is_one_line(tmp_path, capsys, flags, code, named):
    try:
        got = main("prepare", ["--gpu", "-1", "--root", str(tmp_path / "r"), *flags])
    except SystemExit as stopped:
        got = stopped.code
    assert got == code
    assert named in the_error(capsys)
    assert not list((tmp_path / "r").rglob("*.hkl"))


def test_a_root_that_is_a_file(tmp_path, capsys):
    (tmp_path / "root").write_text("")
    assert run("prepare", tmp_path / "root") == 1
    assert "--root" in the_error(capsys)


def test_no_such_device_runs_on_the_cpu(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert run("prepare", tmp_path, "--gpu", 7) == 0
    assert "no CUDA device: --gpu 7" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    """A folder target of two classes, twelve grey pictures each."""
    data = tmp_path / "datasets" / "shapes"
    rng = np.random.default_rng(0)
    for name in ("a", "ß 2"):
        (data / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(data / name / f"{i}.png")
    return data


FOLDER = ["--target", "shapes", "--image-size", "16", "--gpu", "-1", "--width", "64", "--epochs", "1", "--batch-size", "8"]


@pytest.mark.usefixtures("no_pictures")
def test_folder_target(folder, tmp_path):
    for script in ("prepare", "train", "eval"):
        assert main(script, [*FOLDER, "--root", str(tmp_path)]) == 0
    assert hickle.load(tmp_path / "aux/shapes_imgs.hkl").shape == (24, 3, 16, 16)


def test_a_damaged_picture_is_named_or_skipped(folder, tmp_path, capsys):
    (folder / "a" / "3.png").write_bytes((folder / "a" / "3.png").read_bytes()[:60])
    assert main("prepare", [*FOLDER, "--root", str(tmp_path)]) == 1
    assert "3.png" in the_error(capsys)
    assert not (tmp_path / "aux/shapes_imgs.hkl").exists() and left_over(tmp_path) == []
    assert main("prepare", [*FOLDER, "--root", str(tmp_path), "--skip-bad"]) == 0
    assert "3.png" in (tmp_path / "aux/shapes_imgs.skipped.txt").read_text()
    assert hickle.load(tmp_path / "aux/shapes_imgs.hkl").shape[0] == 23


def test_an_empty_class_or_folder(folder, tmp_path, capsys):
    (folder / "empty").mkdir()
    assert main("prepare", [*FOLDER, "--root", str(tmp_path)]) == 1
    assert "empty" in the_error(capsys)
    shutil.rmtree(folder)
    folder.mkdir()
    assert main("prepare", [*FOLDER, "--root", str(tmp_path)]) == 1
    assert "no class folders" in the_error(capsys)


def test_two_processes_give_the_result_of_one(finished, tmp_path):
    """gloo on a CPU: same global batches, so the same networks up to the order of sums."""
    lines = [(script, [*SMALL, "--root", str(tmp_path)]) for script in ("prepare", "train", "eval")]
    port = free_port()
    run_side_by_side([partial(as_rank, rank, port, partial(run_scripts, lines)) for rank in range(2)], 2)
    one, two = (json.loads((r / "figures/digits_lrp/results.json").read_text())["settings"] for r in (finished, tmp_path))
    for setting in one:
        assert two[setting]["mse"] == pytest.approx(one[setting]["mse"], rel=1e-3)
    ours, theirs = (rebuild(r / "models/def/digits_lrp/injector.pt").state_dict() for r in (finished, tmp_path))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-4, rtol=2e-3)
