"""The prefix that is kept: the same run as without, what is refused, where rows lie."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.families import FAMILIES
from tests.models import Batch, adapted, bert_config, build, class_batches, fill_, text_batches, tiny_bert, tiny_llama
from tests.shortcuts import FIVE, checkpointed, kinds
from torch import Tensor, nn
from transformers import BertForTokenClassification

import rankwise
from rankwise.prefix.cache import PrefixCache, prefix_cache, rows_of

STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def upper(name: str = "bert", **fields: Any) -> Any:
    """A model of four blocks with every kind of path in the upper two, and no dropout."""
    family = FAMILIES[name]
    base = family(4)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    options = {"target_modules": list(family.targets), "shortcuts": kinds(name), "layers_to_transform": [2, 3]}
    model = adapted(base, **{**options, **fields})
    fill_(model)
    return model.train()


def batches(name: str, count: int = 3) -> list[Batch]:
    return text_batches(count) if FAMILIES[name].causal else class_batches(count)


def train(model: Any, batches: Sequence[Batch], epochs: int = 3) -> list[Tensor]:
    """Return the losses of AdamW, then the weights that trained."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    found = []
    for _ in range(epochs):
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
    return [*found, *(p.detach() for p in model.parameters() if p.requires_grad)]


def equal(runs: Sequence[Sequence[Tensor]], tolerance: float = 0.0) -> None:
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("checkpointing", ["none", "plain", "reentrant"])
@pytest.mark.parametrize("name", FIVE)
def test_a_run_with_it_is_the_run_without_bit_for_bit(name: str, checkpointing: str) -> None:
    found = []
    fields: dict[str, Any] = {"shortcuts": []} if checkpointing == "reentrant" else {}
    for keeps in (True, False):
        model = upper(name, **fields)
        if checkpointing != "none":
            checkpointed(model, reentrant=checkpointing == "reentrant")
        with prefix_cache(model) if keeps else nullcontext() as cache:
            found.append(train(model, batches(name)))
        if cache is not None:
            assert (cache.hits, cache.misses) == (6, 3)
            assert len(cache.prefix.blocks) == (2 if fields else 1)  # cut of block 2 reads block 1
    equal(found)


def test_the_blocks_are_left_out_and_come_back() -> None:
    model = upper(shortcuts=[])
    ran: list[int] = []
    for number, block in enumerate(model.get_base_model().bert.encoder.layer):
        block.attention.self.register_forward_hook(lambda *_, number=number: ran.append(number))
    (batch,) = batches("bert", 1)
    with prefix_cache(model) as cache:
        train(model, [batch], 2)
        assert ran == [0, 1, 2, 3, 2, 3]
        assert len(cache.rows) == len(batch["input_ids"])
        wanted = model.eval()(**batch).logits
        assert ran[6:] == [0, 1, 2, 3]
    assert len(cache.rows) == 0
    torch.testing.assert_close(model(**batch).logits, wanted, rtol=0, atol=0)
    assert all("forward" not in block.__dict__ for block in model.get_base_model().bert.encoder.layer)


def padded(ids: Sequence[Sequence[int]], length: int, *, left: bool = False) -> Batch:
    fill = [[0] * (length - len(row)) for row in ids]
    rows = [(pad + list(row)) if left else (list(row) + pad) for row, pad in zip(ids, fill, strict=True)]
    mask = [([0] * len(pad) + [1] * len(row)) if left else ([1] * len(row) + [0] * len(pad))
            for row, pad in zip(ids, fill, strict=True)]  # fmt: skip
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def test_rows_come_in_another_order_and_padding() -> None:
    """In float64, so that what the shape of a batch rounds is far below what a wrong row would change."""
    rows = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
    labels = torch.tensor([0, 1])
    sets = [
        [{**padded(rows[:2], 5), "labels": labels}, {**padded(rows[2:], 4), "labels": labels}],
        [{**padded([rows[3], rows[0]], 6), "labels": labels}, {**padded([rows[1], rows[2]], 8), "labels": labels}],
    ]
    found = []
    for keeps in (True, False):
        model = upper().double()
        with prefix_cache(model) if keeps else nullcontext() as cache:
            found.append([*train(model, sets[0], 1), *train(model, sets[1], 1)])
        if cache is not None:
            assert (cache.hits, cache.misses) == (2, 2)
    equal(found, tolerance=1e-10)


def test_a_key_is_of_the_tokens_and_where_they_are() -> None:
    def keys(**batch: Tensor) -> list[str]:
        return [row.key for row in rows_of(**batch)]

    short, long = padded([[5, 6]], 2), padded([[5, 6]], 4)
    assert keys(**short) == keys(**long) == keys(input_ids=short["input_ids"])
    others = [
        padded([[5, 7]], 4),
        padded([[5, 6, 0]], 3),
        padded([[5, 6]], 4, left=True),
        {**short, "token_type_ids": torch.ones(1, 2, dtype=torch.long)},
        {**short, "position_ids": torch.tensor([[0, 1]])},
        {**short, "position_ids": torch.tensor([[1, 2]])},
    ]
    seen = [keys(**short)[0], *(keys(**other)[0] for other in others)]
    assert len(set(seen)) == len(seen)
    assert rows_of(**padded([[5, 6]], 4, left=True))[0][1:] == (2, 4)


def test_beyond_memory_rows_go_to_files_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.prefix.rows.SHARD_BYTES", 1000)
    found = []
    for keeps in (True, False):
        model = upper()
        with prefix_cache(model, ram_bytes=800, folder=tmp_path) if keeps else nullcontext() as cache:
            found.append(train(model, batches("bert")))
            if cache is not None:
                assert 0 < cache.rows.ram <= 800
                assert list((tmp_path / "prefix-0").glob("*.safetensors"))
                assert cache.hits == 6
    equal(found)
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_what_does_not_fit_runs_again() -> None:
    model = upper()
    with prefix_cache(model, ram_bytes=800) as cache:
        train(model, batches("bert"))
    assert cache.hits == 0
    assert cache.misses == 9


def test_half_of_each_number() -> None:
    model = upper()
    with prefix_cache(model, half=True) as cache:
        assert cache.rows.dtype == torch.bfloat16
        assert all(bool(tensor.isfinite().all()) for tensor in train(model, batches("bert")))
    assert cache.hits == 6


def test_new_weights_of_the_prefix_are_noticed() -> None:
    model = upper()
    (batch,) = batches("bert", 1)
    with prefix_cache(model) as cache:
        train(model, [batch], 2)
        assert (cache.hits, cache.misses) == (1, 1)
        with torch.no_grad():
            model.get_base_model().bert.embeddings.word_embeddings.weight.mul_(2.0)
        train(model, [batch], 2)
        assert (cache.hits, cache.misses) == (2, 2)


def test_dropout_in_the_prefix_is_refused_or_left_out() -> None:
    model = adapted(tiny_bert(4), target_modules=["query"], layers_to_transform=[2, 3]).train()
    (batch,) = batches("bert", 1)
    with prefix_cache(model), pytest.raises(ValueError, match=r"draws random numbers.*evaluating=True"):
        model(**batch)
    with prefix_cache(model, evaluating=True) as cache:
        train(model, [batch], 2)
        base: Any = model.get_base_model()
        assert all(block.training for block in base.bert.encoder.layer), "in evaluation mode for its own pass only"
    assert cache.hits == 1


def test_what_the_cache_can_not_hold_is_refused() -> None:
    (batch,) = batches("bert", 1)
    model = upper()
    with prefix_cache(model):
        with pytest.raises(ValueError, match="output_hidden_states=True"):
            model(**batch, output_hidden_states=True)
        with pytest.raises(ValueError, match="called with inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 2, 16), labels=torch.tensor([1]))
        mask = torch.ones(len(batch["input_ids"]), 1, 6, 6)
        with pytest.raises(ValueError, match="attention_mask of 4 dimensions"):
            model(**batch, attention_mask=mask)


def test_plain_lora_has_a_prefix_too() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1, 3])
    found = []
    for keeps in (True, False):
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(4), config).train()
        with prefix_cache(model) if keeps else nullcontext() as cache:
            found.append(train(model, text_batches(2), 2))
        if isinstance(cache, PrefixCache):
            assert len(cache.prefix.blocks) == 1
            assert cache.hits == 2
    equal(found)


def test_a_search_chooses_the_same() -> None:
    found = []
    for keeps in (True, False):
        model = upper(mode="dynamic", search_every=2, score_batches=1, budget=0.5, total_steps=9)
        with prefix_cache(model) if keeps else nullcontext():
            train(model, batches("bert"))
        found.append([record.to_dict() for record in rankwise.history(model)])
        rankwise.detach(model)
    assert len(found[0]) > 1
    assert [{k: v for k, v in r.items() if "seconds" not in k} for r in found[0]] == [
        {k: v for k, v in r.items() if "seconds" not in k} for r in found[1]
    ]


def test_passes_without_gradients_run_the_whole_network() -> None:
    model = upper("llama")
    prompt = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    expected = model.generate(input_ids=prompt, **options)
    with prefix_cache(model) as cache:
        train(model, batches("llama", 1), 2)
        hits = cache.hits
        for _ in range(2):
            model.train()
            found = model.generate(input_ids=prompt, **options)
        assert cache.hits == hits > 0
    untrained = upper("llama")
    train(untrained, batches("llama", 1), 2)
    untrained.train()
    assert torch.equal(found, untrained.generate(input_ids=prompt, **options))
    assert expected.shape == found.shape


def test_masks_and_labels_that_a_key_can_not_say_are_refused() -> None:
    model = upper("gemma2")
    (batch,) = batches("gemma2", 1)
    with prefix_cache(model):
        with pytest.raises(ValueError, match="called with attention_mask"):
            model(**batch, attention_mask={"full_attention": None})
        with pytest.raises(ValueError, match="called with past_key_values"):
            model(**batch, past_key_values=object())
        mask = torch.ones_like(batch["input_ids"])
        mask[:, -1] = 0
        with pytest.raises(ValueError, match="labels lie at padded places"):
            model(**batch, attention_mask=mask)


def asked(batch: Batch, *, first: bool) -> Batch:
    """Labels at every token, or at all but each row's first."""
    mask = batch["attention_mask"]
    there = mask.eq(1) if first else mask.cumsum(1).gt(1) & mask.eq(1)
    return {**batch, "labels": batch["input_ids"].masked_fill(~there, -100)}


def test_a_first_token_that_is_predicted_from_padding_is_refused_and_no_other() -> None:
    """From the second epoch on the place before it would be zero, and the loss another."""
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    model = upper("llama")
    with prefix_cache(model) as cache:
        with pytest.raises(ValueError, match=r"LlamaForCausalLM predicts .* first token to -100, or pad on the right"):
            model(**asked(padded(rows, 5, left=True), first=True))
        for batch in (asked(padded(rows, 5, left=True), first=False), asked(padded(rows, 5), first=True)):
            plain = upper("llama")(**batch).loss
            torch.testing.assert_close([model(**batch).loss for _ in range(2)], [plain, plain], rtol=1e-6, atol=0)
    assert cache.hits == 2


def test_a_token_that_is_classified_at_its_own_place_may_be_the_first_behind_padding() -> None:
    base = build(BertForTokenClassification, bert_config(3, **STILL))
    model = adapted(base, target_modules=["query"], layers_to_transform=[2]).train()
    batch = padded([[5, 6, 7], [8, 9, 10, 11, 12]], 5, left=True)
    batch["labels"] = (batch["input_ids"] % 2).masked_fill(batch["attention_mask"].eq(0), -100)
    with prefix_cache(model) as cache:
        losses = [model(**batch).loss for _ in range(2)]
    assert cache.hits == 1
    assert torch.equal(*losses)


def test_packed_rows_are_told_from_masked_ones() -> None:
    ids, places = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 1, 0, 1]])
    packed = rows_of(input_ids=ids, position_ids=places)
    assert packed[0].key != rows_of(input_ids=ids, position_ids=places, attention_mask=torch.ones_like(ids))[0].key
    far = [
        rows_of(
            input_ids=torch.cat([torch.zeros(1, n, dtype=torch.long), ids], 1),
            attention_mask=torch.cat([torch.zeros(1, n), torch.ones(1, 4)], 1),
        )[0].key
        for n in (12340, 12341)
    ]
    assert far[0] != far[1]


def test_rotations_by_the_longest_row_are_refused() -> None:
    model = upper("phi3")
    model.config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4}
    with (
        pytest.raises(ValueError, match="rope_type='longrope' turns positions by the longest row"),
        prefix_cache(model),
    ):
        pass


def test_what_comes_to_train_in_the_prefix_is_told() -> None:
    model = upper()
    (batch,) = batches("bert", 1)
    with prefix_cache(model):
        train(model, [batch], 2)
        model.get_base_model().bert.encoder.layer[0].output.dense.weight.requires_grad_()
        with pytest.raises(ValueError, match="something in the kept prefix trains by now"):
            model(**batch)


def test_another_precision_begins_anew() -> None:
    model = upper()
    (batch,) = batches("bert", 1)
    expected = model(**batch).loss
    with prefix_cache(model) as cache:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**batch).loss.backward()
        assert torch.equal(model(**batch).loss, expected)
        assert cache.hits == 0


def test_a_prefix_in_evaluation_mode_goes_back() -> None:
    model = upper()
    modes = [module.training for module in model.modules()]
    with prefix_cache(model, evaluating=True):
        train(model, batches("bert", 1), 2)
    assert [module.training for module in model.modules()] == modes


def test_a_copy_made_inside_runs_its_own_blocks() -> None:
    model = upper()
    (batch,) = batches("bert", 1)
    with prefix_cache(model) as cache:
        train(model, [batch], 2)
        twin = copy.deepcopy(model)
        seen = cache.hits, cache.misses
        with torch.no_grad():
            for parameter in twin.get_base_model().bert.encoder.layer[0].parameters():
                parameter.zero_()
        assert not torch.equal(twin(**batch).loss, model(**batch).loss)
        assert (cache.hits, cache.misses) == (seen[0] + 1, seen[1])
