"""Run by the SGLang environment: its own configuration and loader on one drafter after the other, and what they left.

    python loaded_by_sglang.py TARGET OUT DRAFTER...

Writes OUT/i.pt for drafter i: the parameters under SGLang's names, the flags that its forward pass reads, the auxiliary layers
that the target would capture, or the error.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

os.environ |= {"SGLANG_USE_CPU_ENGINE": "1", "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def main(target: str, out: Path, drafters: list[str]) -> None:
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
    from sglang.srt.model_loader.loader import _initialize_model, get_model_loader
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    def arguments(drafter: str) -> Any:
        return ServerArgs(
            model_path=target,
            device="cpu",
            dtype="float32",
            skip_tokenizer_init=True,
            prefill_attention_backend="intel_amx",
            decode_attention_backend="intel_amx",
            speculative_algorithm="EAGLE3",
            speculative_draft_model_path=drafter,
            speculative_num_steps=2,
            speculative_eagle_topk=1,
            speculative_num_draft_tokens=3,
        )

    ready = False
    for i, drafter in enumerate(drafters):
        try:
            args = arguments(drafter)
            args.resolve_once()
            publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))
            if not ready:
                init_distributed_environment(
                    backend="gloo",
                    world_size=1,
                    rank=0,
                    local_rank=0,
                    distributed_init_method=f"file://{out}/rendezvous",
                )
                initialize_model_parallel()
                ready = True
            config = ModelConfig.from_server_args(args, model_path=drafter, is_draft_model=True)
            torch.manual_seed(i)
            loader = get_model_loader(LoadConfig(), config)
            with torch.device("cpu"):
                model = _initialize_model(config, LoadConfig(), None)
            model.load_weights(loader._get_all_weights(config, model))
            found = describe(model, config)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        torch.save(found, out / f"{i}.pt")


def describe(model: Any, config: Any) -> dict[str, Any]:
    """What the model and, for the auxiliary layers, the target's class (Llama) would do."""
    from types import SimpleNamespace

    from sglang.srt.models.llama import LlamaForCausalLM

    eagle_config = getattr(config.hf_config, "eagle_config", None)
    ids = eagle_config.get("eagle_aux_hidden_state_layer_ids") if isinstance(eagle_config, dict) else None
    target = SimpleNamespace(
        pp_group=SimpleNamespace(is_last_rank=True),
        config=SimpleNamespace(num_hidden_layers=12),
        model=SimpleNamespace(),
    )
    LlamaForCausalLM.set_eagle3_layers_to_capture(target, ids)
    hot = model.hot_token_id
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "class": type(model).__name__,
        "norm_output": bool(model.model.norm_output),
        "norm_before_fc": model.model.input_norm is not None,
        "fc_norm": model.model.fc_norm is not None,
        "aux": tuple(target.model.layers_to_capture),
        "target_ids": None if hot is None else hot.clone(),
        "head_from_target": bool(model.load_lm_head_from_target),
        "tied": model.lm_head is model.model.embed_tokens,
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
