"""Training goes on after any stop to the same result, bit for bit on a CPU."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from gnime import training
from gnime.config import Stage, target
from gnime.errors import GnimeError, Stopped
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector
from gnime.models.inversion import ExpMI
from gnime.ops import accelerate
from gnime.runtime import Device

CPU = Device(SimpleNamespace(gpu=-1, precision=None, deterministic=False))
STAGE = Stage(epochs=4, batch_size=16, lr=1e-3)


@pytest.fixture
def arrays():
    g = torch.Generator().manual_seed(1)
    return torch.rand(50, 1, 16, 16, generator=g), torch.randint(0, 5, (50,), generator=g), torch.randn(50, 5, generator=g)


def classify(path, arrays, epochs, stage=STAGE, score=None, **changes):
    torch.manual_seed(0)
    network = accelerate(Classifier((1, 16), 5, (4, 8), 16, dropout=0.5))
    scores = iter(score or [])

    def validate(n):
        return next(scores) if score else (n(arrays[0][40:]).argmax(1) == arrays[1][40:]).float().mean().item()

    stage = Stage(epochs, stage.batch_size, stage.lr, patience=stage.patience)
    task = training.Task("victim", network, stage, [arrays[0].numpy(), arrays[1].numpy()], range(5, 40),
                         training.cross_entropy, validate, higher=True, seed=3, **changes)
    report = training.fit(task, path, path.parent, {"kind": "test"}, CPU)
    return network, report


def play(path, arrays, epochs, weight=10.0, checkpoint=lambda epoch: None):
    torch.manual_seed(0)
    injector, inverter = accelerate(Injector(1, 16, 5, 64, mean=0.5, std=0.3)), accelerate(ExpMI(1, 16, 5, 1, 16, 64))
    sources = [arrays[0].numpy(), arrays[2].numpy(), arrays[0].flip(3).contiguous().numpy()]
    stage = Stage(epochs, STAGE.batch_size, STAGE.lr)
    game = training.Game(injector, inverter, stage, sources, range(40), weight, seed=3)
    report = training.play(game, path, path.parent, {"kind": "test"}, CPU, 2, checkpoint)
    return injector, report


@pytest.mark.parametrize("train", [classify, play])
def test_k_and_k_epochs_are_2k(train, arrays, tmp_path):
    whole, report = train(tmp_path / "a.state.pt", arrays, 4)
    train(tmp_path / "b.state.pt", arrays, 2)
    parts, resumed = train(tmp_path / "b.state.pt", arrays, 4)
    assert resumed["history"] == report["history"] and len(report["history"]) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


@pytest.mark.parametrize("train", [classify, play])
def test_ctrl_c_is_resumed_to_the_same_result(train, arrays, tmp_path, monkeypatch):
    whole, report = train(tmp_path / "a.state.pt", arrays, 5)
    steps, note = iter(range(100)), training._note_finite

    def pressed(*arguments):
        if next(steps) == 4:  # in the second or third epoch
            os.kill(os.getpid(), signal.SIGINT)
        return note(*arguments)

    monkeypatch.setattr(training, "_note_finite", pressed)
    with pytest.raises(Stopped, match="goes on from"):
        train(tmp_path / "b.state.pt", arrays, 5)
    parts, resumed = train(tmp_path / "b.state.pt", arrays, 5)
    assert resumed["history"] == report["history"]
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_checkpoints_every_so_many_epochs(arrays, tmp_path):
    seen = []
    play(tmp_path / "a.state.pt", arrays, 5, checkpoint=seen.append)
    assert seen == [2, 4]


def test_early_stopping_keeps_the_best_weights(arrays, tmp_path):
    stage = Stage(epochs=9, batch_size=16, lr=1e-2, patience=2)
    best, _ = classify(tmp_path / "a.state.pt", arrays, 2, stage, score=[0.1, 0.9])
    network, report = classify(tmp_path / "b.state.pt", arrays, 9, stage, score=[0.1, 0.9, 0.9, 0.2, 0.3, 0.4])
    assert (report["epochs"], report["best_epoch"], report["early"]) == (4, 2, True)
    for name, value in best.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(arrays, tmp_path, monkeypatch):
    path = tmp_path / "victim.state.pt"
    classify(path, arrays, 1)
    before = path.read_bytes()
    broken = [arrays[0].clone(), *arrays[1:]]
    broken[0][5:40] = float("nan")
    with pytest.raises(GnimeError, match=r"not finite at epoch 2, step 1 of 3; .* keeps epoch 1"):
        classify(path, broken, 2)
    assert path.read_bytes() == before


def test_state_of_another_run_is_refused(arrays, tmp_path):
    path = tmp_path / "a.state.pt"
    classify(path, arrays, 1)
    with pytest.raises(GnimeError, match="not the state"):
        play(path, arrays, 1)


def test_orders_follow_from_the_seed_alone():
    from gnime.runtime import permutation

    assert torch.equal(permutation(100, 1, "a", 7), permutation(100, 1, "a", 7))
    assert not torch.equal(permutation(100, 1, "a", 7), permutation(100, 1, "a", 8))
    assert not torch.equal(permutation(100, 2, "a", 7), permutation(100, 1, "a", 7))


def test_the_presets_are_the_papers():
    mnist, celeba = target("mnist"), target("celeba")
    assert (mnist.classifier.epochs, mnist.classifier.batch_size, mnist.classifier.betas) == (100, 256, (0.5, 0.999))
    assert (mnist.inverter.epochs, mnist.inverter.batch_size, mnist.inverter.patience) == (300, 128, 10)
    assert (mnist.injector.epochs, mnist.injector.batch_size, mnist.weight, mnist.width) == (500, 1024, 100, 2048)
    assert (celeba.classifier.batch_size, celeba.injector.batch_size, celeba.weight, celeba.dropout) == (128, 128, 500, 0.5)
