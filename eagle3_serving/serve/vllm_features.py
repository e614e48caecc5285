"""The command line of a vLLM server that writes a target's hidden states into a folder."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eagle3_serving.serve.server import ServerCommand
from eagle3_serving.serve.vllm import VllmOptions, on_cpu, vllm_command

_ON_CPU = {
    "kv_connector": "CpuHiddenStatesConnector",
    "kv_connector_module_path": "eagle3_vllm.feature_store",
}


def features_command(options: VllmOptions, store: Path, boundaries: Sequence[int]) -> ServerCommand:
    """`boundaries`: whose hidden states are written, ascending; vLLM gives those of layer k's input as id k.

    Raises InputError where vLLM is missing or the target is.
    """
    speculative = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": sorted(boundaries)}},
    }
    transfer = {
        **(_ON_CPU if on_cpu() else {"kv_connector": "ExampleHiddenStatesConnector"}),
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(store)},
    }
    ours = ("--speculative-config", json.dumps(speculative), "--kv-transfer-config", json.dumps(transfer))
    # a file is of one request's own pass, so that no prefix is kept
    plain = replace(options, prefix_cache=False, extra=(*ours, *options.extra))
    return replace(vllm_command(plain), name="vLLM (hidden states)")
