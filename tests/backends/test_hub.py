"""Asking the hub: a server of our own stands in for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from qwen_local.backends.hub import Hub, ask_hub
from qwen_local.backends.probe import probe
from qwen_local.errors import InputError

SECRET = "hf_notToBeShown"


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def server(status: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A hub that answers everything so; (its address, what it was asked)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("ETag", '"abc"')
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        Thread(target=served.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{served.server_port}"
        stand_in(address, monkeypatch)
        yield address, asked
        served.shutdown()


def stand_in(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does where it is set before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_hub_that_answers_is_asked_for_one_small_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200, monkeypatch) as (address, asked):
        assert ask_hub() == Hub(
            endpoint=address, offline=False, token=False, problem=None, hint=None
        )
    assert asked == ["/Qwen/Qwen3-0.6B/resolve/main/config.json"]


def test_a_mirror_is_asked_where_its_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from qwen_local.backends.hub import ask_hub; print(ask_hub().problem)"
    with server(200, monkeypatch) as (address, asked):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
    assert (said.stdout, said.stderr) == (b"None\n", b"")
    assert asked == ["/Qwen/Qwen3-0.6B/resolve/main/config.json"]


def test_a_hub_that_fails_is_named_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(503, monkeypatch):
        found = ask_hub()
    assert found.problem == "answers 503 to a request for Qwen/Qwen3-0.6B"
    assert found.hint == "try again later, or set HF_ENDPOINT to a mirror"


def test_a_token_that_is_refused_is_to_be_renewed_and_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with server(401, monkeypatch):
        found = ask_hub()
    assert found.token is True
    assert found.problem == "answers 401 to a request for Qwen/Qwen3-0.6B"
    assert found.hint == "log in again with `hf auth login`, or unset HF_TOKEN"
    assert SECRET not in repr(found)


def test_a_hub_that_is_not_there_comes_with_the_ways_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server(200, monkeypatch) as (address, _):
        pass  # nobody listens there any more
    stand_in(address, monkeypatch)
    found = ask_hub()
    assert found.problem == "cannot be reached: [Errno 111] Connection refused"
    assert found.hint == (
        "check the connection and HTTPS_PROXY, or set HF_ENDPOINT to a mirror; without a "
        "network, name a local folder as model.name"
    )


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200, monkeypatch) as (address, asked):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert ask_hub() == Hub(
            endpoint=address, offline=True, token=False, problem=None, hint=None
        )
    assert asked == []


# --- settings in the environment ---


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://mirror.example:http", "Port could not be cast to integer value as 'http'"),
        ("http://mirror.example:99999", "Port out of range 0-65535"),
    ],
)
def test_an_endpoint_that_is_no_address_is_refused_before_the_hub_is_imported(
    endpoint: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InputError) as error:
        probe()
    assert str(error.value) == (
        f"HF_ENDPOINT: expected the address of a hub; found {endpoint!r} ({why})\n\n"
        "hint: unset it, or set it to a mirror, such as https://mirror.example"
    )


def test_every_setting_of_the_hub_that_cannot_be_used_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5s")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "")
    with pytest.raises(InputError) as error:
        probe()
    assert str(error.value) == (
        "HF_ENDPOINT: expected the address of a hub; found 'http://[::1' (Invalid IPv6 URL)\n\n"
        "hint: unset it, or set it to a mirror, such as https://mirror.example\n\n"
        "HF_HUB_ETAG_TIMEOUT: expected a whole number of seconds; found '5s'\n\n"
        "hint: unset it, or set it to 10\n\n"
        "HF_HUB_DOWNLOAD_TIMEOUT: expected a whole number of seconds; found ''\n\n"
        "hint: unset it, or set it to 10"
    )


@pytest.mark.parametrize("endpoint", ["", "https://mirror.example", "http://[::1]:8080/hub/"])
def test_an_endpoint_that_is_an_address_is_left_to_the_hub(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert probe().disks


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "doctor --hub",
        "plan",
        "train",
        "generate --model qwen-local/tiny --prompt Hi",
        "chat --model qwen-local/tiny",
        "fuse --adapter nowhere --output fused",
        "demo --output demo",
    ],
)
def test_every_command_refuses_such_an_endpoint(command: str, tmp_path: Path) -> None:
    """In a process of its own, where nothing is imported yet; with `--hub` and without a cache."""
    done = subprocess.run(
        [sys.executable, "-c", "from qwen_local.cli import main; main()", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": "http://[::1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "HF_ENDPOINT: expected the address of a hub; found 'http://[::1' (Invalid IPv6 URL)\n\n"
        "hint: unset it, or set it to a mirror, such as https://mirror.example\n"
    )
    assert list(tmp_path.iterdir()) == []
