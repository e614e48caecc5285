"""The dashboards ask for what servers really say, in PromQL that parses, and tell of each panel what it means."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "grafana"
ENGINES = ("vllm", "sglang")
SCRAPED = {"instance", "job"}  # Prometheus adds them


def load(engine: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / f"eagle3-{engine}.json").read_text())
    return read


def panels(engine: str) -> list[dict[str, Any]]:
    return [panel for panel in load(engine)["panels"] if panel["type"] != "row"]


def known(engine: str) -> dict[str, set[str]]:
    """Names and labels on the page of a real server, as `eagle3 serve` started it on a CPU (vLLM 0.32: a chain on Model Runner V1
    and trees on V2; SGLang 0.5.23), after some requests. Histograms as their samples."""
    lines = (Path(__file__).parent / f"{engine}-metrics.txt").read_text().splitlines()
    return {name: set(filter(None, labels.split(","))) for name, _, labels in (line.partition(" ") for line in lines)}


def expressions(engine: str) -> Iterator[tuple[str, str]]:
    for panel in panels(engine):
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")


def parts(node: Any) -> Iterator[Any]:
    """The expression and all inside it."""
    yield node
    inside = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    inside += list(getattr(node, "args", None) or [])
    for one in inside:
        if one is not None and not isinstance(one, str):
            yield from parts(one)


def asked(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression and the labels that they are asked by."""
    found: dict[str, set[str]] = {}
    grouped: set[str] = set()
    for part in parts(promql_parser.parse(expression)):
        if isinstance(part, promql_parser.VectorSelector):
            found.setdefault(part.name, set()).update(matcher.name for matcher in part.matchers.matchers)
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            own = {one.name for one in parts(part) if isinstance(one, promql_parser.VectorSelector)}
            for name in own:
                found.setdefault(name, set()).update(part.modifier.labels)
            grouped |= own
    return found


def made_by_the_script() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("grafana_build", FOLDER / "build.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_the_files_are_what_the_script_makes() -> None:
    build = made_by_the_script()
    for of in (build.VLLM, build.SGLANG):
        assert (FOLDER / f"{of.uid}.json").read_text() == build.text(of), "run python deploy/grafana/build.py"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_metric_and_label_is_on_a_real_servers_page(engine: str) -> None:
    there = known(engine)
    for title, expression in expressions(engine):
        metrics = asked(expression)
        assert metrics, title
        for name, labels in metrics.items():
            assert name in there, f"{title}: no {name}"
            assert labels <= there[name] | SCRAPED, f"{title}: {name} has no {labels - there[name]}"


def test_what_is_asked_is_found_in_an_expression() -> None:
    assert asked(
        "1 + sum by (a) (rate(x_total{b='1'}[1m])) / on () group_left () histogram_quantile(0.5, sum by (le) (y))"
    ) == {
        "x_total": {"a", "b"},
        "y": {"le"},
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_legends_name_labels_that_are_left(engine: str) -> None:
    for panel in panels(engine):
        for target in panel["targets"]:
            grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([\w, ]+)\)", target["expr"])))) - {"le"}
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named == grouped, panel["title"]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_panel_says_what_it_is_and_what_to_do(engine: str) -> None:
    read = load(engine)
    ids = [panel["id"] for panel in read["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(engine)]
    assert len(titles) >= 16
    guide = (ROOT / "docs" / "dashboard.md").read_text()
    for panel in panels(engine):
        assert panel["fieldConfig"]["defaults"]["unit"] and len(panel["description"]) > 60, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all("$instance" in target["expr"] for target in panel["targets"])
        assert panel["title"] in guide, f"docs/dashboard.md does not speak of {panel['title']!r}"
    variables = {variable["name"]: variable for variable in read["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"} and variables["datasource"]["type"] == "datasource"
    asked_of = re.findall(r"label_values\(([\w:]+),", variables["instance"]["definition"])
    assert asked_of[0] in known(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_panels_stand_side_by_side(engine: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load(engine)["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_plugins_own_names_are_all_shown() -> None:
    """What only the plugins can say is not left out: every metric of theirs is in a panel."""
    shown = {name for engine in ENGINES for _, expression in expressions(engine) for name in asked(expression)}
    ours = {name for engine in ENGINES for name in known(engine) if "eagle3" in name}
    assert ours - shown == {"vllm:eagle3_accepted_length"}  # since the start of the server: the rate says what is now
