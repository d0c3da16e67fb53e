"""One LoRA model under PyTorch: the step, the score, the state, greedy answers.

transformers gives the model, PEFT the LoRA layers, torch.optim the optimizer. Ours are the
micro-batches, the training pass through the blocks (`forward.py`), the head (`head.py`), and one
mean over the tokens of the step.
"""

from __future__ import annotations

from qwen_local.backends.cuda import before_import  # noqa: F401  # first: it imports bitsandbytes

# isort: split
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import peft
import torch
import transformers
from torch import Tensor

from qwen_local.adapters.lora import initial_arrays
from qwen_local.backends.base import (
    AdapterState,
    Arrays,
    Completion,
    Setup,
    StepResult,
)
from qwen_local.backends.cuda import vector_math
from qwen_local.backends.cuda.attention import kernel_for
from qwen_local.backends.cuda.constants import HEAD_CHUNK
from qwen_local.backends.cuda.forward import hidden_states
from qwen_local.backends.cuda.graphs import Graphs
from qwen_local.backends.cuda.head import SupervisedLoss, score_rows
from qwen_local.backends.cuda.inputs import Inputs, padded
from qwen_local.backends.cuda.quantized import load
from qwen_local.backends.cuda.session import TorchSession
from qwen_local.backends.machine import DType
from qwen_local.backends.oom_retry import MicroBatches, TokenBudget
from qwen_local.backends.optimizer import ADAM_BETAS, ADAM_EPSILON, clip_factor, dropout_seed
from qwen_local.backends.probe import wsl
from qwen_local.backends.process_memory import peak_resident_bytes
from qwen_local.rows.micro_batch import MicroBatch
from qwen_local.rows.planner import MOST, PACKED, Layout
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores, scores

T = TypeVar("T")

GENERATE_BATCH = 32
"""Prompts completed together."""

FREE_SHARE = 0.95
"""Share of a card's free memory that a process may take under WSL."""

OUT_OF_MEMORY = (
    "out of memory",  # "CUDA error: ...", "Triton Error [CUDA]: ..."
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no memory is left for the library's handle
    "std::bad_alloc",
    # The allocator asks the driver who holds the memory, which fails on parts of a card (MIG) and
    # in some containers, and then its own report is lost.
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)
"""Texts of a `RuntimeError` that means the same as a `torch.OutOfMemoryError`."""


def ran_out_of_memory(error: Exception) -> bool:
    """Return True if an error of PyTorch means out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


class TorchBackend:
    """The contract of `qwen_local.backends.base.Backend` on PyTorch."""

    def __init__(self, setup: Setup) -> None:
        vector_math.call_once()
        self._setup = setup
        self._device = torch.device("cuda" if setup.device == "gpu" else "cpu")
        self._chunk = HEAD_CHUNK[setup.device]
        self._steps = 0
        self._group = setup.group
        self._budget = TokenBudget(
            setup.micro_batch_tokens,
            ran_out=ran_out_of_memory,
            layout=PACKED,
            group=setup.group,
        )
        if setup.device == "gpu":
            _set_up_gpu(setup.dtype)
        transformers.utils.logging.disable_progress_bar()
        base = load(setup, self._device)
        base.requires_grad_(False)
        # The model's own would fill in what our settings leave out; a repetition penalty, for
        # example, is not greedy.
        base.generation_config = transformers.GenerationConfig()
        self._model: torch.nn.Module = base
        self._backbone: torch.nn.Module = base.model
        if setup.model.architecture.tied:  # even if a file has a head of its own
            base.lm_head.weight = base.model.embed_tokens.weight
        self._head: Tensor = base.lm_head.weight
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._copies: dict[Tensor, Tensor] = {}
        self._graphs: Graphs | None = None
        if setup.lora is not None:
            self._attach(base, setup)
            dtype, size = getattr(torch, setup.dtype), setup.model.architecture.head_dim
            if setup.cuda_graphs and kernel_for(self._device, dtype, size):
                # A strong reference would close a cycle, and the model would stay on the card until
                # Python's collector happens to run.
                proxy = weakref.proxy(self)
                self._graphs = Graphs(lambda i: proxy._pass(i), lambda: proxy._gradients())

    def _attach(self, base: transformers.PreTrainedModel, setup: Setup) -> None:
        """Put LoRA layers into the model and an optimizer over them."""
        assert setup.lora is not None
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=setup.lora.rank,
            lora_alpha=setup.lora.alpha,
            use_rslora=setup.lora.rslora,
            lora_dropout=setup.lora.dropout,
            target_modules=list(setup.lora.target_names),
            layers_to_transform=list(setup.lora.blocks(setup.model.architecture.layers)),
            layers_pattern="layers",
            use_dora=setup.dora,
        )
        with warnings.catch_warnings():
            # transformers is renaming gradient to activation checkpointing: PEFT still reads the
            # old name, and the oldest release that we allow has no other.
            warnings.simplefilter("ignore", FutureWarning)
            self._model = peft.get_peft_model(base, config)
        self._parameters = {
            _saved_name(name): parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        dtype = getattr(torch, setup.dtype)
        if dtype != torch.float32:
            matrices = [p for p in self._parameters.values() if p.dim() == 2]
            self._copies = {p: torch.empty_like(p, dtype=dtype) for p in matrices}
        self._magnitudes = {n: _numpy(p) for n, p in self._parameters.items() if p.dim() == 1}
        self.load_adapter(initial_arrays(setup.model.architecture, setup.lora, setup.seed))

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        """See `Backend.step`."""
        loss_sum, grad_norm = self._within_memory(rows, lambda b: self._mean_gradient(b, tokens))
        applied = self._set_learning_rate(lr)
        finite = bool(np.isfinite(loss_sum) and np.isfinite(grad_norm))
        if finite:
            if (factor := clip_factor(grad_norm, self._setup.max_grad_norm)) < 1:
                torch._foreach_mul_(self._gradients(), factor)
            with self._budget.no_retry():
                self._optimizer.step()
                self._copy_adapter()
            self._steps += 1
        return StepResult(loss_sum, grad_norm, applied, finite, self._budget.positions)

    def warm_up(self, rows: Rows) -> int:
        """See `Backend.warm_up`."""
        self._within_memory(rows, lambda b: self._mean_gradient(b, rows.supervised), most=1)
        self._zero_gradients()
        return self._budget.positions

    @torch.no_grad()
    def score(self, rows: Rows) -> Scores:
        """See `Backend.score`."""
        self._model.eval()

        def losses(batch: MicroBatch) -> np.ndarray:
            inputs = Inputs.of(batch, self._to_device)
            hidden_ND = self._hidden(inputs)
            return _numpy(score_rows(hidden_ND, self._head, inputs.targets_N, self._chunk))

        return self._within_memory(rows, lambda b: scores(len(rows), b, losses))

    @property
    def micro_batch_tokens(self) -> int:
        """See `Backend.micro_batch_tokens`."""
        return self._budget.tokens

    @property
    def layout(self) -> Layout:
        """See `Backend.layout`."""
        return self._budget.layout

    def adapter(self) -> Arrays:
        """See `Backend.adapter`."""
        return {name: _numpy(parameter) for name, parameter in self._parameters.items()}

    def state(self) -> AdapterState:
        """See `Backend.state`."""
        moments = self._optimizer.state
        first, second = (
            {
                name: _numpy(moments[p][key]) if p in moments else np.zeros(p.shape, np.float32)
                for name, p in self._parameters.items()
            }
            for key in ("exp_avg", "exp_avg_sq")
        )
        return AdapterState(self.adapter(), first, second, self._steps)

    def load_adapter(self, adapter: Arrays) -> None:
        """See `Backend.load_adapter`."""
        adapter = self._group.broadcast(adapter)
        assert adapter.keys() <= self._parameters.keys()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if (array := adapter.get(name, self._magnitudes.get(name))) is None:
                    parameter.zero_()
                else:
                    parameter.copy_(torch.from_numpy(array))
        self._copy_adapter()
        self._steps = 0
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=0.0,
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            weight_decay=self._setup.weight_decay,
            fused=self._device.type == "cuda",
        )

    def load_state(self, state: AdapterState) -> None:
        """See `Backend.load_state`."""
        state = self._group.broadcast(state)
        assert state.adapter.keys() == self._parameters.keys()
        self.load_adapter(state.adapter)
        self._steps = state.steps
        if state.steps == 0:
            return
        self._make_moments()
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state[parameter]
            moments["step"].fill_(state.steps)
            moments["exp_avg"].copy_(torch.from_numpy(state.exp_avg[name]))
            moments["exp_avg_sq"].copy_(torch.from_numpy(state.exp_avg_sq[name]))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        """See `Backend.generate`."""
        self._model.eval()
        settings = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )
        answers: dict[int, Completion] = {}
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(by_length), GENERATE_BATCH):
            chosen = by_length[start : start + GENERATE_BATCH]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.full((len(chosen), width), stop_ids[0], device=self._device)
            mask = torch.zeros_like(ids)
            for at, i in enumerate(chosen):
                ids[at, width - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
                mask[at, width - len(prompts[i]) :] = 1
            with self._autocast():
                out = self._model.generate(  # type: ignore[operator]  # a mixin's method
                    input_ids=ids, attention_mask=mask, generation_config=settings
                )
            for i, answer in zip(chosen, out[:, width:].tolist(), strict=True):
                answers[i] = _until_stop(answer, stop_ids)
        return [answers[i] for i in range(len(prompts))]

    def session(self) -> TorchSession:
        """See `Backend.session`."""
        self._model.eval()
        return TorchSession(self._model, self._autocast)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], *, last: int) -> np.ndarray:
        """See `Backend.logits`."""
        self._model.eval()
        ids_1W = torch.tensor([list(ids)], device=self._device)
        with self._autocast():
            hidden_1WD = self._backbone(input_ids=ids_1W, use_cache=False).last_hidden_state
        return _numpy(hidden_1WD[0, -last:].to(self._head.dtype) @ self._head.T)

    @torch.no_grad()
    def through_blocks(self, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Backend.through_blocks`."""
        self._model.eval()
        outputs: list[np.ndarray] = []

        def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
            outputs.append(_numpy(output[0]))

        blocks: Any = self._backbone.layers
        handle = blocks[-1].register_forward_hook(keep)
        try:
            for hidden_TD in hidden:
                states_1TD = torch.from_numpy(hidden_TD[None]).to(self._device, self._head.dtype)
                with self._autocast():
                    self._backbone(inputs_embeds=states_1TD, use_cache=False)
        finally:
            handle.remove()
        return outputs

    def peak_memory_bytes(self) -> int:
        """See `Backend.peak_memory_bytes`."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return peak_resident_bytes()

    def _within_memory(
        self, rows: Rows, work: Callable[[MicroBatches], T], *, most: int = MOST
    ) -> T:
        return self._budget.run(rows, work, free=self._free, most=most)

    def _free(self) -> None:
        """Free what a failed pass left behind."""
        for parameter in self._parameters.values():
            parameter.grad = None
        if self._graphs is not None:
            self._graphs.clear()
        gc.collect()  # an error that a library keeps in a variable forms a cycle with its traceback
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _mean_gradient(self, batches: MicroBatches, tokens: int) -> tuple[float, float]:
        """Accumulate the gradient of sum(nll) / tokens in the parameters' `grad`.

        Returns:
            (sum(nll), the norm of that gradient).
        """
        self._model.train()
        self._make_moments()
        self._zero_gradients()
        loss = torch.zeros((), dtype=torch.float32, device=self._device)
        for number, batch in enumerate(batches):
            loss += self._micro_batch(batch, number)
        batches.join()
        gradients = self._gradients()
        gradients, loss = self._group.sum((gradients, loss))
        torch._foreach_div_(gradients, float(tokens))
        norm = torch.nn.utils.get_total_norm(gradients)
        loss_sum, grad_norm = torch.stack([loss, norm.float()]).tolist()  # the one host sync
        return loss_sum, grad_norm

    def _micro_batch(self, batch: MicroBatch, number: int) -> Tensor:
        """Add a micro-batch to the gradients; return its loss, a float32 scalar."""
        longest = None
        if self._setup.cuda_graphs:  # always, or dropout would differ where a graph is used
            batch, longest = padded(batch)
        inputs = Inputs.of(batch, self._to_device, longest=longest)
        seed = dropout_seed(self._setup.seed, self._steps, number)
        with self._seeded(seed):
            return self._pass(inputs) if self._graphs is None else self._graphs.run(inputs, seed)

    def _pass(self, inputs: Inputs) -> Tensor:
        """Add the gradient of sum(nll) over a micro-batch to `grad`; return the sum."""
        hidden_ND = self._hidden(inputs)
        loss = SupervisedLoss.apply(hidden_ND, self._head, inputs.targets_N, self._chunk)
        loss.backward()
        return loss.detach()

    def _zero_gradients(self) -> None:
        """Forget the gradients; those that graphs add to stay where they are."""
        if self._graphs is None:
            self._optimizer.zero_grad(set_to_none=True)
            return
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch._foreach_zero_(self._gradients())

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters.values() if p.grad is not None]

    @torch.no_grad()
    def _copy_adapter(self) -> None:
        """Bring the copies of the adapter in the computing dtype up to date."""
        if self._copies:
            torch._foreach_copy_(list(self._copies.values()), list(self._copies))

    def _make_moments(self) -> None:
        """Give AdamW the arrays that it would make at its first step.

        At that point everything else is freed, so their share of the peak would go unnoticed. They
        are not made with the adapter either: inference does not need them.
        """
        for parameter in self._parameters.values():
            if parameter not in self._optimizer.state:
                self._optimizer.state[parameter] = {
                    "step": torch.zeros((), device=self._device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def _hidden(self, inputs: Inputs) -> Tensor:
        """Hidden states after the last norm at the supervised positions, [N, D]."""
        return hidden_states(
            self._backbone,
            inputs.ids_T,
            inputs.borders,
            inputs.positions_N,
            copies=self._copies,
            recompute=self._setup.gradient_checkpointing,
            dropout=self._setup.lora is not None and self._setup.lora.dropout > 0,
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        """Copy to the device without waiting for the copy."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

    def _autocast(self) -> AbstractContextManager[object]:
        """Run matrix products in the model's dtype: PEFT computes float32 adapters in float32."""
        if self._setup.dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, getattr(torch, self._setup.dtype))

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Draw dropout from this seed; the caller's generators stay untouched."""
        with torch.random.fork_rng(devices=[0] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _set_learning_rate(self, lr: float) -> float:
        """Set the rate and return the one that the optimizer then holds."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return float(self._optimizer.param_groups[0]["lr"])


def _saved_name(name: str) -> str:
    """Return the name in PEFT's files of a parameter of its model."""
    return name.replace(".default.weight", ".weight" if ".lora_magnitude" not in name else "")


def _numpy(tensor: Tensor) -> np.ndarray:
    """Copy to the host as float32."""
    copy: np.ndarray = tensor.detach().to("cpu", torch.float32, copy=True).numpy()
    return copy


def _set_up_gpu(dtype: DType) -> None:
    """Set what PyTorch chooses otherwise on some GPUs."""
    # On compute capability 9.0 PyTorch prefers cuDNN's attention, which builds a plan of half a
    # second for each new length, and every row and every answer has its own (PyTorch 2.11, 2.13).
    torch.backends.cuda.enable_cudnn_sdp(False)
    if wsl() == 2:
        # The driver of Windows never reports out of memory: it moves arrays to the memory of the
        # machine, and a step takes ten times as long. PyTorch reports it, at this share.
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved()  # by an engine that was opened before
        torch.cuda.set_per_process_memory_fraction(FREE_SHARE * (free + own) / total)
    if dtype == "float32":
        # NVIDIA's containers allow TF32, which rounds the factors of a product to 10 bits.
        torch.set_float32_matmul_precision("highest")


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> Completion:
    """Cut an answer at its first stop token."""
    for at, token in enumerate(ids):
        if token in stop_ids:
            return Completion(tuple(ids[:at]), "stop", token)
    return Completion(tuple(ids), "length", None)
