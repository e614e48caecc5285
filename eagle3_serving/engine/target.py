"""A transformers causal LM as a target: explicit positions and mask, logits and auxiliary hidden states out.

Shape letters: B sequences, L rows of a sequence, T packed rows of a pass, V vocabulary, F = A * H concatenated features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from eagle3_serving.engine.attention import NO_MASK, use_row_attention
from eagle3_serving.engine.reach import reaches
from eagle3_serving.engine.rows import KVPool, RowPlan
from eagle3_serving.errors import InputError

_UNTOLD = ("doge", "phimoe")  # a window in the mask that transformers makes, of which their attention is not told


@contextmanager
def _without_layers(config: Any) -> Iterator[None]:
    """Let a model of this config be loaded without decoder layers, and without a word on the weights that are left out."""
    from transformers.utils import logging

    text = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


class TargetOutput(NamedTuple):
    """`logits_TV` fp32 or the model's dtype; `aux_TF` the hidden states at the watched boundaries, None without any."""

    logits_TV: Tensor
    aux_TF: Tensor | None


class Target:
    """`model` is a transformers causal LM whose decoder has `layers` and `norm`. Raises InputError where it has not."""

    recorded = False  # what it says was said before, and is drawn no more: its likeliest token

    def __init__(self, model: nn.Module, name: str = "target") -> None:
        self.model: Any = model.eval()
        self.name = name
        config: Any = self.model.config
        self.reaches = reaches(config, name)
        self.body: Any = getattr(self.model, "model", None)
        if self.body is None or not hasattr(self.body, "layers") or not hasattr(self.body, "norm"):
            raise InputError(
                f"{name}: {type(model).__name__} is not a decoder of the Llama family; the embedded engine needs one"
            )
        self.hidden_size, self.vocab_size = int(config.hidden_size), int(config.vocab_size)
        self.num_layers = int(config.num_hidden_layers)
        self.max_positions = int(config.max_position_embeddings)
        if config.model_type in _UNTOLD and getattr(config, "sliding_window", None):
            self.max_positions = min(self.max_positions, int(config.sliding_window))  # up to there it hides nothing
        if getattr(config, "attn_temperature_tuning", None):
            # Llama 4 counts rows, not positions, for it; up to there it changes nothing
            self.max_positions = min(self.max_positions, int(config.floor_scale) - 1)
        self.embedding: Tensor = self.body.embed_tokens.weight
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        use_row_attention(self.model)
        # a mask that is there already, of four dimensions, is taken as it is: no other one is made
        self._no_mask = torch.empty(NO_MASK, device=self.device)
        self._aux: dict[int, Tensor] = {}
        self._aux_layers: tuple[int, ...] = ()

    @classmethod
    def load(
        cls,
        directory: Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        sharded: bool = False,
        layers: bool = True,
    ) -> "Target":
        """The model in a local directory; nothing is fetched. `sharded`: every process of the group keeps a share of each
        decoder layer and gathers one at a time (FSDP2), so that all must make every pass. `layers` False: embedding,
        final norm and head alone, for one whose passes are made elsewhere. Raises InputError where it cannot be read."""
        from transformers import AutoConfig

        from eagle3_serving.engine.text_tower import TextTower

        if not (directory / "config.json").is_file():
            raise InputError(f"{directory}/config.json is missing; a target directory holds a Hugging Face causal LM")
        try:
            # said, not asked: without it a person at a terminal would be asked whether the model's own code may run
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            depth = config.get_text_config().num_hidden_layers
            with nullcontext() if layers else _without_layers(config):
                model = _loader(config).from_pretrained(
                    directory, config=config, dtype=dtype, local_files_only=True, trust_remote_code=False
                )
        except MemoryError:
            raise
        except Exception as error:  # damaged or strange files raise nearly anything there
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{directory} cannot be loaded as a causal LM: {why[:300]}") from None
        if TextTower.within(model):
            model = TextTower(model)
        if sharded:
            for layer in getattr(getattr(model, "model", None), "layers", ()):
                fully_shard(layer, reshard_after_forward=True)
        target = cls(model.to(device), str(directory))
        target.num_layers = depth
        return target

    @property
    def latent(self) -> bool:
        """Whether its keys and values are compressed (MLA): the embedded engine's cache has no place for them."""
        return bool(getattr(self.model.config, "kv_lora_rank", None))

    @property
    def eos_ids(self) -> frozenset[int]:
        """End tokens by generation_config.json, else by config.json."""
        generation = getattr(self.model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        eos = self.model.config.eos_token_id if eos is None else eos
        return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)

    @property
    def watched(self) -> tuple[int, ...]:
        """The boundaries whose hidden states are returned, in this order."""
        return self._aux_layers

    def watch(self, aux_layers: Sequence[int]) -> None:
        """From now on return the hidden states at these boundaries: k is the input of layer k, and of the final norm at k = n."""
        if self._aux_layers == tuple(aux_layers):
            return
        assert not self._aux_layers, "boundaries are chosen once"
        self._aux_layers = tuple(aux_layers)
        for k in self._aux_layers:
            module: nn.Module = self.body.norm if k == self.num_layers else self.body.layers[k]
            module.register_forward_pre_hook(partial(self._keep, k), with_kwargs=True)

    def _keep(self, k: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._aux[k] = args[0] if args else kwargs["hidden_states"]

    def new_pool(self, slots: int, capacity: int) -> KVPool:
        """An empty KV pool for `slots` requests of at most `capacity` rows each. Raises InputError where it cannot be."""
        if self.latent:
            raise InputError(
                f"{self.name}: multi-head latent attention (kv_lora_rank) is not supported by the embedded engine; drafters are "
                "trained for such a target (--eval-limit 0), and measured on vLLM or SGLang"
            )
        return KVPool(self.num_layers, slots, capacity)

    @torch.inference_mode()
    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        pool: KVPool,
        plan: RowPlan,
        logits_rows: Tensor | None = None,
    ) -> TargetOutput:
        """One pass over packed rows, their keys and values written to `pool`.

        `logits_rows` int64: the rows whose logits are wanted, all unless told.
        """
        plan.position_T = positions_T
        output = self.model(
            input_ids=tokens_T[None],
            position_ids=positions_T[None],
            attention_mask=self._no_mask,
            use_cache=False,
            logits_to_keep=0 if logits_rows is None else logits_rows,
            rows=(pool, plan, self.reaches),
        )
        aux_BLF = self._take_aux()
        return TargetOutput(output.logits[0], None if aux_BLF is None else aux_BLF[0])

    @torch.inference_mode()
    def hidden_states(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """A causal pass without cache or head: watched boundaries [B, L, F] and the state after the final norm [B, L, H]."""
        final_BLH: Tensor = self.body(input_ids=tokens_BL, use_cache=False).last_hidden_state
        aux_BLF = self._take_aux()
        assert aux_BLF is not None, "watch boundaries first"
        return aux_BLF, final_BLH

    def _take_aux(self) -> Tensor | None:
        if not self._aux_layers:
            return None
        aux_BLF = torch.cat([self._aux[k] for k in self._aux_layers], dim=-1)
        self._aux.clear()
        return aux_BLF


def _loader(config: Any) -> Any:
    """Transformers' loader of causal LMs; that of models of images and texts where this config's is only one of those."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = type(config)
    causal = kind in AutoModelForCausalLM._model_mapping or kind not in AutoModelForImageTextToText._model_mapping
    return AutoModelForCausalLM if causal else AutoModelForImageTextToText
