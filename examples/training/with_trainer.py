"""transformers' Trainer: one line of a PEFT script changes; ranks are chosen before the first step."""

from __future__ import annotations

import tempfile

from _tiny import classifier, labelled, report
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

import rankwise


def main() -> None:
    config = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", budget=600)  # was: peft.LoraConfig(task_type="SEQ_CLS")
    model = get_peft_model(classifier(), config)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(out, max_steps=9, report_to=[], use_cpu=True, save_strategy="no")
        Trainer(model, arguments, train_dataset=labelled()).train()
        model.save_pretrained(out)
    report(model)


if __name__ == "__main__":
    main()
