"""`--json` as a contract: every command that has it has a schema, and a schema lets no key pass that it does not name."""

import argparse
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from eagle3_serving.cli.main import build_parser, main
from eagle3_serving.cli.schema import names, schema_of
from tests.json_contract import contract


def test_every_command_with_json_has_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    speaking = {name for name, parser in commands.items() if "--json" in parser._option_string_actions}
    assert set(names()) == speaking
    assert main(["schema"]) == 0
    assert capsys.readouterr().out.split() == names()


@pytest.mark.parametrize("command", names())
def test_a_schema_is_one_and_is_strict(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", command]) == 0
    printed = capsys.readouterr().out
    assert printed == schema_of(command)
    schema = json.loads(printed)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    waiting = [schema]
    while waiting:  # objects with names of their own name all of them
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get("type") == "object" and "properties" in part:
                assert (part["additionalProperties"] is False and part["required"]) or command == "train"
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def test_a_missing_a_wrong_and_a_misspelt_key_fail(drafter_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(drafter_dir), "--json"]) == 0
    said = contract("check", capsys.readouterr().out)
    schema = Draft202012Validator(json.loads(schema_of("check")))
    finding = {"severity": "note", "engine": "any", "where": "w", "what": "x", "fix": ""}
    assert schema.is_valid({**said, "findings": [finding]})
    for wrong in (
        {"findings": []},
        {**said, "ok": "yes"},
        {**said, "findings": [{**finding, "severity": "bad"}]},
        {**said, "findings": [{k: v for k, v in finding.items() if k != "fix"}]},
        {**said, "findings": [{**finding, "fixes": ""}]},
    ):
        assert not schema.is_valid(wrong)
