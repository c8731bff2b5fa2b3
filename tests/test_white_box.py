"""The white-box attacker: derivatives against float64 differences, and cases whose answer is known."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import STACKS, small_classifier, stack

from gnime.attackers import NotApplicable
from gnime.attackers import white_box as module
from gnime.cli import resolve
from gnime.data import AttackerData
from gnime.defences import DefenceInputs
from gnime.explainers.grad import BEND, grad
from gnime.explainers.stack import minmax
from gnime.models.inversion import ExpMI
from gnime.models.prototypes import Prototypes
from gnime.registry import EXPLAINERS, ROWS


def difference(function, x, along, step=1e-6):
    """Central difference of a scalar function in float64."""
    return ((function(x + step * along) - function(x - step * along)) / (2 * step)).item()


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("xai", ["lrp", "gradcam"])
@pytest.mark.filterwarnings("ignore:Using padding")
def test_maps_can_be_differentiated(xai, name):
    shape, parts = STACKS[name]
    model, explain = copy.deepcopy(stack(*parts)).double().eval(), EXPLAINERS[xai].load()
    if xai == "gradcam" and name == "no convolution":
        pytest.skip("Grad-CAM refuses it")
    x = torch.rand(2, *shape, dtype=torch.double)
    plain, tracked = explain(model, x), x.clone().requires_grad_()
    weights, along = torch.randn_like(plain), torch.randn_like(x)
    maps = explain(model, tracked)
    torch.testing.assert_close(maps, plain)
    (gradient,) = torch.autograd.grad((maps * weights).sum(), tracked)
    expected = difference(lambda images: (explain(model, images) * weights).sum(), x, along)
    assert (gradient * along).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert tracked.grad is None and all(parameter.grad is None for parameter in model.parameters())


def test_the_gradients_second_derivative_is_a_softplus_ones():
    """One hidden layer: d s / d x = W^T (v * step(W x + b)), and a softplus' is the sigmoid of BEND times as much."""
    model = stack(torch.nn.Flatten(), torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Linear(9, 1)).double()
    (w, b), v = (model[1].weight, model[1].bias), model[3].weight[0]
    x = torch.randn(1, 1, 3, 4, dtype=torch.double)
    tracked = x.clone().requires_grad_()
    maps = grad(model, tracked)
    torch.testing.assert_close(maps, grad(model, x))
    torch.testing.assert_close(maps, minmax(((v * (w @ x.flatten() + b > 0)) @ w).view(x.shape)))
    weights, along = torch.randn_like(x), torch.randn_like(x)
    (gradient,) = torch.autograd.grad((maps * weights).sum(), tracked)
    before = ((v * (w @ x.flatten() + b > 0)) @ w).view(x.shape)

    def softly(images):
        bend = torch.sigmoid(BEND * (w @ images.flatten() + b)) - torch.sigmoid(BEND * (w @ x.flatten() + b))
        return (minmax(before + ((v * bend) @ w).view(x.shape)) * weights).sum()

    expected = difference(softly, x, along)
    assert abs(expected) > 1e-3 and (gradient * along).sum().item() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ the attack

def experiment(victim, xai="lrp", flags=(), **inputs):
    run, device = resolve("eval", ["--gpu", "-1", "--xai", xai, *flags]), SimpleNamespace(torch=torch.device("cpu"))
    return SimpleNamespace(run=run, device=device, victim=SimpleNamespace(network=victim),
                           defence_inputs=lambda row: DefenceInputs(0, **inputs))


def test_it_imitates_what_is_published_of_the_prediction():
    victim, x = small_classifier().eval(), torch.rand(4, 3, 16, 16, requires_grad=True)
    for row in ("predmi", "expmi"):
        _, found = module.answer_of(experiment(victim, flags=["--published", "probabilities"]), ROWS[row])(x)
        torch.testing.assert_close(found, torch.softmax(victim(x), 1))


@pytest.mark.parametrize("row", ["predmi", "expmi", "gnime", "negative", "permutation", "mix-0.1", "rnd", "blank"])
@pytest.mark.parametrize("xai", ["lrp", "gradcam"])
def test_its_gradient_is_that_of_its_objective(xai, row):
    victim, size = small_classifier().double().eval(), {"lrp": (3, 16), "gradcam": (1, 8)}[xai]
    injector = ExpMI(*size, 5, *size, 64).double()
    answer = module.answer_of(experiment(victim, xai, injector=injector, variance=0.01, class_means=torch.rand(
        5, size[0], size[1], size[1], dtype=torch.double)), ROWS[row])
    x, start = torch.rand(2, 2, 3, 16, 16, dtype=torch.double).unbind()
    maps = None if row == "predmi" else torch.rand(2, size[0], size[1], size[1], dtype=torch.double)
    seen, weights = (maps, torch.randn(2, 5, dtype=torch.double)), module.Weights(0.0 if row == "predmi" else 5.0, 1.5)

    def objective(images):
        return module.objective(answer(images), seen, images - start, weights)

    tracked, along = x.clone().requires_grad_(), torch.randn_like(x)
    (gradient,) = torch.autograd.grad(objective(tracked), tracked)
    expected = difference(lambda images: objective(images.requires_grad_()).detach(), x, along)
    assert (gradient * along).sum().item() == pytest.approx(expected, rel=1e-4)


def test_the_objective_by_hand():
    """5 * 2^2 for one pixel of the map, 0.02 * 3^2 for a logit, 1.5 * (0.1^2 + 0.2^2) for the image."""
    answered = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[1.0, 4.0]])
    seen = torch.zeros(1, 1, 1, 2), torch.tensor([[1.0, 1.0]])
    moved = torch.tensor([[[[0.1, 0.2]]]])
    found = module.objective(answered, seen, moved, module.Weights(5.0, 1.5))
    assert found.item() == pytest.approx(5 * 4 + 0.02 * 9 + 1.5 * 0.05)
    alone = module.objective((None, answered[1]), (None, seen[1]), moved, module.Weights(5.0, 1.5))
    assert alone.item() == pytest.approx(0.02 * 9 + 1.5 * 0.05)


def published(answer, images):
    """The attacker's data where `answer` is what the service publishes of these images, 4 to learn from, 5 to choose with."""
    maps, predictions = answer(images)
    parts = range(4), range(4, 9), range(9, len(images))
    return AttackerData((images * 255).round().to(torch.uint8).numpy(), np.zeros(len(images)), predictions.detach(),
                        None if maps is None else maps.detach(), *parts)


def grey(explanation, prediction):
    return torch.full((len(prediction), 1, 4, 4), 0.5)


def test_an_undefended_linear_explanation_gives_the_image_away(monkeypatch):
    """The map is an invertible linear function of the image, so the image is what is left; the logits alone leave most open."""
    mixing = torch.eye(16) + 0.1 * torch.randn(16, 16)
    for name, value in {"MAPS": (100.0,), "START": (0.3,), "TOGETHER": 40}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "explainer", lambda run: (lambda model, x: (x.flatten(1) @ mixing).view(x.shape), None))
    victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images = torch.rand(80, 1, 4, 4)
    error = {}
    for name in ("expmi", "predmi"):
        there = experiment(victim)
        shown = published(module.answer_of(there, ROWS[name]), images.clone().requires_grad_())
        (trial,) = module.white_box(there, ROWS[name], shown, grey)
        assert trial.name == "white-box" and trial.shown.test == range(9, 69), "the first 60 test images"
        rows = slice(9, 69)
        maps = None if shown.explanations is None else shown.explanations[rows]
        found = trial.reconstruct(maps, shown.predictions[rows])
        assert found.shape == (60, 1, 4, 4) and 0 <= found.min() and found.max() <= 1 and not found.requires_grad
        error[name] = (found - images[rows]).square().mean().item()
        alone = trial.reconstruct(None if maps is None else maps[37:38], shown.predictions[rows][37:38])
        torch.testing.assert_close(alone, found[37:38], atol=2e-4, rtol=0, msg="an image depends on no other")
        assert trial.summary["weights"] == {"maps": 100.0 if maps is not None else 0.0, "start": 0.3}
    assert error["expmi"] < 1e-4 < 0.04 < error["predmi"] < images.var()


def test_a_start_that_no_weights_improve_stays(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 3)
    victim, images = small_classifier().eval(), torch.rand(12, 3, 16, 16).mul(255).round().div(255)
    shown = published(module.answer_of(experiment(victim), ROWS["predmi"]), images)

    def truth(explanation, prediction):  # the images, found by their predictions
        return images[torch.cdist(prediction, shown.predictions).argmin(1)]

    (trial,) = module.white_box(experiment(victim), ROWS["predmi"], shown, truth)
    assert trial.summary["weights"] is None and trial.summary["validation"] == trial.summary["start_validation"] < 1e-12
    assert trial.reconstruct(None, shown.predictions[9:]).equal(images[9:])


def test_a_defence_that_steps_or_draws_is_taken_for_none():
    """As it stands, the nearest prototype has no derivative: the attack would not move."""
    victim, x = small_classifier().eval(), torch.rand(2, 3, 16, 16, requires_grad=True)
    clean = EXPLAINERS["lrp"].load()(victim, x)
    for row in ("rnd", "ond", "prototypes-16", "cond-prototypes-8"):
        maps, _ = module.answer_of(experiment(victim, fitted=Prototypes((3, 16, 16), 4)), ROWS[row])(x)
        assert maps.equal(clean)


def test_maps_that_it_cannot_differentiate_are_named(monkeypatch):
    victim, x = small_classifier().eval(), torch.rand(2, 3, 16, 16, requires_grad=True)
    with pytest.raises(NotApplicable, match="with --official gradcam a map depends on the other images of its batch"):
        module.answer_of(experiment(victim, "gradcam", ["--official", "gradcam"]), ROWS["expmi"])
    monkeypatch.setattr(module, "explainer", lambda run: (lambda model, images: images.detach(), None))
    with pytest.raises(NotApplicable, match="the maps of lrp have no derivative with respect to the image"):
        module.answer_of(experiment(victim), ROWS["expmi"])(x)


@pytest.mark.parametrize(("form", "expected"), [
    ("probabilities", lambda logits: logits.softmax(1)), ("label", lambda logits: torch.eye(5)[logits.argmax(1)])])
def test_it_compares_in_the_published_form(monkeypatch, form, expected):
    monkeypatch.setattr(module, "STEPS", 3)
    victim, images = small_classifier().eval(), torch.rand(3, 3, 16, 16).requires_grad_()
    there = experiment(victim, "lrp", ["--published", form])
    for row in ("predmi", "expmi"):
        torch.testing.assert_close(module.answer_of(there, ROWS[row])(images)[1], expected(victim(images)))
    found = module.optimise(module.answer_of(there, ROWS["predmi"]), images.detach(), (None, torch.eye(5)[:3]),
                            module.Weights(0.0, 1.5))
    assert found.isfinite().all()
