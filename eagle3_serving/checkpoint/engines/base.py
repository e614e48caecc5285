"""What an engine would make of a checkpoint, and where that is not what the checkpoint means."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from eagle3_serving.checkpoint import rope
from eagle3_serving.checkpoint.aux_layers import KEY
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.findings import Finding, Severity
from eagle3_serving.checkpoint.names import canonical_name
from eagle3_serving.checkpoint.neutral import MAX_LAYERS, Head, Neutral
from eagle3_serving.checkpoint.source import Json, StoredTensor, zeros
from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.drafter.shapes import parameter_shapes


@dataclass(frozen=True)
class View:
    """A drafter as an engine would run it. `config.own_embedding` and `head` say what is the target's."""

    engine: str
    config: DrafterConfig
    tensors: dict[str, StoredTensor]
    target_ids: Tensor | None
    head: Head
    scales: dict[str, StoredTensor] = field(default_factory=dict)
    mask_hidden: StoredTensor | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Engine:
    """`view` never raises on a checkpoint that could be read: what the engine would refuse is a finding."""

    name: str
    title: str
    view: Callable[[Neutral, TargetFacts], View]


# field of DrafterConfig -> the key or tensor to name, and what to say
_MEANT: dict[str, tuple[str, str]] = {
    "aux_layers": ("eagle_aux_hidden_state_layer_ids", "the drafter was trained on boundaries {meant}, {engine} feeds it {done}"),
    "norm_before_residual": ("norm_before_residual", "means {meant}, {engine} computes {done}"),
    "norm_output": ("norm_output", "post-norm feedback is {meant}, {engine} computes {done}"),
    "pre_fc_norm": ("norm_before_fc", "the norm before fc is {meant!r}, {engine} computes {done!r}"),
    "qk_norm": ("self_attn.q_norm", "norms of queries and keys are {meant}, {engine} computes {done}"),
    "fc_bias": ("fc.bias", "is {meant}, {engine} computes {done}"),
    "attention_bias": ("self_attn.q_proj.bias", "is {meant}, {engine} computes {done}"),
    "mlp_bias": ("mlp.gate_proj.bias", "is {meant}, {engine} computes {done}"),
    "num_layers": ("num_hidden_layers", "there are tensors of {meant} layers, {engine} makes {done}"),
    "rope": ("rope_parameters", "means {meant}, {engine} computes {done}"),
    "hidden_act": ("hidden_act", "means {meant}, {engine} computes {done}"),
}  # fmt: skip


class Reader:
    """Collects what one engine would load, skip, leave uninitialised or refuse."""

    def __init__(self, engine: str, title: str, neutral: Neutral) -> None:
        self.engine, self.title, self.neutral = engine, title, neutral
        self.findings: list[Finding] = []
        self.tensors: dict[str, StoredTensor] = {}
        self.prefixes: set[str] = set()

    def say(self, severity: Severity, where: str, what: str, fix: str = "") -> None:
        self.findings.append(Finding(severity, self.engine, where, what, fix or f"eagle3-convert --to {self.engine}"))

    def error(self, where: str, what: str, fix: str = "") -> None:
        self.say("error", where, what, fix)

    def silent(self, where: str, what: str, fix: str = "") -> None:
        self.say("silent", where, what, fix)

    def once(self, prefix: str, name: str, what: str, severity: Severity = "error") -> None:
        """What is wrong with all tensors whose names start with `prefix`, said of the first."""
        if prefix not in self.prefixes:
            self.prefixes.add(prefix)
            self.say(severity, name, what)

    def num_layers(self, keys: Json) -> int:
        """As many layers as config.json says, which is how many an engine makes."""
        said = keys.get("num_hidden_layers")
        return said if type(said) is int and 0 < said <= MAX_LAYERS else self.neutral.config.num_layers

    def rope(self, keys: Json) -> RopeConfig:
        try:
            return rope.decode(keys, nested=False)
        except rope.UnknownRope:
            return self.neutral.config.rope  # not judged, whoever computes it
        except rope.RopeError as error:
            self.error("rope_parameters", str(error))
            return self.neutral.config.rope

    def activation(self, keys: Json) -> str:
        """As `hidden_act` has it; `hidden_activation` is another family's key, which Llama classes do not read."""
        said = keys.get("hidden_act") or "silu"
        if said != "silu":
            self.error(
                "hidden_act", f"is {said!r:.40}; {self.title}'s Llama has silu alone", "serve it with another engine"
            )
        return str(said)

    def features(self, captured: tuple[int, ...]) -> None:
        """An engine that captures more or fewer hidden states than `fc` reads stops with the first request."""
        if len(captured) != self.neutral.config.num_aux and self.neutral.aux.boundaries is None:
            self.error(
                KEY,
                f"{self.title} captures {len(captured)} features of the target, fc reads {self.neutral.config.num_aux}",
            )

    def load(
        self,
        config: DrafterConfig,
        take: Callable[[str, str], bool],
        extra: tuple[str, ...] = (),
        lost: tuple[str, ...] = (),
    ) -> None:
        """Ask `take(stored name, canonical name)` of every tensor that `config` has a parameter for.

        `take` reports what is refused or skipped, and says whether the parameter gets the tensor. `extra` are
        parameters that the engine has beyond the drafter's, `lost` biases that it has not: zero, to it.
        """
        shapes = parameter_shapes(config)
        expected = shapes.keys() - set(lost) | set(extra)
        spellings: dict[str, set[str]] = {c: {t.name} for c, t in self.neutral.tensors.items()}
        for name in self.neutral.source.tensors:
            spellings.setdefault(canonical_name(name), set()).add(name)
        stored_names = self.neutral.source.tensors.keys()
        for canonical, tensor in self.neutral.tensors.items():
            # a zero bias that the neutral form has made up is in no file
            taken = [name for name in sorted(spellings[canonical] & stored_names) if take(name, canonical)]
            if canonical in expected and taken:
                self.tensors[canonical] = tensor
        missing = sorted(expected - self.tensors.keys() - {"embed_tokens.weight", "lm_head.weight"})
        for canonical in missing:
            stored = self.neutral.tensors.get(canonical)
            where = stored.name if stored is not None else canonical.removeprefix("fusion.")
            if where.startswith(tuple(self.prefixes)) or _layer(canonical) >= self.neutral.config.num_layers:
                continue  # said of all of them at once
            left = "left at 1" if "norm" in canonical else "left uninitialised"
            self.silent(where, f"{self.title} does not find {canonical.removeprefix('fusion.')}: {left}")
        self.tensors |= {name: zeros(name, torch.float32, shapes[name]) for name in lost if name in shapes}

    def finish(
        self,
        config: DrafterConfig,
        head: Head,
        own_embedding: bool,
        window_fix: str = "keep texts within it, or train without",
    ) -> View:
        """Compare with what is meant, and say every difference that was not said yet. `window_fix`: the way out where the engine
        looks back further than the drafter, which sees `{before}` tokens before a row's own."""
        meant = self.neutral.config
        config = replace(config, own_embedding=own_embedding)
        said = {finding.where for finding in self.findings}
        if any(f.severity == "error" and f.where == "architectures" for f in self.findings):
            # another class would read it, or none: what this one would do is beside the point
            self.findings = [f for f in self.findings if f.severity == "error"]
            said |= {where for where, _ in _MEANT.values()}
        for name, (where, what) in _MEANT.items():
            is_meant, is_done = getattr(meant, name), getattr(config, name)
            if is_meant == is_done or where in said or (name == "aux_layers" and -1 in (*is_meant, *is_done)):
                continue
            text = what.format(meant=_plain(is_meant), done=_plain(is_done), engine=self.title)
            self.silent(where, text)
        if meant.sliding_window is not None and meant.sliding_window != config.sliding_window:
            self.say("warning", "sliding_window", f"the drafter looks back {meant.sliding_window} tokens, {self.title} all "
                     "the way: in longer texts it may be accepted less", window_fix.format(before=meant.sliding_window - 1))  # fmt: skip
        return View(
            engine=self.engine,
            config=config,
            tensors=self.tensors,
            target_ids=self.neutral.target_ids,
            head=head,
            scales=self.neutral.scales,
            mask_hidden=self.neutral.mask_hidden,
            findings=tuple(self.findings),
        )


def pre_fc_norm(concatenation: object, features: object) -> Literal["none", "concat", "per_aux", "both"]:
    """What the flags of an engine make; the norm of the concatenation comes first in vLLM and SGLang."""
    if concatenation and features:
        return "both"
    return "concat" if concatenation else "per_aux" if features else "none"


def stored_zero_biases(neutral: Neutral) -> set[str]:
    """Biases of o_proj that are stored and all zero: the neutral form has dropped them, an engine that has them loads them."""
    stored = {canonical_name(name) for name in neutral.source.tensors}
    return {name for name in stored if name.endswith("o_proj.bias") and name not in neutral.tensors}


def _layer(canonical: str) -> int:
    """Which layer a tensor is of; -1: of none."""
    head, _, rest = canonical.partition(".")
    return int(rest.partition(".")[0]) if head == "layers" else -1


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
