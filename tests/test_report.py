"""The page against results.json, in Chromium where it is installed, and the charts."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import content, row
from PIL import Image
from root_files import SPLITS, Files

from gnime.networks import rebuild
from gnime.registry import METRICS, colour, find_row
from gnime.report import charts, figures, seeds
from gnime.report.html import render
from gnime.report.verdict import judge

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "docs/example-report.html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- the page of a run -----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Cells of tables by the attributes of their rows, all addresses, all names of tags, and the text."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.addresses, self.tags, self.text, self._line = {}, [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "srcset", "href", "action", "data", "poster") if name in found]
        if tag == "tr":
            self._line = next(((name, value) for name, value in attributes if name.startswith("data-")), None)
            self.cells[self._line] = []
        if tag == "td":
            self.cells[self._line].append("")

    def handle_data(self, data):
        self.text.append(data)
        if self._line and self.cells[self._line]:
            self.cells[self._line][-1] += data

    def handle_endtag(self, tag):
        self._line = None if tag == "tr" else self._line


def pictures_of(text):
    """The pictures of a page as `html.write` names them, in the order in which the template shows them."""
    images = re.findall(r'(?:src|srcset)="data:image/png;base64,([^"]*)"', text)
    return [base64.b64decode(image) for image in images]


@pytest.fixture(scope="module")
def folder(small_root):
    return small_root / "figures/digits_lrp"


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text()


def check_numbers(page, results):
    """Every number of the page's tables, from results.json with other arithmetic than the page's."""
    for name, numbers in results["settings"].items():
        cells = page.cells["data-row", name]
        assert cells[0].split("\n")[0].startswith(f"{numbers['title']} ({name})")
        leak, span = numbers["residual_leakage"], numbers.get("residual_leakage_interval", [])
        shown = [] if leak is None or span is None else [round(100 * leak), *(round(100 * end) for end in span)]
        assert [int(number) for number in re.findall(r"-?\d+", cells[2].split(":")[0])] == shown
        expected = [numbers["pearson"], *numbers["pearson_interval"]] if "pearson" in numbers else []
        assert [float(number) for number in re.findall(r"-?\d\.\d\d", cells[5])] == pytest.approx(expected, abs=0.00501)
        assert float(cells[7]) == pytest.approx(numbers["best"]["mse"], abs=0.00005)
        measured = dict(zip(METRICS, page.cells["data-metrics", name][1:], strict=True))
        for metric, shown in measured.items():
            value = numbers.get(metric)
            assert shown == "-" if value is None else float(shown) == pytest.approx(value, abs=0.00501), metric
        attacked = [cell for cell in page.cells["data-attacked", name][1:] if cell != "-"]
        assert sorted(float(cell.split()[0]) for cell in attacked) == pytest.approx(
            sorted(attacker["mse"] for attacker in numbers["attackers"].values()), abs=0.00005)
        assert sum("decisive" in cell for cell in attacked) == 1


def test_the_page_shows_the_numbers_of_results_json(results, text):
    page = Page(text)
    check_numbers(page, results)
    words = " ".join(" ".join(page.text).split())
    assert f"n = {results['n']['test']} test images" in words and results["commit"] in words
    assert judge(results).plain() == results["verdict"]
    assert results["verdict"]["sentence"][1:] in words and results["verdict"]["reason"] in words
    for said in (*results["commands"], *results["warnings"], *(advice["text"] for advice in results["verdict"]["advice"])):
        assert " ".join(said.split()) in words


def test_the_page_needs_nothing_else(text):
    page = Page(text)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "a", "form"} & set(page.tags)
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text


def test_the_pictures_are_of_the_rule(small_root, results, folder, text):
    """The private image, its explanation and GNIME's map, from the files; the reconstruction has the MSE beside it."""
    files, injector = Files(small_root), rebuild(small_root / "models/def/digits_lrp/injector.pt")
    shown = results["pictures"]["images"]
    names = (small_root / "aux/digits_files.txt").read_text().splitlines()
    assert [image["why"] for image in shown] == ["first", "median", "worst"] and shown[0]["name"] == names[SPLITS.test.start]
    with (folder / "per_image.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["image"] for line in lines] == names[SPLITS.test.start : SPLITS.test.stop]
    assert [line["class"] for line in lines] == [str(files.labels[i]) for i in SPLITS.test]
    gains = [float(line["predmi"]) - float(line["gnime"]) for line in lines]
    ranked = sorted(range(len(lines)), key=gains.__getitem__)
    assert [image["name"] for image in shown[1:]] == [lines[i]["image"] for i in (ranked[(len(lines) - 1) // 2], ranked[-1])]
    for name, numbers in results["settings"].items():
        assert np.mean([float(line[name]) for line in lines]) == pytest.approx(numbers["best"]["mse"], rel=1e-5)
    pictures = [np.asarray(Image.open(io.BytesIO(png)).convert("L").resize((16, 16), Image.Resampling.NEAREST), float) / 255
                for png in pictures_of(text)[2:-1]]  # between the frontier's two and the training curves
    of_one = 2 + 1 + 2 * 3  # image and explanation; predmi publishes no map, the other three rows do
    assert len(pictures) == 3 * of_one
    for k, image in enumerate(shown):
        i, part = names.index(image["name"]), pictures[k * of_one : (k + 1) * of_one]
        np.testing.assert_allclose(part[0], files.images[i, 0], atol=0.003)
        np.testing.assert_allclose(part[1], files.maps[i, 0], atol=0.003)
        with torch.no_grad():
            protected = injector(torch.from_numpy(files.maps[i : i + 1]), torch.from_numpy(files.logits[i : i + 1]))
        np.testing.assert_allclose(part[-2], protected[0, 0], atol=0.003)
        assert ((part[-1] - files.images[i, 0]) ** 2).mean() == pytest.approx(image["mse"]["gnime"], abs=0.001)


def test_hostile_names_are_text(results, text):
    hostile = json.loads(json.dumps(results))
    name = '<script>alert(1)</script><img src=x onerror="alert(2)">" onload=y & {{ 7 * 7 }}'
    for image in hostile["pictures"]["images"]:
        image["name"] = image["class"] = name
    hostile["warnings"], hostile["target"], hostile["commit"] = [name], name, name
    hostile["settings"]["gnime"]["title"] = name
    names = picture_names(hostile)
    page = Page(render(hostile, dict(zip(names, pictures_of(text), strict=True))))
    assert "script" not in page.tags and "{{ 7 * 7 }}" in "".join(page.text) and name in "".join(page.text)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def picture_names(results):
    """The names of a page's pictures, in the order of `pictures_of`."""
    names = ["frontier narrow", "frontier"]
    for i, image in enumerate(results["pictures"]["images"]):
        names += [f"{i} image", f"{i} explanation"]
        for name in image["mse"]:
            names += ([] if find_row(name).defence is None else [f"{i} map {name}"]) + [f"{i} found {name}"]
    return [*names, "training"]


# --- the charts ------------------------------------------------------------------------------------------------------


def drawn(monkeypatch, draw, *arguments):
    kept = []
    monkeypatch.setattr(charts, "save", lambda figure, *_: kept.append(figure))
    draw(Path("nowhere"), *arguments)
    return kept[0]


def test_the_frontier_has_a_point_per_row_and_a_curve_per_defence(monkeypatch):
    found = content(rnd=(0.6, 0.9), gnime=(0.4, 0.84), cond_mean=(0.02, 0.95), negative=(1.0, -1.0))
    found["settings"] |= {"gnime@30": row("gnime@30", 0.8, 0.95), "gnime@100": row("gnime@100", 1.5, 0.9, spread=0.6)}
    found |= {"target": "digits", "xai": "lrp", "seed": 0, "n": {"test": 180}}
    figure = drawn(monkeypatch, charts.frontier, found, judge(found))
    (axis,) = figure.axes
    points = {tuple(point.lines[0].get_xydata()[0]): point.lines[0] for point in axis.containers}
    assert points.keys() == {(1, 1), (0.6, 0.9), (0.4, 0.84), (0.02, 0.95), (0.8, 0.95), (1.4, 0.9)}, "the last is cut"
    assert points[0.4, 0.84].get_markerfacecolor() == "white", "dominated"
    assert points[0.02, 0.95].get_markerfacecolor() == colour(find_row("cond-mean"))
    (curve,) = [line for line in axis.lines if len(line.get_xdata()) == 3]
    assert curve.get_xydata().tolist() == [[0.4, 0.84], [1.4, 0.9], [0.8, 0.95]]
    words = " ".join(text.get_text() for text in [*figure.texts, figure._suptitle, *axis.texts])
    assert "n = 180 test images" in words and "negative -1.00" in words
    assert {text.get_text() for text in axis.texts if text.get_text()} == {"expmi", "rnd", "gnime", "gnime@30", "gnime@100",
                                                                         "cond-mean"}
    assert "dotted" not in words, "no row has an arrow"
    assert "bold: what to publish" in words and judge(found).publish == "cond-mean"
    found["settings"]["rnd"]["beside"] = {"white-box": {"mse": 0.1, "residual_leakage": 0.7,
                                                        "residual_leakage_interval": [0.6, 0.8]}}
    figure = drawn(monkeypatch, charts.frontier, found, judge(found))
    assert "dotted arrow: ends at the residual leakage to white-box, which knows" in figure.texts[-1].get_text()


def test_the_comparison_shows_images_maps_and_errors(monkeypatch):
    from gnime.report.examples import Example

    pictures = torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8)
    example = Example("worst", "a$_b$.png", "3", pictures[0], pictures[1], {"predmi": None, "gnime": pictures[2]},
                      {"predmi": pictures[3], "gnime": pictures[0]}, {"predmi": 0.5, "gnime": 0.25})
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: kept.append(figure))
    figures.comparison(Path("nowhere"), "n = 7", [example], {"predmi": "prediction", "gnime": "GNIME leak 5 %"})
    axes = kept[0].axes
    shown = [axis.images[0].get_array().tolist() if axis.images else None for axis in axes]
    assert shown == [picture if picture is None else picture[0].tolist()
                     for picture in (pictures[0], pictures[1], None, pictures[3], pictures[2], pictures[0])]
    assert [axis.get_xlabel() for axis in axes[2:]] == ["no map", "MSE 0.5000", "published", "MSE 0.2500"]
    assert axes[4].get_ylabel() == "GNIME leak 5 %"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_maps_of_any_number_of_channels_are_drawn(monkeypatch, channels):
    """One or three as they are, of others the mean: four are no colours with transparency."""
    from gnime.report.examples import Example

    maps = torch.randint(0, 256, (channels, 4, 4), dtype=torch.uint8)
    wanted = {1: maps[0], 3: maps.permute(1, 2, 0)}.get(channels, maps.sum(0).div(channels).byte())
    image, kept = torch.zeros(1, 4, 4, dtype=torch.uint8), []
    example = Example("worst", "a.png", "3", image, maps, {"gnime": maps}, {"gnime": image}, {"gnime": 0.25})
    monkeypatch.setattr(figures, "save", lambda figure, *_: kept.append(figure))
    figures.comparison(Path("nowhere"), "n = 7", [example], {"gnime": "GNIME"})
    assert [kept[0].axes[i].images[0].get_array().tolist() for i in (1, 2)] == [wanted.tolist()] * 2
    figures.injector_progress(Path("nowhere"), image[None] / 255, maps[None] / 255, maps[None] / 255, image[None] / 255)
    assert {kept[1].axes[i].images[0].get_array().shape for i in (1, 2)} == {wanted.shape}


# --- in Chromium, and the committed example --------------------------------------------------------------------------


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: install it (Debian: chromium) to check the page's layout")
def test_nothing_overflows_a_telephone_or_a_screen(text, tmp_path):
    """The page of a run and that of three seeds in frames of three widths. A script is added that measures them; all else of
    their policy stays."""
    widths = (360, 1000, 1280)
    runs = [json.loads((REPOSITORY / f"results/reduced/digits_lrp_seed{seed}.json").read_text()) for seed in range(3)]
    charted = dict(zip(("frontier narrow", "frontier"), pictures_of(text), strict=False))
    measure = """<script>onload = () => { const wide = document.documentElement.clientWidth;
        const over = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > wide + 1);
        const broken = [...document.images].filter(e => !e.naturalWidth);
        const found = [wide, document.documentElement.scrollWidth, over.length, broken.length];
        parent.postMessage(found.join(" "), "*"); }</script>"""
    frames = ""
    for name, page in {"run": text, "seeds": seeds.render(runs, charted)}.items():
        page = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
        (tmp_path / f"{name}.html").write_text(page.replace("</body>", measure + "</body>"))
        frames += "".join(f'<iframe src="{name}.html" style="border: 0; width: {width}px"></iframe>' for width in widths)
    (tmp_path / "frames.html").write_text(
        f"""<title>-</title><script>onmessage = e => document.title += "," + e.data</script>{frames}""")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile",
             "--virtual-time-budget=20000", "--enable-logging=stderr", "--window-size=1400,900", "--dump-dom"]
    run = subprocess.run([CHROMIUM, *flags, tmp_path / "frames.html"], capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r"<title>-,(.*)</title>", run.stdout)
    assert sorted(found.split(",")) == sorted([f"{width} {width} 0 0" for width in widths] * 2)
    assert "CONSOLE" not in run.stderr


def test_the_example_is_what_the_code_makes_of_its_results():
    """docs/example-report.html is made anew from docs/example-report.json; its pictures are its own."""
    results, text = json.loads(EXAMPLE.with_suffix(".json").read_text()), EXAMPLE.read_text()
    assert EXAMPLE.stat().st_size < 1_000_000
    pictures = dict(zip(picture_names(results), pictures_of(text), strict=True))
    assert render(results, pictures) == text
    check_numbers(Page(text), results)
    used = {name: results["settings"][name]["residual_leakage_interval"]
            for name in ("rnd", "gnime", "cond-mean", "prototypes-16")}
    assert text.count("(maps not used)</td>") == sum(max(map(abs, span)) < 1e-4 for span in used.values()) == 1
    for name in ("frontier", "frontier narrow"):
        assert Image.open(io.BytesIO(pictures[name])).info[figures.NOTE] == charts.frontier_note(results, judge(results))
