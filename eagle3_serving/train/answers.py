"""The target's own answers to raw prompts, as token ids: half greedy, half sampled; resumable line by line."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import Prompt
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import chat_ids, has_chat_template, load_tokenizer


def generate_answers(
    target: Path,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_prompt: int = 1024,
    max_tokens: int = 256,
    temperature: float = 0.8,
    concurrency: int = 32,
    dtype: str = "bf16",
) -> Path:
    """Append {"id", "temperature", "prompt_ids", "response_ids"} lines to `out` for prompts it does not hold yet.

    Every second prompt is answered greedily, the others at `temperature`; the target runs on vLLM. Prompts of more than
    `max_prompt` tokens are left out, and counted in a line.
    Raises CheckError where the server fails, InputError where `out` is damaged.
    """
    done = _done(out)
    todo = [(number, prompt) for number, prompt in enumerate(prompts) if prompt.id not in done]
    if not todo:
        return out
    tokenizer = load_tokenizer(target)
    asked = {prompt.id: chat_ids(tokenizer, prompt.turns[0]) for _, prompt in todo}
    long = [prompt.id for _, prompt in todo if len(asked[prompt.id]) > max_prompt]
    if long:
        print(f"{len(long)} prompts of more than {max_prompt} tokens are not asked (first: {long[0]})", flush=True)
    todo = [(number, prompt) for number, prompt in todo if len(asked[prompt.id]) <= max_prompt]
    if not todo:
        return out
    context = max(VllmOptions.max_model_len, max_prompt + max_tokens)
    from eagle3_serving.serve.client import ChatClient  # openai: where answers are given, none is asked for

    options = VllmOptions(target, dtype=dtype, max_model_len=context, max_num_seqs=concurrency, kv_cache_gib=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        log_directory("answers") as logs,
        Server(vllm_command(options), logs / "vllm.log") as server,
        ChatClient(server.url, chat=has_chat_template(target)) as client,
        out.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(concurrency) as pool,
        tqdm(total=len(prompts), initial=len(prompts) - len(todo), desc="answers", unit="prompt") as bar,
    ):

        def answer(number: int, prompt: Prompt) -> dict[str, Any]:
            heat = temperature if number % 2 else 0.0
            said = client.ask(prompt.turns[0], max_tokens, heat)
            ids = list(said.token_ids)
            return {"id": prompt.id, "temperature": heat, "prompt_ids": asked[prompt.id], "response_ids": ids}

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
