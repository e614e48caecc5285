"""What a conversion or a check may know about the target: depth, sizes, and where its embedding and head lie."""

from dataclasses import dataclass, replace
from pathlib import Path

from eagle3_serving.checkpoint.source import Json, Source, StoredTensor, open_source, read_json
from eagle3_serving.errors import InputError

# the last parts of their names, whatever stands before them in a layout (model., model.language_model., language_model.model., ...)
_EMBEDDING = ("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight", "wte.weight", "embed_in.weight")
_HEAD = ("lm_head.weight", "embed_out.weight", "output.weight")
_TEXT = ("text_config", "llm_config", "language_config")  # where a config of several parts keeps the language model's
_OTHERS = (
    "vision",
    "visual",
    "audio",
    "talker",
    "draft",
    "mtp",
    "encoder.",
)  # parts with embeddings that are not the text's


@dataclass(frozen=True)
class TargetFacts:
    """None where it is not known. `embedding` and `head` [Vt, Ht] are not read before they are needed."""

    num_layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
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
        text = _text_config(config)
        layers = _count(text, "num_hidden_layers", target)
        if num_target_layers is not None and num_target_layers != layers:
            raise InputError(f"--num-target-layers is {num_target_layers}, and {target} has {layers} layers")
        hidden, vocab = _count(text, "hidden_size", target), _count(text, "vocab_size", target)
        source = _weights(target)
        embedding, head = (_named(source, names, vocab, hidden) for names in (_EMBEDDING, _HEAD))
        # transformers' own default differs by model; a head that is not stored can only be the embedding
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)) is True
        positions = text.get("max_position_embeddings")
        return cls(
            num_layers=layers,
            hidden_size=hidden,
            vocab_size=vocab,
            max_position_embeddings=positions if type(positions) is int else None,
            model_type=str(text.get("model_type") or config.get("model_type") or "") or None,
            name=target.name,
            embedding=embedding,
            head=head or (embedding if tied else None),
        )

    def cut(self, rows: int) -> "TargetFacts":
        """With no more than the first `rows` tokens of the embedding and the head: a target's may be padded."""

        def first(tensor: StoredTensor | None) -> StoredTensor | None:
            return tensor.part(0, rows) if tensor is not None and tensor.num_rows > rows else tensor

        return replace(self, embedding=first(self.embedding), head=first(self.head))


def _weights(target: Path) -> Source | None:
    """A target without weights still tells its sizes."""
    return open_source(target) if any(target.glob("*.safetensors")) or any(target.glob("*.bin")) else None


def _text_config(config: Json) -> Json:
    """The part that tells of the language model; of a model with a thinker, the thinker's."""
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):
        return _text_config(thinker)
    return next((config[key] for key in _TEXT if isinstance(config.get(key), dict)), config)


def _named(source: Source | None, names: tuple[str, ...], rows: int, width: int) -> StoredTensor | None:
    """The text's matrix [rows, width], rows of padding left out; the one of the shortest name."""
    found = [
        tensor
        for name, tensor in (source.tensors if source else {}).items()
        if any(name == last or name.endswith(f".{last}") for last in names)
        and not any(part in name for part in _OTHERS)
        and len(tensor.shape) == 2
        and tensor.shape[0] >= rows
        and tensor.shape[1] == width
    ]
    first = min(found, key=lambda tensor: (len(tensor.name), tensor.name), default=None)
    return None if first is None else first.part(0, rows)


def _count(config: Json, key: str, where: Path) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}/config.json: {key} is {value!r}; a target's config.json says it")
    return value
