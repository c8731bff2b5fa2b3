"""Where images come from: folders as people have them, the original files of MNIST, and sources that changed."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from gnime import originals
from gnime.cli import resolve
from gnime.data import load_images, missing_source
from gnime.errors import GnimeError
from gnime.folders import in_order, list_pictures
from gnime.paths import Paths
from gnime.sources import fingerprint, open_source


def run_for(root, *flags, script="prepare"):
    run = resolve(script, ["--root", str(root), "--gpu", "-1", *flags])
    (root / "aux").mkdir(exist_ok=True)
    return run, Paths(run)


def pictures(folder, **classes):
    """folder/<class>/<i><suffix>; class=(number, suffix). "/" in a class's name is written "__"."""
    for name, (count, suffix) in classes.items():
        path = folder / name.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("L", (4, 4), 10 * i).save(path / f"{i:02}{suffix}", "JPEG" if suffix.startswith(".j") else None)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_every_known_ending_is_used_and_the_rest_is_counted(tmp_path):
    pictures(tmp_path, a=(3, ".jfif"), b=(2, ".JPE"), b__session2=(4, ".png"), b__session2__deep=(1, ".png"))
    pictures(tmp_path, **{"": (2, ".png")})
    (tmp_path / "a/one.heic").write_bytes(b"")
    (tmp_path / "a/README").write_bytes(b"")
    (tmp_path / "a/.hidden.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_bytes(b"")
    found = list_pictures(tmp_path)
    assert len(found.files) == 5 and found.names == ["a"] * 3 + ["b"] * 2
    assert found.passed_over == {
        "pictures deeper than the class folder b": 5, f"pictures beside the class folders of {tmp_path.name}": 2,
        ".heic files in class folders": 1, "files without an ending in class folders": 1,
        f".csv files beside the class folders of {tmp_path.name}": 1}
    assert "passed over 5 pictures deeper than the class folder b, 2 pictures beside" in found.describe_passed_over()


def test_parts_of_a_data_set_are_joined(tmp_path):
    pictures(tmp_path, val__b=(1, ".png"), train__b=(2, ".png"), train__a=(3, ".png"), test__a=(4, ".png"))
    found = list_pictures(tmp_path)
    assert [str(path.relative_to(tmp_path).parent) for path in found.files] == (
        ["train/a"] * 3 + ["train/b"] * 2 + ["val/b"] + ["test/a"] * 4)
    assert found.classes == ["a", "b"]


@pytest.mark.parametrize(("classes", "says"), [
    ({"img_align_celeba": (3, ".jpg")}, "one class alone"), ({"train": (3, ".png")}, "parts of a data set"),
    ({"train": (3, ".png"), "test": (2, ".png")}, "parts of a data set"), ({"": (3, ".png")}, "no class folders"),
    ({"a": (2, ".png"), "b__deeper": (2, ".png")}, "without pictures.*inside it")])
def test_what_is_no_data_set_is_refused_without_the_advice_to_remove_it(tmp_path, classes, says):
    pictures(tmp_path, **classes)
    with pytest.raises(GnimeError, match=says) as error:
        list_pictures(tmp_path)
    assert "remove" not in str(error.value) and "delete" not in str(error.value)


def test_numbers_are_ordered_as_numbers():
    assert in_order({"0", "1", "10", "11", "2"}) == ["0", "1", "2", "10", "11"]
    assert in_order({"7", "07", "1"}) == ["1", "07", "7"]
    assert in_order({"s1", "s10", "s2"}) == ["s1", "s10", "s2"] and in_order({"1", "2b", "10"}) == ["1", "10", "2b"]


def test_names_that_are_no_utf8(tmp_path, capsys):
    for label in "ab":
        pictures(tmp_path / "datasets/things", **{label: (12, ".png")})
    bad = tmp_path / "datasets/things/a/caf\udce9\n.png"
    bad.write_bytes((tmp_path / "datasets/things/a/01.png").read_bytes()[:40])
    run, paths = run_for(tmp_path, "--target", "things", "--image-size", "16", "--skip-bad")
    assert len(load_images(run, paths, missing_source(run, paths)).images) == 24
    assert r"caf\udce9\n.png" in paths.skipped.read_text()
    with pytest.raises(GnimeError, match=r"caf\\udce9\\n.png"):
        open_source(run).read([12])


@pytest.mark.parametrize("name", ["हिन्दी", "ภาพถ่าย", "写真", "e\u0301t\u0301e", "صورة", "می‌خواهم", "фото 2"])
def test_targets_in_any_script(name):
    assert resolve("prepare", ["--target", name]).target.folder == name


# --- a source that is another one now --------------------------------------------------------------------------------


def test_arrays_of_another_source_are_refused(tmp_path):
    for folder, classes in (("A", "ab"), ("B", "xyz")):
        pictures(tmp_path / folder / "things", **dict.fromkeys(classes, (12, ".png")))
    flags = "--target", "things", "--image-size", "16", "--datasets"
    run, paths = run_for(tmp_path, *flags, str(tmp_path / "A"))
    made = load_images(run, paths, missing_source(run, paths))
    assert made.source == fingerprint(run) and (made.source["classes"], made.source["images"]) == (2, 24)
    for script in ("prepare", "train", "eval"):
        assert load_images(run_for(tmp_path, *flags, str(tmp_path / "A"), script=script)[0], paths).source == made.source
        with pytest.raises(GnimeError, match="24 images in 2 classes; .*B now has 36 images in 3 classes"):
            load_images(run_for(tmp_path, *flags, str(tmp_path / "B"), script=script)[0], paths)
    assert load_images(run_for(tmp_path, *flags, str(tmp_path / "nowhere"))[0], paths).source == made.source
    changed = tmp_path / "A/things/a/03.png"
    changed.write_bytes(changed.read_bytes() + b"more")
    with pytest.raises(GnimeError, match="as many under other names or of other sizes"):
        load_images(run, paths)


# --- MNIST's files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist():
    """{name: content} of a small MNIST: 20 and 10 images."""
    numbers = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 20), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 2051, n, 28, 28) + numbers.bytes(n * 784)
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, n) + bytes(range(10)) * (n // 10)
    return files


def put(datasets, files, rename=str, pack=bytes):
    datasets.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (datasets / rename(name)).write_bytes(pack(data))


@pytest.mark.parametrize("folder", originals.MNIST_FOLDERS)
@pytest.mark.parametrize("rename", [str, lambda name: name.replace("-idx", ".idx")], ids=["dashes", "dots"])
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress)], ids=["plain", "gz"])
def test_mnist_under_the_names_that_people_have(tmp_path, mnist, folder, rename, ending, pack):
    put(tmp_path / "datasets" / folder, mnist, lambda name: rename(name) + ending, pack)
    source = open_source(run_for(tmp_path, "--target", "mnist")[0])
    assert source.labels.tolist() == [*range(10), *range(10), *range(10)]
    images, labels = originals.read_mnist(tmp_path / "datasets")
    assert images.tobytes() == mnist["train-images-idx3-ubyte"][16:] + mnist["t10k-images-idx3-ubyte"][16:]
    assert source.fingerprint["images"] == 30


@pytest.fixture
def no_network(monkeypatch):
    def download(url, root, filename, md5):
        raise OSError(f"no route to {url}")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)


@pytest.mark.usefixtures("no_network")
def test_missing_and_damaged_files_of_mnist_are_named(tmp_path, mnist):
    put(tmp_path / "MNIST/raw", {name: data for name, data in mnist.items() if "train" in name})
    with pytest.raises(GnimeError, match="t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte missing"):
        originals.read_mnist(tmp_path)
    put(tmp_path / "MNIST/raw", mnist)
    whole = mnist["t10k-images-idx3-ubyte"]
    for damaged in (whole[:-1], whole + b"x", b"", whole[:3], struct.pack(">4I", 2051, 2**31, 2**31, 28)):
        (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(damaged)
        with pytest.raises(GnimeError, match="t10k-images-idx3-ubyte: damaged"):
            originals.read_mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole))  # the compressed one beside it is good
    assert len(originals.read_mnist(tmp_path)[0]) == 30


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", ["letters", "balanced", "digits"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_files_of_emnist_are_not_taken_for_mnist(tmp_path, mnist, kind, ending):
    """Under their own names MNIST is not downloaded beside them; under MNIST's names their labels tell."""
    put(tmp_path / "MNIST/raw", mnist, lambda name: f"emnist-{kind}-{name.replace('t10k', 'test')}{ending}")
    with pytest.raises(GnimeError, match=rf"MNIST/raw: emnist-{kind}-test-images-idx3-ubyte{ending}, .* are not MNIST's files "
                                         r"\(train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "):
        originals.read_mnist(tmp_path)
    put(tmp_path / "MNIST/raw", mnist | {"train-labels-idx1-ubyte": struct.pack(">2I", 2049, 20) + bytes(range(7, 27))})
    with pytest.raises(GnimeError, match="MNIST/raw: there are labels up to 26, and MNIST has 0 to 9"):
        originals.read_mnist(tmp_path)


def test_an_interrupted_download_is_tried_again(tmp_path, mnist, monkeypatch):
    import hashlib

    from torchvision.datasets import MNIST

    packed = {f"{name}.gz": gzip.compress(data) for name, data in mnist.items()}
    monkeypatch.setattr(MNIST, "resources", [(name, hashlib.md5(data).hexdigest()) for name, data in packed.items()])
    asked, good = [], 2

    def download(url, root, filename, md5):
        asked.append(filename)
        whole = len(asked) <= good or len(asked) > 4
        (originals.Path(root) / filename).write_bytes(packed[filename][: None if whole else 50])
        if not whole:
            raise OSError("the network is down")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(GnimeError, match=r"t10k-images-idx3-ubyte\.gz: missing, and cannot be downloaded \(the network"):
        originals.read_mnist(tmp_path)
    assert len(list((tmp_path / "MNIST/raw").iterdir())) == good, "only whole files appear"
    assert len(originals.read_mnist(tmp_path)[0]) == 30
    assert len(asked) == 6, "two files, two attempts at the third, then what was missing"


@pytest.mark.parametrize(("place", "remedy"), [
    ("cifar10/cifar-10-batches-py/data_batch_1", "give --datasets {}/cifar10"),
    ("CIFAR-10/cifar-10-python.tar.gz", "give --datasets {}/CIFAR-10"),
    ("cifar10/data_batch_1", "put data_batch_1 and the files beside it into {}/cifar-10-batches-py"),
    ("data_batch_1", "put data_batch_1 and the files beside it into {}/cifar-10-batches-py")])
def test_cifar10_in_another_folder_is_found(tmp_path, place, remedy):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(GnimeError) as refused:
        open_source(resolve("prepare", ["--target", "cifar10", "--datasets", str(tmp_path)]))
    assert str(refused.value) == (f"--target cifar10: CIFAR-10 is expected in {tmp_path}/cifar-10-batches-py, and {file.name} "
                                  f"is in {file.parent}; {remedy.format(tmp_path)}")


def test_cifar10_as_folders_beside_its_archive(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "cifar10/train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "cifar10/train" / name / "1.png")
    (tmp_path / "cifar10/cifar-10-python.tar.gz").touch()
    assert open_source(resolve("prepare", ["--target", "cifar10", "--datasets", str(tmp_path)])).classes == ["cat", "dog"]


def test_a_missing_folder_is_named_with_the_layout_and_what_is_there(tmp_path):
    def said(datasets):
        with pytest.raises(GnimeError) as refused:
            open_source(resolve("prepare", ["--target", "faces", "--datasets", str(datasets)]))
        return str(refused.value)

    starts = "--target faces: the folder {0}/faces does not exist, and --datasets {0} "
    ends = ("; put the pictures there as {0}/faces/<class>/<picture>, or images.npy and labels.npy, or give --datasets the "
            "folder that contains faces")
    assert said(tmp_path / "none") == (starts + "does not exist either" + ends).format(tmp_path / "none")
    assert said(tmp_path) == (starts + "has no folders" + ends).format(tmp_path)
    for name in "bdface":
        (tmp_path / name).mkdir()
    assert said(tmp_path) == (starts + "has the folders a, b, c, d, e and 1 more" + ends).format(tmp_path)


def test_the_folder_of_celeba_has_another_name_than_the_target(tmp_path):
    with pytest.raises(GnimeError, match=r"^--target celeba: the folder .*/celeba_cropped_1000 does not exist"):
        open_source(resolve("prepare", ["--target", "celeba", "--datasets", str(tmp_path)]))


def test_one_file_that_is_passed_over_is_singular(tmp_path):
    pictures(tmp_path, a=(2, ".png"), b=(2, ".png"))
    (tmp_path / "a/notes.txt").touch()
    Image.new("L", (4, 4)).save(tmp_path / "loose.png")
    told = list_pictures(tmp_path).describe_passed_over()
    assert "1 picture beside the class folders" in told and "1 .txt file in class folders" in told


@pytest.mark.usefixtures("no_network")
def test_cifar10_without_a_network(tmp_path):
    with pytest.raises(GnimeError, match=r"cifar-10-python.tar.gz: missing, and cannot be downloaded"):
        originals.read_cifar10(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cut")
    with pytest.raises(GnimeError, match=r"cifar-10-python.tar.gz: damaged or incomplete"):
        originals.read_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(GnimeError, match="data_batch_1 to data_batch_5"):
        originals.read_cifar10(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
