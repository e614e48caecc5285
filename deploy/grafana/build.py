"""Writes the dashboards beside this file: `python deploy/grafana/build.py` after a change of `panels.py`."""

import json
from pathlib import Path
from typing import Any

from panels import SGLANG, VLLM, Dashboard, Panel

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDE = 24
HEIGHTS = {"stat": 4, "timeseries": 8}


def dashboard(of: Dashboard) -> dict[str, Any]:
    """As Grafana 10 and later read it, under its schema 39."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in of.rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDE, "h": 1},
            }
        )
        y += 1
        x = 0
        for one in row:
            if x + one.width > WIDE:
                x, y = 0, y + HEIGHTS[one.kind]
            place = {"x": x, "y": y, "w": one.width, "h": HEIGHTS[one.kind]}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(one)})
            x += one.width
        y += HEIGHTS[row[-1].kind]
    return {
        "uid": of.uid,
        "title": of.title,
        "description": "What a drafter gains and costs, from the engine's own endpoint.",
        "tags": ["eagle3", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables(of)},
        "panels": panels,
    }


def _variables(of: Dashboard) -> list[dict[str, Any]]:
    query = f"label_values({of.instances}, instance)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
        {
            "name": "instance",
            "label": "server",
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": "instances"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
            "hide": 0,
        },
    ]


def _panel(one: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": one.unit, "decimals": 2 if one.unit == "none" else None, "custom": {}}
    defaults |= {name: value for name, value in (("min", one.least), ("max", one.most)) if value is not None}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "none"}
    if one.kind == "timeseries":
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 10, "showPoints": "never", "spanNulls": False}
        if one.stacked:
            defaults["custom"] |= {"stacking": {"mode": "normal"}, "fillOpacity": 40}
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "type": one.kind,
        "title": one.title,
        "description": one.tells,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "range": True,
            }
            for number, (expression, legend) in enumerate(one.queries)
        ],
    }


def text(of: Dashboard) -> str:
    return json.dumps(dashboard(of), indent=1) + "\n"


if __name__ == "__main__":
    for of in (VLLM, SGLANG):
        path = Path(__file__).parent / f"{of.uid}.json"
        path.write_text(text(of), encoding="utf-8")
        print(path.name)
