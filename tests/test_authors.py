"""The authors' networks: TensorFlow's files are read without it, converted once, and refused where they are damaged."""

import hashlib
import json
import random
import shutil
import tracemalloc
from pathlib import Path

import bundles
import hickle
import numpy as np
import pytest
import torch
from bundles import field

from gnime import arrays
from gnime.authors import split_warning
from gnime.authors.bundle import Bundle
from gnime.authors.convert import read_network
from gnime.authors.crc32c import crc32c
from gnime.checkpoints import load_checkpoint
from gnime.errors import GnimeError
from gnime.models.classifier import Classifier
from gnime.models.injector import Injector
from gnime.models.inversion import ExpMI, PredMI
from gnime.networks import rebuild
from gnime.protected import Protected
from stress.child import mutate

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference" / "authors"
LAYERS = ("conv", "fc", "dense", "encoder", "code", "bottleneck", "decoder")


def loaded(network, bundle, part=""):
    network.load_state_dict(read_network(bundle, network, part))
    return network.eval()


def close(ours, theirs, most, turned=False):
    """turned: theirs are pictures with the channels last."""
    ours, theirs = np.asarray(ours.detach()), np.asarray(theirs)
    theirs = theirs.transpose(0, 3, 1, 2) if turned else theirs
    assert ours.shape == theirs.shape and abs(ours - theirs).max() < most


# --- checksums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "found"), [
    (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283), (b"", 0)], ids=["zeros", "ones", "up", "down", "digits", "nothing"])
def test_checksums_of_the_standard(data, found):
    """RFC 3720, appendix B.4."""
    assert crc32c(data) == bundles.crc32c(data) == found


def test_checksums_of_any_length():
    numbers = random.Random(0)
    for length in [*range(70), 255, 256, 257, 1000, 4095, 65537]:
        data = numbers.randbytes(length)
        assert crc32c(data) == bundles.crc32c(data)


# --- against TensorFlow ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release():
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent")
    with np.load(SHARED / "outputs.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_outputs_are_those_of_tensorflow(release):
    """Victim and evaluation classifier have one layout; PredMI's is not among the files: its twin is below."""
    victim, expmi = (Bundle(SHARED / name / "variables/variables") for name in ("victim/mnist", "inv/mnist_expmi_lrp"))
    trained = Bundle(SHARED / "def/mnist_lrp/e500.ckpt")
    for bundle, part in ((victim, ""), (trained, "victim_model")):
        classifier = loaded(Classifier((1, 16), 10, (128, 256), 512), bundle, part)
        close(classifier(release["image"]), release["victim_logits"], 1e-5)
    shown = release["explanation"], release["prediction"]
    close(loaded(ExpMI(1, 16, 10, 1, 16, 64), expmi)(*shown), release["expmi"], 1e-5)
    scale = release["mean"].item(), release["std"].item()
    protected = loaded(Injector(1, 16, 10, 64, *scale), trained, "noiser")(*shown)
    close(protected, release["protected"], 1e-5)
    inverted = loaded(ExpMI(1, 16, 10, 1, 16, 64), trained, "inverter")(protected, shown[1])
    close(inverted, release["protected_inverted"], 1e-5)


# --- against slow twins in Keras's layout ------------------------------------------------------------------------------


def keras_layers(network):
    """Kernels and biases of the sizes of `network`, at random, as Keras has them."""
    numbers, found = np.random.default_rng(0), []
    layers = {name.removeprefix("network."): value for name, value in network.state_dict().items() if name.endswith("weight")}
    for prefix in LAYERS:
        for name, weight in layers.items():
            if name.startswith(prefix):
                shape = [weight.shape[i] for i in ((2, 3, 1, 0) if weight.ndim == 4 else (1, 0))]
                kernel = numbers.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)
                found.append((kernel, numbers.normal(0, 0.1, shape[-1]).astype(np.float32)))
    return found


def pictures(*shape):
    """Channels last for the twin, channels first for ours."""
    values = np.random.default_rng(1).random(shape)
    return values, torch.from_numpy(values).float().permute(0, 3, 1, 2)


Y = np.random.default_rng(2).normal(0, 2, (4, 5))


@pytest.mark.parametrize("convs", [(4, 6), (4, 6, 8)], ids=["two convolutions", "three, and dropout"])
def test_a_classifier_is_its_twin(tmp_path, convs):
    network = Classifier((3, 16), 5, convs, 12, dropout=0.5 * (len(convs) == 3))
    layers = keras_layers(network)
    theirs, ours = pictures(4, 16, 16, 3)
    bundle = Bundle(bundles.write(tmp_path / "variables", {"": layers}))
    close(loaded(network, bundle)(ours), bundles.classifier(layers, theirs), 1e-5)


def test_predmi_is_its_twin(tmp_path):
    network = PredMI(5, 3, 16, 64)
    layers = keras_layers(network)
    bundle = Bundle(bundles.write(tmp_path / "variables", {"": layers}))
    close(loaded(network, bundle)(None, torch.from_numpy(Y).float()), bundles.predmi(layers, Y), 1e-5, turned=True)


@pytest.mark.parametrize(("channels", "side"), [(3, 16), (2, 8), (3, 32)], ids=["same", "smaller", "larger"])
def test_expmi_is_its_twin(tmp_path, channels, side):
    network = ExpMI(channels, side, 5, 3, 16, 64)
    layers = keras_layers(network)
    theirs, ours = pictures(4, side, side, channels)
    bundle = Bundle(bundles.write(tmp_path / "variables", {"": layers}))
    close(loaded(network, bundle)(ours, torch.from_numpy(Y).float()), bundles.expmi(layers, theirs, Y), 1e-5, turned=True)


def test_an_injector_is_its_twin(tmp_path):
    network = Injector(3, 8, 5, 64, 0.4, 0.25)
    layers = keras_layers(network)
    theirs, ours = pictures(4, 8, 8, 3)
    bundle = Bundle(bundles.write(tmp_path / "e5.ckpt", {"noiser": layers, "victim_model": layers[:3]}))
    found = loaded(network, bundle, "noiser")(ours, torch.from_numpy(Y).float())
    close(found, bundles.injector(layers, theirs, Y, 0.4, 0.25), 1e-5, turned=True)
    assert 0 < found.detach().min() and len(bundle.layers("victim_model")) == 3


# --- damage ----------------------------------------------------------------------------------------------------------

SMALL = [(np.arange(24.0).reshape(3, 8), np.arange(8.0)), (np.ones((8, 2)), np.zeros(2))]


def content(prefix):
    bundle = Bundle(prefix)
    return [bundle.numbers(entry).tolist() for layer in bundle.layers() for entry in layer]


def test_what_was_written_is_read(tmp_path):
    prefix = bundles.write(tmp_path / "a", {"": SMALL})
    assert content(prefix) == [value.tolist() for layer in SMALL for value in layer]
    files = (tmp_path / "a.index").read_bytes() + (tmp_path / "a.data-00000-of-00001").read_bytes()
    assert Bundle(prefix).digest() == hashlib.sha256(files).hexdigest()


@pytest.mark.parametrize("end", [".index", ".data-00000-of-00001"])
def test_damage_is_refused_or_harmless(tmp_path, end):
    prefix = bundles.write(tmp_path / "a", {"": SMALL})
    path, wanted = tmp_path / f"a{end}", content(prefix)
    data, chance, refused = path.read_bytes(), random.Random(1), 0
    cut = [data[:length] for length in range(0, len(data), 19)]
    for damaged in [*cut, *(mutate(data, chance)[1] for _ in range(80))]:
        path.write_bytes(damaged)
        try:
            assert content(prefix) == wanted
        except GnimeError as error:
            assert "a.index" in str(error) or "a.data" in str(error)
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.8 * (len(cut) + 80)
    path.unlink()
    with pytest.raises(GnimeError, match="a.*cannot be read"):
        content(prefix)


@pytest.mark.parametrize("length", [(1 << 32) - 1, 1 << 32, (1 << 69) - 1])
def test_a_length_of_more_than_four_bytes(tmp_path, length):
    prefix = bundles.write(tmp_path / "a", {"": SMALL})
    path, claimed = tmp_path / "a.data-00000-of-00001", bundles.varint(length)
    path.write_bytes(claimed + path.read_bytes()[len(claimed) :])  # the graph's text is the first of the tensors
    with pytest.raises(GnimeError, match="a.data-00000-of-00001: damaged, .*a text is cut off"):
        Bundle(prefix)


def changed(number, **how):
    """Changes the entry of that place in the index; see `bundles.entry`."""
    def change(entries):
        name, _ = entries[number]
        made = {"kind": 1, "shape": (8,), "start": 0, "data": bytes(32)} | how
        return [*entries[:number], (name, bundles.entry(**made)), *entries[number + 1 :]]
    return change


class Length(bytes):
    """Says that it is longer than it is."""

    def __len__(self):
        return 1 << 60


@pytest.mark.parametrize(("change", "how", "reason"), [
    (changed(2, shape=(1 << 40, 1 << 20)), {}, "its size is not that of its shape"),
    (changed(2, shape=(1,) * 9), {}, "too many axes"),
    (changed(2, shape=(1 << 58,), data=Length(bytes(4)), checksum=bytes(4)), {}, "cut off"),
    (changed(2, start=1 << 62), {}, "cut off"), (changed(2, start=4), {}, "checksum"), (changed(2, kind=2), {}, "float32"),
    (changed(2, f3=1), {}, "in another file"), (changed(2, f7=b""), {}, "in slices"), (changed(2, f4=b"x"), {}, "another kind"),
    (changed(1, kind=7, data=Length(), checksum=bytes(4)), {}, "graph of objects"), (changed(1), {}, "graph of objects"),
    (lambda entries: entries[:1] + entries[2:], {}, "no graph"), (lambda entries: entries[:3], {}, "is not there"),
    (lambda entries: entries[1:], {}, "more than one data file"), (lambda entries: entries[::-1], {}, "not in order"),
    (lambda entries: [*entries, (b"z" * 1001, b"")], {}, "too long"),
    (lambda entries: [*entries, (b"z", bytes(1 << 20))], {}, "bytes"),
    (list, {"compression": 1}, "compressed"), (list, {"repeat": 1000}, "overlap"),
    (list, {"header": field(1, 2)}, "more than one data file"), (list, {"header": field(1, 1) + field(2, 1)}, "byte order")],
    ids=["huge shape", "many axes", "huge size", "far away", "elsewhere", "float64", "shards", "slices", "other kind",
         "huge graph", "no text", "no graph", "no tensors", "no header", "no order", "long name", "large", "compressed",
         "repeated", "two files", "big endian"])
def test_hostile_files_are_refused_at_once(tmp_path, change, how, reason):
    """Their checksums fit, so what they say must be doubted by itself."""
    prefix = bundles.write(tmp_path / "a", {"": SMALL}, change, **how)
    tracemalloc.start()
    with pytest.raises(GnimeError, match=f"a[.].*{reason}"):
        content(prefix)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(("network", "reason"), [
    (Classifier((1, 16), 5, (4, 6), 12), "its fc1 has shape .12, 4., .* needs .12, 5.; it is another network"),
    (Classifier((1, 16), 4, (4, 6, 8), 12), "4 layers with weights, this run's network 5; it is another network"),
    (ExpMI(1, 16, 4, 1, 16, 128), "it is of --width 64: give that"), (PredMI(4, 1, 16, 128), "it is of --width 64: give that"),
    (PredMI(4, 3, 16, 64), "its decoder.2 has shape .3, 3, 16, 1., .* needs .3, 3, 16, 3."),
    (ExpMI(1, 16, 4, 1, 32, 64), "8 layers with weights, this run's network 9")],
    ids=["classes", "convolutions", "width", "width of predmi", "channels", "side"])
def test_other_sizes_are_named(tmp_path, network, reason):
    there = {Classifier: Classifier((1, 16), 4, (4, 6), 12), ExpMI: ExpMI(1, 16, 4, 1, 16, 64), PredMI: PredMI(4, 1, 16, 64)}
    bundle = Bundle(bundles.write(tmp_path / "variables", {"": keras_layers(there[type(network)])}))
    with pytest.raises(GnimeError, match=f"variables: does not fit: .*{reason}"):
        read_network(bundle, network)


# --- a root as the authors publish theirs ------------------------------------------------------------------------------


def in_keras_layout(network):
    """Kernels and biases of a network of ours, its flattened maps in (H, W, C) order."""
    state, found = {name.removeprefix("network."): value.numpy() for name, value in network.state_dict().items()}, []
    for prefix in LAYERS:
        for name in (name for name in state if name.startswith(prefix) and name.endswith("weight")):
            weight = state[name]
            if prefix == "bottleneck":
                code, maps, prediction = np.split(weight, [64, 64 + 256], 1)
                kernel = np.concatenate([code, flattened(maps, 1, 16), prediction], 1).T
            elif weight.ndim == 4:
                kernel = weight.transpose(2, 3, 1, 0)
            else:
                kernel = flattened(weight, *{"fc0": (64, 4), "code": (16, 2)}.get(name[:-7], (weight.shape[1], 1))).T
            found.append((kernel, state[name.replace("weight", "bias")]))
    return found


def flattened(weight, channels, side):
    return weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(len(weight), -1)


NAMES = {"victim/digits": "", "eval/digits": "", "inv/digits_predmi": "", "inv/digits_expmi_lrp": "",
         "def/digits_lrp/injector": "e100.ckpt"}


@pytest.fixture(scope="module")
def published(small_root, tmp_path_factory):
    """The networks of `small_root` in TensorFlow's files, and its arrays channels last and without a record."""
    root = tmp_path_factory.mktemp("published")
    layers = {name: in_keras_layout(rebuild(small_root / f"models/{name}.pt")) for name in NAMES}
    for name, checkpoint in NAMES.items():
        if checkpoint:
            folder, victim = (root / "models" / name).parent, layers["victim/digits"]
            bundles.write(folder / checkpoint, {"noiser": layers[name], "inverter": layers["inv/digits_expmi_lrp"],
                                                "victim_model": victim})
            bundles.write(folder / "e50.ckpt", {"noiser": victim, "victim_model": victim})  # an earlier one is not read
        else:
            bundles.write(root / "models" / name / "variables/variables", {"": layers[name]})
            (root / "models" / name / "saved_model.pb").touch()
    (root / "aux").mkdir()
    for name in ("imgs", "labels", "lrp"):
        rows = np.array(arrays.load(small_root / f"aux/digits_{name}.hkl").rows)
        if rows.ndim == 4:
            rows = (rows / (255 if rows.dtype == np.uint8 else 1)).transpose(0, 2, 3, 1).astype(np.float32)
        hickle.dump(rows, root / f"aux/digits_{name}.hkl", mode="w")
    return root


@pytest.fixture
def published_copy(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "published"))


def test_a_published_root_is_used_and_converted_once(scripts, small_root, published_copy, monkeypatch):
    root = published_copy
    monkeypatch.setattr("gnime.pipeline._pictures", lambda *_: None)
    told = ""
    for script, *flags in (("prepare",), ("train",), ("eval", "--settings", "predmi", "expmi", "gnime")):
        code, out, lines = scripts(script, root, *flags)
        assert code == 0, lines
        told += out
    for name, checkpoint in NAMES.items():
        origin = f"models/{name}".replace("injector", checkpoint)
        assert told.count(f"converted from {origin} of the authors' release") == 1
        ours, found = (load_checkpoint(folder / f"models/{name}.pt") for folder in (small_root, root))
        assert found.origin == origin and not found.trained
        for key, value in ours.tensors.items():  # mean and standard deviation are computed again, in another order of sums
            assert found.tensors[key].equal(value) or key in ("mean", "std") and found.tensors[key].allclose(value)
        prefix = root / origin / ("" if checkpoint else "variables/variables")
        files = [prefix.with_name(f"{prefix.name}{end}") for end in (".index", ".data-00000-of-00001")]
        wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        assert found.made_by["converted"]["sha256"] == wanted
    assert told.count("digits_imgs.hkl: (60, 16, 16, 1), channels last; turned") == 3
    assert told.count("digits_lrp.hkl: (60, 16, 16, 1), channels last; turned") == 3
    assert "training" not in told.replace("gnime         training", "")  # the attacker of protected maps is not published

    content = json.loads((root / "figures/digits_lrp/results.json").read_text())
    assert {name for name, made in content["networks"].items() if "converted" in made} == {
        "victim", "evaluation", "injector", "predmi", "expmi"}
    names = "victim, evaluation, injector, predmi, expmi"
    assert split_warning(names.split(", "), False)[0] in content["warnings"]
    assert content["configuration"]["stages"]["injector"] is None
    before = json.loads((small_root / "figures/digits_lrp/results.json").read_text())
    for row, metric in (("predmi", "mse"), ("expmi", "mse"), ("expmi", "tca"), ("expmi", "deepsim")):
        assert content["settings"][row][metric] == pytest.approx(before["settings"][row][metric], rel=1e-4)
    defence = Protected.load(root / "models/def/digits_lrp/injector.pt", rebuild(root / "models/victim/digits.pt"), "lrp")
    assert defence.attribute(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)

    (root / "models/victim/digits/variables/variables.index").write_bytes(b"")  # it is not read again
    code, out, _ = scripts("train", root)
    assert code == 0 and "digits.pt: found, converted from models/victim/digits" in out and "release" not in out


def test_what_does_not_fit_is_refused_and_nothing_written(scripts, published_copy):
    models = published_copy / "models"
    index = models / "eval/digits/variables/variables.index"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1])
    code, line = scripts.fails("prepare", published_copy)
    assert code == 1 and "variables.index: damaged" in line and not (models / "eval/digits.pt").exists()
    index.write_bytes(whole)
    index.rename(published_copy.parent / "elsewhere")
    index.symlink_to(published_copy.parent / "elsewhere")
    code, line = scripts.fails("prepare", published_copy)
    assert code == 1 and "variables.index: a symbolic link in it leads out of --root" in line
    (models / "eval/digits/variables/variables.data-00000-of-00001").unlink()
    (published_copy.parent / "elsewhere").replace(index)
    code, line = scripts.fails("prepare", published_copy)
    assert code == 1 and "variables.data-00000-of-00001: cannot be read" in line
    code, line = scripts.fails("train", published_copy, "--width", 128)
    assert code == 1 and "it is of --width 64: give that" in line and not (models / "def/digits_lrp/injector.pt").exists()


def test_networks_of_another_victim_are_refused(scripts, root_copy, published):
    """This run's victim was trained here."""
    models = root_copy / "models"
    injector, expmi = models / "def/digits_lrp/injector.pt", models / "inv/digits_expmi_lrp.pt"
    layers = {name: in_keras_layout(rebuild(path)) for name, path in (
        ("noiser", injector), ("victim_model", models / "victim/digits.pt"), ("other", models / "eval/digits.pt"))}
    injector.unlink()
    bundles.write(injector.with_name("e7.ckpt"), layers | {"victim_model": layers["other"]})
    code, line = scripts.fails("train", root_copy)
    assert code == 1 and "def/digits_lrp/e7.ckpt: made for another victim" in line and not injector.exists()
    bundles.write(injector.with_name("e8.ckpt"), layers)
    code, out, _ = scripts("train", root_copy)
    assert code == 0 and "converted from models/def/digits_lrp/e8.ckpt" in out

    expmi.unlink()
    shutil.copytree(published / "models/inv/digits_expmi_lrp", expmi.with_suffix(""))
    code, line = scripts.fails("eval", root_copy, "--settings", "predmi", "expmi")
    assert code == 1 and "inv/digits_expmi_lrp: made for another victim" in line and not expmi.exists()


def test_the_warning_says_which_networks_and_why():
    assert split_warning([], True) == []
    (warning,) = split_warning(["victim", "expmi"], True)
    assert "victim, expmi" in warning and "otherwise than this run" in warning


def test_a_checkpoint_without_its_index_is_named(scripts, published_copy):
    """A copy that was cut off: nothing is trained in its place."""
    folder = published_copy / "models/def/digits_lrp"
    for index in folder.glob("e*.ckpt.index"):
        index.unlink()
    before = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    code, line = scripts.fails("train", published_copy)
    assert code == 1 and ".ckpt.data-00000-of-00001: a checkpoint of the authors' release without its .index" in line
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == before
