"""The metrics of the tasks, from scikit-learn and scipy, as Trainer's ``compute_metrics``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from rankwise.tasks.registry import Kind

Array = npt.NDArray[Any]


Metric = Callable[[Array, Array], float]  # labels (N,), predictions (N,)


def _zero_if_constant(correlation: Metric) -> Metric:
    def measure(labels: Array, predictions: Array) -> float:
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(correlation(labels, predictions))

    return measure


METRICS: Mapping[str, Metric] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(f1_score(labels, predictions, zero_division=0.0)),
    "f1_macro": lambda labels, predictions: float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
    "matthews": _zero_if_constant(matthews_corrcoef),
    "pearson": _zero_if_constant(lambda labels, predictions: pearsonr(labels, predictions).statistic),
    "spearman": _zero_if_constant(lambda labels, predictions: spearmanr(labels, predictions).statistic),
}
SMALLER_IS_BETTER = ("loss", "perplexity")


def compute_metrics(prediction: EvalPrediction, *, kind: Kind, metrics: Sequence[str]) -> dict[str, float]:
    """Return the metrics of an evaluation.

    ``f1`` is of class 1; a correlation (Matthews' too) of constant predictions or labels is 0. A causal task gives
    ``loss``, the mean over all counted tokens (it takes the place of Trainer's own ``eval_loss``), and its exponential
    ``perplexity``.

    Args:
        prediction: Logits (N, classes), scores (N, 1) for a regression, (N, choices) or (N choices, 1) for a choice,
            and for a causal task loss sum and count of each sequence, (N, 2); with the labels.
        kind: Of the task.
        metrics: Names in ``METRICS``.
    """
    values = np.asarray(prediction.predictions, dtype=np.float64)
    if kind == "causal":
        losses, tokens = values.sum(axis=0)
        with np.errstate(over="ignore"):  # a diverged run has perplexity inf
            return {"loss": float(losses / tokens), "perplexity": float(np.exp(losses / tokens))}
    labels = np.asarray(prediction.label_ids).reshape(-1)
    flat = kind == "regression"
    predictions = values.reshape(-1) if flat else values.reshape(len(labels), -1).argmax(axis=1)
    return {name: METRICS[name](labels, predictions) for name in metrics}
