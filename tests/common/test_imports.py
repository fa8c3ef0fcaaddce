"""Heavy imports: quick, and without a trace in what runs afterwards."""

import gc

import pytest

from recalign.common.imports import uncollected


def test_garbage_is_collected_again_afterwards_and_after_a_fault():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="broken"), uncollected():
        raise ValueError("broken")
    assert gc.isenabled()


def test_who_collects_no_garbage_still_collects_none_afterwards():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
