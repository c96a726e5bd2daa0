"""The Hugging Face `datasets` package: its objects as `dataset=`, and the files that it writes as DATA."""

import io

import numpy as np
import pytest
from PIL import Image

import sogclr
from sogclr.data.labels import read_labels
from sogclr.data.source import open_source
from sogclr.errors import BadInput
from sogclr.training.own.rows import RowImages

datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.filterwarnings("default")]
OPTIONS = {"image_size": 16, "batch_size": 4, "model": "resnet10_mini", "device": "cpu", "quiet": True}


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    columns = {
        "image": [{"bytes": picture(k), "path": None} for k in range(12)],
        "label": [k % 2 for k in range(12)],
        "text": [f"number {k}" for k in range(12)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_what_it_saves_is_pairs_or_images_with_classes(rows, tmp_path):
    rows.save_to_disk(tmp_path / "pairs")
    pairs = open_source(tmp_path / "pairs")
    assert (pairs.kind, len(pairs)) == ("pairs", 12)
    assert {
        (pairs.images.file(int(pairs.first_ids[i])).read(), pairs.name(1, int(pairs.second_ids[i]))) for i in range(12)
    } == {(picture(k), f"number {k}") for k in range(12)}
    alone = rows.remove_columns("text")
    alone.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict(train=alone, test=alone.select(range(4))).save_to_disk(tmp_path / "parts")
    for images in (open_source(tmp_path / "a.parquet"), open_source(tmp_path / "parts").training_part()):
        assert (images.kind, len(images)) == ("images", 12)
        assert [images.file(i).read() for i in range(12)] == [picture(k) for k in range(12)]
        labels = read_labels(images, "auto")
        assert (labels.classes, labels.values.tolist()) == (["cat", "dog"], [0, 1] * 6)


def test_a_dataset_object_is_read_by_its_rows_and_a_stopped_run_goes_on(rows, tmp_path):
    images = RowImages(rows)
    assert len(images) == 12
    image, index = images[5]
    assert index == 5
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(picture(5)))))
    whole = sogclr.train(dataset=rows, out=tmp_path / "whole", epochs=2, workers=0, **OPTIONS)

    class Stop(Exception):
        pass

    def stop(row):
        if row["kind"] == "train" and row["step"] >= 4:
            raise Stop

    with pytest.raises(Stop):
        sogclr.train(
            dataset=rows,
            out=tmp_path / "run",
            epochs=2,
            save_every=1,
            log_every=1,
            workers=1,
            on_metrics=stop,
            **OPTIONS,
        )
    resumed = sogclr.resume(tmp_path / "run", dataset=rows, workers=1, quiet=True)
    one, other = (sogclr.load_encoder(run).state_dict() for run in (whole, resumed))
    assert all(one[name].equal(other[name]) for name in one)


def test_what_cannot_be_trained_on_is_one_sentence(rows, tmp_path):
    streamed = rows.to_iterable_dataset()
    parts = datasets.DatasetDict(train=rows, test=rows)
    for dataset, sentence in (
        (streamed, "is streamed and its rows have no numbers"),
        (parts, r"has the parts 'train', 'test'; give one of them, as dataset=parts\['train'\]"),
        (rows.remove_columns("image"), "has 0 columns of images \\(label, text\\)"),
    ):
        with pytest.raises(BadInput, match=sentence):
            sogclr.train(dataset=dataset, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
