"""Random forests, pools and verified trees for the property tests, and slow references to hold the tensor code to."""

import torch
from hypothesis import strategies as st

from eagle3_serving.tree import NO_PARENT, PADDING, Candidates


@st.composite
def parents_lists(draw: st.DrawFn, max_nodes: int = 12) -> list[int]:
    """One request: every node's parent stands before it; padding may follow at the end."""
    count = draw(st.integers(1, max_nodes))
    parents = [draw(st.integers(NO_PARENT, node - 1)) for node in range(count)]
    return parents + [PADDING] * draw(st.integers(0, 2))


@st.composite
def parents_batches(draw: st.DrawFn) -> list[list[int]]:
    """One to three requests, padded to the same number of nodes."""
    batch = draw(st.lists(parents_lists(), min_size=1, max_size=3))
    width = max(map(len, batch))
    return [parents + [PADDING] * (width - len(parents)) for parents in batch]


@st.composite
def pools(draw: st.DrawFn) -> Candidates:
    """A pool of candidates; scores are coarse, so that ties between parent and child are common."""
    batch, size = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    parents, scores = [], []
    for _ in range(batch):
        row = [draw(st.integers(NO_PARENT, node - 1)) for node in range(size)]
        score: list[float] = []
        for parent in row:
            above = 0.0 if parent < 0 else score[parent]
            score.append(above - draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, float("inf")])))
        parents.append(row)
        scores.append(score)
    tokens = torch.arange(batch * size).view(batch, size)
    return Candidates(tokens, torch.tensor(parents), torch.tensor(scores))


def path_to(parents: list[int], node: int) -> list[int]:
    """From the uppermost ancestor down to the node itself."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]
