"""What a conversion or a check may know about the target: depth, sizes, and where its embedding and head lie."""

from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.checkpoint.source import Json, Source, StoredTensor, open_source, read_json
from eagle3_serving.errors import InputError

_EMBEDDING = ("model.embed_tokens.weight", "embed_tokens.weight", "language_model.model.embed_tokens.weight")
_HEAD = ("lm_head.weight", "language_model.lm_head.weight")


@dataclass(frozen=True)
class TargetFacts:
    """None where it is not known. `embedding` and `head` [Vt, Ht] are not read before they are needed."""

    num_layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    model_type: str | None = None
    name: str | None = None
    embedding: StoredTensor | None = None
    head: StoredTensor | None = None

    @classmethod
    def of(cls, target: Path | None, num_target_layers: int | None = None) -> "TargetFacts":
        """Facts from a target's directory, or the number of layers alone. Raises InputError on contradictions."""
        if num_target_layers is not None and not 1 <= num_target_layers <= 10_000:
            raise InputError(f"the target's number of layers is {num_target_layers}: it must be at least 1")
        if target is None:
            return cls(num_layers=num_target_layers)
        config = read_json(target / "config.json")
        text = config.get("text_config")
        text = text if isinstance(text, dict) else config
        layers = _count(text, "num_hidden_layers", target)
        if num_target_layers is not None and num_target_layers != layers:
            raise InputError(f"--num-target-layers is {num_target_layers}, and {target} has {layers} layers")
        source = _weights(target)
        embedding = _first(source, _EMBEDDING)
        tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
        return cls(
            num_layers=layers,
            hidden_size=_count(text, "hidden_size", target),
            vocab_size=_count(text, "vocab_size", target),
            model_type=str(text.get("model_type") or config.get("model_type") or "") or None,
            name=target.name,
            embedding=embedding,
            head=_first(source, _HEAD) or (embedding if tied else None),
        )


def _weights(target: Path) -> Source | None:
    """A target without weights still tells its sizes."""
    return open_source(target) if any(target.glob("*.safetensors")) or any(target.glob("*.bin")) else None


def _first(source: Source | None, names: tuple[str, ...]) -> StoredTensor | None:
    found = (source.tensors.get(name) for name in names) if source else ()
    return next((tensor for tensor in found if tensor is not None), None)


def _count(config: Json, key: str, where: Path) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}/config.json: {key} is {value!r}; a target's config.json says it")
    return value
