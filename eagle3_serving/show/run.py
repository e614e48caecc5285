"""From what a person asked for to the stories that are drawn."""

from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from eagle3_serving import __version__
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.engine.profile import costs_for
from eagle3_serving.eval.embedded import decode_options
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import Prompt, read_prompts
from eagle3_serving.hub import model_name
from eagle3_serving.show.observe import Observer
from eagle3_serving.show.record import About, Story
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.dtypes import DTYPES


def tell(options: EvalOptions, texts: Sequence[str] | None, seed: int, command: str) -> tuple[About, list[Story]]:
    """The answers to `texts`, or to the first turns of `options.prompts` where that is None, step by step. The same every
    time, on one machine.

    Raises InputError for a target, drafter or prompt that cannot be used.
    """
    if texts is None:
        prompts = read_prompts(options.prompts, options.limit)
    else:
        prompts = [Prompt(f"prompt {number}", "", (text,)) for number, text in enumerate(texts, 1)]
    engine = EmbeddedEngine.load(options.target, options.drafter, DTYPES[options.dtype])
    if options.mode == "auto":
        engine.costs = costs_for(engine, options.target, 1, options.profile)
    tokenizer = load_tokenizer(options.target)
    decode = decode_options(options, options.mode)
    decode = replace(decode, sampling=replace(decode.sampling, seed=seed))
    observer = Observer(engine, tokenizer, decode)
    stories = [
        observer.story(prompt.id, prompt.turns[0], chat_ids(tokenizer, prompt.turns[0]))
        for prompt in tqdm(prompts, desc="answering", unit="prompt", disable=len(prompts) == 1)
    ]
    about = About(
        target=model_name(options.target),
        drafter=model_name(options.drafter),
        mode=options.mode,
        temperature=options.temperature,
        calibrated=options.calibrated and engine.calibration is not None,
        dtype=options.dtype,
        version=__version__,
        command=command,
    )
    return about, stories
