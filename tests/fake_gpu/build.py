"""Builds a CUDA card that computes nothing, for the CUDA build of PyTorch in an environment.

    python tests/fake_gpu/build.py .venv-cuda build/fake_gpu

`runtime.c` has the functions that matter. The libraries of PyTorch and bitsandbytes say which
others they ask for, and those return success. Products of cuBLAS are counted and do nothing. Needs
gcc and nm.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME = "libcudart.so.13"
DRIVER = "libcuda.so.1"
MANAGEMENT = "libnvidia-ml.so.1"
BLAS = ("libcublas.so.13", "libcublasLt.so.13")
LIBRARIES = (RUNTIME, *reversed(BLAS), DRIVER, MANAGEMENT)
"""In the order in which they are loaded before a program."""

PRODUCT = re.compile(r"gemm|Gemm|gemv|dot|axpy|trsm|scal|cublasLtMatmul$")
"""Functions of cuBLAS that launch a kernel."""

ANSWERS = {
    "cublasCreate_v2": "(void **handle) { *handle = (void *)4096; return 0; }",
    "cublasGetVersion_v2": "(void *handle, int *version) { *version = 130100; return 0; }",
    "cublasGetStream_v2": "(void *handle, void **stream) { *stream = 0; return 0; }",
    "cublasGetPointerMode_v2": "(void *handle, int *mode) { *mode = 0; return 0; }",
    "cublasGetMathMode": "(void *handle, int *mode) { *mode = 0; return 0; }",
    "cublasLtCreate": "(void **handle) { *handle = (void *)4096; return 0; }",
    "cublasLtMatmulDescCreate": "(void **d, int a, int b) { *d = (void *)4096; return 0; }",
    "cublasLtMatrixLayoutCreate": (
        "(void **l, int t, long r, long c, long s) { *l = (void *)4096; return 0; }"
    ),
    "cublasLtMatmulPreferenceCreate": "(void **p) { *p = (void *)4096; return 0; }",
    "cublasLtMatmulAlgoGetHeuristic": (
        "(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, void *r, int *f)"
        " { *f = 1; return 0; }"
    ),
}
"""Functions of cuBLAS that have something to say."""

ALONE = """
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(char *id, void **card) { *card = (void *)64; return 0; }
int nvmlDeviceGetGpuFabricInfoV(void *card, void *info) { return 0; }
int nvmlDeviceGetComputeRunningProcesses(void *card, unsigned *n, void *found) { *n = 0; return 0; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return 3; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return 3; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlDeviceGetUUID(void) { return 3; }
"""
"""Management of a card that no other program uses and that is linked to no other. PyTorch asks when
it maps memory, and when it reports that there is none."""

MARKERS = {
    "__device_builtin__": "",
    "CUDARTAPI": "",
    "__cudart_builtin__": "",
    "__builtin_align__(n)": "__attribute__((aligned(n)))",
    "__align__(n)": "__attribute__((aligned(n)))",
    "__host__": "",
    "__device__": "",
    "CUDARTAPI_CDECL": "",
}
"""Words of NVIDIA's headers that belong to its compiler, from a header that PyPI does not have."""


def main() -> None:
    """Build what the command line asks for."""
    build(Path(sys.argv[1]), Path(sys.argv[2]))


def build(environment: Path, folder: Path) -> None:
    """Build the libraries, and a program `nvidia-smi`.

    Args:
        environment: a virtual environment with PyTorch's CUDA build.
        folder: for the libraries; made if missing.

    Raises:
        SystemExit: the environment has another build of PyTorch, or a program fails.
    """
    (packages,) = environment.glob("lib/python3*/site-packages")
    headers = packages / "nvidia/cu13/include"
    if not headers.is_dir():
        sys.exit(f"{environment}: expected PyTorch's build for CUDA 13; found no {headers}")
    (folder / "include/crt").mkdir(parents=True, exist_ok=True)
    lines = (f"#define {word} {meaning}\n" for word, meaning in MARKERS.items())
    (folder / "include/crt/host_defines.h").write_text("".join(lines))
    asked_for = _asked_for(packages)
    ours = (HERE / "runtime.c").read_text()
    own = set(re.findall(r"\b_*cu[A-Za-z0-9_]+(?=\()", ours))
    include = (f"-I{folder / 'include'}", f"-I{headers}")
    for library in LIBRARIES:
        names = asked_for[library] - own
        text = "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
        extra: tuple[str, ...] = include
        if library == RUNTIME:
            text = ours + text
        elif library == DRIVER:  # whoever looks into it must find the runtime's as well
            extra = (f"-L{folder}", "-Wl,--no-as-needed", f"-l:{RUNTIME}")
        elif library == MANAGEMENT:
            text, extra = ALONE, ()
        else:
            text, extra = _blas(asked_for[library]), ()
        _compile(folder, library, text, extra)
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text((HERE / "nvidia-smi").read_text())
    program.chmod(0o755)


def _asked_for(packages: Path) -> dict[str, set[str]]:
    """Return the functions that PyTorch's libraries take from each of ours."""
    found: dict[str, set[str]] = {library: set() for library in LIBRARIES}
    patterns = ("torch/lib/*.so*", "nvidia/*/lib/*.so*", "bitsandbytes/*cuda130.so")
    for path in (path for pattern in patterns for path in packages.glob(pattern)):
        done = subprocess.run(
            ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            name, _, library = line.split()[-1].partition("@")
            if library in found:
                found[library].add(name)
            elif re.match("cu[A-Z]", name):
                found[DRIVER].add(name)
    return found


def _blas(names: Iterable[str]) -> str:
    """Return the source of a library of cuBLAS."""
    lines = ["extern void fake_product(void);"]
    for name in sorted(names):
        counted = "fake_product(); " if PRODUCT.search(name) else ""
        answer = ANSWERS.get(name, f"(void) {{ {counted}return 0; }}")
        lines.append(f"long {name}{answer}")
    return "\n".join(lines) + "\n"


def _compile(folder: Path, library: str, text: str, extra: Iterable[str]) -> None:
    """Compile a library whose symbols have the version that PyTorch's libraries ask for."""
    source, versions = folder / f"{library}.c", folder / f"{library}.map"
    source.write_text(text)
    versions.write_text(f"{library} {{ global: *; }};\n")
    versioned = () if library in (DRIVER, MANAGEMENT) else (f"-Wl,--version-script={versions}",)
    done = subprocess.run(
        [
            "gcc",
            "-O2",
            "-w",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            *versioned,
            "-o",
            str(folder / library),
            str(source),
            *extra,
            "-lpthread",
            "-ldl",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)


if __name__ == "__main__":
    main()
