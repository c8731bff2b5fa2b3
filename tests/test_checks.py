"""What arrays of one's own must be before they are used, and what is said of data that mean nothing."""

import tracemalloc
from dataclasses import replace

import h5py
import hickle
import numpy as np
import pytest
import torch
from test_sources import run_for

from gnime import arrays, checks, explanations
from gnime.data import Data, Splits, load_images, missing_source
from gnime.device import Device
from gnime.errors import GnimeError
from gnime.metrics.leakage import LEAST_LEAK, paired_interval, residual_leakage
from gnime.models.classifier import Classifier


def own_arrays(root, labels, images=None, n=60):
    """Arrays that GNIME did not write, as somebody's loader gives them."""
    (root / "aux").mkdir(exist_ok=True)
    images = np.random.default_rng(0).random((n, 1, 16, 16), np.float32) if images is None else images
    hickle.dump(images, root / "aux/digits_imgs.hkl", mode="w")
    hickle.dump(labels, root / "aux/digits_labels.hkl", mode="w")
    return images


def test_halves_without_a_common_class_are_refused(tmp_path):
    own_arrays(tmp_path, np.repeat(np.arange(6), 10))
    with pytest.raises(GnimeError, match="has classes 0, 1, 2, the attacker's 3, 4, 5; .*shuffle the rows"):
        load_images(*run_for(tmp_path))
    own_arrays(tmp_path, np.zeros(60, np.int64))
    with pytest.raises(GnimeError, match="every image is of class 0; at least two"):
        load_images(*run_for(tmp_path))


@pytest.mark.parametrize(("flags", "named"), [
    (["--limit", "30"], "--limit 30"), (["--skip-bad"], "--skip-bad"), (["--drop-duplicates"], "--drop-duplicates"),
    (["--datasets", "elsewhere"], "--datasets")])
def test_flags_that_cannot_act_on_ones_own_arrays_are_refused(tmp_path, flags, named):
    own_arrays(tmp_path, np.arange(60) % 5)
    with pytest.raises(GnimeError, match=f"^{named} cannot act on .*digits_imgs.hkl"):
        load_images(*run_for(tmp_path, *flags))
    assert load_images(*run_for(tmp_path, "--limit", "60")).source is None


@pytest.mark.parametrize("name", ["imgs", "labels"])
def test_one_of_ones_own_arrays_is_never_replaced(tmp_path, name):
    own_arrays(tmp_path, np.arange(60) % 5)
    (tmp_path / f"aux/digits_{'labels' if name == 'imgs' else 'imgs'}.hkl").unlink()
    with pytest.raises(GnimeError, match=f"digits_{name}.hkl has no record that GNIME made it, so it is kept"):
        missing_source(*run_for(tmp_path))


@pytest.mark.parametrize("kind", [">f4", ">f8", ">f2", "<f2", "longdouble"])
@pytest.mark.parametrize("chunks", [None, (20, 1, 16, 16)])
def test_numbers_in_other_byte_orders_or_longer_ones(tmp_path, kind, chunks):
    values = (np.random.default_rng(0).random((60, 1, 16, 16)) * 64).round() / 64
    with h5py.File(tmp_path / "a.hkl", "w") as file:
        file.create_dataset("data", data=values.astype(kind), chunks=chunks, compression="gzip" if chunks else None)
    found = arrays.load(tmp_path / "a.hkl").rows
    assert found.dtype.isnative and found.dtype.itemsize <= 8 and np.array_equal(found, values)
    assert torch.from_numpy(np.array(found[:3])).dtype.is_floating_point


def test_labels_in_the_other_byte_order(tmp_path):
    own_arrays(tmp_path, (np.arange(60) % 5).astype(">i8"))
    assert load_images(*run_for(tmp_path)).labels.tolist() == [0, 1, 2, 3, 4] * 12


def test_pictures_are_turned_only_where_they_must_be(tmp_path):
    rows = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    hickle.dump(rows, tmp_path / "a.hkl", mode="w")
    array = arrays.load(tmp_path / "a.hkl")
    turned = arrays.channels_first(array, (3, 8, 8))
    assert np.array_equal(turned.rows, np.moveaxis(rows, 3, 1)) and turned.digest == array.digest
    for shape in ((8, 8, 3), (3, 8, 4), (1, 8, 8)):  # as it is, or of another size
        assert arrays.channels_first(array, shape) is array
    with arrays.create(tmp_path / "b.hkl", rows.shape, "float32", {"kind": "ours"}) as writer:
        writer.write(rows)
    ours = arrays.load(tmp_path / "b.hkl")
    assert arrays.channels_first(ours, (3, 8, 8)) is ours


# --- explanations of somebody else -----------------------------------------------------------------------------------


@pytest.fixture
def explained(tmp_path):
    """(task, paths, the victim's own maps) of 60 images of one's own."""
    images = own_arrays(tmp_path, np.arange(60) % 5)
    run, paths = run_for(tmp_path, "--xai", "grad")
    torch.manual_seed(0)
    victim = Classifier((1, 16), 5, (8,), 16, dropout=0.0).eval().requires_grad_(False)
    task = explanations.ExplanationTask(run, load_images(run, paths), victim, "0" * 64)
    return task, paths, explanations.explainer(run)[0](victim, torch.from_numpy(images)).numpy()


def load_maps(task, paths, maps):
    hickle.dump(maps, paths.explanations, mode="w")
    return explanations.load_explanations(task, paths, Device(task.run), make=False)


def test_maps_in_another_order_than_the_images_are_refused(explained, capsys):
    task, paths, maps = explained
    assert np.array_equal(load_maps(task, paths, maps).rows, maps)
    assert "correlates" not in capsys.readouterr().err
    with pytest.raises(GnimeError, match="another order than the images.*digits_files.txt"):
        load_maps(task, paths, np.roll(maps, 1, 0))
    load_maps(task, paths, 0.5 * maps + 0.5 * np.random.default_rng(0).random(maps.shape, np.float32))
    assert "another explainer or another victim made it" in capsys.readouterr().err


# --- data that mean nothing ------------------------------------------------------------------------------------------


def made(images, labels):
    return Data(images, np.asarray(labels), ["a", "b"], "", Splits.from_count(len(images)))


def test_images_that_hardly_differ_are_named():
    numbers = np.random.default_rng(0)
    different = numbers.integers(0, 256, (100, 1, 16, 16), np.uint8)
    equal = np.full((100, 1, 16, 16), 7, np.uint8)
    equal[:, 0, 0, 0] = numbers.integers(0, 256, 100)
    assert checks.hardly_differ(equal) and not checks.hardly_differ(different)
    assert checks.hardly_differ(different / 1e5) and not checks.hardly_differ(different / 255)
    said = checks.warnings_about_images(made(equal, np.arange(100) % 2))
    assert any("hardly differ" in line for line in said)


def test_an_injector_with_a_burst_near_its_end_is_named():
    steady = [[value, 0.1, 0.1] for value in (*np.linspace(9, 2, 20), *[2.1, 2.1, 2.1, 2.2] * 5)]
    assert checks.warnings_about_training("injector", steady) == []
    assert checks.warnings_about_training("injector", [[9.0, 0.1, 0.1]]) == []
    for epoch in (-1, -4):  # the last tenth are four epochs
        burst = [list(losses) for losses in steady]
        burst[epoch][0] = 5.0
        (line,) = checks.warnings_about_training("gnime@30 injector", burst)
        assert line.startswith("gnime@30 injector: ") and "reaches 5, and" in line and "it is below 2.1," in line
    burst = [list(losses) for losses in steady]
    burst[-5][0] = 5.0
    assert checks.warnings_about_training("injector", burst) == []
    inside = [[value, 0.1, 0.1] for value in [9.0] * 20 + [2.0] * 6 + [5.0] * 14]  # the end lies in a long burst
    assert checks.warnings_about_training("injector", inside)


def test_rows_are_compared_one_by_one():
    """As 64-bit numbers 512 rows of 512 x 512 pixels would take 3 GB at once."""
    maps = np.random.default_rng(0).random((700, 1, 64, 64), np.float32) / 100
    deviation = maps[::2].astype(np.float64).std(0).mean()
    tracemalloc.start()
    for factor in (0.99, 1.01):
        scaled = maps * np.float32(factor * checks.HARDLY / deviation)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert checks.hardly_differ(scaled) == (factor < 1)
        assert tracemalloc.get_traced_memory()[1] - before < 10 * maps[0].nbytes * 2
    tracemalloc.stop()


def test_copies_across_the_splits_are_named():
    images = np.random.default_rng(0).integers(0, 256, (100, 1, 16, 16), np.uint8)
    assert checks.warnings_about_images(made(images, np.arange(100) % 2)) == []
    splits = Splits.from_count(100)
    images[splits.test[:3]] = images[splits.train[:3]]
    images[splits.test[4]] = images[0]
    (line,) = checks.warnings_about_images(made(images, np.arange(100) % 2))
    assert line.startswith("4 of 100 images are exact copies of others; of the 10 test images")
    assert "3 in the attacker's training images, 0 in the validation images, 1 in the defender's half" in line


def test_splits_of_other_classes_are_named():
    images = np.random.default_rng(0).integers(0, 256, (200, 1, 16, 16), np.uint8)
    labels = np.arange(200) % 2
    assert checks.warnings_about_images(replace(made(images, labels), shuffled=False)) == []
    sorted_ = made(images, np.sort(labels)[np.r_[0:80, 180:200, 100:180, 80:100]])
    said = checks.warnings_about_images(replace(sorted_, shuffled=False))
    assert len(said) == 2 and "shuffle the rows" in said[0]
    assert checks.warnings_about_images(sorted_) == [], "our own shuffle is by chance"


def test_no_share_of_a_leak_that_rounding_would_hide():
    assert residual_leakage(2e-10, 3e-10, 1e-10) is None and residual_leakage(2e-3, 3e-3, 1e-3) == pytest.approx(0.5)
    assert residual_leakage(0.0, LEAST_LEAK, 0.0) is None
    ones = torch.ones(50)
    assert paired_interval(ones * 2e-10, ones * 3e-10, ones * 1e-10) is None


def test_chance_and_what_is_near_it():
    found = made(np.zeros((20, 1, 16, 16), np.uint8), [0] * 10 + [0] * 7 + [1] * 3)
    assert checks.chance(found) == 0.7
    assert checks.near_chance(2 / 12, 1 / 12) and not checks.near_chance(0.9, 0.1) and checks.near_chance(0.7, 0.7)
    assert checks.numbered(["0", "1", "x\n"]) == r"0: 0, 1: 1, 2: x\n"
