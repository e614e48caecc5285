"""The pairs that are measured: a real target with its drafter, and one of Llama-3.1-8B's shape whose weights mean nothing."""

import random
from pathlib import Path

import torch

from benchmarks.gpu.live.bars import PAIR
from benchmarks.gpu.live.contenders import Pair
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.shapes import LLAMA_8B, Shape, llama_config, random_drafter, random_target
from benchmarks.gpu.sink import Unavailable
from benchmarks.gpu.training import prompt_ids
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.eval.prompts import by_family, read_prompts

ROOT = Path(__file__).resolve().parents[3]
DEMO_PROMPTS = ROOT / "eagle3_serving" / "demo_prompts.jsonl"  # two prompts of each of five kinds
# heads as wide as an engine's attention on a CPU wants them
# and so few tokens that a random draft is often right
SMALL = Shape("small", 128, 256, 8, 4, 2, 16, 12, 2048)
LONGEST_PROMPT = 400  # tokens
PROMPT_TOKENS = 128  # of a prompt of random tokens
REAL_PROMPTS = 16


def pairs(settings: Settings, work: Path) -> list[Pair]:
    """`shape` first, then `real` where there is a target, a toy in its place for a rehearsal; those of `settings.pairs`.
    Written to `work` once. Raises Unavailable where none is left."""
    made = []
    if "shape" in settings.pairs:
        made.append(dummy_pair(SMALL if settings.tiny else LLAMA_8B, work, settings))
    if "real" in settings.pairs and settings.target:
        made.append(real_pair(settings))
    elif "real" in settings.pairs and settings.tiny:
        made.append(toy_pair(work, settings))
    if not made:
        raise Unavailable("--pairs real wants --target DIR")
    return made


def dummy_pair(shape: Shape, work: Path, settings: Settings) -> Pair:
    """A target's config without weights, which the engine makes up, and a drafter with random ones."""
    folder = work / shape.name
    target, drafter = folder / "target", folder / "drafter"
    if not (target / "config.json").exists():
        config = llama_config(shape)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(target)
    write_drafter(shape, drafter, settings)
    draw = random.Random(settings.seed)
    length, count = (12, 4) if settings.tiny else (PROMPT_TOKENS, max(settings.in_flight))
    prompts = tuple(tuple(draw.randrange(shape.vocab) for _ in range(length)) for _ in range(count))
    gib = (shape.weights(2) + 2 * shape.vocab * shape.hidden) / 2**30
    return Pair(PAIR if shape is LLAMA_8B else f"{shape.name} shape", target, drafter, prompts, gib, dummy=True)


def toy_pair(work: Path, settings: Settings) -> Pair:
    """As the dummy one, but of weights on disk, so that answers can be looked at."""
    folder = work / "toy"
    if not (folder / "target" / "config.json").exists():
        torch.manual_seed(settings.seed)
        model = random_target(SMALL, torch.device("cpu"), torch.float32).model
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)  # logits far apart
        model.save_pretrained(folder / "target")
    write_drafter(SMALL, folder / "drafter", settings)
    draw = random.Random(settings.seed + 1)
    prompts = tuple(tuple(draw.randrange(SMALL.vocab) for _ in range(9)) for _ in range(3))
    return Pair("toy", folder / "target", folder / "drafter", prompts, 0.1)


def real_pair(settings: Settings) -> Pair:
    target = Path(settings.target).resolve()
    drafter = Path(settings.drafter).resolve() if settings.drafter else ROOT / "checkpoints" / "smollm2-135m-instruct"
    raw = read_prompts(map(Path, settings.eval_prompts)) if settings.eval_prompts else read_prompts([DEMO_PROMPTS])
    families = list(by_family(raw).values())
    # of every family in turn
    mixed = [family[n] for n in range(max(map(len, families))) for family in families if n < len(family)]
    kept = prompt_ids(settings, target, mixed[: 4 * REAL_PROMPTS], LONGEST_PROMPT)[
        : 2 if settings.tiny else REAL_PROMPTS
    ]
    weights = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return Pair("real", target, drafter, tuple(tuple(ids) for _, ids in kept), weights / 2**30)


def write_drafter(shape: Shape, folder: Path, settings: Settings) -> None:
    if not (folder / "config.json").exists():
        torch.manual_seed(settings.seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # not the first ids: a d2t of zeros looks like one that was lost
        first = shape.vocab - shape.draft_vocab
        drafter = random_drafter(shape, settings.torch_device, settings.dtype, first)
        save_drafter(drafter, folder, settings.dtype)
