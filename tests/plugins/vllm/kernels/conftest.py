"""The kernels' tests run where Triton does: on a GPU, or under its interpreter, which must be chosen before Triton is
imported. `test_interpreted` starts them so, in a process of their own; without either they are not collected here."""

import os
from pathlib import Path

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*_kernel.py")]
