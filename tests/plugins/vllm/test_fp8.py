"""The drafter in fp8: its numbers, what a graph may hold, what is refused, and the whole of it in vLLM's own layers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drafters import HIDDEN, VOCAB, as_specforge, embedding, known
from pretend_device import capture, pretend_device
from torch import Tensor, nn

from benchmarks.fp8_drafter import drafters as measured
from benchmarks.fp8_drafter import in_fp8
from eagle3_serving.checkpoint.load import load_drafter
from eagle3_serving.drafter import Drafter

pytest.importorskip("vllm")

from eagle3_vllm import architecture, fp8
from eagle3_vllm.layers import VllmLayers, copy_weights
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

SHAPES = ((1, 16, 16), (5, 48, 64), (33, 96, 32))


def e4m3(x: Tensor) -> Tensor:
    """The nearest number of four exponent and three mantissa bits, ties to even, none above 448. fp64 in, fp64 out."""
    step = torch.exp2(torch.floor(torch.log2(x.abs().clamp(min=2.0**-6))) - 3)
    return (torch.round(x / step) * step).clamp(-448, 448)


def rounded(x_MK: Tensor) -> Tensor:
    """[M, K] -> what fp8 with a scale a row makes of it, in fp64; scales and quotients are rounded to fp32."""
    scale_M1 = (x_MK.double().abs().amax(1, keepdim=True) / 448).float().clamp(min=1 / (448 * 512)).double()
    return e4m3((x_MK.double() / scale_M1).float().double()) * scale_M1


def layer_of(weight_NK: Tensor, bias_N: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(*weight_NK.shape[::-1], bias=bias_N is not None, dtype=weight_NK.dtype)
    layer.weight.data = weight_NK.clone()
    if bias_N is not None:
        layer.bias.data = bias_N
    return layer


def spread(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of many magnitudes, subnormals of fp8 among their values; the first and last row are zeros (a padded head)."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) ** 3
    x = x * 10 ** torch.linspace(-3, 1, shape[0])[:, None]
    if len(x) > 1:
        x[0] = x[-1] = 0
    return x.to(dtype)


def run(layer: nn.Linear, x: Tensor) -> Tensor:
    method: Any = layer.quant_method
    out: Tensor = method.apply(layer, x, layer.bias)
    return out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, width, out", SHAPES)
def test_numbers_are_those_of_the_rounding(rows: int, width: int, out: int, dtype: torch.dtype, bias: bool) -> None:
    weight_NK, x_MK = spread(out, width, dtype=dtype), spread(rows, width, dtype=dtype)
    bias_N = spread(1, out, dtype=dtype)[0] if bias else None
    layer = layer_of(weight_NK, bias_N)
    before, after = fp8.keep_in_fp8([layer])
    assert (before, after) == (weight_NK.nbytes, weight_NK.numel() + 4 * out)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.weight.shape == weight_NK.shape
    wanted_MN = (rounded(x_MK) @ rounded(weight_NK).t()).to(dtype)
    if bias_N is not None:
        wanted_MN = wanted_MN + bias_N
    found_MN = run(layer, x_MK[None])[0]
    assert found_MN.dtype == dtype
    # of the sum's terms, not of the sum, which may cancel
    size_MN = x_MK.double().abs() @ weight_NK.double().abs().t() + (0 if bias_N is None else bias_N.double().abs())
    assert ((found_MN.double() - wanted_MN.double()).abs() <= 2 * torch.finfo(dtype).eps * size_MN + 1e-7).all()


def test_every_row_has_its_own_scale() -> None:
    x_MK, weight_NK = spread(5, 32), spread(48, 32)
    layer = layer_of(weight_NK)
    fp8.keep_in_fp8([layer])
    before_MN = run(layer, x_MK)
    x_MK[2] *= 1e6
    louder = layer_of(torch.cat([weight_NK[:7] * 1e6, weight_NK[7:]]))
    fp8.keep_in_fp8([louder])
    after_MN = run(louder, x_MK)
    others = [0, 1, 3, 4]
    assert torch.equal(after_MN[others, 7:], before_MN[others, 7:]) and before_MN[1, 8].abs() > 0


def test_zeros_stay_zeros_and_no_row_is_no_error() -> None:
    layer = layer_of(torch.zeros(16, 32))
    fp8.keep_in_fp8([layer])
    assert not run(layer, torch.zeros(3, 32)).any()
    assert run(layer, torch.zeros(0, 32)).shape == (0, 16)


def test_the_product_on_a_gpu_is_called_so() -> None:
    """PyTorch's product of fp8 on this CPU, given what a GPU is given, makes what `multiply_in_fp32` does."""
    (x_MK, scale_M1), (weight_NK, scale_N1) = map(fp8.quantise_rows, (spread(9, 64), spread(32, 64)))
    made = (x_MK, scale_M1, weight_NK, scale_N1.t(), torch.float32)
    torch.testing.assert_close(fp8.multiply_in_fp8(*made), fp8.multiply_in_fp32(*made), rtol=1e-4, atol=1e-4)


def test_a_graph_may_hold_it() -> None:
    """No value is read on the host, and a replay on other rows in the same place gives what they give."""
    layer, first, second = layer_of(spread(48, 32)), spread(5, 32), spread(6, 32)[1:]
    fp8.keep_in_fp8([layer])
    wanted = run(layer, second)
    with pretend_device():
        there, x = layer.to("pretend"), first.to("pretend")
        with capture() as graph:
            out = run(there, x)
        x.copy_(second)
        graph.replay()
        assert torch.equal(out.to("cpu"), wanted)


@pytest.mark.parametrize(
    "capability, said",
    [((8, 0), "compute capability 8.0, fp8 needs 8.9"), ((7, 5), "capability 7.5"), ((8, 9), ""), ((12, 0), "")],
)
def test_which_gpus_can(capability: tuple[int, int], said: str) -> None:
    found = "; ".join(fp8.capability_reasons(*capability))
    assert (said in found) if said else not found


def test_a_product_that_fails_is_a_reason_and_so_is_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever dtype a GPU cannot give; on a CPU vLLM's kernel is missing, and PyTorch's own stands in for it."""
    cpu = torch.device("cpu")
    (missing,) = fp8.product_reasons(torch.bfloat16, cpu)
    assert "a product of fp8 fails: " in missing and "dynamic_per_token_scaled_fp8_quant" in missing
    monkeypatch.setattr(fp8, "quantise_rows_on_gpu", fp8.quantise_rows)
    assert fp8.product_reasons(torch.float16, cpu) == fp8.product_reasons(torch.float32, cpu) == []
    monkeypatch.setattr(fp8, "quantise_rows_on_gpu", lambda x: (fp8.quantise_rows(x)[0], torch.ones(len(x), 1)))
    assert fp8.product_reasons(torch.float32, cpu) == ["a product of fp8 comes out wrong"]


def test_what_else_cannot() -> None:
    assert not fp8.fp8_reasons([layer_of(spread(32, 16))], torch.float32, torch.device("cpu"))
    assert "meta" in fp8.fp8_reasons([], torch.float32, torch.device("meta"))[0]
    (odd,) = fp8.fp8_reasons([layer_of(spread(32, 16)), layer_of(spread(24, 16))], torch.float32, torch.device("cpu"))
    assert "24 x 16" in odd


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM in this process, one rank, as far as its layers ask for it."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )

    made = VllmConfig()
    with set_current_vllm_config(made):
        init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('ranks')}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield made
        destroy_model_parallel()
        destroy_distributed_environment()


class Logger:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str, *parts: Any) -> None:
        self.lines.append(text % parts)

    warning = info


def on_vllm(directory: Path, head: bool = True) -> architecture.Eagle3ServingForCausalLM:
    """The architecture but for its attention, which needs an engine's KV cache."""
    source = load_drafter(directory, target_embedding=embedding(), target_head=embedding(98), num_target_layers=12)
    model = nn.Module.__new__(architecture.Eagle3ServingForCausalLM)
    nn.Module.__init__(model)
    model.model = Drafter(source.config, source.vocabulary.target_ids, VllmLayers(source.config, "eagle3"))
    model.has_own_lm_head = head
    copy_weights(source, model.model)
    model.gather_logits = architecture.LogitsProcessor(source.config.draft_vocab_size)
    if not head:
        model.model.lm_head = nn.Identity()
    return model


def attend(layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q_BLAD, k_BLKD, v_BLKD)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)


def said_by(model: architecture.Eagle3ServingForCausalLM, monkeypatch: pytest.MonkeyPatch) -> str:
    logger = Logger()
    monkeypatch.setattr(architecture, "logger", logger)
    model._keep_in_fp8()
    (line,) = logger.lines
    return line


@torch.no_grad()
def test_vllms_layers_compute_what_the_benchmark_measures(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fusion, layers and head, padded from 24 rows to 64, against the embedded engine's drafter in fp8."""
    drafter = known(3, attention_bias=True, mlp_bias=True, fc_bias=True)
    directory = as_specforge(tmp_path / "drafter", drafter)
    model = on_vllm(directory)
    before = sum(parameter.nbytes for parameter in model.parameters())
    target_head = embedding(98)[:64]
    assert "9 of the drafter's layers in fp8" in said_by(model, monkeypatch)
    assert sum(parameter.nbytes for parameter in model.parameters()) < before / 2  # the embedding is as it was
    plain = load_drafter(directory, target_embedding=embedding(), num_target_layers=12)
    wanted = in_fp8(plain)
    aux_BLF, ids_BL = torch.randn(1, 5, 96), torch.tensor([[3, 1, 60, 7, 22]])
    positions_BL = torch.arange(5)[None]
    outs = []
    for each in (model.model, wanted, plain):
        step = each.step(ids_BL, each.fuse(aux_BLF), positions_BL, attend)
        outs.append(each.logits(step.hidden_BLH))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(outs[0], outs[2], rtol=1e-2, atol=1e-2)
    # what vLLM asks, to share the target's head where it is the same
    assert model.model.lm_head.weight.dtype == torch.float32
    assert not torch.equal(model.model.lm_head.weight, target_head)


@torch.no_grad()
def test_a_head_of_the_targets_stays(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = known(4, draft_vocab_size=VOCAB)
    model = on_vllm(as_specforge(tmp_path / "drafter", drafter), head=False)
    assert "its head is the target's and stays in float32" in said_by(model, monkeypatch)
    model.lm_head = ParallelLMHead(VOCAB, HIDDEN)
    model.lm_head.weight.copy_(embedding(98))
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
    hidden_TH = torch.randn(3, HIDDEN)
    wanted_TV = model.model.norm(hidden_TH) @ embedding(98).t()
    torch.testing.assert_close(model.draft_logits(hidden_TH), wanted_TV)
    assert torch.equal(model.lm_head.weight, embedding(98))


def test_what_cannot_be_kept_is_served_as_it_is(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_vllm(as_specforge(tmp_path / "drafter", known(5, intermediate_size=40)))
    assert "weights stay in float32: a rank's part of a layer is 40 x 32" in said_by(model, monkeypatch)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_wrong_setting_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE3_DRAFTER_WEIGHTS", "fp8")
    assert architecture.wanted_weights() == "fp8"
    monkeypatch.setenv("EAGLE3_DRAFTER_WEIGHTS", "int8")
    assert architecture.wanted_weights() == "auto"


def test_the_benchmark_leaves_a_head_of_the_targets_too(tmp_path: Path) -> None:
    tied = load_drafter(
        as_specforge(tmp_path / "drafter", known(6)), target_embedding=embedding(), num_target_layers=12
    )
    assert list(measured(tied, tied.lm_head.weight.clone())) == ["as it is", "fp8, the head as it is"]
    assert list(measured(tied, embedding(98))) == ["as it is", "fp8, the head as it is", "fp8"]
