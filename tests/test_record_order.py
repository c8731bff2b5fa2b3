"""Rows of a service's record that are in another order than its images."""


import numpy as np
from recording import N, found
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import load_digits

from gnime import checks
from gnime.system import permutation


def mantel(one, other):
    """Whether no random order of the rows relates the raw distances as well as their own does, by scipy and numpy."""
    return _no_better(*(squareform(pdist(array.reshape(len(array), -1).astype(float))) for array in (one, other)),
                      lambda a, b: np.corrcoef(squareform(a, checks=False), squareform(b, checks=False))[0, 1])


def independent(one, other):
    """The same of the distance covariance, H D H with H = 1 - 1 / n for both matrices D of distances."""
    centring = np.eye(len(one)) - 1 / len(one)
    return _no_better(*(squareform(pdist(array.reshape(len(array), -1).astype(float))) for array in (one, other)),
                      lambda a, b: np.trace(centring @ a @ centring @ b))


def _no_better(one, other, statistic):
    orders = [permutation(len(one), 0, "order", i).numpy() for i in range(checks.ORDERS)]
    return statistic(one, other) <= max(statistic(one, other[order][:, order]) for order in orders)


def test_a_sound_record_of_one_class_is_not_warned_of():
    """Labels "is it an 8", all of them right: raw distances within a cloud relate the other way round."""
    digits = load_digits()
    chance = np.random.default_rng(8)
    eights, others = np.flatnonzero(digits.target == 8), np.flatnonzero(digits.target != 8)
    rows = chance.permutation(np.r_[eights[:20], others[:180]])
    images, answers = digits.images[rows], np.eye(2)[(digits.target[rows] == 8).astype(int)]
    assert mantel(images, answers), "what the raw distances say"
    assert not checks.unrelated(images, answers) and not independent(images, answers)
    offset = answers + 1e5  # scores of a large mean
    assert not checks.unrelated(images, offset.astype(np.float32))
    alarms = [checks.unrelated(images, answers[chance.permutation(200)]) for _ in range(4)]
    assert alarms == [True] * 4
    few = np.zeros(200)
    few[:checks.FEWEST - 1] = 1
    assert not checks.unrelated(images, chance.permutation(few)[:, None]), "too few to say anything"
    few[checks.FEWEST - 1] = 1
    assert checks.unrelated(images, chance.permutation(few)[:, None])


def test_large_pictures_are_compared_in_small():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), np.uint8)
    rows = np.array([0, 2, 4])
    blocks = pictures[rows].reshape(3, 3, 32, 2, 32, 2).mean((3, 5), dtype=np.float64)
    np.testing.assert_allclose(checks._in_small(pictures, rows), blocks.reshape(3, -1), rtol=1e-12)
    small = pictures[:, :, :16, :16]
    np.testing.assert_array_equal(checks._in_small(small, rows), small[rows].reshape(3, -1))


def test_rows_in_another_order_are_told(arrays, tmp_path):
    images, maps = arrays["images"], arrays["explanations_ig"]
    other = np.random.default_rng(3).permutation(N)
    for name in ("explanations_ig", "predictions"):
        assert checks.unrelated(images, arrays[name][other]) == independent(images, arrays[name][other])
        assert checks.unrelated(images, arrays[name]) == independent(images, arrays[name])
    assert not checks.unrelated(images, maps) and checks.unrelated(images, maps[other])
    assert not checks.unrelated(images, np.zeros_like(maps)), "the same answer to all is nobody's mistake"
    run, _ = found(tmp_path, **arrays | {"explanations_ig": maps[other]})
    warned = [line for line in run.warnings if "in another order" in line]
    assert len(warned) == 1 and warned[0].startswith("explanations_ig.npy: ")


def test_predictions_in_another_order_than_labels_are_told(arrays, tmp_path, capsys):
    right = np.eye(10)[arrays["labels"]] * 4 + np.random.default_rng(4).normal(size=(N, 10))
    for shift, told in ((0, False), (1, True)):
        run, _ = found(tmp_path / str(shift), **arrays | {"predictions": np.roll(right, shift, 1)})
        capsys.readouterr()
        warnings, out = run.tell(), capsys.readouterr().out
        half = run.data.labels[run.data.splits.attacker.start :]
        expected = (run.predictions[run.data.splits.attacker.start :].argmax(1) == half).mean()
        assert f"accuracy      {expected:.3f} on the attacker's half" in out
        assert ["near chance" in line for line in warnings] == [True] * told
