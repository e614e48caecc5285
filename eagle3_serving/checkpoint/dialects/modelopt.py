"""ModelOpt's and TensorRT-LLM's: counted layers, no embedding, quantisation beside the weights; read only."""

from eagle3_serving.checkpoint.dialects.base import Dialect, architectures
from eagle3_serving.checkpoint.source import Source

_LABEL = "EAGLE3LlamaForCausalLM"  # TensorRT-LLM's


def _recognises(source: Source) -> bool:
    quantization = source.quantization or {}
    producer = quantization.get("producer")
    by_name = isinstance(producer, dict) and producer.get("name") == "modelopt"
    return by_name or quantization.get("quant_method") == "modelopt" or _LABEL in architectures(source)


DIALECT = Dialect("modelopt", "ModelOpt", _recognises)
