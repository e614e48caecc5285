"""A GGUF file as a Hugging Face directory in bf16, under a config of our own: the file's carries quantisation notes."""

from pathlib import Path
from typing import Any

import torch

from eagle3_serving.errors import InputError


def convert(gguf: Path, out: Path, family: str, config: dict[str, Any], **tokenizer: Any) -> None:
    """Write `out`: the tensors of `gguf` in a `family` ("Llama": LlamaForCausalLM) of `config`, its tokenizer beside them,
    made with `tokenizer`. Raises InputError where a package that reads GGUF is missing."""
    try:
        import gguf as _reader  # noqa: F401  transformers asks for it late, deep inside
        import transformers
    except ImportError:
        raise InputError("transformers or gguf is missing: pip install 'eagle3-serving[demo]'") from None
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    made = getattr(transformers, f"{family}Config")(**config, dtype=torch.bfloat16)
    name = family.removesuffix("Text")
    model = getattr(transformers, f"{name}ForCausalLM")(made)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    model = model.to(torch.bfloat16)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(**source, **tokenizer).save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)
