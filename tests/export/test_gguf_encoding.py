"""How far encoded numbers may be from the truth, and which cannot be encoded."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qwen_local.export.gguf_encoding import (
    LARGEST_VALUE,
    TYPES,
    Encoding,
    encode,
    encoded_bytes,
    rounding_bound,
)
from qwen_local.export.merge import ExportError

EVERY = pytest.mark.parametrize("encoding", ["f32", "f16", "bf16", "q8_0"])


def error_of(array: np.ndarray, encoding: Encoding) -> np.ndarray:
    held = encode(array, encoding, "x")
    assert held.nbytes == encoded_bytes(array.shape, encoding)
    error: np.ndarray = np.abs(gguf.dequantize(held, TYPES[encoding]) - array)
    return error


@EVERY
@given(
    arrays.arrays(np.float32, (3, 64), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([-149, -140, -126, -40, -24, -12, 0, 10]),
)
def test_no_error_exceeds_the_bound(encoding: Encoding, array: np.ndarray, power: int) -> None:
    """Numbers of all sizes, those below the smallest normal ones among them."""
    with np.errstate(under="ignore"):
        array = np.ldexp(array, power)
    assert (error_of(array, encoding) <= rounding_bound(array, encoding)).all()


@pytest.mark.parametrize("encoding", ["f16", "bf16", "q8_0"])
def test_the_bound_is_nearly_reached(encoding: Encoding) -> None:
    array = np.random.default_rng(0).normal(0, 0.02, (512, 256)).astype(np.float32)
    share = error_of(array, encoding) / rounding_bound(array, encoding)
    assert 0.85 < share.max() <= 1


def test_the_bound_of_a_block_is_its_own() -> None:
    """A large number spoils the 32 of its block and no others."""
    array = np.full((1, 64), 0.01, np.float32)
    array[0, 0] = 10.0
    bound = rounding_bound(array, "q8_0")
    assert set(bound[0, :32]) == {bound[0, 0]}
    assert set(bound[0, 32:]) == {bound[0, 32]}
    assert bound[0, 0] > 500 * bound[0, 32]


@EVERY
def test_the_largest_number_is_still_finite(encoding: Encoding) -> None:
    array = np.full((1, 32), LARGEST_VALUE[encoding], np.float32)
    assert np.isfinite(error_of(array, encoding)).all()
    assert np.isfinite(error_of(-array, encoding)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_become_infinite_is_an_error(sign: int) -> None:
    array = np.full((1, 32), 65536.0 * sign, np.float32)
    with pytest.raises(ExportError) as error:
        encode(array, "f16", "model.norm.weight")
    assert str(error.value) == (
        "model.norm.weight holds 65536; the largest f16 is 65504\n\nhint: pass `outtype=bf16`"
    )
    encode(array, "bf16", "model.norm.weight")


@EVERY
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error(encoding: Encoding, number: float) -> None:
    array = np.zeros((1, 32), np.float32)
    array[0, 7] = number
    with pytest.raises(ExportError, match=r"^x holds values that are not finite$"):
        encode(array, encoding, "x")
