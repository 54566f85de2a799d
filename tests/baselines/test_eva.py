"""EVA's start is what its paper says, for models that label texts and for those that label tokens."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tests.models import VOCABULARY, tiny_bert, tiny_llama
from torch.utils.data import DataLoader

from rankwise.baselines.eva import find_start_, inputs_of, take_start_

ROWS, LENGTH = 48, 6


def lora(family: str, targets: Any, **eva: Any) -> PeftModel:
    config = LoraConfig(
        r=4, init_lora_weights="eva", eva_config=EvaConfig(**{"rho": 1.0, **eva}), target_modules=targets
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lora with eva")
        model = get_peft_model(tiny_bert() if family == "bert" else tiny_llama(), config)
    assert isinstance(model, PeftModel)
    return model.train()


def batches(family: str) -> DataLoader[Any]:
    """Shuffled rows, the last token of every other one padding; the first two tokens without a label of their own."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    rows = []
    for number, row in enumerate(ids):
        mask = torch.ones(LENGTH, dtype=torch.long)
        mask[-1] = number % 2
        labels = torch.where(torch.arange(LENGTH) < 2, -100, row) if family == "llama" else torch.tensor(number % 2)
        rows.append({"input_ids": row, "attention_mask": mask, "labels": labels})
    return DataLoader(rows, batch_size=8, shuffle=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "module"), [("bert", "attention.self.query"), ("llama", "layers.0.self_attn.q_proj")]
)
def test_factors_start_at_the_leading_singular_vectors_of_their_inputs(family: str, module: str) -> None:
    model, data = lora(family, [module.rpartition(".")[2]], tau=0.9999), batches(family)
    name = next(name for name, _ in model.named_modules() if name.endswith(module))
    projection: Any = model.get_submodule(name)
    rows: list[torch.Tensor] = []
    hook = projection.register_forward_hook(lambda _, given, __: rows.append(given[0]))
    with torch.no_grad(), model.disable_adapter():
        for batch in data:
            model.eval()(**batch)
            counts = batch["attention_mask"].bool()
            rows[-1] = rows[-1][counts & (batch["labels"] != -100) if family == "llama" else counts]
    hook.remove()
    inputs = torch.cat(rows).double()
    vectors = torch.linalg.svd(inputs - inputs.mean(0))[2][:2]  # EVA's decomposition is a PCA
    model.train()
    state = torch.get_rng_state()
    find_start_(model, data, by_token=family == "llama")
    assert torch.equal(torch.get_rng_state(), state), "what the loader drew is given back"
    assert model.training
    found = projection.lora_A["default"].weight.detach().double()
    torch.testing.assert_close(found @ found.T, torch.eye(4, dtype=torch.double), atol=1e-5, rtol=0)
    assert ((vectors @ found.T).norm(dim=1) > 0.95).all(), "the two leading directions are in the start"
    assert not projection.lora_B["default"].weight.any()


def test_a_projection_that_sees_one_row_a_text_has_a_start_too() -> None:
    model = lora("bert", ["pooler.dense"])
    find_start_(model, batches("bert"), by_token=False)
    found = model.base_model.model.bert.pooler.dense.lora_A["default"].weight.detach()  # type: ignore[union-attr, index]
    torch.testing.assert_close(found @ found.T, torch.eye(4), atol=1e-4, rtol=0)


def test_what_goes_on_has_the_ranks_and_values_of_its_checkpoint(tmp_path: Path) -> None:
    config = {"rho": 3.0, "tau": 0.9, "adjust_scaling_factors": True}
    begun = lora("bert", ["query", "output.dense"], **config)
    find_start_(begun, batches("bert"), by_token=False)
    settled: Any = begun.peft_config["default"]
    ranks = settled.rank_pattern
    assert len(set(ranks.values())) > 1, "ranks are shared out anew"
    begun.save_pretrained(str(tmp_path))
    going_on = lora("bert", ["query", "output.dense"], **config)
    take_start_(going_on, tmp_path)
    found, wanted = get_peft_model_state_dict(going_on), get_peft_model_state_dict(begun)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    for field in ("rank_pattern", "alpha_pattern", "target_modules"):
        assert getattr(going_on.peft_config["default"], field) == getattr(settled, field)


def test_inputs_are_those_of_tokens_that_count_or_of_texts() -> None:
    pooled, tokens = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(2, 2, 3)
    assert torch.equal(inputs_of((pooled,), torch.tensor([[0, 0], [1, 1]]), "pooler"), pooled)
    assert torch.equal(inputs_of(tokens, torch.tensor([[0, 1], [1, 0]]), "query"), tokens[[0, 1], [1, 0]])


def test_a_start_that_no_batch_is_large_enough_for_is_an_error_and_not_a_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = lora("bert", ["pooler.dense"])
    small = DataLoader(batches("bert").dataset, batch_size=2)  # two texts, and rank 4
    with pytest.raises(ValueError, match=r"no start for some projection in 20 rounds.*Raise the batch size"):
        find_start_(model, small, by_token=False)
    assert "skipping SVD" in capsys.readouterr().out  # PEFT's own words


def test_a_start_that_never_settles_is_the_same_error_and_says_what_to_lower() -> None:
    model = lora("bert", ["pooler.dense"], tau=1.0)  # no two decompositions agree to the last bit
    with pytest.raises(ValueError, match=r"no start for some projection in 20 rounds.*lower eva_config\.tau"):
        find_start_(model, batches("bert"), by_token=False)
