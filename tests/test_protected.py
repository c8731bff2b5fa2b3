"""Protected explanations as a service serves them, against the explainer and the defence called one after the other."""

import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import random_defence, small_classifier
from torch import nn

from gnime import Protected
from gnime.checkpoints import load_checkpoint, save_checkpoint
from gnime.cli import resolve
from gnime.errors import GnimeError
from gnime.experiment import Experiment
from gnime.explainers.gradcam import gradcam
from gnime.explainers.lrp import lrp
from gnime.explanations import protects
from gnime.networks import rebuild
from gnime.ownentries import register
from gnime.ownfiles import digest
from gnime.registry import DEFENCES, EXPLAINERS, find_row
from gnime.store import weights_digest

KINDS = ("injector", "cond-mean", "prototypes", "cond-prototypes")


@pytest.fixture
def victim():
    return small_classifier().eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("xai", EXPLAINERS)
def test_maps_are_the_defence_of_the_clean_map(tmp_path, victim, kind, xai):
    path, images = random_defence(tmp_path / "d.pt", kind, victim, xai), torch.rand(7, 3, 16, 16)
    with torch.no_grad():
        clean = EXPLAINERS[xai].load()(victim, images)
        expected = rebuild(path)(clean, victim(images))
    protected = Protected.load(path, victim, xai)
    maps = protected.attribute(images)
    assert maps.shape == clean.shape and maps.dtype == torch.float32 and not maps.requires_grad
    assert (maps - expected).abs().max() < 1e-5 and maps.std() > 0.01
    alone = torch.cat([protected.attribute(image[None]) for image in images])
    assert (alone - maps).abs().max() < 1e-5, "an image's map does not depend on the others"
    assert protected.attribute(images[:0]).shape == (0, *clean.shape[1:])
    assert (protected.attribute(images.double()) - maps).abs().max() < 1e-5


def test_the_caller_keeps_model_modes_gradients_and_random_state(tmp_path, victim):
    path, images = random_defence(tmp_path / "d.pt", "injector", victim), torch.rand(3, 3, 16, 16, requires_grad=True)
    expected = Protected.load(path, victim, "lrp").attribute(images)
    victim.train()
    victim(images).sum().backward()  # gradients that must stay
    victim.conv0.weight.requires_grad_(False)
    before, gradients = copy.deepcopy(victim.state_dict()), [copy.deepcopy(p.grad) for p in victim.parameters()]
    random, pixels = torch.get_rng_state(), images.grad.clone()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context(), torch.autocast("cpu", torch.bfloat16):
            maps = Protected.load(path, victim, "lrp").attribute(images)
        assert maps.equal(expected) and not maps.requires_grad and not maps.is_inference()
    assert torch.get_rng_state().equal(random) and images.grad.equal(pixels) and images.requires_grad
    assert all(module.training for module in victim.modules())
    assert [p.requires_grad for p in victim.parameters()] == [False] + [True] * 7
    assert all(value.equal(before[name]) for name, value in victim.state_dict().items())
    assert all(p.grad.equal(g) for p, g in zip(victim.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks for module in victim.modules())


@pytest.mark.parametrize("kind", ["prototypes", "cond-mean"])
def test_the_callers_modes_of_gradients_change_no_map(tmp_path, victim, kind):
    """In batches of two as well, which a service's larger batches are cut into."""
    protected, images = Protected.load(random_defence(tmp_path / "d.pt", kind, victim), victim, "lrp"), torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        inference = torch.rand(5, 3, 16, 16).copy_(images)
    expected = protected.attribute(images)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for given in (images, images.clone().requires_grad_(), inference):
            with context():
                maps = protected.attribute(given)
            assert maps.equal(expected) and not maps.requires_grad and not maps.is_inference()
    protected._at_once = 2
    predicted = victim(images).argmax(1)
    assert (protected.attribute(images, predicted) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="target: image 4 is predicted as"):
        protected.attribute(images, [*predicted[:4].tolist(), int(predicted[4] + 1) % 5])


def test_later_training_of_the_callers_model_changes_no_map(tmp_path, victim):
    path, images = random_defence(tmp_path / "d.pt", "injector", victim), torch.rand(3, 3, 16, 16)
    protected = Protected.load(path, victim, "lrp")
    before = protected.attribute(images)
    with torch.no_grad():
        victim.fc0.weight.zero_()
    assert protected.attribute(images).equal(before)
    with pytest.raises(GnimeError, match="weights have the hash"):
        Protected.load(path, victim, "lrp")


def test_a_stack_of_other_names_is_the_same_victim(tmp_path, victim):
    path, images = random_defence(tmp_path / "d.pt", "prototypes", victim), torch.rand(3, 3, 16, 16)
    other = nn.Sequential(*copy.deepcopy(victim))
    assert Protected.load(path, other, lrp).attribute(images).equal(Protected.load(path, victim, "lrp").attribute(images))


def test_refusals_say_which(tmp_path, victim):
    path = random_defence(tmp_path / "d.pt", "injector", victim)

    def refused(model, explainer, file=path):
        with pytest.raises(GnimeError, match="^" + str(file)) as error:
            Protected.load(file, model, explainer)
        return str(error.value).removeprefix(f"{file}: ")

    assert refused(small_classifier(), "lrp").startswith("made for a victim whose weights have the hash "
                                                          f"{weights_digest(victim)[:12]}, this model's have")
    assert refused(victim, "grad") == "made for explanations by lrp, not by grad"
    assert refused(victim, EXPLAINERS["grad"].load()) == "made for explanations by lrp; this explainer computes other maps"
    assert refused(victim, gradcam) == "made for maps of size [3, 16, 16], this explainer's have [1, 8, 8]"
    for scaled in (lambda model, images: 2 * lrp(model, images) - 1, lambda model, images: -255 * lrp(model, images)):
        assert "those of lrp in another scaling" in refused(victim, scaled)
    changed = random_defence(tmp_path / "e.pt", "injector", victim, version=2)
    assert refused(victim, "lrp", changed) == "made for version 2 of lrp, this is version 1; make it again"
    changed = random_defence(tmp_path / "f.pt", "injector", victim, "gradcam", pool=64)
    assert "--official gradcam" in refused(victim, "gradcam", changed)
    changed = random_defence(tmp_path / "g.pt", "injector", victim, renamed="mine")
    assert refused(victim, "mine", changed) == "made for explanations by mine, which gnime/registry.py does not list"
    save_checkpoint(tmp_path / "victim.pt", victim.state_dict(), {"network": "classifier"}, {}, {})
    assert refused(victim, "lrp", tmp_path / "victim.pt") == "holds classifier, not an injector or a fitted defence"
    torch.save(victim.state_dict(), tmp_path / "plain.pt")
    assert refused(victim, "lrp", tmp_path / "plain.pt").startswith("holds a network without a record")
    assert refused(victim, "lrp", tmp_path / "none.pt") == f"{tmp_path / 'none.pt'} is missing"
    old = load_checkpoint(path)
    for wrong, said in ((old.spec | {"width": -64}, "its specification is of no network"),
                        (old.spec | {"width": 128}, "does not fit: ")):
        save_checkpoint(path, old.tensors, wrong, old.made_by, old.extra)
        assert refused(victim, "lrp").startswith(said)
    save_checkpoint(path, old.tensors, old.spec, old.made_by, {})
    assert refused(victim, "lrp") == ("an older version wrote it, which did not record the victim; move it away and make it "
                                      "again with train.py")


OWN = """
import torch
def slope(model, images):
    images.requires_grad_()
    return 3 * torch.autograd.grad(model(images).amax(1).sum(), images)[0]
"""


@pytest.mark.parametrize("scale", ["absolute", "signed"])
def test_an_explainer_of_ones_own_is_scaled_as_the_defence_had_it(tmp_path, victim, scale):
    """The scaling by hand, and the registry empty, as it is in a service's process."""
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path / 'own.py'}:slope"
    run = resolve("train", ["--xai", spec, "--scale", scale])
    register(run.files)
    record = protects(run, SimpleNamespace(images=np.zeros((1, 3, 16, 16)), classes=range(5)), victim, [3, 16, 16])
    register(())
    assert (record["xai"], record["scale"], record["version"]) == ("slope", scale, digest(spec))
    path = random_defence(tmp_path / "d.pt", "prototypes", victim, "grad", renamed="slope", version=record["version"],
                          scale=record["scale"])
    images = torch.rand(5, 3, 16, 16, requires_grad=True)
    (raw,) = torch.autograd.grad(victim(images).amax(1).sum(), images)
    if scale == "absolute":
        low, high = (bound((2, 3), keepdim=True) for bound in (raw.abs().amin, raw.abs().amax))
        expected = (raw.abs() - low) / (high - low)
    else:
        expected = 0.5 + 0.5 * raw / raw.abs().amax((2, 3), keepdim=True)
    protected = Protected.load(path, victim, spec)
    with torch.no_grad():
        assert (protected.attribute(images) - rebuild(path)(expected, victim(images))).abs().max() < 1e-4
        assert (protected._explain(victim, images) - expected).abs().max() < 1e-4

    def refused(explainer, file=path):
        with pytest.raises(GnimeError, match="^" + str(file)) as error:
            Protected.load(file, victim, explainer)
        return str(error.value).removeprefix(f"{file}: ")

    for other in ("slope", "grad", EXPLAINERS["grad"].load(), spec.replace(":slope", ":other")):
        assert refused(other) == 'made for explanations by slope, in a file of your own; give the explainer as "FILE.py:slope"'
    old = random_defence(tmp_path / "e.pt", "prototypes", victim, "grad", renamed="slope", version=digest(spec))
    assert refused(spec, old).startswith("an older version wrote it, which did not record how the maps of slope are scaled")
    (tmp_path / "own.py").write_text(OWN + "#")
    assert refused(spec).startswith(f"made for another content of {tmp_path / 'own.py'}; ")


def test_images_and_targets_that_do_not_fit_are_refused(tmp_path, victim):
    path, images = random_defence(tmp_path / "d.pt", "cond-mean", victim), torch.rand(3, 3, 16, 16)
    protected = Protected.load(path, victim, "lrp")
    predicted = victim(images).argmax(1)
    expected = protected.attribute(images)
    for target in (None, predicted, predicted.tolist()):
        assert protected.attribute(images, target).equal(expected)
    assert protected.attribute(images[:1], int(predicted[0])).shape == (1, 3, 16, 16)
    wrong = predicted.clone()
    wrong[1] = (wrong[1] + 1) % 5
    for given, target, message in [
        (images, wrong, rf"target: image 1 is predicted as class {predicted[1]}, not {wrong[1]}"),
        (images, [0, 1], r"target: shape \(2,\); give one class, or one for each of 3 images"),
        (images[:, :, :8, :8], None, r"images: shape \(3, 3, 8, 8\); the defence was made for images of size \(3, 16, 16\)"),
        (images[0], None, r"images: shape \(3, 16, 16\)"),
        (images * 255, None, r"images: scaled to \[.*; the defence was made for pixels in \[0, 1\]"),
        ((images * 255).byte(), None, "images: torch.uint8"), (images.numpy(), None, "images: ndarray"),
        (images + torch.nan, None, "images: scaled to .*nan"), ((images, images), None, "images: a tuple of 2 tensors")]:
        with pytest.raises(ValueError, match=message):
            protected.attribute(given, target)
    assert protected.attribute((images,))[0].equal(expected), "captum's metrics give tuples"


def test_a_defence_made_of_the_prediction_alone_answers_without_the_explainer(tmp_path, victim):
    path, images, calls = random_defence(tmp_path / "d.pt", "cond-mean", victim), torch.rand(3, 3, 16, 16), []

    def counted(model, images):
        calls.append(len(images))
        return lrp(model, images)

    protected = Protected.load(path, victim, counted)
    checked = len(calls)
    with torch.no_grad():
        assert torch.equal(protected.attribute(images), rebuild(path)(lrp(victim, images), victim(images)))
    assert checked >= 1 and len(calls) == checked


def test_the_defence_runs_without_a_graph_whatever_the_explainer_returns(tmp_path, victim):
    path, seen = random_defence(tmp_path / "d.pt", "cond-prototypes", victim), []
    protected = Protected.load(path, victim, lambda model, images: lrp(model, images.requires_grad_()))
    protected._defence.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    assert not protected.attribute(torch.rand(2, 3, 16, 16)).requires_grad and seen == [False]


def test_the_victim_runs_once_unless_the_explainer_evaluates_it_elsewhere(tmp_path, victim):
    path, images = random_defence(tmp_path / "d.pt", "cond-prototypes", victim), torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        expected = rebuild(path)(lrp(victim, images), victim(images))

    def elsewhere(model, images):
        """LRP, after the model has seen other images: the logits that it computed last are not those of the images."""
        maps = lrp(model, images)
        model(1 - images)
        return maps

    for explain, runs in ((lrp, 1), (elsewhere, 3)):
        protected, count = Protected.load(path, victim, explain), []
        protected._victim.conv0.register_forward_hook(lambda *_, count=count: count.append(1))
        assert (protected.attribute(images) - expected).abs().max() < 1e-5
        assert len(count) == runs


def test_threads_get_the_maps_of_their_own_images(tmp_path, victim):
    protected = Protected.load(random_defence(tmp_path / "d.pt", "injector", victim), victim, "lrp")
    images = torch.rand(16, 3, 16, 16)
    expected = [protected.attribute(image[None]) for image in images]
    wrong, started = [], threading.Barrier(8)

    def ask(thread):
        started.wait()
        for call in range(25):
            i = (5 * thread + 3 * call) % 16
            if not protected.attribute(images[i][None]).equal(expected[i]):
                wrong.append((thread, i))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_captum_metrics_take_it(tmp_path, victim):
    """Infidelity by hand, and sensitivity 0 of a map that does not change."""
    metrics = pytest.importorskip("captum.metrics")
    path, images = random_defence(tmp_path / "d.pt", "injector", victim), torch.rand(2, 3, 16, 16)
    protected = Protected.load(path, victim, "lrp")

    def nothing(inputs, radius=0.02):
        return inputs if isinstance(inputs, tuple) else (inputs,)

    assert (metrics.sensitivity_max(protected.attribute, images, perturb_func=nothing) < 1e-5).all()
    assert (metrics.sensitivity_max(protected.attribute, images) > 1e-4).all()
    maps, classes = protected.attribute(images), victim(images).argmax(1)
    found = metrics.infidelity(victim, lambda x: (0.5 * x, 0.5 * x), images, maps, target=classes, n_perturb_samples=1)
    with torch.no_grad():
        change = (victim(images) - victim(0.5 * images))[torch.arange(2), classes]
    assert torch.allclose(found, ((0.5 * images * maps).flatten(1).sum(1) - change).square(), rtol=1e-4)


def test_quantus_metrics_take_it(tmp_path, victim):
    quantus = pytest.importorskip("quantus")
    path, images = random_defence(tmp_path / "d.pt", "injector", victim), torch.rand(2, 3, 16, 16)
    protected = Protected.load(path, victim, "lrp")

    def explain(model, inputs, targets, **_):
        return protected.attribute(torch.as_tensor(inputs, dtype=torch.float32)).numpy()

    metric = quantus.Sparseness(disable_warnings=True, display_progressbar=False)
    labels = victim(images).argmax(1).numpy()
    scores = metric(model=victim, x_batch=images.numpy(), y_batch=labels, explain_func=explain)
    given = metric(model=victim, x_batch=images.numpy(), y_batch=labels, a_batch=protected.attribute(images).numpy())
    assert scores == pytest.approx(given) and all(0 < score < 1 for score in scores)


def test_what_the_scripts_make_is_served(root_copy):
    """The injector of train.py and a fitted defence, of the victim's file."""
    run = resolve("eval", ["--target", "digits", "--gpu", "-1", "--limit", "60", "--width", "64", "--root", str(root_copy)])
    experiment = Experiment(run)
    experiment.fitted_defence(find_row("prototypes-4"))
    victim, folder = rebuild(root_copy / "models/victim/digits.pt"), root_copy / "models/def/digits_lrp"
    images = torch.from_numpy(experiment.data.images[30:33]).float() / 255
    for name in ("injector", "prototypes-4"):
        protected = Protected.load(folder / f"{name}.pt", victim, "lrp")
        assert protected.record["victim"] == weights_digest(victim) and protected.attribute(images).shape == (3, 1, 16, 16)
    published = torch.from_numpy(experiment.explanations.rows[30:33]), torch.from_numpy(experiment.predictions[30:33])
    with torch.no_grad():
        expected = DEFENCES["gnime"].load()(experiment.defence_inputs(find_row("gnime")))(*published, None, range(3))
    assert (Protected.load(folder / "injector.pt", victim, "lrp").attribute(images) - expected).abs().max() < 1e-5
