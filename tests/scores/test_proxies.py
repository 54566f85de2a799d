"""Every proxy against a brute-force float64 oracle that makes W0 trainable and differentiates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.rules.proxies import PROXIES
from rankwise.scores.probe import FLOW_TOKENS
from rankwise.scores.proxies import score_from_means
from rankwise.scores.recorder import Sums

PROXIES_WITH_ORACLE = ("constant", "random", "grad_norm", "snip", "synflow", "newton")  # newton: test_curvature
BATCHES = 3


def bert() -> Any:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertForSequenceClassification(config)


def llama() -> Any:
    """Grouped-query attention: q and v have different sizes."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
    )
    return LlamaForCausalLM(config)


TARGETS = {bert: ["query", "value", "output.dense"], llama: ["q_proj", "v_proj", "down_proj"]}


def adapted(family: Any, **fields: Any) -> Any:
    """A float64 model with paths of all sizes whose B are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = "SEQ_CLS" if family is bert else "CAUSAL_LM"
        config = rankwise.HeteroLoraConfig(
            task_type=task,
            r=3,
            lora_alpha=6,
            target_modules=TARGETS[family],
            lora_dropout=0.3,
            **{"mode": "dynamic", **fields},
        )
        model = get_peft_model(family(), config).double()
        for path in rankwise.named_paths(model).values():
            nn.init.normal_(path.lora_B, std=0.2)
    return model


def batches(family: Any) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(BATCHES):
        ids = torch.randint(1, 50, (4, 7), generator=generator)
        labels = torch.randint(0, 2, (4,), generator=generator) if family is bert else ids
        made.append({"input_ids": ids, "labels": labels})
    return made


def base_weight(path: rankwise.LowRankPath) -> Tensor:
    """W0, made trainable."""
    layer: Any = path.host.get_base_layer()
    return layer.weight.requires_grad_()


def turn_on_all(model: Any) -> None:
    rankwise.apply_(model, [rankwise.Enable(name) for name in rankwise.named_paths(model)])


def mean_gradients(model: Any, data: list[dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The gradients of W0, A and B of each path, by autograd, averaged over batches."""
    paths = rankwise.named_paths(model)
    tensors = {name: {"W": base_weight(path), "A": path.lora_A, "B": path.lora_B} for name, path in paths.items()}
    flat = [tensor.requires_grad_() for group in tensors.values() for tensor in group.values()]
    total = [torch.zeros_like(tensor) for tensor in flat]
    for batch in data:
        for sum_, gradient in zip(total, torch.autograd.grad(model(**batch).loss, flat), strict=True):
            sum_ += gradient / len(data)
    rest = iter(total)
    return {name: {key: next(rest) for key in group} for name, group in tensors.items()}


def oracle(model: Any, data: list[dict[str, Tensor]], proxy: str, score_on: str) -> dict[str, float]:
    gradients = mean_gradients(model, data)
    scores = {}
    for name, path in rankwise.named_paths(model).items():
        weight = base_weight(path) + path.scaling * path.lora_B @ path.lora_A
        thetas = {"W": weight} if score_on == "weight" else {"A": path.lora_A, "B": path.lora_B}
        per_matrix = [(theta, gradients[name][key]) for key, theta in thetas.items()]
        if proxy == "grad_norm":
            scores[name] = sum((g**2).sum().sqrt().item() for _, g in per_matrix)
        else:
            scores[name] = sum((theta.detach() * g).abs().sum().item() for theta, g in per_matrix)
    return scores


@pytest.mark.parametrize("family", [bert, llama])
@pytest.mark.parametrize("score_on", ["weight", "factors"])
@pytest.mark.parametrize("proxy", ["grad_norm", "snip"])
def test_gradient_proxies_by_probe_equal_autograd(family: Any, proxy: str, score_on: str) -> None:
    model, data = adapted(family), batches(family)
    scores = rankwise.score_paths(model, data, proxy=proxy, score_on=score_on)
    turn_on_all(model)
    model.eval()
    expected = oracle(model, data, proxy, score_on)
    assert scores == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("family", [bert, llama])
@pytest.mark.parametrize("score_on", ["weight", "factors"])
def test_synflow_equals_autograd_through_a_network_of_absolute_values(family: Any, score_on: str) -> None:
    model = adapted(family)
    scores = rankwise.score_paths(model, proxy="synflow", score_on=score_on)
    turn_on_all(model)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    paths = rankwise.named_paths(model)
    bases = {name: base_weight(path) for name, path in paths.items()}
    width = model.get_input_embeddings().weight.shape[1]
    flow = model(inputs_embeds=torch.ones(1, FLOW_TOKENS, width, dtype=torch.float64)).logits.sum()
    values = {}
    for name, path in paths.items():
        weight = bases[name] + path.scaling * path.lora_B @ path.lora_A
        thetas = [weight] if score_on == "weight" else [path.lora_A, path.lora_B]
        leaves = [bases[name]] if score_on == "weight" else [path.lora_A, path.lora_B]
        gradients = torch.autograd.grad(flow, leaves, retain_graph=True)
        values[name] = sum((theta.detach() * g).sum().item() for theta, g in zip(thetas, gradients, strict=True))
    assert scores == pytest.approx(values, rel=1e-10)


def test_synflow_on_the_task_loss_needs_a_batch() -> None:
    model = adapted(bert)
    with pytest.raises(ValueError, match="needs a training batch"):
        rankwise.score_paths(model, proxy="synflow", synflow_loss="loss")
    scores = rankwise.score_paths(model, batches(bert), proxy="synflow", synflow_loss="loss")
    assert all(math.isfinite(score) for score in scores.values())


@pytest.mark.parametrize("family", [bert, llama])
@pytest.mark.parametrize("score_on", ["weight", "factors"])
@pytest.mark.parametrize("proxy", ["grad_norm", "snip"])
def test_online_scores_equal_autograd_at_the_current_point(family: Any, proxy: str, score_on: str) -> None:
    """The learning rate is 0, so the window's steps and the oracle see the same point; some paths are off."""
    model = adapted(family, proxy=proxy, score_on=score_on, search_every=BATCHES, score_batches=BATCHES)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = {name for name, path in rankwise.named_paths(model).items() if path.enabled}
    assert 0 < len(before) < len(rankwise.named_paths(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model.train()
    for batch in batches(family):
        for half in range(2):  # two micro-batches, scaled as an accumulating trainer scales them
            part = {key: value[2 * half : 2 * half + 2] for key, value in batch.items()}
            (model(**part).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    (record,) = rankwise.history(model)
    assert record["how"] == "online"
    assert record["step"] == BATCHES
    names = rankwise.named_paths(model)
    rankwise.apply_(model, [rankwise.Disable(name) for name in names])
    rankwise.apply_(model, [rankwise.Enable(name) for name in before])
    rankwise.detach(model)
    model.eval()
    expected = oracle_of_scaled_factors(model, batches(family), proxy, score_on)
    assert record["scores"] == pytest.approx(expected, rel=1e-10)


def oracle_of_scaled_factors(model: Any, data: list[dict[str, Tensor]], proxy: str, score_on: str) -> dict[str, float]:
    """As ``oracle``, with gA = s B^T G and gB = s G A^T, which paths that are off have too."""
    gradients: dict[str, Tensor] = {}
    paths = rankwise.named_paths(model)
    weights = {name: base_weight(path) for name, path in paths.items()}
    for batch in data:
        halves = [{key: value[i : i + 2] for key, value in batch.items()} for i in (0, 2)]
        loss = sum(model(**half).loss / 2 for half in halves)
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            gradients[name] = gradients.get(name, torch.zeros_like(g)) + g / len(data)
    scores = {}
    for name, path in paths.items():
        a, b, s, g = path.lora_A, path.lora_B, path.scaling, gradients[name]
        on_factors = [(a, s * b.T @ g), (b, s * g @ a.T)]
        pairs = [(weights[name] + s * b @ a, g)] if score_on == "weight" else on_factors
        norm, product = (lambda t, g: (g**2).sum().sqrt()), (lambda t, g: (t * g).abs().sum())
        scores[name] = sum((norm if proxy == "grad_norm" else product)(t.detach(), g).item() for t, g in pairs)
    return scores


def test_every_registered_proxy_has_an_oracle_here() -> None:
    assert set(PROXIES) == set(PROXIES_WITH_ORACLE)


def test_constant_is_one_and_random_is_fixed_by_the_seed_and_the_name() -> None:
    model = adapted(bert)
    assert set(rankwise.score_paths(model, proxy="constant").values()) == {1.0}
    first = rankwise.score_paths(model, proxy="random", seed=3)
    assert first == rankwise.score_paths(model, proxy="random", seed=3)
    assert first != rankwise.score_paths(model, proxy="random", seed=4)
    assert all(0.0 <= score < 1.0 for score in first.values())
    assert len(set(first.values())) == len(first)


def test_a_weight_score_does_not_depend_on_the_scale_and_a_factor_score_does() -> None:
    scores = {}
    for alpha in (3, 12):
        model = adapted(bert)
        for path in rankwise.named_paths(model).values():
            path.host.scaling[path.adapter] = alpha / 3
            nn.init.zeros_(path.lora_B)
        data = batches(bert)
        scores[alpha] = [rankwise.score_paths(model, data, score_on=on) for on in ("weight", "factors")]
    assert scores[12][0] == pytest.approx(scores[3][0], rel=1e-12)
    assert scores[12][1] == pytest.approx({name: 4 * score for name, score in scores[3][1].items()}, rel=1e-12)


def test_a_score_does_not_depend_on_how_often_the_batches_are_repeated() -> None:
    model, data = adapted(bert), batches(bert)
    assert rankwise.score_paths(model, data * 2) == pytest.approx(rankwise.score_paths(model, data), rel=1e-12)


@pytest.mark.parametrize("proxy", ["snip", "synflow"])
def test_a_path_whose_b_is_zero_gets_the_median_and_is_marked(proxy: str) -> None:
    model = adapted(bert)
    paths = path_set(model)
    names = list(paths.paths)
    for name in names[:2]:
        nn.init.zeros_(paths.paths[name].lora_B)
    from rankwise.scores.probe import model_loss, probe

    common: dict[str, Any] = {
        "compute_loss": model_loss,
        "autocast": torch.enable_grad,
        "mode": "eval",
        "sketch": None,
        "synflow_loss": "logits",
        "seed": 0,
    }
    scores = probe(model, paths, batches(bert), proxy=proxy, score_on="factors", **common)
    assert scores.unscored == tuple(names[:2])
    others = sorted(scores.values[name] for name in names[2:])
    middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
    assert [scores.values[name] for name in names[:2]] == [pytest.approx(middle)] * 2
    assert probe(model, paths, batches(bert), proxy=proxy, score_on="weight", **common).unscored == ()


def test_all_paths_unscored_is_a_tie() -> None:
    model = adapted(bert)
    for path in rankwise.named_paths(model).values():
        nn.init.zeros_(path.lora_B)
    assert len(set(rankwise.score_paths(model, batches(bert), proxy="snip", score_on="factors").values())) == 1


def test_a_path_without_a_finite_score_is_last_and_named() -> None:
    paths = path_set(adapted(bert)).paths
    names = list(paths)
    means: Sums = {name: (torch.ones(2, 2),) for name in names[1:]}
    means[names[1]] = (torch.tensor([math.nan]),)
    with pytest.warns(UserWarning, match=f"no finite score for {names[0]}, {names[1]}: chosen last"):
        scores = score_from_means("grad_norm", paths, means)
    assert scores.values[names[0]] == scores.values[names[1]] == -math.inf
    assert scores.values[names[2]] == 2.0


@pytest.mark.parametrize("columns", [4, 16])
def test_a_sketch_is_an_unbiased_estimate_of_the_squared_norm(columns: int) -> None:
    model, data = adapted(bert), batches(bert)
    exact = rankwise.score_paths(model, data)
    draws = [rankwise.score_paths(model, data, sketch=columns, seed=seed) for seed in range(60)]
    for name, norm in exact.items():
        ratios = torch.tensor([(draw[name] / norm) ** 2 for draw in draws])
        # the variance of a squared ratio is at most 2 / k; four standard errors of the mean of 60
        assert abs(float(ratios.mean()) - 1.0) < 4 * math.sqrt(2 / columns / 60), name
