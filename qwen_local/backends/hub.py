"""Whether the hub can be reached; asked by `doctor --hub` only."""

from __future__ import annotations

from dataclasses import dataclass

ASKED_FOR = "Qwen/Qwen3-0.6B"
"""A public model: its config.json is asked for, and not fetched."""

PATIENCE = 5.0
"""Seconds."""


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
