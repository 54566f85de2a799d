"""Drawn labels and their loss, against the likelihoods written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.families import gpt2_config
from tests.models import VOCABULARY, bert_config, build, class_batches, text_batches, tiny_bert, tiny_llama, tokens
from tests.scores.test_curvature import QUIET, choices, scalars, several
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertForTokenClassification,
    BertLMHeadModel,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from rankwise.scores.likelihood import Drawn, draw, sequences_of

MANY = 1500


class Fixed(nn.Module):
    """Returns the logits it was made with, as a model that is not transformers' may."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        return {"logits": self.logits}


def rows(count: int = MANY) -> Tensor:
    """Inputs that all differ, so that every example draws for itself."""
    return torch.arange(count)[:, None]


def drawn_classes(losses: Tensor, logits: Tensor) -> Tensor:
    """Which class has each loss, where all probabilities differ."""
    each = -logits.log_softmax(-1)
    gaps = (losses[:, None] - each).abs()
    assert float(gaps.min(1).values.max()) < 1e-9, "every loss is that of a class"
    return gaps.argmin(1)


def test_a_class_is_drawn_from_the_softmax() -> None:
    logits = torch.tensor([[0.3, -1.2, 1.1]], dtype=torch.float64)
    model = Fixed(logits.expand(MANY, 3).clone())
    found = draw(model, {"x": rows(), "labels": torch.zeros(MANY, dtype=torch.long)}, seed=0)
    assert found.terms == MANY
    classes = drawn_classes(found.losses.detach(), logits)
    for place, p in enumerate(logits.softmax(-1)[0].tolist()):
        share = float((classes == place).double().mean())
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / MANY), place
    (gradient,) = torch.autograd.grad(found.losses.sum(), model.logits)
    expected = logits.softmax(-1) - torch.nn.functional.one_hot(classes, 3)
    torch.testing.assert_close(gradient, expected)


def test_each_label_of_several_is_drawn_by_itself() -> None:
    logits = torch.tensor([[0.7, -1.5]], dtype=torch.float64)
    model = Fixed(logits.expand(MANY, 2).clone())
    found = draw(model, {"x": rows(), "labels": torch.zeros(MANY, 2)}, seed=0)
    assert (found.terms, found.unit) == (MANY, 2)  # the loss is the mean over both
    (gradient,) = torch.autograd.grad(found.losses.sum(), model.logits)
    labels = (logits.sigmoid() - gradient).round()  # the gradient is p - y
    assert set(labels.flatten().tolist()) == {0.0, 1.0}
    p = logits.sigmoid()
    torch.testing.assert_close(found.losses.detach(), -(labels * p.log() + (1 - labels) * (1 - p).log()).sum(1))
    for place, chance in enumerate(p[0].tolist()):
        assert abs(float(labels[:, place].mean()) - chance) < 4 * math.sqrt(chance * (1 - chance) / MANY)
    both = float((labels[:, 0] * labels[:, 1]).mean()) - float(labels[:, 0].mean() * labels[:, 1].mean())
    assert abs(both) < 4 * 0.25 / math.sqrt(MANY), "independent"


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_number_is_drawn_from_a_normal_distribution_around_the_prediction(outputs: int) -> None:
    values = torch.linspace(-3, 3, MANY, dtype=torch.float64)[:, None].expand(MANY, outputs).clone()
    model = Fixed(values)
    batch = {"x": rows(), "labels": torch.zeros(MANY, outputs, dtype=torch.float64)}
    found = draw(model, batch, 0) if outputs == 1 else draw_as("regression", model, batch)
    (noise,) = torch.autograd.grad(found.losses.sum(), model.logits)  # prediction - drawn
    torch.testing.assert_close(found.losses.detach(), noise.square().sum(1) / 2)
    count = MANY * outputs
    assert abs(float(noise.mean())) < 4 / math.sqrt(count)
    assert abs(float(noise.square().mean()) - 1) < 4 * math.sqrt(2 / count)
    assert found.mean == pytest.approx(float(values.square().mean()))
    assert found.terms == MANY
    assert found.unit == outputs / 2  # the loss is the mean of squares without a half


def draw_as(problem: str, model: Fixed, batch: dict[str, Tensor]) -> Drawn:
    """Draw for a transformers model of that problem type that returns the same logits."""
    base: Any = tiny_bert(1, problem_type=problem)
    base.register_forward_hook(lambda module, args, output: {"logits": model.logits})
    return draw(base, {"input_ids": tokens(len(batch["labels"])), **batch_without_x(batch)}, 0)


def batch_without_x(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "x"}


def test_a_language_model_draws_the_next_token_where_one_is_asked_for() -> None:
    model = tiny_llama(1).double()
    (batch,) = text_batches(1, 3)
    labels = batch["labels"].clone()
    labels[0, :3] = -100
    labels[2] = -100  # nothing is asked of this example
    labels[1, 0] = -100  # the first token is never predicted
    found = draw(model, {**batch, "labels": labels}, 0)
    asked = labels[:, 1:] != -100
    assert found.terms == int(asked.sum()) == 3 + 5
    losses = found.losses.detach()
    assert float(losses[2]) == 0.0
    each = -model(input_ids=batch["input_ids"]).logits[:, :-1].detach().log_softmax(-1)
    least, most = each.amin(-1), each.amax(-1)
    for row in (0, 1):
        assert float(least[row][asked[row]].sum()) <= float(losses[row]) <= float(most[row][asked[row]].sum())
    assert found.mean == pytest.approx(float(model(input_ids=batch["input_ids"], labels=labels).loss.detach()))


def test_one_token_asked_for_has_the_loss_of_one_token() -> None:
    model = tiny_llama(1).double()
    (batch,) = text_batches(1, 1)
    labels = torch.full_like(batch["labels"], -100)
    labels[0, 4] = 7
    found = draw(model, {**batch, "labels": labels}, 0)
    each = -model(input_ids=batch["input_ids"]).logits[0, 3].detach().log_softmax(-1)  # predicts place 4
    assert float((each - found.losses.detach()).abs().min()) < 1e-12


def bart_decoder() -> Any:
    size: dict[str, Any] = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2}
    return build(BartForCausalLM, BartConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **size, **ids))


@pytest.mark.parametrize(
    ("make", "shift"),
    [
        (lambda: build(GPT2LMHeadModel, gpt2_config(1)), 1),  # its name says no task
        (lambda: build(BertLMHeadModel, bert_config(1, is_decoder=True, **QUIET)), 1),
        (bart_decoder, 0),  # its name says one that shifts
    ],
)
def test_where_the_loss_is_goes_by_the_loss_and_not_by_the_name_of_the_class(
    make: Callable[[], Any], shift: int
) -> None:
    model = make().double()
    labels = tokens(3, seed=1)
    labels[1, :4] = -100
    found = draw(model, {"input_ids": tokens(3), "labels": labels}, 0)
    asked = labels[:, shift:] != -100
    assert found.terms == int(asked.sum())
    assert found.mean == pytest.approx(float(model(input_ids=tokens(3), labels=labels).loss.detach()), rel=1e-6)
    each = -model(input_ids=tokens(3)).logits.detach().log_softmax(-1)[:, : 6 - shift]
    assert torch.all((each.amin(-1) * asked).sum(1) <= found.losses)
    assert torch.all(found.losses <= (each.amax(-1) * asked).sum(1))


def test_a_model_of_ones_own_shifts_if_its_loss_does() -> None:
    class Next(Fixed):
        def forward(self, **batch: Any) -> dict[str, Tensor]:
            loss = nn.functional.cross_entropy(self.logits[:, :-1].reshape(-1, 3), batch["labels"][:, 1:].reshape(-1))
            return {"loss": loss, "logits": self.logits}

    model = Next(torch.arange(30, dtype=torch.float64).sin().reshape(2, 5, 3))
    labels = torch.arange(10).reshape(2, 5) % 3
    found = draw(model, {"x": rows(2), "labels": labels}, 0)
    assert found.terms == 2 * 4
    assert found.mean == pytest.approx(float(model(labels=labels)["loss"].detach()))


def test_labels_of_tokens_are_not_shifted() -> None:
    config = tiny_bert(1, **QUIET).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = BertForTokenClassification(config).double().eval()
    labels = torch.tensor([[0, 1, -100, 0, 1, 1], [1, -100, -100, 0, 0, -100]])
    found = draw(model, {"input_ids": tokens(), "labels": labels}, 0)
    assert found.terms == 8
    assert found.mean == pytest.approx(float(model(input_ids=tokens(), labels=labels).loss.detach()))


@pytest.mark.parametrize("task", ["classes", "regression", "labels"])
def test_the_mean_is_the_loss_that_transformers_computes(task: str) -> None:
    model, batch = {
        "classes": lambda: (tiny_bert(1, num_labels=3), class_batches(1, 3)[0]),
        "regression": lambda: (tiny_bert(1, num_labels=1), scalars()),
        "labels": lambda: (tiny_bert(1, problem_type="multi_label_classification"), several()),
    }[task]()
    wide = model.double()
    assert draw(wide, batch, 0).mean == pytest.approx(float(wide(**batch).loss.detach()), rel=1e-12)


def test_a_problem_type_is_believed_before_the_shape_of_the_labels() -> None:
    logits = Fixed(torch.tensor([[0.1, -2.0], [3.0, 0.5]], dtype=torch.float64))
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    found = draw_as("regression", logits, {"labels": labels})
    assert found.mean == pytest.approx(float((logits.logits - labels).square().mean().detach()))
    assert draw_as("multi_label_classification", logits, {"labels": labels}).mean != pytest.approx(found.mean)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("form", ["one behind the other", "side by side"])
def test_a_choice_between_sequences_is_one_whatever_the_config_says_of_classes(form: str, problem: str) -> None:
    """As transformers computes it: cross entropy over an example's sequences."""
    base, (batch, _) = choices(form)
    expected = draw(base, batch, 0)
    base.config.problem_type = problem
    assert torch.equal(draw(base, batch, 0).losses, expected.losses)
    if form == "side by side":
        assert expected.mean == pytest.approx(float(base(**batch).loss.detach()), rel=1e-12)


def test_a_seed_draws_the_same_and_another_does_not_and_no_global_generator_moves() -> None:
    model = Fixed(torch.zeros(50, 2, dtype=torch.float64))
    batch = {"x": rows(50), "labels": torch.zeros(50, 2)}
    before = torch.get_rng_state()
    gradients = []
    for seed in (0, 0, 1):
        gradients.append(torch.autograd.grad(draw(model, batch, seed).losses.sum(), model.logits)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_an_example_draws_depends_on_itself_alone() -> None:
    """Not on its batch, its neighbours or what pads it."""
    model = tiny_bert(**QUIET).double()
    ids = tokens(4, 5)
    labels = torch.zeros(4, dtype=torch.long)
    whole = draw(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}, 5).losses
    mask = torch.tensor([[1] * 5 + [0] * 2])
    for row in range(4):
        longer = torch.cat([ids[row : row + 1], torch.zeros(1, 2, dtype=torch.long)], 1)
        alone = draw(model, {"input_ids": longer, "attention_mask": mask, "labels": labels[:1]}, 5).losses
        assert torch.allclose(alone, whole[row : row + 1])


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (
            (2, 3),
            None,
            "needs batches with labels, which say where the loss is, and this one has x. Add labels, or pass",
        ),
        (None, (2,), r"no logits to draw labels from \(it is one that has scores\): pass draw_losses"),
        ((2, 3, 4), (2,), r"logits of shape \(2, 3, 4\) with labels of shape \(2,\) are no classification"),
        ((2, 3, 4), (2, 2), r"with labels of shape \(2, 2\) are no classification, .*pass draw_losses"),
        ((2,), (2,), r"logits of shape \(2,\) with labels"),
        ((2, 3), (3,), r"logits of shape \(2, 3\) with labels of shape \(3,\)"),
    ],
)
def test_what_no_labels_can_be_drawn_for_is_told(
    logits: tuple[int, ...] | None, labels: tuple[int, ...] | None, words: str
) -> None:
    class Returning(nn.Module):
        def forward(self, **batch: Any) -> dict[str, Tensor]:
            return {"scores": torch.zeros(2)} if logits is None else {"logits": torch.zeros(*logits)}

    batch = {"x": rows(2)}
    if labels is not None:
        batch["labels"] = torch.zeros(*labels, dtype=torch.long)
    with pytest.raises(ValueError, match=words):
        draw(Returning(), batch, 0)


@pytest.mark.parametrize(
    ("output", "words"),
    [(torch.zeros(2, 3), "it is a Tensor"), ((torch.zeros(()),), "it is a tuple of 1"), ([1], "it is a list")],
)
def test_an_output_of_another_kind_is_told(output: Any, words: str) -> None:
    class Returning(nn.Module):
        def forward(self, **batch: Any) -> Any:
            return output

    with pytest.raises(ValueError, match=words):
        draw(Returning(), {"x": rows(2), "labels": torch.zeros(2, dtype=torch.long)}, 0)


def test_sequences_of_an_example_are_told_by_the_tokens_and_not_by_a_mask() -> None:
    tokens, choices = torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 3, 6, dtype=torch.long)
    by_query = torch.ones(4, 6, 6, dtype=torch.long)
    assert sequences_of({"input_ids": choices, "attention_mask": choices, "labels": torch.zeros(4, 2)}, 4) == 3
    assert sequences_of({"input_ids": tokens, "attention_mask": by_query}, 4) == 1
    assert sequences_of({"input_ids": tokens, "attention_mask": tokens}, 4) == 1
    assert sequences_of({"pixel_values": torch.zeros(4, 3, 8, 8)}, 4) == 1
    assert sequences_of((choices,), 4) == 1
