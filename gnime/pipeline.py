"""The three scripts. Each step uses what is there and makes what is missing."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from .batches import gather_rows
from .checkpoints import save_checkpoint
from .config import PICTURE_EVERY, Run
from .errors import Unfinished
from .evaluate import SHOWN, Result, evaluate_row, train_attackers, try_defence
from .experiment import Experiment
from .explanations import predict, trial_images, try_explainer
from .networks import build, classifier_spec, inverter_spec
from .ops import accelerate
from .parallel import run_side_by_side
from .registry import EXPLAINERS, Row, find_row, register
from .report import figures
from .report import results as files
from .resuming import StateFile
from .store import artifact_lock
from .system import say, seconds_since, warn
from .training import MinMaxTask, fit_minmax
from .verdict import compare, compare_beside
from .victims import tell_accuracy


def _begin(run: Run, trains: bool = True) -> Experiment:
    register(run.files)
    experiment = Experiment(run, trains)
    say(f"{run.script}.py: {run.summary()}", f"device        {experiment.device.describe()}")
    if run.official == ("gradcam",) and run.xai != "gradcam":
        warn(f"--official gradcam changes nothing with --xai {run.xai}")
    return experiment


def prepare(run: Run) -> None:
    """Victim, evaluation classifier, images, labels, explanations."""
    began = time.monotonic()
    _prepare(_begin(run))
    say(f"done in {seconds_since(began)}; next: {run.command('train')}")


def _prepare(experiment: Experiment) -> None:
    run, device = experiment.run, experiment.device
    if EXPLAINERS[run.xai].own and not run.victim:  # before anything is trained or written; `load_victim` does it with its own
        untrained = build(classifier_spec(run.target, classes=10), run.seed).to(device.torch).eval().requires_grad_(False)
        try_explainer(run, untrained, trial_images(run, device))
    experiment.victim, experiment.evaluation_classifier, experiment.explanations  # noqa: B018  made when first used
    if run.victim and device.rank == 0:
        data = experiment.data
        logits = predict(experiment.victim.network, data, device, replace(run, published="logits"))
        tell_accuracy(run.victim, torch.from_numpy(logits), torch.from_numpy(data.labels), data.classes)


def train(run: Run) -> None:
    """The noise injector."""
    began = time.monotonic()
    _train_injector(_begin(run))
    say(f"done in {seconds_since(began)}; next: {run.command('eval')}")


def _train_injector(experiment: Experiment) -> None:
    run, paths = experiment.run, experiment.paths
    defender, config = experiment.data.splits.defender, run.train_config("injector")
    task = experiment.injector_task(_injector_training(experiment))
    if config.batch_size > len(defender):
        say(f"batch         {len(defender)}, the whole defender's half: it is smaller than {config.batch_size}")
    injector = experiment.load_or_train(task)
    if experiment.device.rank == 0 and injector.report:
        with artifact_lock(paths.injector, folder=True):
            figures.injector_losses(paths.injector_losses, injector.report["history"], run.target.inversion_weight)


def _injector_training(experiment: Experiment) -> Callable[[nn.Module, StateFile], dict]:
    """Trains an injector against a sparring inverter, with a checkpoint and a picture every `PICTURE_EVERY` epochs."""
    run, paths, device = experiment.run, experiment.paths, experiment.device
    defender, classes = experiment.data.splits.defender, len(experiment.data.classes)

    def fit(injector: nn.Module, file: StateFile) -> dict:
        images, _, predictions, explanations = experiment.service
        spec = inverter_spec("expmi", run.target, tuple(explanations.shape[1:3]), classes)
        inverter = accelerate(build(spec, run.seed, "injector's inverter"))

        def checkpoint(epoch: int) -> None:
            network, picture = paths.injector_at(epoch)
            tensors = {name: value.contiguous() for name, value in injector.state_dict().items()}
            identity = {name: value for name, value in file.identity.items() if name != "spec"}
            save_checkpoint(network, tensors, file.identity["spec"], identity | {"epochs": epoch}, {})
            first = (gather_rows(array, defender[:SHOWN], device.torch) for array in (images, explanations, predictions))
            image, explanation, prediction = first
            with torch.no_grad():
                protected = injector(explanation, prediction)
                reconstruction = inverter(protected, prediction).float().clamp(0, 1)
            pictures = (value.cpu().contiguous() for value in (image, explanation, protected, reconstruction))
            figures.injector_progress(picture, *pictures)

        task = MinMaxTask(injector, inverter, run.train_config("injector"), [explanations, predictions, images], defender,
                          run.target.inversion_weight, run.seed, PICTURE_EVERY, checkpoint, bool(run.repeats("scale")))
        return fit_minmax(task, file, device)

    return fit


def evaluate(run: Run, trains: bool = True) -> dict | None:
    """Every row's attackers, the table and the pictures. Returns the content of `results.json`.

    With `trains` False nothing is trained, rows that are not finished are left out and named in the result; None: no row is.
    """
    began = time.monotonic()
    experiment = _begin(run, trains)
    rows, device = [find_row(name) for name in run.rows], experiment.device
    experiment.victim, experiment.evaluation_classifier, experiment.attacker_data  # noqa: B018  refused early where missing
    if trains:
        for row in rows:  # by all processes together
            experiment.identity(row)
            experiment.defence_inputs(row)
            try_defence(experiment, row)
    if device.world > 1:  # each process trains the attackers of its rows; the first then finds them all
        for row in rows[device.rank :: device.world]:
            evaluate_row(experiment.for_one_process(), row)
        device.barrier()
    elif trains and min(run.jobs, len(rows)) > 1:
        run_side_by_side([partial(train_row, run, row.name) for row in rows], run.jobs)
    content = _results(experiment, rows, began) if device.rank == 0 else None
    device.barrier()
    return content


def train_row(run: Run, name: str, before: tuple[Run, Run] | None = None) -> None:
    """The attackers of one row, left on disk; `before`: the runs of prepare.py and train.py, of which it makes its share."""
    register(run.files)
    if before:
        _prepare(Experiment(before[0]))
        if find_row(name).needs_injector:
            _train_injector(Experiment(before[1]))
    train_attackers(Experiment(run), find_row(name))


def _results(experiment: Experiment, rows: list[Row], began: float) -> dict | None:
    results: dict[str, Result] = {}
    for row in rows:
        try:
            results[row.name] = evaluate_row(experiment.for_one_process(), row)
        except Unfinished:
            say(f"{row.name:<13} not finished; left out")
    if not results:
        return None
    warnings = [*compare(results), *compare_beside(results)]
    unfinished = [row.name for row in rows if row.name not in results]
    if experiment.run.repeats("validation"):
        warnings.append("--official validation: the best attacker is chosen on the test images, so its errors are too small")
    if unfinished:
        warnings.append(f"not finished, left out: {', '.join(unfinished)}")
    with artifact_lock(experiment.paths.results, folder=True):
        content = files.write(experiment, results, warnings, seconds_since(began))
        _pictures(experiment, results)
    say("", "the paper's attacker:", files.paper_table(results), "", "the best of all attackers:",
        files.verdict_table(results), "", *files.beside_table(results), *files.skipped(results),
        *files.bounds(results, experiment.run.published), *files.single_answers(results), "")
    for warning in warnings:
        warn(warning)
    say(f"done in {seconds_since(began)}; table and pictures: {experiment.paths.results.parent}")
    return content


def _pictures(experiment: Experiment, results: dict[str, Result]) -> None:
    paths, shown = experiment.paths, experiment.attacker_data
    arrays = shown.images, shown.explanations
    image, explanation = (gather_rows(array, shown.test[:SHOWN], torch.device("cpu")).cpu().contiguous() for array in arrays)
    figures.comparison(paths.comparison, image, explanation, results)
    figures.metric_bars(paths.metrics, results)
    injector = experiment.trained_injector if any(find_row(name).needs_injector for name in results) else None
    losses, weight = (injector.report.get("history", []), injector.made_by.get("weight", 0.0)) if injector else ([], 0.0)
    figures.training_curves(paths.training, losses, {name: result.history for name, result in results.items()}, weight)
