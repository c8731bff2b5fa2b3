"""Training goes on after any stop to the same result, bit for bit on a CPU."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gnime import resuming, training
from gnime.checkpoints import load_checkpoint, save_checkpoint
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


def networks(train):
    """Those of `classify` or `play`."""
    torch.manual_seed(0)
    if train is classify:
        return [accelerate(Classifier((1, 16), 5, (4, 8), 16, dropout=0.5))]
    return [accelerate(Injector(1, 16, 5, 64, mean=0.5, std=0.3)), accelerate(ExpMI(1, 16, 5, 1, 16, 64))]


def state(path):
    return StateFile(path, path.parent, {"kind": "test"})


def classify(path, arrays, epochs):
    (network,) = networks(classify)

    def validate(n):
        return (n(arrays[0][40:]).argmax(1) == arrays[1][40:]).float().mean().item()

    task = training.TrainingTask("victim", network, replace(CONFIG, epochs=epochs), [arrays[0].numpy(), arrays[1].numpy()],
                                 range(5, 40), training.cross_entropy, validate, higher=True, seed=3)
    return network, training.fit(task, state(path), CPU)


def play(path, arrays, epochs, weight=10.0, checkpoint=lambda epoch: None):
    injector, inverter = networks(play)
    sources = [arrays[0].numpy(), arrays[2].numpy(), arrays[0].flip(3).contiguous().numpy()]
    task = training.MinMaxTask(injector, inverter, replace(CONFIG, epochs=epochs), sources, range(40), weight, 3, 2, checkpoint)
    return injector, training.fit_minmax(task, state(path), CPU)


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


@pytest.mark.parametrize("train", [classify, play])
def test_a_state_of_more_epochs_is_no_result_of_fewer(train, arrays, tmp_path):
    path = tmp_path / "a.state.pt"
    train(path, arrays, 4)
    before = path.read_bytes()
    with pytest.raises(GnimeError) as refused:
        train(path, arrays, 2)
    assert str(refused.value) == (f"{path}: has 4 finished epochs, this run asks for 2; give --epochs 4 or more, or "
                                  f"another --root; to train it anew, move {path} away")
    assert path.read_bytes() == before
    assert train(path, arrays, 4)[1]["epochs"] == 4
    (tmp_path / "a.pt").touch()
    with pytest.raises(GnimeError, match=rf"move {tmp_path / 'a.pt'} and {path} away"):
        train(path, arrays, 2)


def test_checkpoints_every_so_many_epochs(arrays, tmp_path):
    seen = []
    play(tmp_path / "a.state.pt", arrays, 5, checkpoint=seen.append)
    assert seen == [2, 4]


def test_state_of_another_run_is_refused(arrays, tmp_path):
    path = tmp_path / "a.state.pt"
    classify(path, arrays, 1)
    with pytest.raises(GnimeError, match="not the state"):
        play(path, arrays, 1)


def forge(path, change):
    """Another content under a right checksum: `change` acts on the tensors and the plain data."""
    found = load_checkpoint(path)
    change(found.tensors, found.extra)
    save_checkpoint(path, found.tensors, found.spec, found.made_by, found.extra)


FORGED = {
    "no networks": lambda t, p: t.pop("networks"), "one network fewer": lambda t, p: t["networks"].pop(),
    "a number for a network": lambda t, p: t.update(networks=[1, 1]), "other names": lambda t, p: t["networks"][0].popitem(),
    "another shape": lambda t, p: t["networks"][0].update({name: torch.zeros(2, 2) for name in t["networks"][0]}),
    "not finite": lambda t, p: t["networks"][0][next(iter(t["networks"][0]))].fill_(torch.nan),
    "no optimiser": lambda t, p: t.update(optimisers=[{}, {}]), "a list": lambda t, p: t.update(optimisers=[[], []]),
    "a list of moments": lambda t, p: t["optimisers"][0].update(state=[1]),
    "moments of another shape": lambda t, p: t["optimisers"][0]["state"][0].update(exp_avg=torch.zeros(3)),
    "more parameters": lambda t, p: t["optimisers"][0]["state"].update({99: t["optimisers"][0]["state"][0]}),
    "other moments": lambda t, p: t["optimisers"][0]["state"][0].pop("step"),
    "negative squares": lambda t, p: t["optimisers"][0]["state"][0]["exp_avg_sq"].fill_(-1.0),
    "no step": lambda t, p: t["optimisers"][0]["state"][0]["step"].fill_(0.0),
    "moments that are not finite": lambda t, p: t["optimisers"][0]["state"][0]["exp_avg"].fill_(torch.inf),
    "no best": lambda t, p: t.pop("best"), "best is no dict": lambda t, p: t.update(best=[1]),
    "no epoch": lambda t, p: p.pop("epoch"), "epoch 0": lambda t, p: p.update(epoch=0),
    "a short history": lambda t, p: p.update(epoch=2), "text in the history": lambda t, p: p.update(history=["ab"]),
    "a deep history": lambda t, p: p.update(history=[[[1.0], 1.0]]), "a huge number": lambda t, p: p.update(seconds=10**400),
    "half an epoch": lambda t, p: p.update(epoch=1.0), "seconds in words": lambda t, p: p.update(seconds="many"),
}
ONLY_WITH_EARLY_STOPPING = {
    "an empty best": lambda t, p: t.update(best={}), "no best score": lambda t, p: p.update(best_score=None),
    "best of another shape": lambda t, p: t["best"].update({name: torch.zeros(2) for name in t["best"]}),
    "a best epoch to come": lambda t, p: p.update(best_epoch=2),
}


@pytest.mark.parametrize(("train", "cases"), [(classify, FORGED | ONLY_WITH_EARLY_STOPPING), (play, FORGED)])
def test_a_forged_state_is_refused_in_one_line(train, cases, arrays, tmp_path):
    path = tmp_path / "a.state.pt"
    train(path, arrays, 1)
    made, good = networks(train), path.read_bytes()
    resuming.Resumable(state(path), made, CONFIG, CPU)
    for name, change in cases.items():
        path.write_bytes(good)
        forge(path, change)
        forged = path.read_bytes()
        with pytest.raises(GnimeError, match=rf"^{path}: .*(move .* away|does not fit)") as raised:
            resuming.Resumable(state(path), made, CONFIG, CPU)
        assert "\n" not in str(raised.value) and path.read_bytes() == forged, name
    for content in (good[:-1], good[: len(good) // 2], b"", b"no state"):
        path.write_bytes(content)
        with pytest.raises(GnimeError, match=rf"^{path}: not a file of tensors .*move it away"):
            resuming.Resumable(state(path), made, CONFIG, CPU)


def test_a_state_decides_no_learning_rate(arrays, tmp_path):
    """Numbers of the optimiser are the run's own, whatever the file says."""
    whole, report = classify(tmp_path / "a.state.pt", arrays, 2)
    classify(tmp_path / "b.state.pt", arrays, 1)
    forge(tmp_path / "b.state.pt", lambda t, p: t["optimisers"][0]["param_groups"][0].update(lr=1e9, betas=(0, 0), params=[]))
    parts, resumed = classify(tmp_path / "b.state.pt", arrays, 2)
    assert resumed["history"] == report["history"]
    assert all(parts.state_dict()[name].equal(value) for name, value in whole.state_dict().items())


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
