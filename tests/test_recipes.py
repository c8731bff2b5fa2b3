"""The recipes of CONTRIBUTING.md, carried out as they are written there, in a copy of the package.

A recipe's blocks are written to a new file and inserted into the registry; nothing else is changed. The scripts run in a
process of their own, and the numbers are compared with arithmetic in float64 from the files on disk.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import hickle
import numpy as np
import pytest
import torch
from captum.attr import InputXGradient
from conftest import Scripts
from PIL import Image

from gnime import reproduce
from gnime.cli import main
from gnime.networks import rebuild

REPOSITORY = Path(__file__).parent.parent
SHAPES = "--xai", "grad", "--gpu", "-1", "--width", "64", "--epochs", "1"
BLOCK = re.compile(r"`([\w/]+\.py)`(?:, in `([A-Z]+)`)?:\n\n```python\n(.*?)```", re.DOTALL)
# Runs scripts, or code, one after the other. Prints of each what it printed, and of each panel of each figure that it saved
# the title, the caption and the labels up the axis.
DRIVER = """
import contextlib, io, json, runpy, sys
from matplotlib.figure import Figure
save, figures, told = Figure.savefig, [], []
def savefig(figure, *arguments, **named):
    save(figure, *arguments, **named)
    figures.append([(panel.get_title(), panel.get_xlabel(), [label.get_text() for label in panel.get_yticklabels()])
                    for panel in figure.axes])
Figure.savefig = savefig
for sys.argv in json.loads(sys.argv[1]):
    figures.clear()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(sys.argv[1]) if sys.argv[0] == "-c" else runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stopped:
            assert not stopped.code, sys.argv
    told.append((out.getvalue(), list(figures)))
print(json.dumps(told))
"""


def recipes():
    """Name of the recipe -> ([(new file, its text)], [(file, table in it, the line)])."""
    sections = re.split(r"^### ", (REPOSITORY / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        blocks = BLOCK.findall(section)
        assert len(blocks) == section.count("```python"), "a block without the name of its file"
        files = [(path, text) for path, table, text in blocks if not table]
        lines = [(path, table, text) for path, table, text in blocks if table]
        found[section.splitlines()[0]] = files, lines
    return found


def insert(path, table, line):
    """Inserts the line at the end of a table of `path`."""
    text = path.read_text()
    (end,) = [match.end() for match in re.finditer(rf"^{table} = .*?\n(?=[)}}])", text, re.MULTILINE | re.DOTALL)]
    path.write_text(text[:end] + textwrap.indent(line, "    ") + text[end:])


class Checkout:
    """A copy of what a contributor has, and the scripts in it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("gnime", "docs", "results"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for script in ("prepare.py", "train.py", "eval.py"):
            shutil.copy(REPOSITORY / script, folder)

    def follow(self, recipe, files=True):
        new, lines = recipe
        for path, text in new if files else ():
            assert not (self.folder / path).exists()
            (self.folder / path).write_text(text)
        for path, table, line in lines:
            insert(self.folder / path, table, line)

    def __call__(self, *commands):
        """What each of these command lines prints, and the panels that it draws. One process runs them, and all succeed."""
        environment = os.environ | {"MPLBACKEND": "module://no_such_backend"}  # as in a notebook elsewhere
        lines = json.dumps([list(map(str, command)) for command in commands])
        run = subprocess.run([sys.executable, "-c", DRIVER, lines], cwd=self.folder, capture_output=True, text=True,
                             env=environment)
        assert run.returncode == 0, run.stdout + run.stderr
        return json.loads(run.stdout)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    for recipe in recipes().values():
        made.follow(recipe)
    return made


def shapes(folder):
    """A target that is a folder of class folders."""
    random = np.random.default_rng(0)
    for name in ("round", "square"):
        (folder / "datasets/shapes" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(random.integers(0, 256, (20, 20), np.uint8)).save(folder / f"datasets/shapes/{name}/{i}.png")


@pytest.fixture(scope="module")
def ran(checkout, small_root):
    """What the scripts tell: with the new explainer, with networks that were trained before, and for the new target."""
    flags = [*Scripts.flags, "--xai", "input-gradient"]
    shutil.copytree(small_root, checkout.folder / "before")
    shapes(checkout.folder)
    names = "prepare", "train", "eval", "eval before", "check", "defaults", "shapes"
    return dict(zip(names, checkout(
        ["prepare.py", *flags], ["train.py", *flags],
        ["eval.py", *flags, "--settings", "predmi", "expmi", "gnime", "top-k", "--attackers", "predmi", "expmi", "nearest"],
        ["eval.py", *Scripts.flags, "--root", "before"],
        ["-c", "from gnime import reproduce; print(reproduce.main(['--check']))"],
        ["-c", "from gnime.reproduce import parser; o = parser().parse_args([]); print(*o.settings, *o.xai)"],
        ["prepare.py", "--target", "shapes", *SHAPES]), strict=True))


@pytest.fixture(scope="module")
def table(ran):
    """What eval.py prints after the scripts ran with the new explainer."""
    return ran["eval"][0]


@pytest.fixture(scope="module")
def results(checkout, table):
    return json.loads((checkout.folder / "figures/digits_input-gradient/results.json").read_text())


@pytest.fixture(scope="module")
def files(checkout, table):
    """Images in [0, 1] and explanations, (60, 1, 16, 16) float64."""
    images = hickle.load(checkout.folder / "aux/digits_imgs.hkl") / 255
    return images, hickle.load(checkout.folder / "aux/digits_input-gradient.hkl").astype(np.float64)


# the 60 images: 30 of the defender, then 30 of the attacker, of which the last fifth is the test set and a tenth of the rest,
# 2.4, the validation set
TRAIN, VALIDATION, TEST = slice(30, 52), slice(52, 54), slice(54, 60)


def logits(checkout, images):
    """The victim's, in float64, by the definition of its layers."""
    weights = torch.load(checkout.folder / "models/victim/digits.pt", weights_only=True)["tensors"]
    weights = {name: value.double().numpy() for name, value in weights.items()}
    x = images
    for name in ("conv0", "conv1"):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
        x = np.einsum("nchwij,ocij->nohw", windows, weights[f"{name}.weight"], optimize=True)
        x = np.maximum(x + weights[f"{name}.bias"][:, None, None], 0)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))
    x = np.maximum(x.reshape(len(x), -1) @ weights["fc0.weight"].T + weights["fc0.bias"], 0)
    return x @ weights["fc1.weight"].T + weights["fc1.bias"]


@pytest.fixture(scope="module")
def by_hand(checkout, files):
    """What the nearest neighbour recovers of the test images from the 16 largest pixels; and those pixels."""
    images, explanations = files
    published = np.zeros((60, 256))
    for pixels, kept in zip(explanations.reshape(60, 256), published, strict=True):
        largest = np.argsort(-pixels)[:16]
        kept[largest] = pixels[largest]
    predictions = logits(checkout, images)
    neighbours = []
    for test in range(60)[TEST]:
        distance = {train: np.sqrt(((published[test] - published[train]) ** 2).sum())
                    + np.sqrt(((predictions[test] - predictions[train]) ** 2).sum()) for train in range(60)[TRAIN]}
        neighbours.append(min(distance, key=distance.get))
    return images[neighbours], published.reshape(explanations.shape)


# --- the recipes -----------------------------------------------------------------------------------------------------


def test_a_recipe_is_one_file_and_one_line():
    found = recipes()
    assert list(found) == ["An explainer", "A defence", "An attacker", "A metric", "A target"]
    for name, (files, lines) in found.items():
        assert len(files) == (0 if name == "A target" else 1), name
        ((path, _, line),) = lines
        assert path == ("gnime/config.py" if name == "A target" else "gnime/registry.py")
        assert line.count("\n") == 1, name


def test_the_explainer_makes_what_captum_makes(checkout, files):
    images, explanations = files
    victim = rebuild(checkout.folder / "models/victim/digits.pt").double()
    x = torch.from_numpy(images).requires_grad_()
    expected = InputXGradient(victim).attribute(x, target=victim(x).argmax(1)).abs().detach().numpy()
    low, high = expected.min((2, 3), keepdims=True), expected.max((2, 3), keepdims=True)
    assert explanations.shape == (60, 1, 16, 16) and (high > low).all()
    np.testing.assert_allclose(explanations, (expected - low) / (high - low), atol=1e-4)


def test_the_row_is_in_the_table_and_in_the_files(checkout, table, results):
    _, paper, verdict, *_ = re.split(r"\n(?=setting )", table)
    assert "nearest" in next(line for line in verdict.splitlines() if line.startswith("top-k"))
    lines = [re.split(r"\s{2,}", line.strip()) for line in paper.splitlines()]
    head, (row,) = lines[0], [line for line in lines if line[0] == "top-k"]
    assert len(row) == len(head) and row[head.index("MAE")] == f"{results['settings']['top-k']['mae']:.4f}"
    assert list(results["settings"]) == ["predmi", "expmi", "gnime", "top-k"]
    assert results["settings"]["top-k"]["title"] == "the 16 largest pixels" and results["xai"] == "input-gradient"
    with (checkout.folder / "figures/digits_input-gradient/results.csv").open() as file:
        written = {row["setting"]: row for row in csv.DictReader(file)}
    for setting, numbers in results["settings"].items():
        assert float(written[setting]["mae"]) == numbers["mae"] > 0


def test_the_row_is_in_the_pictures(ran, checkout, files, by_hand, results):
    comparison, metrics, *_ = ran["eval"][1]
    errors = ((files[0][TEST] - by_hand[0]) ** 2).mean((1, 2, 3))
    names = (checkout.folder / "aux/digits_files.txt").read_text().splitlines()[TEST]
    shown = [names.index(image["name"]) for image in results["pictures"]["images"]]  # the first, the median, the worst
    captions = [caption for _, caption, _ in comparison[-6:]]  # the last line: of each image the map, what is recovered
    assert captions == [text for i in shown for text in ("published", f"MSE {errors[i]:.4f}")]
    assert "MAE (higher: safer)" in [title for title, _, _ in metrics]
    rows = ["predmi", "expmi", "gnime", "top-k"]
    drawn = [labels for title, _, labels in metrics if title]
    assert [labels for labels in drawn if labels] == [rows] * -(-len(drawn) // 3), "once for each line of three"
    assert "MAE (higher: safer)" in (checkout.folder / "figures/digits_input-gradient/report.html").read_text()
    for name in ("comparison", "metrics", "training", "frontier"):
        with Image.open(checkout.folder / f"figures/digits_input-gradient/{name}.png") as picture:
            picture.verify()


def test_the_attackers_numbers(checkout, files, by_hand, results):
    images, explanations = files[0][TEST], files[1][TEST]
    recovered, published = by_hand
    row = results["settings"]["top-k"]
    assert row["attackers"].keys() == {"predmi", "expmi", "nearest"} and row["best"]["attacker"] == "nearest"
    assert row["attackers"]["nearest"]["mse"] == pytest.approx(((images - recovered) ** 2).mean(), rel=1e-5)
    assert row["best"]["mse"] == row["attackers"]["nearest"]["mse"] < row["mse"], "two epochs teach a network little"
    maps, predictions = (torch.from_numpy(x[TEST]).float() for x in (published, logits(checkout, files[0])))
    with torch.no_grad():
        by_expmi = rebuild(checkout.folder / "models/inv/digits_top-k_input-gradient.pt")(maps, predictions).clamp(0, 1).numpy()
    assert row["mae"] == pytest.approx(np.abs(images - by_expmi).mean(), rel=1e-4)
    assert row["distortion"] == pytest.approx(((explanations - published[TEST]) ** 2).mean(), rel=1e-5)
    assert (published[TEST] > 0).sum((1, 2, 3)).max() == 16
    assert "nearest" in results["settings"]["gnime"]["attackers"]
    assert results["settings"]["predmi"]["not_applicable"].keys() == {"expmi", "nearest"}


# --- what they leave as it is ----------------------------------------------------------------------------------------


def test_the_papers_rows_keep_their_numbers(ran, checkout, small_root):
    """Networks that were trained before the recipes are used, and measured with the same result."""
    out = ran["eval before"][0]
    assert "training" not in out and out.count("found") >= 8
    before, after = (json.loads((root / "figures/digits_lrp/results.json").read_text())
                     for root in (small_root, checkout.folder / "before"))
    for numbers in after["settings"].values():
        assert numbers.pop("mae") > 0 and numbers.pop("mae_interval")
    assert after["settings"] == before["settings"] and after["networks"] == before["networks"]


def test_the_papers_table_stays(ran):
    """docs/results.md is what the new code makes of the committed results, and no default changes."""
    assert ran["check"][0].split() == ["0"]
    default = reproduce.parser().parse_args([])
    assert ran["defaults"][0].split() == [*default.settings, *default.xai]


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [False, True], ids=["a folder", "a record"])
def test_a_target(ran, checkout, tmp_path, record):
    if record:
        folder = checkout.folder
    else:
        folder = tmp_path
        shapes(folder)
        assert main("prepare", ["--target", "shapes", *SHAPES, "--root", str(folder), "--image-size", "16"]) == 0
    channels, convolutions = (1, 2) if record else (3, 3)  # of MNIST's networks; of faces'
    assert hickle.load(folder / "aux/shapes_imgs.hkl").shape == (24, channels, 16, 16)
    assert hickle.load(folder / "aux/shapes_grad.hkl").shape == (24, channels, 16, 16)
    victim = rebuild(folder / "models/victim/shapes.pt")
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in victim) == convolutions
    assert victim[-1].out_features == 2
