"""What a team would start: held against the schemas of Compose and of Kubernetes, and against what this package is."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from eagle3_serving import __version__
from eagle3_serving.serve.sglang import SWITCH
from eagle3_serving.serve.vllm import MODE

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = sorted((ROOT / "deploy" / "compose").glob("*.yaml"))
KUBERNETES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
SWITCHES = {"vllm": MODE, "sglang": SWITCH}


def schema_errors(path: Path) -> str:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.stem)
def test_compose_files_are_what_compose_reads(path: Path) -> None:
    assert schema_errors(path) == ""


def test_a_wrong_compose_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(COMPOSE[0].read_text().replace("ports:", "port:"))
    assert "port" in schema_errors(tmp_path / "wrong.yaml")


def objects(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_manifests_are_what_kubernetes_reads(path: Path) -> None:
    found = objects(path)
    assert [one["kind"] for one in found] == ["PersistentVolumeClaim", "Deployment", "Service"]
    for one in found:
        kubernetes_validate.validate(one, "1.31", strict=True)


def test_a_wrong_manifest_is_found() -> None:
    wrong = objects(KUBERNETES[0])[1]
    wrong["spec"]["template"]["spec"]["containers"][0]["arguments"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


@pytest.mark.parametrize("engine", SWITCHES)
def test_they_say_what_this_package_and_its_image_understand(engine: str) -> None:
    image = (ROOT / "Dockerfile").read_text()
    claim, deployment, service = objects(ROOT / "deploy" / "kubernetes" / f"{engine}.yaml")
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container["image"] == f"eagle3-{engine}:{__version__}"
    assert SWITCHES[engine] in {variable["name"] for variable in container["env"]}
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert f"--uid {pod['spec']['securityContext']['runAsUser']} " in image
    [port] = {p["containerPort"] for p in container["ports"]}
    assert re.search(rf'"--port", "{port}"', image) and f"EXPOSE {port}" in image
    [served] = yaml.safe_load((ROOT / "deploy" / "compose" / f"{engine}.yaml").read_text())["services"].values()
    assert SWITCHES[engine] in served["environment"]
    assert served["ports"] == [f"{port}:{port}"]


def test_vllms_flag_is_one_json_object() -> None:
    container = objects(ROOT / "deploy" / "kubernetes" / "vllm.yaml")[1]["spec"]["template"]["spec"]["containers"][0]
    said = container["args"][container["args"].index("--speculative-config") + 1]
    assert json.loads(said)["method"] == "eagle3"
