"""The model card: what it says, what it leaves out, and that nothing in a name can break it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from qwen_local.adapters.lora import Origin
from qwen_local.cards.card import (
    BaseFacts,
    CardFacts,
    DataFacts,
    Form,
    Losses,
    SetFacts,
    SourceFacts,
    card,
    code,
)
from qwen_local.cards.facts import card_facts, hub_base, write_card
from qwen_local.embedded import tiny_model_path
from qwen_local.job.schema import read_job
from qwen_local.models.licenses import License
from qwen_local.models.source import fetch, find_model

GOLDEN = Path(__file__).resolve().parents[2] / "adapters"
COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
QWEN3 = BaseFacts(
    name="Qwen/Qwen3-0.6B", on_hub=True, commit=COMMIT, license=License(identifier="apache-2.0")
)


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """As the hub reads it."""
    data: dict[str, Any] = ModelCard(card(facts)).data.to_dict()
    return data


# --- the front matter ---


@pytest.mark.parametrize(
    ("form", "weights", "library", "relation", "tags"),
    [
        ("adapter", None, "peft", "adapter", ["lora"]),
        ("peft", None, "peft", "adapter", ["lora"]),
        ("mlx", None, "mlx", "adapter", ["lora", "mlx"]),
        ("gguf-lora", "f16", "gguf", "adapter", ["lora", "gguf"]),
        ("merged", "bfloat16", "transformers", "finetune", []),
        ("merged", "4bit", "transformers", "quantized", []),
        ("gguf", "f16", "gguf", "finetune", ["gguf"]),
        ("gguf", "q8_0", "gguf", "quantized", ["gguf"]),
        ("ollama", "bf16", "gguf", "finetune", ["gguf"]),
    ],
)
def test_the_front_matter_says_what_kind_of_thing_it_is_and_of_what(
    form: Form, weights: str | None, library: str, relation: str, tags: list[str]
) -> None:
    assert front_matter(CardFacts(form=form, base=QWEN3, weights=weights)) == {
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": relation,
        "library_name": library,
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["qwen-local", *tags, f"base_model:{relation}:Qwen/Qwen3-0.6B"],
    }


def test_a_model_quantized_in_the_format_of_mlx_is_one_of_mlx() -> None:
    facts = CardFacts(form="merged", base=QWEN3, weights="4bit", weights_engine="mlx")
    assert front_matter(facts)["library_name"] == "mlx"
    assert "from transformers" not in card(facts)


def test_a_base_that_is_not_on_the_hub_is_no_key_of_the_front_matter() -> None:
    base = BaseFacts(name="qwen-local/tiny", on_hub=False)
    assert front_matter(CardFacts(form="peft", base=base)) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["qwen-local", "lora"],
    }


def test_a_license_of_its_own_has_name_and_link_and_its_notice() -> None:
    link = "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE"
    license = License(identifier="other", name="qwen-research", link=link)
    base = BaseFacts(name="Qwen/Qwen2.5-3B", on_hub=True, license=license)
    data = front_matter(CardFacts(form="mlx", base=base))
    assert (data["license"], data["license_name"], data["license_link"]) == (
        *("other", "qwen-research"),
        link,
    )
    assert (
        "The license of the base model, `qwen-research`, also applies here. Improved using Qwen."
    ) in card(CardFacts(form="mlx", base=base))


def test_data_sets_of_the_hub_are_named_once_and_files_never() -> None:
    rows = SetFacts(rows=1, tokens=2, supervised_tokens=1)

    def source(name: str, dataset: str | None) -> SourceFacts:
        return SourceFacts(
            name=name, dataset=dataset, version=None, records=1, usable=1, dropped={}, cut=0
        )

    sources = (
        source("some/poems[train]", "some/poems"),
        source("some/poems[test]", "some/poems"),
        source("train.jsonl", None),
    )
    data = DataFacts(sources=sources, train=rows, eval=None)
    assert front_matter(CardFacts(form="peft", base=QWEN3, data=data))["datasets"] == ["some/poems"]


# --- the page ---


def test_a_card_of_which_nothing_is_known_is_a_whole_page() -> None:
    facts = CardFacts(form="mlx", base=BaseFacts(name="", on_hub=False))
    assert card(facts) == (
        "---\n"
        "library_name: mlx\n"
        "pipeline_tag: text-generation\n"
        "tags:\n- qwen-local\n- lora\n- mlx\n"
        "---\n\n"
        "# LoRA adapter for an unnamed base model\n\n"
        "A LoRA adapter for an unnamed base model. The license of the base model, which also "
        "applies here, is unknown.\n\n"
        "## How to load it\n\n"
        "`FOLDER` is the folder with the files of this page. `BASE` is the folder of the base "
        "model.\n\n"
        "```sh\nqwen-local chat --adapter FOLDER --model BASE\n```\n\n"
        "With mlx-lm:\n\n"
        '```sh\nmlx_lm.generate --model BASE --adapter-path FOLDER --prompt "Hello!"\n```\n\n'
        "For PEFT, convert it:\n\n"
        "```sh\nqwen-local export --adapter FOLDER --model BASE --to peft --output NEW\n```\n\n"
        "With Ollama:\n\n"
        "```sh\nqwen-local export --adapter FOLDER --model BASE --to ollama --output NEW\n"
        "ollama create my-model -f NEW/Modelfile\n```\n\n"
        "With llama.cpp, LM Studio and other programs that read GGUF:\n\n"
        "```sh\nqwen-local export --adapter FOLDER --model BASE --to gguf --output NEW\n```\n\n"
        "## Limits\n\n"
        "The adapter learned only what the data show, and the errors of the base model remain. "
        "Nothing beyond the figures on this page was measured.\n"
    )


def test_the_figures_of_data_training_and_proof_are_told() -> None:
    source = SourceFacts(
        name="train.jsonl",
        dataset=None,
        version="ab" * 32,
        records=1200,
        usable=1190,
        dropped={"overlong": 7, "empty_answer": 3},
        cut=2,
    )
    facts = CardFacts(
        form="peft",
        base=QWEN3,
        rank=16,
        engine="mlx",
        base_quantization="4bit",
        template_sha256="cd" * 32,
        enable_thinking=False,
        trained_here=True,
        data=DataFacts(
            sources=(source,),
            train=SetFacts(rows=1100, tokens=50000, supervised_tokens=20000),
            eval=SetFacts(rows=90, tokens=4000, supervised_tokens=1600),
        ),
        losses=Losses(
            steps=300,
            first_train=2.5,
            last_train=1.25,
            first_eval=2.4,
            last_eval=1.5,
            saved_step=250,
            saved_eval=1.375,
        ),
        proof={"max_logit_difference": 2.1e-05, "top1_agreement": 1.0, "positions": 4096},
    )
    said = card(facts)
    for line in (
        "A LoRA adapter of rank 16 for "
        f"[`Qwen/Qwen3-0.6B`](https://huggingface.co/Qwen/Qwen3-0.6B) at commit `{COMMIT}`. "
        "It was trained with qwen-local and MLX on a 4bit base model. "
        "The license of the base model is `apache-2.0`.",
        "- `train.jsonl`: 1,200 records, 1,190 rows, 7 dropped as `overlong`, 3 dropped as "
        f"`empty_answer`, 2 cut, SHA-256 `{'ab' * 32}`",
        "- training set: 1,100 rows, 20,000 of 50,000 tokens supervised",
        "- evaluation set: 90 rows, 1,600 of 4,000 tokens supervised",
        "- 300 optimizer steps; this adapter was saved at step 250",
        "- training loss: 2.5000 in the first step, 1.2500 in the last",
        "- evaluation loss: 2.4000 before training, 1.3750 with this adapter, 1.5000 at the end",
        f"The chat template of the training has the SHA-256 `{'cd' * 32}`. Prompts are "
        "rendered with `enable_thinking=False`.",
        "| largest logit difference to the live adapter | 2.1e-05 |",
        "| share of positions with the same most probable token | 100.0% |",
        "| positions compared | 4,096 |",
        f'model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", revision="{COMMIT}")',
        "    enable_thinking=False,",
    ):
        assert f"\n{line}\n" in said


@pytest.mark.parametrize("form", ["gguf", "gguf-lora", "ollama"])
def test_a_gguf_names_the_programs_that_load_it(form: Form) -> None:
    said = card(CardFacts(form=form, base=QWEN3))
    assert "Ollama" in said and "llama.cpp" in said
    assert ("llama-cli -m " in said) is (form != "ollama")  # whose file has no chat template
    assert "from_pretrained" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "`plain`"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("a\n---\nb", "`a --- b`"),
        ("a|b", "`a|b`"),
        ("\x1b[31m\ud800", "`[31m`"),
        ("", "`?`"),
    ],
)
def test_any_text_is_one_line_of_code(text: str, shown: str) -> None:
    assert code(text) == shown


HOSTILE = "`x` | --- \n---\n# gotcha ```"


def test_names_of_data_never_become_markdown() -> None:
    rows = SetFacts(rows=1, tokens=2, supervised_tokens=1)
    source = SourceFacts(
        name=HOSTILE,
        dataset=None,
        version=HOSTILE,
        records=1,
        usable=0,
        dropped={HOSTILE: 1},
        cut=0,
    )
    facts = CardFacts(
        form="peft",
        base=BaseFacts(name=HOSTILE, on_hub=False),
        job=f"output: |\n  {HOSTILE}\n```\n# gotcha\n",
        data=DataFacts(sources=(source,), train=rows, eval=None),
    )
    text = card(facts)
    assert str(ModelCard(text)) == text
    assert front_matter(facts).keys() == {"library_name", "pipeline_tag", "tags"}
    headings = re.findall(
        "^#+ .*", re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.M | re.S), re.M
    )
    assert headings == [
        "# LoRA adapter for ```` `x` | ---  --- # gotcha ``` ````",
        *(f"## {name}" for name in ("How to load it", "Data", "Job", "Limits")),
    ]


# --- where the facts come from ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / "somebody"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def make_run(run: Path, *, base: str, sets: list[str], sources: list[dict[str, Any]]) -> Path:
    """The files of a finished run, around the adapter that PEFT wrote."""
    for layout in ("peft", "mlx"):
        shutil.copytree(GOLDEN / layout, run / "adapter" / layout)
        path = run / "adapter" / layout / "adapter_config.json"
        config = json.loads(path.read_text())
        config["base_model_name_or_path" if layout == "peft" else "model"] = base
        path.write_text(json.dumps(config))
        origin = {"backend": "cuda", "template_sha256": "cd" * 32, "max_length": 64}
        (path.parent / "qwen_local.json").write_text(json.dumps(origin))
    job = read_job(None, sets=[f"model.name={base}", *sets], preset="none").complete(0)
    (run / "job.yaml").write_text(job.model_copy(update={"output": str(run)}).to_yaml())
    rows = {"rows": 10, "tokens": 100, "supervised_tokens": 50}
    data = {"sources": [{"records": 10, "usable": rows, **s} for s in sources], "train": rows}
    (run / "data.json").write_text(json.dumps(data))
    events = [
        {"event": "start"},
        {"event": "eval", "step": 0, "loss": 3.0},
        {"event": "train", "step": 1, "loss": 2.5},
        {"event": "train", "step": 2, "loss": 2.25},
        {"event": "eval", "step": 2, "loss": 2.0},
        {"event": "adapter", "step": 2},
        {"event": "train", "step": 3, "loss": 2.75},
        {"event": "eval", "step": 3, "loss": 2.125},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return run


def test_no_place_on_the_users_machine_gets_into_a_card(home: Path) -> None:
    run = make_run(
        home / "runs/mine",
        base=str(home / "models/qwen"),
        sets=[
            f"data.train=[{home}/a.jsonl, some/poems, {{name: {home}, weight: 2}}, ~/b.jsonl]",
            f"data.eval={home}/data/dataset_info.json#poems",
        ],
        sources=[
            {"name": f"{home}/a.jsonl", "sha256": "ab" * 32},
            {"name": "some/poems[train]", "commit": "0123456789abcdef"},
            {"name": f"{home}/train.jsonl", "sha256": "ef" * 32, "dropped": {"overlong": 1}},
        ],
    )
    text = card(card_facts(run, "peft", proof={"top1_agreement": 0.5}))
    assert "somebody" not in text
    assert str(home.parent) not in text
    block = re.findall(r"```yaml\n(.*?)```", text, re.S)[0]
    job = YAML(typ="safe", pure=True).load(block)
    assert [source["name"] for source in job["data"]["train"]] == [
        *("a.jsonl", "some/poems", "~", "b.jsonl")
    ]
    assert job["data"]["eval"] == "dataset_info.json#poems"
    assert (job["model"]["name"], job["output"]) == ("qwen", "mine")
    assert "datasets:\n- some/poems\n" in text
    assert "base_model" not in text.partition("\n---\n")[0]


@pytest.mark.parametrize("place", ["", "adapter", "adapter/peft", "adapter/mlx"])
def test_a_run_is_found_from_any_of_its_folders(place: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base="qwen-local/tiny", sets=[], sources=[])
    assert card_facts(run / place, "adapter").losses == Losses(
        steps=3,
        first_train=2.5,
        last_train=2.75,
        first_eval=3.0,
        last_eval=2.125,
        saved_step=2,
        saved_eval=2.0,
    )


def test_of_an_adapter_of_another_tool_only_what_it_says_is_said() -> None:
    facts = card_facts(GOLDEN / "peft", "peft", base=fetch(find_model("qwen-local/tiny")))
    rank = json.loads((GOLDEN / "peft/adapter_config.json").read_text())["r"]
    license = License(identifier="apache-2.0")
    base = BaseFacts(name="qwen-local/tiny", on_hub=False, license=license)
    assert facts == CardFacts(form="peft", base=base, rank=rank)


NESTED = pytest.param(b"[" * 100_000, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"sources": 1}', NESTED, b"a: &a [*a]\n"],
    ids=range(8),
)
@pytest.mark.parametrize("name", ["job.yaml", "data.json", "metrics.jsonl"])
def test_a_file_that_is_not_as_we_write_it_is_left_out(
    name: str, broken: bytes, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", base="qwen-local/tiny", sets=[], sources=[])
    whole = card_facts(run, "adapter")
    (run / name).write_bytes(broken)
    found = card_facts(run, "adapter")
    assert found.base == whole.base
    assert card(found)
    if name == "data.json":
        assert (found.data, found.job, found.losses) == (None, whole.job, whole.losses)
    if name == "metrics.jsonl":
        assert (found.data, found.job, found.losses) == (whole.data, whole.job, None)


@pytest.mark.parametrize("name", ["job.yaml", "data.json", "metrics.jsonl", "adapter/peft"])
def test_a_file_that_is_missing_is_left_out(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base="qwen-local/tiny", sets=[], sources=[])
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert card(card_facts(run, "adapter"))


@pytest.mark.parametrize(
    ("name", "origin", "found"),
    [
        ("Qwen/Qwen3-0.6B", Origin(commit=COMMIT), True),
        ("Qwen/Qwen3-0.6B", Origin(max_length=8), True),  # one of the known ids
        ("me/mine", Origin(commit=COMMIT), True),
        ("me/mine", Origin(max_length=8), False),  # of ours, without a commit: a folder, then
        ("me/mine", None, True),
        ("qwen-local/tiny", None, False),
        ("/models/qwen", None, False),
        ("../models", Origin(commit=COMMIT), False),
        ("", None, False),
        ("here/folder", None, False),
        ("Qwen/Qwen3-8B", Origin(max_length=8), False),
    ],
)
def test_a_hub_id_is_told_from_a_folder(
    name: str, origin: Origin | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/folder").mkdir(parents=True)
    (tmp_path / "Qwen/Qwen3-8B").mkdir(parents=True)
    assert hub_base(name, origin) == (name if found else None)


def test_losses_are_shown_where_they_are_over_rows_of_the_run() -> None:
    figures = {"top1_agreement": 1.0, "loss_live": 0.25, "loss_export": 0.26, "loss_base": 3.0}
    with_rows = card_facts(GOLDEN / "peft", "peft", proof={**figures, "rows_of_run": 7})
    assert "| rows from the data of the run | 7 |" in card(with_rows)
    assert "| loss on these rows: base model alone | 3 |" in card(with_rows)
    without = card(card_facts(GOLDEN / "peft", "peft", proof={**figures, "rows_of_run": 0}))
    assert "| share of positions with the same most probable token | 100.0% |" in without
    assert "loss on" not in without


@pytest.mark.slow
def test_the_ways_to_load_it_work_as_the_card_says(tmp_path: Path) -> None:
    """Each block runs as it stands, with the two folders put in."""
    model = fetch(find_model("qwen-local/tiny"))
    for layout in ("peft", "mlx"):
        shutil.copytree(GOLDEN / layout, tmp_path / layout)
    write_card(tmp_path, card_facts(tmp_path / "peft", "adapter", base=model))
    text = (tmp_path / "README.md").read_text()
    text = text.replace("BASE", str(tiny_model_path())).replace("FOLDER", str(tmp_path))
    [python] = re.findall(r"```python\n(.*?)```", text, re.S)
    [mlx] = [line for line in text.splitlines() if line.startswith("mlx_lm.generate")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    _, *arguments = shlex.split(mlx)
    for command in (["-c", python], ["-m", "mlx_lm", "generate", *arguments]):
        ended = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip()
