"""The path of every artifact."""

from pathlib import Path

from .config import Run
from .filenames import layer_part
from .ownfiles import own_name
from .registry import injector_row


class Paths:
    """The path of each artifact under the run's root. No other code builds such a path."""

    def __init__(self, run: Run):
        target = run.target.name
        answered = f"{target}_{own_name(run.victim)}" if run.victim else target  # what depends on the victim
        both, self._layer = f"{answered}_{run.xai}", layer_part(run.layer)
        defended = both + run.published_part + self._layer
        self.root, self.aux, self._models = run.root, run.root / "aux", run.root / "models"
        self._target, self._xai, self._published = answered, run.xai, run.published_part
        self._weight = run.target.inversion_weight
        self.victim = self._models / "victim" / f"{target}.pt"
        self.evaluation = self._models / "eval" / f"{target}.pt"
        self.injector_folder = self._models / "def" / defended
        self.images = self.aux / f"{target}_imgs.hkl"
        self.labels = self.aux / f"{target}_labels.hkl"
        self.files = self.aux / f"{target}_files.txt"
        self.skipped = self.aux / f"{target}_imgs.skipped.txt"
        self.predictions = self.aux / f"{target}_predictions.hkl"
        self.explanations = self.aux / f"{both}{self._layer}.hkl"
        figures = run.root / "figures" / defended
        self.folders = (self.aux, *(self._models / kind for kind in ("victim", "eval", "inv")), self.injector_folder, figures)
        self.results, self.table = figures / "results.json", figures / "results.csv"
        self.per_image, self.report = figures / "per_image.csv", figures / "report.html"
        self.comparison, self.metrics, self.training, self.frontier = (
            figures / f"{name}.png" for name in ("comparison", "metrics", "training", "frontier"))

    def defence(self, row: str) -> Path:
        """A fitted defence."""
        return self.injector_folder / f"{row}.pt"

    def inverter(self, row: str, attacker: str = "expmi") -> Path:
        """An attacker's network. PredMI's input has no explanation, so its file is the same for all explainers."""
        xai, layer = ("", "") if row == "predmi" else (f"_{self._xai}", self._layer)
        name = f"{self._target}_{row}{xai}{self._published}"
        name += ("" if attacker in ("predmi", "expmi") else f"_{attacker}") + layer
        return self._models / "inv" / f"{name}.pt"

    def injector(self, weight: float) -> Path:
        """The noise injector of that weight. One of another weight than the target's has a folder of its own."""
        own = () if weight == self._weight else (injector_row(weight),)
        return self.injector_folder.joinpath(*own, "injector.pt")

    def injector_losses(self, weight: float) -> Path:
        return self.injector(weight).with_name("training.png")

    def injector_at(self, weight: float, epoch: int) -> tuple[Path, Path]:
        """The injector's checkpoint and its picture after `epoch` epochs."""
        return tuple(self.injector(weight).with_name(f"epoch_{epoch:04d}.{suffix}") for suffix in ("pt", "png"))

    @staticmethod
    def state(network: Path) -> Path:
        """The file of the unfinished training of `network`."""
        return network.with_name(f"{network.stem}.state.pt")
