"""A drafter to begin with: one layer of the target's own shape, the target's embedding, quiet random weights."""

from typing import Any

from torch import nn

from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.drafter import Drafter, DrafterConfig, RopeConfig
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.engine.target import Target
from eagle3_serving.train.data import Answer, choose_vocabulary, read_answers
from eagle3_serving.train.options import DRAFT_VOCAB_SIZE, TrainJob


def new_drafter(job: TrainJob, target: Target, answers: list[Answer]) -> Drafter:
    """One layer of the target's own shape, over the answers' most frequent tokens."""
    config = target.model.config
    counted = counted_for_vocabulary(job, answers)
    target_ids, _ = choose_vocabulary(counted, config.vocab_size, job.draft_vocab_size or DRAFT_VOCAB_SIZE)
    heads = config.num_attention_heads
    drafter = Drafter(
        DrafterConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            draft_vocab_size=len(target_ids),
            target_hidden_size=config.hidden_size,
            aux_layers=job.aux_layers or default_aux_layers(config.num_hidden_layers),
            pre_fc_norm="per_aux" if job.asked.norms_features else "none",
            norm_output=bool(job.asked.feeds_post_norm),
            sliding_window=job.sliding_window,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act="silu",  # engines know no other in a drafter, whatever the target has
            rope=_rope(dict(config.rope_parameters or {})),
        ),
        target_ids,
    )
    for name, parameter in drafter.named_parameters():
        if parameter.dim() == 2:
            # a quiet start for what writes to the residual: the closed form is not drowned
            nn.init.normal_(parameter, std=0.002 if name.endswith(("down_proj.weight", "o_proj.weight")) else 0.02)
    weight_of(drafter.embed_tokens).data.copy_(target.embedding)
    return drafter.to(target.device)


def counted_for_vocabulary(job: TrainJob, answers: list[Answer]) -> list[Answer]:
    """The answers whose tokens choose the draft vocabulary."""
    return read_answers(job.vocabulary, job.max_length) if job.vocabulary else answers


def _rope(parameters: dict[str, Any]) -> RopeConfig:
    """The target's rotary embedding, of all dimensions; that of full attention where each kind has its own."""
    parameters = dict(parameters.get("full_attention", parameters))
    parameters.pop("partial_rotary_factor", None)
    kind = parameters.pop("rope_type", "default")
    return RopeConfig(float(parameters.pop("rope_theta", 10000.0)), kind, parameters)
