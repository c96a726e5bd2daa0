import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sogclr.data import augment, augment_params
from sogclr.data.augment import Augmentation
from sogclr.data.augment_params import CROP_SLOTS, crop_boxes, largest_shrink, uniforms
from sogclr.data.recipe import RECIPES, Recipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTHING = Recipe(flip=0.0, jitter=0.0, gray=0.0, blur=0.0)
EVERYTHING = Recipe(flip=0.5, affine=0.5, stroke=0.5, jitter=0.5, gray=0.3, blur=0.5, hue=0.3)
IDS = np.arange(40) * 7919


def random_crops(n=40, size=20, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def plain(recipe, crops, ids=IDS, epoch=0, view=0, seed=0):
    """Without normalisation: values in 0..1."""
    size = crops.shape[1]
    return Augmentation(recipe, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seed)(crops, ids[: len(crops)], epoch, view)


# -------------------------------------------------------------------------------------------------------------- uniforms
@settings(max_examples=100, deadline=None)
@given(
    st.integers(-(2**63), 2**64), st.integers(0, 10**6), st.lists(st.integers(0, 2**62), max_size=20), st.integers(0, 9)
)
def test_uniforms_lie_in_0_1_and_do_not_depend_on_company(seed, epoch, ids, view):
    ids = np.array(ids, dtype=np.int64)
    u = uniforms(seed, epoch, ids, view, 7)
    assert u.shape == (len(ids), 7)
    assert ((u >= 0) & (u < 1)).all()
    for k in range(len(ids)):
        np.testing.assert_array_equal(uniforms(seed, epoch, ids[k : k + 1], view, 3, first=4)[0], u[k, 4:])


def test_uniforms_are_uniform_and_unrelated():
    """Every coordinate (seed, epoch, id, view, slot) changes all numbers; correlations stay within chance."""
    ids = np.arange(20_000)
    u = uniforms(1, 2, ids, 0, 5)
    for column in u.T:
        counts = np.histogram(column, 50, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 95  # chi-squared, 49 degrees of freedom: p = 1e-4
    others = [
        uniforms(2, 2, ids, 0, 5),
        uniforms(1, 3, ids, 0, 5),
        uniforms(1, 2, ids, 1, 5),
        uniforms(1, 2, ids + 1, 0, 5),
    ]
    pairs = [(u, other) for other in others] + [(u[:, :4], u[:, 1:]), (u[:-1], u[1:])]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015
        assert not (a == b).any()
    assert len(np.unique(u)) == u.size


def test_uniforms_are_fixed_for_ever():
    """A run must resume under another NumPy: these numbers may never change."""
    expected = [[0.35821536831620515, 0.12835343034703328], [0.46293043036691583, 0.17579612344620765]]
    assert uniforms(5, 3, np.array([0, 7]), 1, 2).tolist() == expected


# ----------------------------------------------------------------------------------------------------------------- crops
boxes_recipe = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(
    lambda t: Recipe(crop_scale=tuple(sorted(t[:2])), crop_ratio=tuple(sorted(t[2:])))
)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(boxes_recipe, st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 2**32))
def test_a_crop_lies_inside_the_image(recipe, width, height, seed):
    n = 20
    u = uniforms(seed, 0, np.arange(n), 0, CROP_SLOTS)
    for draws in (u, np.zeros_like(u), np.full_like(u, 1 - 2**-53)):
        left, top, right, bottom = crop_boxes(recipe, draws, np.full(n, width), np.full(n, height)).T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= width).all()
        assert (bottom <= height).all()
        assert (right - left >= 1 - 1e-6).all()
        assert (bottom - top >= 1 - 1e-6).all()


def test_crops_have_the_distribution_of_the_recipe():
    """Area uniform, log-ratio uniform, position uniform over what is left, on an image where every draw fits."""
    recipe = Recipe(crop_scale=(0.1, 0.4), crop_ratio=(0.5, 2.0))
    n = 20_000
    u = uniforms(0, 0, np.arange(n), 0, CROP_SLOTS)
    left, top, right, bottom = crop_boxes(recipe, u, np.full(n, 600), np.full(n, 600)).T
    w, h = right - left, bottom - top
    for values, low, high in (
        (w * h / 360_000, 0.1, 0.4),
        (np.log(w / h), -math.log(2), math.log(2)),
        (left / (600 - w), 0, 1),
        (top / (600 - h), 0, 1),
    ):
        scaled = np.sort((values - low) / (high - low))
        assert np.abs(scaled - (np.arange(n) + 0.5) / n).max() < 0.0163  # Kolmogorov-Smirnov, p = 5e-5


def test_an_image_that_fits_no_crop_gives_its_central_part():
    u = uniforms(0, 0, np.arange(5), 0, CROP_SLOTS)
    box = crop_boxes(Recipe(crop_scale=(0.9, 1.0)), u, np.full(5, 100), np.full(5, 10))
    np.testing.assert_allclose(box, [[50 - 20 / 3, 0, 50 + 20 / 3, 10]] * 5)


def test_a_crop_of_everything_is_the_whole_image():
    u = uniforms(0, 0, np.arange(3), 0, CROP_SLOTS)
    box = crop_boxes(RECIPES["character"], u, np.array([28, 30, 7]), np.array([28, 20, 9]))
    assert box.tolist() == [[0, 0, 28, 28], [0, 0, 30, 20], [0, 0, 7, 9]]


def test_boxes_do_not_depend_on_company():
    u = uniforms(0, 0, np.arange(33), 0, CROP_SLOTS)
    w, h = np.arange(33) * 10 + 5, np.arange(33)[::-1] * 7 + 5
    whole = crop_boxes(Recipe(), u, w, h)
    for k in range(33):
        np.testing.assert_array_equal(crop_boxes(Recipe(), u[k : k + 1], w[k : k + 1], h[k : k + 1])[0], whole[k])


def test_decoding_smaller_keeps_every_crop_large_enough():
    assert largest_shrink(np.array([[0.0, 0, 100, 200], [5, 5, 70, 90]]), [32, 32]) == 2
    assert largest_shrink(np.array([[0.0, 0, 10, 20]]), [32]) == 1
    assert largest_shrink(np.array([[0.0, 0, 900, 320]]), [32]) == 10
    assert largest_shrink(np.array([[0.0, 0, 100, 200], [5, 5, 70, 90]]), [32, 16]) == 3


# ---------------------------------------------------------------------------------------------------------- augmentation
@pytest.mark.parametrize("name", [*RECIPES, "everything"])
def test_views_do_not_depend_on_company(name):
    """Bit for bit, whatever else is in the batch, in whatever order."""
    recipe = EVERYTHING if name == "everything" else RECIPES[name]
    crops = random_crops()
    augment = Augmentation(recipe, 20, MEAN, STD, seed=5)
    whole = augment(crops, IDS, 3, 1)
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(augment(crops[order], IDS[order], 3, 1), whole[order])
    for k in (0, 13, 39):
        assert torch.equal(augment(crops[k : k + 1], IDS[k : k + 1], 3, 1)[0], whole[k])


def test_views_do_not_depend_on_how_many_are_worked_on_at_once(monkeypatch):
    crops = random_crops()
    whole = plain(EVERYTHING, crops)
    for at_once in (1, 7, 1 << 30):
        monkeypatch.setattr(augment, "_CACHE_FLOATS", at_once * 20 * 20 * 3)
        assert torch.equal(plain(EVERYTHING, crops), whole)


def test_output_is_float32_channels_last_and_the_input_is_untouched():
    crops = random_crops()
    before = crops.clone()
    out = Augmentation(EVERYTHING, 20, MEAN, STD, 0)(crops, torch.from_numpy(IDS), 0, 0)
    assert out.shape == (40, 3, 20, 20)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(crops, before)
    assert not out.requires_grad
    assert Augmentation(EVERYTHING, 20, MEAN, STD, 0)(crops[:0], IDS[:0], 0, 0).shape == (0, 3, 20, 20)


def test_seed_epoch_view_and_id_each_change_the_view():
    crops = random_crops(1).repeat(40, 1, 1, 1)
    first = plain(EVERYTHING, crops)
    assert not torch.equal(first[0], first[1])
    for other in (
        plain(EVERYTHING, crops, seed=1),
        plain(EVERYTHING, crops, epoch=1),
        plain(EVERYTHING, crops, view=1),
    ):
        assert (first - other).abs().amax((1, 2, 3)).count_nonzero() > 35
    assert torch.equal(plain(EVERYTHING, crops), first)


def test_the_global_generator_is_neither_used_nor_asked():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = plain(EVERYTHING, random_crops())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(plain(EVERYTHING, random_crops()), first)


def test_nothing_switched_on_is_normalisation_alone():
    crops = random_crops()
    got = Augmentation(NOTHING, 20, MEAN, STD, 0)(crops, IDS, 0, 0)
    expected = (crops.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    torch.testing.assert_close(got.double(), expected.permute(0, 3, 1, 2), atol=2e-6, rtol=0)


def test_autocast_changes_nothing():
    crops = random_crops()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plain(EVERYTHING, crops)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain(EVERYTHING, crops))


@pytest.mark.parametrize(
    ("stage", "probability"),
    [("flip", 0.3), ("gray", 0.2), ("affine", 0.6), ("stroke", 0.5), ("blur", 0.5), ("jitter", 0.8)],
)
def test_each_stage_happens_as_often_as_the_recipe_says(stage, probability):
    n = 2000
    crops = random_crops(n, size=6)
    ids = np.arange(n)
    out = plain(replace(NOTHING, **{stage: probability}, blur_sigma=(60.0, 90.0)), crops, ids)
    changed = (out - plain(NOTHING, crops, ids)).abs().amax((1, 2, 3)) > 1e-3
    assert abs(changed.double().mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / n)


def test_a_flip_exchanges_left_and_right():
    crops = random_crops()
    assert torch.equal(plain(replace(NOTHING, flip=1.0), crops), plain(NOTHING, crops).flip(3))


def test_gray_is_the_luminance_in_all_channels():
    crops = random_crops()
    out = plain(replace(NOTHING, gray=1.0), crops)
    expected = (crops.double() / 255) @ torch.tensor([0.299, 0.587, 0.114]).double()
    for c in range(3):
        torch.testing.assert_close(out[:, c].double(), expected, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- colour
GRAY = np.array([0.299, 0.587, 0.114])


def one_by_one(image, order, brightness, contrast, saturation, hue, gray):
    """Slow float64 reference: the changes in their order, each applied to the whole image (3, H, W)."""
    turn = 2 * np.pi * hue
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    for change in order:
        luminance = np.einsum("c,chw->hw", GRAY, image)
        if change == 0:
            image = image * brightness
        elif change == 1:
            image = contrast * image + (1 - contrast) * luminance.mean()
        elif change == 2:
            image = saturation * image + (1 - saturation) * luminance
        else:
            y, i, q = np.einsum("dc,chw->dhw", to_yiq, image)
            chroma = (i + 1j * q) * np.exp(1j * turn)
            image = np.einsum("dc,chw->dhw", np.linalg.inv(to_yiq), np.stack([y, chroma.real, chroma.imag]))
    if gray:
        image = np.repeat(np.einsum("c,chw->hw", GRAY, image)[None], 3, axis=0)
    return np.clip(image, 0, 1)


def test_one_colour_matrix_equals_the_changes_one_by_one():
    recipe = Recipe(brightness=0.7, contrast=0.6, saturation=0.9, hue=0.5, jitter=0.9, gray=0.3)
    n = 200
    ids = np.arange(n)
    crops = random_crops(n, size=8)
    u = uniforms(0, 0, ids, 0, 21, first=CROP_SLOTS)
    got = plain(replace(recipe, flip=0.0, blur=0.0), crops, ids).numpy()
    orders = set()
    for k in range(n):
        image = crops[k].permute(2, 0, 1).double().numpy() / 255
        jitter, brightness, contrast, saturation, hue, gray = u[k, 9:15]
        order = np.argsort(u[k, 17:21]).tolist() if jitter < 0.9 else []
        orders.add(tuple(order))
        factors = [1 + (2 * v - 1) * w for v, w in ((brightness, 0.7), (contrast, 0.6), (saturation, 0.9))]
        expected = one_by_one(image, order, *factors, (2 * hue - 1) * 0.5, gray < 0.3)
        np.testing.assert_allclose(got[k], expected, atol=3e-6)
    assert orders >= set(permutations(range(4)))


def test_a_hue_turn_keeps_luminance_and_grey():
    u = np.full((2, 21), 0.5)
    u[:, 12 + 1] = [0.1, 0.9]  # hue
    recipe = Recipe(brightness=0, contrast=0, saturation=0, hue=0.5, jitter=1.0, gray=0.0)
    pixel = augment_params.colour_maps(recipe, u)[:, 0]
    np.testing.assert_allclose(GRAY @ pixel, np.tile(GRAY, (2, 1)), atol=1e-12)
    np.testing.assert_allclose(pixel @ np.ones(3), np.ones((2, 3)), atol=1e-4)  # YIQ's coefficients have four digits
    assert np.abs(pixel - np.eye(3)).max() > 0.3


# -------------------------------------------------------------------------------------------------------------- geometry
def sample_at(image, x, y):
    """Slow bilinear reference: (3, S, S) at pixel coordinates, the border going on."""
    size = image.shape[-1]
    x, y = min(max(x, 0), size - 1), min(max(y, 0), size - 1)
    x0, y0 = min(int(x), size - 2), min(int(y), size - 2)
    fx, fy = x - x0, y - y0
    top = image[:, y0, x0] * (1 - fx) + image[:, y0, x0 + 1] * fx
    return top * (1 - fy) + (image[:, y0 + 1, x0] * (1 - fx) + image[:, y0 + 1, x0 + 1] * fx) * fy


def test_the_affine_map_is_zoom_shear_rotate_shift():
    """Against a slow float64 reference that inverts the forward matrix."""
    recipe = replace(NOTHING, affine=1.0, rotate=40.0, translate=0.2, zoom=0.3, shear=20.0)
    size, n = 12, 6
    crops = random_crops(n, size)
    u = uniforms(0, 0, IDS[:n], 0, 21, first=CROP_SLOTS)
    got = plain(recipe, crops).numpy()
    for k in range(n):
        angle, dx, dy, zoom, shear = (2 * u[k, 2:7] - 1) * [math.radians(40), 0.2, 0.2, 0.3, math.radians(20)]
        rotate = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        forward = rotate @ np.array([[1, math.tan(shear)], [0, 1]]) * (1 + zoom)
        image = crops[k].permute(2, 0, 1).double().numpy() / 255
        for row in range(size):
            for column in range(size):
                from_centre = np.array([column, row]) - (size - 1) / 2 - np.array([dx, dy]) * size
                x, y = np.linalg.inv(forward) @ from_centre + (size - 1) / 2
                np.testing.assert_allclose(got[k, :, row, column], sample_at(image, x, y), atol=1e-5)


def test_no_rotation_and_no_shift_is_the_image():
    recipe = replace(NOTHING, affine=1.0, rotate=0.0, translate=0.0, zoom=0.0, shear=0.0)
    torch.testing.assert_close(plain(recipe, random_crops()), plain(NOTHING, random_crops()), atol=1e-5, rtol=0)


def test_strokes_thicken_and_thin():
    """Against SciPy-free loops over 3x3 neighbourhoods cut at the border."""
    n, size = 8, 9
    crops = random_crops(n, size)
    u = uniforms(0, 0, IDS[:n], 0, 21, first=CROP_SLOTS)[:, 8]
    assert (u < 0.5).any()
    assert (u > 0.5).any()
    got = plain(replace(NOTHING, stroke=1.0), crops).numpy()
    for k in range(n):
        image = crops[k].permute(2, 0, 1).double().numpy() / 255
        extreme, share = (np.max, 2 * u[k] - 1) if u[k] > 0.5 else (np.min, 1 - 2 * u[k])
        for row in range(size):
            for column in range(size):
                near = image[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                expected = image[:, row, column] * (1 - share) + extreme(near, axis=(1, 2)) * share
                np.testing.assert_allclose(got[k, :, row, column], expected, atol=1e-6)


@pytest.mark.parametrize(("size", "sigma"), [(224, (0.1, 2.0)), (32, (0.1, 2.0)), (20, (5.0, 20.0)), (6, (60.0, 90.0))])
def test_blur_is_a_gaussian_scaled_with_the_view(size, sigma):
    """Against a float64 product with a dense matrix of Gaussian weights, reflected at the border."""
    n = 3
    crops = random_crops(n, size)
    u = uniforms(0, 0, IDS[:n], 0, 21, first=CROP_SLOTS)[:, 16]
    got = plain(replace(NOTHING, blur=1.0, blur_sigma=sigma), crops).double().numpy()
    for k in range(n):
        width = (sigma[0] + (sigma[1] - sigma[0]) * u[k]) * size / 224
        radius = min(math.ceil(3 * width), size - 1)
        kernel = {d: math.exp(-0.5 * (d / width) ** 2) for d in range(-radius, radius + 1)}
        matrix = np.zeros((size, size))
        for row in range(size):
            for d, weight in kernel.items():
                at = abs(row + d)
                matrix[row, at if at < size else 2 * (size - 1) - at] += weight / sum(kernel.values())
        expected = matrix @ (crops[k].permute(2, 0, 1).double().numpy() / 255) @ matrix.T
        np.testing.assert_allclose(got[k], expected, atol=2e-6)


def test_stages_leave_the_other_rows_alone():
    x = torch.rand(6, 3, 8, 8)
    rows = torch.tensor([1, 4])
    maps = torch.tensor([[[0.5, 0.1, 0.2], [-0.1, 0.7, 0.1]]]).repeat(6, 1, 1)
    changes = {
        "flip": lambda y: augment.hflip_(y, rows),
        "affine": lambda y: augment.affine_(y, maps, rows),
        "stroke": lambda y: augment.morphology_(y, torch.ones(6, 2), rows),
        "blur": lambda y: augment.gaussian_blur_(y, torch.full((6, 2), 1 / 3), rows),
    }
    for change in changes.values():
        out = change(x.clone())
        assert torch.equal(out[[0, 2, 3, 5]], x[[0, 2, 3, 5]])
        assert (out[rows] - x[rows]).abs().amax((1, 2, 3)).min() > 0.01


@pytest.mark.gpu
def test_cuda_gives_the_same_views_without_waiting(no_waits):
    crops = random_crops()
    augment = Augmentation(EVERYTHING, 20, MEAN, STD, 0)
    expected = augment(crops, IDS, 0, 0)
    on_device = crops.cuda()
    augment(on_device, IDS, 0, 0)
    with no_waits():
        got = augment(on_device, IDS, 0, 0)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.cpu(), expected, atol=5e-5, rtol=0)  # 2.2e-5 on an H100
