"""Prompts of up to 8K tokens, each question behind more and more text: what is accepted then differs by the context alone.

    python -m benchmarks.long_prompts --prompts EVAL --target TARGET --limit 3 --out long.jsonl
    eagle3 eval --engine embedded --target TARGET --drafter DRAFTER --prompts long.jsonl --max-tokens 96 --json

A news article to summarize stands behind other articles, a function to complete behind other functions, all out of EVAL's
`cnn_dm` and `humaneval`. Every question comes once a length; where the text before it begins in mid-sentence, the question does not.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle3_serving.errors import Eagle3Error, InputError
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.files import write_whole
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

LENGTHS = (400, 900, 1800, 3700, 5500)  # tokens, so that an answer ends in the stretch it begins in
TASKS = {
    "cnn_dm": ("Here are news articles.", "Summarize the last article in a few sentences."),
    "humaneval": ("Here are Python functions.", "Complete the last function."),
}
THEIRS = ("Summarize: ", "Complete the code I provided.")  # what EVAL's own prompts ask


def long_prompts(
    texts: Sequence[str], task: tuple[str, str], tokenizer: Any, lengths: Sequence[int], limit: int
) -> list[str]:
    """For each of the `limit` shortest texts a prompt a length, the rest of the texts before it. Raises InputError where there
    is too little text."""
    first, last = task
    own = sorted(texts, key=len)[:limit]
    before = "\n\n".join(text for text in texts if text not in own)
    filler: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
    made = []
    for text in own:
        alone = len(chat_ids(tokenizer, f"{first}\n\n{text}\n\n{last}"))
        for length in lengths:
            room = length - alone
            if not 0 <= room <= len(filler):
                raise InputError(
                    f"a prompt of {length} tokens cannot be made of texts of {alone} and {len(filler)} tokens"
                )
            front = tokenizer.decode(filler[len(filler) - room :])
            made.append(f"{first}\n\n{front}\n\n{text}\n\n{last}")
    return made


def _bare(prompt: str) -> str:
    return next((prompt.removeprefix(asked) for asked in THEIRS if prompt.startswith(asked)), prompt).strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--prompts", type=Path, nargs="+", required=True, help="EVAL: files with families cnn_dm and humaneval"
    )
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a prompt")
    parser.add_argument("--limit", type=int, default=3, help="questions of each family (default 3)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    try:
        families, tokenizer = by_family(read_prompts(args.prompts)), load_tokenizer(args.target)
        lines = []
        for name, task in TASKS.items():
            texts = [_bare(prompt.turns[0]) for prompt in families.get(name, ())]
            for number, text in enumerate(long_prompts(texts, task, tokenizer, args.lengths, args.limit)):
                lines.append(json.dumps({"id": f"{name}-{number}", "family": name, "turns": [text]}))
        write_whole(args.out, "\n".join(lines) + "\n")
    except Eagle3Error as error:
        print(f"long_prompts: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
