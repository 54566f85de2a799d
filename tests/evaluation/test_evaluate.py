from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwise.evaluation.evaluate import evaluate_run, evaluation_table, read_tasks
from rankwise.evaluation.harness import ALLOW_CODE, SUITES, Asked
from rankwise.runs.building.models import load_base, load_tokenizer
from rankwise.runs.building.quantised import prepare
from rankwise.runs.dryrun import WORDS, stand_in, tiny_tokenizer
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.training.train import train

TARGETS = ["q_proj", "v_proj"]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 4, "lora_alpha": 32, "target_modules": TARGETS},
    "heterolora": {
        "name": "heterolora",
        "r": 4,
        "lora_alpha": 32,
        "target_modules": TARGETS,
        "mode": "dynamic",
        "budget": 0.5,
    },
    "lor2c": {"name": "lor2c", "r": 4, "lora_alpha": 32, "merges": 1, "injections": 1},
    "quantised": {"name": "lora", "r": 4, "lora_alpha": 32, "target_modules": TARGETS},
}
QUESTIONS = [" ".join(WORDS[(7 * n + k) % len(WORDS)] for k in range(4)) for n in range(24)]
PAIRS = [(WORDS[(5 * n) % len(WORDS)], WORDS[(11 * n + 3) % len(WORDS)]) for n in range(24)]
CHOICE = {
    "task": "own_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITE = {
    "task": "own_words",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"max_gen_toks": 3, "do_sample": False, "until": ["\n\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
Row = dict[str, Any]
WriteTask = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a tiny LLaMA on made-up instructions, far enough from where it began that its answers differ."""
    folders: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in folders:
            home = tmp_path_factory.mktemp(method)
            bits = {"load_in": "4bit"} if method == "quantised" else {}
            given = {"model": {"name": "meta-llama/Llama-2-7b-hf", **bits}, "method": METHODS[method]}
            small = stand_in(parse_recipe({**given, "data": {"task": "instruction", "train_file": "none"}}), home)
            tokenizer = tiny_tokenizer()
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A", special_tokens=[("[CLS]", 2)]
            )
            tokenizer.save_pretrained(small.model.name)  # as LLaMA's: it opens a text and does not close it
            shape = {"max_steps": 8, "learning_rate": 0.05, "evaluate": "never", "report_to": []}
            folders[method] = home / "run"
            train(parse_recipe(merged(small.to_dict(), {"training": shape, "select": "last"})), folders[method])
        return folders[method]

    return run


@pytest.fixture
def run(trained: Callable[[str], Path]) -> Iterator[Path]:
    """A LoRA run; what a test writes beside it goes when the test ends."""
    folder = trained("lora")
    yield folder
    for file in folder.glob("evaluation*"):
        file.unlink()


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """Writes a task file with its rows beside it, in a folder that is not the working one."""

    def write(definition: Row, rows: Sequence[Row], **changes: Any) -> Path:
        content = {**definition, **changes}
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        rows_file = f"{content['task']}.jsonl"
        (folder / rows_file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"data_files": {"test": rows_file}, "cache_dir": str(tmp_path / "cache")}
        content |= {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "metadata": {"version": 2.0}}
        file = folder / f"{content['task']}.yaml"
        file.write_text(json.dumps(content).replace('"!function own.seen"', "!function own.seen"))
        return file

    return write


def model_of(run: Path, *, base: bool) -> Any:
    config = (run / "config.yaml").read_text()
    name = next(line.split(": ", 1)[1] for line in config.splitlines() if line.strip().startswith("name: "))
    if not (run / "adapter" / "adapter_config.json").is_file() and not base:
        return AutoModelForCausalLM.from_pretrained(run / "adapter").eval()
    model = AutoModelForCausalLM.from_pretrained(name)
    return (model if base else PeftModel.from_pretrained(model, str(run / "adapter"))).eval()


@torch.no_grad()
def prefers(model: Any, tokenizer: Any, question: str, words: tuple[str, str]) -> int:
    """The choice with the larger log-probability after the question."""
    ids = tokenizer(question, return_tensors="pt")["input_ids"]
    scores: Tensor = model(input_ids=ids).logits[0, -1]
    return int(scores[tokenizer.convert_tokens_to_ids(words[1])] > scores[tokenizer.convert_tokens_to_ids(words[0])])


@torch.no_grad()
def continues(model: Any, tokenizer: Any, question: str, length: int = 3) -> str:
    """What the model writes when each word is the likeliest, without a cache."""
    ids = tokenizer(question, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(length):
        best = model(input_ids=ids).logits[:, -1:].argmax(-1)
        if best.item() == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, best], dim=1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def rows_of(run: Path) -> list[Row]:
    """Rows whose right answers are the ones of the trained model."""
    with quiet():
        model, tokenizer = model_of(run, base=False), AutoTokenizer.from_pretrained(run / "adapter")
    return [
        {
            "question": question,
            "choices": list(pair),
            "label": prefers(model, tokenizer, question, pair),
            "answer": continues(model, tokenizer, question),
        }
        for question, pair in zip(QUESTIONS, PAIRS, strict=True)
    ]


@pytest.mark.parametrize("method", ["full", "lora", "heterolora", "lor2c"])
def test_the_trained_model_is_what_is_evaluated_and_the_base_is_not(
    trained: Callable[[str], Path], write_task: WriteTask, tmp_path: Path, method: str
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    run = trained(method)
    rows = rows_of(run)
    asked = read_tasks(files=[write_task(CHOICE, rows), write_task(WRITE, rows)])
    found = {
        base: evaluate_run(run, asked, base=base, out=tmp_path / f"{base}.json")[0]["results"] for base in (False, True)
    }
    assert found[False]["own_choice"]["metrics"]["acc"] == 1.0
    assert found[False]["own_words"]["metrics"]["exact_match"] == 1.0
    with quiet():
        model, tokenizer = model_of(run, base=True), AutoTokenizer.from_pretrained(run / "adapter")
    chosen = [prefers(model, tokenizer, row["question"], tuple(row["choices"])) == row["label"] for row in rows]
    written = [continues(model, tokenizer, row["question"]) == row["answer"] for row in rows]
    assert found[True]["own_choice"]["metrics"]["acc"] == pytest.approx(sum(chosen) / len(rows))
    assert found[True]["own_words"]["metrics"]["exact_match"] == pytest.approx(sum(written) / len(rows))
    assert not all(chosen)
    assert not all(written)


def test_a_quantised_run_is_evaluated_as_it_was_trained(
    trained: Callable[[str], Path], write_task: WriteTask, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    pytest.importorskip("bitsandbytes", reason="comes with the extra 'quantised'")
    run = trained("quantised")
    recipe, arguments = RunFolder(run).recipe(), RunFolder(run).figures()["model_arguments"]
    with quiet():
        base = prepare(load_base(recipe, task_type="CAUSAL_LM", arguments=arguments), recipe)
        model, tokenizer = PeftModel.from_pretrained(base, str(run / "adapter")).eval(), load_tokenizer(recipe.model)
    rows = [
        {"question": question, "choices": list(pair), "label": prefers(model, tokenizer, question, pair)}
        for question, pair in zip(QUESTIONS, PAIRS, strict=True)
    ]
    found, _ = evaluate_run(run, read_tasks(files=[write_task(CHOICE, rows)]), out=tmp_path / "figures.json")
    assert found["results"]["own_choice"]["metrics"]["acc"] == 1.0


def test_the_file_says_how_its_figures_came_about(run: Path, write_task: WriteTask) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    asked = read_tasks(files=[write_task(CHOICE, rows_of(run))], shots=[2])
    figures, file = evaluate_run(run, asked, limit=10, batch_size=3, command="rankwise evaluate x")
    assert file == run / "evaluation.json"
    assert json.loads(file.read_text()) == figures
    expected = {"method": "lora", "evaluated": "adapter", "checkpoint": "last", "limit": 10, "batch_size": 3, "seed": 0}
    assert {key: figures[key] for key in expected} == expected
    assert figures["command"] == "rankwise evaluate x"
    assert {"rankwise", "lm_eval", "torch", "peft"} <= figures["versions"].keys()
    result = figures["results"]["own_choice"]
    assert (result["shots"], result["examples"], result["version"]) == (2, 10, {"own_choice": 2.0})
    assert result["metrics"].keys() == {"acc", "acc_stderr"}
    assert evaluation_table(figures).row_count == 1
    before = file.read_bytes()
    with pytest.raises(ValueError, match="exists already: say --overwrite"):
        evaluate_run(run, asked)
    assert file.read_bytes() == before
    evaluate_run(run, asked, limit=2, overwrite=True)
    assert json.loads(file.read_text())["limit"] == 2
    evaluate_run(run, asked, base=True)
    assert json.loads((run / "evaluation-base.json").read_text())["evaluated"] == "base"


def test_a_group_has_its_own_figure_and_those_of_its_tasks(
    run: Path, write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    rows = rows_of(run)
    wrong = [row | {"label": 1 - row["label"]} for row in rows[:8]]
    parts = [write_task(CHOICE, rows, task="right"), write_task(CHOICE, wrong, task="wrong")]
    both, file = evaluate_run(run, read_tasks(files=parts), out=tmp_path / "both.json")
    assert file == tmp_path / "both.json"
    assert {name: found["metrics"]["acc"] for name, found in both["results"].items()} == {"right": 1.0, "wrong": 0.0}
    assert evaluation_table(both).row_count == 2
    average = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group = {"group": "all", "task": ["right", "wrong"], "aggregate_metric_list": average}
    parts[0].with_name("all.yaml").write_text(json.dumps(group))
    tasks = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=parts[0].parent, include_defaults=False)
    own = "rankwise.evaluation.harness._manager"
    monkeypatch.setattr(own, lambda own: manager)  # the groups of the harness itself need a network
    monkeypatch.chdir(parts[0].parent)
    found = evaluate_run(run, read_tasks(tasks=["all"], shots=[1]))[0]["results"]["all"]
    assert (found["shots"], found["examples"]) == (1, 32)
    accuracy = {name: metrics["acc"] for name, metrics in found["tasks"].items()}
    assert found["metrics"]["acc"] == pytest.approx((24 * accuracy["right"] + 8 * accuracy["wrong"]) / 32)
    assert evaluation_table({**both, "results": {"all": found}}).row_count == 1
    with pytest.raises(ValueError, match="did you mean 'right'"):
        evaluate_run(run, [Asked("rigt")], overwrite=True)


def test_generated_code_runs_only_where_that_is_allowed(
    run: Path, write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    metric = {"metric": "!function own.seen", "aggregation": "mean", "higher_is_better": True}
    file = write_task(WRITE, rows_of(run)[:2], task="own_code", unsafe_code=True, metric_list=[metric])
    (file.parent / "own.py").write_text(
        f"import os\ndef seen(references, predictions): return float(os.environ.get({ALLOW_CODE!r}) == '1')\n"
    )
    monkeypatch.setenv(ALLOW_CODE, "before")
    asked = read_tasks(files=[file])
    with pytest.raises(ValueError, match=r"'own_code' runs Python code that the model writes.*--allow-code-execution"):
        evaluate_run(run, asked)
    figures, _ = evaluate_run(run, asked, allow_code_execution=True)
    assert figures["results"]["own_code"]["metrics"]["seen"] == 1.0
    assert os.environ[ALLOW_CODE] == "before"
    harmless = write_task(WRITE, rows_of(run)[:2], task="own_words", metric_list=[metric])
    figures, _ = evaluate_run(run, read_tasks(files=[harmless]), overwrite=True)
    assert figures["results"]["own_words"]["metrics"]["seen"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "allowed", "words"),
    [
        ([Asked("humaneval")], False, "'humaneval' runs Python code that the model writes"),
        ([Asked(name, shots) for name, shots in SUITES["paper"].items()], False, "'humaneval' runs Python code"),
        ([Asked("humaneval_64_instruct")], False, "say --allow-code-execution"),
        ([Asked("hellaswagg")], False, "task='hellaswagg' is no task of the harness, did you mean 'hellaswag'?"),
        ([Asked("mmlu", 5)], False, r"'mmlu' needs data that is not on this machine.*with a network.*--task-file"),
        ([Asked("humaneval")], True, "'humaneval' needs data that is not on this machine"),
    ],
)
def test_tasks_of_the_harness(run: Path, asked: list[Asked], allowed: bool, words: str) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    with pytest.raises(ValueError, match=words):
        evaluate_run(run, asked, allow_code_execution=allowed)
    assert not (run / "evaluation.json").exists()
    assert ALLOW_CODE not in os.environ


def test_what_is_wrong_with_a_task_file_is_said(run: Path, write_task: WriteTask, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    rows = rows_of(run)
    good = write_task(CHOICE, rows)
    (tmp_path / "broken.yaml").write_text("task: [\n")
    (tmp_path / "empty.yaml").write_text("dataset_path: json\n")
    zero = write_task(CHOICE, rows, task="zero", num_fewshot=0)
    lost = write_task(CHOICE, rows, task="lost")
    lost.with_suffix(".jsonl").unlink()
    odd = write_task(CHOICE, rows, task="odd", output_type="guess")
    (tmp_path / "group.yaml").write_text("group: all\ntask: [a, b]\n")
    mistakes: list[tuple[list[Asked], str]] = [
        ([Asked(good.with_name("own_choise.yaml"))], "no task file .* did you mean 'own_choice.yaml'"),
        ([Asked(tmp_path / "broken.yaml")], "is not YAML"),
        ([Asked(tmp_path / "empty.yaml")], "describes no task"),
        ([Asked(tmp_path / "group.yaml")], "a group can't be given as a file"),
        ([Asked(zero, 3)], "'zero' is defined with 0 shots, 3 were asked for"),
        ([Asked(good), Asked(good)], "'own_choice' is asked for twice"),
        ([Asked(lost)], r"the data of .*lost\.yaml can't be read"),
        ([Asked(odd)], r"odd\.yaml is not a task the harness can load"),
    ]
    for asked, words in mistakes:
        with pytest.raises(ValueError, match=words):
            evaluate_run(run, asked)
    assert not (run / "evaluation.json").exists()


def test_only_a_finished_causal_run_is_evaluated(run: Path, tmp_path: Path) -> None:
    asked = [Asked("drop", 3)]
    with pytest.raises(FileNotFoundError, match=r"holds no run: config\.yaml is missing"):
        evaluate_run(tmp_path, asked)
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(ValueError, match="is not finished"):
        evaluate_run(tmp_path, asked)
    metrics = json.loads((run / "metrics.json").read_text()) | {"task_type": "SEQ_CLS", "task": "rte"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"trained a classifier \(task 'rte'\)"):
        evaluate_run(tmp_path, asked)


def test_a_tokenizer_that_ends_every_text_is_refused(run: Path, write_task: WriteTask, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    file = write_task(CHOICE, rows_of(run))
    kept = (run / "adapter" / "tokenizer.json").read_bytes()
    tiny_tokenizer().save_pretrained(run / "adapter")
    try:
        with pytest.raises(ValueError, match="puts its end of sequence after every text"):
            evaluate_run(run, read_tasks(files=[file]))
    finally:
        (run / "adapter" / "tokenizer.json").write_bytes(kept)


def test_without_the_harness_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rankwise\[eval\]'"):
        evaluate_run(run, [Asked("drop")])


def test_tasks_and_shots_are_paired() -> None:
    file = Path("own.yaml")
    assert read_tasks(suite="paper") == [
        Asked("mmlu", 5),
        Asked("bbh_fewshot", 3),
        Asked("drop", 3),
        Asked("humaneval", 0),
    ]
    assert read_tasks(tasks=["a"], files=[file]) == [Asked("a"), Asked(file)]
    assert read_tasks(tasks=["a"], files=[file], shots=[4]) == [Asked("a", 4), Asked(file, 4)]
    assert read_tasks(tasks=["a"], files=[file], shots=[4, 0]) == [Asked("a", 4), Asked(file, 0)]
    assert read_tasks(suite="paper", tasks=["a"], shots=[1])[3:] == [Asked("humaneval", 0), Asked("a", 1)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"nothing to evaluate on: give --task, --task-file or --suite \(paper\)"),
        ({"suite": "papre"}, "did you mean 'paper'"),
        ({"tasks": ["a", "b"], "shots": [1, 2, 3]}, "3 --shots for 2"),
        ({"suite": "paper", "shots": [1]}, r"1 --shots for 0.*a suite has its own"),
        ({"tasks": ["a"], "shots": [-1]}, "0 is the least"),
    ],
)
def test_tasks_and_shots_that_do_not_match(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_tasks(**given)
