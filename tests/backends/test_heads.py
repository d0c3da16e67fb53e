"""The loss heads of both engines against the same formulas in float64.

Shapes: N = positions, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import qwen_local.backends.mlx.before_import  # noqa: F401  # before mlx.core is imported
from qwen_local.backends.machine import Engine

VOCABULARY = 320
QWEN_VOCABULARY = 151_936
"""Of every Qwen2.5 and Qwen3 model."""
HIDDEN = 16


@dataclass(frozen=True)
class Problem:
    """Hidden states under a head, with their targets."""

    hidden_ND: np.ndarray
    weight_VD: np.ndarray
    targets_N: np.ndarray


@dataclass(frozen=True)
class Solution:
    """Loss at each position, and the gradient of their sum."""

    nll_N: np.ndarray
    gradient_ND: np.ndarray


def problem(count: int = 10, *, vocabulary: int = VOCABULARY, seed: int = 0) -> Problem:
    generator = np.random.default_rng(seed)
    return Problem(
        hidden_ND=generator.normal(size=(count, HIDDEN)).astype(np.float32),
        weight_VD=generator.normal(size=(vocabulary, HIDDEN)).astype(np.float32),
        targets_N=generator.integers(0, vocabulary, count),
    )


def truth_of_logits(logits_NV: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nll [N], gradient with respect to the logits [N, V]) in float64, without cancellation."""
    at = (np.arange(len(targets_N)), targets_N)
    relative = np.exp(logits_NV - logits_NV[at][:, None])  # to the target's own
    relative[at] = 0.0
    rest_N = relative.sum(1)
    gradient_NV = relative / (1 + rest_N)[:, None]
    gradient_NV[at] = -rest_N / (1 + rest_N)
    return np.log1p(rest_N), gradient_NV


def truth(p: Problem) -> Solution:
    weight_VD = p.weight_VD.astype(np.float64)
    nll_N, gradient_NV = truth_of_logits(p.hidden_ND @ weight_VD.T, p.targets_N)
    return Solution(nll_N, gradient_NV @ weight_VD)


# --- the engines, each through its own functions, in numpy's arrays ---


def solve(engine: Engine, p: Problem, chunk: int) -> Solution:
    if engine == "mlx":
        import mlx.core as mx

        from qwen_local.backends.mlx.head import loss_and_gradient

        weight_VD = mx.array(p.weight_VD)
        nll_N, gradient_ND = loss_and_gradient(
            mx.array(p.hidden_ND),
            lambda hidden_CD: hidden_CD @ weight_VD.T,
            lambda gradient_CV: gradient_CV @ weight_VD,
            {"ids": mx.array(p.targets_N.astype(np.int32))},
            chunk,
        )
        return Solution(np.array(nll_N), np.array(gradient_ND))
    import torch

    from qwen_local.backends.cuda.head import SupervisedLoss, score_rows

    hidden_ND = torch.from_numpy(p.hidden_ND).clone().requires_grad_()
    head, targets_N = (
        torch.from_numpy(p.weight_VD),
        {"ids": torch.from_numpy(p.targets_N.astype(np.int32))},
    )
    SupervisedLoss.apply(hidden_ND, head, targets_N, chunk).backward()
    with torch.no_grad():
        scored_N = score_rows(hidden_ND, head, targets_N, chunk)
    assert hidden_ND.grad is not None
    return Solution(scored_N.numpy(), hidden_ND.grad.numpy())


def nll(engine: Engine, logits_NV: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """(nll [N], gradient with respect to the logits [N, V])."""
    if engine == "mlx":
        import mlx.core as mx

        from qwen_local.backends.mlx import head as mlx_head

        targets = {"ids": mx.array(targets_N.astype(np.int32))}
        nll_N, gradient_NV, total_N1 = mlx_head.nll(mx.array(logits_NV), targets)
        return np.array(nll_N), np.array(gradient_NV / total_N1)
    import torch

    from qwen_local.backends.cuda import head as torch_head

    left_NV = torch.from_numpy(logits_NV.copy())
    losses_N, rest_N1, all_N1 = torch_head.nll_in_place(
        left_NV, {"ids": torch.from_numpy(targets_N.astype(np.int32))}
    )
    left_NV[np.arange(len(targets_N)), targets_N] = -rest_N1.squeeze(1)
    return losses_N.numpy(), (left_NV / all_N1).numpy()


# --- truth ---


def test_loss_and_gradient_are_those_of_float64(engine: Engine) -> None:
    p = problem()
    found, exact = solve(engine, p, chunk=64), truth(p)
    np.testing.assert_allclose(found.nll_N, exact.nll_N, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_ND, exact.gradient_ND, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 4, 9, 10, 11])
def test_a_chunk_boundary_changes_nothing(engine: Engine, chunk: int) -> None:
    p = problem(10)
    found, whole = solve(engine, p, chunk), solve(engine, p, 64)
    np.testing.assert_allclose(found.nll_N, whole.nll_N, rtol=1e-6)
    np.testing.assert_allclose(found.gradient_ND, whole.gradient_ND, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_row_adds_up_to_nothing(engine: Engine) -> None:
    """softmax - one hot: what the target gains is what the others lose."""
    p = problem()
    _, gradient_NV = nll(engine, p.hidden_ND @ p.weight_VD.T, p.targets_N)
    np.testing.assert_allclose(gradient_NV.sum(1), 0, atol=1e-6)


def test_the_torch_head_hands_on_the_scale_of_what_follows_it() -> None:
    import torch

    from qwen_local.backends.cuda.head import SupervisedLoss

    p = problem()
    hidden_ND = torch.from_numpy(p.hidden_ND).requires_grad_()
    loss = SupervisedLoss.apply(
        hidden_ND,
        torch.from_numpy(p.weight_VD),
        {"ids": torch.from_numpy(p.targets_N.astype(np.int32))},
        4,
    )
    assert loss.item() == pytest.approx(truth(p).nll_N.sum(), rel=1e-6)
    (loss * 0.5).backward()
    assert hidden_ND.grad is not None
    expected = 0.5 * truth(p).gradient_ND
    np.testing.assert_allclose(hidden_ND.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_mlx_surrogate_has_the_gradient_of_the_loss() -> None:
    """The step differentiates sum(stop_gradient(gradient) * hidden)."""
    import mlx.core as mx

    from qwen_local.backends.mlx.head import loss_and_gradient

    p = problem()
    weight_VD, targets_N = mx.array(p.weight_VD), {"ids": mx.array(p.targets_N.astype(np.int32))}

    def surrogate(hidden_ND: mx.array) -> mx.array:
        _, gradient_ND = loss_and_gradient(
            mx.stop_gradient(hidden_ND),
            lambda h: h @ weight_VD.T,
            lambda g: g @ weight_VD,
            targets_N,
            4,
        )
        return (mx.stop_gradient(gradient_ND) * hidden_ND).sum()

    found = np.array(mx.grad(surrogate)(mx.array(p.hidden_ND)))
    np.testing.assert_allclose(found, truth(p).gradient_ND, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_padding_of_the_mlx_head_counts_nothing_and_moves_nothing() -> None:
    import mlx.core as mx

    from qwen_local.backends.mlx.head import losses

    p = problem(7)
    padded = Problem(
        np.concatenate([p.hidden_ND, np.full((5, HIDDEN), 9, np.float32)]),
        p.weight_VD,
        np.concatenate([p.targets_N, np.full(5, -1)]),
    )
    found, bare = solve("mlx", padded, chunk=4), solve("mlx", p, chunk=4)
    # The first chunk is the same product in both. The second has 3 rows in one and 4 in the other,
    # for which a BLAS may choose kernels that round differently (MKL on AMD processors does).
    np.testing.assert_array_equal(found.nll_N[:4], bare.nll_N[:4])
    np.testing.assert_array_equal(found.gradient_ND[:4], bare.gradient_ND[:4])
    np.testing.assert_allclose(found.nll_N[:7], bare.nll_N, rtol=1e-6)
    np.testing.assert_allclose(found.gradient_ND[:7], bare.gradient_ND, rtol=1e-5, atol=1e-6)
    assert not found.nll_N[7:].any() and not found.gradient_ND[7:].any()
    weight_VD = mx.array(p.weight_VD)
    scored_N = losses(
        mx.array(padded.hidden_ND),
        lambda h: h @ weight_VD.T,
        {"ids": mx.array(padded.targets_N.astype(np.int32))},
        4,
    )
    np.testing.assert_array_equal(np.array(scored_N), found.nll_N)


@pytest.mark.parametrize("metal", [False, True])
def test_the_form_of_the_mlx_head_for_metal_computes_the_same(
    metal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows reduced at once and targets chosen by comparison; here on a CPU."""
    from qwen_local.backends.mlx import head

    monkeypatch.setattr(head, "on_gpu", lambda: metal)
    p = problem()
    logits_NV = p.hidden_ND @ p.weight_VD.T
    found_N, found_NV = nll("mlx", logits_NV, p.targets_N)
    exact_N, exact_NV = truth_of_logits(logits_NV.astype(np.float64), p.targets_N)
    np.testing.assert_allclose(found_N, exact_N, rtol=1e-5)
    np.testing.assert_allclose(found_NV, exact_NV, rtol=1e-4, atol=1e-6)
    padded = np.concatenate([p.targets_N[:-1], [-1]])
    assert np.isfinite(nll("mlx", logits_NV, padded)[0][:-1]).all()


# --- a confident row: the loss that log(sum) in float32 would lose ---


@pytest.mark.parametrize("gap", [20, 30])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, QWEN_VOCABULARY])
def test_a_confident_row_keeps_its_loss_and_the_gradient_of_its_target(
    engine: Engine, vocabulary: int, gap: int
) -> None:
    """Every other entry weighs e^-20 = 2e-9 or less of the target's, below float32's 6e-8."""
    generator = np.random.default_rng(0)
    logits_NV = generator.uniform(-2, 0, (3, vocabulary)).astype(np.float32)
    targets_N = np.array([0, vocabulary // 2, vocabulary - 1])
    logits_NV[np.arange(3), targets_N] = gap
    found_N, found_NV = nll(engine, logits_NV, targets_N)
    exact_N, exact_NV = truth_of_logits(logits_NV.astype(np.float64), targets_N)
    at = (np.arange(3), targets_N)
    np.testing.assert_allclose(found_N, exact_N, rtol=1e-5)
    np.testing.assert_allclose(found_NV[at], exact_NV[at], rtol=1e-5)
    np.testing.assert_allclose(found_NV, exact_NV, rtol=1e-5)


def test_the_plain_formula_would_lose_that_loss() -> None:
    """log(sum) - logit: the loss is 3e-8 here, and in float32 1 + 3e-8 is 1."""
    logits_V = np.zeros(VOCABULARY, np.float32)
    logits_V[0] = 23
    shifted_V = logits_V - logits_V.max()
    plain = np.log(np.exp(shifted_V).sum(dtype=np.float32)) - shifted_V[0]
    (exact,), _ = truth_of_logits(logits_V[None].astype(np.float64), np.array([0]))
    assert exact == pytest.approx((VOCABULARY - 1) * np.exp(-23))
    assert plain == 0


@pytest.mark.parametrize("gap", [20.0, 80.0, 1e4])
def test_a_row_that_is_confidently_wrong_has_a_finite_loss(engine: Engine, gap: float) -> None:
    logits_NV = np.zeros((1, VOCABULARY), np.float32)
    logits_NV[0, 5] = gap
    found_N, found_NV = nll(engine, logits_NV, np.array([3]))
    np.testing.assert_allclose(found_N, gap, rtol=1e-6)
    np.testing.assert_allclose(found_NV[0, [3, 5]], [-1, 1], rtol=1e-6)
    assert np.isfinite(found_NV).all()


def test_no_position_gives_no_score() -> None:
    import torch

    from qwen_local.backends.cuda.head import score_rows

    nothing = score_rows(
        torch.zeros(0, 4), torch.zeros(9, 4), {"ids": torch.zeros(0, dtype=torch.int32)}, 4
    )
    assert nothing.shape == (0,)
