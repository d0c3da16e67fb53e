"""The torch engine's own way through the blocks, against autograd, transformers and PEFT.

Shapes: T = positions, I and O = input and output size, r = rank, H = heads, E = size of a head.
"""

from __future__ import annotations

import importlib
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.models.qwen3 import modeling_qwen3

from qwen_local.backends.base import Setup
from qwen_local.backends.cuda import attention, engine
from qwen_local.backends.cuda.attention import Borders, row_by_row
from qwen_local.backends.cuda.engine import TorchBackend, _set_up_gpu
from qwen_local.backends.cuda.forward import hidden_states
from qwen_local.backends.cuda.fused import AdaptedLinear, GatedSilu, Norm, Rotary
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE

pytestmark = pytest.mark.slow

MakeModel = Callable[[str, bool], ModelFiles]
MakeRows = Callable[..., Rows]

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
"""And how far two ways of rounding may lie apart, relative to the largest entry."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


def assert_alike(found: Tensor | None, wanted: Tensor | None, tolerance: float) -> None:
    assert found is not None and wanted is not None
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    difference = (found.float() - wanted.float()).abs().max()
    assert difference <= tolerance * wanted.float().abs().max()


def compare(ours: Tensor, theirs: Tensor, leaves: list[tuple[Tensor, Tensor]], far: float) -> None:
    """Two outputs, and the gradients of two sets of leaves behind the same upstream gradient."""
    assert_alike(ours, theirs, far)
    upstream = drawn(*ours.shape, dtype=ours.dtype)
    ours.backward(upstream)
    theirs.backward(upstream)
    for mine, other in leaves:
        assert_alike(mine.grad, other.grad, far)


def twins(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return drawn(*shape, dtype=dtype, grad=True), drawn(*shape, dtype=dtype, grad=True)


@pytest.mark.parametrize(("dtype", "far"), DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_an_adapted_linear_layer_is_that_of_autograd(
    dtype: torch.dtype, far: float, biased: bool, dropped: bool
) -> None:
    weight, bias = drawn(7, 5, dtype=dtype), drawn(7, dtype=dtype) if biased else None
    x, y = twins(11, 5, dtype=dtype)
    (a, c), (b, d) = twins(3, 5), twins(7, 3)
    mask = drawn(11, 5) > 0
    other = [(v * mask * 2).to(dtype) if dropped else None for v in (x, y)]
    copies = tuple(v.detach().to(dtype) for v in (a, b))
    ours = AdaptedLinear.apply(x, a, b, copies, lambda: weight, bias, 0.5, other[0])
    into = y if other[1] is None else other[1]
    theirs = F.linear(y, weight, bias) + 0.5 * ((into @ c.T.to(dtype)) @ d.T.to(dtype))
    compare(ours, theirs, [(x, y), (a, c), (b, d)], far)


def test_the_first_layer_of_a_model_gives_its_adapter_a_gradient_and_its_input_none() -> None:
    (a, c), (b, d), x, weight = twins(3, 5), twins(7, 3), drawn(11, 5), drawn(7, 5)
    ours = AdaptedLinear.apply(x, a, b, (a, b), lambda: weight, None, 2.0, None)
    compare(ours, F.linear(x, weight) + 2 * (x @ c.T) @ d.T, [(a, c), (b, d)], 1e-6)
    assert x.grad is None


@pytest.mark.parametrize(("dtype", "far"), DTYPES)
def test_the_gated_activation_is_that_of_autograd(dtype: torch.dtype, far: float) -> None:
    (gate, g), (up, u) = twins(11, 6, dtype=dtype), twins(11, 7, dtype=dtype)
    up, u = (v[:, :6].detach().clone().requires_grad_() for v in (up, u))
    compare(GatedSilu.apply(gate, up), F.silu(g) * u, [(gate, g), (up, u)], far)


@pytest.mark.parametrize(("dtype", "far"), DTYPES)
def test_the_norm_is_that_of_transformers(dtype: torch.dtype, far: float) -> None:
    norm = modeling_qwen3.Qwen3RMSNorm(6, eps=1e-3).to(dtype).requires_grad_(False)
    norm.weight.copy_(drawn(6))
    x, y = twins(3, 4, 6, dtype=dtype)
    compare(Norm.apply(x, norm.weight, 1e-3), norm(y), [(x, y)], far)


@pytest.mark.parametrize(("dtype", "far"), DTYPES)
def test_the_rotation_is_that_of_transformers(dtype: torch.dtype, far: float) -> None:
    (q, p), angles = twins(5, 3, 8, dtype=dtype), drawn(5, 4)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    ours = Rotary.apply(q, cos[:, None], sin[:, None])
    whole = [torch.cat([v, v], -1)[None] for v in (cos, sin)]
    turned, _ = modeling_qwen3.apply_rotary_pos_emb(*(p.transpose(0, 1)[None],) * 2, *whole)
    compare(ours, turned[0].transpose(0, 1), [(q, p)], far)


def test_no_row_hears_another() -> None:
    """Attention over packed rows is that over each row alone, gradients as well."""
    lengths, heads, groups, size = (5, 1, 7), 4, 2, 8
    borders = Borders.of(lengths, torch.from_numpy)
    given = [twins(13, n, size) for n in (heads, groups, groups)]
    (q, a), (k, b), (v, c) = given
    ours = row_by_row(q, k, v, borders, 0.3)
    spans = [slice(i, j) for i, j in itertools.pairwise(borders.starts.tolist())]
    alone = [_attended(a[span], b[span], c[span], 0.3) for span in spans]
    compare(ours, torch.cat(alone), given, 1e-6)


def _attended(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, scale: float) -> Tensor:
    """Causal attention by its definition."""
    times = q_THE.shape[1] // k_TKE.shape[1]
    k_THE, v_THE = (x.repeat_interleave(times, 1) for x in (k_TKE, v_TKE))
    scores_HTT = torch.einsum("the,she->hts", q_THE, k_THE) * scale
    later = torch.ones(scores_HTT.shape[1:], dtype=torch.bool).triu(1)
    return torch.einsum(
        "hts,she->the", scores_HTT.masked_fill(later, -torch.inf).softmax(-1), v_THE
    )


def opened(model: ModelFiles, **given: Any) -> TorchBackend:
    lora = LoraSpec(rank=4, alpha=8, dropout=0.0)
    backend = TorchBackend(Setup(**{"model": model, "lora": lora, "device": "cpu", **given}))
    state = {n: v + 0.02 * drawn(*v.shape).numpy() for n, v in backend.adapter().items()}
    backend.load_adapter(state)  # B begins at zero, and would hide A
    return backend


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_packed_rows_leave_the_blocks_as_they_leave_those_of_transformers(
    family: str,
    quantization: str,
    twice: bool,
    random_model: MakeModel,
    random_rows: MakeRows,
) -> None:
    """Hidden states at some positions, and gradients of the adapter, of rows at once and alone."""
    backend = opened(random_model(family, True), dtype="float32", quantization=quantization)
    rows = random_rows(3)
    borders = Borders.of(rows.lengths_R.tolist(), torch.from_numpy)
    ids_T, positions_N = torch.from_numpy(rows.ids_T), torch.arange(1, rows.tokens, 2)
    ours = hidden_states(backend._backbone, ids_T, borders, positions_N, recompute=twice)
    upstream = drawn(*ours.shape)
    (ours * upstream).sum().backward()
    found = {n: p.grad.clone() for n, p in backend._parameters.items() if p.grad is not None}
    backend._optimizer.zero_grad()
    ids = [torch.from_numpy(rows.row(r)[0].astype(np.int64))[None] for r in range(len(rows))]
    theirs = torch.cat(
        [backend._backbone(input_ids=i, use_cache=False).last_hidden_state[0] for i in ids]
    )[positions_N]
    (theirs * upstream).sum().backward()
    assert_alike(ours, theirs, 2e-5)
    assert found.keys() == backend._parameters.keys()
    for name, parameter in backend._parameters.items():
        assert_alike(found[name], parameter.grad, 2e-5)


def test_in_bfloat16_the_adapter_is_as_near_to_float32_as_that_of_peft(
    random_model: MakeModel, random_rows: MakeRows
) -> None:
    rows = random_rows(4)
    exact, rough = (opened(random_model("qwen3", True), dtype=d) for d in ("float32", "bfloat16"))
    wanted, found = (b.step(rows, lr=1e-3, tokens=rows.supervised) for b in (exact, rough))
    assert found.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-2)
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=5e-2)
    assert all(p.dtype == torch.float32 for p in rough._parameters.values())


def test_dropout_reaches_the_adapter_alone(random_model: MakeModel, random_rows: MakeRows) -> None:
    """With B at zero an adapter says nothing, whatever is dropped."""
    lora = LoraSpec(rank=4, alpha=8, dropout=0.5)
    backend = TorchBackend(
        Setup(model=random_model("qwen3", True), lora=lora, device="cpu", dtype="float32")
    )
    rows = random_rows(3)
    borders = Borders.of(rows.lengths_R.tolist(), torch.from_numpy)
    ids_T, every_N = torch.from_numpy(rows.ids_T), torch.arange(rows.tokens)

    def said(training: bool) -> Tensor:
        backend._model.train(training)
        with torch.no_grad():
            return hidden_states(backend._backbone, ids_T, borders, every_N)

    torch.testing.assert_close(said(True), said(False))
    backend.load_adapter({n: v + 0.1 for n, v in backend.adapter().items()})
    assert (said(True) - said(True)).abs().max() > 1e-3
    torch.testing.assert_close(said(False), said(False))


def test_a_block_that_is_computed_twice_drops_the_same_inputs_again(
    random_model: MakeModel, random_rows: MakeRows
) -> None:
    lora = LoraSpec(rank=4, alpha=8, dropout=0.5)
    rows = random_rows(4)
    once, twice = (
        opened(random_model("qwen3", True), dtype="float32", lora=lora, gradient_checkpointing=c)
        for c in (False, True)
    )
    wanted, found = (b.step(rows, lr=1e-3, tokens=rows.supervised) for b in (once, twice))
    assert found.loss_sum == wanted.loss_sum
    for name, parameter in twice._parameters.items():
        assert_alike(parameter.grad, once._parameters[name].grad, 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_layers_without_an_adapter_are_passed_through(
    quantization: str, checkpointing: bool, random_model: MakeModel, random_rows: MakeRows
) -> None:
    lora = LoraSpec(rank=4, alpha=8, dropout=0.0, targets=("v_proj", "up_proj"), layers=1)
    backend = opened(
        random_model("qwen2", False),
        dtype="float32",
        lora=lora,
        quantization=quantization,
        gradient_checkpointing=checkpointing,
    )
    rows = random_rows(3)
    ids = [torch.from_numpy(rows.row(r)[0].astype(np.int64))[None] for r in range(len(rows))]
    with torch.no_grad():
        heads = [backend._model(input_ids=i, use_cache=False).logits[0] for i in ids]
    targets_T = torch.from_numpy(rows.targets.ids_T.astype(np.int64))
    wanted = F.cross_entropy(torch.cat(heads), targets_T, ignore_index=IGNORE, reduction="sum")
    far = 1e-5 if quantization != "8bit" else 2e-2  # it rounds to the largest of all rows
    assert backend.score(rows).nll_R.sum() == pytest.approx(wanted.item(), rel=far)
    assert backend.step(rows, lr=1e-3, tokens=rows.supervised).grad_norm > 0
    assert all(p.grad is not None for p in backend._parameters.values())


def test_one_kernel_is_given_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's own and flash-attn's want it, each under its names."""
    seen: list[tuple[Any, ...]] = []

    def varlen(
        *given: Any,
        enable_gqa: bool = False,
        window_size: Any = None,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        for name, value in (("window_size", window_size), ("scale", scale)):
            options |= {} if value is None else {name: value}
        seen.append((*given[3:], options | ({"enable_gqa": True} if enable_gqa else {})))
        return given[0]

    def chosen(**modules: Any) -> attention.Kernel | None:
        def find(name: str) -> Any:
            if name not in modules:
                raise ImportError(name)
            return modules[name]

        monkeypatch.setattr(importlib, "import_module", find)
        return attention.flash_kernel.__wrapped__()

    borders = Borders.of((2, 5), torch.from_numpy)
    x = drawn(7, 2, 8)
    pytorch = types.SimpleNamespace(varlen_attn=varlen)
    flash = types.SimpleNamespace(flash_attn_varlen_func=lambda *a, **o: varlen(*a, **o))
    older = types.SimpleNamespace(varlen_attn=lambda q, k, v: None)
    as_in_2_11 = types.SimpleNamespace(
        varlen_attn=lambda *a, window_size, scale: varlen(*a, window_size=window_size, scale=scale)
    )
    for modules in (
        {"torch.nn.attention.varlen": pytorch, "flash_attn": flash},
        {"torch.nn.attention.varlen": as_in_2_11, "flash_attn": flash},
        {"torch.nn.attention.varlen": older, "flash_attn": flash},
    ):
        kernel = chosen(**modules)
        assert kernel is not None
        kernel(x, x, x, borders, 0.5)
    starts = borders.starts
    assert starts.dtype == torch.int32
    options = [{"window_size": (-1, 0), "enable_gqa": True, "scale": 0.5}]
    options += [{"window_size": (-1, 0), "scale": 0.5}]
    options += [{"causal": True, "softmax_scale": 0.5}]
    assert [s[2:] for s in seen] == [(5, 5, o) for o in options]
    assert all(s[0] is starts and s[1] is starts for s in seen)
    assert chosen() is None


def test_a_gpu_computes_attention_without_cudnn_and_float32_as_float32() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        _set_up_gpu("bfloat16")
        assert torch.get_float32_matmul_precision() == "high"
        _set_up_gpu("float32")
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
        torch.set_float32_matmul_precision(precision)


def test_under_wsl_memory_runs_out_before_the_driver_of_windows_hides_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (18 * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    try:
        for generation in (None, 2):
            monkeypatch.setattr(engine, "wsl", lambda kind=generation: kind)
            _set_up_gpu("bfloat16")
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert shares == [pytest.approx(0.95 * 0.75)]


def test_a_layer_without_an_adapter_is_the_plain_one() -> None:
    from qwen_local.backends.cuda.forward import linear

    layer = nn.Linear(5, 7)
    x = drawn(3, 5)
    torch.testing.assert_close(linear(layer, x), layer(x))
