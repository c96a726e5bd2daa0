"""Every way to features reads a large photograph alike: the commands, Python, and other programs by the lines of the card."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch.nn.functional import normalize

import sogclr

LEAST = 0.999  # cosine


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """2,000 pixels and more, as cameras write them: grain, another shape each, on their side, progressive, gray."""
    folder, noise = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for kind, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / kind).mkdir()
        for k in range(4):
            left, top = 40 * k, 30 * k
            part = Image.fromarray(pixels).crop((left, top, left + 400 + 20 * k, top + 300))
            part = part.resize((part.width * 20 // 3, 2000 + k), Image.Resampling.BICUBIC)
            grain = noise.integers(-20, 21, (part.height, part.width, 1), dtype=np.int16)
            photo = Image.fromarray((np.asarray(part) + grain).clip(0, 255).astype(np.uint8))
            exif = Image.Exif()
            exif[0x0112] = (1, 6, 1, 1)[k]
            photo = photo.rotate(90, expand=True) if k == 1 else photo.convert("L") if k == 3 else photo
            photo.save(folder / kind / f"{k}.jpg", quality=90, exif=exif, progressive=k == 2)
    return folder


@pytest.fixture(scope="module", params=["bilinear", "bicubic"])
def run(request, photographs, tmp_path_factory):
    """An encoder of views of 64 pixels, which want the photographs 20 to 40 times smaller."""
    place = tmp_path_factory.mktemp("run")
    (place / "inputs.toml").write_text(f'[inputs]\ninterpolation = "{request.param}"\ncrop_fraction = 0.9\n')
    options = {"model": "resnet10_mini", "image_size": 64, "batch_size": 4, "epochs": 6, "workers": 0, "device": "cpu"}
    return sogclr.train(photographs, place / "run", config=place / "inputs.toml", quiet=True, **options).path


@pytest.fixture(scope="module")
def embeddings(run, photographs):
    """Path -> unit row of `embed`."""
    file = run.with_name("e.parquet")
    sogclr.embed(run, photographs, file, device="cpu", workers=0, quiet=True)
    table = pq.read_table(file)
    rows = normalize(torch.tensor(table["embedding"].to_pylist()), dim=1)
    return dict(zip(table["path"].to_pylist(), rows, strict=True))


def test_every_image_of_a_collection_finds_itself_first(run, photographs, embeddings):
    of_file = [(run.with_name("e.parquet"), path) for path in embeddings]
    for source, path in [*of_file, (photographs, next(iter(embeddings)))]:
        hits = sogclr.search(run, image=photographs / path, source=source, device="cpu", workers=0, quiet=True).hits
        assert hits[0].path == path
        assert hits[0].score >= LEAST
        assert len(hits) == len(embeddings)


def test_python_reads_as_the_commands_do(run, photographs, embeddings):
    encoder = sogclr.load_encoder(run)
    of_files = encoder.encode_files([photographs / path for path in embeddings])
    opened = [ImageOps.exif_transpose(Image.open(photographs / path)) for path in embeddings]
    of_images = encoder(torch.stack([encoder.transform(image) for image in opened]))
    for found in (of_files, of_images):
        assert (normalize(found, dim=1) * torch.stack([*embeddings.values()])).sum(1).min() >= LEAST


def test_a_classifier_reads_as_the_commands_do(run, photographs, tmp_path):
    sogclr.classify(run, photographs, tmp_path / "c", device="cpu", workers=0, quiet=True)
    table = sogclr.predict(tmp_path / "c", photographs, tmp_path / "p.parquet", device="cpu", workers=0, quiet=True)
    rows = pq.read_table(table.path).to_pylist()
    one_by_one = sogclr.load_classifier(tmp_path / "c").predict_files([photographs / row["path"] for row in rows])
    for row, one in zip(rows, one_by_one, strict=True):
        assert (row["class"], row["probability"]) == (one.label, pytest.approx(one.probability, abs=1e-3))


def test_the_lines_of_the_card_give_another_program_the_same_features(
    run, photographs, embeddings, tmp_path, monkeypatch
):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = sogclr.export(run, "onnx", tmp_path / "encoder.onnx", quiet=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (lines,) = re.findall(r"```python\n(import numpy\n.*?)```", (tmp_path / "README.md").read_text(), flags=re.S)
    for path, expected in embeddings.items():
        inputs: dict = {}
        exec(lines.replace("photo.jpg", str(photographs / path)), inputs)
        assert (np.asarray(inputs["image"]) == sogclr.load_encoder(run).crop(photographs / path).numpy()).all()
        (features,) = session.run(None, {session.get_inputs()[0].name: inputs["images"]})
        assert normalize(torch.from_numpy(features[0]), dim=0) @ expected >= LEAST
