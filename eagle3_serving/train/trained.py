"""What a training run leaves in memory: the job saves it, the card tells of it."""

from typing import NamedTuple

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.target import Target
from eagle3_serving.train.best import Best
from eagle3_serving.train.data import DataReport
from eagle3_serving.train.features import Extract
from eagle3_serving.train.mixture import Families, Mixture
from eagle3_serving.train.ranks import Ranks


class TrainedRun(NamedTuple):
    """A drafter in memory, and what is to be told of its run. `extract`: the target's features that it reads; `coverage` of
    the data by the draft vocabulary; `complete`: all of `tokens` were seen, or it stopped by itself; `best`: the one that it
    is, where it was measured on the way, on the answers `recorded`."""

    drafter: Drafter
    target: Target
    data: DataReport
    mixture: Mixture
    extract: Extract
    coverage: float | None
    tokens: int
    steps: int
    skipped: int
    complete: bool
    dialect: str
    ranks: Ranks
    best: Best | None
    recorded: Families
