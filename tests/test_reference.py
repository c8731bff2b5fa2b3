"""Against vectors computed by the authors' TensorFlow release: `pytest tests/test_reference.py --vectors DIR`."""

import numpy as np
import pytest
import torch

from gnime.explainers.grad import grad
from gnime.explainers.gradcam import gradcam
from gnime.explainers.lrp import lrp
from gnime.metrics import leakage
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector, two_player_step
from gnime.models.inversion import ExpMI
from gnime.ops import accelerate, plain

ATOL = 1e-5  # maps, outputs, losses, per-image metrics
GRADIENT = 1e-4  # of the largest entry

both = pytest.mark.parametrize("how", [plain, accelerate], ids=["plain", "accelerated"])


def read(path):
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def group(vectors, prefix):
    return {name.removeprefix(prefix): value for name, value in vectors.items() if name.startswith(prefix)}


def close(ours, theirs):
    assert torch.as_tensor(ours).shape == theirs.shape
    torch.testing.assert_close(torch.as_tensor(ours, dtype=theirs.dtype), theirs, atol=ATOL, rtol=0)


def gradients_close(network, theirs):
    ours = {name: p.grad for name, p in network.named_parameters()}
    theirs = module_names(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= GRADIENT * value.abs().max(), name


def module_names(weights):
    """encoder0.weight -> encoder.0.weight"""
    return {"".join(f".{c}" if c.isdigit() and name.startswith(("encoder", "decoder")) else c for c in name.split(".")[0])
            + "." + name.split(".")[1]: value for name, value in weights.items()}


@pytest.fixture
def classifier(explainers_file):
    v = read(explainers_file)
    convs = tuple(len(v[f"conv{i}.bias"]) for i in range(sum(k.endswith(".bias") and k.startswith("conv") for k in v)))
    n, channels, size, _ = v["images"].shape
    model = Classifier((channels, size), v["logits"].shape[1], convs, len(v["fc0.bias"]), dropout=0.5).eval()
    model.load_state_dict({k: value for k, value in v.items() if k.endswith((".weight", ".bias"))})
    return model, v


@both
def test_classifier(classifier, how):
    model, v = classifier
    close(how(model)(v["images"]).detach(), v["logits"])


def test_grad(classifier):
    model, v = classifier
    close(grad(model, v["images"]), v["grad"])


def test_gradcam(classifier):
    model, v = classifier
    close(gradcam(model, v["images"]), v["gradcam"])


def test_gradcam_official(classifier):
    model, v = classifier
    close(gradcam(model, v["images"], pool=len(v["images"])), v["gradcam_batch_pooled"])


def test_lrp(classifier):
    model, v = classifier
    close(lrp(model, v["images"]), v["lrp"])


def expmi(weights, explanation, prediction, out):
    network = ExpMI(explanation.shape[1], explanation.shape[2], prediction.shape[1], out.shape[1], out.shape[2],
                    width=4 * len(weights["bottleneck.bias"]))
    network.load_state_dict(module_names(weights))
    return network


@pytest.fixture(params=[plain, accelerate], ids=["plain", "accelerated"])
def game(gnime_file, request):
    v = read(gnime_file)
    e, y = v["explanation"], v["prediction"]
    inverter = expmi(group(v, "inverter/"), e, y, v["image"])
    network = expmi(group(v, "injector/"), e, y, e)
    injector = Injector(e.shape[1], e.shape[2], y.shape[1], mean=v["mean"].item(), std=v["std"].item(),
                        width=4 * len(network.bottleneck.bias))
    injector.network.load_state_dict(network.state_dict())
    return request.param(injector), request.param(inverter), v


@both
def test_expmi(gnime_file, how):
    v = read(gnime_file)
    network = how(expmi(group(v, "expmi/"), v["explanation"], v["prediction"], v["reconstruction"]))
    close(network(v["explanation"], v["prediction"]).detach(), v["reconstruction"])


def test_injector(game):
    injector, inverter, v = game
    protected = injector(v["explanation"], v["prediction"]).detach()
    close(protected, v["protected"])
    close(inverter(protected, v["prediction"]).detach(), v["protected_inverted"])


@pytest.mark.parametrize("official", [True, False])
def test_two_player_step(game, official):
    injector, inverter, v = game
    batch = v["explanation"], v["prediction"], v["image"]
    losses = two_player_step(injector, inverter, batch, v["inversion_weight"].item(), official)
    close(losses.distortion, v["distortion_loss"])
    close(losses.inversion, v["inversion_loss"])
    close(losses.inverter, v["inverter_loss" if official else "inverter_loss_same_scale"])
    gradients_close(inverter, group(v, "inverter_grad/" if official else "inverter_grad_same_scale/"))
    gradients_close(injector.network, group(v, "injector_grad/"))


@pytest.fixture(params=["gray", "rgb", "rgb128"])
def pictures(metrics_file, request):
    v = group(read(metrics_file), request.param + "/")
    if not v:
        pytest.skip(f"{metrics_file.name} has no {request.param}")
    return v


@pytest.mark.parametrize("metric", ["mse", "psnr", "ssim"])
def test_metric(pictures, metric):
    ours = getattr(leakage, metric)(pictures["image"], pictures["reconstruction"].clamp(0, 1))
    if pictures[metric].ndim == 0:
        ours = ours.mean()
    close(ours, pictures[metric])


def test_deepsim(pictures):
    close(leakage.deepsim(pictures["features_image"], pictures["features_reconstruction"]), pictures["deepsim"])
