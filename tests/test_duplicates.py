"""Copies of pictures: counted across the splits, left out where it is asked for."""

import io

import numpy as np
import pytest
from PIL import Image
from test_sources import run_for

from gnime.data import load_images, missing_source
from gnime.duplicates import count_across, find_copies
from gnime.errors import GnimeError
from gnime.paths import Paths


def faces(n, side=32, seed=0):
    """(n, 3, side, side) uint8: smooth random pictures."""
    numbers = np.random.default_rng(seed)
    coarse = numbers.integers(0, 256, (n, 6, 6, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse]
                    ).transpose(0, 3, 1, 2)


def compressed(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def test_exact_copies_point_to_the_first():
    images = faces(10)
    found = find_copies([images[:6], images[[6, 7, 2, 2]], images[8:]])
    assert found.exact.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 2, 2, 10, 11]
    assert found.near.tolist() == found.exact.tolist()
    assert found.kept("exact").tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]


def test_near_copies_are_told_from_exact_ones():
    images = faces(40)
    darker = (images[:5] * 0.8 + 10).astype(np.uint8)
    squeezed = np.stack([compressed(image, 85) for image in images[5:10]])
    found = find_copies([images, darker, squeezed])
    assert found.exact.tolist() == list(range(50))
    assert found.near[:40].tolist() == list(range(40)), "other pictures are not taken for copies"
    assert (found.near[40:] == np.arange(10)).mean() >= 0.9


def test_copies_are_counted_split_by_split():
    first = np.array([0, 1, 2, 3, 0, 5, 1, 7, 3, 3])
    splits = {"defender": range(4), "train": range(4, 6), "validation": range(6, 7), "test": range(7, 10)}
    # the test rows are 7 (alone), 8 and 9 (both copies of 3, which the defender has)
    assert count_across(first, splits) == {"copies": 4, "defender": 2, "train": 0, "validation": 0}
    assert "validation" not in count_across(first, splits | {"validation": splits["test"]}), "as with --official validation"


@pytest.fixture
def doubled(tmp_path):
    """24 distinct pictures of two classes, each of them twice; one copy lies in the other class."""
    for i, image in enumerate(faces(24, 16)):
        for j in range(2):
            label = "ab"[(i + (j and i == 0)) % 2]
            path = tmp_path / f"datasets/things/{label}/{i:02}_{j}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return tmp_path


FLAGS = ["--target", "things", "--image-size", "16"]


def test_duplicates_are_left_out_where_it_is_asked_for(doubled, capsys):
    run, paths = run_for(doubled, *FLAGS, "--drop-duplicates")
    made = load_images(run, paths, missing_source(run, paths))
    assert len(made.images) == 24 and len({image.tobytes() for image in made.images}) == 24
    assert "24 of 48 left out" in capsys.readouterr().out.replace("\n", " ")
    assert load_images(run, paths).digest == made.digest
    with pytest.raises(GnimeError, match="made with --drop-duplicates exact"):
        load_images(*run_for(doubled, *FLAGS))
    run, paths = run_for(doubled, *FLAGS, "--drop-duplicates", "near")
    with pytest.raises(GnimeError, match="--drop-duplicates exact, this run has near"):
        load_images(run, paths)
    assert load_images(run_for(doubled, *FLAGS, script="train")[0], Paths(run)).digest == made.digest


def test_names_of_files_lie_beside_the_arrays_row_by_row(doubled):
    run, paths = run_for(doubled, *FLAGS)
    made = load_images(run, paths, missing_source(run, paths))
    names = (doubled / "aux/things_files.txt").read_text().splitlines()
    assert len(names) == 48
    for i in (0, 7, 47):
        with Image.open(doubled / "datasets/things" / names[i]) as image:
            assert (np.asarray(image).transpose(2, 0, 1) == made.images[i]).all()
