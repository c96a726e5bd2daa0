"""Whether training was worth it, in words: the scores of a run beside those of the weights that it started from."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..progress import rounded
from .scores import SCORES, selector


def worth_of_run(rows: Sequence[Mapping[str, Any]], run: object, things: str, best_kept: bool = False) -> str | None:
    """Return a line on what training did to the score that picks the best checkpoint.

    Args:
        rows: the lines of the run's metrics.
        run: its folder.
        things: what was scored, as `training images`.
        best_kept: whether the trained weights are those of the best score, not the last ones.

    Returns:
        None where the start was not scored.
    """
    scored = [row for row in rows if row.get("kind") == "eval"]
    if len(scored) < 2 or scored[0].get("step") != 0:
        return None
    score = selector(scored[0])
    points = [(float(row["epoch"]), row[score.key]) for row in scored if isinstance(row.get(score.key), float | int)]
    if len(points) < 2 or points[0][0] != 0:
        return None
    (_, start), (_, end), (epoch, best) = points[0], points[-1], max(points, key=lambda point: point[1])
    if not score.fraction:
        change = f"{score.title} {start:.3g} -> {end:.3g} (start -> end, of {things})"
        return f"start     {change}; only labels can tell whether training was worth it"
    if best_kept and not epoch:
        last = f"{score.title} {100 * start:.1f} at the start, {100 * end:.1f} at the end, on {things}"
        return f"as before {last}; nothing was better than the start, whose weights the run keeps; lower --lr"
    if best_kept:
        last = f"; the last were {100 * end:.1f}" if best > end else ""
        change = f"{score.title} {100 * start:.1f} -> {100 * best:.1f}"
        return f"worth it  {change} (start -> epoch {rounded(epoch)}, the best on {things}, whose weights the run keeps{last})"
    change = f"{score.title} {100 * start:.1f} -> {100 * end:.1f} (start -> end, on {things})"
    if end < start:
        kept = f"best.pt (epoch {rounded(epoch)}) has {100 * best:.1f}" if epoch else "best.pt is the start"
        mixes = f"sogclr eval {shlex.quote(str(run))} DATA --mix 0.5"
        return f"worse than its start: {change}; {kept}; lower --lr, or score a mix with the start: {mixes}"
    after = f", best {100 * best:.1f} at epoch {rounded(epoch)}" if best > end else ""
    return f"{'worth it ' if end > start else 'as before'} {change}{after}"


def worth_of_scores(start: Mapping[str, float], end: Mapping[str, float], counts: Mapping[str, int]) -> str | None:
    """Return a sentence on what training did to each score that judges it.

    A difference d between shares p of n things is within noise where |d| is at most one standard error, sqrt(p (1 - p) / n).

    Args:
        start: the scores of the start.
        end: of the run.
        counts: things that were scored, by the score's group; "" for those without one.

    Returns:
        None where no score judges it.
    """
    differences, words = [], []
    for key, score in SCORES.items():
        if not (score.judges and key in start and key in end):
            continue
        before, after = start[key], end[key]
        n = counts.get(score.group, counts[""])
        error = max(math.sqrt(max(0.0, p * (1 - p)) / max(1, n)) for p in (before, after))
        d, noise = after - before, abs(after - before) <= error
        differences.append(0.0 if noise else d)
        beside = f", within noise: the standard error on {n:,} is {100 * error:.1f}" if noise else ""
        words.append(f"{score.title} {100 * before:.1f} -> {100 * after:.1f} ({100 * d:+.1f} points{beside})")
    if not differences:
        return None
    better, worse = max(differences) > 0, min(differences) < 0
    verdict = {
        (True, False): "Training was worth it",
        (False, True): "Worse than its start",
        (True, True): "Better and worse than its start",
        (False, False): "No better and no worse than its start",
    }[better, worse]
    return f"{verdict}: {'; '.join(words)}."
