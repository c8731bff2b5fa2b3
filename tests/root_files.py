"""The artifacts of a small root, read without the code under test."""

import json

import hickle
import numpy as np
import torch

from gnime.data import Splits
from gnime.networks import rebuild

N = 60  # images of `small_root`
SPLITS = Splits.from_count(N)


def results(root, xai="lrp"):
    return json.loads((root / f"figures/digits_{xai}/results.json").read_text())


def rows(array, split):
    return torch.from_numpy(np.asarray(array)[split.start : split.stop])


class Files:
    """The artifacts of a root, read without the code under test: arrays by hickle."""

    def __init__(self, root, xai="lrp"):
        self.root, self.xai = root, xai
        self.images = hickle.load(root / "aux/digits_imgs.hkl").astype(np.float32) / 255
        self.labels = hickle.load(root / "aux/digits_labels.hkl")
        self.maps = hickle.load(root / f"aux/digits_{xai}.hkl")
        self.victim, self.judge = rebuild(root / "models/victim/digits.pt"), rebuild(root / "models/eval/digits.pt")
        with torch.no_grad():
            self.logits = self.victim(torch.from_numpy(self.images)).numpy()

    def inverter(self, setting):
        name = setting if setting == "predmi" else f"{setting}_{self.xai}"
        return rebuild(self.root / f"models/inv/digits_{name}.pt")

    def of(self, split):
        return tuple(rows(array, split) for array in (self.images, self.labels, self.logits, self.maps))
