"""Training goes on after any stop to the same result, bit for bit on a CPU."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gnime import training
from gnime.config import TrainConfig, target
from gnime.device import Device
from gnime.errors import GnimeError, Stopped
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector
from gnime.models.inversion import ExpMI
from gnime.ops import accelerate
from gnime.resuming import StateFile
from gnime.system import permutation

CPU = Device(SimpleNamespace(gpu=-1, precision=None, deterministic=False))
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=1e-3)


@pytest.fixture
def arrays():
    g = torch.Generator().manual_seed(1)
    return torch.rand(50, 1, 16, 16, generator=g), torch.randint(0, 5, (50,), generator=g), torch.randn(50, 5, generator=g)


def classify(path, arrays, epochs):
    torch.manual_seed(0)
    network = accelerate(Classifier((1, 16), 5, (4, 8), 16, dropout=0.5))

    def validate(n):
        return (n(arrays[0][40:]).argmax(1) == arrays[1][40:]).float().mean().item()

    task = training.TrainingTask("victim", network, replace(CONFIG, epochs=epochs), [arrays[0].numpy(), arrays[1].numpy()],
                                 range(5, 40), training.cross_entropy, validate, higher=True, seed=3)
    return network, training.fit(task, StateFile(path, path.parent, {"kind": "test"}), CPU)


def play(path, arrays, epochs, weight=10.0, checkpoint=lambda epoch: None):
    torch.manual_seed(0)
    injector, inverter = accelerate(Injector(1, 16, 5, 64, mean=0.5, std=0.3)), accelerate(ExpMI(1, 16, 5, 1, 16, 64))
    sources = [arrays[0].numpy(), arrays[2].numpy(), arrays[0].flip(3).contiguous().numpy()]
    task = training.MinMaxTask(injector, inverter, replace(CONFIG, epochs=epochs), sources, range(40), weight, 3, 2, checkpoint)
    return injector, training.fit_minmax(task, StateFile(path, path.parent, {"kind": "test"}), CPU)


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


def test_state_of_another_run_is_refused(arrays, tmp_path):
    path = tmp_path / "a.state.pt"
    classify(path, arrays, 1)
    with pytest.raises(GnimeError, match="not the state"):
        play(path, arrays, 1)


def test_orders_follow_from_the_seed_alone():
    assert torch.equal(permutation(100, 1, "a", 7), permutation(100, 1, "a", 7))
    assert not torch.equal(permutation(100, 1, "a", 7), permutation(100, 1, "a", 8))
    assert not torch.equal(permutation(100, 2, "a", 7), permutation(100, 1, "a", 7))


def test_the_presets_are_the_papers():
    mnist, celeba = target("mnist"), target("celeba")
    assert (mnist.classifier.epochs, mnist.classifier.batch_size, mnist.classifier.betas) == (100, 256, (0.5, 0.999))
    assert (mnist.inverter.epochs, mnist.inverter.batch_size, mnist.inverter.patience) == (300, 128, 10)
    assert (mnist.injector.epochs, mnist.injector.batch_size, mnist.inversion_weight, mnist.width) == (500, 1024, 100, 2048)
    sizes = celeba.classifier.batch_size, celeba.injector.batch_size
    assert (*sizes, celeba.inversion_weight, celeba.dropout) == (128, 128, 500, 0.5)
