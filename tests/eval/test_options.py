"""What an evaluation asks of the embedded engine."""

from pathlib import Path

import pytest

from eagle3_serving.eval.embedded import decode_options
from eagle3_serving.eval.options import EvalOptions


@pytest.mark.parametrize(
    "mode, said, expected",
    [("auto", None, True), ("auto", False, False), ("tree", None, False), ("tree", True, True), ("chain", None, False)],
)
def test_lookup_is_on_in_auto_alone_unless_told(mode: str, said: bool | None, expected: bool) -> None:
    options = EvalOptions("embedded", Path(), Path(), (), mode=mode, lookup=said)
    assert decode_options(options, mode).lookup is expected
    assert decode_options(options, "plain").lookup is False
