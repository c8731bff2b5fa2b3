"""Kernel ridge regression against hand arithmetic, a slow twin in float64, and scikit-learn."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bounded import DEVICE
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from gnime.attackers import kernel as module
from gnime.data import AttackerData
from gnime.defences import DefenderData, prototypes
from gnime.errors import GnimeError
from gnime.networks import build
from gnime.registry import ATTACKERS, ROWS
from gnime.system import permutation

ROW = ROWS["gnime"]


def experiment(seed=0):
    return SimpleNamespace(run=SimpleNamespace(seed=seed), device=SimpleNamespace(torch=torch.device("cpu")))


def made_up(train=30, validation=8, test=9, image=(1, 4, 4), maps=(1, 4, 4), classes=3, seed=0):
    """Few latent numbers decide the image; the logits tell one of them, the map all, bent."""
    n, random = train + validation + test, np.random.default_rng(seed)
    latent = random.normal(size=(n, 4))
    images = 255 / (1 + np.exp(-latent @ random.normal(size=(4, math.prod(image)))))
    explanations = None if maps is None else np.abs(np.tanh(latent @ random.normal(size=(4, math.prod(maps)))))
    logits = latent[:, :1] @ random.normal(size=(1, classes)) + 0.1 * random.normal(size=(n, classes))
    parts = range(train), range(train, train + validation), range(train + validation, n)
    explanations = None if maps is None else explanations.reshape(n, *maps).astype(np.float32)
    return AttackerData(images.round().astype(np.uint8).reshape(n, *image), np.zeros(n, np.int64), logits.astype(np.float32),
                        explanations, *parts)


def shown_rows(shown, rows):
    """What `reconstruct` takes, and the images as numbers in [0, 1]."""
    maps = None if shown.explanations is None else torch.tensor(shown.explanations[rows.start : rows.stop])
    return maps, torch.tensor(shown.predictions[rows.start : rows.stop]), shown.images[rows.start : rows.stop] / 255


def reconstructed(fitted, shown, rows):
    return fitted.reconstruct(*shown_rows(shown, rows)[:2])


# ------------------------------------------------------------------ the slow twin: numpy, float64, number by number

def slow_standard(values, rows, floor):
    """Standardised with the mean and variance of `rows`; divided by the square root of the number of columns."""
    values = values.reshape(len(values), -1).astype(float)
    variance = values[rows].var(0)
    return (values - values[rows].mean(0)) / np.sqrt(variance + floor * variance.mean()) / math.sqrt(values.shape[1])


def slow_kernel(maps, logits, rows, columns, he, hy):
    made = np.empty((len(rows), len(columns)))
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            dy = np.linalg.norm(logits[a] - logits[b])
            made[i, j] = 0.5 * math.exp(-(dy**2) / (2 * hy**2))
            de = 0.0 if maps is None else np.linalg.norm(maps[a] - maps[b])
            made[i, j] += math.exp(-(de**2) / (2 * (he or 1.0) ** 2) - dy**2 / (2 * hy**2))
    return made


def slow_fit(maps, logits, images, train, asked, parameters):
    he, hy, ridge = parameters
    matrix = slow_kernel(maps, logits, train, train, he, hy) + ridge * np.eye(len(train))
    mean = images[train].mean(0)
    found = slow_kernel(maps, logits, asked, train, he, hy) @ np.linalg.solve(matrix, images[train] - mean) + mean
    return found.clip(0, 1)


def slow_attack(shown, seed, most, searched):
    """(reconstructions of the test images, the grid point, error on the validation images)."""
    train = permutation(len(shown.train), seed, "kernel").numpy()[:most]
    images = shown.images.reshape(len(shown.images), -1) / 255
    maps = None if shown.explanations is None else slow_standard(shown.explanations, train, 0.1)
    logits = slow_standard(shown.predictions, train, 0.0)
    held, best = list(shown.validation), (math.inf, None)
    for he in (0.7, 2, 6, 1e4) if maps is not None else (None,):
        for hy in (0.5, 1.5, 5):
            for ridge in (1e-5, 1e-3, 0.03, 0.3):
                found = slow_fit(maps, logits, images, train[:searched], held, (he, hy, ridge))
                error = ((found - images[held]) ** 2).mean()
                if error < best[0]:
                    best = error, (he, hy, ridge)
    found = {part: slow_fit(maps, logits, images, train, list(rows), best[1])
             for part, rows in (("test", shown.test), ("validation", shown.validation))}
    return found["test"], best[1], ((found["validation"] - images[held]) ** 2).mean()


@pytest.mark.parametrize("sizes", [
    {}, {"maps": None}, {"image": (3, 4, 4), "maps": (1, 2, 2)}, {"image": (1, 4, 4), "maps": (3, 8, 8), "seed": 1},
    {"maps": None, "image": (3, 4, 4), "seed": 2}], ids=["maps", "no maps", "colour", "large maps", "no maps, colour"])
def test_it_is_its_slow_twin(sizes, monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 24)
    monkeypatch.setattr(module, "SEARCHED", 15)
    monkeypatch.setattr(module, "COLUMNS", 7)  # several blocks of columns, and of rows
    monkeypatch.setattr(module, "CHUNK", 5)
    shown = made_up(**sizes)
    fitted = module.kernel(experiment(3), ROW, shown)
    expected, parameters, score = slow_attack(shown, 3, 24, 15)
    he, hy, ridge = parameters
    assert fitted.summary["parameters"] == {"he": he, "hy": hy, "ridge": ridge, "images": 24}
    found = reconstructed(fitted, shown, shown.test)
    assert found.shape == (9, *shown.images.shape[1:]) and found.dtype == torch.float32
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, atol=2e-5)
    assert fitted.summary["score"] == pytest.approx(score, rel=1e-4)
    assert json.loads(json.dumps(fitted.summary)) == fitted.summary and fitted.summary["seconds"] > 0


def test_standardisation_by_hand():
    """Columns 0, 2 and 1, 1: variances 1 and 0, their mean 0.5; the first is divided by sqrt(1 + 0.05) sqrt(2)."""
    values = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    maps = module.Scale.fit(values, floor=0.1)
    root, other = 1 / math.sqrt(2.1), 3 / math.sqrt(0.1)  # (4 - 1) / sqrt(2.1) and (4 - 1) / (sqrt(0.05) sqrt(2))
    torch.testing.assert_close(maps(values), torch.tensor([[-root, 0.0], [root, 0.0]]))
    torch.testing.assert_close(maps(torch.tensor([[4.0, 4.0]])), torch.tensor([[3 * root, other]]))
    logits = module.Scale.fit(values, floor=0.0)
    torch.testing.assert_close(logits(values), torch.tensor([[-(0.5**0.5), 0.0], [0.5**0.5, 0.0]]))


def test_kernel_by_hand():
    """Maps 3-4-5 apart, logits 2: exp(-4 / 2 hy^2) (0.5 + exp(-25 / 2 he^2)) with he = 5, hy = 2."""
    one = module.Seen(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0]]))
    other = module.Seen(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0], [1.0]]))
    found = module.similarity(module.distances(one, other), 5.0, 2.0)
    expected = [[math.exp(-0.5) * 0.5 + math.exp(-0.5 - 0.5), 1.5]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double))
    without = module.similarity(module.distances(one._replace(maps=None), other._replace(maps=None)), None, 2.0)
    torch.testing.assert_close(without, torch.tensor([[1.5 * math.exp(-0.5), 1.5]], dtype=torch.double))


def test_constant_maps_are_worth_as_much_as_none():
    """So a blank explanation leaks nothing, to the last digit."""
    predictions = torch.randn(30, 4)
    standard, without = (module.scales(module.Seen(maps, predictions))(module.Seen(maps, predictions))
                         for maps in (torch.full((30, 6), 0.3), None))
    assert module.similarity(module.distances(standard, standard), 0.7, 1.5).equal(
        module.similarity(module.distances(without, without), None, 1.5))


def test_a_fit_that_can_be_solved_by_hand():
    """Two images infinitely far apart: k = 1.5 I, so each is its own, pulled to the mean by 1.5 / (1.5 + ridge)."""
    train = module.Seen(torch.tensor([[0.0], [1e6]]), torch.tensor([[0.0], [1e6]]))
    images = torch.tensor([[0.2, 1.0], [0.6, 0.0]])
    model = module.KernelRidge.fit(train, images, module.Parameters(2.0, 1.5, 0.3))
    own = 1.5 / 1.8
    expected = torch.tensor([[0.4 - 0.2 * own, 0.5 + 0.5 * own], [0.4 + 0.2 * own, 0.5 - 0.5 * own]])
    torch.testing.assert_close(model.predict(train), expected)
    far = module.Seen(torch.tensor([[-1e6]]), torch.tensor([[-1e6]]))
    torch.testing.assert_close(model.predict(far), torch.tensor([[0.4, 0.5]]), msg="the mean where nothing is near")
    equal = module.KernelRidge.fit(module.Seen(None, torch.zeros(2, 1)), images, module.Parameters(None, 1.5, 1e-5))
    torch.testing.assert_close(equal.predict(module.Seen(None, torch.zeros(1, 1))), torch.tensor([[0.4, 0.5]]))


@pytest.mark.parametrize("he", [None, 6.0, 1e4])
@pytest.mark.parametrize("ridge", [1e-5, 0.3])
def test_scikit_learn_agrees(he, ridge):
    g = torch.Generator().manual_seed(0)
    train, asked = (module.Seen(None if he is None else torch.randn(n, 20, generator=g), torch.randn(n, 5, generator=g))
                    for n in (80, 30))
    images = 0.5 + torch.randn(80, 12, generator=g)
    parameters = module.Parameters(he, 1.5, ridge)
    oracle = SklearnKernelRidge(alpha=ridge, kernel="precomputed")
    oracle.fit(module.kernel_matrix(train, train, parameters).numpy(), (images - images.mean(0)).double().numpy())
    expected = oracle.predict(module.kernel_matrix(asked, train, parameters).numpy()) + images.mean(0).numpy()
    assert ((expected < 0) | (expected > 1)).any(), "clipping acts"
    found = module.KernelRidge.fit(train, images, parameters).predict(asked)
    np.testing.assert_allclose(found.numpy(), expected.clip(0, 1), atol=1e-6)


def test_the_map_tells_what_the_prediction_does_not():
    random = np.random.default_rng(0)
    latent = random.uniform(size=(260, 2))
    images = np.einsum("nk,kp->np", latent, random.uniform(size=(2, 64)) / 2).reshape(-1, 1, 8, 8)
    maps = latent[:, :, None, None] * np.ones((1, 1, 3, 3))  # two channels of 3x3
    shown = AttackerData((255 * images).round().astype(np.uint8), np.zeros(260, np.int64),
                         random.normal(size=(260, 4)).astype(np.float32), maps.astype(np.float32),
                         range(180), range(180, 200), range(200, 260))
    error = {}
    for name, maps in (("expmi", shown.explanations), ("predmi", None)):
        shown.explanations = maps
        found = reconstructed(module.kernel(experiment(), ROWS[name], shown), shown, shown.test).numpy()
        error[name] = ((found - images[200:]) ** 2).mean()
    assert error["predmi"] > 0.9 * images[200:].var(0).mean(), "the logits are noise"
    assert error["expmi"] < 0.02 * error["predmi"]


def test_it_is_deterministic_and_seeded(monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 15)
    shown = made_up()
    found = [reconstructed(module.kernel(experiment(seed), ROW, shown), shown, shown.test) for seed in (0, 0, 1)]
    assert found[0].equal(found[1]) and not found[0].equal(found[2]), "another seed, other images"
    parts = [reconstructed(module.kernel(experiment(), ROW, shown), shown, rows) for rows in
             (range(shown.test.start, shown.test.start + 4), range(shown.test.start + 4, shown.test.stop))]
    torch.testing.assert_close(torch.cat(parts), found[0])


def test_tensors_and_mapped_arrays_are_the_same_to_it(tmp_path):
    shown = made_up()
    mapped = np.memmap(tmp_path / "maps", np.float32, "w+", shape=shown.explanations.shape)
    mapped[:] = shown.explanations
    tensors = AttackerData(*(torch.tensor(array) for array in (shown.images, shown.labels, shown.predictions,
                                                               shown.explanations)), shown.train, shown.validation, shown.test)
    expected = reconstructed(module.kernel(experiment(), ROW, shown), shown, shown.test)
    shown.explanations = mapped
    assert reconstructed(module.kernel(experiment(), ROW, shown), shown, shown.test).equal(expected)
    fitted = module.kernel(experiment(), ROW, tensors)
    rows = slice(tensors.test.start, tensors.test.stop)
    assert fitted.reconstruct(tensors.explanations[rows], tensors.predictions[rows]).equal(expected)


@pytest.mark.parametrize("case", ["constant maps", "constant logits", "both constant", "constant images", "tiny maps",
                                  "one validation image", "one training image", "far test images"])
def test_degenerate_cases_give_numbers(case):
    one = {"one validation image": {"validation": 1}, "one training image": {"train": 1}}
    shown = made_up(**one.get(case, {}))
    if case in ("constant maps", "both constant"):
        shown.explanations[:] = 0.3
    if case in ("constant logits", "both constant"):
        shown.predictions[:] = 1.7
    if case == "constant images":
        shown.images[:] = 51
    if case == "tiny maps":
        shown.explanations *= np.float32(1e-30)
    if case == "far test images":
        shown.predictions[shown.test.start :] = 1e30
        shown.explanations[shown.test.start :] = 1e30
    fitted = module.kernel(experiment(), ROW, shown)
    found = reconstructed(fitted, shown, shown.test)
    assert found.isfinite().all() and 0 <= found.min() and found.max() <= 1 and math.isfinite(fitted.summary["score"])
    mean = torch.tensor(shown.images[shown.train.start : shown.train.stop] / 255).mean(0).expand(found.shape).float()
    if case in ("both constant", "one training image", "constant images", "far test images"):
        torch.testing.assert_close(found, mean, msg="nothing but the mean can be known")


@pytest.mark.parametrize("name", ["explanations", "predictions"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_refused(name, value):
    shown = made_up()
    getattr(shown, name)[3] = value
    with pytest.raises(GnimeError, match="gnime: its maps or predictions are not all finite; make them again"):
        module.kernel(experiment(), ROW, shown)


def test_a_matrix_without_a_factor_gets_a_larger_ridge(monkeypatch, capsys):
    """Eigenvalues 2.01 and -0.01: 1e-5 to 1e-2 leave one that is not above 0."""
    matrix = torch.tensor([[1.0, 1.01], [1.01, 1.0]], dtype=torch.double)
    factor, ridge = module.factorise(matrix, 1e-5)
    assert ridge == pytest.approx(0.1)
    torch.testing.assert_close(factor @ factor.T, matrix + 0.1 * torch.eye(2, dtype=torch.double))
    assert module.factorise(matrix, 0.3)[1] == 0.3

    shown, real = made_up(), module.similarity
    module.kernel(experiment(), ROW, shown)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "similarity", lambda *a: real(*a) - 2.0 * (torch.eye(30) if a[0].predictions.shape == (30, 30)
                                                                           else 0.0))  # no ridge of the grid suffices
    fitted = module.kernel(experiment(), ROW, shown)
    assert "warning: gnime: the kernel matrix has no Cholesky factor with ridge" in capsys.readouterr().err
    assert fitted.summary["parameters"]["ridge"] > 0.5 and reconstructed(fitted, shown, shown.test).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("maps", [(1, 4, 4), None])
def test_a_cuda_device_finds_the_same(maps):
    shown, cuda = made_up(maps=maps), torch.device("cuda")
    there = experiment()
    there.device.torch = cuda
    expected = module.kernel(experiment(), ROW, shown)
    found = module.kernel(there, ROW, shown)
    assert found.summary["parameters"] == expected.summary["parameters"]
    seen = [None if value is None else value.to(cuda) for value in shown_rows(shown, shown.test)[:2]]
    torch.testing.assert_close(found.reconstruct(*seen).cpu(), reconstructed(expected, shown, shown.test), atol=2e-5, rtol=0)


def test_it_is_registered():
    assert ATTACKERS["kernel"].title == "kernel ridge regression" and ATTACKERS["kernel"].load() is module.kernel


def test_no_more_is_recovered_from_prototypes_than_their_bits_allow():
    """Eight equally likely images and a constant prediction, so the map is all that an attacker has.

    With one of two maps it can do no better than the mean image of each part. The best of all 127 partitions is enumerated.
    """
    codes = np.random.default_rng(0).integers(0, 256, (8, 1, 4, 4), np.uint8)
    images = codes[np.arange(400) % 8]
    maps = torch.tensor(images / np.float32(255))
    defender = DefenderData(maps[:80], torch.zeros(80, 3), range(80), maps[:80].mean(0).expand(3, 1, 4, 4), 0, DEVICE)
    fit = prototypes.fit(defender, 2)
    defence = build(fit.spec)
    defence.load_state_dict(fit.tensors)
    flat = codes.reshape(8, -1) / 255

    def left(half):
        return sum(flat[part].var(0).mean() * part.sum() / 8 for part in (half, ~half))

    least = min(left(np.array([code >> i & 1 for i in range(8)], bool)) for code in range(1, 128))
    errors = {}
    for name, shown in (("protected", defence(maps, torch.zeros(400, 3))), ("undefended", maps)):
        seen = AttackerData(images, np.zeros(400, np.int64), np.zeros((400, 3), np.float32), shown.numpy(), range(240),
                            range(240, 320), range(320, 400))
        found = reconstructed(module.kernel(experiment(), ROW, seen), seen, seen.test).numpy()
        errors[name] = ((found - images[320:] / 255) ** 2).mean()
    assert errors["protected"] >= least * (1 - 1e-6) and errors["undefended"] < 0.1 * least
    assert errors["protected"] < flat.var(0).mean(), "the one bit is used"
