"""The answers of a job: those that its target is asked for, its own files, general ones beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.train.answers import generate_answers
from eagle3_serving.train.data import Answer, DataReport, read_answers
from eagle3_serving.train.mixture import Families, Mixture, mix, split
from eagle3_serving.train.options import TrainJob
from eagle3_serving.train.ranks import Ranks


class Gathered(NamedTuple):
    """`own` answers as they were read, and what is trained on and kept out of them."""

    own: list[Answer]
    mixture: Mixture
    report: DataReport


def gather(job: TrainJob, vocab_size: int | None, ranks: Ranks) -> Gathered:
    """Have the target answer `job.prompts` first. Raises InputError naming file and line of what is no answer, general ones
    before anything is asked."""
    general = Families()
    for path in job.general:
        general.setdefault(path.stem, []).extend(_read(job, [path], vocab_size, DataReport()))
    if job.prompts:
        job.out.mkdir(parents=True, exist_ok=True)
        if ranks.first:
            prompts, out = read_prompts(job.prompts, job.limit, family="train"), job.out / "answers.jsonl"
            generate_answers(job.target, prompts, out, max_prompt=job.max_prompt, max_tokens=job.answer_tokens)
        ranks.wait()
    report, seed = DataReport(), job.options.seed
    own = _read(job, own_files(job), vocab_size, report)
    mixture = split(own, job.held_out, seed, "held-out" if job.init is None else family_name(job))
    if general:
        mixture = mix(mixture, general, job.general_share, job.held_out, seed)
    return Gathered(own, mixture, report)


def own_files(job: TrainJob) -> list[Path]:
    """Those that the job's own answers stand in."""
    return [*job.answers, *([job.out / "answers.jsonl"] if job.prompts else [])]


def family_name(job: TrainJob) -> str:
    """What the job's own answers are called in a table: the file's name, where there is one."""
    names = {path.stem for path in (*job.prompts, *job.answers)}
    return names.pop() if len(names) == 1 else "answers"


def _read(job: TrainJob, files: Sequence[Path], vocab_size: int | None, report: DataReport) -> list[Answer]:
    return read_answers(files, job.max_length, job.max_prompt, vocab_size, report)
