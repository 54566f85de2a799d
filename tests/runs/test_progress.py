from __future__ import annotations

import logging
import warnings

import pytest
import transformers

from rankwise.runs.progress import quiet


def test_quiet_ends_also_after_an_error() -> None:
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    seen = []
    try:
        with quiet():
            seen = [transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()]
            raise RuntimeError
    except RuntimeError:
        pass
    assert seen == [logging.ERROR, False]
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


def test_quiet_hides_known_notices_only() -> None:
    with quiet():
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found", stacklevel=1)
        with pytest.raises(UserWarning, match="a real problem"):
            warnings.warn("a real problem", stacklevel=1)
