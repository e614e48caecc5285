"""Counters in SGLang's own Prometheus endpoint: passes by tree, verified nodes, accepted tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from eagle3_serving.serve.shape import Shape

_TREE = ("steps", "top_k", "tokens")


class Metrics:
    """Of the scheduler's process; SGLang's endpoint collects every process's counters."""

    _made: "Metrics | None" = None  # Prometheus knows a name once a process

    def __init__(self) -> None:
        # late: prometheus_client reads where to write when it is imported
        from prometheus_client import Counter, Gauge

        self.passes: Any = Counter("eagle3:verify_passes", "Target passes by the tree they verified", _TREE)
        self.requests: Any = Counter("eagle3:verified_requests", "Requests in those passes", _TREE)
        self.nodes: Any = Counter("eagle3:verified_nodes", "Draft nodes verified", _TREE)
        self.accepted: Any = Counter("eagle3:accepted_tokens", "Draft tokens accepted", _TREE)
        self.length: Any = Gauge(
            "eagle3:accepted_length",
            "Tokens a pass gives a request, the bonus token included, lately",
            multiprocess_mode="mostrecent",
        )
        self.gated: Any = Counter(
            "eagle3:gated_steps", "Requests' steps that a gate closed, by what became of their rows", ("reason", "rows")
        )
        self.lately = 0.0

    @classmethod
    def when(cls, wanted: bool) -> "Metrics | None":
        if wanted and cls._made is None:
            cls._made = cls()
        return cls._made if wanted else None

    def closed(self, steps: Mapping[tuple[str, str], int]) -> None:
        """Requests' steps by (reason, rows)."""
        for labels, count in steps.items():
            self.gated.labels(*labels).inc(count)

    def verified(self, shape: Shape, accepted: Sequence[int]) -> None:
        """One pass: drafts accepted of each request."""
        labels = tuple(map(str, shape))
        self.passes.labels(*labels).inc()
        self.requests.labels(*labels).inc(len(accepted))
        self.nodes.labels(*labels).inc(len(accepted) * (shape.tokens - 1))
        self.accepted.labels(*labels).inc(sum(accepted))
        mean = 1 + sum(accepted) / len(accepted)
        self.lately += 0.05 * (mean - self.lately) if self.lately else mean
        self.length.set(self.lately)
