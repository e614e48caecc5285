"""Five hundred short mixed requests with aborts on one SGLang server: its pools return to the start, its log holds no error.

SGLang checks at every idle moment that no cache slot is missing, and ends itself where one is.

    python -m benchmarks.sglang_soak --drafter checkpoints/smollm2-135m-instruct --prompts prompts.jsonl --out soak.json
"""

import argparse
import random
import re
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.common import add_pair, write_json
from benchmarks.sglang_cases import FEATURES, ask_and_hang_up, body
from eagle3_serving.errors import CheckError
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

TREES = "0;1,4,3;3,4,6;5,4,12"
WRONG = re.compile(r"Traceback|leak|ERROR|exception", re.IGNORECASE)


def used_slots(url: str, client: SglangClient, prompt_ids: list[int]) -> float:
    """Cache slots that SGLang counts as used by one lone request's last step, the prefix cache emptied before it."""
    httpx.post(f"{url}/flush_cache", timeout=60.0).raise_for_status()
    client.generate(body(prompt_ids, 4))
    time.sleep(3.0)
    metrics = httpx.get(f"{url}/metrics", timeout=60.0).text
    [used] = re.findall(r"^sglang:num_used_tokens\{[^}]*\} (\S+)$", metrics, re.MULTILINE)
    return float(used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=12)
    parser.add_argument("--cycle", action="store_true", help="another tree every step, whatever it costs")
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    dice = random.Random(0)
    prompts = [chat_ids(tokenizer, prompt.turns[0])[:120] for prompt in read_prompts(args.prompts, None)]
    options = SglangOptions(
        target,
        args.drafter,
        trees=TREES,
        choice="cycle" if args.cycle else "",
        radix_cache=True,
        max_requests=8,
        kv_tokens=4096,
    )
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with (
            Server(sglang_command(options), log, port=args.port) as server,
            SglangClient(server.url, target) as client,
        ):
            before, begun = used_slots(server.url, client, prompts[0]), time.monotonic()
            ready = len(log.read_text())  # before it SGLang tells of models that it cannot import here

            def one(_: int) -> str:
                ids, tokens = dice.choice(prompts), dice.randint(1, 12)
                if dice.random() < 0.2:
                    ask_and_hang_up(server.url, [body(ids, 60)], after=dice.randint(0, 3))
                    return "aborted"
                name = dice.choice(list(FEATURES))
                try:
                    answer = client.generate(FEATURES[name](ids, tokens))
                except CheckError:
                    return "failed"
                return name if answer.token_ids else "empty"

            with ThreadPoolExecutor(args.concurrency) as pool:
                done.update(pool.map(one, range(args.requests)))
            time.sleep(5.0)
            seconds = time.monotonic() - begun
            after = used_slots(server.url, client, prompts[0])
            passes = re.findall(
                r"^(eagle3:verify_passes_total\{.*\}) (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE
            )
            serving = [line for line in log.read_text()[ready:].splitlines() if WRONG.search(line)]
    result = {
        "requests": dict(done),
        "used_slots": [before, after],
        "log_lines": serving,
        "passes": dict(passes),
        "seconds": seconds,
    }
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
