"""What goes to the hub, what never does, and what is said where it cannot."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from qwen_local.errors import InputError, QwenLocalError
from qwen_local.export.push import files_to_push, push

GOLDEN = Path(__file__).resolve().parents[2] / "adapters"
COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
ID = "me/my-adapter"


@dataclass
class Hub:
    """As much of the hub as an upload needs; nothing of it leaves this machine."""

    private: bool = False
    """Of the repository, if it is there."""
    answers: dict[str, int] = field(default_factory=dict)
    """Status by the last part of the path, where it is not 200."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request, in order."""
    created: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    """That the repository was asked for with."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded."""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{constants.ENDPOINT}/{ID}"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return {"files": [{**mode, "shouldIgnore": False} for mode in modes]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            commit = f"{constants.ENDPOINT}/{ID}/commit/{COMMIT}"
            return {"commitUrl": commit, "commitOid": COMMIT, "success": True}
        return {"id": ID, "private": self.private, "siblings": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and a token for it."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.reply()

        def reply(self) -> None:
            path = self.path.partition("?")[0]
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.asked.append(f"{self.command} {path}")
            if ID in path or path.endswith("/create"):
                state.tokens.add(self.headers.get("Authorization"))
            status = state.answers.get(path.rpartition("/")[2], 200)
            refused = {
                "error": "no",
                "url": f"{constants.ENDPOINT}/{ID}",
            }  # as the hub's 409 has it
            answer = state.answer(path, body) if status == 200 else refused
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of ours for a model on the hub, with much beside it that is nobody's business."""
    return make_adapter(tmp_path / "adapter")


def make_adapter(folder: Path, layout: str = "peft", base: str = "Qwen/Qwen3-0.6B") -> Path:
    shutil.copytree(GOLDEN / layout, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path" if layout == "peft" else "model"] = base
    path.write_text(json.dumps(config))
    commit = COMMIT if base.startswith("Qwen/") else None
    (folder / "qwen_local.json").write_text(json.dumps({"commit": commit, "max_length": 64}))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# An adapter\n")
    return folder


def told(error: pytest.ExceptionInfo[InputError]) -> list[tuple[str, str, str | None]]:
    return [(fault.where, fault.problem, fault.hint) for fault in error.value.faults]


# --- what goes up ---


def test_exactly_the_known_files_at_the_top_of_the_folder_go_up(adapter: Path, hub: Hub) -> None:
    for name in ("proof.json", "job.yaml", "run.log", ".env", "adapter_model.bin", "id_rsa"):
        (adapter / name).write_text("secret")
    (adapter / "checkpoints").mkdir()
    (adapter / "checkpoints/README.md").write_text("secret")
    assert push(adapter, ID, private=False) == f"{constants.ENDPOINT}/{ID}"
    expected = (
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "qwen_local.json"),
    )
    assert hub.files == {name: (adapter / name).read_bytes() for name in expected}
    assert hub.tokens == {"Bearer hf_of_a_test"}


@pytest.mark.parametrize(
    ("names", "pushed"),
    [
        (
            [
                *("config.json", "generation_config.json", "tokenizer.json", "merges.txt"),
                *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
                *("model.safetensors.index.json", "chat_template.jinja"),
            ],
            8,
        ),
        (["Qwen3-F16.gguf", "Modelfile", "README.md"], 3),
        (["optimizer.safetensors", "model.safetensors.tmp", "notes.md"], 0),
    ],
)
def test_the_files_of_each_kind_of_export_are_known(
    names: list[str], pushed: int, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert files_to_push(tmp_path) == sorted(names)[: pushed or None] * bool(pushed)


def test_a_name_is_never_read_as_a_pattern(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "a[b]*.gguf").write_bytes(b"1")
    (tmp_path / "ab.gguf.secret").write_bytes(b"2")
    push(tmp_path, ID, private=False)
    assert hub.files == {"a[b]*.gguf": b"1"}


def test_a_new_repository_is_private_where_that_is_asked(adapter: Path, hub: Hub) -> None:
    hub.private = True
    push(adapter, ID, private=True)
    [created] = hub.created
    assert created["name"] == "my-adapter" and created["organization"] == "me"
    assert created.get("private") or created.get("visibility") == "private"
    assert hub.files


def test_without_the_flag_the_hub_decides_whether_it_is_private(adapter: Path, hub: Hub) -> None:
    push(adapter, ID, private=False)
    [created] = hub.created
    assert not created.keys() & {"private", "visibility"}


def test_nothing_goes_privately_into_a_public_repository(adapter: Path, hub: Hub) -> None:
    hub.answers["create"] = 409
    with pytest.raises(InputError) as error:
        push(adapter, ID, private=True)
    assert str(error.value) == (
        "private: me/my-adapter exists already and is public\n\n"
        "hint: make it private in its settings on the hub, or choose another name"
    )
    assert not hub.files


# --- what does not ---


def test_every_fault_is_told_at_once_and_the_hub_is_not_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError) as error:
        push(tmp_path, "my adapter", private=False)
    where = "push_to_hub my adapter"
    assert told(error) == [
        (
            str(tmp_path),
            "expected an adapter, a model or a GGUF file; found none",
            "name a folder that export or fuse made",
        ),
        (where, "not a valid hub id", "write <owner>/<name>, such as me/my-adapter"),
        (where, "HF_HUB_OFFLINE is set, so the hub is not contacted", "unset HF_HUB_OFFLINE"),
        (
            where,
            "there is no token for the hub",
            "log in with `hf auth login`, or set HF_TOKEN to a token with write access",
        ),
    ]
    assert not hub.asked


@pytest.mark.parametrize("layout", ["peft", "mlx"])
@pytest.mark.parametrize("base", ["/models/qwen", "models/qwen", "qwen-local/tiny", "~/qwen", ""])
def test_an_adapter_whose_base_nobody_else_has_is_not_uploaded(
    layout: str, base: str, hub: Hub, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "adapter", layout, base)
    with pytest.raises(InputError) as error:
        push(folder, ID, private=False)
    assert told(error) == [
        (
            f"{folder / 'adapter_config.json'}: base model",
            f"expected a model on the hub; found {base!r}",
            "push the merged model, which needs no base model (`qwen-local fuse`, or `qwen-local "
            "export --to gguf`); or, if the base model is on the hub, export again with `model` "
            "set to its id",
        )
    ]
    assert not hub.asked


def test_files_that_name_a_place_on_this_machine_are_not_uploaded(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"data": "/home/somebody/data", "parts": [{"path": "C:\\Users\\somebody"}]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "config.json").write_text('{"_name_or_path": "~/models/qwen"}')
    (adapter / "tokenizer_config.json").write_text('{"name_or_path": "/q", "unk_token": "/"}')
    (adapter / "README.md").write_text("Trained in /home/somebody/runs.\n")
    (adapter / "Modelfile").write_text('FROM "/tmp/model.gguf"\nSYSTEM /no_think\n')
    with pytest.raises(InputError) as error:
        push(adapter, ID, private=False)
    here = "has a path of this machine: "
    assert told(error) == [
        (str(adapter / name), problem, "remove it")
        for name, problem in (
            ("Modelfile: FROM", f"{here}'/tmp/model.gguf'"),
            ("adapter_config.json: data", f"{here}'/home/somebody/data'"),
            ("adapter_config.json: parts[0].path", f"{here}'C:\\\\Users\\\\somebody'"),
            ("config.json: _name_or_path", f"{here}'~/models/qwen'"),
            ("tokenizer_config.json: name_or_path", f"{here}'/q'"),
            ("README.md", "has the path /home/somebody of this machine"),
        )
    ]
    assert not hub.asked


def test_a_folder_that_is_not_there_is_said_to_hold_nothing(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an adapter, a model or a GGUF file; found none"):
        push(tmp_path / "none", ID, private=False)


# --- what the hub answers ---


@pytest.mark.parametrize(
    ("at", "status", "said"),
    [
        (
            "create",
            401,
            "the hub does not know the token\n\n"
            "hint: log in again with `hf auth login`, or set HF_TOKEN",
        ),
        (
            "create",
            403,
            "the token has no write access there (the hub answered 403)\n\n"
            "hint: use a token with write access to me, or another owner",
        ),
        (
            "main",
            403,
            "the token has no write access there (the hub answered 403)\n\n"
            "hint: use a token with write access to me, or another owner",
        ),
    ],
)
def test_what_the_user_can_mend_is_told_as_such(
    at: str, status: int, said: str, adapter: Path, hub: Hub
) -> None:
    hub.answers |= {at: status, "my-adapter": 404}
    with pytest.raises(InputError) as error:
        push(adapter, ID, private=False)
    assert str(error.value) == f"push_to_hub me/my-adapter: {said}"
    assert not hub.files


def test_an_id_with_more_against_it_than_its_form_is_refused(adapter: Path, hub: Hub) -> None:
    with pytest.raises(InputError) as error:
        push(adapter, "me/my--adapter", private=False)
    assert str(error.value) == (
        "push_to_hub me/my--adapter: not a valid hub id\n\n"
        "hint: write <owner>/<name>, such as me/my-adapter"
    )
    assert not hub.asked


def test_a_fault_of_the_hub_is_a_failure_and_no_traceback(adapter: Path, hub: Hub) -> None:
    hub.answers["create"] = 418
    with pytest.raises(QwenLocalError) as error:
        push(adapter, ID, private=False)
    assert not isinstance(error.value, InputError)
    assert str(error.value).startswith("push_to_hub me/my-adapter: the hub answered 418: ")


def test_a_hub_that_cannot_be_reached_is_told_with_its_address(
    adapter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(QwenLocalError) as error:
        push(adapter, ID, private=False)
    first, hint = str(error.value).split("\n\n")
    assert first.startswith(
        "push_to_hub me/my-adapter: the upload to http://127.0.0.1:9 failed: ConnectError: "
    )
    assert hint == (
        f"hint: {adapter} is complete; check the connection (HTTPS_PROXY, HF_ENDPOINT) and upload "
        f"it with: hf upload me/my-adapter {adapter} . --exclude proof.json"
    )


def test_an_endpoint_that_is_no_address_is_told_first(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:port")
    with pytest.raises(InputError, match="expected the address of a hub"):
        push(adapter, ID, private=False)
