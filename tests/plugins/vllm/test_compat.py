"""What guards against a vLLM that we do not know."""

import pytest
from eagle3_vllm.versions import version_problem

vllm = pytest.importorskip("vllm")
compat = pytest.importorskip("eagle3_vllm.compat")


def test_the_installed_vllm_is_as_known() -> None:
    assert version_problem(vllm.__version__) == ""
    assert compat.all_problems() == compat.noise_problems() == []


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0", "0.320.0", "dev"])
def test_another_version_is_named(version: str) -> None:
    assert version in version_problem(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1", "0.33.0+cpu", "0.32.0rc1"])
def test_builds_of_a_known_version_are_known(version: str) -> None:
    assert version_problem(version) == ""


def test_a_changed_signature_is_told_with_both_forms() -> None:
    def renamed(self: object, logits: object, batch: object) -> None: ...

    found = compat.problems((compat.Signature("the sampler", renamed, ("self", "logits", "input_batch")),))
    assert found == ["the sampler takes (self, logits, batch), known is (self, logits, input_batch)"]


def test_a_parameter_added_at_the_end_is_no_change() -> None:
    def longer(self: object, logits: object, more: int = 0) -> None: ...

    assert compat.problems((compat.Signature("the sampler", longer, ("self", "logits")),)) == []
