"""Training. It can be stopped at any moment, and a resumed training ends with the same result.

`fit` trains classifiers and inverters, `fit_minmax` the injector against its sparring inverter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from .batches import Rows, batches
from .config import TrainConfig
from .device import Device, average_gradients
from .errors import GnimeError
from .graphs import Step
from .models.injector import Injector, two_player_step
from .products import training_products
from .resuming import Resumable, StateFile
from .system import Forecast, Interrupt, derive_seed, permutation, training_threads
from .words import counted


def _share(rows: Tensor, device: Device) -> tuple[Tensor, float]:
    """This process's rows of a batch, and their share of the batch."""
    part = rows.tensor_split(device.world)[device.rank]
    return part, len(part) / len(rows)


def _note_finite(finite: Tensor, loss: Tensor, step: int) -> Tensor:
    """Number of steps before the first loss that is not finite. It stays on the device, because reading it would wait."""
    return torch.where(loss.isfinite(), finite, finite.clamp(max=step))


@dataclass
class TrainingTask:
    """A network to be trained with early stopping.

    Attributes:
        sources: arrays with the same number of rows; None: a source that the network does not use.
        rows: range of the training rows.
        loss: (network, batch) -> mean loss over the batch. A batch is the list of the sources' rows on the device.
        validate: network -> score on images that it is not trained on.
        higher: whether a higher score is better.
        shuffle: whether each epoch has an order of its own. The authors' release has one order for all epochs.
    """

    name: str
    network: nn.Module
    config: TrainConfig
    sources: Sequence[Rows | None]
    rows: range
    loss: Callable[[nn.Module, list], Tensor]
    validate: Callable[[nn.Module], float]
    higher: bool
    seed: int
    shuffle: bool = True


def fit(task: TrainingTask, file: StateFile, device: Device) -> dict:
    """Trains `task.network`, which then has its best weights.

    Returns epochs, best epoch (numbered from 1), its score, history ([training loss, score] per epoch), seconds, threads, and
    whether the training stopped early.

    Raises:
        GnimeError: a loss, a weight or a score is not finite.
        Stopped: Ctrl-C or SIGTERM, or the time of `system.stop_after` is up.
    """
    network, config = task.network, task.config
    run = Resumable(file, [network], config, device)
    step = Step(partial(_one_player_step, task, device), [network], device)
    plain = run.plain
    plain.setdefault("best_score", None)
    plain.setdefault("best_epoch", 0)
    left = config.epochs - plain["epoch"]
    forecast = Forecast(task.name, left * math.ceil(len(task.rows) / config.batch_size),
                        f"for {counted(left, 'epoch')}, validation not counted")
    threads = training_threads(_work([network], task.sources, config.batch_size), device.torch)
    with (threads as used, training_products(), Interrupt() as interrupt,
          _progress(task.name, config, plain, device) as bar):
        while plain["epoch"] < config.epochs and not _stale(plain, config):
            epoch = plain["epoch"]
            train_loss = _epoch(task, run, step, forecast, interrupt)
            score = _same_everywhere(_validate(task, device), device)
            if plain["best_score"] is None or (score > plain["best_score"]) == task.higher and score != plain["best_score"]:
                plain["best_score"], plain["best_epoch"] = score, epoch + 1
                run.best = {name: value.detach().clone() for name, value in network.state_dict().items()}
            plain["history"].append([train_loss, score])
            plain["epoch"] = epoch + 1
            bar.update()
            bar.set_postfix(loss=f"{train_loss:.4g}", validation=f"{score:.4g}")
            run.save(now=interrupt.asked)
            run.stop_if(interrupt)
    run.save(now=True)
    network.load_state_dict(run.best)
    network.eval()
    return {"epochs": plain["epoch"], "best_epoch": plain["best_epoch"], "score": plain["best_score"],
            "history": plain["history"], "seconds": round(plain["seconds"], 2), "threads": used, "early": _stale(plain, config)}


def _work(networks: Sequence[nn.Module], sources: Sequence[Rows | None], batch_size: int) -> int:
    """What `training_threads` decides by."""
    weights = sum(weight.numel() for network in networks for weight in network.parameters())
    pixels = max(math.prod(source.shape[2:]) for source in sources if source is not None)
    return weights * pixels * batch_size


def _progress(name: str, config: TrainConfig, plain: dict, device: Device) -> tqdm:
    return tqdm(total=config.epochs, initial=min(plain["epoch"], config.epochs), desc=name, unit="epoch",
                disable=None if device.rank == 0 else True, leave=False)


def _stale(plain: dict, config: TrainConfig) -> bool:
    return plain["epoch"] - plain["best_epoch"] >= config.patience


def _same_everywhere(score: float, device: Device) -> float:
    """The first process's score, in every process. With different scores they would stop at different epochs."""
    if device.world == 1:
        return score
    box = [score]
    dist.broadcast_object_list(box, 0)
    return box[0]


def _validate(task: TrainingTask, device: Device) -> float:
    task.network.eval()
    with torch.no_grad(), device.autocast():
        score = task.validate(task.network)
    if not math.isfinite(score):
        raise GnimeError(f"training {task.name}: the validation score is not finite; try another seed or fp32 precision")
    return score


def _one_player_step(task: TrainingTask, device: Device, batch: list, share: float) -> Tensor:
    with device.autocast():
        loss = task.loss(task.network, batch)
    (loss * share).backward()
    return loss.detach()


def _epoch(task: TrainingTask, run: Resumable, gradients: Step, forecast: Forecast, interrupt: Interrupt) -> float:
    """Trains one epoch. Returns the mean training loss."""
    network, device, epoch, (optimiser,) = task.network, run.device, run.plain["epoch"], run.optimisers
    network.train()
    torch.manual_seed(derive_seed(task.seed, task.name, "dropout", epoch, device.rank))
    order = permutation(len(task.rows), task.seed, task.name, "order", epoch if task.shuffle else 0) + task.rows.start
    parts = order.split(task.config.batch_size)
    total, finite = torch.zeros((), device=device.torch), torch.tensor(len(parts), device=device.torch)
    shares = [_share(part, device) for part in parts]
    fetched = batches(task.sources, [rows for rows, _ in shares], device.torch)
    for step, (batch, (rows, share), part) in enumerate(zip(fetched, shares, parts, strict=True)):
        run.stop_if(interrupt)
        if len(rows):
            loss = gradients(batch, share)
            total += loss * share * len(part)
            finite = _note_finite(finite, loss, step)
        else:
            optimiser.zero_grad()
        average_gradients(network, device.world)
        optimiser.step()
        forecast.step()
    return run.finish(total, finite, epoch, len(parts)).item() / len(order)


@dataclass
class MinMaxTask:
    """The injector and its sparring inverter, to be trained together.

    Attributes:
        sources: explanations (n, K, S, S), predictions (n, classes) and images (n, C, T, T).
        rows: range of the defender's rows.
        inversion_weight: a in D - a V.
        checkpoint: called with the number of finished epochs, every `every` epochs.
        official: whether the clean explanation enters the inverter standardised, as in the authors' release.
    """

    injector: Injector
    inverter: nn.Module
    config: TrainConfig
    sources: Sequence[Rows]
    rows: range
    inversion_weight: float
    seed: int
    every: int
    checkpoint: Callable[[int], None]
    official: bool = False


def fit_minmax(task: MinMaxTask, file: StateFile, device: Device) -> dict:
    """Trains the injector against its inverter (docs/method.md "Training the injector").

    Batches are drawn without replacement, floor(n / batch) per epoch. Returns epochs, history ([distortion, inversion,
    inverter's loss] per epoch), seconds and threads.

    Raises:
        GnimeError: a loss or a weight is not finite.
        Stopped: Ctrl-C or SIGTERM, or the time of `system.stop_after` is up.
    """
    run = Resumable(file, [task.injector, task.inverter], task.config, device)
    step = Step(partial(_two_player_step, task, device), run.networks, device)
    plain, n = run.plain, len(task.rows)
    size = min(task.config.batch_size, n)
    left = task.config.epochs - plain["epoch"]
    forecast = Forecast("injector", left * (n // size), f"for {counted(left, 'epoch')}")
    threads = training_threads(_work(run.networks, task.sources, size), device.torch)
    with (threads as used, training_products(), Interrupt() as interrupt,
          _progress("injector", task.config, plain, device) as bar):
        while plain["epoch"] < task.config.epochs:
            epoch = plain["epoch"]
            order = permutation(n, task.seed, "injector", "order", epoch)[: n // size * size] + task.rows.start
            plain["history"].append(_minmax_epoch(task, run, step, order.split(size), forecast, interrupt))
            plain["epoch"] = epoch + 1
            bar.update()
            bar.set_postfix(distortion=f"{plain['history'][-1][0]:.4g}", inversion=f"{plain['history'][-1][1]:.4g}")
            if (epoch + 1) % task.every == 0 and device.rank == 0:
                task.checkpoint(epoch + 1)
            run.save(now=interrupt.asked)
            run.stop_if(interrupt)
    run.save(now=True)
    task.injector.eval()
    return {"epochs": plain["epoch"], "history": plain["history"], "seconds": round(plain["seconds"], 2), "threads": used}


def _two_player_step(task: MinMaxTask, device: Device, batch: list, share: float) -> Tensor:
    with device.autocast():
        losses = two_player_step(task.injector, task.inverter, batch, task.inversion_weight, task.official, share)
    return torch.stack([losses.distortion, losses.inversion, losses.inverter])


def _minmax_epoch(task: MinMaxTask, run: Resumable, gradients: Step, parts: Sequence[Tensor], forecast: Forecast,
                  interrupt: Interrupt) -> list[float]:
    """Trains one epoch. Returns the mean of each loss over the steps."""
    device, epoch = run.device, run.plain["epoch"]
    total, finite = torch.zeros(3, device=device.torch), torch.tensor(len(parts), device=device.torch)
    shares = [_share(part, device) for part in parts]
    fetched = batches(task.sources, [rows for rows, _ in shares], device.torch)
    for step, (batch, (rows, share)) in enumerate(zip(fetched, shares, strict=True)):
        run.stop_if(interrupt)
        if len(rows):
            losses = gradients(batch, share)
            total += losses * share
            finite = _note_finite(finite, losses.sum(), step)
        else:
            for optimiser in run.optimisers:
                optimiser.zero_grad()
        for network, optimiser in zip(run.networks, run.optimisers, strict=True):
            average_gradients(network, device.world)
            optimiser.step()
        forecast.step()
    return (run.finish(total, finite, epoch, len(parts)) / len(parts)).tolist()


def mean_squared_error(network: nn.Module, batch: list) -> Tensor:
    """The loss of inverters. batch: explanations (n, K, S, S) or None, predictions (n, classes), images (n, C, T, T)."""
    explanation, prediction, image = batch
    return (network(explanation, prediction).float() - image).square().mean()


def cross_entropy(network: nn.Module, batch: list) -> Tensor:
    """The loss of classifiers. batch: images (n, C, T, T) in [0, 1], labels (n,)."""
    images, labels = batch
    return nn.functional.cross_entropy(network(images).float(), labels)
