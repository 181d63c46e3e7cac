"""How far a training is, by what it logged to MLflow.

There is no convention for it, so this goes by the names that are in use. How many steps or epochs there will be:

* `max_steps`, `total_steps`, `num_training_steps`, `num_steps`: steps. Hugging Face's Trainer logs `max_steps`, and -1
  where the epochs count.
* `epochs` (Keras, and MLflow's autologging of it and of Lightning), `num_train_epochs` (Trainer), `max_epochs`
  (Lightning's own logger), `num_epochs`, `n_epochs`: epochs; `num_boost_round` (XGBoost, LightGBM) likewise.

How many there were is the highest step of any metric, as it was logged: a script that counts from 0 ends one below the
total. Against epochs a metric `epoch` counts first: the Trainer's steps are batches. Where the step is above the total,
it counts something else, and is shown without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from prefect_mantik.runs import MetricValue
from prefect_mantik.tracking import TrackedRun

_STEPS = ("max_steps", "total_steps", "num_training_steps", "num_steps")
_EPOCHS = ("epochs", "num_train_epochs", "max_epochs", "num_epochs", "n_epochs", "num_boost_round")

_TOGETHER = timedelta(seconds=5)
"""Metrics that were logged so shortly one after another are of the same moment."""

_SIDE_METRICS = ("epoch", "step", "global_step", "learning_rate", "lr", "grad_norm", "total_flos")
_SIDE_ENDINGS = ("_runtime", "_per_second", "_time")


class Logged(NamedTuple):
    """What a run logged last.

    Attributes:
        metric: Its name; empty where there is none.
        value: May be NaN or infinite.
        step: How far the training is, such as `3 of 10` (steps) or `epoch 1.50 of 3`; empty where that is not known.
    """

    metric: str
    value: float
    step: str


def last_logged(run: TrackedRun, now: datetime | None = None) -> Logged:
    """What a run logged last, and how far that is.

    Of metrics of the same moment the one that tells most: a loss on other data than the training's, then any loss.
    """
    of_training = {name: metric for name, metric in run.metrics.items() if not name.startswith("system/")}
    if not of_training:
        return Logged("", math.nan, "")
    latest = (now or datetime.now(timezone.utc)) + timedelta(days=1)
    times = {name: metric.time for name, metric in of_training.items() if metric.time < latest}  # nonsense left out
    newest = max(times.values(), default=None)
    recent = [name for name, time in times.items() if newest and newest - time <= _TOGETHER] or list(of_training)
    name = min(recent, key=lambda name: (_interest(name), -of_training[name].step, name))
    return Logged(name, of_training[name].value, _how_far(of_training, run.parameters))


def _interest(name: str) -> int:
    low = name.lower()
    if low in _SIDE_METRICS or low.endswith(_SIDE_ENDINGS):
        return 3
    if "loss" not in low:
        return 2
    return 0 if "val" in low or "test" in low else 1


def _how_far(metrics: Mapping[str, MetricValue], parameters: Mapping[str, str]) -> str:
    step = max(metric.step for metric in metrics.values())
    total, epochs = _total(parameters, _STEPS), _total(parameters, _EPOCHS)
    epoch = metrics.get("epoch")
    if total is None and epochs is not None:
        if epoch is not None and 0 <= epoch.value <= epochs:  # NaN is in no range
            return f"epoch {_short(epoch.value)} of {_short(epochs)}"
        total = epochs
    if total is not None and 0 <= step <= total:
        return f"{step} of {_short(total)}"
    return str(step) if step > 0 else ""


def _total(parameters: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        try:
            value = float(parameters.get(name, ""))
        except ValueError:
            continue
        if 0 < value < math.inf:
            return value
    return None


def _short(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"
