"""From options to findings, whichever the engine."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from eagle3_serving.tune.advice import Advice
from eagle3_serving.tune.options import TuneOptions
from eagle3_serving.tune.traffic import traffic_prompts, write_prompts
from eagle3_serving.tune.verify import Verified, verify


class Findings(NamedTuple):
    """`commands`: with the drafter and the profile, and plain. `accepted_length_by_text` as in an evaluation."""

    advice: list[Advice]
    commands: tuple[str, str]
    verified: list[Verified]
    accepted_length_by_text: dict[int, float]


def tune(options: TuneOptions) -> Findings:
    """Writes the profile at the end, whole; what a stop leaves is the profile of before, if any.

    Raises InputError for what cannot be used, before anything starts; CheckError where an engine fails.
    """
    prompts = traffic_prompts(options.traffic, options.limit)
    with tempfile.TemporaryDirectory(prefix="eagle3-tune-") as name:
        folder = Path(name)
        file = folder / "traffic.jsonl"
        write_prompts(file, prompts)
        # imported late: an engine's needs must not be asked of the users of another
        if options.engine == "vllm":
            from eagle3_serving.tune import vllm

            found, commands = vllm.tune_vllm(options, file, folder), vllm.commands(options)
        elif options.engine == "sglang":
            from eagle3_serving.tune import sglang

            found, commands = sglang.tune_sglang(options, prompts, folder), sglang.commands(options)
        else:
            from eagle3_serving.tune import embedded

            traffic = options.traffic[0] if options.traffic else Path("PROMPTS.jsonl")
            found, commands = embedded.tune_embedded(options, prompts), embedded.commands(options, traffic)
        verified = verify(options, file, found.advice) if options.verify else []
        return Findings(found.advice, commands, verified, found.context.lengths())
