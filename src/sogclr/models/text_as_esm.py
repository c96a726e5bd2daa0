"""The built-in text transformer as a model that transformers knows: ESM, the encoder whose layers are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import BadInput
from .hugging_face import import_transformers
from .text import TextTransformer

if TYPE_CHECKING:
    from transformers import EsmModel

LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "LayerNorm",
}


@torch.no_grad()
def as_esm(model: TextTransformer) -> EsmModel:
    """Return an `EsmModel` whose last hidden states are those of the model before its mean.

    It too is a pre-norm transformer with learned positions, gelu and a norm at its end; its positions are counted from
    the id of the padding token on.

    Args:
        model: of `num_features` wide, at most as many tokens as it has positions.

    Raises:
        BadInput: it has no layers.
    """
    if model.blocks is None:
        raise BadInput("a bag of tokens (--text-layers 0) is no transformer; give --format onnx or torchscript")
    transformers = import_transformers()
    layers = model.blocks.layers
    first, (length, width) = layers[0], model.position.shape
    config = transformers.EsmConfig(
        vocab_size=model.token.num_embeddings,
        pad_token_id=model.pad,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=first.self_attn.num_heads,
        intermediate_size=first.linear1.out_features,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=model.pad + 1 + length,
        layer_norm_eps=first.norm1.eps,
        position_embedding_type="absolute",
        emb_layer_norm_before=False,
        token_dropout=False,
    )
    esm = transformers.EsmModel(config).eval()
    weights = esm.state_dict()
    weights["embeddings.word_embeddings.weight"].copy_(model.token.weight)
    weights["embeddings.position_embeddings.weight"][model.pad + 1 :].copy_(model.position)
    for number, layer in enumerate(layers):
        own, to = layer.state_dict(), f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            parts = own[f"self_attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"{to}.attention.self.{name}.{kind}"].copy_(part)
            for here, there in LAYER.items():
                weights[f"{to}.{there}.{kind}"].copy_(own[f"{here}.{kind}"])
    for kind in ("weight", "bias"):
        weights[f"encoder.emb_layer_norm_after.{kind}"].copy_(model.state_dict()[f"blocks.norm.{kind}"])
    return esm
