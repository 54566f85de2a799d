"""A recipe end to end in seconds: a tiny random model of the same family, made-up rows, two optimizer steps."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from rankwise.method.oversized import ALWAYS
from rankwise.method.oversized import FIELDS as RANKS
from rankwise.runs.building.models import load_config, load_tokenizer
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.methods import Method
from rankwise.runs.recipes.recipe import ModelSpec, Recipe
from rankwise.runs.training.train import Result, train
from rankwise.tasks import CHAT, TASKS, Task

# Families whose checkpoints hold a part of the classifier: what is saved must have it.
WITH_HEAD = {"modernbert": AutoModelForMaskedLM}
STEPS = 2
ROWS = 24
PACKED_ROWS = 16 * ROWS  # some ten fit into one sequence, and to a plan a sequence is one example
LENGTH = 64
CHAT_LENGTH = 256  # a template of the user's own may say much before the first answer
WORDS = tuple(f"{start}{middle}{end}" for start in "bdklmnt" for middle in "aeiou" for end in "nrst")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# How a conversation reads to the stand-in's tokenizer; what a model's own template calls these tokens does not matter.
CHATML = (
    "{% if tools %}{% for tool in tools %}{{ tool['function']['name'] + ' ' }}{% endfor %}{% endif %}"
    "{% for message in messages %}{{ '[CLS] ' + message['role'] + ' ' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + ' [SEP]' }}{% endgeneration %}{{ ' ' }}"
    "{% else %}{{ (message['content'] or '') + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS] assistant ' }}{% endif %}"
)
# The same for families whose templates TRL has no variant of with marks: there the answers are found without them.
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
MARKED = ("gemma", "gemma3_text", "qwen3")
EDITS = ("merges", "injections")
RANK_BUDGET = 1024  # parameters: so few components that a few rows tell them apart
# What fits a large model may be refused in so small a one.
MOST = {**dict.fromkeys(RANKS, ALWAYS), "rank_budget": 32_768}
# The shape of the stand-in, for every field of these names that a family's config has.
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": LENGTH + 8,
    "vocab_size": len(WORDS) + len(SPECIAL),
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
# The families of the models that recipes name, so that a dry run needs no network: the start of a name, the model's
# type, and what is special about it.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "facebook/opt-": ("opt", {"do_layer_norm_before": True, "word_embed_proj_dim": 32}),
    "FacebookAI/roberta-": ("roberta", {"layer_norm_eps": 1e-5}),
    "google/gemma-3-1b": ("gemma3_text", {"num_key_value_heads": 1}),
    "Qwen/Qwen3-": ("qwen3", {"num_key_value_heads": 2}),
    "meta-llama/Llama-3": ("llama", {"num_key_value_heads": 2}),
    "HuggingFaceTB/SmolLM2-": ("llama", {"num_key_value_heads": 2}),
    "answerdotai/ModernBERT-": ("modernbert", {}),
    "google/gemma-2b": ("gemma", {"num_key_value_heads": 1}),
    "meta-llama/Llama-2-": ("llama", {}),
}


def dry_run(recipe: Recipe, out: str | Path | None = None) -> Result:
    """Train the recipe for two optimizer steps on stand-ins for whatever is large or not on this machine.

    The model is tiny and random; data that is not in local files is made up, in the hub's column names. Everything
    else is the recipe's own: method, targets, budget, schedule, precision, evaluation, what is saved.

    Args:
        recipe: The recipe to try.
        out: Keeps the run folder; none throws it away.

    Raises:
        ValueError: What training the recipe would raise, but for what its real model and data alone can show.
    """
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        return train(stand_in(recipe, room), out or room / "run")


def stand_in(recipe: Recipe, room: Path) -> Recipe:
    """Write a tiny model, and data where there is none, into ``room``; return the recipe on them, cut to two steps.

    What of the method is tied to the length of training or the number of blocks is cut too: see ``_short``.
    """
    with quiet():
        _write_model(recipe, room / "model")
    files = {"train_file": recipe.data.train_file, "data_dir": recipe.data.data_dir}
    local = any(path is not None and path.exists() for path in files.values()) or recipe.data.task == "docstrings"
    local = local or (recipe.data.dataset is not None and Path(recipe.data.dataset).is_dir())
    cut: dict[str, Any] = {
        "max_train_samples": _rows(recipe),
        "max_eval_samples": ROWS,
        "max_length": CHAT_LENGTH if recipe.data.task == CHAT else LENGTH,
        "block_size": None,
        "allow_cut_answers": True,
    }
    if not local:
        cut |= {"train_file": None, "validation_file": None, "test_file": None, "text_columns": ()}
        cut |= {"dataset": None, "config": None, "splits": {}, "validation_fraction": 0}
        cut["data_dir"] = _write_data(TASKS[_named(recipe)], room / "data", _rows(recipe))
    training: dict[str, Any] = {
        "epochs": 1.0,
        "max_steps": STEPS,
        "batch_size": 1 if recipe.data.packing else 4,
        "eval_batch_size": 8,
        "accumulation": 1,
    }
    training |= {"report_to": [], "logging_steps": 1}
    content = recipe.to_dict()
    content["model"] |= {"name": str(room / "model"), "revision": None}
    content["data"] |= cut
    content["method"] |= _short(recipe.method)
    if _edits(recipe.method):
        training["warmup"] = 0  # the one step before the edits must move something
    content["training"] |= training | ({"every": 1} if recipe.training.evaluate == "steps" else {})
    return Recipe.model_validate(content)


def _rows(recipe: Recipe) -> int:
    return PACKED_ROWS if recipe.data.packing else ROWS


def _short(method: Method) -> dict[str, Any]:
    """Return the options that must change where there are two steps and few, narrow blocks."""
    options = method.options
    narrow = {name: most for name, most in MOST.items() if isinstance(options.get(name), int) and options[name] > most}
    return narrow | _brief(method, options)


def _brief(method: Method, options: dict[str, Any]) -> dict[str, Any]:
    if _edits(method):  # both are due after the first step: the merge takes two blocks, the injection the third
        return {"edit_unit": "steps", **{kind: 1 for kind in EDITS if options.get(kind)}}
    if options.get("granularity") == "rank":
        budget = options.get("budget")
        return {"budget": min(budget, RANK_BUDGET) if isinstance(budget, int) else RANK_BUDGET}
    if method.name == "adalora":
        return {"tinit": 0, "tfinal": 0, "deltaT": 1}
    if method.name == "adapterdrop":
        return {"first_block": min(options.get("first_block", 0), TINY["num_hidden_layers"] - 1)}
    return {}


def _edits(method: Method) -> bool:
    return method.name == "lor2c" and any(method.options.get(kind) for kind in EDITS)


def _named(recipe: Recipe) -> str:
    if recipe.data.task is None:
        where = recipe.data.train_file or recipe.data.dataset
        raise ValueError(f"{where} is not on this machine, and what its columns hold can't be guessed: no dry run")
    return recipe.data.task


def tiny_config(spec: ModelSpec, **more: Any) -> PretrainedConfig:
    """Return a config of the model's family, a few thousand parameters large.

    Args:
        spec: The model.
        more: Fields that shall be otherwise than in ``TINY``.

    Raises:
        ValueError: The model's own config can't be had and its name is not a known family's.
    """
    kind, special = _family(spec)
    present = AutoConfig.for_model(kind).to_dict()
    shape = {key: value for key, value in TINY.items() if key in present}
    return AutoConfig.for_model(kind, **{**shape, **special, **more})


def _family(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Return the model's type and what of its config a stand-in must keep."""
    for start, family in FAMILIES.items():
        if spec.name.startswith(start):
            return family
    config = load_config(spec)
    own = config.to_dict()
    special: dict[str, Any] = {key: own[key] for key in ("do_layer_norm_before", "layer_norm_eps") if key in own}
    groups, heads = own.get("num_key_value_heads"), own.get("num_attention_heads")
    if groups and groups != heads:
        special["num_key_value_heads"] = min(groups, 2)
    if own.get("word_embed_proj_dim"):
        special["word_embed_proj_dim"] = 32 if own["word_embed_proj_dim"] == own["hidden_size"] else 16
    return config.model_type, special


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word tokenizer over the made-up words."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHATML,
    )


def _write_model(recipe: Recipe, folder: Path) -> None:
    more: dict[str, Any] = {"num_hidden_layers": 3} if _edits(recipe.method) else {}
    if recipe.data.task == CHAT:
        more["max_position_embeddings"] = CHAT_LENGTH + 8
    config = tiny_config(recipe.model, **more)
    causal = recipe.data.task is not None and TASKS[recipe.data.task].kind == "causal"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (AutoModelForCausalLM if causal else WITH_HEAD.get(config.model_type, AutoModel)).from_config(config)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    if recipe.data.task == CHAT:
        tokenizer.chat_template = _chat_template(recipe.model, config.model_type)
    tokenizer.save_pretrained(folder)


def _chat_template(spec: ModelSpec, kind: str) -> Any:
    """Return the template of a model on this machine, else a stand-in that marks answers where the family's does."""
    if Path(spec.name).is_dir():
        return load_tokenizer(spec).chat_template
    return CHATML if kind in MARKED else UNMARKED


def _write_data(task: Task, folder: Path, count: int) -> Path:
    """Write every split of a task with made-up sentences and every label in turn, more rows than are read."""
    home = folder / task.name
    home.mkdir(parents=True)
    if task.name == "text":
        for split in ("train", "validation"):
            (home / f"{split}.txt").write_text("\n".join(_sentence(n, 12) for n in range(240)), encoding="utf-8")
        return folder
    for split in ("train", "validation", *task.extra):
        name = task.splits.get(split, split)
        rows = [json.dumps(_row(task, n)) for n in range(count * 2)]
        (home / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def _sentence(number: int, length: int) -> str:
    return " ".join(WORDS[(number * 7 + k * 3) % len(WORDS)] for k in range(length))


def _row(task: Task, number: int) -> dict[str, Any]:
    if task.name == CHAT:
        turns = [("user", 4), ("assistant", 5), ("user", 3), ("assistant", 2 + number % 4)]
        return {"messages": [{"role": role, "content": _sentence(number + k, k)} for role, k in turns]}
    row: dict[str, Any] = {column: _sentence(number + k, 5) for k, column in enumerate(task.columns)}
    if "question" in row and task.name == "copa":
        row["question"] = ("cause", "effect")[number % 2]
    if task.label is not None:
        classes = max(len(task.label_names), 1)
        row[task.label] = float(number % 6) if task.label_range else number % classes
    return {**row, "idx": number}
