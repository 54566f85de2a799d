"""What is under way belongs to a model, not to its copies or its file."""

from __future__ import annotations

import copy
import pickle

import torch
from tests.models import class_batches, one_of_trio

from rankwise.paths.path_set import path_set
from rankwise.paths.session import Session


def test_a_copy_starts_idle_while_the_search_of_the_original_goes_on() -> None:
    model = one_of_trio("bert", mode="dynamic", budget=0.5, search_every=2, score_batches=1).train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    for batch in class_batches(2):
        model(**batch).loss.backward()
        optimizer.step()
    session = path_set(model).session
    assert session.listener is not None
    assert session.listener.step == 2
    assert path_set(copy.deepcopy(model)).session == Session()
    assert path_set(model).session is session
    assert path_set(pickle.loads(pickle.dumps(model))).session == Session()  # noqa: S301 - our own bytes
