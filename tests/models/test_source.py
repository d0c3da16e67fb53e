"""Where a model comes from, and what is said when it cannot be had. No test asks the network."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from safetensors.numpy import save_file

from qwen_local.embedded import tiny_model_path
from qwen_local.errors import ModelError
from qwen_local.models.families import architecture_of
from qwen_local.models.published import PUBLISHED
from qwen_local.models.source import (
    MODEL_FILES,
    TOKENIZER_FILES,
    ModelSource,
    fetch,
    fetch_tokenizer,
    find_model,
)

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rope_theta": 10_000,
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub fails, unless a test puts another answer here."""

    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def refusal_of(name: str, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as raised:
        find_model(name, revision)
    return str(raised.value)


def write_model(folder: Path, **change: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | change
    (folder / "config.json").write_text(json.dumps(config))
    shapes = architecture_of(config).weight_shapes()
    weights = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


# ------------------------------------------------------------------------------ names


def test_the_embedded_model_is_known_by_its_name() -> None:
    source = find_model("qwen-local/tiny")
    assert source == ModelSource(
        kind="embedded", name="qwen-local/tiny", folder=tiny_model_path(), revision=None
    )
    assert source.architecture(download=False).parameters() == 2_164_928
    assert fetch(source).commit is None


def test_a_folder_is_never_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "Qwen" / "Qwen3-0.6B", num_hidden_layers=3)
    source = find_model("Qwen/Qwen3-0.6B")
    assert source.kind == "folder"
    assert source.architecture(download=True).layers == 3
    files = fetch(source)
    assert (files.name, files.folder, files.commit) == (
        "Qwen/Qwen3-0.6B",
        Path("Qwen/Qwen3-0.6B"),
        None,
    )
    assert files.config == CONFIG | {"num_hidden_layers": 3}


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "models" / "mine")
    assert find_model("~/models/mine").folder == tmp_path / "models" / "mine"


def test_a_name_with_an_owner_is_a_hub_id() -> None:
    assert find_model("Qwen/Qwen3-0.6B", "main") == ModelSource(
        kind="hub", name="Qwen/Qwen3-0.6B", folder=None, revision="main"
    )


NEITHER = "expected an existing folder or a hub id; found neither\n\nhint:"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./missing", f"./missing: {NEITHER} a hub id is <owner>/<model>"),
        ("a/b/c", f"a/b/c: {NEITHER} a hub id is <owner>/<model>"),
        ("Qwen3-0.6b", f"Qwen3-0.6b: {NEITHER} did you mean Qwen/Qwen3-0.6B?"),
        ("", f"model: {NEITHER} a hub id is <owner>/<model>"),
        ("~nobody-here/x", f"~nobody-here/x: {NEITHER} a hub id is <owner>/<model>"),
        ("x" * 5000, f"{'x' * 5000}: {NEITHER} a hub id is <owner>/<model>"),
        ("a\0b", f"a\0b: {NEITHER} a hub id is <owner>/<model>"),
        (
            "qwen-local/tyni",
            "qwen-local/tyni: no such embedded model\n\nhint: did you mean qwen-local/tiny?",
        ),
    ],
)
def test_a_name_that_can_be_nothing_is_refused(name: str, expected: str) -> None:
    assert refusal_of(name) == expected


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = write_model(tmp_path) / "model.safetensors"
    assert refusal_of(str(file)) == (
        f"{file}: expected a model folder; found a file\n\n"
        f"hint: pass the folder that holds it: {tmp_path}"
    )


def test_only_the_hub_has_revisions(tmp_path: Path) -> None:
    for name in ("qwen-local/tiny", str(tmp_path)):
        assert refusal_of(name, "main") == (
            f"{name}: only models on the hub have revisions; found 'main'\n\n"
            "hint: remove model.revision"
        )


# ------------------------------------------------------------------------------ the hub


class Hub:
    """Stands for `snapshot_download`: a model with a commit, whose calls are kept."""

    def __init__(self, cache: Path, **change: object) -> None:
        self.folder = write_model(cache / COMMIT, **change)
        self.calls: list[tuple[str, str | None, tuple[str, ...], bool]] = []

    def __call__(
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        assert ignore_patterns == ["*/*"]
        self.calls.append((repo_id, revision, tuple(allow_patterns), local_files_only))
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def test_the_commit_that_was_resolved_is_recorded_and_kept_to(hub: Hub) -> None:
    files = fetch(find_model("me/model", "main"))
    assert (files.name, files.folder, files.commit) == ("me/model", hub.folder, COMMIT)
    assert files.architecture.layers == 2
    assert hub.calls == [
        ("me/model", "main", ("config.json",), False),
        ("me/model", COMMIT, MODEL_FILES, False),
    ]


def test_the_tokenizer_comes_without_the_weights(hub: Hub) -> None:
    assert fetch_tokenizer(find_model("me/model", "main")) == hub.folder
    assert hub.calls == [("me/model", "main", TOKENIZER_FILES, False)]
    assert not any("safetensors" in pattern for pattern in TOKENIZER_FILES)


def test_a_model_that_is_refused_costs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, auto_map={"AutoModel": "evil.Model"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(ModelError) as raised:
        fetch(find_model("me/model"))
    assert str(raised.value) == (
        'me/model: config.json: auto_map: names code to run: {"AutoModel": "evil.Model"}\n\n'
        "hint: code that comes with a model is never run; use a model without it"
    )
    assert [patterns for _, _, patterns, _ in hub.calls] == [("config.json",)]


def test_figures_of_published_models_need_neither_network_nor_cache() -> None:
    for name in PUBLISHED:
        assert find_model(name).architecture(download=False) == PUBLISHED[name]


def test_figures_of_other_models_come_from_the_cache_or_by_download(hub: Hub) -> None:
    assert find_model("me/model").architecture(download=False).layers == 2
    assert find_model("me/model").architecture(download=True).layers == 2
    assert hub.calls == [
        ("me/model", None, ("config.json",), True),
        ("me/model", None, ("config.json",), False),
    ]


def test_a_config_that_may_be_downloaded_goes_before_the_published_figures(hub: Hub) -> None:
    assert find_model("Qwen/Qwen3-0.6B").architecture(download=True).layers == 2
    assert hub.calls == [("Qwen/Qwen3-0.6B", None, ("config.json",), False)]


def test_only_data_is_downloaded() -> None:
    wanted = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "vocab.json",
    ]
    others = ["pytorch_model.bin", "model.py", "model.gguf", "onnx/config.json", "README.md"]
    taken = filter_repo_objects(
        wanted + others, allow_patterns=list(MODEL_FILES), ignore_patterns=["*/*"]
    )
    assert list(taken) == wanted


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, "said by the hub")
    error.response = type("Response", (), {"status_code": status})()
    return error


ONCE = "download it once while online: hf download me/model"


@pytest.mark.parametrize(
    ("error", "offline", "expected"),
    [
        (
            errors.HFValidationError("Cannot have -- in repo_id"),
            False,
            "not a valid hub id\n\nhint: a hub id is <owner>/<model>",
        ),
        (
            http_error(errors.GatedRepoError, 403),
            False,
            "gated: your account has no access yet\n\nhint: accept its terms on "
            "https://hub.test/me/model, then set HF_TOKEN to a token of your account",
        ),
        (
            http_error(errors.RepositoryNotFoundError, 404),
            False,
            "neither a local folder nor a model on the hub that you can access\n\n"
            "hint: check the name; for a private model set HF_TOKEN",
        ),
        (
            http_error(errors.RevisionNotFoundError, 404),
            False,
            "has no revision 'v1' on the hub\n\nhint: use one of those on "
            "https://hub.test/me/model/tree/main, or remove model.revision",
        ),
        (
            errors.LocalEntryNotFoundError("said by the hub"),
            True,
            "not in the cache, and HF_HUB_OFFLINE is set, so the hub was not contacted\n\n"
            f"hint: unset HF_HUB_OFFLINE, or {ONCE}",
        ),
        (
            errors.IncompleteSnapshotError("said by the hub", "x"),
            True,
            f"incomplete in the cache, and the hub was not contacted\n\nhint: {ONCE}",
        ),
        (
            errors.LocalEntryNotFoundError("said by the hub"),
            False,
            "not a local folder, not in the cache, and the hub cannot be reached\n\n"
            "hint: check the connection to https://hub.test (HTTPS_PROXY, HF_ENDPOINT); or, on a "
            "machine that is online, hf download me/model --local-dir FOLDER, and pass "
            "`model=FOLDER`",
        ),
        (
            http_error(errors.HfHubHTTPError, 503),
            False,
            "the hub answered with status 503\n\n"
            "hint: try again later; for 401 and 403 check HF_TOKEN",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            False,
            "cannot be saved: no space left on device\n\n"
            "hint: free space in /cache, or set HF_HOME to another folder",
        ),
        (
            errors.HTTPError("said by the network"),  # type: ignore[attr-defined]
            False,
            "the download was interrupted: HTTPError\n\n"
            "hint: run the command again; it continues where it stopped",
        ),
    ],
)
def test_every_way_in_which_the_hub_fails_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception, offline: bool, expected: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/cache")
    with pytest.raises(ModelError) as raised:
        fetch(find_model("me/model", "v1"))
    assert str(raised.value) == f"me/model: {expected}"
    assert raised.value.__cause__ is error


def test_a_near_miss_of_a_published_name_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise http_error(errors.RepositoryNotFoundError, 404)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for name, hint in [
        ("Qwen/Qwen2.5-Coder-1.5B-instruct", "did you mean Qwen/Qwen2.5-Coder-1.5B-Instruct?"),
        ("Qwen/Qwen3-0.6B", "check the name; for a private model set HF_TOKEN"),
    ]:
        with pytest.raises(ModelError) as raised:
            fetch(find_model(name))
        assert raised.value.faults[0].hint == hint


def test_a_figure_that_is_neither_published_nor_cached_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("said by the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError) as raised:
        find_model("me/model").architecture(download=False)
    assert str(raised.value) == (
        "me/model: not a local folder, not in the cache, and not a model of known sizes\n\n"
        f"hint: if it is a dense Qwen2 or Qwen3, {ONCE}"
    )


# ------------------------------------------------------------------------------ the real client


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub itself, offline, with a cache that holds me/model at one commit."""
    monkeypatch.undo()  # snapshot_download is again the real one
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--me--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    write_model(home / "snapshots" / COMMIT)
    return home


def test_a_cached_model_is_found_offline_by_huggingface_hub(offline_cache: Path) -> None:
    folder = offline_cache / "snapshots" / COMMIT
    for download in (False, True):
        files = fetch(find_model("me/model"), download=download)
        assert (files.folder, files.commit) == (folder, COMMIT)


@pytest.mark.usefixtures("offline_cache")
def test_a_model_that_is_not_cached_is_not_found_offline() -> None:
    with pytest.raises(ModelError) as raised:
        fetch(find_model("me/other"))
    assert str(raised.value) == (
        "me/other: not in the cache, and HF_HUB_OFFLINE is set, so the hub was not contacted\n\n"
        "hint: unset HF_HUB_OFFLINE, or download it once while online: hf download me/other"
    )


def test_weights_that_are_not_cached_are_missed_before_an_engine_is(offline_cache: Path) -> None:
    (offline_cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    source = find_model("me/model")
    assert source.architecture(download=False).layers == 2
    with pytest.raises(ModelError) as raised:
        fetch(source)
    assert str(raised.value) == (
        "me/model: expected *.safetensors; found no weights\n\nhint: use the model as "
        "safetensors, or save it in that format where it was made"
    )


def test_an_id_that_the_hub_would_refuse_is_refused_by_its_client(offline_cache: Path) -> None:
    with pytest.raises(ModelError) as raised:
        fetch(find_model("me/a--b"))
    assert str(raised.value) == ("me/a--b: not a valid hub id\n\nhint: a hub id is <owner>/<model>")


def test_importing_the_sources_loads_neither_a_framework_nor_the_client_of_the_hub() -> None:
    heavy = ["torch", "mlx", "transformers", "datasets", "huggingface_hub", "numpy"]
    code = f"import sys, qwen_local.models.source; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
