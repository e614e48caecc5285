"""What a folder is that holds no model, and where the model may be instead: for the line that says so."""

import re
from pathlib import Path

# what trainers (accelerate, transformers, DeepSpeed, FSDP, this package) keep to go on from
_STATE = re.compile(
    r"optimizer|scheduler\.|random_states_|rng_state|trainer_state|training_args|scaler\.pt$|global_step|zero_pp_rank|"
    r".*\.distcp$|state\.pt$"
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def is_state(name: str) -> bool:
    """Whether a file of this name is a trainer's state and no weights."""
    return _STATE.match(name) is not None


def no_config(directory: Path) -> str:
    """One line on a folder without config.json."""
    names = sorted(path.name for path in directory.iterdir())
    missing, inner = f"{directory / 'config.json'} is missing", elsewhere(directory)
    if state := [name for name in names if is_state(name)]:
        way = inner or "; take what the trainer exported, or put the model's own config.json beside its weights"
        return f"{missing}: this is what a training run goes on from ({', '.join(state[:3])}){way}"
    if weights := [name for name in names if name.endswith(_WEIGHTS)]:
        return f"{missing} beside {weights[0]}; take it from where the weights were saved{inner}"
    return f"{missing}; give the folder that holds config.json and model.safetensors{inner}"


def elsewhere(directory: Path) -> str:
    """The folders inside that do have one, as the end of a line; empty where there are none."""
    inner = sorted(path.parent.name for path in directory.glob("*/config.json"))
    more = f" ({len(inner)} in all)" if len(inner) > 1 else ""
    return f"; there is one in {directory / inner[0]}{more}" if inner else ""
