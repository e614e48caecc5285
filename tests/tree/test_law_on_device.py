"""The joint law of three tokens, every tensor on the device."""

import pytest
import torch
from sampling_world import Shape, World, exact_joint, joint_counts, judge, make_world

from eagle3_serving.tree import SamplingParams


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "shape", [Shape((3, 2), False), Shape((3, 2), True), Shape((3, 2), False, coupled=True)], ids=str
)
def test_speculative_sampling_keeps_the_joint_law(shape: Shape, device: str) -> None:
    world = make_world()
    there = World(*(part.to(device) for part in world))
    params = SamplingParams.uniform(100_000, device=device)
    with torch.device(device):
        generator = torch.Generator(device).manual_seed(3)
        counts = joint_counts(there, params, shape, generator)
    found = judge(counts.cpu(), exact_joint(world))
    assert found.lawful, found
