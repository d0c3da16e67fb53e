"""What a GGUF file is called, and what it says of its model beside figures.

The name follows the rule of the format's own page (`docs/gguf.md` of ggml):
`<BaseName>-<SizeLabel>-<FineTune>-<Version>-<Encoding>[-LoRA].gguf`. That rule knows no dot in a
base name and asks for a version: Qwen2.5-Coder becomes `Qwen2-5-Coder` in the file's name, though
not in the file, and every file has the version that one without is said to have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import gguf

from qwen_local.cards.facts import without_folders
from qwen_local.export.gguf_encoding import Encoding
from qwen_local.models.source import ModelSource

FIRST_VERSION = "v1.0"
LONGEST = 80
"""Characters of one part of a file's name; file systems take 255 in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """Where a model comes from. What is written is never a path, which would tell of a machine."""

    base: ModelSource
    """What was trained on."""
    title: str = ""
    """What was made of it, in a word or two, such as a run's name; nothing for the bare base."""
    license: str | None = None
    """Of the result, as an SPDX id or as the hub abbreviates it."""

    @property
    def base_name(self) -> str:
        """The base without its owner or its folder: `Qwen3-0.6B`."""
        base = self.base
        if base.kind == "folder" and base.folder is not None:
            name = without_folders(str(base.folder.resolve())).strip("~/")
        else:
            name = base.name.rpartition("/")[2]
        return re.sub(r"\s+", "-", name) or "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """A model's name in the parts that GGUF knows."""

    name: str
    basename: str
    size: str
    """Its parameters, rounded: `0.6B`."""
    finetune: str
    """What it was tuned to; nothing where it was not."""


def labels(about: About, parameters: int) -> Labels:
    """Take a model's name apart, as llama.cpp's converter does.

    Args:
        about: the model.
        parameters: of the whole model, adapter or not.
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


def file_name(said: Labels, encoding: Encoding, *, lora: bool = False) -> str:
    """The name that a file should have.

    Args:
        said: of the model.
        encoding: what its matrices are held in.
        lora: whether it is an adapter.

    >>> said = Labels(name="", basename="Qwen2.5-Coder", size="1.5B", finetune="Instruct-my run")
    >>> file_name(said, "q8_0")
    'Qwen2-5-Coder-1.5B-Instruct-my-run-v1.0-Q8_0.gguf'
    """
    stem = gguf.naming_convention(
        model_name=None,
        base_name=_before_size(_plain(said.basename)) or "model",
        finetune_string=_plain(said.finetune) or None,
        version_string=FIRST_VERSION,
        size_label=said.size,
        output_type=encoding,
        model_type="LoRA" if lora else None,
    )
    return f"{stem}.gguf"


def add_about(writer: gguf.GGUFWriter, about: About, said: Labels) -> None:
    """Add what is said of a model; the writer leaves out what is empty."""
    writer.add_name(said.name)
    writer.add_basename(said.basename)
    writer.add_finetune(said.finetune)
    writer.add_version(FIRST_VERSION)
    writer.add_size_label(said.size)
    writer.add_license(about.license or "")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base_name)
    if about.base.kind == "hub":
        writer.add_base_model_organization(0, about.base.name.partition("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{about.base.name}")


def _before_size(base: str) -> str:
    """A base name of which no part can be taken for a size: none but the first begins like one.

    >>> _before_size("my-7b-2-chat")
    'my7b-2-chat'
    """
    return re.sub(r"-(?=[0-9-]*[0-9][A-Za-z])", "", base)


def _plain(text: str) -> str:
    """A part of a file's name: letters and digits, with hyphens between them."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:LONGEST].rstrip("-")
