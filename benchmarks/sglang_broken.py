"""Three drafters that stock SGLang takes wrongly, with and without the plugin: what is accepted, or what the server says.

python -m benchmarks.sglang_broken --drafter checkpoints/smollm2-135m-instruct --prompts prompts.jsonl --out broken.json
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.common import accepted_length, add_pair, write_json
from benchmarks.sglang_cases import ask_all, body
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

SHAPE = Shape(3, 4, 6)
Config = dict[str, Any]


def renamed_tensor(config: Config, tensors: dict[str, Tensor]) -> None:
    """down_proj under a name SGLang skips."""
    [name] = [name for name in tensors if name.endswith("down_proj.weight")]
    tensors[name.replace("down_proj", "down_projection")] = tensors.pop(name)


def ids_where_vllm_reads_them(config: Config, tensors: dict[str, Tensor]) -> None:
    """Layers said at the top level alone. SGLang reads its defaults in their place, whatever was meant."""
    config["eagle_aux_hidden_state_layer_ids"] = [3, 12, 24]
    config.pop("eagle_config", None)


def no_vocabulary_size(config: Config, tensors: dict[str, Tensor]) -> None:
    """draft_vocab_size is missing."""
    del config["draft_vocab_size"]


CASES: dict[str, Callable[[Config, dict[str, Tensor]], None]] = {
    "a renamed tensor": renamed_tensor,
    "layer ids where vLLM reads them": ids_where_vllm_reads_them,
    "no draft_vocab_size": no_vocabulary_size,
}


def write(drafter: Path, folder: Path, change: Callable[[Config, dict[str, Tensor]], None]) -> Path:
    config, tensors = json.loads((drafter / "config.json").read_text()), load_file(drafter / "model.safetensors")
    change(config, tensors)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def serve(options: SglangOptions, bodies: list[dict[str, Any]], port: int, log: Path) -> dict[str, Any]:
    try:
        with (
            Server(sglang_command(options), log, port=port) as server,
            SglangClient(server.url, options.target) as client,
        ):
            said = ask_all(client, bodies, 4)
            counted = client.counters()
            warned = [line for line in log.read_text().splitlines() if "converted copy" in line]
            return {
                "tokens_a_pass": (sum(len(a.token_ids) for a in said) - len(said)) / counted.drafts,
                "warned": warned[:1],
            }
    except CheckError as error:
        lines = [line for line in log.read_text().splitlines() if line.startswith("eagle3: ")]
        return {"stopped": lines or [str(error)[:300]], "loaded_weights": "Load weight" in log.read_text()}


def meant(target: Path, folder: Path, bodies: list[dict[str, Any]]) -> float | str:
    """Tokens a pass of the embedded engine, which reads what the configuration says; or why it does not load."""
    options = DecodeOptions(24, "tree", nodes=SHAPE.tokens - 1, depth=SHAPE.steps, top_k=SHAPE.top_k, calibrated=False)
    try:
        return accepted_length(
            EmbeddedEngine.load(target, folder).generate_many([b["input_ids"] for b in bodies], options)
        )
    except Eagle3Error as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    bodies = [body(chat_ids(tokenizer, prompt.turns[0])[:200], 24) for prompt in read_prompts(args.prompts, 2)]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"as it ships": args.drafter} | {
            name: write(args.drafter, Path(temporary) / name.replace(" ", "-"), change)
            for name, change in CASES.items()
        }
        for name, folder in folders.items():
            rows[name] = {"what the checkpoint means (embedded engine)": meant(target, folder, bodies)}
            for plugin in (False, True):
                options = SglangOptions(target, folder, SHAPE, plugin=plugin, max_requests=4)
                side = "with the plugin" if plugin else "stock SGLang"
                log = Path(temporary) / f"{len(rows)}-{plugin}.log"
                said = json.dumps(serve(options, bodies, args.port, log))
                rows[name][side] = json.loads(said.replace(temporary, "").replace(str(Path.home()), "~"))
                print(name, side, rows[name][side], flush=True)
                write_json(args.out, rows)


if __name__ == "__main__":
    main()
