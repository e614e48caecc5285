"""`eagle3 bench` under the name that is looked for among benchmarks: the same command, the same arguments.

python -m benchmarks.throughput --engine vllm --target DIR --drafter DIR --prompts prompts.jsonl --out runs/vllm.jsonl
"""

import sys

from eagle3_serving.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]], "throughput"))
