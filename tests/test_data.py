"""Splits, resizing, the shuffle, pictures of every kind, and the real data sets where they lie beside the project."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gnime import arrays, data
from gnime.batches import at_once, batches, gather_rows, iter_batches, mean_std, slices
from gnime.cli import resolve
from gnime.data import Splits, load_images, missing_source
from gnime.errors import GnimeError, UsageError
from gnime.paths import Paths
from gnime.sources import decode, open_source, resize
from gnime.system import permutation

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "datasets"
CPU = torch.device("cpu")


def run_for(root, *flags):
    run = resolve("prepare", ["--root", str(root), "--gpu", "-1", *flags])
    (root / "aux").mkdir(exist_ok=True)
    return run, Paths(run)


# --- splits ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(data.MINIMUM, 300_000), st.booleans())
def test_splits_are_disjoint_and_cover(n, official):
    s = Splits.from_count(n, official)
    assert s.defender.start == 0 and s.defender.stop == s.attacker.start and s.attacker.stop == n
    assert 0 <= len(s.attacker) - len(s.defender) <= 1
    assert s.train.start == s.attacker.start and s.test.stop == n
    if official:  # the release validates on its test set
        assert s.validation == s.test and s.train.stop == s.test.start
    else:
        assert s.train.stop == s.validation.start and s.validation.stop == s.test.start
    assert min(map(len, (s.defender, s.train, s.validation, s.test))) >= 1
    assert abs(len(s.test) - 0.2 * len(s.attacker)) <= 0.5
    if not official:
        assert abs(len(s.validation) - 0.1 * (len(s.train) + len(s.validation))) <= 0.5 or len(s.validation) == 1


@pytest.mark.parametrize(("n", "half", "test"), [(70_000, 35_000, 7_000), (60_000, 30_000, 6_000), (30_000, 15_000, 3_000)])
@pytest.mark.parametrize("official", [False, True])
def test_splits_of_the_paper(n, half, test, official):
    """mnist, cifar10, and 10 % of a celeba of 1,000 identities with 30 images each."""
    s = Splits.from_count(n, official)
    assert (len(s.defender), len(s.attacker), len(s.test)) == (half, half, test)
    assert len(s.train) == (half - test if official else (half - test) * 9 // 10)


# --- resizing --------------------------------------------------------------------------------------------------------


def slow_bilinear(image, size):
    """Half-pixel centres, no antialias, border repeated: pixel by pixel in float64. image (H, W)."""
    h, w = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) * h / size - 0.5, (j + 0.5) * w / size - 0.5
            y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            fy, fx = y - y0, x - x0
            out[i, j] = ((1 - fy) * ((1 - fx) * image[y0, x0] + fx * image[y0, x1])
                         + fy * ((1 - fx) * image[y1, x0] + fx * image[y1, x1]))
    return out


@pytest.mark.parametrize(("shape", "size"), [((28, 28), 32), ((8, 8), 16), ((112, 92), 32), ((5, 9), 16), ((1, 1), 16)])
def test_resize_is_bilinear_with_half_pixel_centres(shape, size):
    images = torch.randint(0, 256, (2, 1, *shape), dtype=torch.uint8)
    ours = resize(images, size)
    assert ours.shape == (2, 1, size, size) and ours.dtype == torch.uint8
    for image, found in zip(images, ours, strict=True):
        exact = slow_bilinear(image[0].numpy().astype(float), size)
        assert np.abs(found[0].numpy() - exact).max() <= 0.5 + 1e-4, "rounded to the nearest"
    if shape == (28, 28):  # weights are sixteenths: exact in 32 bits, ties to even
        assert (found[0].numpy() == np.round(exact)).all()


def test_resize_leaves_the_right_size_alone():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert resize(images, 32) is images


# --- the shuffle and aux/ --------------------------------------------------------------------------------------------


def test_digits_are_shuffled_once_by_the_recorded_seed(tmp_path):
    from sklearn.datasets import load_digits

    run, paths = run_for(tmp_path, "--limit", "60", "--seed", "3")
    made = load_images(run, paths, missing_source(run, paths))
    order = permutation(1797, 3, "shuffle").numpy()
    assert sorted(order) == list(range(1797))
    source = load_digits()
    assert (made.labels == source.target[order[:60]]).all()
    expected = slow_bilinear(np.round(source.images[order[7]] * (255 / 16)), 16)
    assert np.abs(made.images[7, 0] - expected).max() <= 0.5 + 1e-4
    assert made.images.dtype == np.uint8 and made.images.shape == (60, 1, 16, 16)
    assert made.classes == [str(i) for i in range(10)]
    record = arrays.load(paths.images).record
    assert (record["seed"], record["target"], record["available"]) == (3, "digits", 1797)
    again = load_images(run, paths)
    assert (again.images == made.images).all() and again.digest == made.digest


def test_limit_takes_the_first_after_the_shuffle(tmp_path):
    made = {}
    for limit in (30, 60):
        (tmp_path / str(limit)).mkdir()
        run, paths = run_for(tmp_path / str(limit), "--limit", str(limit))
        made[limit] = load_images(run, paths, missing_source(run, paths))
    assert (made[60].images[:30] == made[30].images).all()
    assert (made[60].labels[:30] == made[30].labels).all()


@pytest.mark.parametrize(("flags", "message"), [(["--seed", "1", "--limit", "40"], "seed 0, this run has 1"),
                                                (["--limit", "50"], "pass --limit 40"), ([], "pass --limit 40")])
def test_images_of_another_run_are_refused(tmp_path, flags, message):
    run, paths = run_for(tmp_path, "--limit", "40")
    load_images(run, paths, missing_source(run, paths))
    run, paths = run_for(tmp_path, *flags)
    with pytest.raises(GnimeError, match=message):
        load_images(run, paths, missing_source(run, paths))


def test_labels_of_other_images_are_refused(tmp_path):
    run, paths = run_for(tmp_path, "--limit", "40")
    load_images(run, paths, missing_source(run, paths))
    record = arrays.load(paths.images).record
    changed = np.array(arrays.load(paths.images).rows)
    changed[0] ^= 1
    with arrays.create(paths.images, changed.shape, "uint8", record) as writer:
        writer.write(changed)
    with pytest.raises(GnimeError, match="not the labels of the images"):
        load_images(run, paths)


@pytest.mark.parametrize("limit", ["1", "19"])
def test_too_few_images(tmp_path, limit):
    run, paths = run_for(tmp_path, "--limit", limit)
    with pytest.raises(UsageError, match=f"--limit {limit}"):
        load_images(run, paths, missing_source(run, paths))
    assert not list((tmp_path / "aux").glob("*.hkl"))


# --- folders and pictures --------------------------------------------------------------------------------------------


def folder_target(root, classes, name="things", suffix=".png"):
    """`datasets/<name>/<class>/<i>.png`, each picture of one grey level; {class: levels}"""
    for label, levels in classes.items():
        folder = root / "datasets" / name / label
        folder.mkdir(parents=True)
        for i, level in enumerate(levels):
            Image.new("L", (20, 24), level).save(folder / f"{i:02}{suffix}")


def test_folder_classes_are_sorted_and_pictures_follow_the_shuffle(tmp_path):
    folder_target(tmp_path, {"b": range(100, 113), "a": range(200, 211)})
    (tmp_path / "datasets/things/.hidden").mkdir()
    (tmp_path / "datasets/things/a/notes.txt").write_text("no picture")
    (tmp_path / "datasets/things/a/.thumb.png").write_bytes(b"no picture")
    run, paths = run_for(tmp_path, "--target", "things", "--image-size", "16")
    made = load_images(run, paths, missing_source(run, paths))
    assert made.classes == ["a", "b"] and made.images.shape == (24, 3, 16, 16)
    levels = np.array([*range(200, 211), *range(100, 113)])[permutation(24, 0, "shuffle").numpy()]
    assert (made.images == levels[:, None, None, None]).all()
    assert (made.labels == (levels < 200)).all()


def test_cifar10_folders_join_train_and_test(tmp_path):
    folder_target(tmp_path, {"cat": range(10, 24), "dog": range(30, 40)}, "cifar10/train")
    folder_target(tmp_path, {"cat": range(50, 56), "dog": range(60, 62)}, "cifar10/test")
    source = open_source(run_for(tmp_path, "--target", "cifar10")[0])
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0] * 14 + [1] * 10 + [0] * 6 + [1] * 2
    assert source.read([0, 14, 24, 30])[:, 0, 5, 5].tolist() == [10, 30, 50, 60]


def saved(tmp_path, image, name="p.png", **how):
    path = tmp_path / name
    image.save(path, **how)
    return path


def corners(path, channels=3, size=16):
    """The colours of a picture's four corners."""
    pixels = decode(path, channels, size)
    assert pixels.shape == (channels, size, size) and pixels.dtype == np.uint8
    return [pixels[:, y, x].tolist() for y in (0, -1) for x in (0, -1)]


def test_grey_and_colour(tmp_path):
    grey = saved(tmp_path, Image.new("L", (16, 16), 77))
    assert corners(grey)[0] == [77, 77, 77] and corners(grey, 1)[0] == [77]
    red = saved(tmp_path, Image.new("RGB", (16, 16), (255, 0, 0)))
    assert corners(red)[0] == [255, 0, 0]
    assert corners(red, 1)[0] == [76], "ITU-R 601: 0.299 * 255"
    black_and_white = saved(tmp_path, Image.new("1", (16, 16), 1))
    assert corners(black_and_white)[0] == [255, 255, 255]


def test_palette(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    image.putpixel((15, 0), 2)
    assert corners(saved(tmp_path, image)) == [[10, 20, 30], [200, 100, 50], [10, 20, 30], [10, 20, 30]]
    transparent = saved(tmp_path, image, "t.png", transparency=1)
    assert corners(transparent) == [[255] * 3, [200, 100, 50], [255] * 3, [255] * 3]


def test_transparency_lies_on_white(tmp_path):
    rgba = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    rgba.putpixel((15, 0), (0, 0, 0, 0))
    rgba.putpixel((0, 15), (0, 0, 0, 51))  # a fifth of black over white: 0.8 * 255 = 204
    assert corners(saved(tmp_path, rgba)) == [[255, 0, 0], [255] * 3, [204] * 3, [255, 0, 0]]
    la = Image.new("LA", (16, 16), (100, 255))
    la.putpixel((15, 0), (0, 0))
    assert corners(saved(tmp_path, la), 1) == [[100], [255], [100], [100]]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.full((16, 16), 257 * 100, np.uint16)
    values[0, 15], values[15, 0] = 65535, 0
    path = saved(tmp_path, Image.fromarray(values), f"p{suffix}")
    assert corners(path, 1) == [[100], [255], [0], [100]]


def test_cmyk(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "p.tif")
    assert corners(path)[0] == [255, 0, 0]


@pytest.mark.parametrize(("mode", "colour"), [("L", 9), ("RGB", (9, 9, 9)), ("RGBA", (9, 9, 9, 255)), ("P", 0)])
def test_one_pixel(tmp_path, mode, colour):
    image = Image.new(mode, (1, 1), colour)
    if mode == "P":
        image.putpalette([9, 9, 9])
    assert corners(saved(tmp_path, image)) == [[9, 9, 9]] * 4


@pytest.mark.parametrize(("orientation", "order"), [(1, "abcd"), (2, "badc"), (3, "dcba"), (4, "cdab"), (5, "acbd"),
                                                    (6, "cadb"), (7, "dbca"), (8, "bdac")])
def test_exif_orientation_turns_the_picture_upright(tmp_path, orientation, order):
    image = Image.new("L", (16, 16), 128)
    values = dict(zip("abcd", (10, 60, 180, 240), strict=True))
    for name, at in zip("abcd", [(0, 0), (15, 0), (0, 15), (15, 15)], strict=True):
        image.putpixel(at, values[name])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(saved(tmp_path, image, exif=exif), 1) == [[values[name]] for name in order]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tiff", ".png"])
def test_of_many_frames_the_first(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black", "black")]
    how = {"lossless": True} if suffix == ".webp" else {}
    path = saved(tmp_path, frames[0], f"p{suffix}", save_all=True, append_images=frames[1:], **how)
    with Image.open(path) as image:
        assert image.n_frames > 1
    assert corners(path) == [[255] * 3] * 4


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "large", "bomb", "float"])
def test_what_is_no_whole_picture_is_named(tmp_path, damage, monkeypatch):
    path = saved(tmp_path, Image.effect_noise((64, 64), 50))
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no picture")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage in ("large", "bomb"):  # Pillow warns of the one and refuses the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000 if damage == "large" else 1000)
    else:
        path = saved(tmp_path, Image.new("F", (4, 4)), "p.tif")
    with pytest.raises(GnimeError, match=f"^{path}: ") as error:
        decode(path, 3, 16)
    assert "\n" not in str(error.value)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_take_and_batches():
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)
    maps = np.random.default_rng(1).random((10, 1, 4, 4), np.float32)
    labels = np.arange(10)
    rows = torch.tensor([7, 2, 2])
    found = gather_rows(images, rows, CPU)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.from_numpy(images[[7, 2, 2]]).float() / 255)
    assert gather_rows(labels, rows, CPU).tolist() == [7, 2, 2]
    got = list(batches([images, None, maps, labels], slices(range(2, 9), 3), CPU))
    assert [batch[3].tolist() for batch in got] == [[2, 3, 4], [5, 6, 7], [8]]
    assert all(batch[1] is None for batch in got)
    torch.testing.assert_close(torch.cat([batch[2] for batch in got]), torch.from_numpy(maps[2:9]))
    resident = list(batches([torch.from_numpy(images), torch.from_numpy(labels)], [torch.tensor([1, 0]), range(3, 5)], CPU))
    assert [batch[1].tolist() for batch in resident] == [[1, 0], [3, 4]]
    torch.testing.assert_close(resident[1][0], gather_rows(images, range(3, 5), CPU))


def test_an_error_while_fetching_reaches_the_loop():
    with pytest.raises(IndexError):
        list(batches([np.zeros((3, 2))], [torch.tensor([0]), torch.tensor([5])], CPU))


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(request):
    folder = SHARED / request.param
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    return SHARED


@pytest.mark.parametrize("shared", ["MNIST"], indirect=True)
def test_real_mnist(shared, tmp_path):
    source = open_source(run_for(tmp_path, "--target", "mnist", "--datasets", str(shared))[0])
    assert len(source.labels) == 70_000 and len(source.classes) == 10
    assert source.labels[:6].tolist() == [5, 0, 4, 1, 9, 2], "the training set first"
    assert source.labels[60_000:60_004].tolist() == [7, 2, 1, 0], "then the test set"
    raw = np.frombuffer((shared / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes(), np.uint8, 28 * 28, 16 + 28 * 28)
    found = source.read([60_001])
    assert found.shape == (1, 1, 32, 32) and found.dtype == np.uint8
    assert (found[0, 0] == np.round(slow_bilinear(raw.reshape(28, 28).astype(float), 32))).all()


@pytest.mark.parametrize("shared", ["orl_faces"], indirect=True)
@pytest.mark.parametrize("target", ["orl_faces", "celeba"])
def test_real_faces(shared, target, tmp_path):
    """By their own name, and where the paper's faces would lie."""
    datasets = shared
    if target == "celeba":
        datasets = tmp_path / "datasets"
        datasets.mkdir()
        (datasets / "celeba_cropped_1000").symlink_to((shared / "orl_faces").resolve())
    source = open_source(run_for(tmp_path, "--target", target, "--datasets", str(datasets))[0])
    assert len(source.labels) == 400 and len(source.classes) == 40
    assert (np.bincount(source.labels) == 10).all()
    found = source.read([0, 399])
    assert found.shape == (2, 3, 128, 128)
    assert (found[:, 0] == found[:, 1]).all() and (found[:, 0] == found[:, 2]).all(), "grey"
    assert 10 < found.std()


def test_original_cifar10(tmp_path, monkeypatch):
    """torchvision gives (n, H, W, C); its integrity check would refuse so small a set."""
    import torchvision

    class Small:
        classes = ["plane", "car"]

        def __init__(self, root, train, download):
            pixels = np.arange(2 * 32 * 32 * 3) % (200 if train else 100)
            self.data, self.targets = pixels.reshape(2, 32, 32, 3).astype(np.uint8), [0, 1] if train else [1, 1]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Small)
    (tmp_path / "datasets/cifar-10-batches-py").mkdir(parents=True)
    source = open_source(run_for(tmp_path, "--target", "cifar10")[0])
    assert source.labels.tolist() == [0, 1, 1, 1] and source.classes == ["plane", "car"]
    found, (train, test) = source.read([0, 3]), [Small(None, which, False).data for which in (True, False)]
    assert found.shape == (2, 3, 32, 32)
    assert found[0, 2, 5, 9] == train[0, 5, 9, 2] and found[1, 1, 31, 2] == test[1, 31, 2, 1]


def test_missing_mnist_names_the_folder_without_a_network(tmp_path, monkeypatch):
    import torchvision

    def no_network(*args, **named):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", no_network)
    with pytest.raises(GnimeError, match=r"MNIST.*no route to host.*--datasets"):
        open_source(run_for(tmp_path, "--target", "mnist")[0])
    assert not (tmp_path / "datasets").exists(), "no empty folders are left"
    (tmp_path / "datasets/MNIST").mkdir(parents=True)
    with pytest.raises(GnimeError, match="no route to host"):
        open_source(run_for(tmp_path, "--target", "mnist")[0])
    assert not list((tmp_path / "datasets/MNIST").iterdir()), "those that were there stay"


def test_fewer_large_images_are_taken_at_once(monkeypatch):
    """64 of up to 128 x 128 on the CPU, and of larger ones as many as have no more pixels."""
    def images(side):
        return np.broadcast_to(np.uint8(0), (130, 3, side, side))

    logits = np.zeros((130, 10), np.float32)
    assert [at_once([None, logits, images(side)], CPU) for side in (16, 128, 129, 224, 512)] == [64, 64, 63, 20, 4]
    assert at_once([images(16), images(224), logits], CPU) == 20 and at_once([logits], CPU) == 64
    assert at_once([images(224)], torch.device("cuda")) == 83
    sizes = [len(batch[0]) for _, batch in iter_batches([images(224)], range(45), CPU)]
    assert sizes == [20, 20, 5]

    maps = np.random.default_rng(0).random((30, 1, 8, 8), np.float32)
    expected = [maps[3:30].mean(dtype=np.float64), maps[3:30].std(dtype=np.float64)]
    for most in (1 << 24, 64 * 7, 1):
        monkeypatch.setattr("gnime.batches.MOST_VALUES", most)
        assert mean_std(maps, range(3, 30)) == pytest.approx(expected, rel=1e-12)
