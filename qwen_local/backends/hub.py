"""The hub's settings in the environment, and a test of its connection (for `doctor --hub` only)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from qwen_local.errors import Fault, InputError

TEST_MODEL = "Qwen/Qwen3-0.6B"
"""A public model; the size of its config.json is requested, the file is not downloaded."""

PATIENCE = 5.0
"""Seconds to wait for the hub."""

TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")


def check_settings() -> None:
    """Refuse variables that break the import of huggingface_hub, which reads them at that point.

    Raises:
        InputError: every such variable at once.
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
    """Settings and state of the hub."""

    endpoint: str
    """HF_ENDPOINT, or the public hub."""
    offline: bool
    """True if HF_HUB_OFFLINE forbids requests."""
    token: bool
    """True if a token is set; the token itself is never shown."""
    problem: str | None
    """Reason why the hub cannot be used; None if it answers or was not contacted."""
    hint: str | None


def ask_hub() -> Hub:
    """Request the size of a small public file from the hub, as a download would."""
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    problem = hint = None
    token = get_token() is not None
    if not constants.HF_HUB_OFFLINE:
        url = hf_hub_url(TEST_MODEL, "config.json")
        try:
            get_hf_file_metadata(url, timeout=PATIENCE)
        except HfHubHTTPError as error:
            status = error.response.status_code
            problem = f"answers {status} to a request for {TEST_MODEL}"
            hint = "try again later, or set HF_ENDPOINT to a mirror"
            if token and status in (401, 403):
                hint = "log in again with `hf auth login`, or unset HF_TOKEN"
        except Exception as error:  # every transport has its own errors; any of them is a result
            text = str(error).strip().partition("\n")[0]
            problem = f"cannot be reached: {text or type(error).__name__}"
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
