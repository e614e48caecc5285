"""Run by the vLLM environment: its own configuration and loader on one drafter after the other, and what they left.

    python loaded_by_vllm.py TARGET OUT DRAFTER...

Writes OUT/i.pt for drafter i: the parameters under vLLM's names, the flags that its forward pass reads, the auxiliary layers
that both model runners would watch, or the error.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "EAGLE3_MODE": "vllm",  # what is asked is what vLLM itself does
}


def main(target: str, out: Path, drafters: list[str]) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model

    torch.set_default_dtype(torch.float32)
    ready = False
    for i, drafter in enumerate(drafters):
        try:
            config = EngineArgs(
                model=target,
                skip_tokenizer_init=True,
                dtype="float32",
                max_model_len=128,
                enforce_eager=True,
                speculative_config={"method": "eagle3", "model": drafter, "num_speculative_tokens": 2},
            ).create_engine_config()
            with set_current_vllm_config(config):
                if not ready:
                    rendezvous = f"file://{out}/rendezvous"
                    init_distributed_environment(1, 0, rendezvous, 0, "gloo")
                    initialize_model_parallel(1, 1)
                    ready = True
                torch.manual_seed(i)
                # what get_model does, without packing the weights for the CPU's kernels
                draft = config.speculative_config.draft_model_config
                with torch.device("cpu"):
                    model = initialize_model(vllm_config=config, model_config=draft)
                get_model_loader(config.load_config).load_weights(model, draft)
            found = describe(model, config)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        torch.save(found, out / f"{i}.pt")


def describe(model: Any, config: Any) -> dict[str, Any]:
    from vllm.v1.worker.gpu.spec_decode.eagle.eagle3_utils import get_eagle3_aux_layers_from_config
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    body, first = model.model, model.model.layers[0]
    runner = type("Runner", (), {"speculative_config": config.speculative_config})()
    return {
        "parameters": {name: parameter.detach().clone() for name, parameter in model.named_parameters()},
        "class": type(model).__name__,
        "norm_before_residual": first._residual_norm.__name__ == "_norm_before_residual",
        "norm_output": bool(body.norm_output),
        "norm_before_fc": bool(body.norm_before_fc),
        "fc_norm": body.fc_norm is not None,
        "rope": json.loads(json.dumps(model.config.rope_parameters)),
        "aux_v1": GPUModelRunner._get_eagle3_aux_layers_from_config(runner),
        "aux_v2": get_eagle3_aux_layers_from_config(config.speculative_config),
        "own_head": bool(getattr(model, "has_own_lm_head", False)),
        "own_embedding": bool(getattr(model, "has_own_embed_tokens", False)),
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
