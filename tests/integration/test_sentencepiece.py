"""SigLIP's own tokenizer, which is sentencepiece's and Python's, as one that runs without them."""

import pytest
import torch
from clip_models import SENTENCES, write_hugging_face

from sogclr.models.clip import load_clip

spm = pytest.importorskip("sentencepiece")
siglip = pytest.importorskip("transformers.models.siglip.tokenization_siglip")

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


def test_its_ids_are_those_of_the_library(tmp_path):
    folder = write_hugging_face(tmp_path / "model", "siglip")
    (tmp_path / "texts.txt").write_text("\n".join([*SENTENCES, "Hello there, my friend", "two dogs"] * 5))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=80,
        hard_vocab_limit=False,
        **{"pad_id": -1, "bos_id": -1, "eos_id": 1, "unk_id": 2, "control_symbols": ["<pad>"], "minloglevel": 2},
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    reader = siglip.SiglipTokenizer(str(tmp_path / "spiece.model"))
    reader.save_pretrained(folder)
    start = load_clip(str(folder))
    texts = ["The digit seven!", "a  photo, of\tZERO", "", "Ünï 日本 “x” ½", "don't", "... !!!", " lead", "word " * 30]
    given = reader(texts, padding="max_length", truncation=True, max_length=10, return_tensors="pt")
    assert torch.equal(start.text.tokens(texts, 1), given["input_ids"])
    assert sorted(start.setup.files) == ["spiece.model", "tokenizer_config.json"]
