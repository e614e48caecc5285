"""Whether drafts may go by the noise that vLLM's sampler draws with: found out once, at start, before anything is captured.

A token is drawn as the argmax of log p + noise, and the noise is known before the target has run. So a drafter that ranks by
log q and that noise guesses the very draw (Gumbel coupling, Daliri, Musco and Suresh, arXiv 2408.07978), where q is close
to p.

Shape letters: X rows, V tokens.
"""

import torch
from torch import Tensor

from eagle3_serving.notice import in_a_line
from eagle3_serving.tree import gumbel
from eagle3_vllm import compat
from eagle3_vllm.compat import Sampler, init_logger
from eagle3_vllm.kernels.noise import gumbel_in_triton
from eagle3_vllm.trees import Trees

logger = init_logger("vllm.eagle3")

# samplers whose noise is their own, which vLLM takes for top-k and top-p where nobody asked for a seed
_OWN_NOISE = ("use_flashinfer", "use_xpu_sampler")
_SEEDS = (0, 1, -1, 42, 1 << 32, -(1 << 62), (1 << 63) - 1, 123456789012345)
_POSITIONS = (0, 1, 17, 4095, 131071)
_TOKENS = 4096


def share_noise(sampler: Sampler, trees: Trees) -> None:
    """Drafts go by the noise of `sampler` from here on, and it draws by that alone; or a line says why not."""
    if trees.settings.proposals != "coupled":
        return
    try:
        reason = _unknown_noise(sampler, trees)
    except Exception as error:  # another vLLM's function, given what it does not take
        reason = in_a_line(error)
    if reason:
        logger.warning("eagle3: the likeliest tokens are drafted, not by the sampler's noise: %s", reason)
        return
    sampler.use_flashinfer = False
    sampler.use_xpu_sampler = False
    trees.wide_noise = bool(sampler.use_fp64_gumbel)


def _unknown_noise(sampler: Sampler, trees: Trees) -> str:
    """Why the sampler's noise is not what we take it for; "" where it is."""
    if problems := compat.noise_problems():
        return "; ".join(problems)
    if type(sampler) is not Sampler or not all(hasattr(sampler, name) for name in _OWN_NOISE):
        return f"{type(sampler).__name__} is not the sampler that is known"
    device, wide = trees.device, bool(sampler.use_fp64_gumbel)
    seed_X = torch.tensor(_SEEDS, device=device).repeat_interleave(len(_POSITIONS))
    position_X = torch.tensor(_POSITIONS, device=device).repeat(len(_SEEDS))
    row_X = torch.arange(len(seed_X), device=device)
    drawn_X = compat.gumbel_sample()(
        torch.zeros(len(seed_X), _TOKENS, device=device),
        row_X,
        torch.ones(len(seed_X), device=device),
        seed_X,
        position_X,
        apply_temperature=False,
        is_drafting=False,
        use_fp64=wide,
    )
    known: list[Tensor] = [gumbel(seed_X, position_X, torch.arange(_TOKENS, device=device), wide)]
    if trees.by_kernels:
        known.append(gumbel_in_triton(seed_X, position_X, _TOKENS, wide))
    same = all(torch.equal(noise_XV.argmax(1), drawn_X) for noise_XV in known)
    return "" if same else "gumbel_sample draws by another noise"
