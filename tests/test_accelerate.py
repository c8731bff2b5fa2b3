"""`accelerate` and `plain` of gnime.ops: the same outputs, gradients and state-dict keys, whatever the network."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.plain import plain_two_player_step
from gnime.cli import resolve
from gnime.config import TrainConfig, target
from gnime.experiment import Experiment
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector, two_player_step
from gnime.models.inversion import CentredExpMI, DenseExpMI, ExpMI, PredMI
from gnime.networks import NetworkTask, build, classifier_spec, injector_spec, inverter_spec, rebuild
from gnime.ops import accelerate, classifier, inverters, plain

# wide enough, and with enough images, for Winograd's convolution; the last layers are thin
NETWORKS = {  # name: (network, shapes of its inputs)
    "predmi": (lambda: PredMI(10, 3, 32, 256), [(5, 1, 32, 32), (5, 10)]),
    "expmi": (lambda: ExpMI(1, 32, 10, 1, 32, 1024), [(16, 1, 32, 32), (16, 10)]),
    "expmi 16x16": (lambda: ExpMI(1, 16, 10, 3, 32, 512), [(9, 1, 16, 16), (9, 10)]),
    "expmi 3x32x32": (lambda: ExpMI(3, 32, 10, 3, 32, 256), [(5, 3, 32, 32), (5, 10)]),
    "dense": (lambda: DenseExpMI(2, 16, 5, 1, 16, 256), [(5, 2, 16, 16), (5, 5)]),
    "centred": (lambda: CentredExpMI(1, 16, 5, 1, 16, 256, mean=0.3), [(5, 1, 16, 16), (5, 5)]),
    "injector": (lambda: Injector(1, 16, 5, 256, mean=0.5, std=0.3), [(5, 1, 16, 16), (5, 5)]),
    "classifier": (lambda: Classifier((1, 16), 7, (64, 128), 9), [(16, 1, 16, 16)]),
    "classifier with dropout": (lambda: Classifier((3, 16), 7, (16, 24), 9, dropout=0.5, features="hidden"), [(9, 3, 16, 16)]),
}
SPECS = [classifier_spec(target("digits"), 10), injector_spec(target("digits"), (1, 16), 10, 0.25, 0.5),
         *(inverter_spec(kind, target("digits"), (1, 16), 10) for kind in ("predmi", "expmi", "dense", "centred"))]
every = pytest.mark.parametrize("name", NETWORKS)


def built(name, dtype=torch.float32, layout=torch.channels_last):
    """The network with biases that are not zero, and inputs."""
    make, shapes = NETWORKS[name]
    network = make()
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)  # some pooling windows of the classifiers are below zero throughout
    inputs = [torch.rand(shape, dtype=dtype) if len(shape) == 4 else torch.randn(shape, dtype=dtype) for shape in shapes]
    return network.to(dtype).to(memory_format=layout), inputs


def measured(network, inputs):
    """The output and the gradients of all parameters and inputs, for one cotangent and one seed of dropout."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(1)
    output = network(*inputs)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    wanted = [*network.parameters(), *inputs]
    return [output, *torch.autograd.grad(output, wanted, cotangent, allow_unused=True)]


def close(found, expected, relative):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            assert (one - other).abs().max() <= relative * other.abs().max()


@every
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
def test_accelerated_is_plain_in_float64(name, training, layout):
    network, inputs = built(name, torch.double, layout)
    expected = measured(network.train(training), inputs)
    found = measured(accelerate(network), inputs)
    rounded = name == "injector"  # its outputs are float32
    close(found[:1], expected[:1], 1e-7 if rounded else 1e-12)
    close(found[1:], expected[1:], 1e-12)
    with torch.no_grad():
        torch.manual_seed(1)
        close([network(*inputs)], expected[:1], 1e-7 if rounded else 1e-12)


@every
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_accelerated_is_plain_in_float32(name, training):
    network, inputs = built(name)
    exact = measured(copy.deepcopy(network).double().train(training), [x.double() for x in inputs])
    found = measured(accelerate(network.train(training)), inputs)
    close(found, exact, 2e-5)


@every
def test_state_dicts_copies_and_the_way_back(name):
    network, inputs = built(name)
    keys, types = list(network.state_dict()), [type(module) for module in network.modules()]
    expected = measured(network.eval(), inputs)
    original = type(network)
    assert accelerate(network) is network
    fast = [type(module) for module in network.modules()]
    assert fast != types
    assert isinstance(network, original)
    assert list(network.state_dict()) == keys
    accelerate(network)
    assert [type(module) for module in network.modules()] == fast, "a second call changes nothing"
    found = measured(network, inputs)
    duplicate = copy.deepcopy(network)
    assert all(one is None or one.equal(other) for one, other in zip(measured(duplicate, inputs), found, strict=True))
    built(name)[0].load_state_dict(network.state_dict())
    assert plain(network) is network
    assert [type(module) for module in network.modules()] == types
    assert all(one is None or one.equal(other) for one, other in zip(measured(network, inputs), expected, strict=True))
    assert [type(module) for module in duplicate.modules()] == fast, "a copy is independent"
    if original is Classifier:
        torch.testing.assert_close(duplicate.features(inputs[0]), network.features(inputs[0]))


@every
def test_what_is_accelerated_uses_the_fast_formulations_and_what_is_plain_does_not(name, monkeypatch):
    for module in (inverters, classifier):
        for function in ("conv", "upsample_conv", "spread_conv", "relu_and_pool"):
            monkeypatch.setattr(module, function, None, raising=False)
    network, inputs = built(name)
    measured(network, inputs)
    with pytest.raises(TypeError, match="not callable"):
        accelerate(network)(*inputs)


def test_the_plain_step_is_the_shared_step():
    """What benchmarks measure against computes the same gradients."""
    injector, inverter = Injector(1, 16, 5, 64, 0.5, 0.3).double(), ExpMI(1, 16, 5, 1, 16, 64).double()
    batch = [torch.rand(4, 1, 16, 16).double(), torch.randn(4, 5).double(), torch.rand(4, 1, 16, 16).double()]
    gradients = []
    for step in (plain_two_player_step, two_player_step):
        injector.zero_grad()
        inverter.zero_grad()
        step(injector, inverter, batch, 3.0)
        gradients.append([p.grad for network in (injector, inverter) for p in network.parameters()])
    close(*gradients, 1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["network"])
def test_networks_train_accelerated_and_classifiers_are_plain_afterwards(spec, tmp_path):
    run = resolve("prepare", ["--gpu", "-1", "--root", str(tmp_path)])
    path, ours = tmp_path / "network.pt", [type(module) for module in build(spec).modules()]
    in_training = []

    def train(network, file):
        in_training.extend(type(module) for module in network.modules())
        return {"epochs": 1, "seconds": 0.0}

    task = NetworkTask("test", path, spec, {"kind": "test"}, TrainConfig(1, 4), ("test",), train,
                       explained=spec["network"] == "classifier")
    for _ in ("made", "found"):
        network = Experiment(run).load_or_train(task).network
        assert in_training != ours
        assert [type(module) for module in network.modules()] == (ours if task.explained else in_training)
    network = rebuild(path)
    assert [type(module) for module in network.modules()] == ours and not any(p.requires_grad for p in network.parameters())
