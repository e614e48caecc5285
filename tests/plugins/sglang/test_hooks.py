"""Where something does not fit, SGLang's own EAGLE3 serves and a line says why. SGLang itself is stood in for here."""

import logging
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import eagle3_sglang
import pytest
from eagle3_sglang import hooks
from eagle3_sglang.backends import tree_problem, window_problem
from eagle3_sglang.compat_check import Name, name_problem, version_problem
from eagle3_sglang.settings import DEFAULT_CHAINS, DEFAULT_TREES, DEFAULT_TREES_ON_GPU, read_trees


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE3_SAID", "")


def test_versions() -> None:
    assert version_problem("0.5.20") == version_problem("0.5.23") == ""
    assert "0.6.0 is not one of those" in version_problem("0.6.0")


def test_a_missing_name_and_a_changed_signature_are_named() -> None:
    assert name_problem((Name("json", "dumps", ("obj", "indent")),)) == ""
    assert "no json.JSONEncoder.later" in name_problem((Name("json", "JSONEncoder.later"),))
    assert "json.dumps takes no colour" in name_problem((Name("json", "dumps", ("colour",)),))


class EAGLEWorkerV2:
    """Stands in for SGLang's."""


def arguments(**changed: object) -> SimpleNamespace:
    values = {
        "speculative_adaptive": False, "pp_size": 1, "enable_dp_attention": False, "device": "cpu", "page_size": 1,
        "attention_backend": "triton", "speculative_eagle_topk": 4,
    }  # fmt: skip
    return SimpleNamespace(speculative_algorithm="EAGLE3", **{**values, **changed})


@pytest.mark.parametrize(
    "changed, why",
    [({"speculative_adaptive": True}, "--speculative-adaptive"), ({"pp_size": 2}, "pipeline"), ({}, "no ")],
)
def test_sglangs_own_worker_serves_where_ours_does_not_fit(
    changed: dict[str, object], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "worker_problem", lambda: "SGLang has no such name")
    with caplog.at_level(logging.WARNING):
        made = hooks.create_worker(lambda *_: EAGLEWorkerV2, SimpleNamespace(name="EAGLE3"), arguments(**changed))
    assert made is EAGLEWorkerV2
    assert why in caplog.text and "SGLang's own EAGLE3 serves" in caplog.text


def test_other_algorithms_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    algorithm = SimpleNamespace(name="EAGLE")
    assert hooks.create_worker(lambda *_: EAGLEWorkerV2, algorithm, arguments()) is EAGLEWorkerV2
    assert hooks.reserve(lambda *_: 8, algorithm, arguments()) == 8
    asked = arguments()
    asked.speculative_algorithm = "STANDALONE"
    assert hooks.choose_trees(lambda *_: (5, 4, 8), asked, "LlamaForCausalLM") == (5, 4, 8)
    assert not caplog.text


def test_memory_is_kept_for_the_largest_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "worker_problem", lambda: "")
    monkeypatch.setenv("EAGLE3_TREES", "0;1,8,3;5,8,12")
    # a draft of 5 steps of 8 branches writes 40 slots, more than its 12 tokens
    assert hooks.reserve(lambda *_: 12, SimpleNamespace(name="EAGLE3"), arguments()) == 40
    assert hooks.reserve(lambda *_: None, SimpleNamespace(name="EAGLE3"), arguments()) is None


@pytest.mark.parametrize(
    ("theirs", "changed", "shape", "trees"),
    [
        ((5, 4, 8), {}, (5, 4, 12), DEFAULT_TREES),
        ((5, 4, 8), {"device": "cuda"}, (5, 4, 12), DEFAULT_TREES_ON_GPU),
        # some models' attention draws chains alone: where SGLang would not draw a tree, we do not either
        ((3, 1, 4), {}, (3, 1, 4), DEFAULT_CHAINS),
        ((5, 4, 8), {"attention_backend": "trtllm_mha"}, (3, 1, 4), DEFAULT_CHAINS),
    ],
)
def test_without_flags_our_trees_apply_and_the_scheduler_learns_of_them(
    theirs: tuple[int, int, int],
    changed: dict[str, object],
    shape: tuple[int, int, int],
    trees: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hooks, "worker_problem", lambda: "")
    monkeypatch.setenv("EAGLE3_TREES", "")
    with caplog.at_level(logging.INFO):
        assert hooks.choose_trees(lambda *_: theirs, arguments(**changed), "AnyForCausalLM") == shape
    assert hooks.read_settings().trees == read_trees(trees)
    assert "no tree was asked for" in caplog.text


@pytest.mark.parametrize("asks", [hooks.create_worker, hooks.choose_trees])
def test_an_attention_backend_that_knows_no_tree_ends_the_server_with_one_line(
    asks: Callable[..., object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hooks, "worker_problem", lambda: "")
    monkeypatch.setenv("EAGLE3_TREES", "0;3,4,6")
    given = arguments(decode_attention_backend="flashmla")
    with pytest.raises(SystemExit):
        if asks is hooks.create_worker:
            asks(lambda *_: EAGLEWorkerV2, SimpleNamespace(name="EAGLE3"), given)
        else:
            asks(lambda *_: (5, 4, 8), given, "LlamaForCausalLM")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("eagle3: attention backend flashmla verifies chains") and "--attention-backend" in line


def test_where_trees_are_not_known_to_work_sglangs_own_worker_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "worker_problem", lambda: "")
    for changed, why in (
        ({"attention_backend": "fa4"}, "fa4 verifies trees is not known"),
        ({"attention_backend": "intel_amx", "page_size": 16}, "--page-size 1 alone"),
    ):
        caplog.clear()
        made = hooks.create_worker(lambda *_: EAGLEWorkerV2, SimpleNamespace(name="EAGLE3"), arguments(**changed))
        assert made is EAGLEWorkerV2 and why in caplog.text


@pytest.mark.parametrize("name", ["triton", "flashinfer", "fa3"])
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_trees_are_served_where_sglang_verifies_them(name: str, page_size: int) -> None:
    assert tree_problem(4, [name, name], page_size) == ""
    assert tree_problem(1, ["trtllm_mha"], page_size) == ""
    assert window_problem(4, [name], page_size, False) == ""


@pytest.mark.parametrize(
    ("name", "top_k", "page_size", "why"),
    [
        ("fa3", 4, 1, ""),
        ("fa3", 1, 16, ""),
        ("fa3", 4, 16, "pages of 16"),
        ("triton", 1, 1, ""),
        ("triton", 4, 1, "by the rows of a tree"),
        ("flashinfer", 4, 1, "the first tokens"),
        ("flashinfer", 1, 1, "the first tokens"),
        ("intel_amx", 4, 1, ""),
    ],
)
def test_over_a_sliding_window_what_the_backend_verifies_rightly(
    name: str, top_k: int, page_size: int, why: str
) -> None:
    said = window_problem(top_k, [name, name], page_size, True)
    assert why in said and bool(said) == bool(why)


class Registry:
    """Stands in for SGLang's."""

    def __init__(self) -> None:
        self._hooks: dict[str, object] = {}
        self.fails_after = 99

    def register(self, target: str, hook: object, kind: str) -> None:
        if len(self._hooks) == self.fails_after:
            raise TypeError("register() takes 2 positional arguments")
        self._hooks[target] = hook


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made, module = Registry(), ModuleType("sglang.srt.plugins.hook_registry")
    module.HookRegistry = made  # type: ignore[attr-defined]
    module.HookType = SimpleNamespace(AROUND="around")  # type: ignore[attr-defined]
    sglang = ModuleType("sglang")
    sglang.__version__ = "0.5.23"  # type: ignore[attr-defined]
    for name, one in {"sglang": sglang, "sglang.srt.plugins.hook_registry": module}.items():
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.setattr(hooks, "name_problem", lambda *_: "")
    return made


def test_five_hooks_are_registered_and_none_where_it_is_off(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EAGLE3_SERVING", "off")
    eagle3_sglang.register()
    assert not registry._hooks
    monkeypatch.setenv("EAGLE3_SERVING", "on")
    eagle3_sglang.register()
    assert len(registry._hooks) == 5 and not caplog.text


@pytest.mark.parametrize("fault", ["version", "name", "registration", "missing"])
def test_a_fault_hooks_nothing_and_is_told_once(
    fault: str, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    why = {"version": "0.7.1", "name": "no such name", "registration": "takes 2", "missing": "sglang"}[fault]
    if fault == "version":
        sys.modules["sglang"].__version__ = "0.7.1"  # type: ignore[attr-defined]
    elif fault == "name":
        monkeypatch.setattr(hooks, "name_problem", lambda *_: "SGLang has no such name")
    elif fault == "registration":
        registry.fails_after = 2
    else:
        monkeypatch.setitem(sys.modules, "sglang", None)
    for _ in range(2):
        eagle3_sglang.register()
    assert not registry._hooks
    assert len(caplog.messages) == 1
    assert why in caplog.messages[0] and "SGLang's own EAGLE3 serves" in caplog.messages[0]


def test_a_setting_that_cannot_be_read_ends_a_server_with_eagle3_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EAGLE3_TREES", "3,4,99")
    eagle3_sglang.register()
    assert len(registry._hooks) == 5
    served: list[object] = []
    plain = SimpleNamespace(speculative_algorithm=None, speculative_draft_model_path=None)
    hooks.before_resolution(served.append, plain)
    assert served == [plain]
    asked = SimpleNamespace(speculative_algorithm="EAGLE3", speculative_draft_model_path="somewhere")
    with pytest.raises(SystemExit) as ended:
        hooks.before_resolution(served.append, asked)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("eagle3: EAGLE3_TREES: tree 3,4,99")


def test_a_check_that_fails_by_itself_lets_the_server_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[object] = []
    unknown = SimpleNamespace(speculative_algorithm="EAGLE3")  # the drafter stands under another name
    hooks.before_resolution(served.append, unknown)
    assert served == [unknown]
    assert len(caplog.messages) == 1 and "goes unchecked: AttributeError" in caplog.messages[0]


@pytest.mark.parametrize("hook", ["choose_trees", "reserve", "create_worker"])
def test_a_hook_that_fails_leaves_sglangs_own_answer(
    hook: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("planted")

    for name in ("worker_problem", "_is_ours", "_unfit", "read_settings"):
        monkeypatch.setattr(hooks, name, broken)
    first = SimpleNamespace(name="EAGLE3") if hook != "choose_trees" else arguments()
    assert getattr(hooks, hook)(lambda *_: EAGLEWorkerV2, first, arguments()) is EAGLEWorkerV2
    assert len(caplog.messages) == 1 and "RuntimeError: planted" in caplog.messages[0]
