"""Scores of block paths, and of linear paths beside them, against autograd through hand-written forward passes.

The oracle makes each path's effective matrix a tensor of its own, float64 and dense, and differentiates by it. It runs
in ``tests.references``, so it shares nothing with the hooks, the taps and the sums that it checks.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.families import FAMILIES
from tests.models import Batch, adapted, fill_, keep_only_, tokens
from tests.references import reference
from torch import Tensor

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.rules.records import Record
from rankwise.scores.probe import FLOW_TOKENS, probe

BATCHES = 3
LENGTH = 7  # longer than the sliding windows


@dataclass(frozen=True)
class Case:
    """A model to score.

    Args:
        family: Its family.
        kinds: Its kinds of block path.
        norm: Its ``shortcut_norm``.
    """

    family: str
    kinds: tuple[str, ...]
    norm: str = "inside"

    def __str__(self) -> str:
        return f"{self.family}-{self.norm}-{self.kinds[-1]}"

    def base(self) -> Any:
        """Return the bare model, its head small enough that tanh has a slope in the network of absolute values."""
        model = FAMILIES[self.family]().double()
        if self.family in ("bert", "roberta"):
            head = model.bert.pooler.dense if self.family == "bert" else model.classifier.dense
            head.weight.data *= 0.05
        return model


EVERY = ("res1", "res2", "in", "cut", "layer")
POST, PRE = ("bert", "roberta", "opt-post"), ("opt-pre", "llama", "gemma2")
CASES = [Case(family, EVERY, norm) for family in POST for norm in ("inside", "reapply")]
CASES += [Case(family, ("res1", "res2", "cut", last)) for family in PRE for last in ("in", "layer")]
BERT, LLAMA = CASES[0], Case("llama", ("res1", "res2", "in", "cut"))
GRADIENT_PROXIES, BASES = ("grad_norm", "snip"), ("weight", "factors")
three_cases = pytest.mark.parametrize("case", [BERT, CASES[1], LLAMA], ids=str)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
both_bases = pytest.mark.parametrize("score_on", BASES)
both_proxies = pytest.mark.parametrize("proxy", GRADIENT_PROXIES)


def make(case: Case, *, filled: bool = True, **fields: Any) -> Any:
    """Adapt a model whose search draws half of the paths first; every path's B has values unless told otherwise."""
    options = {"mode": "dynamic", "budget": 0.5, "shortcut_r": 3, "shortcut_alpha": 5.0, **fields}
    targets = list(FAMILIES[case.family].targets)
    model = adapted(
        case.base(), target_modules=targets, shortcuts=list(case.kinds), shortcut_norm=case.norm, **options
    ).double()
    if filled:
        fill_(model)
    return model


def batches(size: int = 4) -> list[Batch]:
    labels = torch.arange(size) % 2
    return [{"input_ids": tokens(size, LENGTH, seed), "labels": labels} for seed in range(BATCHES)]


def halves(data: list[Batch]) -> list[Batch]:
    """Split each batch into two micro-batches."""
    return [{key: value[part] for key, value in batch.items()} for batch in data for part in (slice(2), slice(2, 4))]


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean loss of a batch: of its labels, or of each next token."""
    if logits.dim() == 2:
        return F.cross_entropy(logits, batch["labels"])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def model_loss(model: Any, batch: Batch) -> Tensor:
    return loss_of(model(input_ids=batch["input_ids"]).logits, batch)


def score(model: Any, **options: Any) -> dict[str, float]:
    return rankwise.score_paths(model, batches(), compute_loss=model_loss, **options)


# The oracle.


Matrices = dict[str, tuple[Tensor, Tensor, Tensor]]  # W_eff (o x i), A (r x i) and B (o x r) of each path


class Oracle:
    """The dense matrices of a model's paths in a forward pass written by hand.

    Args:
        case: The case that the model was made for.
        model: The model whose ``A`` and ``B`` are read.
        contributing: Names of the paths whose delta is in the forward pass. The others have a gradient all the same:
            that of a delta which is zero.
        absolute: Take the absolute value of every parameter.
    """

    def __init__(
        self, case: Case, model: Any, contributing: Collection[str] | None = None, *, absolute: bool = False
    ) -> None:
        self.case = case
        self.base = case.base()
        self.matrices: Matrices = {}
        self.deltas: dict[str, tuple[Tensor, Tensor, float]] = {}
        if absolute:
            for parameter in self.base.parameters():
                parameter.data.abs_()
        for name, path in rankwise.named_paths(model).items():
            beside = self._beside(name, path)
            factors = [p.detach().abs() if absolute else p.detach().clone() for p in (path.lora_A, path.lora_B)]
            a, b = (factor.requires_grad_() for factor in factors)
            weight = beside + path.scaling * b @ a
            on = contributing is None or name in contributing
            self.matrices[name] = weight, a, b
            self.deltas[name] = weight - (beside if on else weight.detach()), torch.eye(len(b), dtype=b.dtype), 1.0

    def _beside(self, name: str, path: rankwise.LowRankPath) -> Tensor:
        kind = name.rpartition(".")[2]
        if kind in ("res1", "res2"):
            return torch.eye(16, dtype=torch.float64)
        if kind in ("in", "cut", "layer"):
            return torch.zeros(16, 16, dtype=torch.float64)
        weight: Tensor = self.base.get_submodule(path.module).weight
        return weight.detach()

    def logits(self, ids: Tensor) -> Tensor:
        return reference(self.base, ids, self.deltas, built=set(self.deltas), norm=self.case.norm)

    def scores(self, proxy: str, score_on: str, losses: list[Tensor]) -> dict[str, float]:
        """Score every path by the mean of the losses' gradients, not the gradient of their mean.

        RMS norms go back in float32, where a third of a loss does not have a third of its gradient to the last digit.
        """
        flat = [tensor for group in self.matrices.values() for tensor in group]
        each = [torch.autograd.grad(loss, flat, retain_graph=True) for loss in losses]
        found = iter(torch.stack(gradients).mean(0) for gradients in zip(*each, strict=True))
        scores = {}
        for name, group in self.matrices.items():
            pairs = [(matrix.detach(), next(found)) for matrix in group]
            assert proxy == "synflow" or pairs[0][1].abs().max() > 0, (
                f"{name} has no influence: the comparison says nothing"
            )
            chosen = pairs[:1] if score_on == "weight" else pairs[1:]
            scores[name] = {
                "grad_norm": sum((g**2).sum().sqrt().item() for _, g in chosen),
                "snip": sum((theta * g).abs().sum().item() for theta, g in chosen),
                "synflow": sum((theta * g).sum().item() for theta, g in chosen),
            }[proxy]
        return scores


def losses(oracle: Oracle, data: list[Batch]) -> list[Tensor]:
    return [loss_of(oracle.logits(batch["input_ids"]), batch) for batch in data]


def flow(oracle: Oracle) -> list[Tensor]:
    """Return the sum of the logits of ones, put in as the embedding of every token."""
    embedding = oracle.base.get_input_embeddings()
    scale = oracle.base.config.hidden_size**0.5 if oracle.case.family == "gemma2" else 1.0  # its embedding's own factor
    ones = torch.full_like(embedding.weight.data, 1.0 / scale)
    embedding.weight = torch.nn.Parameter(ones)  # a new one: the output layer may share the old
    return [oracle.logits(torch.zeros(1, FLOW_TOKENS, dtype=torch.long)).sum()]


def assert_flow(found: dict[str, float], oracle: Oracle, score_on: str) -> None:
    """Compare with synflow: what cancels, as a query's does where all tokens are alike, is exact beside the largest."""
    expected = oracle.scores("synflow", score_on, flow(oracle))
    largest = max(map(abs, expected.values()))
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-13 * largest)
    for name in expected:
        if name.rpartition(".")[2] in EVERY:
            assert abs(expected[name]) > 1e-10 * largest, f"{name} cancels: the comparison says nothing"


# A probe: all paths contribute, whatever is enabled.


@both_bases
@both_proxies
@every_case
def test_gradient_proxies_by_probe(case: Case, proxy: str, score_on: str) -> None:
    model = make(case)
    off = [name for name, path in rankwise.named_paths(model).items() if not path.enabled]
    assert off
    oracle = Oracle(case, model)
    expected = oracle.scores(proxy, score_on, losses(oracle, batches()))
    assert score(model, proxy=proxy, score_on=score_on) == pytest.approx(expected, rel=1e-10)


@both_bases
@every_case
def test_synflow(case: Case, score_on: str) -> None:
    model = make(case)
    oracle = Oracle(case, model, absolute=True)
    assert_flow(rankwise.score_paths(model, proxy="synflow", score_on=score_on), oracle, score_on)


@pytest.mark.parametrize("case", [BERT, LLAMA], ids=str)
def test_synflow_does_not_depend_on_the_training_precision_or_the_signs(case: Case) -> None:
    model = make(case)
    wanted = rankwise.score_paths(model, proxy="synflow")
    with torch.no_grad():
        for path in rankwise.named_paths(model).values():
            path.lora_A.neg_()
    assert rankwise.score_paths(model, proxy="synflow") == pytest.approx(wanted, rel=1e-12)
    assert rankwise.score_paths(model.float(), proxy="synflow") == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", [BERT, CASES[1], LLAMA, Case("opt-pre", ("res1", "res2", "in", "cut"))], ids=str)
def test_a_probe_with_checkpointing_scores_the_same(case: Case, reentrant: bool) -> None:
    """A probe replaces reentrant checkpointing, so that even ``cut`` may be scored."""
    model = make(case)
    wanted = score(model, mode="train")
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    assert score(model, mode="train") == pytest.approx(wanted, rel=1e-12)


# Online: at the current point, where a path that is off is absent.


def mixed(model: Any) -> list[str]:
    """Return every other path of each kind."""
    by_kind: dict[str, list[str]] = {}
    for name in rankwise.named_paths(model):
        by_kind.setdefault(name.rpartition(".")[2], []).append(name)
    on = [name for names in by_kind.values() for name in names[::2]]
    assert all(set(names) - set(on) for names in by_kind.values())
    return on


def train(model: Any) -> Record:
    """Take a window's steps of two micro-batches, with a learning rate of 0; return the record of the search."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model.train()
    for number, batch in enumerate(halves(batches())):
        (model_loss(model, batch) / 2).backward()  # as an accumulating trainer scales them
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    (record,) = rankwise.history(model)
    rankwise.detach(model)
    assert record["step"] == BATCHES
    return record


def online(case: Case, *, checkpoint: dict[str, Any] | None = None, **fields: Any) -> tuple[Any, list[str], Any]:
    """Return a model that was searched online, which paths contributed in the window, and the search's record."""
    model = make(case, search_every=BATCHES, score_batches=BATCHES, budget=1.0, **fields)
    keep_only_(model, *mixed(model))
    on = [name for name, path in rankwise.named_paths(model).items() if path.contributing]
    if checkpoint is not None:
        model.get_base_model().activation_checkpointing_enable(checkpoint)
    record = train(model)
    assert record["how"] == "online"
    return model, on, record


@both_bases
@both_proxies
@every_case
def test_gradient_proxies_online(case: Case, proxy: str, score_on: str) -> None:
    model, on, record = online(case, proxy=proxy, score_on=score_on)
    oracle = Oracle(case, model, on)
    expected = oracle.scores(proxy, score_on, losses(oracle, halves(batches())))
    assert record["scores"] == pytest.approx(expected, rel=1e-10)
    assert record["unscored"] == []


@both_bases
@every_case
def test_online_with_checkpointing(case: Case, score_on: str) -> None:
    model, on, record = online(case, score_on=score_on, checkpoint={"use_reentrant": False})
    oracle = Oracle(case, model, on)
    expected = oracle.scores("grad_norm", score_on, losses(oracle, halves(batches())))
    assert record["scores"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "case",
    [
        Case("bert", ("res1", "res2", "in", "layer")),
        Case("opt-post", ("res1", "res2", "in"), "reapply"),
        Case("llama", ("res1", "res2", "in")),
        Case("gemma2", ("res1", "res2", "layer")),
        Case("opt-pre", ("layer",)),
    ],
    ids=str,
)
def test_online_with_reentrant_checkpointing_where_it_is_allowed(case: Case) -> None:
    model, on, record = online(case, checkpoint={"use_reentrant": True})
    oracle = Oracle(case, model, on)
    expected = oracle.scores("grad_norm", "weight", losses(oracle, halves(batches())))
    assert record["scores"] == pytest.approx(expected, rel=1e-10)


@three_cases
def test_a_frozen_path_is_scored_where_it_stands_in_the_forward_pass(case: Case) -> None:
    """What ``on_disable="freeze"`` switches off still contributes, so its score is that of an enabled path."""
    model, on, record = online(case, on_disable="freeze", proxy="snip")
    oracle = Oracle(case, model)
    assert on == list(oracle.matrices)
    expected = oracle.scores("snip", "weight", losses(oracle, halves(batches())))
    assert record["scores"] == pytest.approx(expected, rel=1e-10)


@three_cases
def test_the_source_is_read_before_dropout(case: Case) -> None:
    """With B = 0 the dropped source reaches nothing but the score, which must not see the holes."""
    fields: dict[str, Any] = {"search_every": BATCHES, "score_batches": BATCHES, "filled": False}
    exact, dropped = (make(case, shortcut_dropout=p, lora_dropout=p, **fields) for p in (0.0, 0.7))
    assert train(dropped)["scores"] == pytest.approx(train(exact)["scores"], rel=1e-12)


@both_bases
@three_cases
def test_synflow_is_a_probe_under_online_too(case: Case, score_on: str) -> None:
    model = make(case, proxy="synflow", score_on=score_on, search_every=50)
    oracle = Oracle(case, model, absolute=True)
    model.train()
    model(input_ids=batches()[0]["input_ids"])
    (record,) = rankwise.history(model)
    rankwise.detach(model)
    assert (record["how"], record["step"]) == ("probe", 0)
    assert_flow(record["scores"], oracle, score_on)


# Paths whose matrix is still zero.


@both_bases
@pytest.mark.parametrize("proxy", ["snip", "synflow"])
@three_cases
def test_a_zero_matrix_has_no_score_but_an_identity_has(case: Case, proxy: str, score_on: str) -> None:
    model = make(case, filled=False)
    names = list(rankwise.named_paths(model))
    blind = [n for n in names if score_on == "factors" or n.rpartition(".")[2] in ("in", "cut", "layer")]
    common: dict[str, Any] = {"autocast": torch.enable_grad, "mode": "eval", "sketch": None, "seed": 0}
    common |= {"compute_loss": model_loss, "synflow_loss": "logits", "proxy": proxy, "score_on": score_on}
    scores = probe(model, path_set(model), batches(), **common)
    assert list(scores.unscored) == blind
    oracle = Oracle(case, model, absolute=proxy == "synflow")
    given = flow(oracle) if proxy == "synflow" else losses(oracle, batches())
    weights = oracle.scores(proxy, "weight", given)
    known = {} if score_on == "factors" else {name: weights[name] for name in names if name not in blind}
    middle = statistics.median(known.values()) if known else 1.0
    tolerance = 1e-12 * max(map(abs, weights.values()))
    expected = {name: known.get(name, middle) for name in names}
    assert scores.values == pytest.approx(expected, rel=1e-10, abs=tolerance)


@both_bases
@pytest.mark.parametrize("case", [BERT, LLAMA], ids=str)
def test_a_fresh_model_marks_them_in_its_history_and_grad_norm_scores_them_all(case: Case, score_on: str) -> None:
    fields: dict[str, Any] = {"search_every": BATCHES, "score_batches": BATCHES, "filled": False, "score_on": score_on}
    paths = rankwise.named_paths(make(case))
    blind = [n for n, p in paths.items() if score_on == "factors" or p.kind in ("in", "cut", "layer")]
    assert train(make(case, proxy="snip", **fields))["unscored"] == blind
    record = train(make(case, proxy="grad_norm", **fields))
    assert record["unscored"] == []
    assert all(score > 0 for score in record["scores"].values())


# The sketch.


def test_a_sketch_is_close_for_shortcuts_too() -> None:
    model = make(BERT)
    exact = score(model)
    draws = [score(model, sketch=8, seed=seed) for seed in range(40)]
    for name, norm in exact.items():
        ratios = torch.tensor([(draw[name] / norm) ** 2 for draw in draws])
        # the variance of a squared ratio is at most 2 / k; four standard errors of the mean of 40
        assert abs(float(ratios.mean()) - 1.0) < 4 * (2 / 8 / 40) ** 0.5, name
        assert ratios.unique().numel() > 1, f"{name} was not sketched"
