"""TRL's DPOTrainer: the reference is the same model with the adapter switched off."""

from __future__ import annotations

import random
import tempfile

from _tiny import language_model, report, sentence, tokenizer
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

import rankwise


def main() -> None:
    draw = random.Random(0)
    rows = [{"prompt": sentence(draw), "chosen": sentence(draw, 4), "rejected": sentence(draw, 4)} for _ in range(24)]
    config = rankwise.HeteroLoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], mode="dynamic", budget=0.5, search_every=3
    )
    with tempfile.TemporaryDirectory() as out:
        trainer = DPOTrainer(
            model=language_model(),
            args=DPOConfig(
                out,
                max_steps=5,
                per_device_train_batch_size=4,
                report_to=[],
                use_cpu=True,
                bf16=False,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            peft_config=config,
        )
        trainer.train()
    report(trainer.model)


if __name__ == "__main__":
    main()
