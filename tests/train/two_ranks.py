"""Run by `test_ranks.py` under torchrun: a toy run of two ranks, held against what one process computes.

torchrun --nproc-per-node 2 two_ranks.py DIRECTORY
"""

import random
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.engine.target import Target
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import FeatureSource
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.run import Trainer
from eagle3_serving.train.served import ServedMeasure, record

VOCAB, HIDDEN = 24, 16


def make(directory: Path) -> Trainer:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    target = Target(LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, initializer_range=0.3, **shape, **heads)))
    rng = random.Random(1)
    # of unlike lengths, so that the ranks' batches hold unlike numbers of rows
    ids = [[rng.randrange(VOCAB) for _ in range(9 + n % 12)] for n in range(40)]
    answers = [Answer(str(n), tuple(row[:5]), tuple(row[5:])) for n, row in enumerate(ids)]
    config = DrafterConfig(
        **shape, **heads, head_dim=4, draft_vocab_size=VOCAB, target_hidden_size=HIDDEN, aux_layers=(1, 2, 3)
    )
    options = TrainOptions(
        tokens=500, tokens_per_batch=64, ttt_steps=1, warmup=2, closed_form_batches=3, save_every=3, log_every=1,
        clip=1e9, bf16=False, measure_every=150,
    )  # fmt: skip
    directory.mkdir(exist_ok=True)
    source = FeatureSource(target, config.aux_layers, directory / "features", bf16=False)
    trainer = Trainer(Drafter(config), target, answers[4:], answers[:4], directory, options, source=source)
    if trainer.ranks.first:  # the others wait meanwhile
        recording = record(target, {"held-out": answers[:4]}, 40, 10)
        trainer.served = ServedMeasure(target, config.aux_layers, recording, (2, 2, 4), source)
    return trainer


def rows_of(trainer: Trainer, index: int) -> int:
    return sum(len(answer.response_ids) - 1 for answer in trainer.batches[index])


def main(directory: Path) -> None:
    trainer = make(directory)
    ranks = trainer.ranks
    assert ranks.size == 2
    trainer.start()
    # one step's gradient: the mean over both ranks' rows together
    both = [0, next(n for n in range(1, len(trainer.batches)) if rows_of(trainer, n) != rows_of(trainer, 0))]
    expected = [torch.zeros_like(p) for p in trainer.parameters]
    results = [trainer.loss(trainer.scaled(trainer.features(index))) for index in both]
    rows = [result.rows for result in results]
    for result in results:
        grads = torch.autograd.grad(result.loss, trainer.parameters)
        for sum_, grad in zip(expected, grads, strict=True):
            sum_ += grad * result.rows / sum(rows)
    result = trainer.loss(trainer.scaled(trainer.features(both[ranks.rank])))
    result.loss.backward()
    ranks.average_gradients(trainer.parameters, result.rows / sum(rows))
    for parameter, gradient in zip(trainer.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
    trainer = make(directory)
    trainer.run()
    for parameter in trainer.parameters:
        theirs = [torch.empty_like(parameter) for _ in range(2)]
        dist.all_gather(theirs, parameter.detach())
        assert torch.equal(theirs[0], theirs[1])
    if ranks.first:
        assert trainer.best is not None and trainer.watch.last == trainer.seen_tokens
        torch.save({"seen": trainer.seen_tokens, "steps": trainer.step}, directory / "done.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
