"""What each engine would do with a checkpoint; one file an engine, none of them imports one."""

from eagle3_serving.checkpoint.engines import eagle, sglang, vllm
from eagle3_serving.checkpoint.engines.base import Engine, View

ENGINES: dict[str, Engine] = {module.ENGINE.name: module.ENGINE for module in (vllm, sglang, eagle)}
SERVERS = ("vllm", "sglang")  # those that a check asks about where none is named

__all__ = ["ENGINES", "SERVERS", "Engine", "View"]
