"""What `norm_output: true` means: two trainers wrote one key for two things, and what cannot be told is asked.

EAGLE-3.1 (TorchSpec always, SpecForge since September 2026, vLLM, SGLang, speculators): the post-norm state is fed back.
SpecForge before: the final norm stands before the head, as it does everywhere, and the pre-norm state is fed back.
"""

from typing import Literal

from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.checkpoint.source import Json

NormOutput = Literal["feedback", "final-norm"]
NORM_OUTPUTS: tuple[NormOutput, ...] = ("feedback", "final-norm")
KEY = "norm_output"
TORCHSPEC = "_torchspec_version"


def post_norm_feedback(
    config: Json, said: bool | None, certain: bool, fc_norm: bool, answer: NormOutput | None
) -> tuple[bool, list[Finding]]:
    """Whether the drafter's post-norm state is fed back, and what is to be said of it.

    `said` is the key's value, `certain` that the dialect has one meaning for it, `fc_norm` that the features have norms of
    their own (EAGLE-3.1's mark), `answer` the caller's word.
    """
    if not said:
        if said is None or certain or TORCHSPEC in config:
            return False, []
        return False, [Finding("note", "any", KEY, "is false: nothing post-norm is fed back (SpecForge before September 2026 "
                               "meant that no final norm stands before the head, which no engine can)", "")]  # fmt: skip
    if answer is not None:
        return answer == "feedback", []
    if certain or TORCHSPEC in config:
        return True, []
    if fc_norm:
        return True, [Finding("warning", "any", KEY, "is true beside fc_norm, as EAGLE-3.1 has it: the post-norm state is fed "
                              "back; SpecForge meant something else before September 2026",
                              "--norm-output final-norm if it was trained before")]  # fmt: skip
    return True, [Finding("unjudged", "any", KEY, "is true, and nothing tells which of two meanings it has",
                          "say --norm-output feedback (the post-norm state is fed back: vLLM, SGLang, TorchSpec, SpecForge "
                          "since September 2026) or final-norm (SpecForge before)")]  # fmt: skip
