from __future__ import annotations

import math

import numpy as np
import pytest
from transformers import EvalPrediction

from rankwise.tasks.metrics import compute_metrics
from rankwise.tasks.registry import Kind


def logits(*classes: int, width: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.eye(width)[list(classes)]


def test_accuracy_f1_and_matthews_by_hand() -> None:
    # labels 1 1 1 0 0, predicted 1 1 0 1 0: TP 2, FN 1, FP 1, TN 1
    prediction = EvalPrediction(logits(1, 1, 0, 1, 0), np.array([1, 1, 1, 0, 0]))
    got = compute_metrics(prediction, kind="classification", metrics=("accuracy", "f1", "matthews"))
    matthews = (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)
    assert got == pytest.approx({"accuracy": 3 / 5, "f1": 2 * 2 / (2 * 2 + 1 + 1), "matthews": matthews})


def test_macro_f1_by_hand() -> None:
    # class 0: TP 1, FP 1, FN 0; class 1: TP 1, FP 1, FN 1; class 2: TP 0
    prediction = EvalPrediction(logits(0, 1, 0, 1, width=3), np.array([0, 1, 1, 2]))
    got = compute_metrics(prediction, kind="classification", metrics=("f1_macro",))
    assert got["f1_macro"] == pytest.approx((2 / (2 + 1 + 0) + 2 / (2 + 1 + 1) + 0) / 3)


def test_correlations_by_hand() -> None:
    # x 0 1 2, y 0 1 4: sum dx dy = 4, sum dx^2 = 2, sum dy^2 = 26/3; the ranks agree
    prediction = EvalPrediction(np.array([[0.0], [1.0], [4.0]]), np.array([0.0, 1.0, 2.0]))
    got = compute_metrics(prediction, kind="regression", metrics=("pearson", "spearman"))
    assert got == pytest.approx({"pearson": 4 / math.sqrt(2 * 26 / 3), "spearman": 1.0})


@pytest.mark.parametrize(("kind", "name"), [("regression", "pearson"), ("regression", "spearman")])
def test_a_constant_has_correlation_zero(kind: Kind, name: str) -> None:
    prediction = EvalPrediction(np.full((3, 1), 2.5), np.array([0.0, 1.0, 2.0]))
    assert compute_metrics(prediction, kind=kind, metrics=(name,)) == {name: 0.0}


def test_one_class_predicted_has_matthews_zero_and_f1_zero() -> None:
    prediction = EvalPrediction(logits(0, 0, 0), np.array([0, 1, 1]))
    got = compute_metrics(prediction, kind="classification", metrics=("matthews", "f1"))
    assert got == {"matthews": 0.0, "f1": 0.0}


@pytest.mark.parametrize("shape", [(6, 1), (3, 2)])
def test_a_choice_is_the_larger_score_in_either_shape(shape: tuple[int, int]) -> None:
    scores = np.array([0.1, 0.9, 3.0, 2.0, -2.0, -1.0]).reshape(shape)
    got = compute_metrics(EvalPrediction(scores, np.array([1, 0, 0])), kind="choice", metrics=("accuracy",))
    assert got == pytest.approx({"accuracy": 2 / 3})


def test_a_causal_loss_is_weighted_by_tokens() -> None:
    sums = np.array([[8.0, 2.0], [3.0, 9.0]], dtype=np.float32)
    got = compute_metrics(EvalPrediction(sums, np.zeros((2, 5))), kind="causal", metrics=("loss", "perplexity"))
    assert got == pytest.approx({"loss": 1.0, "perplexity": math.e})


def test_a_diverged_causal_loss_has_perplexity_inf() -> None:
    got = compute_metrics(EvalPrediction(np.array([[1e4, 1.0]]), np.zeros((1, 2))), kind="causal", metrics=())
    assert got["perplexity"] == math.inf
