"""TRL's SFTTrainer: the config goes in as ``peft_config``, and ranks are chosen before the first step."""

from __future__ import annotations

import random
import tempfile

from _tiny import language_model, report, sentence, tokenizer
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import rankwise


def main() -> None:
    draw = random.Random(0)
    rows = [
        {"messages": [{"role": "user", "content": sentence(draw)}, {"role": "assistant", "content": sentence(draw)}]}
        for _ in range(32)
    ]
    config = rankwise.HeteroLoraConfig(task_type="CAUSAL_LM", budget=600)
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=language_model(),
            args=SFTConfig(
                out, max_steps=6, report_to=[], use_cpu=True, bf16=False, assistant_only_loss=True, save_strategy="no"
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            peft_config=config,
        )
        trainer.train()
    report(trainer.model)


if __name__ == "__main__":
    main()
