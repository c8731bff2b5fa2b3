"""Names of files that decide what is read, and parts of names that keep artifacts apart."""

import os
from pathlib import Path
from urllib.parse import quote

IMAGES, LABELS, PREDICTIONS = "images.npy", "labels.npy", "predictions.npy"  # of a folder of arrays


def arrays_in(folder: Path) -> str:
    """The source that the .npy files in a folder are: "record" where a service's predictions are among them, "arrays" where
    there are images; empty where there are neither."""
    kinds = {PREDICTIONS: "record", IMAGES: "arrays"}
    return next((kind for name, kind in kinds.items() if os.path.lexists(folder / name)), "")


def maps_file(folder: Path, xai: str) -> Path:
    """A record's maps."""
    return folder / f"explanations_{xai}.npy"


def layer_part(layer: str) -> str:
    """The end of a name that keeps artifacts of a layer apart: no two layers have the same, nor the name of a state file."""
    return "@" + quote(layer, safe="").replace(".state", "%2Estate") if layer else ""
