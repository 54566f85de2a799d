from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["rankwise", "rankwise.baselines"])
def test_every_type_that_peft_lists_has_a_config_and_a_model(module: str) -> None:
    """In a process of its own: what another test imported would hide a type without rows."""
    code = f"""
import {module}
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
for name in PeftType:
    PEFT_TYPE_TO_CONFIG_MAPPING[name], PEFT_TYPE_TO_TUNER_MAPPING[name]
assert {{"HETEROLORA", "LOR2C"}} <= set(PeftType.__members__)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
