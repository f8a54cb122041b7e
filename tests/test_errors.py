"""Errors that a user can act on."""

from __future__ import annotations

import pytest

from gift_ray.errors import DataError, ModelError, any_failure_is


def test_what_a_library_raises_becomes_one_line_and_our_own_errors_pass() -> None:
    with (
        pytest.raises(ModelError, match=r"^x\.pt: can't be read: first second$") as told,
        any_failure_is(ModelError, "x.pt: can't be read"),
    ):
        raise OSError("first\n   second")
    assert isinstance(told.value.__cause__, OSError)
    with pytest.raises(DataError, match=r"^ours$"), any_failure_is(ModelError, "x.pt"):
        raise DataError("ours")
