"""A run that diverges fails, leaves nothing that looks like a result, and can go on with another rate."""

import shutil

import pytest
import torch
from digits import SMALL, write_digits

import sogclr as package
from sogclr.config.toml import from_options
from sogclr.data.manifest import Manifest
from sogclr.errors import BadInput, RunFailed
from sogclr.progress import Progress
from sogclr.run_folder import RunFolder, load_checkpoint
from sogclr.training.build import build
from sogclr.training.resolve import resolve
from sogclr.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


RUN = SMALL | {"optimizer": "sgd", "max_steps": 8, "save_every": 2, "seed": 1, "quiet": True}


@pytest.mark.parametrize(
    ("lr", "said"), [(1e12, "knn_top1 is no number at step 5"), (1e37, "knn_top1 is no number at step 5")]
)
def test_no_encoder_of_a_run_that_has_diverged(lr, said, data, tmp_path):
    """Too few bad steps to stop it, and the weights themselves may be finite: it is the features that are not."""
    with pytest.raises(RunFailed, match=f"{said}.*diverged and this state is not written; lower --lr"):
        package.train(data, tmp_path / "run", lr=lr, warmup_epochs=0.0, **RUN)
    run = RunFolder(tmp_path / "run")
    assert not run.finished
    assert all(torch.isfinite(v).all() for v in load_checkpoint(run.latest_checkpoint())["model"].values())

    shutil.copytree(run.path, tmp_path / "again")
    with pytest.raises(RunFailed, match="diverged"):
        package.resume(tmp_path / "again", quiet=True)
    again = package.resume(run.path, lr=0.01, clip_grad=1.0, quiet=True)
    assert again.finished
    assert (again.config().optim.lr, again.config().optim.clip_grad) == (0.01, 1.0)
    assert again.config_table()["versions"]
    assert again.metrics()[-2]["step"] == 8


@pytest.mark.parametrize(("part", "value"), [("model", float("inf")), ("loss", float("nan"))])
def test_no_checkpoint_of_what_is_not_finite(part, value, data, tmp_path):
    manifest = Manifest.scan(data)
    config, _ = resolve(from_options({"data": str(data), "out": str(tmp_path), **SMALL}), manifest)
    trainer = Trainer(build(config, manifest, RunFolder(tmp_path), Progress(quiet=True)))
    trainer.save()  # log u is -inf, for nothing was seen yet
    state = trainer.state_dict()[part]
    state["head.0.weight" if part == "model" else "estimator.log_u"].view(-1)[5] = value
    trainer.step = 1
    with pytest.raises(
        RunFailed, match=rf"{part} \S+ is not finite at step 1: .*; `sogclr resume .* goes on from its last"
    ):
        trainer.save()
    assert trainer.run.step == 0


def test_everything_is_checked_before_anything_is_written(data, tmp_path):
    with pytest.raises(BadInput, match="background 'nosuchcolour' is no colour"):
        package.train(data, tmp_path / "run", background="nosuchcolour", **RUN)
    assert not (tmp_path / "run").exists()
