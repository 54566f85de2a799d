"""Recipes, data files and config values as accidents make them, and what reading them gives."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import yaml
from hypothesis import strategies as st
from peft import get_peft_model
from tests.damage import GARBAGE, VALUES, Draw, check_words, command_outcome, in_time, places
from tests.models import tiny_bert
from transformers import PreTrainedTokenizerBase

import rankwise
from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.recipe import Recipe, load_recipe, parse_recipe
from rankwise.tasks import DataSpec, load_task

DEEP: list[Any] = []
for _ in range(50):
    DEEP = [DEEP]
ODD: list[Any] = [*VALUES, DEEP, 1e308, -(10**400), 0.1, 2, "1e999", "0x10", "\U0001f600", "\x1b[31m", "[/b]", "\ud800"]
ODD += [
    {"a": {"b": 1}},
    {1: 2},
    {None: None},
    [None],
    [1, "a"],
    ["query", 3],
    (1, 2),
    b"x",
    "a" * 10_000,
    float("-inf"),
]

TEXTS = ["one word", "and two", "a third text", "the last of them"]
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "classification": lambda n: {"text": TEXTS[n % 4], "label": ("yes", "no")[n % 2]},
    "regression": lambda n: {"text": TEXTS[n % 4], "label": n / 7},
    "mrpc": lambda n: {"sentence1": TEXTS[n % 4], "sentence2": TEXTS[n % 3], "label": n % 2},
    "text": lambda n: {"text": " ".join(TEXTS)},
    "instruction": lambda n: {"instruction": TEXTS[n % 4], "input": "", "output": TEXTS[n % 3]},
    "chat": lambda n: {
        "messages": [{"role": "user", "content": TEXTS[n % 4]}, {"role": "assistant", "content": TEXTS[n % 3]}]
    },
}
OWN: dict[str, Any] = {"text_columns": ["text"], "label_column": "label"}
FORMATS = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".jsonl.gz", ".csv.gz", ".json.gz", ".txt.gz"]
COLUMNS: list[Callable[[int], pa.Array]] = [
    lambda n: pa.nulls(n),
    lambda n: pa.array([None] * n, pa.string()),
    lambda n: pa.array(range(n), pa.int64()),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([1e308, float("inf")] * n)[:n],
    lambda n: pa.array([0.5] * n, pa.float32()).cast(pa.float16()),
    lambda n: pa.array([k % 2 == 0 for k in range(n)]),
    lambda n: pa.array([b"\xff\x00"] * n, pa.binary()),
    lambda n: pa.array([b"\xff"] * n, pa.large_binary()),
    lambda n: pa.array(["a", "b"] * n, pa.large_string())[:n],
    lambda n: pa.array(["a", "b"] * n, pa.string_view())[:n],
    lambda n: pa.array(["a", "b"] * n)[:n].dictionary_encode(),
    lambda n: pa.array([[1], []] * n, pa.list_(pa.int64()))[:n],
    lambda n: pa.array([["a"]] * n, pa.large_list(pa.string())),
    lambda n: pa.array([{"x": 1}] * n),
    lambda n: pa.array([{"role": "assistant", "content": None}] * n),
    lambda n: pa.array([[{"role": "assistant", "content": 3}]] * n),
    lambda n: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    lambda n: pa.array(range(n), pa.timestamp("us")),
    lambda n: pa.array(range(n), pa.duration("s")),
    lambda n: pa.array(range(n), pa.time64("us")),
    lambda n: pa.array(range(n), pa.int32()).cast(pa.date32()),
    lambda n: pa.array(range(n), pa.int64()).cast(pa.decimal128(38, 2)),
    lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
]
USUAL: list[Any] = [None, True, False, 0, 1, 2, 8, 0.5, 1.0, [], ["query"], ["res1", "layer"], [0, 1], {"query": 2}]
USUAL += [{"layers.0.res1": 1}, "static", "off", "rank", "probe", "snip", "paths", "reset", "steps", "highest", "all"]
FIELDS_OF_PEFT = ["r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"]
FIELDS_OF_PEFT += ["layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save", "bias", "use_rslora"]
FIELDS_OF_PEFT += ["fan_in_fan_out", "init_lora_weights"]
STARTS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "heterolora": (
        rankwise.HeteroLoraConfig,
        {"r": 4, "target_modules": ["query", "value"], "mode": "dynamic", "shortcuts": ["res1"]},
    ),
    "lor2c": (rankwise.Lor2cConfig, {"r": 4, "merges": 1, "injections": 1}),
}


def small_recipe(room: Path) -> Recipe:
    """Return a recipe with many kinds of values, on a stand-in of the model that it writes."""
    content: dict[str, Any] = {
        "model": {"name": "FacebookAI/roberta-base"},
        "data": {"task": "mrpc", "labels": None},
        "method": {**STARTS["heterolora"][1], "name": "heterolora", "rank_pattern": {"query": 2}, "budget": 0.5},
        "training": {"extra": {"adam_beta2": 0.9}, "prefix_cache": {"ram_mb": 1}, "report_to": ["tensorboard"]},
    }
    return stand_in(parse_recipe(content), room)


BUILT = 1000  # ranks above are fine, and would fill the memory


def damage_recipe(draw: Draw, content: dict[str, Any], file: Path) -> str:
    """Write a recipe with something wrong in it, and say what."""
    if draw(st.integers(0, 3)) == 0:
        raw = yaml.safe_dump(content, sort_keys=False).encode()
        file.write_bytes(_damaged_bytes(draw, raw))
        return repr(file.read_bytes()[:60])
    told = []
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(list(places(content))))
        value = copy.deepcopy(draw(st.sampled_from([*ODD, "DELETE", "ADD"])))
        if value == "DELETE":
            del container[key]
        elif value == "ADD" and isinstance(container, dict):
            added = draw(st.sampled_from(["no_such_key", "base", "extra", "3", ""]))
            container[added] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            container[key] = value
        told.append(f"{key} -> {value!r:.60}")
    file.write_bytes(yaml.dump(content, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass"))
    return ", ".join(told)


def recipe_outcome(file: Path, *, plan: bool = False) -> str:
    """Read a recipe and make its method's config, and say ``read`` or ``refused``; raise what is neither.

    Args:
        file: The recipe.
        plan: Go on with ``rankwise plan`` where it can be read.
    """
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe = load_recipe(file)
            assert parse_recipe(yaml.safe_load(recipe.to_yaml())).to_dict() == recipe.to_dict()
            recipe.method.build("SEQ_CLS", seed=recipe.seed)
    except (ValueError, FileNotFoundError) as error:
        check_words(str(error))
        return "refused"
    if plan:
        command_outcome("plan", str(file))
    return "read"


def damage_data(draw: Draw, folder: Path) -> tuple[str, DataSpec]:
    """Write a file of data with something wrong in it, and say what; the spec that reads it comes too."""
    kind, ending = draw(st.sampled_from(sorted(ROWS))), draw(st.sampled_from(FORMATS))
    rows = [ROWS[kind](number) for number in range(12)]
    file = folder / f"rows{ending}"
    way = draw(st.sampled_from(["bytes", "cells", "columns", "columns"]))
    if way == "bytes":
        write(rows, file)
        raw = file.read_bytes()
        if file.suffix == ".gz" and draw(st.booleans()):
            file.write_bytes(gzip.compress(_damaged_bytes(draw, gzip.decompress(raw))))
        else:
            file.write_bytes(_damaged_bytes(draw, raw))
        told = way
    elif way == "cells":
        told = _damage_cells(draw, rows)
        write(rows, file)
    else:
        told = _damage_columns(draw, rows, file)
    own = kind in ("classification", "regression")
    fields: dict[str, Any] = {**OWN, "kind": draw(st.sampled_from([None, kind]))} if own else {"task": kind}
    if draw(st.booleans()):
        fields["missing"] = draw(st.sampled_from(["drop", "keep"]))
    if draw(st.integers(0, 3)) == 0:
        fields["dev_fraction"] = 0
    return f"{file.name}, {kind}, {told}, {fields}", DataSpec(train_file=file, **fields)


def _damage_cells(draw: Draw, rows: list[dict[str, Any]]) -> str:
    told = []
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(rows))))
        value = draw(st.sampled_from([each for each in ODD if not isinstance(each, bytes | tuple)]))
        container[key] = copy.deepcopy(value)
        told.append(f"{key} -> {value!r:.40}")
    return ", ".join(told)


def _damage_columns(draw: Draw, rows: list[dict[str, Any]], file: Path) -> str:
    """Give a column another type, or leave one out; only Parquet can say such types, so it is what is written."""
    names = list(rows[0])
    name = draw(st.sampled_from(names))
    if draw(st.integers(0, 3)) == 0:
        other = draw(st.sampled_from(["no", "", "Label", *names]))
        for row in rows:
            row[other] = row.pop(name)
        write(rows, file)
        return f"{name} is {other!r}"
    table = pa.Table.from_pylist(rows)
    made = draw(st.sampled_from(COLUMNS))(len(rows))
    table = table.set_column(names.index(name), name, made)
    plain = file.name.endswith((".csv", ".csv.gz")) and not pa.types.is_nested(made.type)
    target = file if file.suffix == ".parquet" else file.with_name("rows.parquet")
    pa.parquet.write_table(table, target)
    if target != file:
        file.write_bytes(target.read_bytes())  # Parquet under another ending
        if not plain or draw(st.booleans()):
            return f"Parquet in {file.suffix}"
        _write_csv(table, file)
    return f"{name} is {made.type}"


def _write_csv(table: pa.Table, file: Path) -> None:
    try:
        pa.csv.write_csv(table, file)
    except pa.ArrowException:  # a type that CSV does not have
        file.write_bytes(b"text,label\n")
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(file.read_bytes()))


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows in the format that the file's name says."""
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        try:
            pa.parquet.write_table(pa.Table.from_pylist(rows), file)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):  # what Parquet can't hold
            file.write_bytes(b"PAR1" + bytes(20) + b"PAR1")
        return
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows)
    elif kind == "txt":
        text = "\n".join(map(str, rows))
    else:
        mark = "," if kind == "csv" else "\t"
        cells = [row if isinstance(row, dict) else {"": row} for row in rows]
        lines = [list(cells[-1]), *(list(row.values()) for row in cells)]
        text = "".join(mark.join(str(value) for value in line) + "\n" for line in lines)
    raw = text.encode("utf-8", "surrogatepass")
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)


def _damaged_bytes(draw: Draw, raw: bytes) -> bytes:
    kind = draw(st.sampled_from(["flip", "truncate", "garbage", "repeat", "insert"]))
    at = draw(st.integers(0, max(len(raw) - 1, 0)))
    if kind == "flip":
        return raw[:at] + bytes([raw[at] ^ (1 << draw(st.integers(0, 7)))]) + raw[at + 1 :]
    if kind == "truncate":
        return raw[:at]
    if kind == "garbage":
        garbage: bytes = draw(st.sampled_from(GARBAGE))
        return garbage
    extra: bytes = raw if kind == "repeat" else draw(st.binary(min_size=1, max_size=6))
    return raw[:at] + extra + raw[at:]


def data_outcome(spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> str:
    """Load data, and say ``read`` or ``refused``; raise what is neither."""
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = load_task(spec, tokenizer)
            assert len(data.train)
            data.collator([data.train[0]])
            data.trainer_arguments()
    except ValueError as error:
        check_words(str(error))
        return "refused"
    return "read"


def odd_fields(draw: Draw, name: str) -> dict[str, Any]:
    """Return fields of a config of which one or two have values that they may not be made for."""
    made, start = STARTS[name]
    own = [each for each in made.__dataclass_fields__ if each not in _inherited()]
    fields = draw(st.lists(st.sampled_from([*own, *FIELDS_OF_PEFT, "seed"]), min_size=1, max_size=2, unique=True))
    values = (
        st.sampled_from(USUAL)
        | st.sampled_from(USUAL)
        | st.sampled_from(ODD)
        | st.integers()
        | st.floats()
        | st.text(max_size=4)
    )
    return {**start, **{field: copy.deepcopy(draw(values)) for field in fields}}


def _inherited() -> set[str]:
    return {field.name for field in dataclasses.fields(rankwise.HeteroLoraConfig.__mro__[1])}


def config_outcome(name: str, fields: dict[str, Any], *, build: bool = False) -> str:
    """Make a config, and say ``valid`` or ``refused``; a refusal that names none of the odd fields is raised.

    Args:
        name: Of ``STARTS``.
        fields: The config's.
        build: Put a valid one on a model.
    """
    made, start = STARTS[name]
    odd = [field for field, value in fields.items() if field not in start or start[field] is not value]
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = made(**fields)
            config.policy()
            ranks = [config.r, config.linear_paths().r, config.block_paths().r, *config.rank_pattern.values()]
            if build and max(ranks) < BUILT:
                get_peft_model(tiny_bert(2), config)
    except (ValueError, TypeError) as error:
        if not any(field in str(error) for field in odd):
            raise AssertionError(f"names none of {', '.join(odd)}: {type(error).__name__}: {error}") from error
        return "refused"
    return "valid"
