"""One LoRA model under MLX: the step, the score, the state, greedy answers.

mlx-lm gives the model classes, the LoRA layers and generation, mlx.optimizers the optimizer. Ours
are the micro-batches, the head (`head.py`), and one mean over the tokens of the step.
"""

from __future__ import annotations

from qwen_local.backends.mlx import before_import  # noqa: F401  # first: settings of MLX's library

# isort: split
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers
import mlx.utils
import mlx_lm.tuner.utils
import mlx_lm.utils
import numpy as np
from mlx_lm.generate import BatchGenerator

from qwen_local.adapters.lora import initial_arrays
from qwen_local.adapters.mlx_layout import to_mlx, to_peft
from qwen_local.backends.base import (
    AdapterState,
    Arrays,
    Completion,
    Setup,
    StepResult,
)
from qwen_local.backends.mlx.constants import CACHE_BYTES, HEAD_CHUNK, cache_limit
from qwen_local.backends.mlx.dropout import DropoutKeys, checkpoint_blocks, put_dropout
from qwen_local.backends.mlx.head import Columns, loss_and_gradient, losses
from qwen_local.backends.mlx.quantized import back, quantize
from qwen_local.backends.mlx.session import MlxSession
from qwen_local.backends.oom_retry import MicroBatches, TokenBudget
from qwen_local.backends.optimizer import ADAM_BETAS, ADAM_EPSILON, clip_factor, dropout_seed
from qwen_local.backends.process_memory import peak_resident_bytes
from qwen_local.models.architecture import linear_paths
from qwen_local.models.config import engine_config
from qwen_local.rows.micro_batch import MicroBatch
from qwen_local.rows.planner import MOST, PADDED, SIZES, Layout, rounded_up
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores, scores
from qwen_local.rows.targets import Targets

SMALLEST_SHAPE = 32
"""Widths and counts of supervised positions are padded at least to this where the step is compiled;
every new shape costs a compilation."""

OUT_OF_MEMORY = (
    "[malloc",  # "[malloc] Unable to allocate ...", older releases "[malloc_or_wait] ..."
    "[metal::malloc]",  # larger than one buffer may be, or too many of them
    "Insufficient Memory",  # of a command buffer; in older releases the process ends instead
    "out of memory",  # CUDA
    "std::bad_alloc",
    # macOS ends work that takes too long; smaller micro-batches take less time.
    "Impacting Interactivity",
    "GPU Timeout",
    "GPU Hang",
)
"""Texts of a `RuntimeError` of MLX that smaller micro-batches may avoid: out of memory or of time.

On a Linux CPU there is none: a failed allocation goes unnoticed, and the process ends by a signal.
"""

Tree = dict[str, Any]
T = TypeVar("T")


def ran_out_of_memory(error: Exception) -> bool:
    """Return True if an error of MLX means out of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


class MlxBackend:
    """The contract of `qwen_local.backends.base.Backend` on MLX."""

    def __init__(self, setup: Setup, *, few_shapes: bool | None = None) -> None:
        """Load the model.

        Args:
            setup: see `Setup`.
            few_shapes: compile the step, over padded shapes so that few are compiled. It pays on a
                GPU and is the default there; on a CPU it is slower to start and no faster after.
        """
        self._setup = setup
        self._gpu = setup.device == "gpu"
        few_shapes = self._gpu if few_shapes is None else few_shapes
        mx.set_default_device(mx.gpu if self._gpu else mx.cpu)
        mx.set_cache_limit(CACHE_BYTES[setup.device])
        if self._gpu:
            keep_wired()
        self._chunk = HEAD_CHUNK[setup.device]
        self._few_shapes = few_shapes
        self._dtype = getattr(mx, setup.dtype)
        self._steps = 0
        layout = Layout(setup.widths) if few_shapes else PADDED
        self._group = setup.group
        self._budget = TokenBudget(
            setup.micro_batch_tokens,
            ran_out=ran_out_of_memory,
            layout=layout,
            group=setup.group,
        )
        self._adapter: Tree = {}
        self._dropout = DropoutKeys()
        # mlx-lm's qwen2 reads only `rope_theta`, and transformers 5 writes `rope_parameters`: from
        # the file alone it would train on a wrong base model without an error.
        self._model, _ = mlx_lm.utils.load_model(
            setup.model.folder, model_config=engine_config(setup.model.config), lazy=True
        )
        if setup.quantization != "none":
            quantize(self._model, setup.quantization, setup.model.architecture)
        self._model.set_dtype(self._dtype)
        mx.eval(self._model.parameters())
        if self._gpu:
            keep_buffers()
        self._model.freeze()
        if setup.lora is not None:
            self._attach(setup)
        # The gradient function calls a method of this object, and this object holds the function. A
        # strong reference would close a cycle, and the model would stay in memory after its last
        # use until Python's collector happens to run; the proxy lets it go at once. The adapter is
        # an argument and not an attribute: gradients are taken of the first argument, and
        # `mx.compile` builds arrays that a function only captures into its graph as constants.
        proxy = weakref.proxy(self)
        self._gradient = mx.value_and_grad(lambda *args: proxy._surrogate(*args))
        if few_shapes:
            self._gradient = mx.compile(self._gradient)

    def _attach(self, setup: Setup) -> None:
        """Put LoRA layers into the model and an optimizer over them."""
        assert setup.lora is not None
        paths = linear_paths(setup.model.architecture.blocks)
        mlx_lm.tuner.utils.linear_to_lora_layers(
            self._model,
            len(setup.lora.blocks(setup.model.architecture.layers)),
            {
                "rank": setup.lora.rank,
                "scale": setup.lora.scale,
                "dropout": setup.lora.dropout,
                "keys": [p for name, p in paths.items() if name in setup.lora.target_names],
            },
            use_dora=setup.dora,
        )
        parameters = mlx.utils.tree_flatten(self._model.trainable_parameters())
        self._magnitudes = {name: array for name, array in parameters if array.ndim == 1}
        self._dropout = put_dropout(self._model, setup.lora.dropout)
        if setup.gradient_checkpointing:
            checkpoint_blocks(self._model)
        self.load_adapter(initial_arrays(setup.model.architecture, setup.lora, setup.seed))

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        """See `Backend.step`."""
        mean, loss_sum, grad_norm = self._within_memory(
            rows, lambda b: self._mean_gradient(b, tokens)
        )
        self._optimizer.learning_rate = lr
        applied = float(self._optimizer.learning_rate.item())
        finite = bool(np.isfinite(loss_sum) and np.isfinite(grad_norm))
        if finite:
            if (factor := clip_factor(grad_norm, self._setup.max_grad_norm)) < 1:
                mean = mlx.utils.tree_map(lambda g: g * factor, mean)
            with self._budget.no_retry():
                self._adapter = self._optimizer.apply_gradients(mean, self._adapter)
                mx.eval(self._adapter, self._optimizer.state)
            self._steps += 1
        return StepResult(loss_sum, grad_norm, applied, finite, self._budget.positions)

    def warm_up(self, rows: Rows) -> int:
        """See `Backend.warm_up`."""
        self._within_memory(rows, lambda b: self._mean_gradient(b, rows.supervised), most=1)
        return self._budget.positions

    def score(self, rows: Rows) -> Scores:
        """See `Backend.score`."""
        self._use_adapter()
        self._model.eval()

        def losses_of(batch: MicroBatch) -> np.ndarray:
            ids, positions, targets = self._arrays(batch)
            nll_N = losses(self._hidden(ids, positions), self._head, targets, self._chunk)
            return np.array(nll_N)[: len(batch.rows_N)]

        return self._within_memory(rows, lambda b: scores(len(rows), b, losses_of))

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
        return _to_peft_arrays(self._adapter)

    def state(self) -> AdapterState:
        """See `Backend.state`."""
        flat = dict(mlx.utils.tree_flatten(self._optimizer.state))
        first, second = (
            {
                to_peft(name): np.array(flat[f"{name}.{key}"]).T
                for name, _ in mlx.utils.tree_flatten(self._adapter)
            }
            for key in ("m", "v")
        )
        return AdapterState(self.adapter(), first, second, self._steps)

    def load_adapter(self, adapter: Arrays) -> None:
        """See `Backend.load_adapter`."""
        adapter = self._group.broadcast(adapter)
        held = dict(mlx.utils.tree_flatten(self._model.trainable_parameters()))
        given = {to_mlx(name): _to_mlx_array(array) for name, array in adapter.items()}
        assert given.keys() <= held.keys()
        without = {n: mx.zeros(array.shape) for n, array in held.items() if n not in given}
        whole = without | self._magnitudes | given
        # In the model's order, whatever the order of the arrays: the gradient's norm is summed in
        # it, and the sum depends on the order in its last digits.
        self._adapter = mlx.utils.tree_unflatten([(name, whole[name]) for name in held])
        self._steps = 0
        self._optimizer = mlx.optimizers.AdamW(
            learning_rate=0.0,
            betas=list(ADAM_BETAS),
            eps=ADAM_EPSILON,
            weight_decay=self._setup.weight_decay,
            bias_correction=True,  # MLX's default is off; PyTorch always corrects
        )
        self._optimizer.init(self._adapter)  # nothing is allocated before it is evaluated
        self._use_adapter()  # open sessions continue with it

    def load_state(self, state: AdapterState) -> None:
        """See `Backend.load_state`."""
        state = self._group.broadcast(state)
        names = mlx.utils.tree_flatten(self._model.trainable_parameters())
        assert state.adapter.keys() == {to_peft(name) for name, _ in names}
        self.load_adapter(state.adapter)
        self._steps = state.steps
        flat = dict(mlx.utils.tree_flatten(self._optimizer.state))
        for name in state.adapter:
            flat[f"{to_mlx(name)}.m"] = _to_mlx_array(state.exp_avg[name])
            flat[f"{to_mlx(name)}.v"] = _to_mlx_array(state.exp_avg_sq[name])
        flat["step"] = mx.array(state.steps, mx.uint64)
        self._optimizer.state = mlx.utils.tree_unflatten(list(flat.items()))

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        """See `Backend.generate`."""
        self._use_adapter()
        self._model.eval()
        generator = BatchGenerator(
            self._model,
            max_tokens=max_tokens,
            stop_tokens=[[token] for token in stop_ids],
            stream=mx.new_stream(mx.default_device()),  # its own is of the device at import
        )
        uids = generator.insert([list(prompt) for prompt in prompts])
        answers: dict[int, list[int]] = {uid: [] for uid in uids}
        stops: dict[int, int] = {}
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason == "stop":
                    stops[response.uid] = response.token
                else:
                    answers[response.uid].append(response.token)
        generator.close()
        return [
            Completion(tuple(ids), "stop" if uid in stops else "length", stops.get(uid))
            for uid, ids in answers.items()
        ]

    def session(self) -> MlxSession:
        """See `Backend.session`."""
        self._use_adapter()
        self._model.eval()
        return MlxSession(self._model)

    def logits(self, ids: Sequence[int], *, last: int) -> np.ndarray:
        """See `Backend.logits`."""
        self._use_adapter()
        self._model.eval()
        hidden_1WD = self._model.model(mx.array([list(ids)]))
        return np.array(self._head(hidden_1WD[0, -last:]).astype(mx.float32))

    def through_blocks(self, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Backend.through_blocks`."""
        self._use_adapter()
        self._model.eval()
        outputs = []
        for hidden_TD in hidden:
            states_1TD = mx.array(hidden_TD[None]).astype(self._dtype)
            for block in self._model.layers:
                states_1TD = block(states_1TD, "causal", None)
            outputs.append(np.array(states_1TD[0].astype(mx.float32)))
        return outputs

    def peak_memory_bytes(self) -> int:
        """See `Backend.peak_memory_bytes`."""
        return int(mx.get_peak_memory()) if self._gpu else peak_resident_bytes()

    def _within_memory(
        self, rows: Rows, work: Callable[[MicroBatches], T], *, most: int = MOST
    ) -> T:
        return self._budget.run(rows, work, free=_free, most=most)

    def _mean_gradient(self, batches: MicroBatches, tokens: int) -> tuple[Tree, float, float]:
        """(the gradient of sum(nll) / tokens, sum(nll), the norm of that gradient)."""
        self._model.train()
        # Left to the update, AdamW's arrays would be made after everything else is freed, and their
        # share of the peak would go unnoticed.
        mx.eval(self._optimizer.state)
        total: Tree | None = None
        loss = mx.array(0.0)
        for number, batch in enumerate(batches):
            key = mx.random.key(dropout_seed(self._setup.seed, self._steps, number))
            (_, part), gradients = self._gradient(self._adapter, key, *self._arrays(batch))
            loss = loss + part
            total = gradients if total is None else mlx.utils.tree_map(mx.add, total, gradients)
            mx.async_eval(loss, total)
        assert total is not None
        batches.join()
        total, loss = self._group.sum((total, loss))
        mean = mlx.utils.tree_map(lambda g: g / tokens, total)
        squares = [mx.square(g).sum() for _, g in mlx.utils.tree_flatten(mean)]
        norm = mx.sqrt(mx.stack(squares).sum())
        loss_sum, grad_norm = np.array(mx.stack([loss, norm])).tolist()  # the one host sync
        return mean, loss_sum, grad_norm

    def _surrogate(
        self,
        adapter: Tree,
        key: mx.array,
        ids: mx.array,
        positions: mx.array,
        targets: Columns,
    ) -> tuple[mx.array, mx.array]:
        """(a scalar whose gradient is that of the summed loss, the summed loss itself)."""
        # `adapter` holds the arrays that `value_and_grad` traces. They must be in the model before
        # the forward pass: of the arrays that the model had, the gradient would be zero.
        self._use_adapter(adapter)
        self._dropout.draw(key)
        hidden_ND = self._hidden(ids, positions)
        # The head returns d loss / d hidden as numbers, without a graph through [N, V]. The scalar
        # <d loss / d hidden, hidden> has exactly that derivative with respect to hidden, so the
        # blocks get the right gradient; its value means nothing, and the loss comes beside it. Both
        # `stop_gradient` keep MLX from differentiating the head a second time.
        losses_N, gradient_ND = loss_and_gradient(
            mx.stop_gradient(hidden_ND), self._head, self._back, targets, self._chunk
        )
        return (mx.stop_gradient(gradient_ND) * hidden_ND).sum(), losses_N.sum()

    def _use_adapter(self, adapter: Tree | None = None) -> None:
        """Put the float32 adapter into the model in the model's dtype.

        In float32 it would promote every later activation to float32. A DoRA's magnitudes, which
        have one dimension, stay float32.
        """
        tree = self._adapter if adapter is None else adapter
        self._model.update(
            mlx.utils.tree_map(lambda a: a.astype(self._dtype) if a.ndim > 1 else a, tree)
        )

    def _hidden(self, ids: mx.array, positions: mx.array) -> mx.array:
        """Hidden states after the last norm at these positions of the flattened batch, [N, D].

        After its attention, the last block is computed at these positions only: nothing else of
        its output is used.
        """
        backbone = self._model.model
        hidden_BWD = backbone.embed_tokens(ids)
        *blocks, last = backbone.layers
        for block in blocks:
            hidden_BWD = block(hidden_BWD, "causal", None)
        hidden_BWD = hidden_BWD + last.self_attn(last.input_layernorm(hidden_BWD), "causal", None)
        hidden_ND = hidden_BWD.reshape(-1, hidden_BWD.shape[-1])[positions]
        return backbone.norm(hidden_ND + last.mlp(last.post_attention_layernorm(hidden_ND)))

    def _head(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states."""
        if self._setup.model.architecture.tied:
            return self._model.model.embed_tokens.as_linear(hidden)
        return self._model.lm_head(hidden)

    def _back(self, gradient_CV: mx.array) -> mx.array:
        """The gradient of hidden states, [C, D], from that of their logits."""
        tied = self._setup.model.architecture.tied
        return back(self._model.model.embed_tokens if tied else self._model.lm_head, gradient_CV)

    def _arrays(self, batch: MicroBatch) -> tuple[mx.array, mx.array, Columns]:
        """(ids [B, W], positions [N], targets [N]); the last of N may be padding."""
        ids, positions, targets = batch.ids_BW, batch.positions_N, batch.targets
        if self._few_shapes:
            ids, positions, targets = with_few_shapes(
                ids, positions, targets, widths=self._setup.widths
            )
        return (
            mx.array(ids),
            mx.array(positions.astype(np.int32)),
            {name: mx.array(column) for name, column in targets.columns.items()},
        )


def keep_wired() -> None:
    """Let MLX keep as much memory wired as the device recommends, as mlx-lm does.

    Otherwise macOS may page the weights out between two uses. Only Metal reports a size.
    """
    if (recommended := _recommended()) is not None:
        mx.set_wired_limit(recommended)


def keep_buffers() -> None:
    """Let MLX keep freed buffers beside the weights that are loaded; see `cache_limit`."""
    if (recommended := _recommended()) is not None:
        mx.set_cache_limit(cache_limit(recommended, mx.get_active_memory()))


def _recommended() -> int | None:
    """Bytes that the device recommends to use; only Metal reports them."""
    size = mx.device_info().get("max_recommended_working_set_size")
    return None if size is None else int(size)


def _free() -> None:
    """Free what a failed pass left behind."""
    gc.collect()  # an error that a library keeps in a variable forms a cycle with its traceback
    with suppress(RuntimeError):  # further failures of that pass do not matter
        mx.synchronize()  # arrays that are still being computed keep their buffers
    mx.clear_cache()


def with_few_shapes(
    ids_BW: np.ndarray,
    positions_N: np.ndarray,
    targets: Targets,
    *,
    widths: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray, Targets]:
    """Pad a micro-batch to one of few shapes.

    Supervised positions are rounded up to a multiple of 64, rows to one of two sizes an octave, and
    widths, unless they are in `widths`, to one of four (at most a fourth more). Padded rows hold
    token 0 and nothing to predict, padded positions a target that counts nothing.

    2,000 code-alpaca-like rows in steps of four are 112 shapes. A new shape costs 0.14 s on a model
    of 28 blocks (most of it in Python, measured on a CPU): 16 s, once. Half as many shapes would
    cost 3 % of every step in padding, a quarter as many 10 %.
    """
    rows, width = ids_BW.shape
    wide = width if width in widths else rounded_up(width, smallest=SMALLEST_SHAPE, an_octave=4)
    many = _supervised(len(targets))
    row_N, column_N = np.divmod(positions_N, width)
    return (
        np.pad(
            ids_BW, ((0, next(size for size in SIZES if size >= rows) - rows), (0, wide - width))
        ),
        np.pad(row_N * wide + column_N, (0, many - len(targets))),
        targets.padded(many),
    )


def _supervised(count: int) -> int:
    """Round up to one of few counts of supervised positions; beyond a head chunk, to whole chunks.

    With powers of two, 45 % of the head's work went into padding (answers of 8 to 300 words, four
    rows a step); this way it is 17 %, with a third more shapes.

    >>> [_supervised(n) for n in (2, 33, 65, 1000, 1025)]
    [32, 64, 128, 1024, 2048]
    """
    if count <= SMALLEST_SHAPE:
        return SMALLEST_SHAPE
    chunk = HEAD_CHUNK["gpu"]
    step = 64 if count <= chunk else chunk
    return -(-count // step) * step


def _to_mlx_array(array: np.ndarray) -> mx.array:
    """Return the transpose, row-major.

    The updates of the optimizer leave row-major arrays. MLX would take over the column-major layout
    of `array.T`, whose products round differently, and a resumed step would differ from the step of
    an unbroken run.
    """
    return mx.array(np.ascontiguousarray(array.T))


def _to_peft_arrays(tree: Tree) -> dict[str, np.ndarray]:
    """Convert MLX's adapter tree to float32 arrays in PEFT's names and layout."""
    return {
        to_peft(name): np.ascontiguousarray(np.array(array, np.float32).T)
        for name, array in mlx.utils.tree_flatten(tree)
    }
