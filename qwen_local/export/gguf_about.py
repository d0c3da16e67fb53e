"""File names and descriptive metadata of GGUF files.

File names follow the convention of the format (`docs/gguf.md` of ggml):
`<BaseName>-<SizeLabel>-<FineTune>-<Version>-<Encoding>[-LoRA].gguf`. It allows no dot in a base
name and requires a version. So Qwen2.5-Coder becomes `Qwen2-5-Coder` in the file name, though not
in the file, and every file has the convention's default version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import gguf

from qwen_local.cards.facts import without_folders
from qwen_local.export.gguf_encoding import Encoding
from qwen_local.models.source import ModelSource

FIRST_VERSION = "v1.0"
LONGEST_PART = 80
"""Characters of one part of a file name; file systems allow 255 in total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """Origin of an exported model. Never written as a path, which would reveal the machine."""

    base: ModelSource
    """The base model."""
    title: str = ""
    """Name of the fine-tune, such as the run's; empty for the base model alone."""
    license: str | None = None
    """License of the export: an SPDX id or the hub's abbreviation."""

    @property
    def base_name(self) -> str:
        """Name of the base model without owner or folder: `Qwen3-0.6B`."""
        base = self.base
        if base.kind == "folder" and base.folder is not None:
            name = without_folders(str(base.folder.resolve())).strip("~/")
        else:
            name = base.name.rpartition("/")[2]
        return re.sub(r"\s+", "-", name) or "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """A model's name, split into the parts of GGUF metadata."""

    name: str
    basename: str
    size: str
    """Parameter count, rounded: `0.6B`."""
    finetune: str
    """Name of the fine-tune; may be empty."""


def labels(about: About, parameters: int) -> Labels:
    """Split a model's name as llama.cpp's converter does.

    Args:
        about: the model.
        parameters: of the whole model, even for an adapter.
    """
    name = about.base_name
    _, _, basename, finetune, version, size = gguf.Metadata.get_model_id_components(
        name, parameters
    )
    if size is None or not re.fullmatch(r"\d+(\.\d+)?[KMBT]", size):
        size = gguf.size_label(parameters, parameters, 0, 0)
    tuned = (finetune, version, about.title)
    return Labels(
        name="-".join(filter(None, (name, about.title))),
        basename=basename or name,
        size=size,
        finetune="-".join(filter(None, tuned)),
    )


def file_name(parts: Labels, encoding: Encoding, *, lora: bool = False) -> str:
    """Return the file name of a model or an adapter.

    Args:
        parts: of the model's name.
        encoding: of its matrices.
        lora: True for an adapter.

    >>> parts = Labels(name="", basename="Qwen2.5-Coder", size="1.5B", finetune="Instruct-my run")
    >>> file_name(parts, "q8_0")
    'Qwen2-5-Coder-1.5B-Instruct-my-run-v1.0-Q8_0.gguf'
    """
    stem = gguf.naming_convention(
        model_name=None,
        base_name=_before_size(_plain(parts.basename)) or "model",
        finetune_string=_plain(parts.finetune) or None,
        version_string=FIRST_VERSION,
        size_label=parts.size,
        output_type=encoding,
        model_type="LoRA" if lora else None,
    )
    return f"{stem}.gguf"


def add_about(writer: gguf.GGUFWriter, about: About, parts: Labels) -> None:
    """Add the descriptive metadata; the writer omits empty values."""
    writer.add_name(parts.name)
    writer.add_basename(parts.basename)
    writer.add_finetune(parts.finetune)
    writer.add_version(FIRST_VERSION)
    writer.add_size_label(parts.size)
    writer.add_license(about.license or "")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base_name)
    if about.base.kind == "hub":
        writer.add_base_model_organization(0, about.base.name.partition("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{about.base.name}")


def _before_size(base: str) -> str:
    """Join parts of a base name that look like a size, so that only the first part may.

    >>> _before_size("my-7b-2-chat")
    'my7b-2-chat'
    """
    return re.sub(r"-(?=[0-9-]*[0-9][A-Za-z])", "", base)


def _plain(text: str) -> str:
    """Reduce text to letters, digits and hyphens for a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:LONGEST_PART].rstrip("-")
