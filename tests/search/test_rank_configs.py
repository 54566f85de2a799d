"""What a config makes that says little, and that a choice of ranks is the model's: the config builds others too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.models import class_batches, logits, tiny_bert
from tests.search.test_rank_search import FIELDS, Rows, trainer_of, undecided
from torch import nn
from transformers import Trainer, TrainingArguments

import rankwise
from rankwise.paths.path_set import path_set


def ranks(model: Any, adapter: str = "default") -> dict[str, int]:
    return {name: path.r for name, path in rankwise.named_paths(model, adapter).items()}


def chosen(model: Any) -> Any:
    rankwise.Allocator(model, batches=class_batches(6, size=8))
    return model


def test_a_config_left_alone_gives_every_projection_but_the_head_its_rank(tmp_path: Path) -> None:
    """As ``rankwise.rank_plan`` does, with the same batches; the family's default would be query and value."""
    model = get_peft_model(tiny_bert(3), rankwise.HeteroLoraConfig(task_type="SEQ_CLS", budget=400, score_batches=6))
    candidates = {path.module for path in path_set(model).resident}
    linear = {name for name, module in tiny_bert(3).named_modules() if isinstance(module, nn.Linear)}
    assert candidates == linear - {"classifier"}
    trainer_of(model, tmp_path).train()
    (record,) = rankwise.history(model)
    assert (record["how"], record["proxy"]) == ("probe", "newton")
    assert 0 < sum(path.num_parameters for path in rankwise.named_paths(model).values()) <= 400
    assert any(path.module.endswith("dense") for path in rankwise.named_paths(model).values())
    export = tmp_path / "plain"
    rankwise.export_lora(model, export)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_bert(3), str(export))), logits(model))


@pytest.mark.parametrize("shortcuts", [[], ["res1"]])
def test_a_config_left_alone_keeps_to_the_blocks_asked_for(shortcuts: list[str]) -> None:
    config = rankwise.HeteroLoraConfig(budget=400, layers_to_transform=[1, 2], shortcuts=shortcuts)
    model = get_peft_model(tiny_bert(3), config)
    names = list(rankwise.named_paths(model))
    assert {name.split(".")[1] for name in names} == {"1", "2"}
    assert len(names) == 2 * (6 + len(shortcuts))


def test_a_second_adapter_left_alone_has_all_projections_too() -> None:
    model = undecided()
    rankwise.Allocator(model, batches=class_batches(6, size=8))
    model.add_adapter("other", rankwise.HeteroLoraConfig(budget=300))
    linear = {name for name, module in tiny_bert(3).named_modules() if isinstance(module, nn.Linear)}
    assert {path.module for path in path_set(model, "other").resident} == linear - {"classifier"}


def test_a_config_that_builds_a_second_model_chooses_for_it_too() -> None:
    config = rankwise.HeteroLoraConfig(**FIELDS)
    found = []
    for seed in (0, 1):
        model = chosen(get_peft_model(tiny_bert(3, seed=seed), config))
        assert (config.mode, model.peft_config["default"].mode) == ("static", "off")
        assert len(rankwise.history(model)) == 1
        found.append(ranks(model))
    alone = chosen(get_peft_model(tiny_bert(3, seed=1), rankwise.HeteroLoraConfig(**FIELDS)))
    assert found[1] == ranks(alone) != found[0]


def test_two_adapters_of_one_config_have_their_own_choice(tmp_path: Path) -> None:
    config = rankwise.HeteroLoraConfig(**FIELDS)
    model: Any = get_peft_model(tiny_bert(3, seed=0), config)
    model.add_adapter("other", config)
    chosen(model)
    assert set(ranks(model, "other").values()) == {1}, "candidates still"
    model.set_adapter("other")
    rankwise.Allocator(model, batches=class_batches(12, size=8)[6:], adapter="other")
    model.save_pretrained(str(tmp_path))
    back: Any = PeftModel.from_pretrained(tiny_bert(3, seed=0), str(tmp_path))
    back.load_adapter(str(tmp_path / "other"), "other")
    assert (ranks(back), ranks(back, "other")) == (ranks(model), ranks(model, "other"))


@pytest.mark.parametrize("pattern", [None, "layer"])
def test_ranks_in_some_blocks_are_saved_and_loaded(pattern: str | None, tmp_path: Path) -> None:
    blocks = {"layers_to_transform": [0, 1], "layers_pattern": pattern}
    model = chosen(
        get_peft_model(tiny_bert(3, seed=0), rankwise.HeteroLoraConfig(**{**FIELDS, "shortcuts": [], **blocks}))
    )
    assert {name.split(".")[1] for name in ranks(model)} <= {"0", "1"}
    model.save_pretrained(str(tmp_path))
    back = PeftModel.from_pretrained(tiny_bert(3, seed=0), str(tmp_path))
    assert ranks(back) == ranks(model)
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=0)


def test_a_trainer_that_makes_its_model_anew_chooses_for_that(tmp_path: Path) -> None:
    def make() -> Any:
        return get_peft_model(tiny_bert(3), rankwise.HeteroLoraConfig(**FIELDS))

    options: dict[str, Any] = {"max_steps": 3, "report_to": [], "use_cpu": True, "save_strategy": "no", "seed": 7}
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, **options)
    trainer: Any = Trainer(model_init=make, args=arguments, train_dataset=Rows())
    found = []
    for _ in range(2):
        trainer.train()
        assert len(rankwise.history(trainer.model)) == 1
        owned = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
        paths = rankwise.named_paths(trainer.model).values()
        assert all(id(parameter) in owned for path in paths for parameter in path.parameters)
        found.append(ranks(trainer.model))
    model = make()
    trainer_of(model, tmp_path, max_steps=3, seed=7).train()
    assert found == [ranks(model)] * 2
