"""The software on a CUDA device, or an emulated one, against the same on a CPU."""

import contextlib
import copy
import json
from collections import Counter
from types import SimpleNamespace

import emulated
import pytest
import torch

from gnime import batches, graphs
from gnime.config import target
from gnime.device import full_fp32
from gnime.networks import build, classifier_spec
from gnime.registry import EXPLAINERS

# wide enough for a CPU's own formulations, in 32 bits whatever the device's default
FLAGS = "--xai", "gradcam", "--width", 256, "--precision", "fp32"
SETTINGS = ("predmi", "expmi", "ond", "gnime", "negative", "permutation", "class-mean", "cond-mean", "prototypes-2",
            "cond-prototypes-2", "mix-0.1")


pytestmark = pytest.mark.usefixtures("no_pictures")  # they are drawn from arrays on the CPU


def cuda():
    """The machine's, or an emulated one."""
    return contextlib.nullcontext() if torch.cuda.is_available() else emulated.cuda()


def call(scripts, root, gpu, script, *flags):
    code, out, errors = scripts(script, root, *FLAGS, "--gpu", gpu, *flags)
    assert (code, errors) == (0, [])
    return out


def results(root):
    return json.loads((root / "figures/digits_gradcam/results.json").read_text())


def agree(found, expected):
    for setting, numbers in found.items():
        for metric in {"mse", "ssim", "deepsim", "distortion"} & numbers.keys():
            # OND scales a gradient to a given length, however small it is, and ten times over: rounding grows
            relative = 1e-2 if setting == "ond" else 1e-3
            assert numbers[metric] == pytest.approx(expected[setting][metric], rel=relative, abs=1e-4), (setting, metric)


def test_the_scripts_find_on_cuda_what_they_find_on_a_cpu(scripts, tmp_path, monkeypatch):
    for place, gpu in (("cpu", -1), ("cuda", 0)):
        with cuda() if place == "cuda" else contextlib.nullcontext():
            for script, *flags in (("prepare",), ("train",), ("eval", "--settings", *SETTINGS)):
                call(scripts, tmp_path / place, gpu, script, *flags)
    found = results(tmp_path / "cuda")
    assert "CPU" not in found["hardware"]["device"]
    expected = results(tmp_path / "cpu")["settings"]
    agree(found["settings"], expected)

    # from the start again: no array stays on the device, trainings stop after their first epoch and go on
    monkeypatch.setattr(batches, "CACHED_SHARE", 0)
    streamed = tmp_path / "streamed"
    with cuda():
        call(scripts, streamed, 0, "prepare")
        call(scripts, streamed, 0, "train", "--epochs", 1)
        assert "goes on from epoch 1" in call(scripts, streamed, 0, "train")
        call(scripts, streamed, 0, "eval", "--settings", "expmi", "--epochs", 1)
        assert "goes on from epoch 1" in call(scripts, streamed, 0, "eval", "--settings", "predmi", "expmi", "gnime")
    agree(results(streamed)["settings"], expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only the emulation counts")
@pytest.mark.parametrize("resident", [batches.CACHED_SHARE, 0], ids=["resident", "streamed"])
def test_no_step_of_a_training_waits_for_the_device(scripts, tmp_path, monkeypatch, resident):
    """What waits, waits once an epoch or an artifact, however many steps there are."""
    monkeypatch.setattr(batches, "CACHED_SHARE", resident)
    counts = {}
    for size in (24, 6):
        with emulated.cuda():
            for script, *flags in (("prepare",), ("train",), ("eval", "--settings", "predmi", "expmi")):
                emulated.waits.clear()
                call(scripts, tmp_path / str(size), 0, script, "--batch-size", size, *flags)
                counts.setdefault(script, []).append(Counter(emulated.waits))
    for few, many in counts.values():
        assert few.total() and few == many


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
def test_losses_and_gradients_of_a_recorded_step(monkeypatch, capsys, recorded):
    """Replayed for batches of the first one's size, launched anew for others; and where a graph cannot be made, warned of."""
    replays = []

    def refused(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def counted(work, parameters):
        replay, result = capture(work, parameters)
        return lambda: (replays.append(1), replay()), result

    with cuda():
        capture = graphs.capture
        monkeypatch.setattr(graphs, "capture", counted if recorded else refused)
        device = SimpleNamespace(torch=torch.device("cuda:0"), world=1)
        torch.manual_seed(0)
        plain = torch.nn.Linear(4, 2)
        network = copy.deepcopy(plain).to("cuda:0")
        optimiser = torch.optim.SGD(network.parameters(), 0.5)

        def work_of(network):
            def work(batch, share):
                loss = (network(batch[0]) - batch[2]).square().mean()
                (loss * share).backward()
                return loss.detach()
            return work

        step = graphs.Step(work_of(network), [network], device)
        for size in (5, 5, 3, 5):  # weights change in between
            batch = [torch.rand(size, 4), None, torch.rand(size, 2)]
            plain.load_state_dict({name: value.cpu() for name, value in network.state_dict().items()})
            plain.zero_grad()
            expected = work_of(plain)(batch, 1.0)
            found = step([None if value is None else value.to("cuda:0") for value in batch], 1.0)
            torch.testing.assert_close(found.cpu(), expected)
            for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours.grad.cpu(), theirs.grad)
            optimiser.step()
    assert len(replays) == (3 if recorded else 0)
    warning = capsys.readouterr().err
    assert warning.count("without a CUDA graph") == (0 if recorded else 1) and "more" not in warning


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explanations_are_those_of_a_cpu(name):
    explain, images = EXPLAINERS[name].load(), torch.rand(5, 1, 16, 16)
    victim = build(classifier_spec(target("digits"), 10)).eval()
    expected = explain(victim, images)
    with cuda(), full_fp32():
        found = explain(victim.to("cuda:0"), images.to("cuda:0"))
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_the_emulation_lets_no_tensors_of_different_devices_meet():
    with emulated.cuda():
        here, there = torch.ones(3), torch.ones(3, device="cuda:0")
        assert (there + 1).device.type == "cuda"
        for meet in (lambda: here + there, lambda: there.add_(here), lambda: torch.cat([there, here]), there.numpy,
                     lambda: here.sum().add_(there.sum()), lambda: here[there.long()], lambda: there[here.long()],
                     lambda: torch.rand(3, device="cuda:0", generator=torch.Generator())):
            with pytest.raises((RuntimeError, TypeError)):
                meet()
        here.copy_(there.sum())
        assert type(here) is torch.Tensor and here.tolist() == [3, 3, 3]
