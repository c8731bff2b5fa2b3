"""The three scripts. Each step uses what is there and makes what is missing."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import checks
from .authors import split_warning
from .batches import gather_rows
from .checkpoints import save_checkpoint
from .comparison import compare, compare_beside
from .config import PICTURE_EVERY, Run
from .device import full_fp32
from .errors import GnimeError, Unfinished, printable
from .evaluate import Result, evaluate_row, train_attackers, try_defence
from .experiment import Experiment
from .explanations import trial_images, try_explainer
from .networks import build, classifier_spec, inverter_spec
from .ops import accelerate
from .ownentries import register
from .ownfiles import own_name
from .parallel import run_side_by_side
from .recorded import open_run
from .references import references, scale
from .registry import EXPLAINERS, Row, find_row, injector_entry, injector_weights
from .report import examples
from .report import results as files
from .report.verdict import judge
from .resuming import StateFile
from .store import artifact_lock
from .system import say, seconds_since, stray_variables, warn
from .training import MinMaxTask, fit_minmax

SHOWN = 5  # images in the pictures of the injector's training: they fit a screen


def _begin(run: Run, trains: bool = True) -> Experiment:
    register(run.files)
    for variable in stray_variables():
        warn(f"{variable} in the environment is ignored, because it is set alone; torchrun sets RANK and WORLD_SIZE")
    experiment = open_run(run, trains)
    say(f"{run.script}.py: {run.summary()}", f"device        {experiment.device.describe()}")
    if run.script != "prepare" and run.target.width < run.sensible_width:
        channels = run.target.width / run.target.size
        warn(f"--width {run.target.width}: networks only {channels:g} times as wide as the images' side learn too little; the "
             f"smallest sensible width for side {run.target.size} is {run.sensible_width}")
    if run.official == ("gradcam",) and (run.xai != "gradcam" or run.record):
        warn(f"--official gradcam changes nothing with --xai {run.xai}")
    return experiment


def prepare(run: Run) -> None:
    """Victim, evaluation classifier, images, labels, explanations."""
    began = time.monotonic()
    _prepare(_begin(run))
    say(f"done in {seconds_since(began)}; next: {run.command('train')}")


def _prepare(experiment: Experiment) -> None:
    run, device = experiment.run, experiment.device
    if run.victim:
        experiment.victim  # noqa: B018  checked, and the explainer with it, before anything is written
    elif run.record:
        experiment.predictions, experiment.explanations  # noqa: B018  made by all processes, and compared in `warnings`
    elif EXPLAINERS[run.xai].own or run.layer:  # likewise before anything is trained
        untrained = build(classifier_spec(run.target, classes=10), run.seed).to(device.torch).eval().requires_grad_(False)
        try_explainer(run, untrained, trial_images(run, device))
    for warning in experiment.warnings if device.rank == 0 else ():
        warn(warning)
    for warning in _tell_victim(experiment):
        warn(warning)
    experiment.classifiers, experiment.explanations  # noqa: B018  made when first used
    if checks.hardly_differ(experiment.explanations.rows):
        warn(f"{experiment.paths.explanations}: the maps hardly differ from each other, so they say nothing about the images")


def _tell_victim(experiment: Experiment) -> list[str]:
    """Says the victim's accuracy, or what is known of a record. Returns warnings, which a reader of the results must know too.

    A network of another program may number the classes otherwise.
    """
    if experiment.run.record:
        return experiment.tell()
    data, victim = experiment.data, experiment.victim
    arguments = victim.network, experiment.images, experiment.labels, data.splits.attacker, experiment.device
    found = victim.report.get("score")  # of the same images, where this project trained it
    if found is None:
        with full_fp32():
            found = checks.accuracy(*arguments)
    by_chance = checks.chance(data)
    say(f"victim        accuracy {found:.3f} on the attacker's half, chance {by_chance:.3f}")
    if not checks.near_chance(found, by_chance):
        return []
    remedy = "train it longer" if "score" in victim.report else (
        f"if its outputs are other classes than here, sort them: {checks.numbered(data.classes)}")
    name = own_name(experiment.run.victim) or experiment.paths.victim.relative_to(experiment.run.root)
    return [f"{name}: accuracy {found:.3f} is near chance ({by_chance:.3f}); {remedy}"]


def train(run: Run) -> None:
    """The noise injector of each weight."""
    began = time.monotonic()
    experiment = _begin(run)
    for warning in _tell_victim(experiment):
        warn(warning)
    for weight in run.weights or (run.target.inversion_weight,):
        _train_injector(experiment, weight)
    say(f"done in {seconds_since(began)}; next: {run.command('eval')}")


def _train_injector(experiment: Experiment, weight: float) -> None:
    run, paths = experiment.run, experiment.paths
    defender, config = experiment.data.splits.defender, run.train_config("injector")
    task = experiment.injector_task(weight, _injector_training(experiment, weight))
    if config.batch_size > len(defender):
        say(f"batch         {len(defender)}, the whole defender's half: it is smaller than {config.batch_size}")
    injector = experiment.load_or_train(task)
    if experiment.device.rank == 0 and "history" in injector.report:
        from .report import figures  # here, because matplotlib is slow to import, and most processes draw nothing

        with artifact_lock(paths.injector(weight), paths.root, folder=True):
            draw(figures.injector_losses, paths.injector_losses(weight), injector.report["history"], weight)


def _injector_training(experiment: Experiment, weight: float) -> Callable[[nn.Module, StateFile], dict]:
    """Trains an injector against a sparring inverter, with a checkpoint and a picture every `PICTURE_EVERY` epochs."""
    run, paths, device = experiment.run, experiment.paths, experiment.device
    defender, classes = experiment.data.splits.defender, len(experiment.data.classes)

    def fit(injector: nn.Module, file: StateFile) -> dict:
        images, _, predictions, explanations = experiment.service
        spec = inverter_spec("expmi", run.target, tuple(explanations.shape[1:3]), classes)
        inverter = accelerate(build(spec, run.seed, "injector's inverter"))

        def checkpoint(epoch: int) -> None:
            network, picture = paths.injector_at(weight, epoch)
            tensors = {name: value.contiguous() for name, value in injector.state_dict().items()}
            identity = {name: value for name, value in file.identity.items() if name != "spec"}
            extra = {"protects": experiment.protects}
            save_checkpoint(network, tensors, file.identity["spec"], identity | {"epochs": epoch}, extra)
            first = (gather_rows(array, defender[:SHOWN], device.torch) for array in (images, explanations, predictions))
            image, explanation, prediction = first
            with torch.no_grad():
                protected = injector(explanation, prediction)
                reconstruction = inverter(protected, prediction).float().clamp(0, 1)
            pictures = (value.cpu().contiguous() for value in (image, explanation, protected, reconstruction))
            from .report import figures

            draw(figures.injector_progress, picture, *pictures)

        task = MinMaxTask(injector, inverter, run.train_config("injector"), [explanations, predictions, images], defender,
                          weight, run.seed, PICTURE_EVERY, checkpoint, bool(run.repeats("scale")))
        return fit_minmax(task, file, device) | {"protects": experiment.protects}

    return fit


def evaluate(run: Run, trains: bool = True) -> dict | None:
    """Every row's attackers, the table and the pictures. Returns the content of `results.json`.

    With `trains` False nothing is trained, rows that are not finished are left out and named in the result; None: no row is.
    """
    began = time.monotonic()
    experiment = _begin(run, trains)
    rows, device = [find_row(name) for name in run.rows], experiment.device
    told = _tell_victim(experiment)
    experiment.classifiers, experiment.attacker_data  # noqa: B018  refused early where missing
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
    content = _results(experiment, rows, began, told) if device.rank == 0 else None
    device.barrier()
    return content


def train_row(run: Run, name: str, before: tuple[Run, Run] | None = None) -> None:
    """The attackers of one row, left on disk; `before`: the runs of prepare.py and train.py, of which it makes its share."""
    register(run.files)
    if before:
        _prepare(open_run(before[0]))
        for weight in injector_weights([name], run.target.inversion_weight):
            _train_injector(open_run(before[1]), weight)
    train_attackers(open_run(run), find_row(name))


def _results(experiment: Experiment, rows: list[Row], began: float, told: list[str]) -> dict | None:
    """told: warnings about the victim."""
    results: dict[str, Result] = {}
    for row in rows:
        try:
            results[row.name] = evaluate_row(experiment.for_one_process(), row)
        except Unfinished:
            say(f"{row.name:<13} not finished; left out")
    if not results:
        return None
    warnings, maps = told + _warnings(experiment, rows, results), references(experiment)
    for result in results.values():
        result.numbers = scale(result.numbers, maps)
    chosen = examples.choose(experiment, results)
    say("", "the paper's attacker:", files.paper_table(results), "", "the best of all attackers:",
        files.verdict_table(results), *files.of_every_row(results), "", *files.beside_table(results),
        "the maps, beside clean and random ones:",
        files.usefulness_table(results, maps), "", *files.skipped(results),
        *files.bounds(results, experiment.published), *files.single_answers(results),
        *files.not_measured(experiment.lacking), "")
    for warning in warnings:
        warn(warning)
    with artifact_lock(experiment.paths.results, experiment.run.root, folder=True):
        content = files.write(experiment, results, maps, warnings, seconds_since(began), chosen)
        _pictures(experiment, results, content, chosen[1])
    say(f"done in {seconds_since(began)}; table and pictures: {experiment.paths.results.parent}", "",
        *judge(content).lines(), f"report: {experiment.paths.report}")
    return content


def _warnings(experiment: Experiment, rows: list[Row], results: dict[str, Result]) -> list[str]:
    """Adds residual leakage to the results; returns what a reader of them must know."""
    run = experiment.run
    narrow = run.target.width < run.sensible_width
    warnings = experiment.warnings
    warnings += compare(results, f"give --width {run.sensible_width} or more" if narrow else "train longer")
    warnings += compare_beside(results)
    usual = run.target.inversion_weight
    for weight, history in _injector_histories(experiment, results).items():
        warnings += checks.warnings_about_training(injector_entry(weight, usual), history)
    converted = [name for name, made in files.networks_of(experiment, results).items() if "converted" in made]
    warnings += split_warning(converted, experiment.data.shuffled)
    if run.repeats("validation"):
        warnings.append("--official validation: the best attacker is chosen on the test images, so its errors are too small")
    if unfinished := [row.name for row in rows if row.name not in results]:
        warnings.append(f"not finished, left out: {', '.join(unfinished)}")
    return warnings


def _injector_histories(experiment: Experiment, results: dict[str, Result]) -> dict[float, list]:
    """The losses by epoch of the rows' injectors, by weight. An injector of another program has none."""
    usual = experiment.run.target.inversion_weight
    injectors = [experiment.injector_of(weight) for weight in injector_weights(results, usual)]
    return {injector.made_by.get("weight", usual): history for injector in injectors
            if (history := injector.report.get("history"))}


def draw(picture: Callable, path: Path, *content: object) -> None:
    """Draws a picture. Where that fails, it warns, because numbers and networks do not depend on it."""
    try:
        picture(path, *content)
    except Exception as error:  # of fonts, of a full disk
        reason = str(error) if isinstance(error, GnimeError) else f"{path}: not drawn ({type(error).__name__}: {error})"
        warn(printable(reason))


def _pictures(experiment: Experiment, results: dict[str, Result], content: dict, shown: list[examples.Example]) -> None:
    from .report import charts, figures, html

    paths = experiment.paths
    draw(figures.comparison, paths.comparison, charts.headline(content), shown, charts.row_labels(content))
    draw(charts.metric_bars, paths.metrics, content)
    losses = _injector_histories(experiment, results)
    draw(figures.training_curves, paths.training, losses, {name: result.history for name, result in results.items()})
    draw(charts.frontier, paths.frontier, content, judge(content))
    draw(html.write, paths.report, content, shown)
