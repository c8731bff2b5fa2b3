"""Objects in files of the user's own: what is refused and how, and docs/own-model.md carried out as it stands."""

import json
import re
import statistics
import sys
from dataclasses import replace
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import hickle
import numpy as np
import pytest
import torch
from captum import attr
from torch import nn

from gnime import attackers, ownentries, pipeline, registry
from gnime.checkpoints import require
from gnime.cli import main, resolve
from gnime.errors import GnimeError, fixable
from gnime.explanations import ExplanationTask, explainer, try_explainer
from gnime.models.classifier import Classifier
from gnime.networks import rebuild
from gnime.ownfiles import call, load_own
from gnime.victims import check_model, features

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs/own-model.md"
FLAGS = ["--target", "digits", "--victim", "serve.py:model", "--gpu", "-1", "--limit", "60", "--width", "64"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    """Files of one test are not found by the next, and the registry is what it was."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    ownentries.register(())
    for name in [name for name in sys.modules if name in ("serve", "mine", "shown", "beside", "train", "late")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the tutorial, and weights that were not trained."""
    for name, text in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    torch.save(load_own("serve.py:Net")().state_dict(), "weights.pt")
    return tmp_path


def run(capsys, script, *flags):
    """(exit code, standard output, standard error)."""
    capsys.readouterr()
    try:
        code = main(script, list(map(str, flags)))
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


# --- the tutorial, in short ------------------------------------------------------------------------------------------


def test_the_tutorial(folder, capsys, monkeypatch):
    fit = (folder / "fit.py").read_text()
    (folder / "fit.py").write_text(fit.replace("range(10)", "range(1)"))
    load_own("serve.py:Net")  # puts the folder where `fit.py` finds serve.py
    exec(compile((folder / "fit.py").read_text(), "fit.py", "exec"), {"__name__": "__main__"})

    flags = [*FLAGS, "--epochs", "1", "--root", "r", "--xai", "serve.py:input_gradient"]
    code, out, err = run(capsys, "prepare", *flags)
    assert code == 0, err
    accuracy, chance = map(float, re.search(r"accuracy ([\d.]+) on the attacker's half, chance ([\d.]+)", out).groups())
    images, labels = hickle.load("r/aux/digits_imgs.hkl"), hickle.load("r/aux/digits_labels.hkl")
    net = load_own("serve.py:Net")()
    net.load_state_dict(torch.load("weights.pt", weights_only=True))
    x = (torch.from_numpy(images).float() / 255).requires_grad_()
    logits = net.eval()(x)
    assert accuracy == pytest.approx((logits.argmax(1).numpy() == labels)[30:].mean(), abs=1e-3) and accuracy > 0.5
    assert chance == pytest.approx(np.bincount(labels[30:]).max() / 30, abs=1e-3)
    raw = (x * torch.autograd.grad(logits.amax(1).sum(), x)[0]).abs().detach().numpy()
    low, high = raw.min((2, 3), keepdims=True), raw.max((2, 3), keepdims=True)
    np.testing.assert_allclose(hickle.load("r/aux/digits_model_input_gradient.hkl"), (raw - low) / (high - low), atol=1e-4)

    rows = ["--settings", "predmi", "expmi", "mine.py:blurred", "--attackers", "kernel", "mine.py:Nearest"]
    resolved = resolve("eval", [*flags, *rows])
    ownentries.register(())
    pipeline.train_row(resolved, "blurred")  # as a process of its own does, which knows nothing but the run
    monkeypatch.setattr(pipeline, "_pictures", lambda *_: None)
    code, out, err = run(capsys, "eval", *flags, *rows)
    assert code == 0, err
    assert "r/models/inv/digits_model_blurred_input_gradient.pt: found" in out
    written = json.loads(Path("r/figures/digits_model_input_gradient/results.json").read_text())
    assert written["settings"].keys() == {"predmi", "expmi", "blurred"}
    assert written["settings"]["blurred"]["attackers"].keys() == {"expmi", "kernel", "Nearest"}
    assert written["settings"]["predmi"]["not_applicable"]["Nearest"] == "it needs an explanation"
    assert "mine.py:blurred --attackers kernel mine.py:Nearest" in written["command"]
    assert "--victim serve.py:model --xai serve.py:input_gradient" in written["command"]
    train, test = slice(30, 52), slice(54, 60)  # of 60; see test_recipes
    maps, pictures = hickle.load("r/aux/digits_model_input_gradient.hkl"), images / 255
    nearest = [((maps[train] - one) ** 2).sum((1, 2, 3)).argmin() for one in maps[test]]
    error = ((pictures[train][nearest] - pictures[test]) ** 2).mean()
    assert written["settings"]["expmi"]["attackers"]["Nearest"]["mse"] == pytest.approx(error, rel=1e-4)

    for change in ("serve.py", "weights.pt", "mine.py"):  # identity: the file and the weights decide
        before = Path(change).read_bytes()
        if change == "weights.pt":
            torch.save({k: v + 0.01 if v.is_floating_point() else v for k, v in torch.load(change).items()}, change)
        else:
            Path(change).write_bytes(before + b"\n# changed\n")
        code, _, err = run(capsys, "eval", *flags, *rows)
        found = "row" if change == "mine.py" else "victim"
        assert code == 1 and f"made with {found}" in err, (change, err)
        Path(change).write_bytes(before)


def test_captums_attributions(folder):
    """Each is the library's, scaled; LRP and hooks leave the model as it was."""
    model = load_own("serve.py:model")().eval().requires_grad_(False)
    images = torch.rand(3, 1, 16, 16)
    target = model(images).argmax(1)
    expected = {
        "saliency": attr.Saliency(model).attribute(images.clone().requires_grad_(), target=target),
        "integrated_gradients": attr.IntegratedGradients(model).attribute(images, target=target, n_steps=20),
        "guided_gradcam": attr.GuidedGradCam(model, model.second[0]).attribute(images, target=target),
        "captum_lrp": attr.LRP(model).attribute(images, target=target)}
    for name, raw in expected.items():
        resolved = resolve("prepare", [*FLAGS, "--xai", f"shown.py:{name}"])
        ownentries.register(resolved.files)
        try_explainer(resolved, model, images)
        found = explainer(resolved)[0](model, images)
        raw = raw.detach().abs()
        low, high = raw.amin((2, 3), keepdim=True), raw.amax((2, 3), keepdim=True)
        torch.testing.assert_close(found, (raw - low) / (high - low), atol=1e-4, rtol=0)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "text", "says"), [
    ("--victim", "gone.py:model", "--victim: gone.py: no such file"), ("--victim", "model", "'model' is not FILE.py:NAME"),
    ("--victim", "serve.py:", "no name"), ("--victim", "serve.py:a-b", "no name"), ("--victim", ".py:a", "no such file"),
    ("--xai", "gone.py:ig", "--xai: gone.py: no such file"), ("--xai", "shap", "grad, gradcam, lrp, and not FILE.py:NAME"),
    ("--settings", "gone.py:a", "--settings: gone.py: no such file"), ("--attackers", "nobody", "not FILE.py:NAME"),
    ("--xai", "serve.py:lrp", "the name lrp is taken"), ("--settings", "serve.py:gnime", "the name gnime is taken"),
    ("--attackers", "serve.py:all", "the name all is taken"), ("--settings", "serve.py:none", "the name none is taken"),
    ("--xai", "serve.py:imgs", "the name imgs is taken"), ("--xai", "serve.py:maps_label", "a name that ends with _label"),
    ("--settings", "serve.py:injector", "the name injector is taken"), ("--scale", "signed", "an explainer of your own"),
    ("--image-size", "15", "not from 16 to 512"), ("--image-size", "513", "not from 16 to 512")])
def test_usage(folder, capsys, flag, text, says):
    code, _, err = run(capsys, "eval", flag, text)
    assert code == 2 and err.count("\n") == 1 and says in err


@pytest.mark.parametrize(("text", "name", "says"), [
    ("import torch\n\nimport not_there\n", "model",
     "own.py:3: cannot be imported (ModuleNotFoundError: No module named 'not_there')"),
    ("def model(:\n", "model", "own.py:1: cannot be imported (SyntaxError"),
    ("import beside\n", "model", "own.py:1: cannot be imported (ZeroDivisionError"),
    ("raise SystemExit\n", "model", "own.py:1: cannot be imported (SystemExit)"),
    ("def one(): ...\ndef other(): ...\n", "model", "own.py: has no model; it has one, other"),
    ("model = 3\n", "model", "own.py: model is a int, not a function"),
    ("\n\ndef model():\n    return 1 / 0\n", "model", "own.py:4: raises ZeroDivisionError: division by zero"),
    ("def model():\n    return 3\n", "model", "--victim own.py:model: returns int, not an nn.Module")])
def test_a_file_that_fails(folder, capsys, text, name, says):
    Path("own.py").write_text(text)
    Path("beside.py").write_text("1 / 0\n")
    code, _, err = run(capsys, "prepare", "--victim", f"own.py:{name}", "--gpu", "-1", "--root", "r")
    assert code == 1 and err.count("\n") == 1 and err.startswith("prepare.py: error: ") and says in err
    assert not Path("r").exists(), "nothing is written"


def test_a_file_is_run_once_and_again_where_it_changed(folder):
    Path("own.py").write_text("from beside import name\ndef one(): return name\n")
    Path("beside.py").write_text("name = 'beside'\n")
    one = load_own("own.py:one")
    assert one() == "beside" and load_own("own.py:one") is one
    Path("own.py").write_text("def one(): return 2\n")
    assert load_own("own.py:one")() == 2


def test_files_beside_it_hide_no_package_and_are_not_ours(folder):
    """A file named torch.py is no part of PyTorch, and `train` is the user's, not the script of a checkout."""
    for name in ("torch", "hickle", "statistics", "gnime"):
        Path(f"{name}.py").write_text("raise RuntimeError('a file of the user')\n")
    Path("train.py").write_text("from late import name\n")
    Path("late.py").write_text("name = 'beside'\n")
    Path("own.py").write_text("import hickle, statistics, torch\ndef one():\n    from train import name\n    return name\n")
    assert load_own("own.py:one")() == "beside"
    for name, module in (("torch", torch), ("hickle", hickle), ("statistics", statistics)):
        assert PathFinder.find_spec(name).origin == module.__file__


def test_errors_of_our_own_stay_errors(folder):
    """One line is for the user's code alone: a fault of the program keeps its traceback."""
    try:
        raise ValueError("ours")
    except ValueError as error:
        assert fixable(error) is None


# --- models ----------------------------------------------------------------------------------------------------------


class Faulty(nn.Module):
    """A sound classifier of (N, 1, 16, 16), or one with a fault."""

    def __init__(self, fault=None):
        super().__init__()
        self.layers, self.fault = nn.Sequential(nn.Flatten(), nn.Linear(256, 5)), fault
        self.register_buffer("count", torch.zeros(()))
        nn.init.normal_(self.layers[1].weight)

    def forward(self, images):
        return self.fault(self, images) if self.fault else self.layers(images)


def mutates(self, images):
    self.count += 1
    return self.layers(images)


FAULTS = {
    "trains": (lambda self, x: self.train().layers(x), "puts itself into training mode"),
    "chance": (lambda self, x: self.layers(nn.functional.dropout(x)), "answers for the same images differently"),
    "mutates": (mutates, "changes its own weights or buffers"),
    "input": (lambda self, x: self.layers(x.sub_(0.5)), "changes the images"),
    "batch": (lambda self, x: self.layers(x - x.mean(0)), "when it is alone in its batch"),
    "one": (lambda self, x: self.layers(x) if len(x) > 1 else x.view(7), "raises on images (1, 1, 16, 16): RuntimeError"),
    "tuple": (lambda self, x: (self.layers(x), x), "returns tuple, not a tensor"),
    "rows": (lambda self, x: self.layers(x[:2]), "returns (2, 5) for images (3, 1, 16, 16)"),
    "map": (lambda self, x: x, "returns (3, 1, 16, 16) for images"),
    "nan": (lambda self, x: self.layers(x) / 0 * 0, "not finite"),
    "half": (lambda self, x: self.layers(x).half(), "torch.float16"),
    "size": (lambda self, x: self.layers(x[..., 1:]), "raises on images (3, 1, 16, 16): RuntimeError: mat1 and mat2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_be_audited(fault):
    forward, says = FAULTS[fault]
    with pytest.raises(GnimeError, match=re.escape(says)) as raised:
        check_model(Faulty(forward).eval(), torch.rand(3, 1, 16, 16), "--victim own.py:model:")
    assert str(raised.value).startswith("--victim own.py:model: ")


def test_a_sound_model(capsys):
    images = torch.rand(3, 1, 16, 16)
    assert torch.equal(check_model(model := Faulty().eval(), images, "own:"), model(images))
    assert capsys.readouterr().err == ""
    check_model(Faulty(lambda self, x: self.layers(x).softmax(1)).eval(), images, "own:")
    assert capsys.readouterr().err.startswith("warning: own: its answers look like probabilities")


def test_deepsim_compares_what_the_last_linear_layer_is_given():
    model, images = Faulty().eval(), torch.rand(4, 1, 16, 16)
    assert torch.equal(features(model, images), images.flatten(1))
    two = nn.Sequential(nn.Flatten(), nn.Linear(256, 7), nn.ReLU(), nn.Linear(7, 5), nn.Identity()).eval()
    assert torch.equal(features(two, images), two[:3](images))
    assert torch.equal(features(headless := nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), images), headless(images))
    paper = Classifier((1, 16), 5, (4,), 6).eval()
    assert torch.equal(features(paper, images), paper.features(images)) and features(paper, images).shape == (4, 4 * 64)
    broken = Faulty(lambda self, x: self.layers(x) + torch.zeros(9)).eval()
    with pytest.raises(RuntimeError):
        features(broken, images)
    for network in (model, two, broken):
        assert not any(part._forward_pre_hooks for part in network.modules())


# --- maps ------------------------------------------------------------------------------------------------------------

MAPS = {
    "nan": (lambda x: x / 0 * 0, "not finite"), "1x1": (lambda x: x.mean((2, 3), keepdim=True), "maps of 1 x 1"),
    "8x16": (lambda x: x[:, :, :8], "maps of 8 x 16; they must be square"),
    "vectors": (lambda x: x.flatten(1), "(3, 256); maps are floating-point (N, K, S, S)"),
    "too few": (lambda x: x[1:], "returns (2, 1, 16, 16), and needs a map for each image: (3, K, S, S)"),
    "array": (lambda x: x.numpy(), "returns ndarray"),
    "integers": (lambda x: x.long(), "torch.int64"), "too large": (lambda x: x.repeat(1, 1, 5, 5), "--width of at least 128"),
    "raises": (lambda x: x.view(7), "raises on images (3, 1, 16, 16): RuntimeError: shape"),
    "one": (lambda x: x[:, :, : 13 + len(x), : 13 + len(x)], "(3, 1, 16, 16) for 3 images and (1, 1, 14, 14) for one"),
}


def own(monkeypatch, make, *flags):
    """The run of an explainer that ignores the model."""
    resolved = resolve("prepare", ["--width", "64"])
    monkeypatch.setattr(registry.Explainer, "load", lambda self: lambda model, images: make(images))
    monkeypatch.setitem(registry.EXPLAINERS, "own", registry.Explainer("own", "own", "own.py:own"))
    return replace(resolved, xai="own", **dict(flags))


def test_an_object_that_takes_other_arguments_is_one_line():
    with pytest.raises(GnimeError, match=r"^mine.py:blurred: TypeError: .*blurred\(\) takes 1 .* docs/own-model.md"):
        def blurred(inputs):
            return inputs
        call("mine.py:blurred", blurred, 1, 2, 3)


@pytest.mark.parametrize("case", MAPS)
def test_maps_that_the_networks_cannot_take(monkeypatch, case):
    make, says = MAPS[case]
    with pytest.raises(GnimeError, match=re.escape(says)) as raised:
        try_explainer(own(monkeypatch, make), Faulty().eval(), torch.rand(3, 1, 16, 16))
    assert str(raised.value).startswith("--xai own.py:own: ")


def test_maps_are_scaled_as_the_paper_scales(monkeypatch):
    """Signed, attached to a graph, of another side and precision: by hand."""
    raw = torch.tensor([[-4.0, 0.0], [1.0, 2.0]]).expand(1, 1, 2, 2)
    weight = torch.ones((), requires_grad=True)

    def make(images):
        return (raw * weight).double()

    found = explainer(own(monkeypatch, make))[0](Faulty(), torch.rand(1, 1, 16, 16))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert found.tolist() == [[[[1.0, 0.0], [0.25, 0.5]]]]
    found = explainer(own(monkeypatch, make, ("scale", "signed")))[0](Faulty(), torch.rand(1, 1, 16, 16))
    assert found.tolist() == [[[[0.0, 0.5], [0.625, 0.75]]]]
    one, other = (ExplanationTask(own(monkeypatch, make, ("scale", scale)), SimpleNamespace(digest="d"), None, "v").identity()
                  for scale in ("absolute", "signed"))
    for recorded, wanted in ((one, other), (other, one)):
        with pytest.raises(GnimeError, match="scale"):
            require(Path("maps.hkl"), recorded, wanted)
    nothing = own(monkeypatch, lambda x: x * 0, ("scale", "signed"))
    assert (explainer(nothing)[0](Faulty(), torch.rand(1, 1, 16, 16)) == 0.5).all()


def test_an_explainer_may_not_change_what_it_explains(monkeypatch):
    model, images = Faulty().eval(), torch.rand(3, 1, 16, 16)
    kept = images.clone()
    try_explainer(own(monkeypatch, lambda x: x.mul_(2)), model, images)
    assert torch.equal(images, kept), "it works on a copy"
    for change in (model.train, partial(model.layers[1].weight.data.add_, 1)):
        with pytest.raises(GnimeError, match="leaves the model changed"):
            try_explainer(own(monkeypatch, lambda x, change=change: (change(), x)[1]), model, images)
        model.eval()


def test_a_map_of_chance_is_warned_of(monkeypatch, capsys):
    try_explainer(own(monkeypatch, torch.rand_like), Faulty().eval(), torch.rand(3, 1, 16, 16))
    assert "depends on chance, or on other images" in capsys.readouterr().err


# --- attackers, sides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "says"), [
    (torch.rand(2, 1, 4, 4), "reconstructs (2, 1, 4, 4), not a tensor of images (3, 1, 4, 4)"), ([1], "reconstructs list"),
    (torch.full((3, 1, 4, 4), torch.nan), "not finite")])
def test_an_attacker_that_returns_no_images(images, says):
    fitted = attackers.checked(attackers.Fitted(lambda explanation, prediction: images), "own", (1, 4, 4))
    with pytest.raises(GnimeError, match=re.escape(says)):
        fitted.reconstruct(None, torch.rand(3, 5))
    with pytest.raises(GnimeError, match="returned NoneType, not a function"):
        attackers.checked(attackers.Fitted(None), "own", (1, 4, 4))


def test_images_and_maps_of_any_side(folder, capsys, monkeypatch):
    """Images of 20 x 20, maps of 5 x 5: every file has these sides, and the scripts say where the networks work."""
    Path("own.py").write_text("""
import torch
def model():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(400, 10))
def coarse(model, images):
    return torch.nn.functional.avg_pool2d(images - 0.5, 4)
""")
    flags = ["--victim", "own.py:model", "--xai", "own.py:coarse", "--image-size", "20", "--gpu", "-1", "--limit", "40",
             "--width", "64", "--epochs", "1", "--root", "r"]
    monkeypatch.setattr(pipeline, "_pictures", lambda *_: None)
    monkeypatch.setattr("gnime.report.figures.injector_losses", lambda *_: None)
    for script in ("prepare", "train", "eval"):
        code, out, err = run(capsys, script, *flags, *(["--attackers", "kernel", "unet"] if script == "eval" else []))
        assert code == 0, err
        assert "images        20 x 20: networks work at 32 x 32" in out and "maps          5 x 5: networks work at 8 x 8" in out
    assert hickle.load("r/aux/digits_imgs.hkl").shape == (40, 1, 20, 20)
    maps = hickle.load("r/aux/digits_model_coarse.hkl")
    assert maps.shape == (40, 1, 5, 5) and maps.min() == 0 and maps.max() == 1
    injector = rebuild("r/models/def/digits_model_coarse/injector.pt")
    assert injector(torch.from_numpy(maps[:2]), torch.rand(2, 10)).shape == (2, 1, 5, 5)
    for name in ("predmi", "expmi_coarse", "gnime_coarse_unet"):
        inverter = rebuild(f"r/models/inv/digits_model_{name}.pt")
        assert inverter(torch.from_numpy(maps[:2]), torch.rand(2, 10)).shape == (2, 1, 20, 20)
