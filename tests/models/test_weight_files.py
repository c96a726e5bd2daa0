"""Files of weights: the same bytes each time, no bit changed, and nothing believed that a stranger's file says."""

import json
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import environment
from safetensors.torch import save_file

from sogclr.errors import BadInput
from sogclr.models.backbone import create_backbone
from sogclr.models.encoder import ENCODER_FORMAT, EncoderInfo, load_encoder, read_info, save_encoder
from sogclr.models.weight_files import read_weights_file, write_weights

INFO = EncoderInfo("resnet10_mini", 16)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("resnet10_mini", 16).eval()


def test_the_same_weights_are_the_same_bytes(backbone, tmp_path):
    """In another process too: safetensors writes metadata in any order."""
    code = """
import sys, torch
from pathlib import Path
from sogclr.models.weight_files import write_weights
write_weights(Path(sys.argv[1]), {"b": torch.ones(3), "a": torch.zeros(2, 2)}, {k: k for k in "sogclr é\\n\\""})
"""
    for k in range(4):
        path = str(tmp_path / f"{k}.safetensors")
        subprocess.run([sys.executable, "-c", code, path], check=True, env=environment())
    assert len({(tmp_path / f"{k}.safetensors").read_bytes() for k in range(4)}) == 1
    for k in range(6):
        save_encoder(tmp_path / f"e{k}.safetensors", backbone, INFO)
    assert len({(tmp_path / f"e{k}.safetensors").read_bytes() for k in range(6)}) == 1


def test_every_type_is_read_as_it_was_written(tmp_path):
    weights = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "count": torch.tensor(7),
        "none": torch.empty(0, 4),
    }
    write_weights(tmp_path / "w.safetensors", weights, {"sogclr": "x"})
    read = read_weights_file(tmp_path / "w.safetensors")
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in weights.items())


def test_a_flipped_bit_is_noticed_everywhere(backbone, tmp_path):
    path = tmp_path / "e.safetensors"
    save_encoder(path, backbone, INFO)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little") + 8
    bits = [*rng.choice(8 * header, 80, replace=False), *rng.integers(8 * header, 8 * len(whole), 20)]
    padding = len(whole[:header]) - len(whole[:header].rstrip())
    for at in map(int, bits):
        if header - padding <= at // 8 < header:
            continue
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(BadInput):
            load_encoder(path)
    path.write_bytes(whole)
    load_encoder(path)


def test_a_file_without_a_checksum_is_read(backbone, tmp_path):
    weights = {k: v.clone() for k, v in backbone.state_dict().items()}
    save_file(weights, tmp_path / "old.safetensors", {"format": "pt", "sogclr": ENCODER_FORMAT, "info": INFO.to_json()})
    assert load_encoder(tmp_path / "old.safetensors").info == INFO


# ----------------------------------------------------------------------------------------------------- a stranger's file
def stranger(path: Path, backbone, **changes) -> Path:
    """An encoder's file whose description says something else, under a checksum that fits."""
    said = {**asdict(INFO), **changes}
    text = json.dumps({k: v for k, v in said.items() if v is not ...})
    write_weights(path, backbone.state_dict(), {"format": "pt", "sogclr": ENCODER_FORMAT, "info": text})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "hf-hub:nobody/nothing"}, "names the model 'hf-hub:nobody/nothing', which is none of timm"),
        ({"name": "hf_hub:nobody/nothing"}, "which is none of timm"),
        ({"name": "local-dir:/etc"}, "which is none of timm"),
        ({"name": "os"}, "which is none of timm"),
        ({"name": 3}, "names the model 3"),
        ({"name": ...}, "has no name and size"),
        ({"image_size": ...}, "has no name and size"),
        ({"image_size": 60_000}, "image_size is 60000, and can be up to 4096"),
        ({"image_size": -1}, "image_size is -1"),
        ({"image_size": "16"}, "image_size is '16'"),
        (
            {"name": "vit_giant_patch14_224", "image_size": 224},
            r"and says that it is vit_giant_patch14_224, which has 1,0",
        ),
        ({"mean": [0.5]}, "inputs.mean must be three numbers"),
        ({"std": [0.0, 1.0, 1.0]}, "inputs.std must be above 0"),
        ({"std": [float("nan"), 1.0, 1.0]}, "inputs.std must be three numbers"),
        ({"crop_fraction": "all"}, "inputs.crop_fraction must be above 0"),
        ({"interpolation": []}, "inputs.interpolation must be one of"),
        ({"background": "nosuchcolour"}, "is no colour"),
        ({"squash": 1}, "inputs.squash must be true or false"),
        ({"patches": 3}, "it says patches, of which this version knows nothing; use a newer sogclr"),
    ],
)
def test_nothing_is_believed_that_no_encoder_is(changes, said, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # whoever reaches for the network fails otherwise
    path = stranger(tmp_path / "e.safetensors", backbone, **changes)
    with pytest.raises(BadInput, match=said) as refused:
        load_encoder(path)
    assert str(path) in str(refused.value)
    with pytest.raises(BadInput, match=said):
        read_info(path)


@pytest.mark.parametrize("text", ["", "[]", "null", '"a"', "[" * 5000, '{"name": "resnet10_mini"'])
def test_a_description_that_is_none_is_one_sentence(text, backbone, tmp_path):
    metadata = {"format": "pt", "sogclr": ENCODER_FORMAT, "info": text}
    write_weights(tmp_path / "e.safetensors", backbone.state_dict(), metadata)
    with pytest.raises(BadInput, match="has no name and size; restore it from a copy"):
        load_encoder(tmp_path / "e.safetensors")
    write_weights(tmp_path / "e.safetensors", backbone.state_dict(), {"format": "pt", "sogclr": ENCODER_FORMAT})
    with pytest.raises(BadInput, match="has no name and size"):
        load_encoder(tmp_path / "e.safetensors")
