"""The model card: README.md of an adapter, a merged model or a GGUF file.

Unknown facts are left out. Names come from data and from files of others, so they are shown as
code, where Markdown has no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_local.embedded import TINY_MODEL
from qwen_local.models.licenses import License

Form = Literal["adapter", "peft", "mlx", "merged", "gguf", "gguf-lora", "ollama"]
"""Kind of a folder; `adapter` is that of a run, with `peft/` and `mlx/` in it."""

LIBRARIES: Mapping[Form, str] = {
    "adapter": "peft",
    "peft": "peft",
    "mlx": "mlx",
    "merged": "transformers",
    "gguf": "gguf",
    "gguf-lora": "gguf",
    "ollama": "gguf",
}
ADAPTERS: tuple[Form, ...] = ("adapter", "peft", "mlx", "gguf-lora")

PROOF_FIGURES = {
    "max_logit_difference": "largest logit difference to the live adapter",
    "top1_agreement": "share of positions with the same most probable token",
    "positions": "positions compared",
    "rows_of_run": "rows from the data of the run",
    "loss_live": "loss on these rows: live adapter",
    "loss_export": "loss on these rows: this export",
    "loss_base": "loss on these rows: base model alone",
}
"""Fields of proof.json that a card shows, with their labels."""
OF_RUN = ("rows_of_run", "loss_live", "loss_export", "loss_base")
"""Fields that are shown only if rows of the run were measured: losses on the fixed conversations
do not measure the adapter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseFacts:
    """The model that the adapter was trained on."""

    name: str
    """Hub id, `qwen-local/tiny`, or the last part of a folder's path; "" if unknown."""
    on_hub: bool
    """True if the name is a hub id."""
    commit: str | None = None
    """Commit on the hub."""
    license: License | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """One source of the data."""

    name: str
    """Name of a file, or a hub id with subset and split."""
    dataset: str | None
    """Hub id without subset and split; None for a file."""
    version: str | None
    """SHA-256 of the file, or commit on the hub."""
    records: int
    usable: int
    """Number of rows made from the records."""
    dropped: Mapping[str, int]
    """Number of rows left out, by reason."""
    cut: int
    """Number of rows cut to the maximum length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetFacts:
    """Size of the training or evaluation set."""

    rows: int
    tokens: int
    supervised_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """Sources and sizes of the data."""

    sources: tuple[SourceFacts, ...]
    train: SetFacts
    eval: SetFacts | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Course of the training; losses in nats per supervised token."""

    steps: int
    """Number of optimizer steps."""
    first_train: float
    last_train: float
    first_eval: float | None
    """Evaluation loss before the first step."""
    last_eval: float | None
    saved_step: int | None
    """Step at which the adapter was saved."""
    saved_eval: float | None
    """Evaluation loss at that step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Everything that a card shows. It has no path of any machine."""

    form: Form
    base: BaseFacts
    rank: int | None = None
    """Rank of the adapter."""
    dora: bool = False
    """True if the adapter has DoRA magnitudes."""
    engine: Literal["mlx", "cuda"] | None = None
    """Engine that trained the adapter."""
    base_quantization: str = "none"
    """Quantization of the base model during training."""
    weights: str | None = None
    """Format of the weights in the folder: `bfloat16`, `4bit`, `q8_0`, ..."""
    weights_engine: Literal["mlx", "cuda"] | None = None
    """Only engine that reads the weights, if they are quantized in its own format."""
    template_sha256: str | None = None
    enable_thinking: bool | None = None
    file: str = "MODEL.gguf"
    """Name of the GGUF file, if there is one."""
    trained_here: bool = False
    """True if qwen-local trained it, so that template and thinking are known."""
    job: str | None = None
    """Job as YAML."""
    data: DataFacts | None = None
    losses: Losses | None = None
    proof: Mapping[str, float] | None = None
    """Fields of proof.json, all of them in `PROOF_FIGURES`."""

    @property
    def relation(self) -> Literal["adapter", "finetune", "quantized"]:
        """`base_model_relation` of the front matter."""
        if self.form in ADAPTERS:
            return "adapter"
        return "quantized" if self.weights in ("4bit", "8bit", "q8_0") else "finetune"

    @property
    def library(self) -> str:
        """`library_name` of the front matter."""
        only_mlx = self.form == "merged" and self.weights_engine == "mlx"
        return "mlx" if only_mlx else LIBRARIES[self.form]


def card(facts: CardFacts) -> str:
    """Return the text of README.md, front matter and Markdown. Needs no network."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(**_metadata(facts))
    body = "\n\n".join(_sections(facts))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _metadata(facts: CardFacts) -> dict[str, Any]:
    """Return the front matter, by key."""
    base, sources = facts.base, facts.data.sources if facts.data else ()
    tags = ["qwen-local"]
    tags += ["lora"] if facts.relation == "adapter" else []
    tags += [facts.library] if facts.library in ("mlx", "gguf") else []
    known: dict[str, Any] = {
        "library_name": facts.library,
        "pipeline_tag": "text-generation",
        "tags": tags,
        "datasets": list(dict.fromkeys(s.dataset for s in sources if s.dataset)) or None,
    }
    if base.on_hub:
        tags.append(f"base_model:{facts.relation}:{base.name}")
        known |= {"base_model": base.name, "base_model_relation": facts.relation}
    if base.license is not None:
        known |= {
            "license": base.license.identifier,
            "license_name": base.license.name,
            "license_link": base.license.link,
        }
    return known


def _sections(facts: CardFacts) -> Iterator[str]:
    yield f"# {_title(facts)}"
    yield _summary(facts)
    yield "## How to load it"
    yield f"`FOLDER` is the folder with the files of this page.{_about_base(facts)}"
    yield from _loading(facts)
    if facts.data is not None:
        yield "## Data"
        yield "\n".join(f"- {line}" for line in _data(facts.data))
    if facts.losses is not None:
        yield "## Training"
        yield "\n".join(f"- {line}" for line in _losses(facts.losses))
    if facts.trained_here:
        yield "## Prompts"
        yield _prompts(facts)
    if facts.proof:
        yield "## Proof"
        yield (
            "The live adapter and this export computed the same text. Losses are in nats per token."
        )
        yield "\n".join(["| | |", "|---|---|", *_proof(facts.proof)])
    if facts.job is not None:
        yield "## Job"
        yield "All settings of the training, without the folders of files."
        yield block(facts.job, "yaml")
    yield "## Limits"
    yield (
        "The adapter learned only what the data show, and the errors of the base model remain. "
        "Nothing beyond the figures on this page was measured."
    )


def _title(facts: CardFacts) -> str:
    base = _named(facts.base)
    match facts.form:
        case "adapter" | "peft" | "mlx":
            return f"{_kind(facts)} adapter for {base}"
        case "gguf-lora":
            return f"LoRA adapter for {base}, as GGUF"
        case "merged":
            return f"{base}, fine-tuned"
        case "gguf":
            return f"{base}, fine-tuned, as GGUF"
        case "ollama":
            return f"{base}, fine-tuned, for Ollama"


def _summary(facts: CardFacts) -> str:
    base = facts.base
    at = f" at commit {code(base.commit)}" if base.commit else ""
    rank = f" of rank {facts.rank}" if facts.rank else ""
    page = f"(https://huggingface.co/{base.name})"
    model = f"[{_named(base)}]{page}" if base.on_hub else _named(base)
    sentences = [
        f"A {_kind(facts)} adapter{rank} for {model}{at}."
        if facts.relation == "adapter"
        else f"{model}{at} with a {_kind(facts)} adapter{rank} merged into its weights."
    ]
    if facts.weights is not None:
        sentences.append(f"Its weights are stored as {facts.weights}.")
    if facts.trained_here:
        base_model = (
            ""
            if facts.base_quantization == "none"
            else f" on a {facts.base_quantization} base model"
        )
        engines = {"mlx": " and MLX", "cuda": " and PyTorch", None: ""}
        sentences.append(f"It was trained with qwen-local{engines[facts.engine]}{base_model}.")
    if base.name == TINY_MODEL:
        sentences.append("The base model is part of qwen-local and not on the hub.")
    elif base.name and not base.on_hub:
        sentences.append(
            "The base model was in a local folder with this name; which model it was is unknown."
        )
    return " ".join([*sentences, _license(base.license)])


def _kind(facts: CardFacts) -> str:
    return "DoRA" if facts.dora else "LoRA"


def _named(base: BaseFacts) -> str:
    return code(base.name) if base.name else "an unnamed base model"


def _license(license: License | None) -> str:
    match license:
        case None:
            return "The license of the base model, which also applies here, is unknown."
        case License(identifier="other", name=str(name)):
            qwen = " Improved using Qwen." if name.startswith("qwen") else ""
            return f"The license of the base model, {code(name)}, also applies here.{qwen}"
        case License(identifier=identifier):
            return f"The license of the base model is {code(identifier)}."


def _about_base(facts: CardFacts) -> str:
    if facts.base.on_hub or facts.form not in ("adapter", "peft", "mlx"):
        return ""
    if facts.base.name == TINY_MODEL:
        return " `BASE` is the folder `qwen_local/embedded/tiny` of the package."
    return " `BASE` is the folder of the base model."


def _loading(facts: CardFacts) -> Iterator[str]:
    """Yield the commands and code that load it, by program."""
    base = facts.base.name if facts.base.on_hub else "BASE"
    sub = facts.form == "adapter"
    match facts.form:
        case "adapter" | "peft" | "mlx":
            found = facts.base.on_hub or facts.base.name == TINY_MODEL
            model = "" if found else " --model BASE"
            yield block(f"qwen-local chat --adapter FOLDER{model}", "sh")
            if facts.form != "mlx":
                yield "With PEFT:"
                yield block(_python(facts, base, "FOLDER/peft" if sub else "FOLDER"), "python")
            if facts.form != "peft":
                yield "With mlx-lm:"
                yield block(_mlx(facts, base, "FOLDER/mlx" if sub else "FOLDER"), "sh")
            other = {"adapter": (), "peft": ("mlx",), "mlx": ("peft",)}[facts.form]
            for layout in other:
                name = {"mlx": "mlx-lm", "peft": "PEFT"}[layout]
                yield f"For {name}, convert it:"
                export = f"qwen-local export --adapter FOLDER{model} --to {layout} --output NEW"
                yield block(export, "sh")
            yield "With Ollama:"
            export = f"qwen-local export --adapter FOLDER{model} --to ollama --output NEW"
            yield block(f"{export}\nollama create my-model -f NEW/Modelfile", "sh")
            yield "With llama.cpp, LM Studio and other programs that read GGUF:"
            export = f"qwen-local export --adapter FOLDER{model} --to gguf --output NEW"
            yield block(export, "sh")
        case "merged":
            yield block("qwen-local chat --model FOLDER", "sh")
            if facts.weights_engine != "mlx":
                yield "With transformers:"
                yield block(_python(facts, "FOLDER", None), "python")
            if facts.weights_engine != "cuda":
                yield "With mlx-lm:"
                yield block(_mlx(facts, "FOLDER", None), "sh")
        case "gguf":
            yield "With llama.cpp:"
            yield block(f"llama-cli -m FOLDER/{facts.file}", "sh")
            yield (
                "For Ollama, use `qwen-local export --to ollama`, which also writes a Modelfile "
                "with the template and the stop tokens."
            )
        case "gguf-lora":
            yield "With llama.cpp, on a GGUF of the same base model:"
            yield block(f"llama-cli -m BASE.gguf --lora FOLDER/{facts.file}", "sh")
            yield (
                "Ollama does not load adapters; `qwen-local export --to ollama` merges this one."
            )
        case "ollama":
            yield block("ollama create my-model -f FOLDER/Modelfile\nollama run my-model", "sh")
            yield (
                "The GGUF file has no chat template, because Ollama would prefer it to that of the "
                "Modelfile. For llama.cpp and other programs use `qwen-local export --to gguf`."
            )


def _python(facts: CardFacts, model: str, adapter: str | None) -> str:
    commit = facts.base.commit if adapter and facts.base.on_hub else None
    revision = f', revision="{commit}"' if commit else ""
    thinking = facts.enable_thinking
    extra = "" if thinking is None else f"    enable_thinking={thinking},\n"
    lines = ["from peft import PeftModel"] if adapter else []
    lines += [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{model}"{revision})',
        f'model = AutoModelForCausalLM.from_pretrained("{model}"{revision})',
    ]
    lines += [f'model = PeftModel.from_pretrained(model, "{adapter}")'] if adapter else []
    lines += [
        "prompt = tokenizer.apply_chat_template(",
        '    [{"role": "user", "content": "Hello!"}],',
        "    add_generation_prompt=True,",
        f'{extra}    return_tensors="pt",',
        "    return_dict=True,",
        ")",
        "answer = model.generate(**prompt, max_new_tokens=256)[0]",
        'print(tokenizer.decode(answer[prompt["input_ids"].shape[1] :]))',
    ]
    return "\n".join(lines)


def _mlx(facts: CardFacts, model: str, adapter: str | None) -> str:
    on = f" --adapter-path {adapter}" if adapter else ""
    thinking = facts.enable_thinking
    values = {True: "true", False: "false"}
    template_options = (
        ""
        if thinking is None
        else f" \\\n  --chat-template-config '{{\"enable_thinking\": {values[thinking]}}}'"
    )
    return f'mlx_lm.generate --model {model}{on} --prompt "Hello!"{template_options}'


def _data(data: DataFacts) -> Iterator[str]:
    for source in data.sources:
        parts = [f"{code(source.name)}: {source.records:,} records, {source.usable:,} rows"]
        parts += [f"{count:,} dropped as {code(why)}" for why, count in source.dropped.items()]
        parts += [f"{source.cut:,} cut"] if source.cut else []
        kind = "commit" if source.dataset else "SHA-256"
        parts += [f"{kind} {code(source.version)}"] if source.version else []
        yield ", ".join(parts)
    sets = [("training set", data.train), ("evaluation set", data.eval)]
    for label, rows in sets:
        if rows is not None:
            yield (
                f"{label}: {rows.rows:,} rows, {rows.supervised_tokens:,} of {rows.tokens:,} "
                "tokens supervised"
            )


def _losses(losses: Losses) -> Iterator[str]:
    saved = f"; this adapter was saved at step {losses.saved_step:,}" if losses.saved_step else ""
    yield f"{losses.steps:,} optimizer steps{saved}"
    yield (
        f"training loss: {losses.first_train:.4f} in the first step, {losses.last_train:.4f} in "
        "the last"
    )
    moments = [
        (losses.first_eval, "before training"),
        (losses.saved_eval, "with this adapter"),
        (losses.last_eval, "at the end"),
    ]
    if evaluated := [f"{loss:.4f} {when}" for loss, when in moments if loss is not None]:
        yield f"evaluation loss: {', '.join(evaluated)}"


def _prompts(facts: CardFacts) -> str:
    sentences = []
    if facts.template_sha256 is not None:
        sha256 = code(facts.template_sha256)
        sentences.append(f"The chat template of the training has the SHA-256 {sha256}.")
    thinking = {
        None: "Prompts are rendered without `enable_thinking`.",
        True: "Prompts are rendered with `enable_thinking=True`.",
        False: "Prompts are rendered with `enable_thinking=False`.",
    }
    return " ".join([*sentences, thinking[facts.enable_thinking]])


def _proof(proof: Mapping[str, float]) -> Iterator[str]:
    for key, label in PROOF_FIGURES.items():
        if key not in proof or (key in OF_RUN and not proof.get("rows_of_run")):
            continue
        figure = proof[key]
        match key:
            case "positions" | "rows_of_run":
                value = f"{figure:,.0f}"
            case "top1_agreement":
                value = f"{figure:.1%}"
            case _:
                value = f"{figure:.4g}"
        yield f"| {label} | {value} |"


def code(text: str) -> str:
    """Return text as inline code of Markdown, whatever it contains.

    >>> print(code("a`b"))
    `` a`b ``
    """
    line = "".join(c if c.isprintable() else " " for c in text).strip() or "?"
    longest = max(map(len, re.findall("`+", line)), default=0)
    if not longest:
        return f"`{line}`"
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}"


def block(text: str, language: str) -> str:
    """Return text as a code block, whatever it contains."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
