"""The draft architecture: the shared drafter with vLLM's layers, paged KV and strict loading, on both model runners.

Shape letters: T rows of all requests, L the drafter's layers, F concatenated features, H draft hidden size, V draft
vocabulary, W target vocabulary.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eagle3_serving.checkpoint import check
from eagle3_serving.checkpoint.findings import verdict
from eagle3_serving.checkpoint.load import load_drafter
from eagle3_serving.checkpoint.names import CAUSAL
from eagle3_serving.drafter import Drafter
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.errors import InputError
from eagle3_vllm.compat import Eagle3LlamaForCausalLM, LogitsProcessor, VllmConfig, init_logger, own_drafter
from eagle3_vllm.fp8 import fp8_reasons, keep_in_fp8
from eagle3_vllm.layers import VllmLayers, copy_weights, linear_layers
from eagle3_vllm.settings import Settings
from eagle3_vllm.window import DraftAttention, length_line, window_of

logger = init_logger("vllm.eagle3")


class Eagle3ServingForCausalLM(Eagle3LlamaForCausalLM):
    """An EAGLE-3 drafter of any dialect. The base class is there because runner V1 asks for it; nothing of it is used.

    The checkpoint is read, whole, by `eagle3_serving.checkpoint` (what is missing, left over or of the wrong shape
    stops the server with one line), not from vLLM's stream of weights.
    """

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        """vLLM's own class for a drafter that may be right, and means what is not computed here."""
        assert vllm_config.speculative_config is not None
        draft = vllm_config.speculative_config.draft_model_config
        if why := not_judged(vllm_config.speculative_config):
            logger.warning("eagle3: vLLM's own EAGLE-3 drafts: what this drafter means is not known here: %s", why)
            return own_drafter(draft.hf_config.architectures)(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        speculative, target = vllm_config.speculative_config, vllm_config.model_config
        assert speculative is not None
        layers = target.get_total_num_hidden_layers()
        source = read_checkpoint(speculative.draft_model_config, layers)
        config = source.config
        if config.target_hidden_size != target.get_hidden_size() or config.vocab_size != target.get_vocab_size():
            raise InputError(
                f"{speculative.draft_model_config.model}: the drafter is for another target: it reads hidden size "
                f"{config.target_hidden_size} and knows {config.vocab_size} tokens, "
                f"{target.model} has {target.get_hidden_size()} and {target.get_vocab_size()}"
            )
        self.config = speculative.draft_model_config.hf_config
        # V1 asks for the boundaries after this, MRv2 before (see `announce_boundaries`)
        self.config.eagle_aux_hidden_state_layer_ids = list(config.aux_layers)
        ids = source.vocabulary.target_ids.to(torch.get_default_device())
        self.model = Drafter(config, ids, VllmLayers(config, prefix or "eagle3"))
        self.has_own_lm_head = bool(weight_of(source.lm_head).any())
        self.has_own_embed_tokens = config.own_embedding
        ranks = vllm_config.parallel_config.tensor_parallel_size
        self.window = window_of(config, vllm_config)
        if line := length_line(config, self.window, target.max_model_len):
            logger.warning("eagle3: %s", line)
        self.attention = nn.ModuleList(
            DraftAttention(
                config.num_attention_heads // ranks,
                config.head_dim,
                config.head_dim**-0.5,
                num_kv_heads=config.num_key_value_heads // ranks,
                cache_config=vllm_config.cache_config,
                per_layer_sliding_window=self.window,
                # vLLM takes the layer's number out of the name, and no two layers may share one
                prefix=f"eagle3.layers.{layers + i}.self_attn.attn",
            )
            for i in range(config.num_layers)
        )
        copy_weights(source, self.model)
        self.backlog: Any = None  # rows that steps without a draft left out: see `idle`
        self.gather_logits = LogitsProcessor(config.draft_vocab_size)
        if self.has_own_lm_head:
            self.lm_head = self.model.lm_head  # where vLLM looks for it
        else:
            self.model.lm_head = nn.Identity()  # vLLM puts the target's in `lm_head`
        if wanted_weights() == "fp8":
            self._keep_in_fp8()

    def _keep_in_fp8(self) -> None:
        """All linear layers but a head that is the target's; none where one cannot be."""
        layers = linear_layers(self.model)
        weight, head_dtype = weight_of(layers[0]), self.gather_logits.head_dtype
        dtype = str(weight.dtype).removeprefix("torch.")
        reasons = fp8_reasons(layers, weight.dtype, weight.device)
        if self.has_own_lm_head and head_dtype not in (None, weight.dtype):
            reasons.append(f"the target's head computes in {str(head_dtype).removeprefix('torch.')}")
        if reasons:
            logger.warning("eagle3: the drafter's weights stay in %s: %s", dtype, "; ".join(reasons))
            return
        before, after = keep_in_fp8(layers)
        head = "" if self.has_own_lm_head else f"; its head is the target's and stays in {dtype}"
        logger.info(
            "eagle3: %d of the drafter's layers in fp8, %.1f MB for %.1f%s",
            len(layers),
            after / 1e6,
            before / 1e6,
            head,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing: all was read when the model was made; the stream is not even opened."""

    def embed_input_ids(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        embedding_TH: Tensor = self.model.embed_tokens(input_ids)
        return embedding_TH

    def combine_hidden_states(self, hidden_states: Tensor) -> Tensor:
        """Features [T, F] -> fused states [T, H]."""
        return self.model.fuse(hidden_states[None])[0]

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States [T, H] before the final norm, for `compute_logits`, and the states that the next step is fed with."""
        # vLLM shares the target's embedding as LoRA wrapped it, which counts the target's rows and not the draft's
        if (embedding := getattr(self.model.embed_tokens, "base_layer", None)) is not None:
            self.model.embed_tokens = embedding
        step = self.model.step(input_ids[None], hidden_states[None], positions[None], self._attend)
        return step.hidden_BLH[0], step.feedback_BLH[0]

    def _attend(self, layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor) -> Tensor:
        out_TX: Tensor = self.attention[layer](q_BLAD[0].flatten(1), k_BLKD[0].flatten(1), v_BLKD[0].flatten(1))
        return out_TX.view(q_BLAD.shape)

    def draft_logits(self, hidden_TH: Tensor) -> Tensor:
        """[T, H] -> [T, V], in draft ids."""
        last_TX = self.model.logits(hidden_TH[None])[0]
        if self.has_own_lm_head:
            return last_TX
        logits_TV: Tensor = self.gather_logits(self.lm_head, last_TX)
        return logits_TV

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[T, H] -> [T, W], -inf outside the draft vocabulary."""
        logits_TV = self.draft_logits(hidden_states)
        if self.whole_vocabulary:
            return logits_TV
        logits_TW = logits_TV.new_full((logits_TV.shape[0], self.model.config.vocab_size), -torch.inf)
        return logits_TW.index_copy_(1, self.model.vocabulary.target_ids, logits_TV)

    @cached_property
    def whole_vocabulary(self) -> bool:
        """Whether draft ids are the target's."""
        ids = self.model.vocabulary.target_ids
        return torch.equal(ids, torch.arange(self.model.config.vocab_size, device=ids.device))


def wanted_weights() -> str:
    """What `EAGLE3_DRAFTER_WEIGHTS` says; a wrong setting, of any name, was told when the plugin was registered."""
    try:
        return Settings.read().drafter_weights
    except InputError:
        return Settings.drafter_weights


def not_judged(speculative: Any) -> str:
    """What our reader does not know of a drafter that may be right, "" where it knows it all or knows it wrong. A parallel one is
    vLLM's own to draft chains with, and trees are ours."""
    draft = speculative.draft_model_config
    directory = checkpoint_directory(str(draft.model), draft.revision)
    with on_the_cpu():
        found = check(directory, engine="vllm", values=False)
    if not speculative.parallel_drafting:
        found = [finding for finding in found if finding.where not in ("mask_hidden", CAUSAL)]
    return "" if verdict(found) is not None else next(finding.line() for finding in found if finding.unjudged)


def read_checkpoint(draft_model_config: Any, num_target_layers: int) -> Drafter:
    """The drafter on the CPU, in fp32. Raises InputError naming the tensor or key that is not right."""
    directory = checkpoint_directory(str(draft_model_config.model), draft_model_config.revision)
    raw = draft_model_config.hf_config
    # stands in for the target's embedding and head, which vLLM puts in its place; it takes no memory
    shape = int(raw.vocab_size), int(raw.hidden_size)
    with on_the_cpu():
        shared = torch.zeros(1, 1).expand(shape)
        return load_drafter(directory, target_embedding=shared, target_head=shared, num_target_layers=num_target_layers)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """vLLM makes a model with the GPU and its dtype as PyTorch's own choice; a checkpoint is read on the CPU, in fp32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def checkpoint_directory(model: str, revision: str | None) -> Path:
    """A local directory as it is; a hub's name through the hub's cache, weights as safetensors only."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    files = ("config.json", "*.safetensors", "*.safetensors.index.json", "calibration.json")
    return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))


def announce_boundaries(vllm_config: VllmConfig) -> None:
    """Tell the target which hidden states to keep, whichever dialect says it, before MRv2 asks."""
    speculative = vllm_config.speculative_config
    layers = vllm_config.model_config.get_total_num_hidden_layers()
    config = read_checkpoint(speculative.draft_model_config, layers).config
    speculative.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids = list(config.aux_layers)
