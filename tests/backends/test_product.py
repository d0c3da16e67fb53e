"""Products with a float32 result, and what they are worth in 16 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qwen_local.backends.cuda import head
from qwen_local.backends.cuda.head import SupervisedLoss
from qwen_local.backends.cuda.product import add_gradient, product, scaled

pytestmark = pytest.mark.slow


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_product_is_float32_whatever_its_factors_are(dtype: torch.dtype, far: float) -> None:
    x, y = drawn(5, 7, dtype=dtype), drawn(7, 3, dtype=dtype)
    wanted = 2.5 * (x.float() @ y.float())
    scale = float(wanted.abs().max())
    assert product(x, y).dtype == torch.float32
    torch.testing.assert_close(product(x, y, scale=2.5), wanted, atol=far * scale, rtol=0)
    out = torch.full((5, 3), float("nan"))  # overwritten, not multiplied by 0
    assert product(x, y, scale=2.5, out=out) is out
    torch.testing.assert_close(out, wanted, atol=far * scale, rtol=0)
    product(x, y, scale=2.5, out=out, add=True)
    torch.testing.assert_close(out, 2 * wanted, atol=2 * far * scale, rtol=0)
    half = scaled(x, y, 2.5)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), wanted, atol=far * scale, rtol=0)


def test_gradients_add_up_in_float32() -> None:
    parameter = torch.zeros(5, 3, requires_grad=True)
    x, y = drawn(5, 7), drawn(7, 3)
    for _ in range(2):
        add_gradient(parameter, x, y, scale=0.5)
    torch.testing.assert_close(parameter.grad, x @ y)


def as_on_a_card(x: Tensor, y: Tensor, *, out: Tensor | None = None, **_: object) -> Tensor:
    """16-bit factors, summed and kept in float32."""
    exact = x.float() @ y.float()
    return exact if out is None else out.copy_(exact)


def test_a_float32_result_brings_the_gradient_of_a_bfloat16_head_nearer_to_the_true_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a GPU computes it, against products that are rounded to bfloat16 (before, and on a CPU).

    Logits of a standard deviation of 6, and the most probable token as the target, as after some
    training. Measured: 1.7 % of the gradient's norm before, 0.18 % after.
    """
    hidden_ND = 6 * drawn(32, 256, dtype=torch.bfloat16)
    weight_VD = (drawn(4000, 256) / 16).to(torch.bfloat16)
    targets = {"ids": (hidden_ND.float() @ weight_VD.float().T).argmax(1).int()}

    def solved(dtype: torch.dtype) -> tuple[float, Tensor]:
        inputs = hidden_ND.to(dtype, copy=True).requires_grad_()
        loss = SupervisedLoss.apply(inputs, weight_VD.to(dtype), targets, 32)
        loss.backward()
        assert inputs.grad is not None
        return loss.item(), inputs.grad.float()

    def errors(of: Callable[..., Tensor]) -> tuple[float, float]:
        monkeypatch.setattr(head, "product", of)
        loss, gradient = solved(torch.bfloat16)
        off = (gradient - exact).norm() / exact.norm()
        return abs(loss / exact_loss - 1), float(off)

    exact_loss, exact = solved(torch.float32)
    rounded, kept = errors(product), errors(as_on_a_card)
    assert kept[0] < 1e-6 < 1e-4 < rounded[0]
    assert kept[1] < 0.003 < 0.01 < rounded[1]
