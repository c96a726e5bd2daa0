"""The bags of features against the library's losses and torch's own layers, along a training."""

import math

import pytest
import torch
from torch.nn.functional import normalize

import sogclr
from research import text_pairs
from research.many_runs import Job, share_of_peak
from sogclr.data.wordnet import Synset

N, BATCH, EPOCHS = 40, 8, 6
WORDS = ["fruit", "bird", "river", "stone", "small", "large", "red", "green", "sweet", "cold", "old", "quiet"]


def toy():
    g = torch.Generator().manual_seed(3)
    rows = [
        Synset(" ".join(WORDS[int(k)] for k in torch.randint(12, (5,), generator=g)), f"w{i % 36}") for i in range(N)
    ]
    return text_pairs.text_problem(rows, rows[:10])


METHODS = {
    "clip": ({"rule": "clip"}, lambda: sogclr.ClipLoss(text_pairs.TAU)),
    "constant": (
        {"rule": "sogclr", "end": 0.5},
        lambda: sogclr.TwoTowerGlobalContrastiveLoss(N, text_pairs.TAU, 0.5),
    ),
    "cosine": (
        {"rule": "sogclr", "start": 1.0, "end": 0.2},
        lambda: sogclr.TwoTowerGlobalContrastiveLoss(
            N, text_pairs.TAU, sogclr.estimators.CosineGamma(0.2, (N // BATCH) * EPOCHS // 2)
        ),
    ),
}


def test_trainings_side_by_side_are_those_of_the_librarys_losses_and_torchs_sparse_adam():
    jobs = [Job(rule, lr, 1) for rule, _ in METHODS.values() for lr in (1e-2, 3e-2)]
    losses = [make() for _, make in METHODS.values() for _ in range(2)]
    training = text_pairs.Training(toy(), jobs, BATCH, EPOCHS)
    layers = [
        torch.nn.EmbeddingBag.from_pretrained(training.table(0), freeze=False, mode="sum", sparse=True) for _ in jobs
    ]
    optimizers = [torch.optim.SparseAdam(layer.parameters()) for layer in layers]
    next_batch, seen = training.next_batch, []

    def compared():
        index, bags = next_batch()
        seen.append(0.0)
        for job, loss_fn, layer, optimizer in zip(jobs, losses, layers, optimizers, strict=True):
            z = layer(bags.ids, bags.start)
            loss = loss_fn(z[0::2], z[1::2], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = job.lr * share_of_peak(training.step, training.total)
            optimizer.step()
            seen[-1] += loss.item()
        return index, bags

    training.next_batch = compared
    while training.step < training.total:
        training.train_step()
        for k, layer in enumerate(layers):
            torch.testing.assert_close(training.table(k), layer.weight.detach(), rtol=1e-3, atol=5e-5)
    assert len(seen) == EPOCHS * N // BATCH
    assert sum(seen[-5:]) < sum(seen[:5])  # and they learn


def test_a_text_is_its_words_and_their_pieces():
    def row(word):
        return text_pairs.zlib.crc32(word.encode()) % text_pairs.ROWS

    assert text_pairs.features("An owl, AN owl", pieces=False) == {row("an"), row("owl")}
    assert text_pairs.features("an owl", pieces=True) == {
        row(one) for one in ("an", "owl", "#<an", "#an>", "#<ow", "#owl", "#wl>")
    }


def test_an_epoch_visits_every_pair_once_with_its_own_texts():
    problem = toy()
    training = text_pairs.Training(problem, [Job({"rule": "clip"}, 1e-2, 1)], BATCH, EPOCHS)
    table, visited = training.table(0), []
    for training.step in range(N // BATCH):
        index, bags = training.next_batch()
        own = problem.train.embed(table)
        torch.testing.assert_close(bags.embed(table), own[torch.stack([2 * index, 2 * index + 1], dim=1).flatten()])
        visited += index.tolist()
    assert sorted(visited) == list(range(N))


def test_the_exact_objective_is_that_of_a_slow_loop():
    g = torch.Generator().manual_seed(3)
    x, y = normalize(torch.randn(2, 6, 4, generator=g), dim=2)
    a, b, tau, terms = x.double(), y.double(), text_pairs.TAU, []
    anchors = torch.tensor([4, 0, 3])
    for i in anchors.tolist():
        others = [j for j in range(6) if j != i]
        of_x = sum(math.exp(a[i] @ b[j] / tau) for j in others) / 5
        of_y = sum(math.exp(a[j] @ b[i] / tau) for j in others) / 5
        terms.append(-float(a[i] @ b[i]) + tau / 2 * (math.log(of_x) + math.log(of_y)))
    assert text_pairs.exact_objective(x, y, anchors, rows=2) == pytest.approx(sum(terms) / 3, abs=1e-5)


def test_equal_texts_are_each_others_answer():
    pairs = [Synset("a bird", "owl"), Synset("a river", "rhine"), Synset("a bird", "hawk"), Synset("a stone", "owl")]
    problem = text_pairs.text_problem(pairs, pairs)
    table = torch.zeros(text_pairs.ROWS, text_pairs.WIDTH)
    for k, word in enumerate(
        ("owl", "rhine", "hawk")
    ):  # words have embeddings of their own, and every definition owl's
        for row in text_pairs.features(word, pieces=True) - text_pairs.features("a bird river stone", pieces=False):
            table[row, k] = 1.0
    for row in text_pairs.features("a", pieces=False):
        table[row, 0] = 1.0
    found = text_pairs.held_out(table, problem)
    assert found["test_definition_to_word_r1"] == pytest.approx(2 / 3)  # of three definitions the river's is wrong
    # three definitions are as similar to any word as each other: a tie counts against, but for answers
    assert found["test_word_to_definition_r1"] == 0.0
    assert found["test_hits"] == "1011"
