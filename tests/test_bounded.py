"""Defences whose leak is bounded: against NumPy in 64 bits, scikit-learn, and by hand."""

import json
import math
import shutil

import hickle
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from gnime import evaluate
from gnime.checkpoints import load_checkpoint
from gnime.cli import resolve
from gnime.defences import DefenceInputs, DefenderData, cond_mean, prototypes
from gnime.defences.class_mean import class_means
from gnime.device import Device
from gnime.evaluate import Result
from gnime.networks import build, rebuild
from gnime.registry import CONTROLS, DEFAULT_ROWS, DEFENCES, FAMILIES, ROWS, Defence, Row, colour, find_row, in_order, title
from gnime.report import results

DEVICE = Device(resolve("eval", ["--gpu", "-1"]))


def made_up(n=120, first=7, noise=0.05, seed=0):
    """A defender's half, rows `first` to `first + n` of more: maps (2, 4, 4) that follow from the logits, and noise."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(first + n + 5, 3)).astype(np.float32) * [3.0, 1.0, 0.5]
    waves = np.sin(logits @ np.random.default_rng(99).normal(scale=0.5, size=(3, 32)))  # the same for all seeds
    maps = (0.5 + 0.3 * waves + noise * rng.normal(size=waves.shape)).clip(0, 1).astype(np.float32).reshape(-1, 2, 4, 4)
    maps, logits, rows = torch.from_numpy(maps), torch.from_numpy(logits.astype(np.float32)), range(first, first + n)
    return DefenderData(maps, logits, rows, class_means(maps, logits, rows, DEVICE), 5, DEVICE)


def network(fit):
    """As it is loaded: every buffer has the shape that the specification gives it."""
    made = build(fit.spec)
    made.load_state_dict(fit.tensors)
    return made


def defender(data):
    at = slice(data.rows.start, data.rows.stop)
    return data.explanations[at], data.predictions[at]


# --- the conditional mean --------------------------------------------------------------------------------------------


def twin(data):
    """docs/method.md's formula and grid, every image left out by fitting the others. Returns width, ridge, its error, and g."""
    maps, logits = (np.asarray(a, np.float64).reshape(len(data.rows), -1) for a in defender(data))
    kinds = logits.argmax(1)
    means = np.stack([maps[kinds == kind].mean(0) for kind in range(logits.shape[1])])
    rest, mean, std = maps - means[kinds], logits.mean(0), logits.std(0)

    def kernel(one, other, width):
        z, w = ((y - mean) / std / math.sqrt(len(mean)) for y in (one, other))
        return np.exp(-((z[:, None] - w[None]) ** 2).sum(2) / (2 * width**2))

    def regression(seen, width, ridge):
        matrix = kernel(logits[seen], logits[seen], width) + ridge * np.eye(len(seen))
        coefficients = np.linalg.solve(matrix, rest[seen])
        return lambda y: kernel(y, logits[seen], width) @ coefficients

    found = {}
    for width in (0.3, 0.5, 1, 1.5, 3):
        for ridge in (0.01, 0.1, 0.3, 1):
            left = [rest[i] - regression(np.delete(np.arange(len(rest)), i), width, ridge)(logits[i : i + 1])[0]
                    for i in range(len(rest))]
            found[width, ridge] = np.square(left).mean(), np.array(left)
    width, ridge = min(found, key=lambda grid: found[grid][0])
    whole = regression(np.arange(len(rest)), width, ridge)

    def g(y):
        y = np.asarray(y, np.float64)
        return (means[y.argmax(1)] + whole(y)).clip(0, 1).reshape(-1, *data.explanations.shape[1:])

    return width, ridge, *found[width, ridge], g


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_conditional_mean_is_its_slow_twin(noise):
    """Explicit refitting without each image, at each point of the grid, is the oracle of the closed form."""
    data = made_up(48, noise=noise)
    fit, left_out = cond_mean.fit_with_residuals(data)
    width, ridge, error, residuals, g = twin(data)
    assert (fit.report["h"], fit.report["ridge"]) == (width, ridge)
    assert fit.report["leave_one_out"] == pytest.approx(error, rel=1e-6)
    np.testing.assert_allclose(left_out, residuals, atol=1e-5)
    fresh = torch.randn(50, 3) * torch.tensor([3.0, 1.0, 0.5])
    np.testing.assert_allclose(network(fit)(None, fresh), g(fresh), atol=2e-5)


def test_noise_asks_for_more_smoothing():
    """The twin's grid has more than one winner, so the choice is tested, too."""
    reports = [cond_mean.fit(made_up(48, noise=noise)).report for noise in (0.02, 0.2)]
    assert (reports[0]["h"], reports[0]["ridge"]) != (reports[1]["h"], reports[1]["ridge"])


def test_conditional_mean_sees_the_defenders_half_alone_and_says_more_than_the_class():
    data = made_up()
    before = cond_mean.fit(data)
    data.explanations[: data.rows.start] = data.explanations[data.rows.stop :] = 9.0
    data.predictions[: data.rows.start] = data.predictions[data.rows.stop :] = 9.0
    after = cond_mean.fit(data)
    assert all(before.tensors[name].equal(after.tensors[name]) for name in before.tensors)
    maps, logits = defender(made_up(seed=1))
    means = network(before)(None, logits), data.class_means[logits.argmax(1)]
    errors = [(mean - maps).square().mean().item() for mean in means]
    assert errors[0] < 0.5 * errors[1]


def test_more_images_than_centres(monkeypatch):
    """The class means still see all of them; the centres are a seeded choice of the half."""
    monkeypatch.setattr(cond_mean, "CENTRES", 30)
    data = made_up()
    fit = cond_mean.fit(data)
    again = cond_mean.fit(data)
    assert all(fit.tensors[name].equal(again.tensors[name]) for name in fit.tensors)
    assert fit.tensors["coefficients"].shape == (30, 32) and fit.tensors["means"] is data.class_means
    logits = defender(data)[1]
    raw = fit.tensors["centres"] * fit.tensors["scale"] + fit.tensors["offset"]
    nearest = torch.cdist(raw, logits).min(1)
    assert nearest.values.max() < 1e-3 and len(nearest.indices.unique()) == 30
    data.seed += 1
    assert not cond_mean.fit(data).tensors["centres"].equal(fit.tensors["centres"])


def test_a_logit_that_never_changes():
    data = made_up()
    data.predictions[:, 2] = -4.0
    assert network(cond_mean.fit(data))(None, data.predictions).isfinite().all()


def test_mix_by_hand():
    e, y = torch.rand(6, 1, 4, 4), torch.eye(3)[torch.tensor([0, 1, 2, 2, 1, 0])]
    means = torch.rand(3, 1, 4, 4)
    row = find_row("mix-0.25")
    protect = DEFENCES[row.defence].load()(DefenceInputs(0, class_means=means), **row.parameters)
    torch.testing.assert_close(protect(e, y, None, range(6))[3], 0.25 * e[3] + 0.75 * means[2])


# --- prototypes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_k_means_is_as_good_as_scikit_learns(clusters, seed):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.normal(size=(8, 20))[rng.integers(0, 8, 300)] + 0.5 * rng.normal(size=(300, 20)))
    tries = [prototypes.k_means(points, clusters, seed, start) for start in range(prototypes.STARTS)]
    ours = min(prototypes.inertia(points, cells) for cells in tries)
    theirs = KMeans(clusters, n_init=3, max_iter=30, random_state=seed).fit(points.numpy()).inertia_
    assert ours <= 1.05 * theirs
    for cells in tries:
        centres = np.stack([points[cells == cell].mean(0) for cell in range(clusters)])
        assert prototypes.inertia(points, cells) == pytest.approx(
            sum(((points[cells == cell].numpy() - centres[cell]) ** 2).sum() for cell in range(clusters)))


def test_small_cells_join_their_neighbours_by_hand():
    """On a line: 6 at 0, 2 at 1, 3 at 10, 1 at 12, 5 at 20, and a cell number that nobody has."""
    points = torch.tensor([0.0] * 6 + [1.0] * 2 + [10.0] * 3 + [12.0] + [20.0] * 5)[:, None]
    cells = torch.tensor([0] * 6 + [1] * 2 + [3] * 3 + [4] + [5] * 5)
    found = prototypes.merge_small(points, cells)
    # 12 joins 10: mean 10.5; the two at 1 join 0: mean 0.25; the four at 10.5 are 9.5 from 20, 10.25 from 0.25
    assert found.tolist() == [0] * 8 + [1] * 9
    assert prototypes.merge_small(points[:4], torch.arange(4)).tolist() == [0] * 4, "four are too few for any cell"
    assert prototypes.merge_small(points, torch.zeros(17).long()).tolist() == [0] * 17


def test_prototypes_are_means_of_at_least_five_of_a_classs_maps():
    data = made_up(150)
    fit = prototypes.fit(data, 6)
    maps, logits = defender(data)
    made, kinds = network(fit), logits.argmax(1)
    assert (made.images >= 5).all() and made.owner.bincount().amax() <= 6
    sent = made(maps, logits)
    for kind in range(3):
        own = made.prototypes[made.owner == kind]
        assert made.images[made.owner == kind].sum() == (kinds == kind).sum()
        away = ((maps[kinds == kind][:, None].double() - own[None]) ** 2).flatten(2).sum(2)
        assert sent[kinds == kind].equal(own[away.argmin(1)]), "the nearest of its class"
        means = (made.images[made.owner == kind, None] * own.flatten(1)).sum(0) / (kinds == kind).sum()
        torch.testing.assert_close(means, data.class_means[kind].flatten())
    assert "warning" not in fit.report or (kinds.bincount() < 30).any()


@pytest.mark.parametrize("clusters", [1, 4, 16])
def test_a_class_sends_at_most_k_maps(clusters):
    """Of fresh images: at most log2 K bits, once the class is known."""
    made, fresh = network(prototypes.fit(made_up(200), clusters)), made_up(1000, noise=0.5, seed=3)
    sent = made(fresh.explanations, fresh.predictions).flatten(1)
    kinds = fresh.predictions.argmax(1)
    found = [len(sent[kinds == kind].unique(dim=0)) for kind in range(3)]
    assert max(found) <= clusters and (clusters == 1 or min(found) > 1)
    if clusters == 1:
        torch.testing.assert_close(sent, made_up(200).class_means[kinds].flatten(1), msg="K = 1 is the class's mean")


def test_classes_of_few_images():
    """22 of the first class, 4 of the second, none of the third."""
    data = made_up(26)
    at = slice(data.rows.start, data.rows.stop)
    data.predictions[at] = torch.eye(3)[torch.tensor([0] * 22 + [1] * 4)]
    data.class_means = class_means(data.explanations, data.predictions, data.rows, DEVICE)
    fit = prototypes.fit(data, 16)
    made = network(fit)
    assert (made.owner == 0).sum() <= 4, "of at least five images each"
    everything = data.explanations[at].mean(0)
    for kind in (1, 2):  # four are too few to publish their mean
        sent = made(torch.rand(5, 2, 4, 4), torch.eye(3)[[kind] * 5])
        torch.testing.assert_close(sent, everything.expand(5, -1, -1, -1))
    assert fit.report["warning"].startswith("2 of 2 predicted classes have fewer than 80 of the defender's images")
    assert "warning" not in prototypes.fit(made_up(150), 1).report


def test_equal_maps_are_one_prototype():
    data = made_up()
    data.explanations[:] = 0.25
    data.class_means = class_means(data.explanations, data.predictions, data.rows, DEVICE)
    made = network(prototypes.fit(data, 4))
    torch.testing.assert_close(made(data.explanations, data.predictions), data.explanations)
    assert (made.images >= 5).all()


def test_conditional_prototypes_by_the_twin():
    data = made_up(60, noise=0.1)
    fit = prototypes.fit_conditional(data, 4)
    _, _, _, residuals, g = twin(data)
    theirs = KMeans(4, n_init=3, max_iter=30, random_state=0).fit(residuals).inertia_
    own = fit.tensors["prototypes"].flatten(1).double().numpy()
    away = ((residuals[:, None] - own[None]) ** 2).sum(2)
    assert away.min(1).sum() <= 1.05 * theirs and (fit.tensors["images"] >= 5).all() and len(own) <= 4
    assert fit.tensors["images"].sum() == 60
    fresh = made_up(40, seed=2)
    mean = g(fresh.predictions)
    rest = (fresh.explanations.numpy() - mean).reshape(len(mean), -1)
    nearest = ((rest[:, None] - own[None]) ** 2).sum(2).argmin(1)
    sent = network(fit)(fresh.explanations, fresh.predictions)
    np.testing.assert_allclose(sent, (mean + own[nearest].reshape(mean.shape)).clip(0, 1), atol=3e-5)
    assert len(set(nearest)) > 1
    assert prototypes.fit_conditional(data, 13).report["warning"].startswith("60 of the defender's images are fewer than 5")


# --- rows with a number, and their bits ------------------------------------------------------------------------------


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


# --- through the scripts ---------------------------------------------------------------------------------------------

BOUNDED = ["cond-mean", "prototypes-3", "cond-prototypes-2"]


def files(root, name):
    return root / f"models/def/digits_lrp/{name}.pt"


@pytest.mark.usefixtures("no_pictures")
def test_fitted_saved_and_found_again(scripts, root_copy, capsys):
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "expmi", *BOUNDED, "mix-0.1")
    assert code == 0 and out.count("fitted in") == 3
    assert "prototypes-3: at most 1.59 bits beyond the prediction" in out
    assert "cond-mean: at most 0 bits" in out and "mix-0.1: at most" not in out
    found = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())
    bits = {name: row["bits"] for name, row in found["settings"].items()}
    assert bits == {"predmi": None, "expmi": None, "cond-mean": 0, "prototypes-3": math.log2(3), "cond-prototypes-2": 1,
                    "mix-0.1": None}
    before = {name: files(root_copy, name).read_bytes() for name in BOUNDED}
    assert found["networks"]["prototypes-3 defence"]["digest"] == load_checkpoint(files(root_copy, "prototypes-3")).digest

    # what the attackers saw, from the files alone
    images, maps = (hickle.load(root_copy / f"aux/digits_{what}.hkl") for what in ("imgs", "lrp"))
    clean = torch.from_numpy(np.asarray(maps))
    with torch.no_grad():
        logits = rebuild(root_copy / "models/victim/digits.pt")(torch.from_numpy(images.astype(np.float32) / 255))
        for name in BOUNDED:
            distortion = (rebuild(files(root_copy, name))(clean, logits) - clean)[54:].square().mean().item()
            assert found["settings"][name]["distortion"] == pytest.approx(distortion, rel=1e-4)
    rows = range(30)
    data = DefenderData(clean, logits, rows, class_means(clean, logits, rows, DEVICE), 0, DEVICE)
    kept = rebuild(files(root_copy, "cond-mean")).state_dict()
    for name, tensor in cond_mean.fit(data).tensors.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-4, rtol=1e-4)

    capsys.readouterr()
    code, out, _ = scripts("eval", root_copy, "--settings", "predmi", "expmi", *BOUNDED, "mix-0.1")
    assert code == 0 and "fitted in" not in out and out.count("/cond-mean.pt: found") == 1
    assert {name: files(root_copy, name).read_bytes() for name in BOUNDED} == before
    again = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())
    assert again["settings"] == found["settings"]


@pytest.mark.usefixtures("no_pictures")
def test_classes_too_small_are_said_before_an_attacker_is_trained_and_each_time(root_copy, capsys):
    flags = ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--epochs", "1", "--root", str(root_copy)]
    from gnime.cli import main

    shutil.rmtree(root_copy / "models/inv")
    for _ in range(2):
        capsys.readouterr()
        assert main("eval", [*flags, "--settings", "prototypes-3"]) == 0
        warned = [line for line in capsys.readouterr().err.splitlines() if "prototypes" in line]
        assert len(warned) == 1 and warned[0].startswith("warning: prototypes-3: ") and "fewer than 15" in warned[0]


@pytest.mark.usefixtures("no_pictures")
def test_a_defence_of_something_else_is_refused(scripts, root_copy):
    assert scripts("eval", root_copy, "--settings", "prototypes-3", "cond-mean")[0] == 0
    shutil.copy(files(root_copy, "prototypes-3"), files(root_copy, "prototypes-2"))
    code, line = scripts.fails("eval", root_copy, "--settings", "prototypes-2")
    assert code == 1 and "prototypes-2.pt: made with definition" in line
    shutil.copy(files(root_copy, "injector"), files(root_copy, "prototypes-5"))
    code, line = scripts.fails("eval", root_copy, "--settings", "prototypes-5")
    assert code == 1 and "prototypes-5.pt: made with kind injector, this run has defence" in line
    torch.save(rebuild(files(root_copy, "cond-mean")).state_dict(), files(root_copy, "cond-prototypes-2"))
    code, line = scripts.fails("eval", root_copy, "--settings", "cond-prototypes-2")
    assert code == 1 and "cond-prototypes-2.pt: does not say what made it; move it away" in line

    content = files(root_copy, "prototypes-3").read_bytes()
    middle = len(content) // 2
    files(root_copy, "prototypes-3").write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
    code, line = scripts.fails("eval", root_copy, "--settings", "prototypes-3")
    assert code == 1 and "prototypes-3.pt" in line and "move it away" in line

    other = torch.load(files(root_copy, "cond-mean"), weights_only=True)
    from gnime.checkpoints import save_checkpoint

    other["tensors"]["means"] += 0.01  # fitted anew, to something else
    save_checkpoint(files(root_copy, "cond-mean"), other["tensors"], other["spec"], other["made_by"], other["extra"])
    code, line = scripts.fails("eval", root_copy, "--settings", "cond-mean")
    assert code == 1 and "digits_cond-mean_lrp.pt: made with defence" in line and "the defence changed since" in line


@pytest.mark.usefixtures("no_pictures")
def test_other_explanations_refuse_a_fitted_defence(scripts, root_copy):
    assert scripts("eval", root_copy, "--settings", "cond-mean")[0] == 0
    path = root_copy / "aux/digits_lrp.hkl"
    maps = np.array(hickle.load(path))
    maps[0] = 0
    hickle.dump(maps, path, mode="w")
    code, line = scripts.fails("eval", root_copy, "--settings", "cond-mean")
    assert code == 1 and "cond-mean.pt: made with explanations" in line


# --- defences that break their promise -------------------------------------------------------------------------------


def broken(kind):
    def defence(inputs):
        def protect(explanation, prediction, image, rows):
            if kind == "late nan":  # not in the first batch
                return explanation if rows.start == 0 else torch.full_like(explanation, torch.nan)
            return {"nan": torch.full_like(explanation, torch.nan), "infinite": explanation / 0, "none": None,
                    "numpy": explanation.numpy(), "flat": explanation.flatten(1), "one": explanation[:1],
                    "larger": torch.cat([explanation, explanation], 3)}[kind]

        return protect

    return defence


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("kind", "words"), [
    ("nan", "not finite"), ("infinite", "not finite"), ("late nan", "not finite"), ("none", "NoneType, not a tensor"),
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
