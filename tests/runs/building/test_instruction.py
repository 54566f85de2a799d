from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Trainer
from trl.trainer.sft_trainer import SFTTrainer
from typer.testing import CliRunner

from rankwise.baselines import penalty
from rankwise.runs.building.job import Job, build, make_trainer, training_arguments
from rankwise.runs.dryrun import stand_in
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.runs.training.train import train
from rankwise.tasks.encode import prompt_of
from rankwise_cli import app

TARGETS = ["q_proj", "v_proj"]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4, "target_modules": TARGETS},
    "adalora": {"name": "adalora", "init_r": 4, "target_r": 2, "target_modules": TARGETS},
}
ROWS = [
    {"instruction": "Name a color", "input": "", "output": "deep red"},
    {"instruction": "Sort these", "input": "b a", "output": "a b"},
    {"instruction": "Greet", "input": "", "output": "hi"},
    {"instruction": "Count", "input": "up to four", "output": "one two three four"},
]
Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a recipe for a tiny LLaMA on the rows above, whose tokenizer knows their words and the prompt's."""

    def build_recipe(method: str = "lora", task: str = "instruction", /, **changes: Any) -> Recipe:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        data = {"task": task, "train_file": str(file), "dev_fraction": 0}
        data |= {"text_columns": ["output"], "block_size": 16} if task == "text" else {}
        given = {"model": {"name": "meta-llama/Llama-2-7b-hf"}, "data": data, "method": METHODS[method]}
        small = stand_in(parse_recipe({**given, "training": {"evaluate": "never"}, "select": "last"}), tmp_path)
        tokenizer(size=139).save_pretrained(small.model.name)
        shape = {"max_steps": 1, "batch_size": len(ROWS), "warmup": 0}
        return parse_recipe(merged(small.to_dict(), {"training": shape, "data": {"max_length": 64}, **changes}))

    return build_recipe


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a word, whatever stands beside it, so that labels can be written down by hand."""
    split = pre_tokenizers.Whitespace()
    texts = [prompt_of(row["instruction"], row["input"]) + row["output"] for row in ROWS]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    assert len(words) + 4 <= size
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[BOS]", "[EOS]", *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = split
    backend.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


def by_hand(job: Job, row: dict[str, str], *, train_on_prompt: bool) -> tuple[list[int], list[int]]:
    """A row's ids and labels: the prompt masked or not, the answer and the end counted, the first token never."""
    ids: Any = job.data.tokenizer.convert_tokens_to_ids
    split = pre_tokenizers.Whitespace()
    prompt, answer = (
        [ids(word) for word, _ in split.pre_tokenize_str(text)]
        for text in (prompt_of(row["instruction"], row["input"]), row["output"])
    )
    seen = prompt if train_on_prompt else [-100] * len(prompt)
    return [2, *prompt, *answer, 3], [-100, *seen, *answer, 3]


@torch.no_grad()
def loss_by_hand(job: Job, *, train_on_prompt: bool) -> float:
    """The mean of -log p over all counted tokens of all rows, one row and one token at a time."""
    job.model.eval()
    total, count = 0.0, 0
    for row in ROWS:
        ids, labels = by_hand(job, row, train_on_prompt=train_on_prompt)
        logs = job.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(1, len(ids)):
            if labels[place] != -100:
                total -= float(logs[place - 1, labels[place]])
                count += 1
    return total / count


def trained_one_step(recipe: Recipe, folder: Path) -> tuple[Trainer, float]:
    """The trainer after one step, and the loss that it logged."""
    with quiet():
        job = build(recipe)
        run = RunFolder(folder)
        trainer = make_trainer(job, training_arguments(recipe, job.data, run.checkpoints), run, [])
        trainer.train()
    return trainer, float(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_labels_are_masked_as_documented(make: Make, train_on_prompt: bool) -> None:
    with quiet():
        job = build(make(data={"train_on_prompt": train_on_prompt}))
    assert make().data.train_on_prompt is False
    rows = [(row["input_ids"], row["labels"]) for row in job.data.train]
    assert rows == [by_hand(job, row, train_on_prompt=train_on_prompt) for row in ROWS]
    batch = job.data.collator([dict(row) for row in job.data.train])
    longest = max(len(ids) for ids, _ in rows)
    padded = [labels + [-100] * (longest - len(labels)) for _, labels in rows]
    assert batch["labels"].tolist() == padded
    assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids, _ in rows]


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_is_the_one_computed_by_hand(
    make: Make, tmp_path: Path, train_on_prompt: bool, accumulation: int
) -> None:
    shape = {"batch_size": len(ROWS) // accumulation, "accumulation": accumulation}
    recipe = make(data={"train_on_prompt": train_on_prompt}, training=shape)
    with quiet():
        expected = loss_by_hand(build(recipe), train_on_prompt=train_on_prompt)
    trainer, loss = trained_one_step(recipe, tmp_path / "run")
    assert isinstance(trainer, SFTTrainer)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_penalty_of_a_method_is_added_once_a_step(make: Make, tmp_path: Path, accumulation: int) -> None:
    recipe = make("adalora", training={"batch_size": len(ROWS) // accumulation, "accumulation": accumulation})
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_steps": 2})})
    with quiet():
        job = build(recipe)
        weighted = penalty(job.model).item()
        expected = loss_by_hand(job, train_on_prompt=False) + weighted
    _, loss = trained_one_step(recipe, tmp_path / "run")
    assert weighted > 0.1
    assert loss == pytest.approx(expected, rel=1e-5)


def test_an_evaluation_runs_the_model_once_a_batch_and_gives_the_same_loss(make: Make, tmp_path: Path) -> None:
    recipe = make(training={"eval_batch_size": 3})
    trainer, _ = trained_one_step(recipe, tmp_path / "run")
    with quiet():
        job = Job(recipe, build(recipe).data, trainer.model)
        expected = loss_by_hand(job, train_on_prompt=False)
        calls: list[int] = []
        hook = job.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
        found = trainer.evaluate(job.data.train, metric_key_prefix="train")
    hook.remove()
    assert len(calls) == 2
    assert found["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert {"train_loss", "train_perplexity"} == {key for key in found if key in ("train_loss", "train_perplexity")}
    assert not [key for key in found if "entropy" in key or "token" in key]


def test_text_is_left_to_the_plain_trainer(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "text")
    trainer, _ = trained_one_step(recipe, tmp_path / "run")
    assert not isinstance(trainer, SFTTrainer)
    assert isinstance(trainer, Trainer)


def test_no_card_names_a_checkpoint_folder_as_a_model(make: Make, tmp_path: Path) -> None:
    out = train(make(), tmp_path / "run").out
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["checkpoint-1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:split")  # a tokenizer of 512 words cuts most answers
def test_lor2c_is_tuned_on_instructions_edited_and_resumed(shared: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "model": {"name": str(shared / "models" / "stories260k")},
        "data": {
            "task": "instruction",
            "train_file": str(shared / "data" / "alpaca" / "train.jsonl"),
            "max_length": 128,
            "allow_cut_answers": True,
            "max_train_samples": 64,
            "max_eval_samples": 16,
        },
        "method": {"name": "lor2c", "r": 4, "merges": 1, "injections": 1, "edit_unit": "steps", "lora_dropout": 0.1},
        "training": {"max_steps": 12, "batch_size": 4, "learning_rate": 2e-3, "evaluate": "steps", "every": 2},
    }
    content["training"] |= {"keep_checkpoints": None, "report_to": [], "warmup": 0}
    recipe, whole, parts = tmp_path / "lor2c.yaml", tmp_path / "whole", tmp_path / "parts"
    recipe.write_text(yaml.safe_dump(content))
    call = ["train", str(recipe), "--out"]
    done = CliRunner().invoke(app, [*call, str(whole)])
    assert done.exit_code == 0, done.output
    shutil.copytree(whole, parts)
    for step in (4, 6, 8, 10, 12):  # as it lay there before the edits, which come after step 4
        shutil.rmtree(parts / "checkpoints" / f"checkpoint-{step}")
    (parts / "metrics.json").unlink()
    shutil.rmtree(parts / "adapter")
    again = CliRunner().invoke(app, [*call, str(parts), "--resume"])
    assert again.exit_code == 0, again.output
    expected, resumed = (json.loads((run / "metrics.json").read_text()) for run in (whole, parts))
    kinds = [edit["edit"] for record in expected["edits"] for edit in record["edits"]]
    assert kinds == ["Merge", "Inject"]
    for key in ("metrics", "edits", "chosen", "parameters"):
        assert resumed[key] == expected[key]
    tensors = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, parts)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(tensor.equal(tensors[1][name]) for name, tensor in tensors[0].items())
    losses = [entry["loss"] for entry in expected["metrics"]["per_epoch"]]
    assert losses[-1] < losses[0]
