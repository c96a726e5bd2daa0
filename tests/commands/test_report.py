"""The report: everything in one page, nothing from the network, and a page for every state that a run can be in."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import islice

import numpy as np
import pytest
import torch
from digits import SMALL, write_digits
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sogclr as package
from sogclr import cli
from sogclr.commands.report import charts, report
from sogclr.commands.report.augmented import augmented_views
from sogclr.commands.report.charts import Axis, histogram, line_chart, thinned
from sogclr.commands.report.embedding_map import colours, layout
from sogclr.commands.report.run_summary import RunSummary
from sogclr.commands.report.sample import choose_queries, encoder_of, neighbours, same_class_share
from sogclr.commands.report.tables import configuration
from sogclr.data.augment import Augmentation
from sogclr.data.loader import training_loader
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput
from sogclr.run_folder import RunFolder
from sogclr.training.reading import view_groups

SECTIONS = ("overview", "curves", "neighbours", "embedding-map", "normalizers", "configuration")


class Page(HTMLParser):
    """What a browser would find: ids, texts, references, and whether every element is closed."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "circle", "wbr"})

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.ids, self.references, self.text, self.open, self.images = set(), [], [], [], 0
        self.feed(self.source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        self.references += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster")]
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def says(self, words):
        return words in re.sub(r"\s+", " ", "".join(self.text))

    def map(self):
        found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', self.source, re.DOTALL)
        return None if found is None else json.loads(found[1])


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the run, to be written to."""
    return shutil.copytree(digits_run, tmp_path / "run")


def test_the_page_of_a_finished_run_holds_everything_and_loads_nothing(run):
    seen = []
    page = Page(report(run, progress=lambda *x: seen.append(x)))
    assert set(SECTIONS) <= page.ids
    assert all(kind in ("data:", "#") for kind in (re.match(r"data:|#|.*", v)[0] for _, _, v in page.references))
    assert not re.search(r"https?://|url\(|@import|//[a-z]+\.[a-z]+", page.source)
    assert "default-src 'none'" in page.source
    for curve in ("Objective", "Online kNN", "Normalizer", "Largest weight", "Learning rate", "Gradient norm"):
        assert page.says(curve)
    assert page.source.count("data-chart=") == 6
    assert page.source.count('class="tile query"') == 12 + 4
    # neighbours, both ends of log u, close pairs, outliers, views
    assert page.images == 12 * 9 + 2 * 10 + 10 * 2 + 10 + 4 * 9
    assert page.source.count("data-path=") == page.images  # each can be clicked
    assert page.source.count("<img") == page.source.count(' alt="')
    assert "lazy" not in page.source  # which a printed page would lack
    ids = ("extremes", "around", "views")
    assert page.ids.issuperset(ids)
    assert page.source.count('class="bar"') > 5
    for words in ("finished", "120 images", "Largest log u", "Smallest log u", "learning rate".capitalize()):
        assert page.says(words), words
    for key, value in (("temperature", "0.1"), ("batch_size", "8"), ("image_size", "16"), ("torch", torch.__version__)):
        assert re.search(rf">{key}</th><td>{re.escape(value)}<", page.source)
    assert page.says("No evaluation is on file")
    assert seen[-1] == (120, 120)


def test_a_browser_may_run_the_pages_own_script_and_no_other(run):
    page = report(run).read_text()
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)';", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert base64.b64decode(allowed) == hashlib.sha256(script.encode()).digest()
    assert not re.search(r"<[^>]+\son[a-z]+=", page)


def test_every_picture_has_neighbours_in_the_page(run):
    """Of a sample too, which the ends of log u are a part of."""
    page = Page(report(run, images=100))
    shown = set(re.findall(r'data-path="(.*?)"', page.source))
    known = set(page.map()["names"])
    assert len(known) == 100
    ends = page.source[page.source.index('id="normalizers"') :]
    assert len(shown - known) == len(set(re.findall(r'data-path="(.*?)"', ends)) - known) <= 10
    assert shown <= set(Page(report(run, images=120)).map()["names"])


def test_the_wrong_neighbours_class_is_named(run):
    page = report(run).read_text()
    found = re.findall(
        r'class="tile (same|other)" title="([^"]*)" [^>]*><img [^>]*><span>(.*?)</span>', page, re.DOTALL
    )
    assert len(found) == 12 * 8
    for kind, title, caption in found:
        name = re.search(r"class (\d)", title)[1]
        assert caption.split("\n")[1:] == ([name] if kind == "other" else [])


def test_the_map_holds_every_image_with_its_class(run):
    data = Page(report(run)).map()
    assert len(data["names"]) == len(data["y"]) == 120
    assert len(data["at"]) == 240
    assert min(data["at"]) == 0
    assert max(data["at"]) == 1
    assert data["classes"] == [str(d) for d in range(10)]
    assert len(set(data["colours"])) == 10
    for name, y in zip(data["names"], data["y"], strict=True):
        assert name.split("/")[0] == data["classes"][y]
    assert data["columns"] ** 2 >= 120
    assert data["sheet"].startswith("data:image/webp;base64,")


def test_near_duplicates_and_outliers_are_listed_in_a_file_beside_the_page(digits_data, run, tmp_path):
    """A copy under another name is the closest pair, a picture of another kind an outlier."""
    data = shutil.copytree(digits_data / "train", tmp_path / "data")
    original = sorted((data / "3").iterdir())[0]
    shutil.copy(original, data / "5" / "copy.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
        data / "5" / "noise.png"
    )
    options = SMALL | {"max_steps": 1, "init_from": str(run)}
    copied = package.train(data, tmp_path / "copied", quiet=True, **options).path
    page = Page(report(copied))
    assert page.says("report.images.csv")
    with open(copied / "report.images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(row for row in rows if row["what"] == "close pair")
    assert {first["path"], first["nearest"]} == {f"3/{original.name}", "5/copy.png"}
    assert float(first["cosine"]) > 0.9999
    assert "5/noise.png" in [row["path"] for row in rows if row["what"] == "outlier"][:5]


def test_the_features_in_the_page_have_the_cosines_of_the_encoder(run):
    found = Page(report(run)).map()
    features = np.frombuffer(base64.b64decode(found["features"]), np.int8).reshape(len(found["names"]), -1)
    unit = features / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    files = [RunFolder(run).manifest().root / name for name in found["names"]]
    expected = torch.nn.functional.normalize(package.load_encoder(run).encode_files(files), dim=1)
    assert np.abs(unit @ unit.T - (expected @ expected.T).numpy()).max() < 0.03


def test_the_views_are_those_of_the_training(run, digits_data):
    """The first two of an image are its views of the first epoch, to the loss of the compression."""
    summary = RunSummary.read(RunFolder(run))
    manifest, config = summary.run.manifest(), summary.run.config()
    shown = augmented_views(summary, manifest, np.array([5, 40, 77]))
    assert set(shown) == {5, 40, 77}
    recipe = view_groups(config)[0].recipe
    loader = training_loader(manifest, manifest.usable, recipe, 16, 8, config.run.seed)
    info = package.load_encoder(run).info
    augment = Augmentation(recipe, 16, info.mean, info.std, config.run.seed)
    seen = 0
    for batch in islice(loader, 15):  # an epoch
        for v in (0, 1):
            pixels = augment(batch.crops[v], batch.index, 0, v) * torch.tensor(info.std)[:, None, None]
            pixels = (pixels + torch.tensor(info.mean)[:, None, None]).clamp(0, 1) * 255
            for id, expected in zip(batch.index.tolist(), pixels, strict=True):
                if id in shown:
                    found = Image.open(io.BytesIO(base64.b64decode(shown[id][v].split(",")[1])))
                    assert np.abs(np.asarray(found).astype(float) - expected.permute(1, 2, 0).numpy()).mean() < 12
                    seen += 1
    assert seen == 6


def test_runs_are_compared_on_one_page(run, digits_data, tmp_path):
    """Curves over each other, scores with their spread, and the options that differ and do something."""
    options = SMALL | {"epochs": 2, "optimizer": "adamw", "lr": 1e-3, "method": "simclr"}
    other = package.train(digits_data, tmp_path / "simclr <b>", quiet=True, **options).path
    for folder in (run, other):
        package.evaluate(folder, digits_data, workers=0, quiet=True).save()
    page = Page(report(run, (str(other),)))
    assert page.ids >= {"scores", "curves", "differences"}
    assert not page.references[1:]
    for curve in ("Objective", "Online kNN", "Normalizer"):
        assert page.says(curve)
    assert page.source.count('<path class="curve"') == 2 * page.source.count('<svg class="chart"')
    scores = json.loads((other / "eval.json").read_text())
    spread = 100 * scores["linear_top1_1_per_class_std"]
    assert page.says(f"{100 * scores['linear_top1_1_per_class']:.1f}% ± {spread:.1f}%")
    rows = dict(re.findall(r'<th scope="row">(\S+)</th><td>(.*?)</td>', page.source))
    assert rows["loss.method"] == "sogclr"
    assert rows["optim.lr"] == "0.003"
    assert not {"loss.queue", "loss.bias", "optim.optimizer", "data.data", "data.out"} & set(rows)
    assert "simclr &lt;b&gt;" in page.source
    with pytest.raises(BadInput, match="nowhere"):
        report(run, (str(tmp_path / "nowhere"),))


def test_options_without_effect_are_left_out(run):
    shown = [table for table in configuration(RunSummary.read(RunFolder(run))) if table.caption == "loss"]
    names = {row[0] for row in shown[0].rows}
    assert names >= {"method", "temperature", "estimator", "gamma"}
    assert not names & {"rho", "temperature_lr", "alpha", "bias", "queue", "prototypes", "key_momentum", "symmetric"}
    assert "pairs" not in [table.caption for table in configuration(RunSummary.read(RunFolder(run)))]


def test_ticks_are_what_they_say():
    axis = Axis.of([0.0, 12.5])
    assert [axis.text(t) for t in axis.ticks] == ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]


def test_the_same_run_gives_the_same_page(run, tmp_path):
    first, again = (report(run, out=tmp_path / "page.html").read_text() for _ in range(2))
    assert first == again
    assert not (run / "report.html").exists()


def test_fewer_images_than_there_are_make_a_sample(run):
    page = Page(report(run, images=40))
    assert page.says("a sample of 40 of 120 images")
    assert len(page.map()["names"]) == 40


def test_scores_on_file_are_shown(run, digits_data):
    result = package.evaluate(run, digits_data, baselines=True, workers=0)
    (run / "eval.json").write_text(json.dumps(result.to_json()))
    page = Page(report(run))
    for name in ("this encoder", "raw pixels", "untrained"):
        assert page.says(name)
    assert page.says(f"{100 * result['knn_top1']:.1f}%")
    assert page.says(f"{result.split}; ± the standard deviation over draws of the labels")
    spread = f"{100 * result['linear_top1_1_per_class']:.1f}% ± {100 * result['linear_top1_1_per_class_std']:.1f}%"
    assert page.says(spread)
    assert not page.says("No evaluation is on file")


def test_the_command_prints_the_page(run, capsys):
    assert cli.main(["report", str(run), "--workers", "0", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"


def test_an_unfinished_run_has_a_page_of_its_last_checkpoint(run):
    (run / "encoder.safetensors").unlink()
    page = Page(report(run))
    assert page.says("unfinished: step 150 of 150")
    assert page.says("finish this run")
    assert len(page.map()["names"]) == 120


def test_a_run_that_has_just_begun_has_a_page(run):
    (run / "encoder.safetensors").unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    page = Page(report(run))
    assert page.says("the run has saved no encoder yet")
    assert page.says("unfinished: step 0 of 150")
    assert page.source.count("nothing was logged") >= 5
    assert page.says("not timed")
    assert set(SECTIONS) <= page.ids


def test_a_cut_line_of_metrics_is_left_out(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert Page(report(run)).says("finished")


def test_a_run_without_labels_shows_health(tmp_path):
    data = write_digits(tmp_path / "data", 2)
    options = SMALL | {"labels": "none", "max_steps": 6, "method": "simclr"}
    run = package.train(data, tmp_path / "run", quiet=True, **options).path
    page = Page(report(run))
    for words in ("RankMe", "Alignment", "Uniformity", "SimCLR (NT-Xent)", "no classes used"):
        assert page.says(words)
    assert not page.says("Online kNN")
    assert page.map()["classes"] == []
    assert 'class="legend"' not in page.source
    assert "same class" not in page.source
    assert page.says("20 images")


def test_images_that_moved_are_found_where_data_says(digits_data, run, tmp_path):
    moved = shutil.copytree(digits_data, tmp_path / "moved")
    manifest = Manifest.load(run / "manifest.parquet", root=tmp_path / "gone" / "train")
    manifest.save(run / "manifest.parquet")
    page = Page(report(run))
    assert page.says(f"No images are shown: their folder {tmp_path / 'gone' / 'train'} is gone.")
    assert page.map() is None
    assert page.images == 0
    assert page.source.count('class="bar"') > 5  # what needs no image is there
    for where in (moved, moved / "train"):  # as the user knows the folder, or as the manifest does
        page = Page(report(run, data=where))
        assert len(page.map()["names"]) == 120
        assert not page.says("No images are shown")


def test_images_that_vanished_are_named_and_the_rest_is_shown(run, digits_data, tmp_path):
    moved = shutil.copytree(digits_data / "train", tmp_path / "moved")
    gone = sorted(moved.rglob("*.png"))[10:60]
    for path in gone:
        path.unlink()
    page = Page(report(run, data=moved))
    assert page.says("50 images could not be read and were left out, first: ")
    assert len(page.map()["names"]) == 70


def rewrite_encoder(run, change):
    file = run / "encoder.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = {k: v for k, v in opened.metadata().items() if k != "checksum"}
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata=metadata)


def test_a_diverged_and_a_collapsed_encoder_have_a_page(run):
    rewrite_encoder(run, lambda w: w["conv1.weight"].fill_(float("nan")))
    page = Page(report(run))
    assert page.says("fewer than two images have usable features")
    assert page.images == 20  # the ends of log u need no encoder
    rewrite_encoder(run, lambda w: w["conv1.weight"].zero_())
    page = Page(report(run))
    assert page.says("all features are the same, the encoder has collapsed")
    assert page.map() is None


def test_broken_files_of_a_run_leave_a_note(run):
    (run / "encoder.safetensors").write_bytes(b"no tensors")
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(b"no checkpoint")
    (run / "eval.json").write_text("{")
    page = Page(report(run))
    assert page.says("the encoder cannot be loaded")
    assert page.says("The normalizers are not shown")
    (run / "manifest.parquet").write_bytes(b"no manifest")
    assert Page(report(run)).says("No images are shown: ")


NASTY = ["<b>.png", "a&b.png", "x'\"><script>alert(1)<", "</script><!--.png", "ümlaut \u2028.png", "$&{}.png"]


def test_names_from_outside_are_escaped_everywhere(tmp_path):
    data = write_digits(tmp_path / "<i>data</i>", 2)
    for k, name in enumerate(NASTY):
        folder = data / "<u>&class"
        folder.mkdir(exist_ok=True)
        name = name.replace("/", "∕")
        shutil.copy(
            sorted((data / str(k)).glob("*.png"))[0], folder / (name if name.endswith(".png") else name + ".png")
        )
    (data / "<u>&class" / "<em>bad.png").write_bytes(b"")
    run = package.train(data, tmp_path / "<s>run", quiet=True, **(SMALL | {"max_steps": 5, "max_bad": 0.5})).path
    page = Page(report(run))
    for tag in ("<b>.png", "<i>data", "<u>", "<s>", "<em>", "<script>alert"):
        assert tag not in page.source, tag
    names = page.map()["names"]
    assert sum(name.startswith("<u>&class/") for name in names) == len(NASTY)
    assert "<u>&class" in page.map()["classes"]
    assert page.says("<em>bad.png")
    assert page.says("<s>run")


def test_skipped_steps_are_listed_and_their_reasons_escaped(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"kind": "skipped", "step": k, "reason": f"<q>{k}"}) + "\n" for k in range(25))
    page = Page(report(run))
    assert page.says("skipped steps, without a finite gradient: 25")
    assert page.says("<q>19")
    assert not page.says("<q>20")  # the first twenty
    assert "<q>" not in page.source


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "--images must be from 2 to"),
        ({"images": 10**6}, "--images must be from 2 to"),
        ({"out": "page.txt"}, "give a name in .html"),
        ({"out": "no/where/page.html"}, "there is no folder"),
        ({"workers": -1}, "--workers must be 0 or more and was -1"),
        ({"device": "cuda:9"}, "--device cuda:9 is not there"),
        ({"data": "empty"}, "does not hold the images of this run"),
        ({"data": "nowhere"}, "does not hold the images of this run"),
        ({"run": "empty"}, "there is no run (no config.toml) in"),
        ({"run": "nowhere"}, "there is no folder"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(options, message, digits_run, tmp_path):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*")), sorted(digits_run.iterdir())
    job = {"run": digits_run, **{k: tmp_path / v if k in ("out", "data", "run") else v for k, v in options.items()}}
    with pytest.raises(BadInput) as error:
        report(**job)
    assert message in str(error.value)
    assert (sorted(tmp_path.rglob("*")), sorted(digits_run.iterdir())) == before


# ---------------------------------------------------------------------------------------------------------- the pieces
def test_neighbours_are_sorted_and_leave_the_image_itself_out():
    unit = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    rows = np.array([4, 29, 0])
    cosines, near = neighbours(unit, rows, 100)
    assert near.shape == (3, 29)
    for row, own, values in zip(near, rows, cosines, strict=True):
        assert own not in row
        assert (np.diff(values) <= 0).all()
        np.testing.assert_allclose(unit[row] @ unit[own], values, atol=1e-6)


def test_the_share_of_neighbours_of_the_same_class():
    unit = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    assert same_class_share(unit, np.repeat(np.arange(4), 3), 2) == 1.0
    assert same_class_share(unit, np.tile(np.arange(3), 4), 2) == 0.0
    assert same_class_share(unit, np.array([0, 0, -1] + [-1] * 9), 2) == 1.0
    assert same_class_share(unit, np.full(12, -1), 2) is None


def test_queries_come_from_every_class_in_turn():
    y = np.array([2] * 50 + [0] * 3 + [1] * 20 + [-1] * 5)
    ids = np.arange(len(y))
    assert np.bincount(y[choose_queries(ids, y, 12)]).tolist() == [3, 5, 4]
    assert len(set(choose_queries(ids, y, 12).tolist())) == 12
    assert np.unique(np.arange(100)[choose_queries(np.arange(100), np.arange(100), 12)]).size == 12
    assert choose_queries(ids[:4], None, 12).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [3, 29, 40])
def test_the_layout_fills_the_square_and_is_always_the_same(count):
    unit = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    points = layout(unit)
    assert points.shape == (count, 2)
    assert points.min() == 0
    assert points.max() == 1
    assert np.array_equal(points, layout(unit))
    assert layout(unit[:2]) is None
    assert layout(np.ones((count, 6), dtype=np.float32)) is None


@pytest.mark.parametrize("count", [0, 1, 10, 11, 100])
def test_as_many_colours_as_classes(count):
    assert len(set(colours(count))) == count


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [-3.2, 17.0], [5.0, 5.0], [0.0], [1e-7, 3e-7], [-1e9, 1e9], [0.1, 0.1000001], [1e-300, 0.0]]
)
@pytest.mark.parametrize("tight", [False, True])
def test_axes_have_a_few_round_ticks_that_cover_the_values(values, tight):
    axis = Axis.of(values, tight=tight)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 9
    texts = [axis.text(t) for t in axis.ticks]
    assert len(set(texts)) == len(texts), texts


def test_long_curves_are_thinned():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    assert len(thinned(points)) == charts.MOST_POINTS
    assert {y for _, y in thinned(points, np.max)} == {1.0}
    assert thinned(points[:5]) == points[:5]


def test_charts_say_what_they_show():
    chart = line_chart([(0.0, 1.0), (1.0, 3.0)], "<A & B>", band=[(0.0, 0.5, 1.5), (1.0, 2.0, 4.0)])
    assert 'aria-label="&lt;A &amp; B&gt;: 2 points, from 1 to 3"' in chart
    assert chart.count('class="band"') == 1
    assert "nothing was logged" in line_chart([], "empty")
    bars = histogram(np.array([1.0, 1.0, 1.0], dtype=np.float32), "one", "x")
    assert bars.count('class="bar"') == 1
    assert "3 images" in bars


def test_facts_of_a_resumed_run_add_up_its_processes(digits_run):
    facts = RunSummary.read(RunFolder.open(digits_run))
    timing = [{"seconds": s} for s in (5.0, 9.0, 2.0, 3.0)]
    rows = [{"kind": "train", "step": k, "epoch": k, "timing": t} for k, t in enumerate(timing)]
    again = RunSummary(facts.run, facts.config, rows, None, [])
    assert again.seconds() == 12.0
    assert RunSummary(facts.run, facts.config, [], None, []).seconds() is None


def test_the_encoder_of_a_checkpoint_is_the_encoder_of_the_run(run):
    finished = encoder_of(RunFolder.open(run), "cpu")
    (run / "encoder.safetensors").unlink()
    unfinished = encoder_of(RunFolder.open(run), "cpu")
    assert unfinished.fingerprint() == finished.fingerprint()
