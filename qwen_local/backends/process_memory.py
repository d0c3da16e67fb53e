"""Memory of this process, as the operating system counts it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    import resource  # Windows has none, and importing this module must not fail there

    # On Linux `ru_maxrss` starts with the peak of the parent process, however large that was.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts KiB
