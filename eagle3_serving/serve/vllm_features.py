"""The command line of a vLLM server that writes a target's hidden states into a folder."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from eagle3_serving.dtypes import ENGINES
from eagle3_serving.errors import InputError
from eagle3_serving.serve.server import ServerCommand
from eagle3_serving.serve.vllm import SERVED_NAME, VllmOptions, on_cpu, require_vllm, vllm_environment

_ON_CPU = {
    "kv_connector": "CpuHiddenStatesConnector",
    "kv_connector_module_path": "eagle3_vllm.feature_store",
}


def features_command(options: VllmOptions, store: Path, boundaries: Sequence[int]) -> ServerCommand:
    """`boundaries`: whose hidden states are written, ascending; vLLM gives those of layer k's input as id k.

    Raises InputError where vLLM is missing or the target is.
    """
    require_vllm()
    if not (options.target / "config.json").is_file():
        raise InputError(f"no config.json in the target directory {options.target}")
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
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(options.target), "--served-model-name", SERVED_NAME]
    argv += ["--host", options.host, "--port", "{port}", "--dtype", ENGINES[options.dtype]]
    argv += ["--max-model-len", str(options.max_model_len), "--max-num-seqs", str(options.max_num_seqs)]
    argv += ["--no-enable-prefix-caching"]  # a file is of one request's own pass
    argv += [] if options.compiled else ["--enforce-eager"]
    argv += ["--tensor-parallel-size", str(options.tensor_parallel)] if options.tensor_parallel > 1 else []
    argv += ["--speculative-config", json.dumps(speculative), "--kv-transfer-config", json.dumps(transfer)]
    return ServerCommand("vLLM (hidden states)", [*argv, *options.extra], vllm_environment(options), options.host)
