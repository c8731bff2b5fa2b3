"""The files of a service's record: what they may hold, and what is refused."""

import os
import re
import shutil

import hickle
import numpy as np
import pytest
from helpers import Killed
from recording import ORDER, N, flags, found, save, unshuffled

from gnime import batches, npy
from gnime.cli import resolve
from gnime.errors import GnimeError, UsageError
from gnime.recorded import Recorded
from gnime.records import Folder, Predictions
from gnime.system import permutation


def test_arrays_of_any_layout(arrays, tmp_path):
    """Against numpy in 64 bits: the paper's scaling of signed maps, and the same numbers in other layouts."""
    chance = np.random.default_rng(0)
    maps = chance.normal(size=(N, 3, 5, 5))
    images = arrays["images"].repeat(3, 1)
    images[:, 1] //= 2
    _, plain = found(tmp_path / "plain", **arrays | {"images": images, "explanations_ig": maps})
    np.testing.assert_array_equal(plain[0], images)
    np.testing.assert_array_equal(plain[1], arrays["labels"])
    np.testing.assert_array_equal(plain[2], arrays["predictions"])
    size = np.abs(maps)
    low, high = size.min((2, 3), keepdims=True), size.max((2, 3), keepdims=True)
    np.testing.assert_allclose(plain[3], (size - low) / (high - low), atol=1e-6)

    others = {"images": images.transpose(0, 2, 3, 1).astype(">f8") / 255, "labels": arrays["labels"].astype(">i2"),
              "predictions": np.asfortranarray(arrays["predictions"]), "explanations_ig": np.asfortranarray(maps).astype(">f4")}
    _, other = found(tmp_path / "other", **others)
    for expected, array in zip(plain, other, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-6)

    flat = {"images": arrays["images"][:, 0], "labels": None, "explanations_ig": maps[:, 0].astype(np.float16)}
    run, single = found(tmp_path / "flat", **arrays | flat)
    np.testing.assert_array_equal(single[0], arrays["images"])
    np.testing.assert_array_equal(single[1], arrays["predictions"].argmax(1))
    np.testing.assert_allclose(single[3], plain[3][:, :1], atol=2e-3)
    assert not run.data.labelled and run.lacking["label"] == "the record has no labels" and not run.classifiers


def test_few_rows_are_read_at_once_where_they_are_large(arrays, tmp_path, monkeypatch):
    """As many as have the permitted numbers together, and the result is the same."""
    assert [batches.rows_at_once(shape) for shape in ((3, 128, 128), (3, 512, 512), (10,), (1, 1 << 13, 1 << 13), (0,))] == [
        256, 21, 256, 1, 256]
    big = np.kron(arrays["images"] / 255, np.ones((1, 1, 2, 2)))
    more = arrays | {"images": big, "explanations_ig": np.kron(arrays["explanations_ig"], np.ones((1, 1, 2, 2)))}
    _, plain = found(tmp_path / "plain", **more)
    seen, read = [], npy.Pictures.__getitem__

    def counted(self, rows):
        seen.append(len(read(self, rows)))
        return read(self, rows)

    monkeypatch.setattr(batches, "MOST_VALUES", 7 * 32 * 32)
    monkeypatch.setattr(npy.Pictures, "__getitem__", counted)
    _, parts = found(tmp_path / "parts", **more)
    assert max(seen) == 7 and sum(seen) >= 4 * N, "both files checked, and both read"
    for expected, array in zip(plain, parts, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_signed_maps_and_a_second_explainer(arrays, tmp_path):
    maps = np.random.default_rng(1).normal(size=(N, 4, 4)).astype(np.float32)
    datasets = save(tmp_path, **arrays, explanations_other=maps)
    first, second = (Recorded(resolve("prepare", flags(datasets, tmp_path / "root", "--scale", scale, xai=xai)))
                     for xai, scale in (("ig", "absolute"), ("other", "signed")))
    assert first.explanations.rows.shape == (N, 1, 16, 16)
    expected = maps / (2 * np.abs(maps).max((1, 2), keepdims=True)) + 0.5
    np.testing.assert_allclose(unshuffled(np.array(second.explanations.rows))[:, 0], expected, atol=1e-6)
    assert first.data.digest == second.data.digest and first.answers_digest == second.answers_digest


def test_images_are_resized_and_chosen(arrays, tmp_path):
    big = np.kron(arrays["images"], np.ones((1, 1, 2, 2), np.uint8))  # each pixel four times; halving it bilinearly undoes that
    run = Recorded(resolve("prepare", flags(save(tmp_path, **arrays | {"images": big}), tmp_path / "root", "--image-size", 16,
                                            "--limit", 30)))
    np.testing.assert_array_equal(run.data.images, arrays["images"][ORDER[:30]])
    np.testing.assert_array_equal(run.predictions, arrays["predictions"][ORDER[:30]])
    np.testing.assert_allclose(run.explanations.rows, arrays["explanations_ig"][ORDER[:30]], atol=1e-6)


def test_copies_are_dropped_from_every_file(arrays, tmp_path):
    """Two pictures three times over, each time with an answer of its own: the first of each stays."""
    doubled = {name: array.copy() for name, array in arrays.items()}
    doubled["images"][40:60] = doubled["images"][0:20]
    run = Recorded(resolve("prepare", flags(save(tmp_path, **doubled), tmp_path / "root", "--drop-duplicates")))
    kept = permutation(40, 0, "shuffle").numpy()
    np.testing.assert_array_equal(run.predictions, arrays["predictions"][:40][kept])
    np.testing.assert_allclose(run.explanations.rows, arrays["explanations_ig"][:40][kept], atol=1e-6)


LOGITS = np.random.default_rng(2).normal(size=(N, 4))
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


@pytest.mark.parametrize(("predictions", "form", "classes"), [
    (LOGITS, "logits", 4), (SOFTMAX.round(3), "probabilities", 4), (np.eye(4)[LOGITS.argmax(1)], "label", 4),
    (LOGITS.argmax(1), "label", 10), ((LOGITS > 0), "logits", 4), (np.zeros((N, 4)), "nothing", 4),
    ((LOGITS * 9).astype(np.int8), "logits", 4), (SOFTMAX * 0.9, "logits", 4)])
def test_forms_of_predictions(predictions, form, classes, arrays, tmp_path):
    labels = arrays["labels"] if classes == 10 else arrays["labels"] % 4
    service = save(tmp_path, **arrays | {"predictions": predictions, "labels": labels}) / "service"
    found = Folder(service).predictions
    assert (found.form, found.classes) == (form, classes)
    expected = predictions if predictions.ndim == 2 else np.eye(classes)[predictions]
    np.testing.assert_array_equal(found[:], expected.astype(np.float32))


def test_a_record_can_be_made_to_say_less_and_not_more(arrays, tmp_path):
    datasets = save(tmp_path, **arrays | {"predictions": SOFTMAX, "labels": None})

    def run(form):
        return Recorded(resolve("prepare", flags(datasets, tmp_path / "root", "--published", form)))

    as_it_is, label = run("logits"), run("label")
    assert (as_it_is.published, label.published) == ("probabilities", "label")
    np.testing.assert_array_equal(as_it_is.predictions, SOFTMAX[ORDER].astype(np.float32))
    np.testing.assert_array_equal(run("probabilities").predictions, as_it_is.predictions)
    np.testing.assert_array_equal(label.predictions, np.eye(4)[SOFTMAX[ORDER].argmax(1)])
    np.save(datasets / "service/predictions.npy", SOFTMAX.argmax(1))
    with pytest.raises(UsageError, match="--published probabilities: .* of the form 'label', which says less"):
        run("probabilities").data  # noqa: B018


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(name, **how):
    """The array of that name with a number at row 41."""
    def change(arrays):
        array = arrays[name].astype(how.get("dtype", arrays[name].dtype))
        array[41] = how["to"]
        return {name: array}
    return change


REFUSED = {  # what is wrong -> the arrays of the record that are other ones, and the line
    "NaN in a map": (changed("explanations_ig", to=np.nan), r"explanations_ig.npy: row 41 has numbers that are not finite"),
    "a map too large": (changed("explanations_ig", to=1e300, dtype=float), "row 41 has numbers that are not finite in 32"),
    "infinity in a prediction": (changed("predictions", to=np.inf), r"predictions.npy: row 41 has numbers that are not finite"),
    "an image out of range": (changed("images", to=1.5, dtype=float), r"images.npy: row 0 has numbers outside \[0, 1\]"),
    "NaN in an image": (lambda a: {"images": np.where(np.arange(N)[:, None, None, None] == 41, np.nan, a["images"] / 255)},
                        r"images.npy: row 41 has numbers outside \[0, 1\], or that are not finite"),
    "images of 16 bits": (lambda a: {"images": a["images"].astype(np.uint16)}, r"images.npy: uint16; images are uint8"),
    "two channels": (lambda a: {"images": a["images"].repeat(2, 1)}, r"2 channels \(N, C, H, W\); images have 1 or 3"),
    "oblong images": (lambda a: {"images": a["images"][:, :, :10]}, r"images.npy: shape \(60, 1, 10, 16\); .*crop or resize"),
    "oblong maps": (lambda a: {"explanations_ig": a["explanations_ig"][:, 0, :10]},
                    r"explanations_ig.npy: shape \(60, 10, 16\); .*crop or resize"),
    "maps of a pixel": (lambda a: {"explanations_ig": np.zeros((N, 1, 1, 1))}, "maps are at least 2 x 2"),
    "maps too wide": (lambda a: {"explanations_ig": np.zeros((N, 1, 65, 65))}, "maps of side 65 need a --width of at least 12"),
    "fewer maps": (lambda a: {"explanations_ig": a["explanations_ig"][1:]}, "explanations_ig.npy: 59 rows, images.npy has 60"),
    "more predictions": (lambda a: {"predictions": np.zeros((61, 4))}, "predictions.npy: 61 rows, images.npy has 60"),
    "fewer labels": (lambda a: {"labels": a["labels"][:-1]}, "labels.npy: 59 rows, images.npy has 60"),
    "a number as predictions": (lambda a: {"predictions": np.float32(1)}, "predictions.npy: 0 rows"),
    "one column": (lambda a: {"predictions": a["predictions"][:, :1]}, r"of two classes or more.*save \(1 - p, p\)"),
    "three axes": (lambda a: {"predictions": a["predictions"][:, None]}, r"shape \(60, 1, 10\); predictions are \(N, cl"),
    "labels of 32 bits": (lambda a: {"labels": a["labels"].astype(np.float32)}, "labels.npy: float32 .*whole numbers"),
    "a label below 0": (changed("labels", to=-1), "labels.npy: labels from -1 to 9; classes are numbered from 0"),
    "more labels than columns": (changed("labels", to=10), "labels.npy: labels up to 10, but predictions.npy has 10"),
    "more classes than rows": (lambda a: {"predictions": np.where(np.arange(N) == 41, 99_999, 3), "labels": None},
                               "predictions.npy: a class 99999 makes 100000 classes, and there are only 60 rows; number"),
    "more known classes than rows": (lambda a: {"predictions": a["labels"], **changed("labels", to=60)(a)},
                                     "labels.npy: a class 60 makes 61 classes, and there are only 60 rows"),
    "labels of one class": (lambda a: {"labels": np.full(N, 3)}, "every image is of class 3; at least two"),
    "objects": (lambda a: {"predictions": np.array([{}] * N)}, "predictions.npy: holds Python objects.*never unpickled"),
    "text": (lambda a: {"labels": np.array(["cat"] * N)}, "labels.npy: its values are <U3, not real numbers"),
    "complex numbers": (lambda a: {"explanations_ig": a["explanations_ig"] * 1j}, "its values are complex64"),
    "no images": (lambda a: {name: array[:0] for name, array in a.items()}, "target service: 0 images; .* at least 20"),
    "few images": (lambda a: {name: array[:19] for name, array in a.items()}, "target service: 19 images; .* at least 20"),
    "missing images": (lambda a: {"images": None}, r"images.npy: no such file"),
    "missing maps": (lambda a: {"explanations_ig": None, "explanations_lrp": np.ones(2), "explanations_grad": np.ones(1)},
                     r"explanations_ig.npy: no such file; there: explanations_grad.npy, explanations_lrp.npy"),
    "no maps": (lambda a: {"explanations_ig": None}, r"no such file; there is none of any other --xai"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_records(what, arrays, tmp_path, scripts):
    change, line = REFUSED[what]
    root = tmp_path / "root"
    code, found = scripts.fails("prepare", root, *flags(save(tmp_path, **arrays | change(arrays)), root), small=False)
    assert re.search(line, found) and str(tmp_path) in found or code == 2, found
    assert code == (2 if "20" in line else 1)
    assert not list(root.rglob("*.hkl"))


@pytest.mark.parametrize(("damage", "line"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole .npy file"),
    (lambda path: path.write_bytes(path.read_bytes()[:40]), "not a whole .npy file"),
    (lambda path: path.write_bytes(b""), "not a whole .npy file"),
    (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': 9**9} \n"), "not a whole .npy file"),
    (lambda path: path.write_bytes(path.read_bytes().replace(b"(60,", b"(-6,")), "not a whole .npy file"),
    (lambda path: path.write_bytes(b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b"{"), "its header is too long"),
    (lambda path: path.write_bytes(b"\x80\x04N."), "no .npy file; they are never unpickled"),
    (lambda path: np.savez(path.open("wb"), a=np.ones(3)), r"an archive of arrays \(.npz\)"),
    (lambda path: (path.unlink(), path.mkdir()), "it is no regular file"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "it is no regular file"),
    (lambda path: (path.unlink(), path.symlink_to("nowhere.npy")), "no such file"),
], ids=["cut", "cut in the header", "empty", "a formula", "a negative shape", "a long header", "a pickle", "npz", "a folder",
        "a pipe", "a dead link"])
def test_damaged_files(damage, line, arrays, tmp_path, scripts):
    datasets = save(tmp_path, **arrays)
    damage(datasets / "service/predictions.npy")
    code, found = scripts.fails("prepare", tmp_path / "root", *flags(datasets, tmp_path / "root"), small=False)
    assert code == 1 and re.search(f"predictions.npy: .*{line}", found), found


def test_damaged_headers_are_told_in_one_line(arrays, tmp_path):
    """Digits of shapes and types changed by chance: the file is refused in one line, or is what its header says."""
    service, chance, refused = save(tmp_path, **arrays) / "service", np.random.default_rng(5), 0
    whole = {path: path.read_bytes() for path in service.iterdir()}
    for path, content in list(whole.items()) * 30:
        damaged = bytearray(content)
        for i in chance.choice(np.flatnonzero(np.isin(list(content[10:128]), list(b"0123456789"))) + 10, 2):
            damaged[i] = chance.choice(list(b"0123456789"))
        path.write_bytes(damaged)
        folder = Folder(service)
        try:
            folder.check_images()
            folder.check_maps("ig")
            assert len(folder.labels) == len(folder.predictions[:]) == len(folder.images) == len(folder.maps("ig"))
        except GnimeError as error:
            refused += 1
            assert str(service) in str(error) and "\n" not in str(error)
        path.write_bytes(content)
    assert 30 < refused < 120


@pytest.mark.parametrize(("more", "line"), [
    (["--victim", f"{__file__}:Killed"], "argument --victim: .*service's record .*without a model"),
    (["--xai", "gradcam", "--layer", "relu0"], "argument --layer: "),
    (["--xai", f"{__file__}:Killed"], "argument --xai: the maps of a record are in .*explanations_NAME.npy; give that NAME; "),
    (["--xai", "labels"], "give that NAME, which may not be labels"),
    (["--xai", "../ig"], "argument --xai: '../ig' is none of grad, gradcam, lrp"),
    (["--target", "other"], "'ig' is none of grad, gradcam, lrp, .*other has no predictions.npy"),
    (["--target", "small"], "argument --image-size: the images in .*images.npy are 8 x 8; give a side from 16 to 512"),
    (["--target", "digits"], "argument --target: digits is a data set that GNIME knows"),
])
def test_flags_that_do_not_fit_a_record(more, line, arrays, tmp_path, scripts):
    datasets = save(tmp_path, **arrays)
    shutil.copytree(datasets / "service", datasets / "digits")
    shutil.copytree(datasets / "service", datasets / "small")
    np.save(datasets / "small/images.npy", arrays["images"][:, :, :8, :8])
    code, found = scripts.fails("prepare", tmp_path / "root", *flags(datasets, tmp_path / "root"), *more, small=False)
    assert code == 2 and re.search(line, found), found


def test_killed_while_it_is_read(arrays, tmp_path, monkeypatch):
    datasets, root = save(tmp_path, **arrays), tmp_path / "root"
    run, order = Recorded(resolve("prepare", flags(datasets, root))), []
    with monkeypatch.context() as patch:
        def half(self, rows):
            order.append(rows)
            raise Killed

        run.data  # noqa: B018
        patch.setattr(Predictions, "__getitem__", half)
        with pytest.raises(Killed):
            run.predictions  # noqa: B018
    assert order and not (root / "aux/service_predictions.hkl").exists()
    again = Recorded(resolve("prepare", flags(datasets, root)))
    np.testing.assert_array_equal(again.predictions, arrays["predictions"][ORDER])
    assert again.data.digest == run.data.digest


def test_images_that_gnime_did_not_write_are_of_no_known_order(arrays, tmp_path):
    datasets, aux = save(tmp_path, **arrays), tmp_path / "aux"
    aux.mkdir()
    hickle.dump(arrays["images"], aux / "service_imgs.hkl")
    hickle.dump(arrays["labels"], aux / "service_labels.hkl")
    with pytest.raises(GnimeError, match="service_imgs.hkl: GNIME did not write it"):
        Recorded(resolve("prepare", flags(datasets, tmp_path))).data  # noqa: B018
