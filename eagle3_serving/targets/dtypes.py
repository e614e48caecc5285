"""The short names of number formats that commands take, as torch has them."""

import torch

from eagle3_serving.dtypes import TORCH

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, long) for name, long in TORCH.items()}
