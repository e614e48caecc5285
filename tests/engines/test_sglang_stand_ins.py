"""The kernels that stand in for SGLang's on a CPU are held against SGLang's own Triton kernels, in Triton's interpreter."""

import json
import subprocess
from pathlib import Path

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python

SCRIPT = Path(__file__).with_name("against_triton.py")


def test_they_do_what_sglangs_triton_kernels_do() -> None:
    try:
        python = sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    done = subprocess.run([python, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["differ"]
    assert sum(found["cases"].values()) > 90 and len(found["cases"]) == 10
