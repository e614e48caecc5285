"""What is served by a chain, and that it says why."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("vllm")

from eagle3_vllm import configure, fallback
from eagle3_vllm.schedule import Profile
from eagle3_vllm.settings import Settings, read_trees
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from eagle3_serving.checkpoint.names import CAUSAL


@pytest.mark.parametrize(
    "params, reason",
    [
        (SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=1, logprobs=3), None),
        (SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "object"})), "grammar"),
        (SamplingParams(repetition_penalty=1.1), "penalties"),
        (SamplingParams(bad_words=["rain"]), "bad_words"),
        (SamplingParams(min_tokens=4), "min_tokens"),
        (None, None),
    ],
)
def test_what_looks_back_over_a_text_is_drafted_a_chain(params: SamplingParams | None, reason: str | None) -> None:
    assert fallback.chain_reason(params) == reason


# not looked at where the mode decides
WHOLE: dict[str, Any] = {
    "model_config": object(),
    "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
    "lora_config": None,
}


def config(target: Path, drafter: Path, nodes: int, environment: dict[str, str], **engine: Any) -> str:
    """What an engine's configuration comes to, and what is said about it."""
    code = (
        "import sys; from vllm.engine.arg_utils import EngineArgs; import eagle3_vllm.fallback as f\n"
        f"spec = {{'method': 'eagle3', 'model': {str(drafter)!r}, 'num_speculative_tokens': {nodes}}}\n"
        f"c = EngineArgs(model={str(target)!r}, max_model_len=512, speculative_config=spec, **{engine!r}).create_engine_config()\n"
        "s = c.speculative_config\n"
        "print('TOKENS', *((s.num_speculative_tokens, s.num_speculative_tokens_per_batch_size) if s else ()))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EAGLE3_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TOKENS" in done.stdout, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_a_server_on_runner_v1_gets_a_short_chain_and_one_line(target_dir: Path, drafter_dir: Path) -> None:
    said = config(target_dir, drafter_dir, 60, {"VLLM_USE_V2_MODEL_RUNNER": "0"}, dtype="float32")
    assert "TOKENS 3 None" in said
    assert said.count("eagle3: a chain of 3 instead of 60 nodes: Model Runner V1 runs") == 1


def test_the_profile_becomes_vllms_own_schedule(target_dir: Path, drafter_dir: Path, tmp_path: Path) -> None:
    costs = {1: {0: 1.0, 1: 1.1, 2: 1.2}, 8: {0: 1.0, 1: 2.0, 2: 3.0}}
    Profile((0.7, 0.5), costs, {}).save(tmp_path / "p.json")
    environment = {"VLLM_USE_V2_MODEL_RUNNER": "0", "EAGLE3_PROFILE": str(tmp_path / "p.json")}
    assert "TOKENS 2 [(1, 1, 2), (2, 8, 0)]" in config(target_dir, drafter_dir, 4, environment, dtype="float32")


@pytest.mark.parametrize("tokens, served", [(3, 3), (8, 8), (16, 3)])
def test_on_a_gpu_mode_auto_is_vllms_own_chain(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, tokens: int, served: int
) -> None:
    """Trees there were five times slower: until they are known to pay, they are served to who asks for them."""
    monkeypatch.setattr(fallback.current_platform, "is_cuda", lambda: True)
    speculative = SimpleNamespace(
        method="eagle3",
        draft_model_config=object(),
        num_speculative_tokens=tokens,
        num_speculative_tokens_per_batch_size=None,
    )
    with caplog.at_level(logging.INFO):
        configure.configure_speculation(
            SimpleNamespace(**WHOLE, speculative_config=speculative), Settings(), logging.getLogger("test")
        )
    assert speculative.num_speculative_tokens == served
    assert len(caplog.messages) == 1 and "EAGLE3_MODE=tree serves them" in caplog.messages[0]
    assert id(speculative) not in configure.with_trees


def test_a_config_that_trees_cannot_serve_is_told_why(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(configure, "config_reasons", lambda *_: ["LoRA adapters", "sliding windows"])
    speculative = SimpleNamespace(
        method="eagle3",
        draft_model_config=object(),
        num_speculative_tokens=16,
        num_speculative_tokens_per_batch_size=None,
    )
    with caplog.at_level(logging.WARNING):
        configure.configure_speculation(
            SimpleNamespace(**WHOLE, speculative_config=speculative), Settings(), logging.getLogger("test")
        )
    assert speculative.num_speculative_tokens == 3
    assert caplog.messages == ["eagle3: a chain of 3 instead of 16 nodes: LoRA adapters; sliding windows"]


@pytest.mark.parametrize("text, served", [("3,2,6", 5), ("0;3,2,6;2,1,3", 5), ("5,4,17", 16), ("", 16)])
def test_no_more_nodes_are_verified_than_the_largest_tree_has(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, text: str, served: int
) -> None:
    """Of 16 nodes and a tree of 5, vLLM would ask for 16 at every step: of another shape, and none was captured."""
    monkeypatch.setattr(configure, "config_reasons", lambda *_: [])
    speculative = SimpleNamespace(
        method="eagle3",
        draft_model_config=object(),
        num_speculative_tokens=16,
        num_speculative_tokens_per_batch_size=None,
    )
    whole: Any = SimpleNamespace(
        **WHOLE, speculative_config=speculative, scheduler_config=SimpleNamespace(max_num_seqs=8)
    )
    with caplog.at_level(logging.INFO):
        configure.configure_speculation(whole, Settings(mode="tree", trees=read_trees(text)), logging.getLogger("test"))
    assert speculative.num_speculative_tokens == served
    assert len(caplog.messages) == (served < 16)
    configure.with_trees.discard(id(speculative))


@pytest.mark.parametrize(
    "asked, line",
    [
        ({"trees": "3,4,18"}, "EAGLE3_TREES: 3,4,18 has more tokens than num_speculative_tokens 16 and the root"),
        ({"depth": 17}, "EAGLE3_TREE_DEPTH 17 is above the 16 nodes of a tree"),
        ({"trees": "3,4,17"}, None),
        ({"depth": 16}, None),
    ],
)
def test_a_tree_that_the_nodes_cannot_hold_is_a_line(asked: dict[str, Any], line: str | None) -> None:
    settings = Settings(trees=read_trees(asked.get("trees", "")), depth=asked.get("depth"))
    assert fallback.shape_reasons(settings, 16) == ([line] if line else [])


class Zeros(SimpleNamespace):
    """A configuration in which nothing is asked for but what is said."""

    def __getattr__(self, name: str) -> Any:
        return 0


def nothing_asked_for(monkeypatch: pytest.MonkeyPatch, **parallel: int) -> Any:
    """The configuration of a server that trees can serve, spread as said."""
    monkeypatch.setattr(fallback, "window_checks", lambda *_: {})
    return Zeros(
        speculative_config=Zeros(
            num_speculative_tokens=16, rejection_sample_method="standard", draft_sample_method="greedy"
        ),
        model_config=Zeros(dtype="torch.bfloat16"),
        parallel_config=Zeros(**parallel),
        cache_config=Zeros(cache_dtype="auto"),
        use_v2_model_runner=True,
        lora_config=None,
        kv_transfer_config=None,
        watermark_config=None,
    )


@pytest.mark.parametrize(
    "asked, reason",
    [
        ("data_parallel_size", None),
        ("pipeline_parallel_size", "pipeline parallelism"),
        ("decode_context_parallel_size", "context parallelism"),
        ("prefill_context_parallel_size", "context parallelism"),
        ("tensor_parallel_size", None),
    ],
)
def test_how_a_server_may_be_spread(monkeypatch: pytest.MonkeyPatch, asked: str, reason: str | None) -> None:
    told = nothing_asked_for(monkeypatch, **{asked: 2})
    assert fallback.config_reasons(told, Settings(mode="tree")) == ([reason] if reason else [])
    told.model_config.is_moe = True  # whose ranks step together
    together = "data parallelism of a mixture of experts" if asked == "data_parallel_size" else reason
    assert fallback.config_reasons(told, Settings(mode="tree")) == ([together] if together else [])


@pytest.mark.parametrize(
    "name, both_ways, carried",
    [
        ("ExampleConnector", False, True),
        ("NixlConnector", False, True),
        ("NixlConnector", True, False),
        ("LMCacheConnectorV1", False, False),
        (None, False, False),
    ],
)
def test_which_connectors_trees_are_served_with(
    monkeypatch: pytest.MonkeyPatch, name: str | None, both_ways: bool, carried: bool
) -> None:
    told = nothing_asked_for(monkeypatch)
    extra = {"bidirectional_kv_xfer": both_ways}
    told.kv_transfer_config = SimpleNamespace(kv_connector=name, kv_connector_extra_config=extra)
    assert fallback.config_reasons(told, Settings(mode="tree")) == ([] if carried else ["a KV connector"])


@pytest.mark.parametrize("cached, there", [(True, True), (False, True), (True, False)])
def test_a_prefix_is_taken_whole_where_there_is_a_cache_and_vllm_can(cached: bool, there: bool) -> None:
    speculative = SimpleNamespace(**({"disable_eagle_block_drop": False} if there else {}))
    config = SimpleNamespace(speculative_config=speculative, cache_config=SimpleNamespace(enable_prefix_caching=cached))
    configure.keep_last_block(config, logging.getLogger("test"))
    assert getattr(speculative, "disable_eagle_block_drop", None) == (cached if there else None)


def test_several_pipeline_stages_are_served_plainly(target_dir: Path, drafter_dir: Path) -> None:
    """Stock vLLM 0.32 ends at start there: `'CPUModelRunner' object has no attribute 'drafter'`."""
    said = config(target_dir, drafter_dir, 3, {}, pipeline_parallel_size=2)
    assert "TOKENS\n" in said and "nothing is drafted" in said


def with_masks(folder: Path, masks: bool = True) -> SimpleNamespace:
    """vLLM's config of a drafter whose file has masks, or none."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"mask_hidden" if masks else "fc.weight": torch.zeros(1, 1, 6)}, folder / "model.safetensors")
    return SimpleNamespace(model=str(folder))


@pytest.mark.parametrize("masks", [True, False])
def test_a_parallel_drafter_drafts_in_one_pass_without_being_told(masks: bool, tmp_path: Path, caplog: Any) -> None:
    draft = with_masks(tmp_path / "d", masks)
    speculative = SimpleNamespace(draft_model_config=draft, parallel_drafting=False)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            configure.draft_in_one_pass(speculative, False, logging.getLogger("test"))
    assert speculative.parallel_drafting is masks and len(caplog.messages) == masks
    caplog.clear()
    with caplog.at_level(logging.INFO):
        configure.draft_in_one_pass(speculative, True, logging.getLogger("test"))
    assert not speculative.parallel_drafting, "Model Runner V2 would refuse it"
    assert len(caplog.messages) == masks and all("every depth of a tree" in line for line in caplog.messages)


def test_a_causal_head_drafts_trees_or_nothing(monkeypatch: pytest.MonkeyPatch, caplog: Any, tmp_path: Path) -> None:
    """vLLM's own drafter would end the server at its tensors."""
    draft = with_masks(tmp_path / "d")
    save_file({"mask_hidden": torch.zeros(1), CAUSAL: torch.zeros(1)}, tmp_path / "d" / "model.safetensors")
    for reasons in ([], ["EAGLE3_MODE is chain"]):
        monkeypatch.setattr(configure, "config_reasons", lambda *_, said=reasons: said)
        speculative = SimpleNamespace(
            method="eagle3",
            draft_model_config=draft,
            parallel_drafting=True,
            num_speculative_tokens=16,
            num_speculative_tokens_per_batch_size=[],
        )
        asked = SimpleNamespace(per_request_spec_decode_metrics="detailed")
        whole = SimpleNamespace(**WHOLE, speculative_config=speculative, observability_config=asked)
        with caplog.at_level(logging.WARNING):
            configure.configure_speculation(whole, Settings(), logging.getLogger("test"))
        assert (whole.speculative_config is None) is bool(reasons)
        assert (asked.per_request_spec_decode_metrics == "none") is bool(reasons), "vLLM would end at start"
        assert reasons or not speculative.parallel_drafting
    [line] = caplog.messages
    assert line == "eagle3: nothing is drafted: a causal head is for trees alone (EAGLE3_MODE is chain)"


def test_a_parallel_drafter_has_no_schedule(monkeypatch: pytest.MonkeyPatch, caplog: Any, tmp_path: Path) -> None:
    """Of fewer tokens than it has masks vLLM's proposer would make rows of the wrong length."""
    monkeypatch.setattr(configure, "config_reasons", lambda *_: ["Model Runner V1 runs"])
    Profile((0.7, 0.5), {1: {0: 1.0, 1: 1.1, 2: 1.2}}, {}).save(tmp_path / "p.json")
    speculative = SimpleNamespace(
        method="eagle3",
        draft_model_config=with_masks(tmp_path / "d"),
        parallel_drafting=False,
        num_speculative_tokens=4,
        num_speculative_tokens_per_batch_size=None,
    )
    with caplog.at_level(logging.WARNING):
        configure.configure_speculation(
            SimpleNamespace(**WHOLE, speculative_config=speculative),
            Settings(profile=tmp_path / "p.json"),
            logging.getLogger("test"),
        )
    assert speculative.parallel_drafting and speculative.num_speculative_tokens == 4
    assert speculative.num_speculative_tokens_per_batch_size is None
    assert caplog.messages == [
        "eagle3: EAGLE3_PROFILE is not used: a parallel drafter drafts as many tokens at every batch size"
    ]


def test_what_a_targets_layers_do_beyond_plain_attention_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows slide with a tree on a CPU alone; where they are narrower than a tree, nowhere."""

    def reasons(nodes: int = 20, window: int | None = None, **text: Any) -> list[str]:
        config = SimpleNamespace(**{"model_type": "llama", "sliding_window": window, **text})
        model = SimpleNamespace(hf_text_config=config, get_sliding_window=lambda: window)
        return [what for what, there in fallback.window_checks(model, nodes).items() if there]

    mixed = {"layer_types": ["sliding_attention", "full_attention"]}
    assert reasons() == reasons(sliding_window=None, layer_types=["full_attention"]) == []
    assert reasons(window=512, **mixed) == []
    assert reasons(nodes=16, window=16, **mixed) == ["a window of 16, which a tree of 16 nodes may leave"]
    assert reasons(layer_types=["linear_attention"]) == ["layers of kind linear_attention"]
    assert reasons(window=128, model_type="gpt_oss", **mixed) == ["attention sinks"]
    assert reasons(window=512, attn_logit_softcapping=50.0, **mixed) == ["softcapped attention scores"]
    monkeypatch.setattr(fallback.torch.cuda, "is_available", lambda: True)
    assert reasons(window=512, **mixed) == ["sliding windows"]
