"""What a command printed with `--json`, held against the schema that `eagle3 schema` prints."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from eagle3_serving.cli.schema import schema_of


def contract(command: str, output: str) -> Any:
    """The object in the last line of `output`; that it lacks no key and has no other is asserted too."""
    said: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    schema = Draft202012Validator(json.loads(schema_of(command)))
    schema.validate(said)
    assert not schema.is_valid({**said, "mispelt": None})
    required = {key for key in said if not schema.is_valid({k: v for k, v in said.items() if k != key})}
    assert required == set(said), f"{set(said) - required} may be missing"
    return said
