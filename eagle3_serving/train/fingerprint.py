"""Short hashes of what a run was begun with: its target and its answers, by content."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from eagle3_serving.engine.target import Target
from eagle3_serving.train.data import Answer

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_COMPUTED = (
    "rope_parameters",
    "rms_norm_eps",
    "hidden_act",
    "final_logit_softcapping",
)  # by config.json, not by weights
# the same where some layers do not see all of a text; of other targets nothing is added, that their runs go on
_REACH = ("layer_types", "sliding_window", "attention_chunk_size", "query_pre_attn_scalar", "attn_logit_softcapping")
_CHUNK = 1 << 24  # numbers


def of_target(target: Target) -> str:
    """Every weight counts, so that a fine-tune of one layer is another target; one pass over memory. Where layers are in
    shares, every process must call it."""
    parameters = dict(target.model.named_parameters())
    totals_P = torch.stack([_bits(parameter) for parameter in parameters.values()])
    shared_P = torch.tensor([isinstance(p, DTensor) for p in parameters.values()], device=totals_P.device)
    if bool(shared_P.any()):
        whole_P = torch.where(shared_P, totals_P, 0)
        dist.all_reduce(whole_P)
        totals_P = torch.where(shared_P, whole_P, totals_P)
    reach = _REACH if any(target.reaches) else ()
    config = [repr(getattr(target.model.config, key, None)) for key in (*_COMPUTED, *reach)]
    names = [
        f"{name} {tuple(p.shape)} {total}"
        for (name, p), total in zip(parameters.items(), totals_P.tolist(), strict=True)
    ]
    return _hash([*config, *names])


def of_answers(answers: Iterable[Answer]) -> str:
    """Their tokens, in order; not their names."""
    return _hash(repr((answer.prompt_ids, answer.response_ids)) for answer in answers)


def of_ids(ids: Sequence[int]) -> str:
    return _hash(map(str, ids))


def _bits(parameter: nn.Parameter) -> Tensor:
    """The sum of a tensor's bits as whole numbers, int64 with wrap-around: exact, on every device and in every order."""
    local: Tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    bits = local.detach().reshape(-1).view(_BITS[local.dtype.itemsize])
    return torch.stack([piece.sum(dtype=torch.int64) for piece in bits.split(_CHUNK)]).sum()


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
