"""A Drafter -> a directory that vLLM, SGLang and this package load; written beside, then renamed."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from eagle3_serving.checkpoint.config import to_json
from eagle3_serving.checkpoint.names import eagle_name
from eagle3_serving.drafter.model import Drafter


def save_drafter(drafter: Drafter, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json and model.safetensors. The embedding is the target's own and is not saved.

    Other files already in `directory` (a model card, say) stay.
    """
    tensors = {
        eagle_name(name): parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in drafter.named_parameters()
        if name != "embed_tokens.weight"
    }
    target_ids = drafter.vocabulary.target_ids.cpu()
    if drafter.config.draft_vocab_size != drafter.config.vocab_size:
        tensors["d2t"] = target_ids - torch.arange(len(target_ids))
        tensors["t2d"] = torch.zeros(drafter.config.vocab_size, dtype=torch.bool).index_fill_(0, target_ids, True)
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
        config = to_json(drafter.config, str(dtype).removeprefix("torch."))
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            (beside / name).chmod(0o644)
            (beside / name).replace(directory / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
