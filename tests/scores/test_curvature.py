"""Slopes, ``a_e`` and the newton score against autograd through the paths' own factors, example by example, float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import Batch, adapted, bert_config, build, class_batches, text_batches, tiny_bert, tiny_llama, tokens
from tests.processes import in_two_processes
from tests.shortcuts import CAUSAL, FIVE, kinds, made
from torch import Tensor, nn
from transformers import (
    BertForMultipleChoice,
    BertForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.scores.components import (
    Directions,
    component_statistic,
    gradients_of,
)
from rankwise.scores.curvature import Examples, curvature_pass, drawn_loss, gradient_pass
from rankwise.scores.likelihood import draw, without_labels
from rankwise.scores.probe import model_loss, untouched

QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def batches(name: str) -> list[Batch]:
    """Padded rows, and positions without a loss."""
    if name not in CAUSAL:
        return [{**batch, "attention_mask": padded(batch["input_ids"])} for batch in class_batches(2, 3)]
    made = text_batches(2, 3)
    for batch in made:
        batch["labels"] = batch["labels"].clone()
        batch["labels"][0, :3] = -100
    return made


def padded(ids: Tensor) -> Tensor:
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return mask


def directions_for(model: Any, components: int = 2, seed: int = 3) -> dict[str, Directions]:
    """Random ones: the oracle needs no others."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Directions(
            torch.randn(path.lora_B.shape[0], components, generator=generator, dtype=torch.float64),
            torch.randn(path.lora_A.shape[1], components, generator=generator, dtype=torch.float64),
        )
        for name, path in rankwise.named_paths(model).items()
    }


def along(model: Any, directions: dict[str, Directions], loss: Tensor) -> dict[str, Tensor]:
    """The slope of a loss along each direction: with ``A = right^T`` and ``B = 0``, that is ``left . dB / s``."""
    paths = rankwise.named_paths(model)
    gradients = torch.autograd.grad(loss, [path.lora_B for path in paths.values()], retain_graph=True)
    return {
        name: (directions[name].left * gradient).sum(0) / path.scaling
        for (name, path), gradient in zip(paths.items(), gradients, strict=True)
    }


def prepared(name: str) -> tuple[Any, dict[str, Directions]]:
    """A float64 model whose paths read along the right sides of the directions and add nothing."""
    model = made(name, filled=False, shortcut_r=2).double()
    directions = directions_for(model)
    with torch.no_grad():
        for path_name, path in rankwise.named_paths(model).items():
            path.lora_A.copy_(directions[path_name].right.T)
            path.lora_B.zero_()
    return model, directions


def pass_over(model: Any, data: list[Batch], directions: dict[str, Directions], seed: int = 0) -> Examples:
    with untouched(model), torch.enable_grad():
        draw_of = drawn_loss(None, torch.enable_grad, seed)
        return curvature_pass(model, path_set(model), list(enumerate(data)), directions, draw_of)


@pytest.mark.parametrize("name", FIVE)
def test_every_examples_own_gradient_comes_out_of_one_pass(name: str) -> None:
    """All kinds and q, v; each example alone, differentiated through the path's factors, gives the same numbers."""
    model, directions = prepared(name)
    data = batches(name)
    found = pass_over(model, data, directions)
    assert found.terms == sum(terms(batch, name) for batch in data)
    row = 0
    for batch in data:
        for example in range(3):
            single = {key: value[example : example + 1] for key, value in batch.items()}
            expected = along(model, directions, draw(model, single, 0).losses.sum())
            for path, values in expected.items():
                assert torch.allclose(found.values[path][row], values, rtol=1e-7, atol=1e-10), path
            row += 1
    assert row == len(found.values["layers.1.res1"])
    assert {path.rpartition(".")[2] for path in found.values} >= set(kinds(name))


def choices(form: str) -> tuple[Any, list[Batch]]:
    """A model and batches of three examples with two padded sequences each, (b s, t) or (b, s, t)."""
    apart = form == "one behind the other"
    kind: Any = BertForSequenceClassification if apart else BertForMultipleChoice
    base = build(kind, bert_config(1, **QUIET, **({"num_labels": 1} if apart else {})))
    rows = [{"input_ids": ids, "attention_mask": padded(ids)} for ids in (tokens(6, seed=0), tokens(6, seed=1))]
    if not apart:
        rows = [{name: value.reshape(3, 2, -1) for name, value in each.items()} for each in rows]
    return base.double(), [{**each, "labels": torch.tensor([0, 1, 1])} for each in rows]


@pytest.mark.parametrize("form", ["one behind the other", "side by side"])
def test_of_a_choice_the_sequences_of_an_example_sum_up(form: str) -> None:
    """Each example by itself, its drawn choice told by the loss, through the softmax written out."""
    base, data = choices(form)
    model: Any = adapted(base, target_modules=["query", "output.dense", "pooler.dense"]).double()
    directions = directions_for(model)
    with torch.no_grad():
        for name, path in rankwise.named_paths(model).items():
            path.lora_A.copy_(directions[name].right.T)
            path.lora_B.zero_()
    found = pass_over(model, data, directions)
    assert found.terms == 6
    assert set(found.values) >= {"bert.pooler.dense"}
    drawn = set()
    for number, (batch, example) in enumerate((batch, example) for batch in data for example in range(3)):
        size = 2 if form == "one behind the other" else 1
        own = {name: value[size * example : size * (example + 1)] for name, value in batch.items() if name != "labels"}
        chances = model(**own).logits.reshape(2).log_softmax(0)
        slopes = [along(model, directions, -chance) for chance in chances]
        matches = [
            all(torch.allclose(found.values[name][number], slope[name], rtol=1e-7, atol=1e-10) for name in slope)
            for slope in slopes
        ]
        assert sum(matches) == 1, number
        drawn.add(matches.index(True))
    assert drawn == {0, 1}
    assert found.mean == pytest.approx(float(mean_of(model, data[0])))


def mean_of(model: Any, batch: Batch) -> Tensor:
    """The cross entropy over the choices of each example, in float64."""
    scores = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.reshape(3, 2)
    return -scores.log_softmax(1)[torch.arange(3), batch["labels"]].mean().detach()


@pytest.mark.parametrize("form", ["one behind the other", "side by side"])
def test_a_choice_is_drawn_by_what_the_example_says_and_not_by_its_padding(form: str) -> None:
    base, data = choices(form)
    both = {name: torch.cat([batch[name] for batch in data]) for name in data[0]}
    longer = {
        name: value if name == "labels" else torch.nn.functional.pad(value, (0, 3)) for name, value in both.items()
    }
    several = [draw(base, both, seed).losses.detach() for seed in range(8)]
    for seed, losses in enumerate(several):
        torch.testing.assert_close(draw(base, longer, seed).losses.detach(), losses)
    assert len({tuple((losses > 0.7).tolist()) for losses in several}) > 1  # examples draw for themselves, and anew


def terms(batch: Batch, name: str) -> int:
    return int((batch["labels"][:, 1:] != -100).sum()) if name in CAUSAL else len(batch["labels"])


@pytest.mark.parametrize("name", FIVE)
def test_slopes_are_those_of_the_mean_loss(name: str) -> None:
    model, directions = prepared(name)
    data = batches(name)
    paths = path_set(model)
    statistic = component_statistic(paths.paths.values(), 2, parts=1, seed=0)
    with untouched(model), torch.enable_grad():
        means, losses = gradient_pass(model, paths, data, statistic, model_loss)
    gradients = gradients_of(statistic, means[0])
    each = [along(model, directions, model_loss(model, batch)) for batch in data]
    for path in gradients:
        expected = torch.stack([one[path] for one in each]).mean(0)
        assert torch.allclose(directions[path].slopes(gradients[path]), expected, rtol=1e-7, atol=1e-11), path
    assert losses == pytest.approx([float(model_loss(model, batch).detach()) for batch in data])


@pytest.mark.parametrize("task", ["classes", "text", "regression", "labels", "choice"])
def test_the_sampled_curvature_estimates_the_exact_one(task: str) -> None:
    """The expectation over labels by enumerating them, position by position, within four standard errors."""
    base, data = {
        "classes": lambda: (tiny_bert(1, **QUIET, num_labels=3), class_batches(1, 3)[0]),
        "text": lambda: (tiny_llama(1), text_batches(1, 2)[0]),
        "regression": lambda: (tiny_bert(1, **QUIET, num_labels=1), scalars()),
        "labels": lambda: (tiny_bert(1, **QUIET, problem_type="multi_label_classification"), several()),
        "choice": lambda: (choices("one behind the other")[0], choices("one behind the other")[1][0]),
    }[task]()
    targets = ["value"] if task != "text" else ["v_proj"]
    model: Any = adapted(base, target_modules=targets).double()
    directions = directions_for(model, 1)
    (path,) = rankwise.named_paths(model).values()
    with torch.no_grad():
        path.lora_A[:1].copy_(directions[path.name].right.T)
        path.lora_A[1:].zero_()
    logits = model(**(without_labels(data) if task == "choice" else data)).logits
    if task == "choice":
        logits = logits.reshape(3, 2)

    def slope(loss: Tensor) -> float:
        (gradient,) = torch.autograd.grad(loss, path.lora_B, retain_graph=True)
        return float((directions[path.name].left[:, 0] * gradient[:, 0]).sum() / path.scaling)

    exact = 0.0
    if task == "regression":
        exact = sum(slope(value.sum()) ** 2 for value in logits) / len(logits)
    elif task == "labels":
        for value in logits.flatten():
            p = float(value.detach().sigmoid())
            exact += p * (1 - p) * slope(value) ** 2 / len(logits)
    else:
        positions = logits[:, :-1].flatten(0, 1) if task == "text" else logits
        for position in positions:
            likelihoods = position.log_softmax(-1)
            exact += sum(float(one.detach().exp()) * slope(-one) ** 2 for one in likelihoods) / len(positions)
    draws = 150
    found = [pass_over(model, [data], directions, seed) for seed in range(draws)]
    estimates = torch.tensor([float(one.values[path.name].square().sum()) / one.terms for one in found])
    error = float(estimates.std()) / math.sqrt(draws)
    assert abs(float(estimates.mean()) - exact) < 4 * error
    assert error < 0.25 * exact  # so that the line above says something


def scalars() -> Batch:
    return {"input_ids": tokens(3), "labels": torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)}


def several() -> Batch:
    return {"input_ids": tokens(3), "labels": torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)}


def newton_oracle(model: Any, data: list[Batch], rank: int) -> dict[str, float]:
    """Make W0 trainable, differentiate every example alone, and form the truncation of G by a full SVD."""
    paths = rankwise.named_paths(model)
    weights = [path.host.get_base_layer().weight.requires_grad_() for path in paths.values()]
    mean = [torch.zeros_like(weight) for weight in weights]
    for batch in data:
        for total, gradient in zip(mean, torch.autograd.grad(model(**batch).loss, weights), strict=True):
            total += gradient / len(data)
    truncated = []
    for gradient in mean:
        u, sigma, v = torch.linalg.svd(gradient, full_matrices=False)
        truncated.append(u[:, :rank] @ sigma[:rank].diag() @ v[:rank])
    curvature, count = [0.0] * len(weights), 0
    for batch in data:
        for example in range(len(batch["labels"])):
            drawn = draw(model, {key: value[example : example + 1] for key, value in batch.items()}, 0)
            count += drawn.terms
            own = torch.autograd.grad(drawn.losses.sum(), weights)
            curvature = [q + float((g * d).sum()) ** 2 for q, g, d in zip(curvature, own, truncated, strict=True)]
    return {
        name: float((g * d).sum()) ** 2 / (2 * q / count)
        for name, g, d, q in zip(paths, mean, truncated, curvature, strict=True)
    }


CASES: dict[str, Any] = {
    "bert": (tiny_bert, ["query", "output.dense"], class_batches),
    "llama": (tiny_llama, ["q_proj", "v_proj", "down_proj"], text_batches),
}


@pytest.mark.parametrize("name", CASES)
def test_newton_equals_its_definition(name: str) -> None:
    make, targets, batches_of = CASES[name]
    model = adapted(make(), target_modules=targets).double()
    data = batches_of(3, 3)
    scores = rankwise.score_paths(model, data, proxy="newton")
    assert scores == pytest.approx(newton_oracle(model, data, rank=2), rel=1e-8)


def bert_model(**fields: Any) -> Any:
    return adapted(tiny_bert(**QUIET), target_modules=["query", "value"], shortcuts=["res1", "layer"], **fields)


def test_the_scale_of_a_path_and_of_the_loss_changes_no_order() -> None:
    data = class_batches(3)
    plain = rankwise.score_paths(bert_model(), data, proxy="newton")
    wide = rankwise.score_paths(bert_model(lora_alpha=64, shortcut_alpha=64.0), data, proxy="newton")
    assert wide == pytest.approx(plain, rel=1e-5)
    tripled = rankwise.score_paths(
        bert_model(), data, proxy="newton", compute_loss=lambda model, batch: 3 * model_loss(model, batch)
    )
    assert tripled == pytest.approx({name: 9 * score for name, score in plain.items()}, rel=1e-4)


def test_micro_batches_and_checkpointing_score_the_same() -> None:
    data = class_batches(2, 4)
    whole = rankwise.score_paths(bert_model(), data, proxy="newton")
    halves = [{k: v[part : part + 2] for k, v in batch.items()} for batch in data for part in (0, 2)]
    assert rankwise.score_paths(bert_model(), halves, proxy="newton") == pytest.approx(whole, rel=1e-4)
    for reentrant in (False, True):
        model = bert_model()
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
        again = rankwise.score_paths(model, data, proxy="newton", mode="train")
        assert again == pytest.approx(whole, rel=1e-4)


def scores_of(share: slice) -> dict[str, float]:
    data = [{key: value[share] for key, value in batch.items()} for batch in class_batches(2, 4)]
    return rankwise.score_paths(bert_model(), data, proxy="newton")


@pytest.mark.distributed
def test_two_processes_score_what_one_does(tmp_path: Path) -> None:
    first, second = in_two_processes(scores_of, tmp_path)
    assert first == second
    assert first == pytest.approx(scores_of(slice(0, 4)), rel=1e-4)


def test_autocast_is_near() -> None:
    data = class_batches(3)
    exact = rankwise.score_paths(bert_model(), data, proxy="newton")
    half = rankwise.score_paths(
        bert_model(), data, proxy="newton", autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert [half[name] for name in exact] == pytest.approx(list(exact.values()), rel=0.3)


def test_newton_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"set scoring='probe'"):
        rankwise.HeteroLoraConfig(target_modules=["query"], mode="static", proxy="newton")
    with pytest.raises(ValueError, match="score_on='factors' must be 'weight'"):
        rankwise.HeteroLoraConfig(mode="static", proxy="newton", scoring="probe", score_on="factors")
    model = bert_model()
    with pytest.raises(ValueError, match="score_on='factors' must be 'weight'"):
        rankwise.score_paths(model, class_batches(), proxy="newton", score_on="factors")
    with pytest.raises(ValueError, match="needs training batches, got none"):
        rankwise.score_paths(model, [], proxy="newton")
    unlabelled = [{"input_ids": tokens()}]
    with pytest.raises(ValueError, match="Add labels, or pass draw_losses"):
        rankwise.score_paths(model, unlabelled, proxy="newton", compute_loss=lambda m, b: m(**b).logits.sum())


def test_a_loss_of_ones_own_draws_its_own_labels() -> None:
    model, data = bert_model(), class_batches(3)

    def drawn(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        likelihoods = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
        labels = torch.multinomial(likelihoods.detach().exp(), 1, generator=generator)
        return -likelihoods.gather(1, labels)[:, 0], len(labels)

    own = rankwise.score_paths(model, data, proxy="newton", draw_losses=drawn)
    usual = rankwise.score_paths(model, data, proxy="newton")
    assert own.keys() == usual.keys()
    assert all(math.isfinite(score) and score > 0 for score in own.values())
    with pytest.raises(ValueError, match="one summed loss per example"):
        rankwise.score_paths(model, data, proxy="newton", draw_losses=lambda m, b, g: (torch.zeros(()), 1))


def test_a_static_search_may_ask_newton() -> None:
    config: dict[str, Any] = {"mode": "static", "proxy": "newton", "scoring": "probe", "score_batches": 2}
    model = bert_model(budget=0.5, **config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    rankwise.Allocator(model, optimizer, batches=class_batches(2))
    expected = rankwise.score_paths(copy.deepcopy(model), class_batches(2), proxy="newton")
    model(**class_batches(1)[0]).loss.backward()
    optimizer.step()
    (record,) = rankwise.history(model)
    assert record["proxy"] == "newton"
    assert record["scores"] == pytest.approx(expected, rel=1e-4)


def test_a_search_by_newton_without_batches_says_so() -> None:
    model = bert_model(mode="static", proxy="newton", scoring="probe")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    with pytest.raises(ValueError, match=r"needs training batches: .* batches=\.\.\.\)$"):
        rankwise.Allocator(model, optimizer)


def test_a_family_that_keeps_tokens_first_is_refused_in_a_square_batch() -> None:
    """XLNet's hidden states are tokens x examples x d: where there are as many of both, no shape tells."""
    config = XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=24)
    model = build(XLNetForSequenceClassification, config)
    batches = [{"input_ids": tokens(4, 4, seed), "labels": torch.arange(4) % 2} for seed in range(4)]
    with pytest.raises(ValueError, match="keeps tokens before examples inside"):
        rankwise.rank_plan(model, batches, budget=500)
    rankwise.score_paths(adapted(model, target_modules=["layer_1"]), batches)
