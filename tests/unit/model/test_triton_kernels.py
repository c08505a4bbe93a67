"""Triton kernels without a GPU: run by triton's interpreter, and compiled for two generations of GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "triton", reason="triton is not installed (pip install triton): its kernels are not tested"
)

POINTERS = {"scan_forward": 6, "scan_backward": 12, "diagonal_forward": 4, "diagonal_backward": 6}
POINTERS |= {"mix_forward": 5, "mix_backward": 10}
SIZES = {"scan": 2, "diagonal": 2, "mix": 3}
SCAN = {"NORMALISE": True, "SITES": 64, "BLOCK": 16, "STAGES": 3}
CONSTANTS = {
    "scan": [SCAN, {**SCAN, "BLOCK": 32}, {**SCAN, "NORMALISE": False}],
    "diagonal": [{"BLOCK": 16}],
    "mix": [{"VALUES": 16}],
}
KERNELS = [(name, values) for name in POINTERS for values in CONSTANTS[name.split("_")[0]]]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("name", "constants"), KERNELS)
def test_compiles_offline(name, constants, capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bkray.model import triton_kernels

    kernel, family = getattr(triton_kernels, f"{name}_kernel"), name.split("_")[0]
    kinds = ["*fp32"] * POINTERS[name] + ["i32"] * SIZES[family] + ["constexpr"] * len(constants)
    signature = dict(zip(kernel.arg_names, kinds, strict=True))
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f"sm_{capability}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


def test_interpreted_kernels_agree_with_the_reference():
    """In a process of its own, because triton reads the switch when its kernels are defined."""
    script = Path(__file__).with_name("interpreted_triton.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
