"""The scores of an evaluation: their keys, titles and order."""

from __future__ import annotations

SCORES = {
    "knn_top1": "kNN",
    "linear_top1_1_per_class": "linear, 1 label a class",
    "linear_top1_10_per_class": "linear, 10 labels a class",
    "linear_top1": "linear, all labels",
    "rankme": "RankMe",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "image_to_text_r1": "image to text, R@1",
    "image_to_text_r5": "image to text, R@5",
    "image_to_text_r10": "image to text, R@10",
    "text_to_image_r1": "text to image, R@1",
    "text_to_image_r5": "text to image, R@5",
    "text_to_image_r10": "text to image, R@10",
    "zero_shot_top1": "zero-shot, top 1",
}
"""Keys of a result (and of a run's metrics) and their names, in the order in which people read them."""
FRACTIONS = frozenset(key for key in SCORES if "top1" in key or "_r" in key)
