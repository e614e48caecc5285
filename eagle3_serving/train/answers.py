"""The target's own answers to raw prompts, as token ids: half greedy, half sampled; resumable line by line."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import Prompt
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import chat_ids, load_tokenizer


def generate_answers(
    target: Path,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    concurrency: int = 32,
    dtype: str = "bf16",
) -> Path:
    """Append {"id", "temperature", "prompt_ids", "response_ids"} lines to `out` for prompts it does not hold yet.

    Every second prompt is answered greedily, the others at `temperature`; the target runs on vLLM.
    Raises CheckError where the server fails, InputError where `out` is damaged or no chat template is there.
    """
    done = _done(out)
    todo = [(number, prompt) for number, prompt in enumerate(prompts) if prompt.id not in done]
    if not todo:
        return out
    tokenizer = load_tokenizer(target)
    options = VllmOptions(target, dtype=dtype, max_num_seqs=concurrency, kv_cache_gib=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        log_directory("answers") as logs,
        Server(vllm_command(options), logs / "vllm.log") as server,
        ChatClient(server.url) as client,
        out.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(concurrency) as pool,
        tqdm(total=len(prompts), initial=len(prompts) - len(todo), desc="answers", unit="prompt") as bar,
    ):

        def answer(number: int, prompt: Prompt) -> dict[str, Any]:
            heat = temperature if number % 2 else 0.0
            said = client.ask(prompt.turns[0], max_tokens, heat)
            ids = chat_ids(tokenizer, prompt.turns[0])
            return {"id": prompt.id, "temperature": heat, "prompt_ids": ids, "response_ids": list(said.token_ids)}

        jobs = [pool.submit(answer, number, prompt) for number, prompt in todo]
        try:
            for job in as_completed(jobs):
                file.write(json.dumps(job.result()) + "\n")
                file.flush()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out


def _done(out: Path) -> set[str]:
    """Ids already answered. A last line cut short by a kill is taken off; any other damage is an error."""
    if not out.exists():
        return set()
    lines = out.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        beside = out.with_name(f".{out.name}.partial")
        beside.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
        beside.replace(out)
    done = set()
    for number, line in enumerate(lines[:-1], 1):
        try:
            done.add(str(json.loads(line)["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out}:{number}: not an answer ({error}); mend or remove that line") from None
    return done
