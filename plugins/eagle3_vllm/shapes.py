"""Which trees a server draws: those that were named, or one of as many nodes as vLLM was told."""

from collections.abc import Collection

from eagle3_serving.serve.shape import Shape
from eagle3_vllm.settings import Settings

DEPTH = 8  # of a tree for which nobody said another


def shapes_of(settings: Settings, nodes: int, scheduled: Collection[int] = ()) -> list[Shape]:
    """The trees of a server that may verify `nodes` nodes a request, and those that its schedule asks for."""
    shapes = list(settings.trees) or [shape_of(settings, nodes)]
    known = {shape.tokens for shape in shapes}
    return shapes + [shape_of(settings, k) for k in sorted(set(scheduled)) if k + 1 not in known]


def shape_of(settings: Settings, nodes: int) -> Shape:
    """The tree of that many nodes, of depth and top-k as they were set."""
    if not nodes:
        return Shape.nothing(1)
    return Shape(min(settings.depth or DEPTH, nodes), settings.top_k, nodes + 1)
