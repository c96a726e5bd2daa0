"""The table of methods: what each means by the options that were left out, and which options it takes. No torch here."""

from __future__ import annotations

AVERAGES = ("moving-average", "queue-average")
"""The estimators that take a gamma."""

OF_AVERAGES = {"gamma": AVERAGES, "gamma_schedule": AVERAGES, "convention": (*AVERAGES, "boosted")}
"""Option -> the estimators that take it; elsewhere it is refused."""

METHODS: dict[str, dict[str, str]] = {
    "sogclr": {"estimator": "moving-average", "temperature_mode": "constant"},
    "isogclr": {"estimator": "moving-average", "temperature_mode": "per-sample"},
    "scent": {"estimator": "moving-average", "gamma_schedule": "adaptive", "temperature_mode": "constant"},
    "neuclip": {"estimator": "neural", "temperature_mode": "constant"},
    "simclr": {"temperature_mode": "constant"},
    "dcl": {"temperature_mode": "constant"},
    "moco": {"temperature_mode": "constant"},
    "clip": {"temperature_mode": "constant"},
    "siglip": {"temperature_mode": "constant"},
}
"""What each method means by the options that were left out; those without an estimator have no choice of it."""
