"""Synflow in models that do not run on tokens, or on nothing that can be replaced by ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.models import VOCABULARY, adapted, build, tokens
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

import rankwise
from rankwise.scores.flow import widened


def whisper() -> Any:
    names = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes: dict[str, Any] = dict.fromkeys(names, 2)
    inner: dict[str, Any] = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 4, "d_model": 16}
    lengths: dict[str, Any] = {"max_source_positions": 10, "max_target_positions": 12}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(vocab_size=VOCABULARY, **sizes, **inner, **lengths, **ids)
    return build(WhisperForConditionalGeneration, config)


class Small(nn.Module):
    """Not of transformers, and with numbers for inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.up(torch.tanh(self.down(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


SOUNDS = {"input_features": torch.linspace(-1, 1, 160).reshape(2, 4, 20), "labels": tokens(2)}
NUMBERS = {"x": torch.linspace(-1, 1, 12).reshape(2, 6), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("make", "targets", "batch", "name"),
    [
        (whisper, ["q_proj", "fc1"], SOUNDS, "WhisperForConditionalGeneration"),
        (Small, ["down"], NUMBERS, "Small"),
    ],
    ids=["sounds", "numbers"],
)
def test_a_model_that_runs_on_no_tokens_is_named_and_scored_by_its_loss(
    make: Any, targets: list[str], batch: dict[str, Tensor], name: str
) -> None:
    model = adapted(make(), target_modules=targets)
    with pytest.raises(ValueError, match=rf"{name} has no token embeddings to run on: use synflow_loss='loss'"):
        rankwise.score_paths(model, proxy="synflow")
    scores = rankwise.score_paths(model, [batch], proxy="synflow", synflow_loss="loss")
    assert len(scores) == len(rankwise.named_paths(model))
    assert all(math.isfinite(score) for score in scores.values())


def test_the_numbers_of_a_batch_are_widened_wherever_they_are() -> None:
    found = widened({"x": torch.ones(2), "ids": torch.ones(2).long(), "more": [(torch.ones(1).half(), "text")]})
    assert found["x"].dtype == found["more"][0][0].dtype == torch.float64
    assert found["ids"].dtype == torch.int64
    assert found["more"][0][1] == "text"
