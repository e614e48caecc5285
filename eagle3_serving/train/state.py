"""A run's state on disk: one file, whole or not there."""

from pathlib import Path
from typing import Any

import torch

from eagle3_serving.errors import InputError
from eagle3_serving.train.log import unwritten

State = dict[str, Any]


def write_state(directory: Path, state: State) -> None:
    """Write `state` beside and rename it. Raises CheckError where it cannot be written; what was there before stays."""
    beside = directory / ".state.partial"
    try:
        torch.save(state, beside)
    except (OSError, RuntimeError) as error:  # torch's own writer knows no OSError
        beside.unlink(missing_ok=True)
        raise unwritten(directory / "state.pt", error) from None
    beside.replace(directory / "state.pt")


def read_state(directory: Path, device: torch.device) -> State | None:
    """What `write_state` wrote; None where there is nothing. Raises InputError where it is no state of a run."""
    path = directory / "state.pt"
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, weights_only=True, map_location=device)
        state["recipe"] = dict(state["recipe"])
    except Exception as error:  # a damaged zip or pickle raises nearly anything
        why = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise InputError(
            f"{path} is not the state of a run ({why}): remove it to begin anew, or give another --out"
        ) from None
    return state
