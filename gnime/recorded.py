"""A run on the record of a service: its predictions and maps are read from files, and there is neither victim nor explainer."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from . import arrays, checks
from .batches import rows_at_once, slices
from .checkpoints import require
from .config import PUBLISHED, Run
from .errors import GnimeError, Unfinished, UsageError
from .experiment import Experiment
from .explainers.stack import minmax, signed
from .explanations import publish, tell_sides
from .filenames import IMAGES, LABELS, PREDICTIONS, maps_file
from .making import shuffled
from .models.inversion import working_side
from .networks import TrainedModel
from .npy import Pictures
from .records import Folder, Predictions, digest
from .sources import open_source
from .store import artifact_lock, exists
from .system import say, say_once
from .words import counted

NO_VICTIM, NO_LABELS = "a record has no victim", "the record has no labels"


def open_run(run: Run, trains: bool = True) -> Experiment:
    """The experiment of a run."""
    return (Recorded if run.record else Experiment)(run, trains)


class Recorded(Experiment):
    """An experiment on a record. See `Experiment`; what stands here is what the record has in place of a victim."""

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.run.datasets / self.run.target.folder)

    @cached_property
    def data(self):
        """Nothing is written before all of the record is known to be sound."""
        if self._prepares and self.device.rank == 0:
            self._check_form(self.folder.predictions.form)
            self.folder.check_maps(self.run.xai)
            self._check_side(self.folder.maps(self.run.xai).shape[1])
        found = super().data
        if not found.shuffled:
            raise GnimeError(f"{self.paths.images}: GNIME did not write it, so nothing says which of its rows are those of "
                             f"{self.folder.path}; choose another --root for the record")
        return found

    @property
    def victim(self) -> TrainedModel:
        raise GnimeError(f"target {self.run.target.name}: {NO_VICTIM}")

    answers_digest = property(lambda self: self._recorded.digest)
    classifiers = property(lambda self: {"evaluation": self.evaluation_classifier} if self.data.labelled else {})

    @property
    def lacking(self) -> dict[str, str]:
        found = dict.fromkeys(("victim", "victim_logits", "image_features", "reconstruction_features"), NO_VICTIM)
        return found if self.data.labelled else found | dict.fromkeys(("label", "evaluation_logits"), NO_LABELS)

    @property
    def about(self) -> dict:
        files = {PREDICTIONS: self._recorded.record, maps_file(Path(), self.run.xai).name: self.explanations.record}
        return {"record": {"predictions": self._recorded.record["form"], "published": self.published,
                           "labelled": self.data.labelled, "lacking": self.lacking,
                           "files": {name: record["source"] for name, record in files.items()}}}

    @property
    def published(self) -> str:
        found = self._recorded.record["form"]
        self._check_form(found)
        return found if self.run.published == "logits" else self.run.published

    def _check_form(self, found: str) -> None:
        """Without --published a record's predictions are used in the form that they have. It can only be made to say less."""
        forms, asked = list(PUBLISHED), self.run.published
        if asked != "logits" and forms.index(asked) < forms.index(found):
            raise UsageError(f"--published {asked}: the predictions of {self.run.target.name} are of the form {found!r}, which "
                             f"says less; leave the flag out")

    def _check_side(self, side: int) -> None:
        if working_side(side) > self.run.target.width:
            raise GnimeError(f"{maps_file(self.folder.path, self.run.xai)}: maps of side {side} need a --width of at least "
                             f"{working_side(side)}")

    @cached_property
    def predictions(self) -> np.ndarray:
        """(n, classes) float32, the service's, in the form that the run publishes."""
        rows, form = self._recorded.rows, self.published
        if form == self._recorded.record["form"]:
            return rows
        found = arrays.scratch(rows.shape, np.float32, self.paths.aux)
        for part in slices(range(len(rows)), rows_at_once(rows.shape[1:])):
            found[part.start : part.stop] = publish(torch.from_numpy(np.array(rows[part.start : part.stop])), form).numpy()
        return found

    @cached_property
    def _recorded(self) -> arrays.Array:
        predictions = self.folder.predictions
        return self._copied("predictions", self.paths.predictions, predictions, {"form": predictions.form})

    @cached_property
    def explanations(self) -> arrays.Array:
        maps, identity = self.folder.maps(self.run.xai), {"xai": self.run.xai, "scale": self.run.scale}
        self._check_side(maps.shape[1])
        found = self._copied("explanations", self.paths.explanations, maps, identity)
        tell_sides(self.run.target.size, maps.shape[1])
        return found

    def _copied(self, what: str, path: Path, source: Predictions | Pictures, identity: dict) -> arrays.Array:
        """A file of the record in `aux/`, in the order of the images, found or made. Maps are scaled to [0, 1]."""
        data, device = self.data, self.device
        identity |= {"kind": what, "target": self.run.target.name, "images": data.digest, "source": digest(source.path)}
        with artifact_lock(path, self.paths.root, device):
            finished = exists(path, self.paths.root)
            device.barrier()
            if finished:
                say_once(f"{what:<13} {path}: found")
            elif not self._prepares:
                raise Unfinished(f"{path} is missing; make it with: {self.run.command('prepare')}")
            elif device.rank == 0:
                with arrays.create(path, (len(data.images), *source.shape), "float32", identity) as writer:
                    for part in slices(range(len(data.images)), rows_at_once(source.shape)):
                        rows = source[self._order[part.start : part.stop]]
                        writer.write(self._scaled(rows) if what == "explanations" else rows)
                order = f", {source.order}" if isinstance(source, Pictures) else ""
                say(f"{what:<13} {path}: made of {source.path}: {source.array.dtype} {source.array.shape}{order}")
            device.barrier()
        found = arrays.load(path)
        if (found.record or {}).get("source") != identity["source"]:
            raise GnimeError(f"{path}: was not made of {source.path} as that is now; put the file back that it was made of, or "
                             "choose another --root")
        require(path, found.record, identity)
        return found

    def _scaled(self, maps: np.ndarray) -> np.ndarray:
        """Maps of any range in [0, 1], as those of an explainer of the user's own; see `explanations.own_maps`."""
        rows = torch.from_numpy(maps.astype(np.float32))
        return (minmax(rows) if self.run.scale == "absolute" else signed(rows)).numpy()

    @cached_property
    def _order(self) -> np.ndarray:
        """Which row of the record each image is."""
        source = open_source(self.run)
        order, _ = shuffled(self.run, source, np.arange(len(source.labels)))
        first = rows_at_once(self.data.images.shape[1:])
        if not np.array_equal(source.read(order[:first]), self.data.images[:first]):
            raise GnimeError(f"{self.paths.images}: its rows are not in the order in which this run shuffles; choose another "
                             "--root")
        return order

    @cached_property
    def protects(self) -> dict:
        """As `explanations.protects`, of an unknown victim."""
        return {"victim": None, "xai": self.run.xai, "version": 1, "pool": None, "image": list(self.data.images.shape[1:]),
                "maps": list(self.explanations.rows.shape[1:]), "classes": len(self.data.classes),
                "published": self.published, "scale": self.run.scale}

    @property
    def warnings(self) -> list[str]:
        others = {PREDICTIONS: self.predictions, maps_file(Path(), self.run.xai).name: self.explanations.rows}
        return super().warnings + [
            f"{name}: where images are alike its rows are no more alike than in a random order: it says nothing of the images, "
            f"or its rows are in another order than those of {IMAGES}, and then the audit sees no leak where there is one"
            for name, rows in others.items() if checks.unrelated(self.data.images, rows)]

    def tell(self) -> list[str]:
        """Says the form of the predictions, and how often they are right where that is known. Returns warnings."""
        form = self._recorded.record["form"]
        shown = "" if self.published == form else f", published as {self.published}"
        say(f"predictions   {form}, {counted(len(self.data.classes), 'class', 'classes')}{shown}")
        if form == "nothing" or not self.data.labelled:
            return []
        half, by_chance = self.data.splits.attacker, checks.chance(self.data)
        right = self._recorded.rows[half.start : half.stop].argmax(1) == self.data.labels[half.start : half.stop]
        say(f"accuracy      {right.mean():.3f} on the attacker's half, chance {by_chance:.3f}")
        if not checks.near_chance(right.mean(), by_chance):
            return []
        return [f"{PREDICTIONS}: accuracy {right.mean():.3f} is near chance ({by_chance:.3f}); its rows may "
                f"be in another order than those of {LABELS}, or column i is not class i"]
