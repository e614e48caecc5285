"""vLLM's layers, lent to the shared drafter: sharded over the ranks of tensor parallelism, norms fused where it can."""

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from eagle3_serving.drafter import Drafter, DrafterConfig, LayerFactory
from eagle3_serving.errors import InputError
from eagle3_vllm.fp8 import weight_as

_SPLIT_OUTPUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_SPLIT_INPUT = ("o_proj", "down_proj")


class Head(nn.Module):
    """The output head [H] -> draft logits [V], gathered over the ranks."""

    def __init__(self, name: str, hidden: int, vocab: int) -> None:
        super().__init__()
        self.head = ParallelLMHead(vocab, hidden, prefix=name)
        self.gather = LogitsProcessor(vocab)
        self.dtype = torch.get_default_dtype()

    @property
    def weight(self) -> Tensor:
        """[V, H] in the engine's dtype, whatever it is kept in: vLLM compares it with the target's."""
        return weight_as(self.dtype, self.head)

    def forward(self, hidden_XH: Tensor) -> Tensor:
        logits: Tensor = self.gather(self.head, hidden_XH.flatten(0, -2)).unflatten(0, hidden_XH.shape[:-1])
        return logits


class VllmLayers(LayerFactory):
    """`prefix` stands before the layers' own names, so that no two of the server's layers share one."""

    def __init__(self, config: DrafterConfig, prefix: str) -> None:
        self.prefix = prefix
        ranks = get_tensor_model_parallel_world_size()
        for what, count in (("attention", config.num_attention_heads), ("key-value", config.num_key_value_heads)):
            if count % ranks:
                raise InputError(
                    f"the drafter's {count} {what} heads cannot be split over {ranks} ranks; "
                    "set EAGLE3_MODE=vllm, or draft_tensor_parallel_size 1"
                )

    def linear(self, name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        kind, full = name.rsplit(".", 1)[-1], f"{self.prefix}.{name}"
        if kind == "lm_head":
            return Head(full, in_features, out_features)
        if kind in _SPLIT_OUTPUT:
            return ColumnParallelLinear(in_features, out_features, bias=bias, prefix=full, return_bias=False)
        if kind in _SPLIT_INPUT:
            return RowParallelLinear(in_features, out_features, bias=bias, prefix=full, return_bias=False)
        return ReplicatedLinear(in_features, out_features, bias=bias, prefix=full, return_bias=False)

    def norm(self, name: str, size: int, eps: float) -> nn.Module:
        return RMSNorm(size, eps=eps)

    def embedding(self, name: str, rows: int, width: int) -> nn.Module:
        return VocabParallelEmbedding(rows, width, prefix=f"{self.prefix}.{name}")


def linear_layers(lent: Drafter) -> list[LinearBase | ParallelLMHead]:
    """All that `VllmLayers.linear` lent, each once; a head that is the target's is none of them."""
    return [module for module in lent.modules() if isinstance(module, LinearBase | ParallelLMHead)]


@torch.no_grad()
def copy_weights(source: Drafter, lent: Drafter) -> None:
    """All of `source` into `lent`, whose layers take their own rank's part."""
    theirs = {name.replace("lm_head.head.", "lm_head."): p for name, p in lent.named_parameters()}
    for name, tensor in source.named_parameters():
        parameter = theirs.pop(name)
        load = getattr(parameter, "weight_loader", default_weight_loader)
        load(parameter, tensor.detach().to(parameter.dtype))
    assert not theirs, f"nothing was loaded into {', '.join(theirs)}"
