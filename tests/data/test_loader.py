import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import jpeg, large_jpeg, png, png_gray_16, truncated
from PIL import Image

from sogclr.data import boxes, crops, images, loader, readers, watch
from sogclr.data.augment_params import CROP_SLOTS, crop_boxes, uniforms
from sogclr.data.loader import evaluation_loader, training_loader
from sogclr.data.manifest import Manifest
from sogclr.data.pairs import Pairs
from sogclr.data.recipe import RECIPES, Recipe
from sogclr.errors import BadInput, RunFailed

RECIPE = RECIPES["small"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images of many kinds and sizes; two that only decoding shows to be bad."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(24):
        pixels = rng.integers(0, 256, (20 + 9 * k, 150 - 4 * k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k:02d}.jpg")
    for name, write in (("a.png", png), ("b.png", png_gray_16), ("c.jpg", jpeg), ("d.jpg", large_jpeg)):
        write(root / name)
    truncated(large_jpeg, 0.5)(root / "x.jpg")
    truncated(png, 0.5)(root / "y.png")
    return root


@pytest.fixture(scope="module")
def manifest(folder):
    return Manifest.scan(folder, cache=False)


def take(manifest, count=7, size=16, batch_size=8, seed=3, **options):
    batches = training_loader(manifest, manifest.usable, RECIPE, size, batch_size, seed, **options)
    return list(islice(batches, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.step, a.epoch, a.bad) == (b.step, b.epoch, b.bad)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.crops, b.crops)


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_batches(workers, manifest):
    alone = take(manifest)
    assert any(batch.bad for batch in alone)
    assert_same(take(manifest, workers=workers), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_anywhere_gives_the_rest_of_the_same_batches(workers, manifest):
    assert_same(take(manifest, count=4, start_step=3, workers=workers), take(manifest)[3:])


def test_what_a_batch_holds(manifest):
    batch = take(manifest, count=1)[0]
    assert (batch.step, batch.epoch) == (0, 0)
    assert batch.crops.shape == (2, len(batch.index), 16, 16, 3)
    assert batch.crops.dtype == torch.uint8
    assert batch.crops.is_contiguous()
    assert batch.index.dtype == torch.int64
    assert not torch.equal(batch.crops[0], batch.crops[1])
    assert take(manifest, count=1, views=3)[0].crops.shape[0] == 3


def test_a_crop_is_the_drawn_box_of_the_decoded_image(manifest):
    """By hand for each sample and view, with Pillow's plain resize of the whole decoded image."""
    for batch in take(manifest, count=3):
        for k, id in enumerate(batch.index.tolist()):
            image = images.decode(manifest.path(id))
            for view in range(2):
                u = uniforms(3, batch.epoch, np.array([id]), view, CROP_SLOTS)
                box = crop_boxes(RECIPE, u, np.array([image.width]), np.array([image.height]))[0]
                expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box=tuple(box)))
                got = batch.crops[view, k].numpy()
                # Large ones are decoded or reduced in steps, which noise shows most; small ones are exact.
                exact = min(image.size) < 32
                assert np.abs(got.astype(int) - expected).mean() <= (0 if exact else 12)


def test_bad_files_are_dropped_and_named(manifest):
    batches = take(manifest, count=30 // 8 * 4)
    bad = {manifest.relative(id): reason for batch in batches for id, reason in batch.bad}
    assert set(bad) == {"x.jpg", "y.png"}
    assert all("is truncated" in reason for reason in bad.values())
    for batch in batches:
        assert len(batch.index) + len(batch.bad) == 8
        assert not set(batch.index.tolist()) & {id for id, _ in batch.bad}
        assert batch.crops.shape[1] == len(batch.index)


def test_a_batch_of_nothing_but_bad_files_is_empty(tmp_path):
    for k in range(4):
        truncated(large_jpeg, 0.5)(tmp_path / f"{k}.jpg")
    found = Manifest.scan(tmp_path)
    batch = next(training_loader(found, found.usable, RECIPE, 16, 4, 0))
    assert batch.crops.shape == (2, 0, 16, 16, 3)
    assert len(batch.index) == 0
    assert len(batch.bad) == 4


def test_a_file_that_vanishes_or_changes_on_the_way(tmp_path):
    for k in range(4):
        large_jpeg(tmp_path / f"{k}.jpg")
    found = Manifest.scan(tmp_path)
    (tmp_path / "1.jpg").unlink()
    Image.new("RGB", (9, 200), (10, 200, 30)).save(tmp_path / "2.jpg", quality=95)
    batch = next(training_loader(found, found.usable, RECIPE, 16, 4, 0))
    assert batch.bad == [(1, "no longer exists")]
    changed = batch.crops[:, batch.index.tolist().index(2)].float()
    assert (changed - torch.tensor([10.0, 200, 30])).abs().max() < 6


def test_unchecked_headers_change_nothing(folder, manifest):
    """Whether the boxes come from the manifest's sizes or from the files'."""
    unchecked = Manifest.scan(folder, check=False)
    assert unchecked.widths.max() == 0
    assert_same(take(unchecked), take(manifest))


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_change_nothing_and_save_the_decoding(workers, tmp_path, monkeypatch):
    for k in range(12):
        png(tmp_path / f"{k:02d}.png")
    truncated(png, 0.5)(tmp_path / "bad.png")
    found = Manifest.scan(tmp_path)
    kept = take(found, count=9, batch_size=4, workers=workers)
    monkeypatch.setattr(loader, "_CACHE_BYTES", 0)
    assert_same(take(found, count=9, batch_size=4), kept)


def test_small_sets_are_decoded_once(tmp_path, monkeypatch):
    for k in range(8):
        png(tmp_path / f"{k}.png")
    found = Manifest.scan(tmp_path)
    opened = []
    real = crops.opened
    monkeypatch.setattr(crops, "opened", lambda path: (opened.append(path), real(path))[1])
    take(found, count=10, batch_size=4)
    assert len(opened) == 8
    opened.clear()
    take(found, count=4, batch_size=4, size=8)  # 24 x 16 images may be decoded smaller for 8-pixel crops: not kept
    assert len(opened) == 16
    (tmp_path / "p.csv").write_text("".join(f"{k}.png,{what} {k}\n" for k in range(8) for what in ("a", "the", "my")))
    opened.clear()
    take(Pairs.scan(tmp_path / "p.csv"), count=12, batch_size=4)
    assert len(opened) == 8  # 24 pairs


def test_the_global_generators_are_neither_used_nor_asked(manifest):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = take(manifest, count=2, workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(1)
    assert_same(take(manifest, count=2, workers=1), first)


def test_what_workers_are_given_can_be_pickled(manifest):
    """So that processes that are started afresh rather than forked (macOS, Windows) get it."""
    dataset = crops.CropDataset(manifest, manifest.usable, crops.RandomCrops(RECIPE, 2, 3), 16, "white", 0)
    request = next(iter(loader.ResumableSampler(manifest.usable, 8, 3)))
    assert_same([pickle.loads(pickle.dumps(dataset))[request]], [dataset[request]])


def test_bad_input_shows_at_the_call_not_at_the_first_batch(manifest):
    with pytest.raises(BadInput, match="fewer than one batch of 64"):
        training_loader(manifest, manifest.usable, RECIPE, 16, 64, 0)
    with pytest.raises(BadInput, match="is no colour"):
        training_loader(manifest, manifest.usable, RECIPE, 16, 8, 0, background="paper")
    with pytest.raises(BadInput, match="is no colour"):
        evaluation_loader(manifest, manifest.usable, 16, background="paper")


def test_a_mistake_in_the_code_does_not_pass_for_a_bad_file(manifest, monkeypatch):
    monkeypatch.setattr(crops, "crop_boxes", lambda *args: np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"unpack|shape|broadcast"):
        take(manifest, count=1)


# ------------------------------------------------------------------------------------------------------------ evaluation
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_evaluation_passes_once_in_order(workers, manifest):
    ids = manifest.usable[::-1].copy()
    batches = list(evaluation_loader(manifest, ids, 16, batch_size=8, workers=workers, crop_fraction=0.9))
    assert [b.step for b in batches] == [0, 1, 2, 3]
    assert {b.epoch for b in batches} == {0}
    bad = {id for b in batches for id, _ in b.bad}
    assert [manifest.relative(id) for id in sorted(bad)] == ["x.jpg", "y.png"]
    assert torch.cat([b.index for b in batches]).tolist() == [id for id in ids if id not in bad]
    for batch in batches:
        for k, id in enumerate(batch.index.tolist()):
            whole = images.decode(manifest.path(id))
            box = boxes.central_box(*whole.size, 0.9)
            expected = np.asarray(whole.resize((16, 16), Image.Resampling.BILINEAR, box=box))
            assert (batch.crops[0, k].numpy() == expected).all()


def test_evaluation_of_nothing_gives_nothing(manifest):
    assert list(evaluation_loader(manifest, np.array([], dtype=np.int64), 16, workers=2)) == []


def test_whole_images_of_the_right_size_are_not_resampled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    for k in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    found = Manifest.scan(tmp_path)
    batch = next(training_loader(found, found.usable, RECIPES["character"], 28, 2, 0))
    assert (batch.crops.numpy() == pixels).all()
    assert (next(evaluation_loader(found, found.usable, 28)).crops.numpy() == pixels).all()


# ------------------------------------------------------------------------------------------------------------- processes
def children(pid: int) -> list[int]:
    found = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat_file.read_text()
        except OSError:
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.append(int(stat_file.parent.name))
    return found


def zombies(pid: int) -> int:
    texts = (p.read_text().rpartition(")")[2].split()[:2] for p in Path("/proc").glob("[0-9]*/stat") if p.exists())
    return sum(state == "Z" and int(parent) == pid for state, parent in texts)


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@linux
@pytest.mark.parametrize("how", ["close", "drop"])
def test_workers_end_when_the_iterator_is_closed_or_dropped(how, manifest):
    before = set(children(os.getpid()))
    batches = training_loader(manifest, manifest.usable, RECIPE, 16, 8, 0, workers=2)
    next(batches)
    mine = set(children(os.getpid())) - before
    assert len(mine) == 2
    if how == "close":
        batches.close()
    del batches
    wait_until(lambda: not mine & set(children(os.getpid())))
    assert zombies(os.getpid()) == 0


PROGRAM = """
import signal, sys
from sogclr.data.manifest import Manifest
from sogclr.data.loader import training_loader
from sogclr.data.recipe import RECIPES
manifest = Manifest.scan(sys.argv[1], cache=False)
batches = training_loader(manifest, manifest.usable, RECIPES["small"], 16, 8, 0, workers=2)
if sys.argv[2] == "wait":
    signal.signal(signal.SIGTERM, lambda *a: print("term", flush=True))
    signal.signal(signal.SIGINT, lambda *a: print("int", flush=True))
next(batches)
print("started", flush=True)
if sys.argv[2] == "wait":
    for line in sys.stdin:
        print(next(batches).step, flush=True)
"""


def start(folder, how):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), how]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **streams)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.integration
@linux
def test_a_program_that_ends_with_a_live_iterator_does_not_hang(folder):
    process = start(folder, "end")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_pass_in_inference_mode_leaves_later_ones_alone(manifest, monkeypatch):
    monkeypatch.setattr(watch, "_mine", None)  # as in a process that has read nothing yet
    with torch.inference_mode():
        next(evaluation_loader(manifest, manifest.usable, 16))
    assert len(take(manifest, 2)) == 2


@linux
def test_a_file_whose_reading_does_not_end_is_named_and_the_readers_end(tmp_path, monkeypatch):
    """As on a network disk that is gone: here it is a pipe that nobody writes to."""
    monkeypatch.setattr(watch, "HANGS_AFTER", 1.0)
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.3)
    for k in range(8):
        png(tmp_path / f"{k}.png")
    manifest = Manifest.scan(tmp_path, cache=False)
    (tmp_path / "5.png").unlink()
    os.mkfifo(tmp_path / "5.png")
    batches = training_loader(manifest, manifest.usable, RECIPE, 16, 8, 3, workers=1)
    with pytest.raises(RunFailed, match=r"5\.png has been read for [12] s without an end: the disk or the network"):
        next(batches)
    del batches
    assert not [p for p in multiprocessing.active_children() if p.is_alive()]


HANGS = """
import os, sys
from pathlib import Path
from sogclr import progress
from sogclr.data import watch
from sogclr.data.loader import evaluation_loader
from sogclr.data.manifest import Manifest
watch.HANGS_AFTER, watch.LOOK_EVERY = 1.0, 0.3
progress.of_command = True
folder = Path(sys.argv[1])
manifest = Manifest.scan(folder, cache=False)
(folder / "5.png").unlink()
os.mkfifo(folder / "5.png")
next(evaluation_loader(manifest, manifest.usable, 16))
"""


@pytest.mark.slow
@pytest.mark.integration
@linux
def test_a_file_whose_reading_does_not_end_ends_a_command_without_readers(tmp_path):
    for k in range(8):
        png(tmp_path / f"{k}.png")
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.startswith("sogclr: 5.png has been read for ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.integration
@linux
def test_workers_leave_signals_to_the_parent_and_die_with_it(folder):
    process = start(folder, "wait")
    try:
        workers = children(process.pid)
        assert len(workers) == 2
        for number, word in ((signal.SIGINT, "int\n"), (signal.SIGTERM, "term\n")):
            os.killpg(process.pid, number)  # as Ctrl-C and batch systems do: to all processes of the group
            assert process.stdout.readline() == word
        for step in range(1, 12):  # more than what was ready beforehand
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{step}\n"
        assert sorted(children(process.pid)) == sorted(workers)
        process.kill()
        wait_until(lambda: not any(alive(pid) for pid in workers))
    finally:
        process.kill()
        process.communicate()


def test_recipes_without_room_for_doubt_are_the_same_in_both_views(tmp_path):
    for k in range(2):
        large_jpeg(tmp_path / f"{k}.jpg")
    found = Manifest.scan(tmp_path)
    whole = replace(Recipe(), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    batch = next(training_loader(found, found.usable, whole, 16, 2, 0))
    assert torch.equal(batch.crops[0], batch.crops[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_no_order_is_asked_for_before_all_batches_of_the_epoch_before_were_taken(workers, folder):
    manifest, taken, asked = Manifest.scan(folder), [], {}

    def order(ids, epoch):
        asked[epoch] = len(taken)
        return np.sort(ids)

    batches = training_loader(manifest, manifest.usable, RECIPE, 16, 8, 3, workers=workers, start_step=1, order=order)
    each = len(manifest.usable) // 8
    while len(taken) < 2 * each:
        taken.append(next(batches).step)
    assert taken == list(range(1, 2 * each + 1))
    assert asked == {0: 0, 1: each - 1, 2: 2 * each - 1}


@pytest.mark.skipif(loader.reader_context() is None, reason="readers are not forked here")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_does_not_begin_is_forked_again(workers, manifest, tmp_path, monkeypatch):
    expected, hung = take(manifest, workers=0), tmp_path / "hung"
    bootstrap = readers._Reader._bootstrap

    def hang_once(self, *args, **kwargs):
        if not hung.exists():
            hung.write_text(str(os.getpid()))
            time.sleep(600)
        return bootstrap(self, *args, **kwargs)

    monkeypatch.setattr(readers._Reader, "_bootstrap", hang_once)
    monkeypatch.setattr(readers, "BEGINS_WITHIN", 0.5)
    assert_same(take(manifest, workers=workers), expected)
    with pytest.raises(ProcessLookupError):
        os.kill(int(hung.read_text()), 0)


@pytest.mark.skipif(loader.reader_context() is None, reason="readers are not forked here")
def test_a_reader_that_never_begins_ends_the_run(manifest, monkeypatch):
    monkeypatch.setattr(readers._Reader, "_bootstrap", lambda self, *args, **kwargs: time.sleep(600))
    monkeypatch.setattr(readers, "BEGINS_WITHIN", 0.2)
    with pytest.raises(RunFailed, match="did not begin, 3 times"):
        take(manifest, workers=1)
    assert not multiprocessing.active_children()
