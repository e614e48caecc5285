"""What tells EAGLE-3.1 and P-EAGLE from EAGLE-3, by name or one by one, and what contradicts a drafter that is gone on from.

EAGLE-3.1 (arXiv 2605.09992; TorchSpec, SpecForge, speculators and vLLM agree) is two changes of shape: a norm on each
auxiliary feature before `fc`, and the post-norm state fed to the next draft step. Loss and rollout are EAGLE-3's.
P-EAGLE (`train.parallel`) leaves the norms as they are, and any drafter can become one: `--init` adds masks and layers to it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from eagle3_serving.errors import CheckError, InputError

if TYPE_CHECKING:  # the command's parser asks for presets, and must not wait for torch
    from eagle3_serving.drafter.config import DrafterConfig

Preset = Literal["eagle3", "eagle3.1", "p-eagle"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class Asked:
    """What a job says of a drafter's shape; None: nothing."""

    preset: Preset | None = None
    fc_norm: bool | None = None
    norm_output: bool | None = None
    aux_layers: tuple[int, ...] | None = None
    sliding_window: int | None = None
    draft_vocab_size: int | None = None
    layers: int | None = None
    causal_head: bool | None = None

    @property
    def norms_features(self) -> bool | None:
        return self._by_preset(self.fc_norm)

    @property
    def feeds_post_norm(self) -> bool | None:
        return self._by_preset(self.norm_output)

    def _by_preset(self, own: bool | None) -> bool | None:
        return own if own is not None or self.preset in (None, "p-eagle") else self.preset == "eagle3.1"

    def require_like(self, init: Path, num_target_layers: int | None) -> None:
        """Raise InputError where the drafter in `init` has not the shape that is asked for; only headers are read."""
        from eagle3_serving.checkpoint.read import read  # torch, which a command line does without
        from eagle3_serving.checkpoint.source import open_source

        try:
            neutral = read(open_source(init), num_target_layers=num_target_layers)
        except CheckError as error:
            raise InputError(str(error)) from None
        config = neutral.config
        if self.draft_vocab_size is not None and self.draft_vocab_size < config.draft_vocab_size:
            raise InputError(
                f"--draft-vocab-size is {self.draft_vocab_size}: the drafter in --init {init} has {config.draft_vocab_size} tokens, "
                "which it keeps; a larger number adds to them"
            )
        if self.draft_vocab_size is not None and self.draft_vocab_size > config.vocab_size:
            raise InputError(
                f"--draft-vocab-size is {self.draft_vocab_size}: the target has {config.vocab_size} tokens; give "
                f"{config.draft_vocab_size} to {config.vocab_size}"
            )
        for flag, asked, has, words in self._held_against(config, neutral.mask_hidden is not None):
            if asked is not None and asked != has:
                raise InputError(
                    f"{flag} contradicts --init {init}, a drafter with {words}: it keeps its shape; leave the option out, or "
                    "train a new drafter without --init"
                )

    def _held_against(self, config: "DrafterConfig", parallel: bool) -> list[tuple[str, object, object, str]]:
        """Option, what it asks for, what the drafter has, and that in words."""
        # one that drafts a token a pass becomes parallel, with more layers; a parallel one never goes back
        turns_back = parallel and self.preset not in (None, "p-eagle")
        grows = self.preset == "p-eagle" and not parallel and (self.layers or 0) > config.num_layers

        # a causal head is made where masks are, and never added to a drafter that has masks alone
        headed = None if not parallel else self.causal_head

        def of_preset(own: bool | None, flag: str) -> str:
            return f"--preset {self.preset}" if own is None else f"--{'' if own else 'no-'}{flag}"

        norms, feedback = config.norms_features, config.norm_output
        return [
            (f"--preset {self.preset}", turns_back, False, "masks (P-EAGLE)"),
            (
                of_preset(self.fc_norm, "fc-norm"),
                self.norms_features,
                norms,
                f"{'a' if norms else 'no'} norm on each feature (fc_norm)",
            ),
            (
                of_preset(self.norm_output, "norm-output"),
                self.feeds_post_norm,
                feedback,
                f"{'post' if feedback else 'pre'}-norm feedback (norm_output)",
            ),
            ("--layers", None if grows else self.layers, config.num_layers, f"{config.num_layers} of them"),
            (
                "--causal-head" if headed else "--no-causal-head",
                headed,
                config.causal_head,
                f"{'a' if config.causal_head else 'no'} causal head",
            ),
            ("--aux-layers", self.aux_layers, config.aux_layers, f"layers {' '.join(map(str, config.aux_layers))}"),
            ("--sliding-window", self.sliding_window, config.sliding_window, f"a window of {config.sliding_window}"),
        ]
