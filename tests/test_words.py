"""Counts and differences in words: by hand."""

import pytest

from gnime.config import TrainConfig
from gnime.words import counted, difference

STAGE = TrainConfig(10, 256, betas=(0.5, 0.999)).identity()


def test_one_is_singular():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class", "classes") for n in (1, 12)] == ["1 class", "12 classes"]


@pytest.mark.parametrize(("key", "found", "wanted", "told"), [
    ("width", 64, 128, "width 64, this run has 128"), ("weight", 0, 2.5, "weight 0, this run has 2.5"),
    ("layer", None, "conv2", "no layer, this run has conv2"), ("layer", "conv2", None, "layer conv2, this run has none"),
    ("official", ["scale", "order"], [], "--official scale, order, this run has none"),
    ("victim", "ab" * 32, "cd" * 32, "victim abababababab, this run has cdcdcdcdcdcd"),
    ("pool", None, 256, "no --official gradcam, this run has it"),
    ("pool", 256, None, "--official gradcam, this run does not have it"),
    ("stage", STAGE, TrainConfig(10, 128, 1e-3, (0.5, 0.999)).identity(),
     "batch 256, learning rate 0.0001, this run has batch 128, learning rate 0.001"),
    ("stage", STAGE, TrainConfig(10, 256).identity(), "betas (0.5, 0.999), this run has betas (0.9, 0.999)"),
    ("stage", None, STAGE, "no record of batch and learning rate, this run has batch 256, learning rate 0.0001, betas "
     "(0.5, 0.999), epsilon 1e-08, patience 10"),
    ("definition", ["prototypes", 2, {"clusters": 3}], ["prototypes", 2, {"clusters": 2}],
     "definition parameters clusters 3, this run has definition parameters clusters 2"),
    ("row", ["rnd-0", "rnd", 1, {"level": 0.0}], ["rnd", "rnd", 1, {}],
     "row name rnd-0, row parameters level 0.0, this run has row name rnd, no row parameters level"),
    ("stages", {"injector": {"lr": 1.0, "eps": 1e-8}, "inverter": None}, {"injector": {"lr": 2.0, "eps": 1e-8}},
     "injector learning rate 1.0, this run has injector learning rate 2.0")])
def test_a_difference_names_what_differs(key, found, wanted, told):
    assert difference(key, found, wanted) == told
