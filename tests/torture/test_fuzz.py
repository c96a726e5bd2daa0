"""Any damage to any file that is read: it is read, or refused in one sentence. Seconds here, an hour by `make torture`."""

import io
import json
import os
import tarfile
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sogclr.config.schema import TrainConfig
from sogclr.config.toml import from_options, read_table, to_table, to_toml
from sogclr.data.images import decode, read_header
from sogclr.data.manifest import Manifest
from sogclr.data.pairs import Pairs
from sogclr.errors import BadImage, BadInput
from sogclr.models.backbone import create_backbone
from sogclr.models.encoder import EncoderInfo, load_encoder, save_encoder
from sogclr.run_folder import RunFolder, load_checkpoint, save_checkpoint

EXAMPLES = int(os.environ.get("TORTURE_EXAMPLES", "15"))  # of each format


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One whole file of each format; images of the tables are beside them."""
    root, rng = tmp_path_factory.mktemp("formats"), np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    for suffix, options in (
        ("png", {}),
        ("jpg", {"progressive": True}),
        ("webp", {}),
        ("bmp", {}),
        ("gif", {}),
        ("tif", {}),
    ):
        picture.save(root / f"a.{suffix}", **options)
    Image.fromarray(rng.integers(0, 65536, (24, 20)).astype(np.uint16)).save(root / "deep.png")
    rows = [("a.png", "one"), ("a.jpg", "two"), ("a.bmp", "three")]
    (root / "list.txt").write_text("\n".join(name for name, _ in rows))
    (root / "t.csv").write_text("image,caption\n" + "".join(f'{a},"{b}"\n' for a, b in rows))
    (root / "u.csv").write_bytes(("image,caption\n" + "".join(f"{a},{b}\n" for a, b in rows)).encode("utf-16"))
    (root / "t.jsonl").write_text("".join(json.dumps({"image": a, "caption": b}) + "\n" for a, b in rows))
    columns = {"image": [a for a, _ in rows], "caption": [b for _, b in rows]}
    pq.write_table(pa.table(columns), root / "t.parquet")
    with tarfile.open(root / "s.tar", "w") as tar:
        for k, (name, text) in enumerate(rows):
            for inner, content in (
                (f"{k}{name[1:]}", (root / name).read_bytes()),
                (f"{k}.json", json.dumps({"caption": text}).encode()),
            ):
                member = tarfile.TarInfo(inner)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    inside = {"bytes": [(root / name).read_bytes() for name, _ in rows], "path": [name for name, _ in rows]}
    struct = pa.StructArray.from_arrays([pa.array(v) for v in inside.values()], list(inside))
    pq.write_table(pa.table({"image": struct, "label": [0, 1, 0]}), root / "hub.parquet")
    Manifest.scan(root / "list.txt", cache=False).save(root / "manifest.parquet")
    config: TrainConfig = from_options({"data": "photos", "out": "run"})
    (root / "config.toml").write_text(to_toml(to_table(config)))
    save_encoder(root / "e.safetensors", create_backbone("resnet10_mini", 16), EncoderInfo("resnet10_mini", 16))
    checkpoint = save_checkpoint(RunFolder(root), {"step": 3, "model": {"w": torch.ones(9)}, "name": "x"}, keep=1)
    checkpoint.rename(root / "c.pt")
    (root / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0.1}\n' * 3)
    return root


def pixels(path):
    read_header(path)
    decode(path)


READERS = {
    **dict.fromkeys(("a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif", "deep.png"), pixels),
    **dict.fromkeys(("list.txt", "hub.parquet"), Manifest.scan),
    **dict.fromkeys(("t.csv", "u.csv", "t.jsonl", "t.parquet", "s.tar"), Pairs.scan),
    "manifest.parquet": Manifest.load,
    "config.toml": lambda path: from_options({}, read_table(path)),
    "e.safetensors": lambda path: asdict(load_encoder(path).info),
    "c.pt": load_checkpoint,
    "metrics.jsonl": lambda path: RunFolder(path.parent).metrics(),
}

# (where, as a fraction; what is done there; bytes for it)
DAMAGE = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(("flip", "write", "insert", "delete", "cut")),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def damaged(whole: bytes, changes) -> bytes:
    content = bytearray(whole)
    for where, how, more in changes:
        at = int(where * max(0, len(content) - 1))
        if how == "flip" and content:
            content[at] ^= 1 << (more[0] % 8)
        elif how == "write":
            content[at : at + len(more)] = more
        elif how == "insert":
            content[at:at] = more
        elif how == "delete":
            del content[at : at + len(more)]
        elif how == "cut":
            del content[at:]
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_any_damage_is_read_or_refused_in_one_sentence(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SOGCLR_CACHE", str(tmp_path / "cache"))
    whole, path = (folder / name).read_bytes(), folder / f"damaged-{name}"
    if name == "metrics.jsonl":
        path = tmp_path / name

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(DAMAGE)
    def check(changes):
        path.write_bytes(damaged(whole, changes))
        try:
            READERS[name](path)
        except (BadInput, BadImage) as error:
            assert "\n" not in str(error)  # noqa: PT017

    READERS[name](folder / name)
    check()
