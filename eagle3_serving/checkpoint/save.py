"""A Drafter -> a directory that vLLM, SGLang and this package load; written beside, then renamed."""

import json
import shutil
import tempfile
from pathlib import Path

import torch

from eagle3_serving.checkpoint.aux_layers import AuxLayers
from eagle3_serving.checkpoint.dialects import DIALECTS, WRITABLE
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.rewrites import cast
from eagle3_serving.checkpoint.source import Source, in_memory
from eagle3_serving.checkpoint.write import write_safetensors
from eagle3_serving.drafter.model import Drafter
from eagle3_serving.errors import CheckError


def save_drafter(drafter: Drafter, directory: Path, dtype: torch.dtype = torch.bfloat16, to: str = "universal") -> None:
    """Write config.json and model.safetensors in the dialect `to`. An embedding that is the target's is not saved.

    Other files already in `directory` (a model card, say) stay. Raises CheckError where `to` cannot express the drafter.
    """
    neutral, facts, dialect = _neutral(drafter, directory, to), TargetFacts(), DIALECTS[to]
    assert dialect.refusals is not None and dialect.write is not None
    refused = dialect.refusals(neutral, facts)
    if refused:
        raise CheckError(f"{directory}: {dialect.title} cannot express {'; nor '.join(refused)}")
    output = dialect.write(neutral, facts, str(dtype).removeprefix("torch."))
    directory.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        write_safetensors(beside / "model.safetensors", cast(output.tensors, dtype, directory), {"format": "pt"})
        (beside / "config.json").write_text(json.dumps(output.config, indent=2) + "\n", encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            (beside / name).chmod(0o644)
            (beside / name).replace(directory / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def dialect_for(drafter: Drafter) -> str:
    """The dialect that most engines read, of those that can express `drafter`. Raises CheckError where none can."""
    refused = refusals(drafter)
    for name in dict.fromkeys(("universal", "vllm", "sglang", *WRITABLE)):
        if name not in refused:
            return name
    raise CheckError(f"no dialect can express this drafter: {'; '.join(refused['universal'])}")


def refusals(drafter: Drafter, num_target_layers: int | None = None) -> dict[str, list[str]]:
    """Dialects that cannot express `drafter`, each with why; the depth of the target tells which layer ids are the defaults."""
    found = {}
    for name in WRITABLE:
        dialect = DIALECTS[name]
        assert dialect.refusals is not None
        facts = TargetFacts(num_layers=num_target_layers)
        if refused := dialect.refusals(_neutral(drafter, Path(), name), facts):
            found[name] = refused
    return found


def _neutral(drafter: Drafter, directory: Path, dialect: str) -> Neutral:
    config = drafter.config
    tensors = {
        name: in_memory(name, parameter.detach().cpu())
        for name, parameter in drafter.named_parameters()
        if name != "mask_hidden" and (name != "embed_tokens.weight" or config.own_embedding)
    }
    mask = drafter.mask_hidden
    stored = (
        None if mask is None else in_memory("mask_hidden", mask.detach().cpu().reshape(1, 1, -1))
    )  # as vLLM's trainers do
    ids = drafter.vocabulary.target_ids.cpu()
    whole = config.draft_vocab_size == config.vocab_size and torch.equal(ids, torch.arange(len(ids)))
    aux = AuxLayers(config.aux_layers, "boundary", "the drafter's own")
    source = Source(directory, {}, {}, {}, ())
    map_ids = None if whole else ids
    return Neutral(dialect, source, config, aux, tensors, map_ids, {}, "own", stored, config.mask_token_id)
