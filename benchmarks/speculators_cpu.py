"""speculators' own trainer where there is no GPU: run by `benchmarks/train_public.py` in an environment that has speculators.

    PYTHON benchmarks/speculators_cpu.py DATA -- ARGUMENTS OF speculators train

DATA holds `answers.jsonl` (`input_ids`, `loss_mask`) and `hidden_states/hs_N.safetensors`. Its trainer names a CUDA device
in three places; they are told the CPU, and nothing else is changed. The last line printed is JSON: seconds of the training.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from speculators.train import cli, trainer
from speculators.train.config import TrainConfig
from speculators.train.vocab_mapping import save_token_frequency_distribution


class TrainerOnCPU(trainer.Trainer):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.device_type = "cpu"

    def run_training(self) -> None:
        begun = time.perf_counter()
        super().run_training()
        print(json.dumps({"seconds": time.perf_counter() - begun, "steps": self.global_step}), flush=True)


def write_dataset(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["seq_len"] = len(row["input_ids"])
    dataset = Dataset.from_list(rows).with_format("torch")
    dataset.save_to_disk(str(data))
    save_token_frequency_distribution(dataset, data / "token_freq.pt")


def main() -> None:
    data, arguments = Path(sys.argv[1]), sys.argv[3:]
    if not (data / "state.json").exists():
        write_dataset(data)
    torch.accelerator.synchronize = lambda *_: None
    trainer.get_local_rank = lambda: "cpu"
    cli.Trainer = TrainerOnCPU
    cli.main(TrainConfig.resolve(["--data-path", str(data), *arguments]))


if __name__ == "__main__":
    main()
