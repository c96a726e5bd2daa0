"""A normalizer that is a small network of the embedding: NeuCLIP's idea (arXiv 2511.08417) for one tower."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import BadInput
from .. import functional as F
from .protocol import Estimator, EstimatorInput


class PrototypeNormalizer(Estimator):
    """nu_a = log( eps + mean over the prototypes c of exp(z_a . c / tau) ), with learned prototypes.

    Trained by the loss itself: the dual value  tau (exp(log ĝ - nu) + nu - 1)  is minimised over nu too, and z carries
    no gradient there. So give the optimizer, or one of its own, the prototypes as well: `loss_fn.parameters()`.

    The prototypes stand for the negatives: they start as the first candidates that pass, and until they are all set
    nu = log ĝ; every `restart` steps they are set anew in the same way, while nu goes on with what there is.

    Args:
        dim: D, width of the embeddings.
        prototypes: M.
        restart: steps after which they are set anew, 0 for never.
        eps: floor of the normalizer.

    Attributes:
        prototypes: (M, D) float32 parameter.
        step: () int64 buffer, updates so far.
    """

    step: Tensor

    def __init__(self, dim: int, prototypes: int = 1024, restart: int = 500, eps: float = 1e-8) -> None:
        super().__init__()
        if dim < 1 or prototypes < 1 or restart < 0 or not eps > 0:
            raise BadInput(
                "a prototype normalizer needs dim and prototypes of 1 or more, restart of 0 or more and eps above 0, "
                f"and got dim {dim}, prototypes {prototypes}, restart {restart}, eps {eps}"
            )
        self.restart, self.eps = restart, eps
        self.prototypes = nn.Parameter(torch.zeros(prototypes, dim))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, log_g: Tensor, index: Tensor, update: bool, contrast: EstimatorInput | None = None) -> Tensor:
        """Return nu, differentiable in the prototypes; see `Estimator.forward` for the arguments."""
        assert contrast is not None
        z, temperature = contrast.anchors, contrast.temperature
        c = self.prototypes.clone().to(z.dtype)  # the parameter itself is written to below, before the backward pass
        sim = z.flatten(0, 1) @ c.T / F.expand_temperature(temperature, len(z))
        learned = (sim.logsumexp(dim=1) - math.log(len(c))).view_as(log_g)
        nu = torch.logaddexp(learned, torch.full_like(learned, math.log(self.eps)))
        ready = self.step * z[..., 0].numel() >= len(c)
        if update:
            self._set(contrast.candidates.flatten(0, 1))
            self.assign(self.step, self.step + 1)
        return torch.where(ready, nu, log_g)

    @torch.no_grad()
    def _set(self, z: Tensor) -> None:
        """Write a batch's embeddings, (R, D), over the next prototypes, in the first steps of each period."""
        z, m = z[: len(self.prototypes)], len(self.prototypes)
        first = self.step * len(z) < m
        since = torch.where(first, self.step, self.step % self.restart) if self.restart else self.step
        slots = since * len(z) + torch.arange(len(z), device=z.device)
        write = (slots < m)[:, None] & torch.isfinite(z).all(dim=1, keepdim=True)
        slots = slots % m
        new = torch.where(write, z.to(self.prototypes.dtype), self.prototypes[slots])
        self.assign(self.prototypes, new, slots)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        m, d = self.prototypes.shape
        return f"dim={d}, prototypes={m}, restart={self.restart}, eps={self.eps}"
