"""transformers' Trainer: one line of a PEFT script changes, the search runs by itself."""

from __future__ import annotations

import tempfile

from _tiny import classifier, labelled, report
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

import rankwise


def main() -> None:
    config = rankwise.HeteroLoraConfig(  # was: peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"], budget=0.5, search_every=4
    )
    model = get_peft_model(classifier(), config)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(out, max_steps=9, report_to=[], use_cpu=True, save_strategy="no")
        Trainer(model, arguments, train_dataset=labelled()).train()
        model.save_pretrained(out)
    report(model)


if __name__ == "__main__":
    main()
