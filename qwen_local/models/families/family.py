"""The facts in which model families differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_local.models.architecture import Architecture, Block, Stored


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes that determine a block."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model family: rules for its config.json, its blocks, and its names elsewhere."""

    model_type: str
    """Value of `model_type` in config.json."""
    model_class: str
    """Class of transformers, in `architectures` of config.json."""
    gguf: str
    """Name of the architecture in GGUF files."""
    targets: tuple[str, ...]
    """Short names of the linear layers that can carry an adapter, in their order."""
    sizes: tuple[str, ...]
    """Keys of config.json that must hold a positive integer, and that both engines read."""
    size_faults: Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]]
    """Check of sizes that are present and positive; yields (key, problem)."""
    block: Callable[[Sizes], Block]
    """Builds a block."""
    ignored_tensors: tuple[str, ...] = ()
    """Name endings of tensors that old files hold and both engines ignore."""
    mlx_lm_reads_rope_parameters: bool
    """False if mlx-lm reads `rope_theta` at the top level of config.json only."""

    def architecture(
        self,
        sizes: Sizes,
        *,
        layers: int,
        vocabulary: int,
        tied: bool,
        rope_theta: float,
        positions: int,
        stored: Stored | None = None,
    ) -> Architecture:
        """Build a model of this family.

        Args:
            sizes: of every block.
            layers: number of blocks.
            vocabulary: rows of the embedding.
            tied: True if the head is the embedding.
            rope_theta: base of the rotary embeddings.
            positions: longest sequence that the model was made for, in tokens.
            stored: quantization of the files; None for floats.
        """
        return Architecture(
            model_type=self.model_type,
            hidden=sizes.hidden,
            intermediate=sizes.intermediate,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocabulary=vocabulary,
            tied=tied,
            rope_theta=rope_theta,
            positions=positions,
            blocks=(self.block(sizes),) * layers,
            stored=stored,
        )

    def from_config(self, config: Mapping[str, Any]) -> Architecture:
        """Read a checked config.json, as transformers 4 (`rope_theta`) or 5 writes it."""
        rope = config.get("rope_parameters") or {}
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        sizes = Sizes(
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config["num_key_value_heads"]),
            head_dim=int(config.get("head_dim") or hidden // heads),
        )
        return self.architecture(
            sizes,
            layers=int(config["num_hidden_layers"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config["tie_word_embeddings"]),
            rope_theta=float(rope.get("rope_theta") or config["rope_theta"]),
            positions=int(config["max_position_embeddings"]),
            stored=Stored.from_config(config),
        )
