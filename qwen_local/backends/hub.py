"""The hub as the environment has it, and whether it can be reached (for `doctor --hub` only)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from qwen_local.errors import Fault, InputError

ASKED_FOR = "Qwen/Qwen3-0.6B"
"""A public model: its config.json is asked for, and not fetched."""

PATIENCE = 5.0
"""Seconds."""


TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")


def check_settings() -> None:
    """Refuse what huggingface_hub cannot be imported with: it reads these where it is imported.

    Raises:
        InputError: every such variable of the environment at once.
    """
    if faults := list(_faults()):
        raise InputError(faults)


def _faults() -> Iterator[Fault]:
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        _ = urlsplit(endpoint).port
    except ValueError as error:
        problem = f"expected the address of a hub; found {endpoint!r} ({error})"
        hint = "unset it, or set it to a mirror, such as https://mirror.example"
        yield Fault("HF_ENDPOINT", problem, hint)
    for name in TIMEOUTS:
        value = os.environ.get(name, "0")
        try:
            int(value)
        except ValueError:
            problem = f"expected a whole number of seconds; found {value!r}"
            yield Fault(name, problem, "unset it, or set it to 10")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """What was found of the hub."""

    endpoint: str
    """HF_ENDPOINT, or the hub itself."""
    offline: bool
    """Whether HF_HUB_OFFLINE keeps everything from asking."""
    token: bool
    """Whether a token is set; the token itself is nobody's business."""
    problem: str | None
    """Why the hub cannot be used, None where it answers or was not asked."""
    hint: str | None


def ask_hub() -> Hub:
    """Ask the hub for the size of a small public file, as a download would."""
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    problem = hint = None
    token = get_token() is not None
    if not constants.HF_HUB_OFFLINE:
        url = hf_hub_url(ASKED_FOR, "config.json")
        try:
            get_hf_file_metadata(url, timeout=PATIENCE)
        except HfHubHTTPError as error:
            status = error.response.status_code
            problem = f"answers {status} to a request for {ASKED_FOR}"
            hint = "try again later, or set HF_ENDPOINT to a mirror"
            if token and status in (401, 403):
                hint = "log in again with `hf auth login`, or unset HF_TOKEN"
        except Exception as error:  # each transport has errors of its own; any is the answer
            said = str(error).strip().partition("\n")[0]
            problem = f"cannot be reached: {said or type(error).__name__}"
            hint = (
                "check the connection and HTTPS_PROXY, or set HF_ENDPOINT to a mirror; without a "
                "network, name a local folder as model.name"
            )
    return Hub(
        endpoint=constants.ENDPOINT,
        offline=bool(constants.HF_HUB_OFFLINE),
        token=token,
        problem=problem,
        hint=hint,
    )
