"""The environment of the tests: the same whatever the user's is. Imported before anything else.

huggingface_hub, datasets and transformers read their settings when they are imported, so the
environment is changed as soon as this module is, and processes that tests start inherit it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

KEPT = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TMPDIR", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CC", "CXX", "CI"),
    *("PYTHONPATH", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "QWEN_LOCAL_FAKE_GPU",
}
"""Where programs and libraries are, and how many threads they may start."""
KEPT_PREFIXES = ("PYTEST_", "COV_", "COVERAGE_", "HYPOTHESIS_")
"""Of the test tools themselves."""


def isolate() -> None:
    """Drop every variable that is not kept; set a locale and an empty home for the hub's files."""
    for name in set(os.environ) - KEPT:
        if not name.startswith(KEPT_PREFIXES):
            del os.environ[name]
    home = tempfile.mkdtemp(prefix="qwen-local-tests-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(LANG="C.UTF-8", HF_HOME=home)
    # `pytest &` and `nohup pytest` ignore these, and what a test starts would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


isolate()
