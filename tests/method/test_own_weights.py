"""What shares its weight with something else is not merged, and what has its own is, whoever else was there before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tests.models import adapted, fill_, logits, tiny_llama
from torch import Tensor, nn

import rankwise
from rankwise.method.own_weights import check_own_weights

pytestmark = pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`")


def tied(**fields: Any) -> Any:
    model = adapted(tiny_llama(tie_word_embeddings=True), target_modules=["lm_head", "q_proj"], r=2, **fields)
    fill_(model)
    return model


@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter"])
def test_a_tied_output_layer_is_not_merged_and_nothing_is_touched(how: str) -> None:
    """PEFT warns and merges: the embedding changes with the output layer, and with both what the model says."""
    model = tied()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"LoRA on lm_head can't be merged: its weight is model\.embed_tokens's too"):
        getattr(model, how)()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_it_is_merged_once_it_has_a_weight_of_its_own() -> None:
    base = tiny_llama(tie_word_embeddings=True)
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.clone())
    base.config.tie_word_embeddings = False
    model = adapted(base, target_modules=["lm_head", "q_proj"], r=2)
    fill_(model)
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


def test_a_path_that_is_off_keeps_nothing_from_being_merged() -> None:
    model = tied()
    rankwise.apply_(model, [rankwise.Disable("lm_head")])
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_an_embedding_in_whose_place_a_copy_is_at_work_is_not_in_the_way() -> None:
    model = tied(modules_to_save=["embed_tokens"])
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    with model.disable_adapter(), pytest.raises(ValueError, match=r"model\.embed_tokens's too"):
        model.base_model._check_merge_allowed()
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


class Net(nn.Module):
    """Two projections, in one of several relations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(values))
        return result


def one_module_in_two_places(net: Any) -> None:
    net.second = net.first


def a_parameter_of_the_model(net: Any) -> None:
    net.table = net.first.weight


def one_storage(net: Any) -> None:
    net.second.weight = nn.Parameter(net.first.weight.data)


def nothing(net: Any) -> None:
    net.first.bias = net.second.bias = None


@pytest.mark.parametrize(
    ("relate", "told"),
    [
        (one_module_in_two_places, "second"),
        (a_parameter_of_the_model, "the model"),
        (one_storage, "second"),
        (nothing, ""),
    ],
)
def test_every_other_use_of_a_weight_is_seen(relate: Callable[[Any], None], told: str) -> None:
    net = Net()
    relate(net)
    inject_adapter_in_model(LoraConfig(target_modules=["first"], r=1), net)
    if not told:
        check_own_weights(net)
        return
    with pytest.raises(ValueError, match=f"LoRA on first can't be merged: its weight is {told}'s too"):
        check_own_weights(net)


def test_a_quantised_layer_without_a_weight_has_none_to_share() -> None:
    """As HQQ's, which holds its numbers elsewhere."""
    net: Any = Net()
    inject_adapter_in_model(LoraConfig(target_modules=["first"], r=1), net)
    del net.first.get_base_layer()._parameters["weight"]
    net.second.bias = None
    check_own_weights(net)


def test_pefts_own_lora_is_looked_at_alike() -> None:
    model = get_peft_model(tiny_llama(tie_word_embeddings=True), LoraConfig(target_modules=["lm_head"], r=1))
    with pytest.raises(ValueError, match="LoRA on lm_head can't be merged"):
        check_own_weights(model.get_base_model())
