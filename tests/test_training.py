"""The training loops against loops written out plainly; stops of every kind; two processes against one."""

import copy
import math
import os
import platform
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Killed
from torch import nn
from works import as_rank, free_port

from gnime import device, resuming, system, training
from gnime.checkpoints import load_checkpoint
from gnime.config import TrainConfig
from gnime.device import Device
from gnime.errors import GnimeError, Stopped
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector, two_player_step
from gnime.models.inversion import ExpMI
from gnime.ops import accelerate
from gnime.parallel import run_side_by_side
from gnime.resuming import StateFile
from gnime.system import permutation

N = 44  # rows; 5 to 41 are trained on: 36, of which a batch of 16 leaves 4 over
ROWS = range(5, 41)
CONFIG = TrainConfig(epochs=3, batch_size=16, lr=2e-3, betas=(0.8, 0.99), eps=1e-6)


def arrays():
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (N, 1, 16, 16), dtype=np.uint8), "label": rng.integers(0, 5, N),
            "explanation": rng.random((N, 1, 16, 16), np.float32), "prediction": rng.normal(size=(N, 5)).astype(np.float32)}


def cpu():
    return Device(SimpleNamespace(gpu=-1, precision=None, deterministic=False))


def classifier(path, epochs=3, patience=10, validate=None, loss=training.cross_entropy, dropout=0.0, higher=True,
               lr=CONFIG.lr, **changes):
    """A task of the kind that `prepare` runs, and its outcome."""
    torch.manual_seed(0)
    network, data = accelerate(Classifier((1, 16), 5, (4, 8), 16, dropout)), arrays()
    config = TrainConfig(epochs, CONFIG.batch_size, lr, CONFIG.betas, CONFIG.eps, patience)
    task = training.TrainingTask("victim", network, config, [data["image"], data["label"]], ROWS, loss,
                                 validate or (lambda n: -sum(p.abs().sum().item() for p in n.parameters())), higher, 3,
                                 **changes)
    return network, lambda: training.fit(task, StateFile(path, path.parent, {"kind": "test"}), cpu())


def game(path, epochs=3, official=False, weight=5.0, rows=ROWS):
    torch.manual_seed(0)
    injector, inverter = accelerate(Injector(1, 16, 5, 64, 0.5, 0.3)), accelerate(ExpMI(1, 16, 5, 1, 16, 64))
    data = arrays()
    config = TrainConfig(epochs, CONFIG.batch_size, CONFIG.lr, CONFIG.betas, CONFIG.eps)
    sources = [data[name] for name in ("explanation", "prediction", "image")]
    task = training.MinMaxTask(injector, inverter, config, sources, rows, weight, 3, 2, lambda epoch: None, official)
    return injector, inverter, lambda: training.fit_minmax(task, StateFile(path, path.parent, {"kind": "test"}), cpu())


def adam(network):
    return torch.optim.Adam(network.parameters(), CONFIG.lr, CONFIG.betas, CONFIG.eps, foreach=False, fused=False)


def same(network, other, atol=0.0):
    for (name, value), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, theirs, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def epoch_rows(name, epoch):
    return (permutation(len(ROWS), 3, name, "order", epoch) + ROWS.start).tolist()


# --- against plain loops ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_is_a_plain_loop(tmp_path, shuffle):
    """Every row once an epoch, the last batch smaller, Adam with the stage's numbers; validated after each epoch."""
    seen = []

    def validate(network):
        assert not network.training and not torch.is_grad_enabled()
        seen.append(copy.deepcopy(network.state_dict()))
        return float(len(seen))

    network, fit = classifier(tmp_path / "a.state.pt", validate=validate, shuffle=shuffle)
    plain, data = copy.deepcopy(network), arrays()
    report = fit()
    optimiser, orders, losses = adam(plain), [], []
    for epoch in range(3):
        rows = epoch_rows("victim", epoch if shuffle else 0)
        orders.append(tuple(rows))
        total = 0.0
        for start in range(0, 36, 16):
            part = rows[start : start + 16]
            logits = plain(torch.from_numpy(data["image"][part]).float() / 255)
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(data["label"][part]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(part)
        losses.append(total / 36)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(seen[epoch][name], value, atol=2e-6, rtol=0)
    assert all(sorted(order) == list(ROWS) for order in orders) and len(set(orders)) == (3 if shuffle else 1)
    assert [loss for loss, _ in report["history"]] == pytest.approx(losses, rel=1e-5)
    assert [score for _, score in report["history"]] == [1.0, 2.0, 3.0]
    assert not network.training


@pytest.mark.parametrize("official", [False, True])
def test_fit_minmax_is_a_plain_loop(tmp_path, official):
    """floor(36 / 16) = 2 batches an epoch, drawn without replacement; both players step after the same forward pass."""
    injector, inverter, play = game(tmp_path / "a.state.pt", official=official)
    plain, data = [copy.deepcopy(injector), copy.deepcopy(inverter)], arrays()
    report = play()
    optimisers, history = [adam(network) for network in plain], []
    for epoch in range(3):
        rows, losses = epoch_rows("injector", epoch), []
        for part in (rows[:16], rows[16:32]):
            e, y = (torch.from_numpy(data[name][part]) for name in ("explanation", "prediction"))
            for network in plain:
                network.zero_grad()
            image = torch.from_numpy(data["image"][part]).float() / 255
            found = two_player_step(*plain, (e, y, image), 5.0, official)
            losses.append([found.distortion.item(), found.inversion.item(), found.inverter.item()])
            for optimiser in optimisers:
                optimiser.step()
        history.append(np.mean(losses, axis=0).tolist())
    same(injector, plain[0], atol=1e-5)
    same(inverter, plain[1], atol=1e-5)
    assert np.asarray(report["history"]) == pytest.approx(np.asarray(history), rel=1e-4)


@pytest.mark.parametrize(("spare", "expected"), [(0, 1), (-1, 3)])
def test_small_steps_have_one_thread(spare, expected, tmp_path, monkeypatch):
    """Counted by hand: weights of all networks that are trained, times 16 x 16 pixels, times 16 images of a batch."""
    before, seen = torch.get_num_threads(), []
    network, fit = classifier(tmp_path / "a.state.pt", validate=lambda _: seen.append(torch.get_num_threads()) or 1.0)
    injector, inverter, play = game(tmp_path / "b.state.pt")
    monkeypatch.setattr(training, "two_player_step", lambda *a: seen.append(torch.get_num_threads()) or two_player_step(*a))
    torch.set_num_threads(3)
    try:
        for train, networks in ((fit, [network]), (play, [injector.network, inverter])):
            weights = sum(math.prod(weight.shape) for one in networks for weight in one.parameters())
            monkeypatch.setattr(system, "SMALL", 16 * 16 * 16 * weights + spare)
            seen.clear()
            assert train()["threads"] == expected
            assert set(seen) == {expected} and torch.get_num_threads() == 3
        _, fit = classifier(tmp_path / "c.state.pt", validate=lambda _: math.nan)
        with pytest.raises(GnimeError):
            fit()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_dropout_is_drawn_anew_every_epoch(tmp_path):
    """Nothing is learnt at a learning rate of 0, in one fixed order: only dropout can change the loss."""
    _, fit = classifier(tmp_path / "a.state.pt", dropout=0.5, lr=0.0, shuffle=False)
    assert len({round(loss, 6) for loss, _ in fit()["history"]}) == 3
    _, fit = classifier(tmp_path / "b.state.pt", lr=0.0, shuffle=False)
    assert len({round(loss, 6) for loss, _ in fit()["history"]}) == 1


def test_losses_by_hand():
    class Constant(nn.Module):
        def forward(self, *inputs):
            return torch.tensor([[0.0, 0.0], [0.0, 0.0]])

    image = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert training.mean_squared_error(Constant(), [None, None, image]).item() == pytest.approx(1.5 / 4)
    loss = training.cross_entropy(Constant(), [image, torch.tensor([0, 1])])
    assert loss.item() == pytest.approx(np.log(2))


# --- stops -----------------------------------------------------------------------------------------------------------


def killer(monkeypatch, at):
    """Kills the process, so to say, in the middle of its `at`-th step of any training."""
    steps = iter(range(1, 1000))
    note = training._note_finite

    def counted(*arguments):
        if next(steps) == at:
            raise Killed
        return note(*arguments)

    monkeypatch.setattr(training, "_note_finite", counted)


def test_killed_in_an_epoch_it_goes_on_from_the_last_saved_one(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    for make, steps in ((lambda p: classifier(p, dropout=0.5), 3), (game, 2)):
        whole, *_, train = make(tmp_path / f"whole{steps}.state.pt")
        expected = train()
        with monkeypatch.context() as patch:
            killer(patch, at=2 * steps + 1)  # the third epoch's first step
            *_, train = make(tmp_path / f"parts{steps}.state.pt")
            with pytest.raises(Killed):
                train()
        assert load_checkpoint(tmp_path / f"parts{steps}.state.pt").extra["epoch"] == 2
        network, *_, train = make(tmp_path / f"parts{steps}.state.pt")
        assert train()["history"] == expected["history"]
        same(network, whole)
        states = [load_checkpoint(tmp_path / f"{name}{steps}.state.pt") for name in ("whole", "parts")]
        assert states[0].digest == states[1].digest, "networks, optimisers and best weights, bit for bit"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_is_obeyed_when_the_epoch_can_be_saved(tmp_path, number):
    steps = iter(range(100))

    def loss(network, batch):
        if next(steps) == 4:  # second epoch, second of three steps
            os.kill(os.getpid(), number)
        return training.cross_entropy(network, batch)

    before = signal.getsignal(number)
    path = tmp_path / "victim.state.pt"
    _, fit = classifier(path, loss=loss)
    with pytest.raises(Stopped, match="after epoch 2"):
        fit()
    assert signal.getsignal(number) is before
    assert next(steps) == 6, "the epoch was ended, no step more"
    assert load_checkpoint(path).extra["epoch"] == 2


@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 2, [signal.SIGTERM] * 2, [signal.SIGTERM, signal.SIGINT]])
def test_a_second_signal_stops_at_once(tmp_path, numbers):
    def loss(network, batch):
        for number in numbers:
            os.kill(os.getpid(), number)
        return training.cross_entropy(network, batch)

    before = [signal.getsignal(number) for number in numbers]
    _, fit = classifier(tmp_path / "victim.state.pt", loss=loss)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert [signal.getsignal(number) for number in numbers] == before
    assert not list(tmp_path.iterdir())


def test_early_stopping_where_lower_is_better(tmp_path):
    """As for inverters; equal is no better."""
    scores, states = [0.5, 0.2, 0.2, 0.4, 0.1], []

    def validate(network):
        states.append(copy.deepcopy(network.state_dict()))
        return scores[len(states) - 1]

    network, fit = classifier(tmp_path / "a.state.pt", 9, patience=2, validate=validate, higher=False)
    report = fit()
    assert (report["epochs"], report["best_epoch"], report["score"], report["early"]) == (4, 2, 0.2, True)
    assert all(value.equal(states[1][name]) for name, value in network.state_dict().items())
    assert not all(value.equal(states[3][name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("when", [(2, 2, "nothing was saved yet"), (8, 3, "keeps epoch 2")])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, monkeypatch, when):
    at, epoch_of, kept = when
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    steps = iter(range(1, 100))

    def loss(network, batch):
        value = training.cross_entropy(network, batch)
        return value * float("inf") if next(steps) == at else value

    path = tmp_path / "victim.state.pt"
    _, fit = classifier(path, loss=loss)
    with pytest.raises(GnimeError, match=rf"training victim: .*epoch {(at - 1) // 3 + 1}, step 2 of 3; .*{kept}"):
        fit()
    assert path.exists() == (at > 3)
    if path.exists():
        state = load_checkpoint(path)
        assert state.extra["epoch"] == epoch_of - 1
        assert all(value.isfinite().all() for value in state.tensors["networks"][0].values())


@pytest.mark.parametrize(("rows", "complaint"), [(ROWS, "loss is not finite at epoch 2, step 2 of 2"),
                                                 (range(16), "weights are not finite at epoch 2, step 1 of 1")])
def test_what_breaks_the_injector_is_never_saved(tmp_path, rows, complaint):
    """An infinite weight: the first step's losses are finite still, its gradient is not."""
    path = tmp_path / "injector.state.pt"
    game(path, epochs=1, rows=rows)[2]()
    before = path.read_bytes()
    with pytest.raises(GnimeError, match=rf"training injector: the {complaint}; .* keeps epoch 1"):
        game(path, weight=float("inf"), rows=rows)[2]()
    assert path.read_bytes() == before


def test_a_score_that_is_not_finite_is_an_error(tmp_path):
    _, fit = classifier(tmp_path / "a.state.pt", validate=lambda network: float("nan"))
    with pytest.raises(GnimeError, match="victim: the validation score is not finite"):
        fit()
    assert not list(tmp_path.iterdir())


# --- two processes ---------------------------------------------------------------------------------------------------


def both(folder):
    """Injector and classifier as one process or as one of several (RANK, WORLD_SIZE) trains them."""
    injector, inverter, play = game(folder / "injector.state.pt")
    played = play()
    network, fit = classifier(folder / "victim.state.pt", validate=lambda n: n.fc1.weight.sum().item())
    return [injector, inverter, network], [played["history"], fit()["history"]]


def save_both(path):
    trained, seen = both(path.parent)
    torch.save({"networks": [network.state_dict() for network in trained], "histories": seen}, path)


def test_two_processes_give_the_result_of_one(tmp_path):
    """gloo on a CPU: each takes its part of the same global batches (16 = 8 + 8; the last of an epoch 4 = 2 + 2)."""
    port = free_port()
    run_side_by_side([partial(as_rank, rank, port, partial(save_both, tmp_path / f"{rank}.pt")) for rank in range(2)], 2)
    (tmp_path / "one").mkdir()
    networks, histories = both(tmp_path / "one")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for network, one, other in zip(networks, ranks[0]["networks"], ranks[1]["networks"], strict=True):
        for name, value in network.state_dict().items():
            assert one[name].equal(other[name]), "the two stay together"
            torch.testing.assert_close(one[name], value, atol=2e-5, rtol=0)
    for history, other in zip(histories, ranks[0]["histories"], strict=True):
        np.testing.assert_allclose(history, other, rtol=1e-4, atol=1e-6)
    assert {path.name for path in tmp_path.glob("*.state.pt")} == {"injector.state.pt", "victim.state.pt"}


def test_a_process_without_rows_of_a_batch_takes_part_in_the_sum(monkeypatch):
    monkeypatch.setattr(device.dist, "all_reduce", lambda flat: flat.add_(1))  # what another process sends
    network = torch.nn.Linear(2, 3)
    device.average_gradients(network, world=2)
    assert all((parameter.grad == 1).all() for parameter in network.parameters())


FREED = """
import re
from pathlib import Path
from gnime.system import release_freed_memory, retain_freed_memory
import torch

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # MiB

retain_freed_memory()
before = resident()
torch.ones(25, 2**20)
kept = resident()
release_freed_memory()
print(before, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another memory allocator")
def test_freed_memory_stays_and_goes_back():
    run = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parent.parent)
    before, kept, after = map(float, run.stdout.split())
    assert kept - before > 90 and after - before < 50  # of 100
