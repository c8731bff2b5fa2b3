"""Everything that one run has, found or made when it is first asked for: the one object that is passed on."""

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from . import arrays, authors, checks, data, explanations, networks, victims
from .batches import Rows, cache_on_device, iter_batches, mean_std
from .checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from .config import Run
from .data import AttackerData, Data
from .defences import DefenceInputs, DefenderData
from .defences.class_mean import class_means
from .defences.fitting import FitTask, load_or_fit
from .defences.noise import mean_distortion
from .device import Device
from .errors import GnimeError, Unfinished
from .networks import NetworkTask, TrainedModel, build, classifier_spec, injector_spec, inverter_spec
from .ops import accelerate
from .paths import Paths
from .registry import ATTACKERS, ROWS, Row, injector_row
from .resuming import FROZEN, StateFile, to_train_anew
from .store import artifact_lock, exists, prepare_root
from .system import commit, release_freed_memory, say, warn
from .training import TrainingTask, cross_entropy, fit, mean_squared_error
from .words import counted


class Experiment:
    """One run of a script: configuration, device, places, and its data, networks and maps. `recorded.open_run` makes it.

    Attributes:
        run, device, paths: the resolved command line, the device, the places of artifacts.
        trains: False: a network that is not there, or not finished, raises `Unfinished`.

    Its properties are found on disk or made when they are first used. prepare.py may make data, classifiers, explanations,
    train.py injectors, eval.py attackers; anything else that is missing raises a `GnimeError` that names its command.
    """

    def __init__(self, run: Run, trains: bool = True):
        self.run, self.device, self.paths, self.trains = run, Device(run), Paths(run), trains
        self._fitted: dict[str, TrainedModel] = {}
        self._injectors: dict[float, TrainedModel] = {}
        self._told: set[Path] = set()

    def for_one_process(self) -> "Experiment":
        """This experiment for work that a process does without the others. Shares all that is loaded."""
        other = copy.copy(self)
        other.device = self.device.for_one_process()
        return other

    _prepares = property(lambda self: self.run.script == "prepare")
    lacking: dict[str, str] = {}  # inputs of metrics (see `entries.Metric`) that the run does not have, and why
    about: dict = {}  # what `results.json` says of the service beside its networks
    published = property(lambda self: self.run.published)  # the form of the predictions, a name in `config.PUBLISHED`
    answers_digest = property(lambda self: self.victim.digest)  # of what decides the service's answers
    classifiers = property(lambda self: {"victim": self.victim, "evaluation": self.evaluation_classifier})
    warnings = property(lambda self: checks.warnings_about_images(self.data))  # what a reader must know of the data

    @cached_property
    def data(self) -> Data:
        first = self.device.rank == 0
        # bad data are refused before anything is made under the root
        source = data.missing_source(self.run, self.paths) if self._prepares and first else None
        prepare_root(self.run)
        if first:
            data.load_images(self.run, self.paths, source)
        self.device.barrier()
        return data.load_images(self.run, self.paths, quiet=True)

    # (n, C, S, S) uint8 and (n,), on the device where they fit
    images = cached_property(lambda self: cache_on_device(self.data.images, self.device.torch))
    labels = cached_property(lambda self: cache_on_device(self.data.labels, self.device.torch))

    @cached_property
    def victim(self) -> TrainedModel:
        own = self.run.victim and victims.load_victim(self.run, self.device, lambda: self.data.classes)
        return own or self._classifier("victim", self.paths.victim)

    evaluation_classifier = cached_property(lambda self: self._classifier("evaluation", self.paths.evaluation))

    @cached_property
    def explanations(self) -> arrays.Array:
        """(n, K, h, w) in [0, 1], mapped from disk."""
        task = explanations.ExplanationTask(self.run, self.data, self.victim.network, self.victim.digest)
        return explanations.load_explanations(task, self.paths, self.device, make=self._prepares)

    @cached_property
    def protects(self) -> dict:
        """What the files of injector and fitted defences record of the service that they are made for."""
        return explanations.protects(self.run, self.data, self.victim.network, self.explanations.rows.shape[1:])

    @cached_property
    def predictions(self) -> np.ndarray:
        """(n, classes), the victim's, as the service publishes them: nothing here sees another form."""
        return explanations.predict(self.victim.network, self.data, self.device, self.run)

    @cached_property
    def service(self) -> list[Rows]:
        """Images, labels, predictions and explanations of all rows, on the device where they fit."""
        rest = (cache_on_device(array, self.device.torch) for array in (self.predictions, self.explanations.rows))
        return [self.images, self.labels, *rest]

    @cached_property
    def attacker_data(self) -> AttackerData:
        """The attacker's half, undefended."""
        return AttackerData.from_splits(self.data.splits, self.service)

    def injector_task(self, weight: float, train: Callable = None) -> NetworkTask:
        """The noise injector of that weight, found where `train` is None."""
        shape = tuple(self.explanations.rows.shape[1:3])
        mean, std = mean_std(self.explanations.rows, self.data.splits.defender)
        if std == 0:
            raise GnimeError(f"{self.paths.explanations}: every explanation is the same constant; there is nothing to hide")
        config = self.run.train_config("injector")
        identity = self._defence_identity("injector") | {"official": self.run.repeats("scale", "optimiser")}
        usual = weight == self.run.target.inversion_weight
        if train or not usual:  # the usual one is used whatever its weight is
            identity["weight"] = weight
        if train:
            identity |= {"stage": config.identity(), "precision": self.device.precision}
        name, path = "injector" if usual else injector_row(weight), self.paths.injector(weight)
        spec = injector_spec(self.run.target, shape, len(self.data.classes), mean, std)
        return NetworkTask(name, path, spec, identity, config, ("injector",), train, extend=bool(train), own_folder=True)

    def injector_of(self, weight: float) -> TrainedModel:
        """The trained injector of that weight."""
        if weight not in self._injectors:
            task = self.injector_task(weight)
            self._require(task, "train")
            self._injectors[weight] = self.load_or_train(task)
        return self._injectors[weight]

    def row_injector(self, row: Row) -> TrainedModel:
        """The injector of the weight that the row's name carries, or of the target's."""
        return self.injector_of(row.weight(self.run.target.inversion_weight))

    trained_injector = property(lambda self: self.injector_of(self.run.target.inversion_weight))
    injector = property(lambda self: self.trained_injector.network)

    @cached_property
    def variance(self) -> float:
        return mean_distortion(self.injector, self.attacker_data, self.device)

    @cached_property
    def trained_frozen_inverter(self) -> TrainedModel:
        half = self.data.splits.defender
        cut = half.stop - max(1, len(half) // 10)
        shown = AttackerData(*self.service, half[:cut], half[cut:], half[:0])
        task = self.inverter_task("expmi", ROWS["expmi"], shown)
        task.path, task.name, task.purpose = self.paths.inverter(FROZEN), FROZEN, ("inverter", FROZEN)
        task.identity |= {"half": "defender"}
        return self.load_or_train(task)

    frozen_inverter = property(lambda self: self.trained_frozen_inverter.network)

    @cached_property
    def class_means(self) -> Tensor:
        _, _, predictions, maps = self.service
        return class_means(maps, predictions, self.data.splits.defender, self.device)

    @property
    def defender_data(self) -> DefenderData:
        half, (_, _, predictions, maps) = self.data.splits.defender, self.service
        return DefenderData(maps, predictions, half, self.class_means, self.run.seed, self.device, self.protects)

    def fitted_defence(self, row: Row) -> TrainedModel:
        """The fitted defence of the row, found or fitted on the defender's half."""
        if row.name not in self._fitted:
            identity = self._defence_identity("defence") | {"definition": row.identity()}
            task = FitTask(row, self.paths.defence(row.name), self.run.root, identity, lambda: self.defender_data)
            self._fitted[row.name] = load_or_fit(task, self.device)
        return self._fitted[row.name]

    def defence_inputs(self, row: Row) -> DefenceInputs:
        own = {"fitted": self.fitted_defence, "injector": self.row_injector}  # which depend on the row
        return DefenceInputs(self.run.seed, **{
            need: own[need](row).network if need in own else getattr(self, need) for need in row.needs})

    def _defence_identity(self, kind: str) -> dict:
        return {"kind": kind, "target": self.run.target.name, **self.run.xai_identity, "seed": self.run.seed,
                "images": self.data.digest, "victim": self.answers_digest, "explanations": self.explanations.digest,
                **self.run.published_identity}

    def identity(self, row: Row) -> dict:
        """The plain data that decides what a row's attackers see."""
        identity = {"kind": "inverter", "target": self.run.target.name, "images": self.data.digest,
                    "victim": self.answers_digest, "row": [row.name, *row.identity()]} | self.run.published_identity
        if row.defence is not None:
            identity |= {**self.run.xai_identity, "explanations": self.explanations.digest}
        if row.needs_injector:
            identity |= {"injector": self.row_injector(row).digest}
        if "fitted" in row.needs:
            identity |= {"defence": self.fitted_defence(row).digest}
        if "frozen_inverter" in row.needs:
            identity |= {FROZEN: self.trained_frozen_inverter.digest}
        return identity

    def inverter_task(self, attacker: str, row: Row, shown: AttackerData, loss: Callable = mean_squared_error,
                      **more: object) -> NetworkTask:
        """The network of that name in `networks.NETWORKS`, to be trained on what is shown of the row; `more` is of its spec."""
        run, config = self.run, self.run.train_config(row.trained_as)
        sources = [shown.explanations, shown.predictions, shown.images]
        spec = inverter_spec(attacker, run.target, tuple(self.explanations.rows.shape[1:3]), len(self.data.classes)) | more
        identity = self.identity(row) | {
            "attacker": [attacker, ATTACKERS[attacker].version], "seed": run.seed, "stage": config.identity(),
            "official": run.repeats("order", "validation", "optimiser"), "precision": self.device.precision}

        def validate(network: nn.Module) -> float:
            return sum(mean_squared_error(network, batch).double().item() * len(rows)
                       for rows, batch in iter_batches(sources, shown.validation, self.device.torch)) / len(shown.validation)

        def train(network: nn.Module, file: StateFile) -> dict:
            task = TrainingTask(row.name, network, config, sources, shown.train, loss, validate, higher=False,
                                seed=run.seed, shuffle=not run.repeats("order"))
            return fit(task, file, self.device)

        name = row.name if attacker in ("predmi", "expmi") else f"{row.name} {attacker}"
        return NetworkTask(name, self.paths.inverter(row.name, attacker), spec, identity, config,
                           ("inverter", row.name, attacker), train, anew=True)

    def _classifier(self, name: str, path: Path) -> TrainedModel:
        """Victim and evaluation classifier differ in their seeds alone."""
        splits, config, sources = self.data.splits, self.run.train_config("classifier"), [self.images, self.labels]

        def validate(network: nn.Module) -> float:
            return checks.accuracy(network, *sources, splits.attacker, self.device)

        def train(network: nn.Module, file: StateFile) -> dict:
            task = TrainingTask(name, network, config, sources, splits.defender, cross_entropy, validate, higher=True,
                                seed=self.run.seed)
            how = {"stage": config.identity(), "precision": self.device.precision}
            return fit(task, StateFile(file.path, file.root, file.identity | how), self.device) | how

        identity = {"kind": name, "target": self.run.target.name, "seed": self.run.seed, "images": self.data.digest,
                    "official": self.run.repeats("optimiser")} | self.data.labels_identity
        spec = classifier_spec(self.run.target, len(self.data.classes))
        task = NetworkTask(name, path, spec, identity, config, (name,), train, extend=False, explained=True,
                           score="validation accuracy")
        if not self._prepares:
            self._require(task, "prepare")
        model = self.load_or_train(task)
        if self._prepares and (otherwise := networks.trained_less(model.report, config)):
            anew = to_train_anew(path, self.paths.state(path), "what was made with it")
            warn(f"{path} was {otherwise}: it is used as it is; {anew}")
        return model

    def _require(self, task: NetworkTask, script: str) -> None:
        """Raises `Unfinished` if the network, which `script` makes, is not there."""
        if not (exists(task.path, self.run.root) or authors.has_source(task)):
            raise Unfinished(f"{task.path} is missing; make it with: {self.run.command(script)}")

    def load_or_train(self, task: NetworkTask) -> TrainedModel:
        """The network of `task.path`: used if it is there, converted if the authors' lies there, trained if not.

        An attacker's is also trained anew where its training is not this run's; see `networks.find`.

        Raises:
            GnimeError: the file is damaged or belongs to another run.
        """
        path, root, device = task.path, self.run.root, self.device
        state = StateFile(self.paths.state(path), root, task.identity | {"spec": task.spec})
        with artifact_lock(path, root, device, task.own_folder):
            if device.rank == 0 and not exists(path, root) and authors.has_source(task):
                authors.convert(task, root, lambda: (self.victim, self.protects))
                self._told.add(path)
            device.barrier()
            checkpoint = networks.find(task, state, device, self.trains)
            network = accelerate(build(task.spec, self.run.seed, *task.purpose))
            if checkpoint is not None:
                networks.check_record(checkpoint, task)
                if not (task.extend and networks.is_unfinished(checkpoint, task.config) and exists(state.path, root)):
                    return self._use(task, network, checkpoint)
            if not self.trains:
                raise Unfinished(f"{path} is not finished")
            say(f"{task.name:<13} training, at most {counted(task.config.epochs, 'epoch')}, batch {task.config.batch_size}")
            report = task.train(network, state) | {"commit": commit()}
            release_freed_memory()
            device.barrier()
            tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
            made_by = task.identity | {"epochs": report["epochs"]}
            digest = save_checkpoint(path, tensors, task.spec, made_by, report) if device.rank == 0 else ""
            if report.get("early"):  # more epochs would change nothing
                state.path.unlink(missing_ok=True)
            device.barrier()
            digest = digest or load_checkpoint(path).digest
        score = f", best {task.score} {report['score']:.4g} at epoch {report['best_epoch']}" if "score" in report else ""
        say(f"{task.name:<13} {path}: made in {report['seconds']:.0f} s, {counted(report['epochs'], 'epoch')}{score}")
        return TrainedModel(networks.ready_to_use(network, task), digest, report, made_by)

    def _use(self, task: NetworkTask, network: nn.Module, checkpoint: Checkpoint) -> TrainedModel:
        model = networks.use(task, network, checkpoint, self.device.torch)
        if task.path not in self._told:  # once a run: PredMI attacks every row
            networks.tell_found(task, checkpoint, self.paths.state(task.path))
            self._told.add(task.path)
        return model
