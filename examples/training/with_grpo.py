"""TRL's GRPOTrainer: the reward here is for words that start with a b."""

from __future__ import annotations

import random
import tempfile
from typing import Any

from _tiny import language_model, report, sentence, tokenizer
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import rankwise


def reward(completions: list[str], **_: Any) -> list[float]:
    """Count the words that start with a b."""
    return [float(sum(word.startswith("b") for word in text.split())) for text in completions]


def main() -> None:
    draw = random.Random(0)
    config = rankwise.HeteroLoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], mode="dynamic", budget=0.5, search_every=2
    )
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=language_model(),
            reward_funcs=reward,
            args=GRPOConfig(
                out,
                max_steps=4,
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=6,
                report_to=[],
                use_cpu=True,
                bf16=False,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"prompt": [sentence(draw) for _ in range(16)]}),
            processing_class=tokenizer(),
            peft_config=config,
        )
        trainer.train()
    report(trainer.model)


if __name__ == "__main__":
    main()
