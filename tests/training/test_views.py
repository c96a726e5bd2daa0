"""Runs on more than two views of an image, and on crops of several sizes."""

import math

import numpy as np
import pytest
import torch
from digits import SMALL, sogclr_here, words, write_digits
from reference import unit
from two_ranks import run as run_two_ranks

import sogclr as package
from sogclr.config.toml import from_options
from sogclr.data.crops import RandomCrops
from sogclr.data.decoded import require_decoded
from sogclr.data.manifest import Manifest
from sogclr.data.multi_crop import crop_groups, crops_refusal, views_words
from sogclr.data.recipe import RECIPES
from sogclr.errors import BadInput
from sogclr.evaluation.exact import eval_mode
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.build import build
from sogclr.training.metrics import Meters
from sogclr.training.resolve import resolve
from sogclr.training.step import TrainStep

RUN = SMALL | {"epochs": 3, "save_every": 4, "log_every": 1, "labels": "none", "precision": "fp32"}  # 15 steps
CROPS = {k: v for k, v in RUN.items() if k != "image_size"} | {"crops": "2x16,3x12", "recipe": "small"}
KINDS = {"views": RUN | {"views": 4}, "crops": CROPS}
METHODS = [
    {"method": "simclr"},
    {"method": "dcl"},
    {"method": "isogclr"},
    {"method": "scent"},
    {"method": "neuclip"},
    {"convention": "per_sample", "num_negatives": 30.0},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("data") / "digits")
    (folder / "3" / "broken.png").write_bytes((folder / "3" / "0013.png").read_bytes()[:120])  # found when it is read
    return folder


def parts_of(data, out, **options):
    manifest = Manifest.scan(data)
    config, lines = resolve(from_options({"data": str(data), "out": str(out), **options}), manifest)
    return build(config, manifest, RunFolder(out), Progress(quiet=True)), lines


def assert_equal_runs(run, other):
    states = [load_checkpoint(r.latest_checkpoint()) for r in (run, other)]
    for part in ("model", "loss"):
        assert states[0][part].keys() == states[1][part].keys()
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key
    metrics = [[{k: v for k, v in row.items() if k != "timing"} for row in r.metrics()] for r in (run, other)]
    assert metrics[0] == metrics[1]


# ------------------------------------------------------------------------------------------------------------ the views
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_first_two_views_are_those_of_a_run_on_two_and_no_two_are_alike(kind, data, tmp_path):
    parts, _ = parts_of(data, tmp_path / "run", **KINDS[kind])
    batch = next(parts.task.batches(0, False))
    full, *small = parts.task.inputs(batch)
    views = [v for x, count in zip((full, *small), parts.task.views.counts, strict=True) for v in x.chunk(count)]
    assert [len(v) for v in views] == [len(batch.index)] * len(views)
    assert all(a.shape != b.shape or not torch.equal(a, b) for k, a in enumerate(views) for b in views[:k])
    if kind == "views":
        two, _ = parts_of(data, tmp_path / "two", **RUN)
        assert torch.equal(full[: 2 * len(batch.index)], two.task.inputs(next(two.task.batches(0, False)))[0])
    else:
        assert [x.shape[-1] for x in (full, *small)] == [16, 12]


def test_the_crops_of_each_size_have_areas_of_their_own():
    groups = crop_groups("2x224,4x96", 2, 224, RECIPES["simclr"])
    assert [(g.views, g.size) for g in groups] == [(2, 224), (4, 96)]
    np.testing.assert_allclose([g.recipe.crop_scale for g in groups], [(0.14, 1.0), (0.05, 0.14)])
    assert views_words(groups, 16) == (
        "2 views of 16 samples: 32 rows of 224 pixels (area 0.14 to 1); 4 views: 64 rows of 96 pixels (area 0.05 to 0.14)"
    )
    assert views_words(crop_groups(None, 4, 32, RECIPES["small"]), 16) == "4 views of 16 samples: 64 rows of 32 pixels"
    assert views_words(crop_groups(None, 2, 32, RECIPES["small"]), 16) == "32 pixels"
    assert crop_groups("3x32", 2, 32, RECIPES["small"])[0].recipe == RECIPES["small"]
    large, small = crop_groups("2x16,3x12", 2, 16, RECIPES["small"])
    cropper, sizes = RandomCrops(large.recipe, 2, 0, [small]), np.full(400, 1000)
    boxes = cropper.boxes(0, np.arange(400), sizes, sizes)
    area = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) / 1e6).T
    assert len(area) == cropper.views == 5
    assert all(0.34 < a.min() < 0.4 and 0.95 < a.max() <= 1 for a in area[:2])
    assert all(0.12 < a.min() < 0.14 and 0.33 < a.max() < 0.36 for a in area[2:])


def test_decoded_images_and_reader_processes_give_the_same_run(data, tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    runs = [package.train(data, tmp_path / "plain", quiet=True, max_bad=0.1, cache="none", **CROPS)]
    runs.append(
        package.train(data, tmp_path / "workers", quiet=True, max_bad=0.1, cache="none", **CROPS | {"workers": 2})
    )
    sogclr_here("cache", data, check=0)
    assert require_decoded(Manifest.scan(data), "white", "full") is not None
    runs.append(package.train(data, tmp_path / "decoded", quiet=True, max_bad=0.1, cache="full", **CROPS))
    for run in runs[1:]:
        assert_equal_runs(runs[0], run)


# ----------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.integration
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_command_trains_and_a_resumed_run_is_the_same(kind, data, tmp_path):
    options = KINDS[kind] | {"max_bad": 0.1}
    said = sogclr_here("train", data, "--out", tmp_path / "whole", *words(options), check=0)
    rows = {"views": "4 views of 8 samples: 32 rows of 16 pixels", "crops": "3 views: 24 rows of 12 pixels"}[kind]
    assert rows in said.stdout + said.stderr
    stopped = tmp_path / "stopped"
    sogclr_here("train", data, "--out", stopped, *words(options), check=0)
    run = RunFolder(stopped)
    run.checkpoint_files()[-1].unlink()  # as if it had been killed after the one before
    assert load_checkpoint(run.latest_checkpoint())["step"] == 12
    run.encoder_file.unlink()
    sogclr_here("resume", stopped, check=0)
    assert_equal_runs(RunFolder(tmp_path / "whole"), run)
    assert any(row["step"] == 15 and math.isfinite(row["objective"]) for row in run.metrics() if row["kind"] == "train")


@pytest.mark.parametrize("options", METHODS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_method_takes_them(options, data, tmp_path):
    run = package.train(data, tmp_path / "run", quiet=True, max_bad=0.1, **KINDS["views"] | {"max_steps": 4} | options)
    rows = [row for row in run.metrics() if row["kind"] == "train"]
    assert len(rows) == 4
    assert all(math.isfinite(row["objective"]) and row["skipped"] == 0 for row in rows)


def test_micro_batches_of_views_of_several_sizes_give_the_gradient_of_the_whole(data, tmp_path):
    grads = []
    for rows in (None, 6):
        parts, _ = parts_of(data, tmp_path / str(rows), **CROPS | {"micro_batch": rows})
        step = TrainStep(parts, Meters((), parts.device))
        with eval_mode(parts.model):  # BatchNorm's statistics would be the micro-batch's
            encode = step.encode if step.grad_cache is None else step.grad_cache
            batch = next(parts.task.batches(0, False))
            parts.task.loss(encode, parts.task.inputs(batch), parts.task.ids(batch)).backward()
            if step.grad_cache is not None:
                step.grad_cache.backward()
        grads.append(torch.cat([p.grad.flatten() for p in parts.model.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
def test_exact_normalizers_are_over_all_views(kind, data, tmp_path):
    parts, _ = parts_of(data, tmp_path / "run", **KINDS[kind])
    with eval_mode(parts.model), torch.no_grad():
        parts.task.set_exact_normalizers(Progress(quiet=True))
        batches = [b for b in parts.task.views.one_pass() if len(b.index)]
        z = [torch.stack(parts.task._embed(parts.model, parts.task.inputs(b))) for b in batches]
    z, ids = torch.cat(z, dim=1), torch.cat([b.index for b in batches])
    z = torch.stack([unit(v) for v in z])
    for row, i in enumerate(ids.tolist()):
        others = torch.arange(len(ids)) != row
        terms = torch.stack([torch.exp(a[row] @ b[others].T / 0.1).mean() for a in z for b in z])
        assert float(parts.loss.estimator.log_u[i]) == pytest.approx(float(terms.mean().log()), abs=1e-4)


def test_a_diagnosis_draws_batches_of_as_many_views(data, tmp_path):
    parts, _ = parts_of(
        data, tmp_path / "run", **KINDS["views"] | {"gamma": 1.0, "convention": "per_sample", "batch_size": 40}
    )
    found = parts.task.diagnose()
    assert found["views"] == 8  # of which a batch holds 4
    assert 0 < found["variance"] < 0.5


def two_ranks(folder):
    """Two runs on two processes, one of which goes on from an earlier checkpoint."""
    torch.distributed.init_process_group("gloo")
    for kind in KINDS:
        options = KINDS[kind] | {"max_bad": 0.1, "quiet": True, "micro_batch": 6 if kind == "views" else None}
        runs = [package.train(folder / "digits", folder / f"{kind}{k}", **options) for k in (0, 1)]
        if torch.distributed.get_rank() == 0:
            runs[1].checkpoint_files()[-1].unlink()
            runs[1].encoder_file.unlink()
        torch.distributed.barrier()
        package.resume(runs[1].path, quiet=True)
        if torch.distributed.get_rank() == 0:
            assert_equal_runs(*runs)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_train_and_resume(tmp_path):
    write_digits(tmp_path / "digits")
    run_two_ranks(__file__, tmp_path)


# ------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"views": 1}, "--views must be 2 or more and was 1; a positive is another view of the same image"),
        ({"crops": "2by224"}, r"--crops must be COUNTxSIDE,COUNTxSIDE,... as 2x224,4x96 and was '2by224'"),
        ({"crops": "1x16"}, "--crops was 1x16, one view, and a positive is another view"),
        ({"crops": "2x16,2x4"}, "--crops was 2x16,2x4, with a side of 4 pixels; give sides of 8 or more"),
        ({"crops": "2x12,2x16"}, "give each side once, the largest first"),
        ({"crops": "2x16,2x16"}, "give each side once, the largest first"),
        ({"crops": "2x16,2x12", "views": 4}, "--crops 2x16,2x12 says how many views there are, as --views 4 does"),
        ({"crops": "2x32,2x12", "image_size": 16}, "has full-size views of 32 pixels and --image-size is 16"),
        ({"views": 3, "method": "moco"}, "--views 3 does not go with --method moco, which contrasts two views"),
        ({"crops": "2x16,2x12", "diagnose_every": 1}, "--diagnose-every needs views of one size"),
        (
            {"crops": "2x32,2x24", "model": "test_vit"},
            r"cannot take images \(2, 3, 24, 24\): Input height .* give a model for images of this shape, or another side",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(options, sentence, data, tmp_path):
    with pytest.raises(BadInput, match=sentence):
        parts_of(data, tmp_path / "run", **{k: v for k, v in RUN.items() if k != "image_size"} | options)
    assert crops_refusal("2x16,4x8") is None


def test_parts_of_ones_own_that_are_for_two_views_are_refused(data, tmp_path):
    for part in ({"transform": lambda image: torch.zeros(3, 16, 16)}, {"loss": package.MoCoLoss(128)}):
        options = {k: v for k, v in RUN.items() if k != "recipe"} | {"views": 3} | part
        with pytest.raises(BadInput, match=f"views=3 does not go with {next(iter(part))}=, which is for two views"):
            package.train(data, tmp_path / "run", quiet=True, **options)
    loss = package.GlobalContrastiveLoss(41, 0.1)
    package.train(data, tmp_path / "ours", quiet=True, max_bad=0.1, loss=loss, **RUN | {"views": 3, "max_steps": 2})
    assert int(loss.estimator.step) == 2
