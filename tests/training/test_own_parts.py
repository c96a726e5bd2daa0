"""Parts of a user's own: each trains, resumes bit for bit, and is refused in words where it is missing or another."""

import json
import random

import numpy as np
import pytest
import torch
from captioned import PAIRS, write_pairs
from digits import SMALL, sogclr_here, write_digits
from PIL import Image
from torch import nn

import sogclr as package
from sogclr.cli import main
from sogclr.errors import BadInput
from sogclr.losses import GlobalContrastiveLoss, MoCoLoss, NTXentLoss
from sogclr.losses.temperatures import PerSample
from sogclr.run_folder import RunFolder, load_checkpoint

OPTIONS = {k: v for k, v in SMALL.items() if k not in ("model", "recipe")}
RUN = OPTIONS | {"max_steps": 8, "log_every": 1, "save_every": 3, "precision": "fp32", "quiet": True}
OURS = {"model": "resnet10_mini", "recipe": "character"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


class MyNet(nn.Module):
    """Without `num_features`: how wide it is has to be found out."""

    def __init__(self, channels=3):
        super().__init__()
        self.filters = nn.Conv2d(channels, 12, 3, stride=2)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, images):
        return self.norm(self.filters(images)).relu().mean((2, 3))


class OtherNet(MyNet):
    pass


class MyLoss(nn.Module):
    """With a buffer that a forward pass changes, and a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("visits", torch.zeros(40))

    def forward(self, z0, z1, index):
        self.calls += 1
        self.visits[index] += 1
        z0, z1 = nn.functional.normalize(z0, dim=1), nn.functional.normalize(z1, dim=1)
        return nn.functional.cross_entropy(z0 @ z1.T * self.scale, torch.arange(len(z0)))


class Images:
    """PIL images of the digits, and their index."""

    def __init__(self, folder, content=lambda image: image):
        self.files, self.content = sorted(folder.rglob("*.png")), content

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as image:
            return self.content(image.copy()), i


def random_view(image):
    """As such transforms are written: with whatever generator is at hand."""
    pixels = torch.from_numpy(np.asarray(image.convert("L"), np.float32).copy())[None] / 255
    pixels = pixels.roll(random.randrange(-2, 3), dims=1) * (0.5 + np.random.rand())
    return (pixels + 0.1 * torch.randn(1, 1, 1)).expand(3, -1, -1).clone()


def parts_of(name, data):
    """What is given to `train`, and again to `resume`."""
    torch.manual_seed(3)
    views = lambda image: [random_view(image), random_view(image)]  # noqa: E731
    return {
        "model": lambda: {"model": MyNet()},
        "loss": lambda: {"loss": MyLoss()},
        "our loss": lambda: {"loss": GlobalContrastiveLoss(40, temperature=PerSample(40, 0.2), gamma=0.5)},
        "moco": lambda: {"loss": MoCoLoss(128, 24), "model": MyNet()},
        "images": lambda: {"dataset": Images(data)},
        "views": lambda: {"dataset": Images(data, views), "model": MyNet(), "loss": MyLoss()},
        "stacked views": lambda: {"dataset": Images(data, lambda image: torch.stack(views(image)))},
        "dataset and transform": lambda: {"dataset": Images(data), "transform": random_view},
        "transform": lambda: {"transform": random_view},
    }[name]()


NAMES = ["model", "loss", "our loss", "moco", "images", "views", "stacked views", "dataset and transform", "transform"]


def train(name, data, out, **options):
    parts = parts_of(name, data)
    how = RUN | {k: v for k, v in OURS.items() if k not in parts and (k != "recipe" or "transform" not in parts)}
    return package.train(*(() if "dataset" in parts else (data,)), out=out, **(how | options), **parts)


def assert_equal_runs(run, other):
    a, b = (load_checkpoint(r.latest_checkpoint()) for r in (run, other))
    for part in ("model", "loss"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(v, b[part][k]) for k, v in a[part].items()), part
    assert all(str(a[part]) == str(b[part]) for part in ("optimizer", "loss_optimizers", "keys", "step"))
    rows = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert rows[0] == rows[1]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_resumes_bit_for_bit(name, data, tmp_path):
    """Stopped after five of eight steps, and resumed with the same parts, made anew, with reader processes."""
    whole = train(name, data, tmp_path / "whole")
    rows = whole.metrics()
    seen = []

    def stop(row):
        seen.append(row)
        if row["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(name, data, tmp_path / "run", on_metrics=stop)
    run = RunFolder(tmp_path / "run")
    assert [row["step"] for row in seen] == [1, 2, 3, 4, 5]
    assert load_checkpoint(run.latest_checkpoint())["step"] == 3
    later = []
    package.resume(run.path, quiet=True, workers=2, on_metrics=later.append, **parts_of(name, data))
    assert [row["step"] for row in later if row["kind"] == "train"] == [4, 5, 6, 7, 8]
    assert_equal_runs(run, whole)
    assert [row for row in later if row["kind"] == "train"] == [
        row for row in run.metrics() if row["kind"] == "train" and row["step"] > 3
    ]
    assert any(row["kind"] == "eval" for row in rows)
    values = [row.get("objective", row.get("loss")) for row in rows if row["kind"] == "train"]
    assert all(np.isfinite(values))
    first, last = (load_checkpoint(p)["model"] for p in (whole.checkpoint_files()[0], whole.latest_checkpoint()))
    assert any(not torch.equal(v, last[k]) for k, v in first.items() if k.startswith("backbone.") and v.ndim > 1)


def test_what_a_loss_of_ones_own_keeps_is_in_the_checkpoint_and_its_parameters_learn(data, tmp_path):
    run = train("loss", data, tmp_path / "run")
    state = load_checkpoint(run.latest_checkpoint())["loss"]
    assert float(state["loss.calls"]) == 8
    assert float(state["loss.visits"].sum()) == 64
    assert float(state["loss.scale"]) != 5.0
    assert run.config_table()["own"] == {"loss": "MyLoss"}
    assert {"loss", "grad_norm", "lr"} <= run.metrics()[0].keys()


def test_a_skipped_step_takes_back_what_a_loss_of_ones_own_changed(data, tmp_path):
    class Poisoned(MyLoss):
        def forward(self, z0, z1, index):
            return super().forward(z0, z1, index) * (float("nan") if self.calls == 3 else 1.0)

    seen = []
    run = package.train(
        data, out=tmp_path / "run", loss=Poisoned(), on_metrics=seen.append, **(RUN | OURS | {"max_steps": 5})
    )
    skipped = [row for row in run.metrics() if row["kind"] == "skipped"]
    assert [row["step"] for row in skipped] == [3, 4, 5]  # the count stays at 2, and so the next is the third again
    assert float(load_checkpoint(run.latest_checkpoint())["loss"]["loss.calls"]) == 2
    assert [row for row in seen if row["kind"] == "skipped"] == skipped


@pytest.mark.parametrize(
    ("loss", "given", "scale"),
    [
        (lambda: GlobalContrastiveLoss(40, temperature=0.5), {}, 2.0),
        (lambda: GlobalContrastiveLoss(40, temperature=PerSample(40, initial=0.2)), {}, 5.0),
        (lambda: NTXentLoss(temperature=0.5), {}, 1.0),  # as large as a softmax loss already
        (MyLoss, {}, 1.0),
        (MyLoss, {"gradient_scale": 3.0}, 3.0),
    ],
)
def test_the_gradient_of_a_given_loss_is_scaled_by_its_own_temperature(loss, given, scale, data, tmp_path):
    options = RUN | OURS | {"max_steps": 1, "optimizer": "lars"} | given
    run = package.train(data, out=tmp_path / "run", loss=loss(), **options)
    assert run.config().optim.gradient_scale == pytest.approx(scale)


def test_a_model_with_its_own_head_gets_none(data, tmp_path):
    run = package.train(data, out=tmp_path / "run", model=MyNet(), head=False, recipe="character", **RUN)
    state = load_checkpoint(run.latest_checkpoint())["model"]
    assert all(key.startswith("backbone.") for key in state)
    assert run.config_table()["own"] == {"model": "MyNet", "head": False}
    run.encoder_file.unlink()
    run.latest_checkpoint().unlink()
    package.resume(run.path, model=MyNet(), quiet=True)
    assert all(torch.equal(v, state[k]) for k, v in load_checkpoint(run.latest_checkpoint())["model"].items())


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train("model", data, tmp_path_factory.mktemp("runs") / "run")


def test_an_encoder_of_ones_own_is_loaded_into_the_module(finished, data):
    with pytest.raises(BadInput, match=r"weights of a model of your own \(MyNet\).*model.load_state_dict\("):
        package.load_encoder(finished.path)
    from safetensors.torch import load_file

    model = MyNet()
    model.load_state_dict(load_file(finished.encoder_file))
    assert model.filters.weight.shape == (12, 3, 3, 3)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["embed", "eval", "export"])
def test_commands_that_need_the_model_say_so(command, finished, data, tmp_path, capsys):
    words = {"embed": [data, "--out", tmp_path / "f.npz"], "eval": [data], "export": []}[command]
    assert main([command, str(finished.path), *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "a model of your own (MyNet)" in error
    assert error.count("\n") == 1


@pytest.mark.integration
def test_a_run_on_a_data_set_of_ones_own_is_used_like_any_other(data, tmp_path, capsys):
    """But for what needs its images, which are in no file."""
    run = train("images", data, tmp_path / "run")
    sogclr_here("embed", run.path, data, "--out", tmp_path / "f.npz", check=0)
    assert main(["eval", str(run.path), str(data), "--json"]) == 0
    assert main(["report", str(run.path)]) == 0  # the page goes without pictures
    assert main(["inspect", str(run.path)]) == 0
    assert "40 in dataset=Images" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"was trained on a data set of your own \(Images\)"):
        run.manifest()


@pytest.mark.integration
def test_resume_asks_for_the_very_parts(data, tmp_path):
    run = train("views", data, tmp_path / "run")
    run.encoder_file.unlink()
    result = sogclr_here("resume", run.path, check=2)
    assert "this run was trained with a model of your own (MyNet); pass it: sogclr.resume(" in result.stderr
    given = parts_of("views", data)
    for part, said in {"model": "MyNet", "loss": "MyLoss", "dataset": "Images"}.items():
        with pytest.raises(BadInput, match=rf"trained with a {part} of your own \({said}\); pass it: .*{part}=\.\.\."):
            package.resume(run.path, quiet=True, **{k: v for k, v in given.items() if k != part})
    with pytest.raises(BadInput, match=r"a model of your own \(MyNet\) and model= is a OtherNet"):
        package.resume(run.path, quiet=True, **(given | {"model": OtherNet()}))
    with pytest.raises(
        BadInput, match=r"trained without a transform of your own; leave transform= \(random_view\) out"
    ):
        package.resume(run.path, quiet=True, transform=random_view, **given)
    fewer = Images(data, given["dataset"].content)
    fewer.files.pop()
    with pytest.raises(BadInput, match="40 samples of Images and the one given has 39"):
        package.resume(run.path, quiet=True, **(given | {"dataset": fewer}))


def test_a_run_without_parts_of_ones_own_takes_none(data, tmp_path):
    run = package.train(data, out=tmp_path / "run", **(RUN | OURS | {"max_steps": 1}))
    run.encoder_file.unlink()
    with pytest.raises(BadInput, match="trained without a model of your own"):
        package.resume(run.path, model=MyNet(), quiet=True)


class Labelled(Images):
    """What people give first: (image, label)."""

    def __getitem__(self, i):
        return super().__getitem__(i)[0], i // 4


class Maps(MyNet):
    def forward(self, images):
        return self.filters(images)


class ManyValues(MyLoss):
    def forward(self, z0, z1, index):
        return z0.sum(dim=1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda data: {"dataset": Labelled(data)}, r"Labelled\[5\] gave the index 1, not 5; return \(image, index\)"),
        (lambda data: {"dataset": Images(data, np.asarray)}, "gave a ndarray; give PIL images, two views"),
        (lambda data: {"dataset": Images(data, lambda i: [random_view(i)] * 3)}, "gives 3 views"),
        (lambda data: {"dataset": iter(())}, "dataset= is a tuple_iterator; give a map-style data set, with a length"),
        (lambda data: {"dataset": Images}, "dataset= is the class Images; give a map-style"),
        (lambda data: {"dataset": []}, r"dataset= \(list\) has no samples"),
        (lambda data: {"data": Images(data)}, "data is a Images and must be a path; a data set of your own goes to"),
        (
            lambda data: {"data": data, "model": MyNet},
            "model= is the class MyNet; give the name of a model, or a module",
        ),
        (lambda data: {"data": data, "loss": MyLoss}, "loss= is the class MyLoss; give a module"),
        (lambda data: {"data": data, "transform": 3}, "transform= is a int; give a function"),
        (lambda data: {"data": data, "on_metrics": 3}, "on_metrics= is a int; give a function of a dict"),
        (lambda data: {"data": data, "model": MyNet(1)}, r"MyNet cannot take images \(2, 3, 16, 16\): "),
        (
            lambda data: {"data": data, "model": MyNet(), "head": False, "head_dim": 8},
            "head_dim= does not go with head=",
        ),
        (
            lambda data: {"dataset": Images(data, lambda i: [random_view(i)[:1]] * 2), "model": "resnet10_mini"},
            "resnet10_mini takes images of 3 channels and the views have 1; give a model of your own",
        ),
        (lambda data: {"dataset": Images(data), "labels": "folder"}, "labels= does not go with dataset="),
        (lambda data: {"dataset": Images(data), "diagnose_every": 1}, "diagnose_every= does not go with dataset="),
        (lambda data: {"data": data, "dataset": Images(data)}, "both say what to train on"),
        (
            lambda data: {"data": data, "transform": random_view, "recipe": "small"},
            "recipe= does not go with transform=",
        ),
        (lambda data: {"data": data, "transform": lambda image: image}, "gives 2 views"),
        (lambda data: {"data": data, "loss": MyLoss(), "gamma": 0.5}, "gamma= does not go with loss="),
        (lambda data: {"data": data, "loss": ManyValues()}, r"ManyValues returned \(8,\) and must return one number"),
        (lambda data: {"data": data, "loss": GlobalContrastiveLoss(50)}, "built for 50 samples and DATA holds 40"),
        (lambda data: {"data": data, "model": Maps()}, r"Maps maps images \(2, 3, 16, 16\) to \(2, 12, 7, 7\)"),
        (lambda data: {"data": data, "model": MyNet(), "pretrained": "x"}, "pretrained= does not go with model="),
        (lambda data: {"data": data, "head": False}, "head=False is for a model of your own"),
        (lambda data: {}, "'data' is missing"),
    ],
)
def test_what_cannot_be_is_refused_in_words(parts, message, data, tmp_path):
    parts = parts(data)
    recipe = {} if "transform" in parts else {"recipe": "character"}
    with pytest.raises(BadInput, match=message):
        package.train(out=tmp_path / "run", **(RUN | recipe | parts))
    assert not (tmp_path / "run").exists() or "loss" in parts  # what a loss returns is seen at the first step


def test_a_model_is_as_wide_as_what_it_makes(data, tmp_path):
    """And not what an attribute says, as `num_features` of a timm model that ends with a classifier."""
    model = MyNet()
    model.num_features = 99
    run = package.train(data, out=tmp_path / "run", model=model, recipe="character", **(RUN | {"max_steps": 1}))
    assert load_checkpoint(run.latest_checkpoint())["model"]["head.0.weight"].shape[1] == 12


@pytest.mark.integration
def test_a_configuration_with_parts_of_ones_own_asks_for_them(data, tmp_path):
    """It does the run again with the same parts; without them it would train something else."""
    runs = {name: train(name, data, tmp_path / name.replace(" ", "-")) for name in ("views", "transform")}
    again = package.train(
        out=tmp_path / "again", config=runs["views"].config_file, quiet=True, **parts_of("views", data)
    )
    assert_equal_runs(again, runs["views"])
    for name, part in (("views", "model"), ("transform", "transform")):
        with pytest.raises(BadInput, match=rf"of a run with a {part} of your own \(.*\); pass one: .*{part}=\.\.\."):
            package.train(data, tmp_path / "other", config=runs[name].config_file, quiet=True)
        words = ["train", data, "--out", tmp_path / "other", "--config", runs[name].config_file]
        assert f"with a {part} of your own" in sogclr_here(*words, check=2).stderr
    assert not (tmp_path / "other").exists()


def test_parts_of_ones_own_are_refused_on_pairs(tmp_path):
    data = write_pairs(tmp_path / "digits", per_digit=1)
    with pytest.raises(BadInput, match=r"model= is for images and .* holds pairs"):
        package.train(data, tmp_path / "run", quiet=True, **(PAIRS | {"model": MyNet()}))
    assert not (tmp_path / "run").exists()


def test_rows_of_metrics_are_dicts_of_their_own(data, tmp_path):
    seen = []

    def spoil(row):
        seen.append(json.dumps(row))
        row.clear()

    run = package.train(data, out=tmp_path / "run", on_metrics=spoil, **(RUN | OURS | {"max_steps": 2}))
    assert [json.loads(row) for row in seen] == run.metrics()
