"""What the three scripts do, in order. Each step uses what is there and makes what is missing."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import evaluation, figures, report
from .artifacts import Paths, alone, exists, prepare_root, save_checkpoint
from .config import PICTURE_EVERY, Run
from .data import Data, load_images, missing_source, resident, take
from .defences import Means
from .errors import GnimeError
from .explaining import load_explanations, moments, predictions
from .networks import Trained, build, classifier_spec, injector_spec, inverter_spec, obtain
from .ops import accelerate
from .runtime import Device, exact, say, seconds_since, warn
from .settings import SETTINGS, Setting
from .sources import Source
from .training import Game, Task, cross_entropy, fit, play, through


def _start(run: Run) -> tuple[Device, Paths]:
    device = Device(run)
    say(f"{run.script}.py: {run.summary()}", f"device        {device.describe()}")
    if run.official == ("gradcam",) and run.xai != "gradcam":
        warn(f"--official gradcam changes nothing with --xai {run.xai}")
    return device, Paths(run)


def prepare(run: Run) -> None:
    """Victim, evaluation classifier, images, labels, explanations."""
    began = time.monotonic()
    device, paths = _start(run)
    source = missing_source(run, paths) if device.rank == 0 else None  # refused before anything is made under the root
    inputs = _inputs(run, paths, device, source, make=True)
    _classifier("evaluation", paths.evaluation, run, inputs.data, device, make=True)
    load_explanations(run, paths, inputs.data, inputs.victim.network, inputs.victim.digest, device, make=True)
    say(f"done in {seconds_since(began)}; next: {run.command('train')}")


@dataclass
class _Inputs:
    data: Data
    victim: Trained


def _inputs(run: Run, paths: Paths, device: Device, source: Source | None = None, make: bool = False) -> _Inputs:
    prepare_root(run)
    if device.rank == 0:
        load_images(run, paths, source)
    device.barrier()
    data = load_images(run, paths, quiet=True)
    return _Inputs(data, _classifier("victim", paths.victim, run, data, device, make))


def _classifier(name: str, path: Path, run: Run, data: Data, device: Device, make: bool) -> Trained:
    """Victim and evaluation classifier differ in their seeds alone."""
    if not make and not exists(path, run.root):
        raise GnimeError(f"{path} is missing; make it with: {run.command('prepare')}")
    images, labels = resident(data.images, device.torch), resident(data.labels, device.torch)

    def validate(network: nn.Module) -> float:
        right = sum((network(image).argmax(1) == label).sum().item()
                    for _, (image, label) in through([images, labels], data.splits.attacker, device))
        return right / len(data.splits.attacker)

    stage = run.stage("classifier")
    identity = {"kind": name, "target": run.target.name, "seed": run.seed, "images": data.digest,
                "official": run.repeats("optimiser")}

    def train_it(network: nn.Module, state: Path) -> dict:
        task = Task(name, network, stage, [images, labels], data.splits.defender, cross_entropy, validate, higher=True,
                    seed=run.seed)
        how = {"stage": stage.identity(), "precision": device.precision}
        return fit(task, state, run.root, identity | how | {"spec": spec}, device) | how

    spec = classifier_spec(run.target, len(data.classes))
    found = obtain(path, run.root, spec, identity, stage, run.seed, device, name, train_it, go_on=False)
    trained = found.report.get("epochs", stage.epochs)
    if make and trained < stage.epochs and not found.report["early"]:
        warn(f"{path} was trained for {trained} epochs, this run asks for {stage.epochs}: it is used as it is; remove it and "
             f"what was made with it to train it anew")
    return found


def train(run: Run) -> None:
    """The noise injector."""
    began = time.monotonic()
    device, paths = _start(run)
    inputs = _inputs(run, paths, device)
    data, victim = inputs.data, inputs.victim
    explanations = load_explanations(run, paths, data, victim.network, victim.digest, device, make=False)
    logits = predictions(victim.network, data, device, run)
    defender, stage = data.splits.defender, run.stage("injector")
    if stage.batch_size > len(defender):
        say(f"batch         {len(defender)}, the whole defender's half: it is smaller than {stage.batch_size}")
    mean, std = moments(explanations.rows, defender)
    if std == 0:
        raise GnimeError(f"{paths.explanations}: every explanation is the same constant; the injector has nothing to hide")
    shape = tuple(explanations.rows.shape[1:3])
    spec = injector_spec(run.target, shape, len(data.classes), mean, std)
    identity = _injector_identity(run, data, victim, explanations.digest) | {
        "weight": run.target.weight, "stage": stage.identity(), "precision": device.precision}
    arrays = [explanations.rows, logits, data.images]
    sources = [resident(array, device.torch) for array in arrays]

    def make(injector: nn.Module, state: Path) -> dict:
        sparring = inverter_spec("expmi", run.target, shape, len(data.classes))
        inverter = accelerate(build(sparring, run.seed, "injector's inverter"))
        game = Game(injector, inverter, stage, sources, defender, run.target.weight, run.seed,
                    official=bool(run.repeats("scale")))

        def checkpoint(epoch: int) -> None:
            save_checkpoint(paths.injector_folder / f"epoch_{epoch:04d}.pt", _contiguous(injector), spec,
                            identity | {"epochs": epoch}, {})
            _picture(paths.injector_folder / f"epoch_{epoch:04d}.png", injector, inverter, arrays, defender, device)

        return play(game, state, run.root, identity | {"spec": spec}, device, PICTURE_EVERY, checkpoint)

    found = obtain(paths.injector, run.root, spec, identity, stage, run.seed, device, "injector", make, folder=True)
    if device.rank == 0 and found.report:
        with alone(paths.injector, folder=True):
            figures.injector_losses(paths.injector_folder / "training.png", found.report["history"], run.target.weight)
    say(f"done in {seconds_since(began)}; next: {run.command('eval')}")


def _contiguous(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def _injector_identity(run: Run, data: Data, victim: Trained, explanations: str) -> dict:
    return {"kind": "injector", "target": run.target.name, "xai": run.xai, "seed": run.seed, "images": data.digest,
            "victim": victim.digest, "explanations": explanations, "official": run.repeats("scale", "optimiser")}


def _picture(path: Path, injector: nn.Module, inverter: nn.Module, arrays: list, defender: range, device: Device) -> None:
    """What the two players make of the first few of the defender's images."""
    explanation, prediction, image = (take(array, defender[: evaluation.SHOWN], device.torch) for array in arrays)
    with torch.no_grad():
        protected = injector(explanation, prediction)
        found = inverter(protected, prediction).float().clamp(0, 1)
    figures.injector_progress(path, *(value.cpu().contiguous() for value in (image, explanation, protected, found)))


def evaluate(run: Run) -> None:
    """Every setting's attacker, the table and the pictures."""
    began = time.monotonic()
    device, paths = _start(run)
    inputs = _inputs(run, paths, device)
    data, victim = inputs.data, inputs.victim
    judge = _classifier("evaluation", paths.evaluation, run, data, device, make=False)
    explanations = load_explanations(run, paths, data, victim.network, victim.digest, device, make=False)
    injector = _found_injector(run, paths, data, victim, explanations, device)
    logits = predictions(victim.network, data, device, run)
    arrays = [resident(array, device.torch) for array in (data.images, data.labels, logits, explanations.rows)]
    attacker = evaluation.Attacker.of(data.splits, *arrays)
    identity = {"kind": "inverter", "target": run.target.name, "images": data.digest, "victim": victim.digest}
    shown_to = identity | {"xai": run.xai, "explanations": explanations.digest}
    means = _means(run, paths, device, data, arrays, attacker, injector, shown_to)

    def of(name: str, on: Device) -> tuple[evaluation.Outcome, dict]:
        return _setting(SETTINGS[name], run, paths, attacker, means, (victim, judge, injector), identity, shown_to, data, on)

    if device.world > 1:  # each process trains the attackers of its settings; the first then finds them all made
        for name in run.settings[device.rank :: device.world]:
            of(name, device.solo())
        device.barrier()
    if device.rank == 0:
        networks = {"victim": victim.summary(), "evaluation": judge.summary()}
        networks |= {"injector": injector.summary()} if injector else {}
        outcomes = {}
        for name in run.settings:
            outcomes[name], networks[name] = of(name, device.solo())
        warnings = evaluation.compare(outcomes)
        with alone(paths.figures / "results.json", folder=True):
            report.write(run, paths, device, data, outcomes, networks, warnings, seconds_since(began))
            _pictures(run, paths, attacker, outcomes, injector, device)
        say("", report.table(outcomes), "")
        for warning in warnings:
            warn(warning)
        say(f"done in {seconds_since(began)}; table and pictures: {paths.figures}")
    device.barrier()


def _setting(setting: Setting, run: Run, paths: Paths, attacker: evaluation.Attacker, means: Means, networks: tuple,
             identity: dict, shown_to: dict, data: Data, device: Device) -> tuple[evaluation.Outcome, dict]:
    """The setting's best attacker: what it recovered, and what it is."""
    victim, judge, injector = networks
    made_by = identity if setting.defence is None else shown_to
    if setting.injector:
        made_by = made_by | {"injector": injector.digest}
    if setting.defence == "ond":
        made_by = made_by | {"ond-defender": means.inverter_digest}
    with exact():
        seen = evaluation.protect(setting, attacker, means, device, run.root / "aux")
    tried, found = {}, {}
    for kind in setting.inverters:
        path = paths.inverter(setting.name, kind)
        tried[kind] = evaluation.attack(setting.name, kind, run, attacker, seen, made_by, path, len(data.classes), device)
        with exact():
            found[kind] = evaluation.measure(tried[kind].network, attacker, seen, victim.network, judge.network, device)
    best = min(tried, key=lambda kind: tried[kind].report.get("score", found[kind].numbers["mse"]))
    outcome = found[best]
    outcome.history = tried[best].report.get("history", [])
    if len(tried) > 1:
        outcome.numbers["attackers"] = {kind: other.numbers["mse"] for kind, other in found.items()}
    return outcome, tried[best].summary()


def _means(run: Run, paths: Paths, device: Device, data: Data, arrays: list, attacker: evaluation.Attacker,
           injector: Trained | None, identity: dict) -> Means:
    """What the run's settings build their defences from."""
    images, _, logits, explanations = arrays
    wanted = {SETTINGS[name].defence for name in run.settings}
    means = Means(run.seed)
    if injector:
        means.injector = injector.network
        with exact():
            means.variance = evaluation.mean_distortion(attacker, injector.network, device)
    if "class-mean" in wanted:
        means.class_means = evaluation.class_means(explanations, logits, data.splits.defender, device)
    if "ond" in wanted:
        half = data.splits.defender
        cut = half.stop - max(1, len(half) // 10)
        defender = evaluation.Attacker(images, arrays[1], logits, explanations, half[: cut], half[cut:], half[:0])
        path = paths.inverter("ond-defender")
        made = evaluation.attack("ond", "expmi", run, defender, explanations, identity | {"half": "defender"}, path,
                                 len(data.classes), device)
        means.inverter, means.inverter_digest = made.network, made.digest
    return means


def _found_injector(run: Run, paths: Paths, data: Data, victim: Trained, explanations, device: Device) -> Trained | None:
    """The injector, where a setting needs it."""
    if not any(SETTINGS[name].injector for name in run.settings):
        return None
    if not exists(paths.injector, run.root):
        raise GnimeError(f"{paths.injector} is missing; make it with: {run.command('train')}")
    mean, std = moments(explanations.rows, data.splits.defender)
    spec = injector_spec(run.target, tuple(explanations.rows.shape[1:3]), len(data.classes), mean, std)
    return obtain(paths.injector, run.root, spec, _injector_identity(run, data, victim, explanations.digest),
                  run.stage("injector"), run.seed, device, "injector", lambda *_: {}, go_on=False, folder=True)


def _pictures(run: Run, paths: Paths, attacker: evaluation.Attacker, outcomes: dict, injector: Trained | None,
              device: Device) -> None:
    rows = attacker.test[: evaluation.SHOWN]
    cpu = torch.device("cpu")
    image, explanation = (take(array, rows, cpu).cpu().contiguous() for array in (attacker.images, attacker.explanations))
    figures.comparison(paths.figures / "comparison.png", image, explanation, outcomes)
    figures.metric_bars(paths.figures / "metrics.png", outcomes)
    losses = injector.report.get("history", []) if injector else []
    figures.training_curves(paths.figures / "training.png", losses, {name: o.history for name, o in outcomes.items()},
                            injector.made_by.get("weight", 0.0) if injector else 0.0)
