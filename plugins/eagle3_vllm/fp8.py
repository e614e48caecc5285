"""The drafter's linear layers in fp8: a scale a row of output for weights, a scale a row for what comes in.

What is drafted changes a little, what is answered does not: the target has the say. On a GPU the product is one of fp8
(`torch._scaled_mm`); elsewhere the same rounded numbers are multiplied in fp32, so that a CPU shows what rounding costs.

Shape letters: M rows, K features in, N features out.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.layers import weight_of

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448
SMALLEST_SCALE = 1 / (LARGEST * 512)  # vLLM's floor; rows of zeros have it
CAPABILITY = (8, 9)  # from Ada on
ALIGNED = 16  # what the products on a GPU want of K and N

Quantise = Callable[[Tensor], tuple[Tensor, Tensor]]


def quantise_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> the same in fp8 and each row's scale [M, 1], fp32: its largest value becomes 448."""
    x_MK = x_MK.float()
    scale_M1 = (x_MK.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x_MK / scale_M1).clamp(-LARGEST, LARGEST).to(FP8), scale_M1


def quantise_rows_on_gpu(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """The same by vLLM's kernel: one launch, no copy in fp32."""
    from eagle3_vllm.compat import scaled_fp8_quant

    if not len(x_MK):
        return quantise_rows(x_MK)
    rounded: tuple[Tensor, Tensor] = scaled_fp8_quant(x_MK.contiguous(), use_per_token_if_dynamic=True)
    return rounded


def multiply_in_fp32(x_MK: Tensor, scale_M1: Tensor, weight_NK: Tensor, scale_1N: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 by fp8 -> [M, N] in `dtype`: products are exact, sums and scales in fp32, as on a GPU."""
    return (x_MK.float() @ weight_NK.float().t() * scale_M1 * scale_1N).to(dtype)


def multiply_in_fp8(x_MK: Tensor, scale_M1: Tensor, weight_NK: Tensor, scale_1N: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in one product of fp8."""
    return torch._scaled_mm(x_MK, weight_NK.t(), scale_a=scale_M1, scale_b=scale_1N, out_dtype=dtype)


class Fp8Method:
    """A layer's `quant_method`: `layer` holds `weight` [N, K] in fp8 and `weight_scale` [1, N].

    Not one of vLLM's own classes of that name: after loading vLLM has nothing to do to these weights.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.quantise: Quantise = quantise_rows_on_gpu if on_gpu else quantise_rows
        self.multiply = multiply_in_fp8 if on_gpu else multiply_in_fp32

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N], in the dtype of `x`."""
        out_MN = self.multiply(*self.quantise(x.flatten(0, -2)), weight_of(layer), scale_of(layer), x.dtype)
        if bias is not None:
            out_MN = out_MN + bias
        return out_MN.unflatten(0, x.shape[:-1])


def scale_of(layer: nn.Module) -> Tensor:
    """[1, N], fp32, of a layer that is kept in fp8."""
    scale_1N = layer.weight_scale
    assert isinstance(scale_1N, Tensor)
    return scale_1N


@torch.no_grad()
def keep_in_fp8(layers: Iterable[nn.Module]) -> tuple[int, int]:
    """Each layer's `weight` [N, K] in fp8 in the place of what it was. Returns the bytes before and after."""
    before = after = 0
    for layer in layers:
        weight_NK = weight_of(layer)
        method = Fp8Method(weight_NK.is_cuda)
        rounded_NK, scale_N1 = method.quantise(weight_NK.data)
        layer.weight = nn.Parameter(rounded_NK, requires_grad=False)
        # no part of a checkpoint: dummy weights, which fill what is, leave it alone
        layer.register_buffer("weight_scale", scale_N1.t(), persistent=False)
        layer.quant_method = method  # type: ignore[assignment]
        before += weight_NK.nbytes
        after += rounded_NK.nbytes + scale_N1.nbytes
    return before, after


def weight_as(dtype: torch.dtype, layer: nn.Module) -> Tensor:
    """A layer's weight [N, K], made anew in `dtype` where it is kept in fp8."""
    weight_NK = weight_of(layer)
    if weight_NK.dtype != FP8:
        return weight_NK
    return (weight_NK.float() * scale_of(layer).t()).to(dtype)


def fp8_reasons(layers: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> list[str]:
    """Why these layers cannot be kept in fp8; empty where they can."""
    reasons: list[str] = []
    if device.type == "cuda":
        reasons = capability_reasons(*torch.cuda.get_device_capability(device)) or product_reasons(dtype, device)
    elif device.type != "cpu":
        reasons = [f"products of fp8 are not known on {device.type}"]
    shapes = [tuple(weight_of(layer).shape) for layer in layers]
    odd = [shape for shape in shapes if any(size % ALIGNED for size in shape)]
    if odd:
        reasons.append(f"a rank's part of a layer is {odd[0][0]} x {odd[0][1]}, not multiples of {ALIGNED}")
    return reasons


def capability_reasons(major: int, minor: int) -> list[str]:
    """The same of a GPU of this compute capability, by what is known of it."""
    from eagle3_vllm import compat

    if torch.version.hip:
        return ["ROCm's fp8 is another"]
    if (major, minor) < CAPABILITY:
        return [f"the GPU has compute capability {major}.{minor}, fp8 needs {CAPABILITY[0]}.{CAPABILITY[1]}"]
    return compat.problems(compat.FP8)


def product_reasons(dtype: torch.dtype, device: torch.device) -> list[str]:
    """What a small product says that is made as a GPU makes them: which dtypes can come out, PyTorch and the GPU decide."""
    ones_MK, ones_NK = (torch.ones(rows, 256, dtype=dtype, device=device) for rows in (3, 256))
    try:
        (x_MK, scale_M1), (weight_NK, scale_N1) = map(quantise_rows_on_gpu, (ones_MK, ones_NK))
        out_MN = multiply_in_fp8(x_MK, scale_M1, weight_NK, scale_N1.t(), dtype)
        right = bool((out_MN.float() - 256).abs().max() < 2)
    except (AttributeError, RuntimeError, ValueError) as error:  # no such kernel; not on this GPU; not to this dtype
        return [f"a product of fp8 fails: {str(error).strip().splitlines()[0]}"]
    return [] if right else ["a product of fp8 comes out wrong"]
