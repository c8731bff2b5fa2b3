"""`--layer`: the layer that Grad-CAM explains is chosen, checked, and part of the identity of all that is made of its maps."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hickle
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torchvision.models import VisionTransformer

from gnime import Protected, export, pipeline
from gnime.checkpoints import require
from gnime.cli import resolve
from gnime.errors import GnimeError, UsageError
from gnime.explainers.feature_map import WrongLayer
from gnime.explainers.gradcam import gradcam
from gnime.explainers.stack import minmax
from gnime.explanations import ExplanationTask, try_explainer
from gnime.networks import rebuild
from gnime.paths import Paths
from gnime.report.html import explainer_title

FLAGS = ["--xai", "gradcam", "--layer", "relu0"]


@pytest.mark.parametrize(("flags", "says"), [
    (["--xai", "lrp", "--layer", "conv0"], "--layer: lrp does not take a layer; the flag is for --xai gradcam"),
    (["--layer", "conv0"], "--layer: lrp does not take"), (["--xai", "gradcam", "--layer", ""], "'' is not the name"),
    (["--xai", f"{__file__}:own", "--layer", "conv0"], ":own does not take a layer"),
    (["--xai", "gradcam", "--layer", "a\n"], "is not the name"),
    (["--xai", "gradcam", "--layer", "a" * 100], "is not the name")])
def test_usage(capsys, flags, says):
    for parse in (lambda: resolve("eval", flags), lambda: export.main([*flags, "--setting", "gnime", "o.onnx"])):
        with pytest.raises(SystemExit) as stopped:
            parse()
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and says in err and err.count("\n") == 1


def test_no_two_layers_share_a_file():
    """Nor does one have the name of another's state, whatever is published and whichever attacker it is."""
    run, seen, predmi = resolve("eval", ["--xai", "gradcam"]), {}, set()
    layers = ["", "a", "a.state", "a%2Estate", "a_label", "a_unet", "a/b", "a@b", "b"]
    for layer, published, target in itertools.product(layers, ("logits", "label"), ("digits", "digits_gnime")):
        paths = Paths(replace(run, layer=layer, published=published, target=replace(run.target, name=target)))
        files = [paths.injector(300), paths.injector(7), paths.defence("cond-mean"), paths.results, *(
            paths.inverter(row, attacker) for row in ("expmi", "gnime@7") for attacker in ("expmi", "unet"))]
        files += [paths.state(path) for path in files] + [paths.explanations] * (published == "logits")
        predmi.add(paths.inverter("predmi"))
        for path in files:
            assert path not in seen, (path, layer, published, seen[path])
            seen[path] = layer, published
    assert len(predmi) == 4, "PredMI sees no map: one for each target and published form"
    assert Paths(run).explanations == Path("aux/digits_gradcam.hkl")


def test_a_record_of_another_layer_is_refused():
    run, data = resolve("prepare", ["--xai", "gradcam"]), SimpleNamespace(digest="d")
    tasks = [ExplanationTask(replace(run, layer=layer), data, None, "v") for layer in ("", "conv0", "conv1")]
    assert "layer" not in tasks[0].identity()
    for one, other in itertools.permutations(tasks, 2):
        with pytest.raises(GnimeError, match="made with (no )?layer.* give the same --layer"):
            require(Path("maps.hkl"), one.identity(), other.identity())


def test_the_scripts_at_a_layer(scripts, root_copy, tmp_path, monkeypatch, capsys):
    """Maps and sides are those of the layer; defence, attackers and service follow."""
    monkeypatch.setattr(pipeline, "_pictures", lambda *_: None)
    monkeypatch.setattr("gnime.report.figures.injector_losses", lambda *_: None)
    for script in ("prepare", "train"):  # before anything is written, and where the victim is there
        code, line = scripts.fails(script, tmp_path / "new" if script == "prepare" else root_copy, *FLAGS[:3], "relu7")
        assert code == 2 and "--layer relu7: no module of that name" in line
        assert line.endswith("conv0, relu0, pool0, conv1, relu1, pool1")
    assert not (tmp_path / "new").exists()
    code, line = scripts.fails("eval", root_copy, *FLAGS)
    assert code == 1 and "digits_gradcam@relu0.hkl is missing" in line and "--xai gradcam --layer relu0" in line
    kept = {path: path.read_bytes() for path in root_copy.rglob("*") if path.is_file() and path.stat().st_size}
    for script in ("prepare", "train", "eval"):
        more = ["--settings", "predmi", "expmi", "gnime"] if script == "eval" else []
        code, out, err = scripts(script, root_copy, *FLAGS, *more)
        assert code == 0, err
        assert "xai gradcam, layer relu0" in out
    assert all(path.read_bytes() == before for path, before in kept.items()), "files of other explainers stay"

    victim, maps = rebuild(root_copy / "models/victim/digits.pt"), hickle.load(root_copy / "aux/digits_gradcam@relu0.hkl")
    images = torch.from_numpy(hickle.load(root_copy / "aux/digits_imgs.hkl")[:9]).float() / 255
    raw = LayerGradCam(victim, victim.relu0).attribute(images, victim(images).argmax(1), relu_attributions=False).detach()
    assert maps.shape == (60, 1, 16, 16)
    torch.testing.assert_close(torch.from_numpy(maps[:9]), minmax(raw), atol=1e-5, rtol=0)

    path = root_copy / "models/def/digits_gradcam@relu0/injector.pt"
    protected = Protected.load(path, victim, "gradcam")
    expected = rebuild(path)(minmax(raw), victim(images))
    assert protected.record["layer"] == "relu0"
    torch.testing.assert_close(protected.attribute(images), expected.detach(), atol=1e-5, rtol=0)
    with pytest.raises(GnimeError, match=r"made for maps of size \[1, 16, 16\]"):
        Protected.load(path, victim, gradcam)  # at the usual layer
    results = Paths(resolve("eval", ["--root", str(root_copy), *FLAGS])).results
    assert results.is_file()
    assert export.main(["--xai", "gradcam", "--layer", "relu1", "--setting", "gnime", "--root", str(root_copy),
                        str(tmp_path / "o.pt2")]) == 1
    assert "gradcam@relu1/injector.pt is missing; make it with: " in (err := capsys.readouterr().err) and "--layer relu1" in err


def test_the_report_names_the_layer():
    assert explainer_title({"xai": "gradcam", "configuration": {"layer": "relu0"}}) == "Grad-CAM of relu0"
    assert explainer_title({"xai": "gradcam", "configuration": {}}) == "Grad-CAM"


class Meeting(nn.Module):
    """A network whose callers wait for each other in the middle of it, so that all of them have their hooks in place."""

    def __init__(self, barrier):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        self.barrier, self.fc = barrier, nn.Linear(4 * 16, 5)

    def forward(self, x):
        x = self.first(x).relu()
        self.barrier.wait(10)
        return self.fc(self.second(x).relu().flatten(1))


def test_threads_explain_at_layers_at_once():
    model = Meeting(barrier := threading.Barrier(1)).requires_grad_(False)
    batches = torch.rand(2, 3, 1, 8, 8)
    expected = [gradcam(model, images, layer=layer) for images, layer in zip(batches, ("first", "second"), strict=True)]
    model.barrier, found = threading.Barrier(2), {}

    def work(index, layer):
        found[index] = gradcam(model, batches[index], layer=layer)

    threads = [threading.Thread(target=work, args=each) for each in enumerate(("first", "second"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert barrier.broken is False
    for index, maps in enumerate(expected):
        torch.testing.assert_close(found[index], maps)


def test_what_a_transformer_is_refused_is_said_whole():
    """No type of Python's error, and nothing of the remedy is cut off."""
    model = VisionTransformer(16, 8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=3).eval()
    images, run = torch.rand(3, 3, 16, 16), resolve("prepare", ["--xai", "gradcam"])
    for changed, start in (({}, "--xai gradcam: the network turns the image into tokens, and "),
                           ({"xai": "lrp"}, "--xai lrp: layer_norm in layer 'encoder.layers.")):
        with pytest.raises(GnimeError) as refused:
            try_explainer(replace(run, **changed), model, images)
        assert str(refused.value).startswith(start)
        assert str(refused.value).endswith("or one of your own with --xai FILE.py:NAME")
        assert refused.value.exit_code == 1
    with pytest.raises(UsageError, match=r"^--layer encoder: its output is \(1, 5, 8\), .* in order, are conv_proj$"):
        try_explainer(replace(run, layer="encoder"), model, images)
    try_explainer(replace(run, layer="conv_proj"), model, images)


def test_a_long_list_of_layers_says_that_it_was_cut():
    """Both errors list the last 20 of 25 layers, those nearest the output."""
    model = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 1) for _ in range(25)), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    images = torch.rand(2, 1, 2, 2)
    for layer, starts in (("nowhere", "no module of that name is called; "), ("25", "its output is (1, 4), ")):
        with pytest.raises(WrongLayer) as refused:
            gradcam(model, images, layer=layer)
        assert str(refused.value).startswith(f"--layer {layer}: {starts}")
        assert str(refused.value).endswith(f" {', '.join(map(str, range(5, 25)))} (5 before them are left out)")
    with pytest.raises(WrongLayer, match="no module has a feature map; use --xai grad$"):
        gradcam(model[25:], images, layer="0")
