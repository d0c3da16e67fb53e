"""The shape of a model: its blocks, their linear layers, and the counts that follow from them.

Shapes are (out, in), as a linear layer stores its weight. `families/` builds architectures; this
module only describes them, so that everything else asks a block for its layers instead of knowing
them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Shape = tuple[int, ...]
Place = tuple[int, str]
"""(block number, path in the block) of a linear layer: `(3, "self_attn.q_proj")`."""
BlockKind = Literal["attention", "qk_norm_attention"]
"""Causal attention and a gated MLP; `qk_norm`: queries and keys are normalized per head."""

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
"""The last norm, before the head."""
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Format of the quantized matrices in a model's files."""

    scheme: Literal["affine", "nf4", "int8"]
    """MLX's affine quantization (weight = scale * code + bias), or a format of bitsandbytes."""
    bits: int
    """Bits per weight, without scales."""
    group: int
    """Number of weights that share a scale; 0 for a whole row."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Stored | None:
        """Read it from a checked config.json; None if the files hold floats."""
        if affine := config.get("quantization"):
            return cls(scheme="affine", bits=affine["bits"], group=affine["group_size"])
        if not (theirs := config.get("quantization_config")):
            return None
        if theirs.get("load_in_4bit"):
            return cls(scheme="nf4", bits=4, group=64)
        return cls(scheme="int8", bits=8, group=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A linear layer of a block."""

    path: str
    """Path in the block: `self_attn.q_proj`."""
    shape: tuple[int, int]
    """(out, in)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block of a model."""

    kind: BlockKind
    linears: Mapping[str, Linear]
    """The layers that can carry an adapter, by short name (`q_proj`), in their order."""
    tensors: Mapping[str, Shape]
    """Name in the block -> shape of every tensor, the linear layers' weights among them, in the
    order in which an export writes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Sizes and blocks of one model."""

    model_type: str
    """The family, as config.json names it: a key of `families.FAMILIES`."""
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """True if the head is the embedding matrix."""
    rope_theta: float
    positions: int
    """Longest sequence that the model was made for, in tokens."""
    blocks: tuple[Block, ...]
    stored: Stored | None = None
    """Quantization of the files; None if they hold floats."""

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of the first block, by short name.

        For estimates that multiply one block: the blocks of the dense families are all alike.
        """
        return {name: linear.shape for name, linear in self.blocks[0].linears.items()}

    def linear_weights(self) -> dict[str, Place]:
        """Name of each linear layer's weight in the blocks -> its place."""
        return {
            f"{block_prefix(number)}{linear.path}.weight": (number, linear.path)
            for number, block in enumerate(self.blocks)
            for linear in block.linears.values()
        }

    def weight_shapes(self) -> dict[str, Shape]:
        """Name and shape of every tensor, as the safetensors files name them."""
        shapes: dict[str, Shape] = {
            EMBEDDING: (self.vocabulary, self.hidden),
            NORM: (self.hidden,),
        }
        if not self.tied:
            shapes[HEAD] = (self.vocabulary, self.hidden)
        for number, block in enumerate(self.blocks):
            prefix = block_prefix(number)
            shapes |= {prefix + name: shape for name, shape in block.tensors.items()}
        return shapes

    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def lora_parameters(self, rank: int, targets: Collection[str], layers: int) -> int:
        """Number of trainable parameters of a LoRA adapter: rank x (in + out) for each target.

        Args:
            rank: r of the update B A.
            targets: short names of linear layers.
            layers: number of blocks that carry the adapter, counted from the last.
        """
        return sum(
            rank * sum(linear.shape)
            for block in self.blocks[self.layers - layers :]
            for name, linear in block.linears.items()
            if name in targets
        )


def block_prefix(number: int) -> str:
    """Common start of the names of a block's tensors.

    >>> block_prefix(3)
    'model.layers.3.'
    """
    return f"model.layers.{number}."


def linear_paths(blocks: Collection[Block]) -> dict[str, str]:
    """Short name -> path of each linear layer that at least one of the blocks has."""
    return {name: linear.path for block in blocks for name, linear in block.linears.items()}
