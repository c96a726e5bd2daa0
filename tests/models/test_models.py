import pytest
import torch

from sogclr.errors import BadInput
from sogclr.models.backbone import create_backbone, forward_operations, resolve_name, timm
from sogclr.models.encoder import Encoder, EncoderInfo, load_encoder, normalise, save_encoder
from sogclr.models.two_view import ContrastiveModel, ProjectionHead


@pytest.mark.parametrize("name", ["resnet10_mini", "resnet18_small", "resnet18_stride2", "convnext_atto"])
def test_encoder_file_is_loaded_strictly_by_timm(name, tmp_path):
    torch.manual_seed(0)
    backbone, info = create_backbone(name, 32).eval(), EncoderInfo(name, 32)
    save_encoder(tmp_path / "encoder.safetensors", backbone, info)
    theirs = timm.create_model(name, num_classes=0, checkpoint_path=str(tmp_path / "encoder.safetensors")).eval()
    ours = load_encoder(tmp_path / "encoder.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(x), backbone(x))
    assert torch.equal(ours(x), backbone(x))
    assert ours.info == info
    assert ours.fingerprint() == Encoder(backbone, info).fingerprint()
    assert not any(p.requires_grad for p in ours.parameters())


def test_small_stem_keeps_the_resolution():
    features = create_backbone("resnet18_small", 32).forward_features(torch.randn(1, 3, 32, 32))
    assert features.shape[-2:] == (4, 4)  # the ordinary stem would leave 1x1


def test_default_names_follow_the_image_size():
    assert resolve_name(None, 32)[0] == "resnet18_small"
    assert resolve_name(None, 224)[0] == "resnet50"
    of_cpu = {size: resolve_name(None, size, on_cpu=True)[0] for size in (32, 64, 96, 224)}
    assert of_cpu == {32: "resnet18_small", 64: "resnet18_stride2", 96: "resnet18", 224: "resnet18"}
    assert resolve_name("resnet50", 64)[0] == "resnet50_small"
    assert resolve_name("resnet50", 96)[0] == "resnet50"
    with pytest.raises(BadInput, match=r"no model named 'resnet5O' in timm .*did you mean .*resnet50"):
        resolve_name("resnet5O", 224)
    with pytest.raises(BadInput, match="would be downloaded"):
        resolve_name("hf-hub:some/model", 224)


@pytest.mark.parametrize("layers", [2, 3])
def test_projection_head_is_the_papers(layers):
    head = ProjectionHead(16, 32, 8, layers)
    kinds = [type(m).__name__ for m in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * (layers - 1) + ["Linear", "BatchNorm1d"]
    assert all(m.bias is None for m in head if isinstance(m, torch.nn.Linear))
    assert head[-1].affine is False
    assert ContrastiveModel(torch.nn.Flatten(), head)(torch.randn(4, 1, 4, 4)).shape == (4, 8)


def test_normalise_is_the_usual_arithmetic():
    crops = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    expected = (crops.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    images = normalise(crops, mean, std)
    torch.testing.assert_close(images.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=0)
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("content", [b"", b"\x00" * 200, b"not safetensors at all"])
def test_files_that_are_no_encoder_are_refused(content, tmp_path):
    (tmp_path / "e.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match="no readable safetensors file"):
        load_encoder(tmp_path / "e.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "e.safetensors")
    with pytest.raises(BadInput, match="is marked None, this version reads 'sogclr-encoder-1'"):
        load_encoder(tmp_path / "e.safetensors")


def test_operations_are_those_that_the_papers_give():
    """Two for each multiplication with its addition, of which ResNet-18 and -50 have 1.8 and 4.1 thousand million."""
    assert forward_operations("resnet18", 224) / 2 == pytest.approx(1.81e9, rel=0.01)
    assert forward_operations("resnet50", 224) / 2 == pytest.approx(4.09e9, rel=0.01)
    assert forward_operations("test_vit", 64) > 0
    small = forward_operations("resnet18_small", 64)
    assert small > 2.9 * forward_operations("resnet50", 96)  # the dearer of the two that were chosen everywhere
    assert forward_operations("resnet18_stride2", 64) == pytest.approx(small / 4, rel=0.01)
