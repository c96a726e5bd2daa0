"""lightly's own transform, data set and head with the loss, as the page has it."""

import pytest
import torch
from digits import write_digits
from pages import framework
from torch import nn

import sogclr

pytest.importorskip("lightly")

from lightly.data import LightlyDataset
from lightly.models.modules import SimCLRProjectionHead

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_lightlys_loop_with_the_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "photos", per_digit=7)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(backbone, SimCLRProjectionHead(8, 16, 8))
    names = {"sogclr": sogclr, "torch": torch, "model": model}
    names["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.05)
    (text,) = framework("lightly")
    exec(text, names)
    dataset, criterion = names["dataset"], names["criterion"]
    assert isinstance(dataset, LightlyDataset)
    assert [dataset[i][2] for i in (0, 69)] == [0, 69]
    assert int(criterion.estimator.step) == 2  # of 70 images the last 6 make no batch
    assert int(torch.isfinite(criterion.estimator.log_u).sum()) == 64
    saved = torch.load("checkpoint.pt", weights_only=True)
    assert torch.equal(saved["criterion"]["estimator.log_u"], criterion.estimator.log_u)
