"""Compatibility of PyTorch builds with NVIDIA drivers and cards, and the fix if they do not match.

The builds of PyTorch 2.13 are those of its release matrix (RELEASE.md in pytorch/pytorch): CUDA
13.0, which is also what PyPI has, for Turing and later; CUDA 12.6 for Maxwell to Hopper. The
drivers are those of NVIDIA's table of minor version compatibility. Pure functions of `Machine`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen_local.backends.machine import Capability, Card, Machine

TORCH = "2.13.0"
"""Release that hints install: the one that the tests run on (constraints.txt)."""

DRIVERS = {11: 450, 12: 525, 13: 580}
"""First driver that runs any CUDA of this major version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """A build of `TORCH` in PyTorch's own package index."""

    cuda: str
    lowest: Capability
    highest: Capability

    @property
    def driver(self) -> int:
        """First driver that it runs on."""
        return DRIVERS[int(self.cuda.partition(".")[0])]

    @property
    def command(self) -> str:
        """Command that installs it, also over another build: `+cu126` is part of the version."""
        tag = "cu" + self.cuda.replace(".", "")
        index = f"https://download.pytorch.org/whl/{tag}"
        return f"pip install 'torch=={TORCH}+{tag}' --index-url {index}"

    def suits(self, capability: Capability | None) -> bool:
        """Return True if it has code for such a card, or if the capability is unknown."""
        return capability is None or self.lowest <= capability <= self.highest


BUILDS = (
    Build(cuda="13.0", lowest=(7, 5), highest=(99, 0)),  # it carries PTX for what comes later
    Build(cuda="12.6", lowest=(5, 0), highest=(9, 0)),
)
"""The best first."""


def unusable_card(machine: Machine) -> tuple[str, str]:
    """Return (problem with this machine's NVIDIA card, fix), naming driver and wheel."""
    driver = f"driver {machine.driver}" if machine.driver else "no driver that answers"
    problem = f"an NVIDIA card is present, but PyTorch cannot use it: {driver}, {_wheel(machine)}"
    if machine.driver is None:
        return problem, _get_driver(machine)
    if machine.visible_cards in ("", "-1"):
        hidden = f"CUDA_VISIBLE_DEVICES={machine.visible_cards!r} hides every card"
        return f"{problem}; {hidden}", "unset CUDA_VISIBLE_DEVICES"
    if machine.torch is None:
        return problem, install_torch(machine)
    if machine.torch_cuda is None:
        return problem, _get_build(machine)
    needed = DRIVERS.get(int(machine.torch_cuda.partition(".")[0]), 0)
    if _major(machine.driver) < needed:
        return f"{problem}, which needs driver {needed}", _fix_old_driver(machine, needed)
    strange = [card for card in machine.cards if not covers(machine.architectures, card.capability)]
    if strange:
        names = " and ".join(sorted({described(card) for card in strange}))
        return f"{problem}, which has no code for {names}", _get_build(machine)
    error = f"; its error: {machine.torch_error}" if machine.torch_error else ""
    return f"{problem}{error}", (
        "restart the machine: a driver that was updated, or a laptop that slept, leaves the card "
        "like this"
    )


def covers(architectures: tuple[str, ...], capability: Capability | None) -> bool:
    """Return True if code for these architectures runs on a card of this capability.

    Code for `sm_86` runs on cards of the same generation from 8.6 on; `compute_86`, which the
    driver compiles, on all later ones as well; `sm_90a` on 9.0 only.

    >>> covers(("sm_75", "sm_80", "compute_120"), (8, 9))
    True
    >>> covers(("sm_75", "sm_80", "compute_120"), (6, 1))
    False
    """
    parsed = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name) for name in architectures]
    codes = [code.groups() for code in parsed if code is not None]
    if capability is None or not codes:
        return True  # unknown: AMD's names, or a driver too old to report it
    for kind, major, minor, special in codes:
        made_for = (int(major), int(minor))
        if kind == "compute" and capability >= made_for:
            return True
        if special and capability != made_for:
            continue
        if capability[0] == made_for[0] and capability >= made_for:
            return True
    return False


def described(card: Card) -> str:
    """Return the card's name with its capability, if known."""
    if card.capability is None:
        return card.name
    return f"{card.name} (compute capability {dotted(card.capability)})"


def dotted(capability: Capability) -> str:
    """Return 8.6 for (8, 6)."""
    return f"{capability[0]}.{capability[1]}"


def install_torch(machine: Machine) -> str:
    """Return the command that installs PyTorch and PEFT if one of them is missing or broken."""
    missing = machine.missing("cuda")
    if missing == ("peft",):
        return "pip install peft"
    install = "pip install" if missing else "pip install --force-reinstall"
    if machine.nvidia and _build_for(machine) is not None:
        command = _get_build(machine).replace("pip install", install)
        return f"{command}\n  pip install peft bitsandbytes"
    return f"{install} torch peft"


def _wheel(machine: Machine) -> str:
    if machine.torch:
        built_for = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "the CPU only"
        return f"PyTorch {machine.torch} built for {built_for}"
    return machine.torch_fault or "no PyTorch that can be imported"


def _build_for(machine: Machine) -> Build | None:
    """Return the best build that runs on this driver and on every card here."""
    driver = _major(machine.driver or "")
    return next((build for build in _suiting(machine) if driver >= build.driver), None)


def _suiting(machine: Machine) -> list[Build]:
    return [b for b in BUILDS if all(b.suits(card.capability) for card in machine.cards)]


def _get_build(machine: Machine) -> str:
    """Return the command for `_build_for`; without such a build, the step before it."""
    build = _build_for(machine)
    if build is not None:
        return f"install the build for CUDA {build.cuda}:\n  {build.command}"
    suiting = _suiting(machine)
    if suiting:
        return _update_driver(machine, suiting[0].driver)
    return "no build of PyTorch suits all cards here: hide the others with CUDA_VISIBLE_DEVICES"


def _fix_old_driver(machine: Machine, needed: int) -> str:
    """Return the fix for a build that needs a newer driver: that driver, or another build."""
    newer = _update_driver(machine, needed)
    build = _build_for(machine)
    if build is None:
        return newer
    return f"{newer};\nor {_get_build(machine)}"


def _get_driver(machine: Machine) -> str:
    if machine.wsl == 2:
        return _update_driver(machine, BUILDS[0].driver)
    if machine.driver_error is not None:
        return "restart if the driver was just updated; else install the NVIDIA driver again"
    return "install the NVIDIA driver, or restart if it was just updated"


def _update_driver(machine: Machine, version: int) -> str:
    if machine.wsl == 2:
        return (
            f"update the NVIDIA driver in Windows to {version} or later, then run "
            "`wsl --update` and `wsl --shutdown` there; install no Linux driver inside WSL"
        )
    return f"update the NVIDIA driver to {version} or later, and restart"


def _major(version: str) -> int:
    number = re.match("[0-9]{1,9}", version)
    return int(number[0]) if number else 0
