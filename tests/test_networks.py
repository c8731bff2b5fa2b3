"""Networks, as built and accelerated, against docs/method.md written out: upsampling, concatenated skips, convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnime.config import TARGETS, target
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector
from gnime.models.inversion import CentredExpMI, DenseExpMI, ExpMI, PredMI, bring, sides, working_side
from gnime.networks import NETWORKS, build, classifier_spec, injector_spec, inverter_spec
from gnime.ops import accelerate, plain

RELATIVE = 1e-5  # of the largest entry
# explanation (channels, side), classes, image (channels, side): what the targets and explainers give
SHAPES = {
    "mnist grad": ((1, 32), 10, (1, 32)), "mnist gradcam": ((1, 16), 10, (1, 32)),
    "cifar10 lrp": ((3, 32), 10, (3, 32)), "cifar10 gradcam": ((1, 16), 10, (3, 32)),
    "celeba lrp": ((3, 128), 1000, (3, 128)), "celeba gradcam": ((1, 32), 1000, (3, 128)),
    "digits lrp": ((1, 16), 10, (1, 16)), "digits gradcam": ((1, 8), 10, (1, 16)),
    "sides that are no powers of two": ((2, 7), 5, (1, 20)), "maps larger than images": ((1, 20), 5, (2, 16)),
}


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()


def with_biases(network):
    """Biases that are not zero, so that every parameter matters."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return network


def plain_decoder(x, network, p, skips):
    for i in range(len(network.decoder)):
        x = F.interpolate(x, scale_factor=2 if i else 4, mode="nearest")
        x = torch.cat([x, skips.pop()], 1) if skips else x
        x = F.conv2d(x, p[f"decoder.{i}.weight"], p[f"decoder.{i}.bias"], padding=1)
        x = F.relu(x) if i + 1 < len(network.decoder) else x
    return x


def plain_bring(x, side):
    """Bilinear, by definition: output i lies at (i + 1/2) * n / side - 1/2 among the n inputs, not before the first."""
    n = x.shape[-1]
    weights = torch.zeros(side, n, dtype=x.dtype)
    for i in range(side):
        at = max((i + 0.5) * n / side - 0.5, 0.0)
        below = min(int(at), n - 1)
        weights[i, below] += 1 - (at - below)
        weights[i, min(below + 1, n - 1)] += at - below
    return weights @ x @ weights.T


def plain_predmi(network, p, explanation, prediction):
    x = F.relu(F.linear(prediction, p["dense.weight"], p["dense.bias"]))
    return plain_bring(plain_decoder(x[:, :, None, None], network, p, []), network.size)


def plain_expmi(network, p, explanation, prediction):
    x, skips = plain_bring(explanation, 2 ** (len(network.encoder) + 1)), []
    for i in range(len(network.encoder)):
        x = F.relu(F.conv2d(x, p[f"encoder.{i}.weight"], p[f"encoder.{i}.bias"], padding=1))
        skips.append(x)
        x = F.max_pool2d(x, 2)
    code = F.relu(F.linear(x.flatten(1), p["code.weight"], p["code.bias"]))
    together = torch.cat([code, explanation.flatten(1), prediction], 1)
    x = F.relu(F.linear(together, p["bottleneck.weight"], p["bottleneck.bias"]))
    return plain_bring(plain_decoder(x[:, :, None, None], network, p, skips), network.size)


def compare(network, expected_network, explanation, prediction):
    """Outputs and the gradients of every parameter, and of the explanation, for one and the same cotangent.

    In float64: there no ReLU's argument lies so close to zero that the two could take different sides.
    """
    network, explanation, prediction = with_biases(network).double(), explanation.double(), prediction.double()
    explanation.requires_grad_(expected_network is plain_expmi)
    ours = dict(network.named_parameters())
    theirs = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
    found, expected = network(explanation, prediction), expected_network(network, theirs, explanation, prediction)
    close(found, expected)
    cotangent = torch.randn_like(expected)
    seen = [explanation] if explanation.requires_grad else []
    gradients = [torch.autograd.grad(output, [*parameters.values(), *seen], cotangent)
                 for output, parameters in ((found, ours), (expected, theirs))]
    for name, one, other in zip([*ours, "explanation"][: len(gradients[0])], *gradients, strict=True):
        assert other.abs().max() > 0, name
        assert (one - other).abs().max() <= RELATIVE * other.abs().max(), name


PLAIN = {"predmi": plain_predmi, "expmi": plain_expmi}


both = pytest.mark.parametrize("how", [plain, accelerate], ids=["as built", "accelerated"])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", PLAIN)
@both
def test_inverters_are_their_plain_formulation(name, kind, how):
    (channels, side), classes, (c, s) = SHAPES[name]
    network = PredMI(classes, c, s, 128) if kind == "predmi" else ExpMI(channels, side, classes, c, s, 128)
    n = 2 if s == 128 else 4
    compare(how(network), PLAIN[kind], torch.rand(n, channels, side, side), torch.randn(n, classes))


@pytest.mark.parametrize("kind", PLAIN)
@both
def test_full_width(kind, how):
    """The paper's networks for MNIST; their output also in the precision and memory order they run in."""
    network = how(PredMI(10, 1, 32) if kind == "predmi" else ExpMI(1, 32, 10, 1, 32))
    explanation, prediction = torch.rand(1, 1, 32, 32), torch.randn(1, 10)
    compare(network, PLAIN[kind], explanation, prediction)
    named = {name: parameter.detach() for name, parameter in network.named_parameters()}
    expected = PLAIN[kind](network, named, explanation.double(), prediction.double())
    with torch.no_grad():
        found = network.float().to(memory_format=torch.channels_last)(explanation, prediction)
    close(found, expected.float())


@pytest.mark.parametrize("side", [2, 3, 7, 20, 24, 100, 224])
def test_nothing_is_lost_on_the_way_into_a_network(side):
    """The enlargement has a left inverse: a map of any side comes back from the next power of two."""
    assert working_side(side) in (4, 8, 32, 128, 256) and side <= working_side(side)
    weights = bring(torch.eye(side, dtype=torch.float64)[None, None].expand(1, 1, side, side), working_side(side))
    assert torch.linalg.matrix_rank(weights) == side
    line = F.interpolate(torch.eye(side, dtype=torch.float64)[None], working_side(side), mode="linear")[0].T
    assert torch.linalg.cond(line) < 17
    assert bring(whole := torch.rand(1, 1, 16, 16), 16) is whole and working_side(16) == 16


def test_dense_attacker_can_sort_shuffled_pixels():
    """With its front set to the inverse permutation it is the ExpMI behind it."""
    dense = DenseExpMI(2, 8, 5, 1, 16, width=128)
    order = torch.randperm(64)
    with torch.no_grad():
        dense.front.weight.copy_(torch.eye(64)[order.argsort()])
    explanation, prediction = torch.rand(3, 2, 8, 8), torch.randn(3, 5)
    shuffled = explanation.flatten(2)[:, :, order].view(explanation.shape)
    torch.testing.assert_close(dense(shuffled, prediction), ExpMI.forward(dense, explanation, prediction))


def test_to_a_centring_attacker_a_negative_is_the_explanation_with_its_sign_turned():
    explanation, prediction = torch.rand(3, 2, 8, 8), torch.randn(3, 5)
    same = CentredExpMI(2, 8, 5, channels=1, size=16, width=128, mean=0.3)
    other = CentredExpMI(2, 8, 5, channels=1, size=16, width=128, mean=0.7)  # of 1 - e
    with torch.no_grad():
        for one, turned in zip(same.parameters(), other.parameters(), strict=True):
            turned.copy_(one)
        for layer in (other.encoder[0], other.bottleneck):
            seen = slice(64, 64 + 2 * 64) if layer is other.bottleneck else slice(None)
            layer.weight[:, seen].neg_()
    torch.testing.assert_close(other(1 - explanation, prediction), same(explanation, prediction))
    torch.testing.assert_close(same(explanation, prediction), ExpMI.forward(same, explanation - 0.3, prediction))


def test_outputs_are_linear_and_predictions_matter():
    explanation, y = torch.rand(64, 1, 16, 16), torch.randn(64, 10)
    for network in (PredMI(10, 1, 16, 128), ExpMI(1, 16, 10, 1, 16, 128)):
        found = network(explanation, y)
        assert found.min() < 0, "a ReLU on the last layer"
        assert (network(explanation, y.roll(1, 0)) - found).abs().max() > 1e-3
    assert (ExpMI(1, 16, 10, 1, 16, 128)(torch.rand(64, 1, 16, 16), y) - found).abs().max() > 1e-3


# --- parameter counts --------------------------------------------------------------------------------------------------

COUNTS = {
    "classifier mnist": (8_690_698, lambda: build(classifier_spec(TARGETS["mnist"], 10))),
    "classifier cifar10": (8_693_002, lambda: build(classifier_spec(TARGETS["cifar10"], 10))),
    "classifier celeba": (69_101_288, lambda: build(classifier_spec(TARGETS["celeba"], 1000))),
    "predmi mnist": (15_350_785, lambda: build(inverter_spec("predmi", TARGETS["mnist"], (1, 32), 10))),
    "predmi cifar10": (15_355_395, lambda: build(inverter_spec("predmi", TARGETS["cifar10"], (3, 32), 10))),
    "predmi celeba": (16_732_803, lambda: build(inverter_spec("predmi", TARGETS["celeba"], (3, 128), 1000))),
    "expmi mnist": (5_341_825, lambda: build(inverter_spec("expmi", TARGETS["mnist"], (1, 32), 10))),
    "expmi mnist gradcam": (4_874_817, lambda: build(inverter_spec("expmi", TARGETS["mnist"], (1, 16), 10))),
    "expmi cifar10": (6_393_859, lambda: build(inverter_spec("expmi", TARGETS["cifar10"], (3, 32), 10))),
    "expmi cifar10 gradcam": (4_875_971, lambda: build(inverter_spec("expmi", TARGETS["cifar10"], (1, 16), 10))),
    "expmi celeba": (30_559_027, lambda: build(inverter_spec("expmi", TARGETS["celeba"], (3, 128), 1000))),
    "expmi celeba gradcam": (5_889_507, lambda: build(inverter_spec("expmi", TARGETS["celeba"], (1, 32), 1000))),
    "injector mnist": (5_341_825, lambda: build(injector_spec(TARGETS["mnist"], (1, 32), 10, 0.3, 0.2))),
    "injector celeba": (30_559_027, lambda: build(injector_spec(TARGETS["celeba"], (3, 128), 1000, 0.3, 0.2))),
    "folder like celeba": (69_101_288, lambda: build(classifier_spec(target("orl_faces"), 1000))),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    expected, make = COUNTS[name]
    with torch.device("meta"):  # shapes without numbers
        network = make()
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


# --- weights at the start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Classifier((3, 32), 10, (16, 24), 32, 0.5), lambda: PredMI(10, 3, 32, 128),
                                  lambda: ExpMI(3, 32, 10, 3, 32, 128), lambda: Injector(3, 32, 10, 128),
                                  lambda: DenseExpMI(3, 32, 10, 3, 32, 128),
                                  lambda: CentredExpMI(3, 32, 10, 3, 32, 128)],
                         ids=["classifier", "predmi", "expmi", "injector", "dense", "centred"])
def test_glorot_uniform_weights_zero_biases(make):
    checked = 0
    for layer in make().modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            out, inp, *kernel = layer.weight.shape
            area = torch.tensor(kernel).prod().item() if kernel else 1
            bound = (6 / (inp * area + out * area)) ** 0.5
            assert layer.weight.abs().max() <= bound
            if layer.weight.numel() >= 512:
                assert layer.weight.abs().max() > 0.97 * bound
                assert abs(layer.weight.std() / (bound / 3**0.5) - 1) < 0.1, "uniform"
            assert layer.bias.abs().max() == 0
            checked += 1
    assert checked >= 4


def test_weights_follow_from_seed_and_purpose():
    spec = inverter_spec("expmi", target("digits"), (1, 16), 10)
    one, again = build(spec, 1, "a"), build(spec, 1, "a")
    assert all(a.equal(b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    for other in (build(spec, 2, "a"), build(spec, 1, "b")):
        assert not other.bottleneck.weight.equal(one.bottleneck.weight)


def test_every_network_is_rebuilt_from_its_specification():
    specs = [classifier_spec(target("digits"), 10), injector_spec(target("digits"), (1, 16), 10, 0.25, 0.5)]
    specs += [inverter_spec(kind, target("digits"), (1, 16), 10) for kind in ("predmi", "expmi", "dense", "centred", "unet")]
    fitted = {"shape": [1, 16, 16], "classes": 10, "centres": 7, "prototypes": 4}  # those that a fit writes into its file
    specs += [{"network": "cond-mean", **{name: fitted[name] for name in ("shape", "classes", "centres")}},
              {"network": "prototypes", **{name: fitted[name] for name in ("shape", "prototypes")}},
              {"network": "cond-prototypes", **fitted}]
    assert {spec["network"] for spec in specs} == set(NETWORKS)
    for spec in specs:
        assert isinstance(build(spec), NETWORKS[spec["network"]])
    assert build(specs[1]).mean == 0.25
    assert build(specs[1]).std == 0.5
    assert build(specs[-1]).mean.centres.shape == (7, 10) and build(specs[-1]).prototypes.shape == (4, 1, 16, 16)


def test_classifier_architecture():
    """docs/method.md "Classifiers", written out."""
    names = [type(layer).__name__ for layer in Classifier((3, 32), 7, (4, 6), 8, dropout=0.5)]
    block = ["Conv2d", "ReLU", "MaxPool2d"]
    assert names == [*block, *block, "Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert "Dropout" not in [type(layer).__name__ for layer in Classifier((1, 32), 7, (4, 6), 8)]


@pytest.mark.parametrize(("features", "size"), [("pool", 6 * 4 * 4), ("hidden", 8)])
def test_features(features, size):
    model = Classifier((1, 16), 7, (4, 6), 8, features=features).eval()
    images = torch.rand(3, 1, 16, 16)
    found = model.features(images)
    assert found.shape == (3, size)
    assert found.min() >= 0, "after its ReLU"
    rest = list(model)[list(dict(model.named_children())).index("flatten" if features == "pool" else "relu") + 1 :]
    torch.testing.assert_close(nn.Sequential(*rest)(found), model(images))


def test_sides():
    assert sides(4, 16) == [4, 8, 16]
    assert sides(4, 2) == []
