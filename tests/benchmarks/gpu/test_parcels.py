"""Parcels and wheels for a machine without a network."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import offline_install, parcels, prepare
from benchmarks.gpu.offline_install import platforms, read_have, unmet
from benchmarks.gpu.parcels import ParcelError, join, read_manifest, split, take


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    (folder / "deep").mkdir(parents=True)
    (folder / "big.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "small.txt").write_text("few words")
    (folder / "empty").touch()
    return folder


def carried(source: Path, tmp_path: Path, size: int = 3000) -> tuple[Path, Path]:
    """The split, and a store that holds all of it, taken in no order."""
    out, store = tmp_path / "parcels", tmp_path / "store"
    for parcel in reversed(split([source], out, size)):
        take(parcel, store)
    return out, store


def test_files_come_back_as_they_were(source: Path, tmp_path: Path) -> None:
    out, store = carried(source, tmp_path)
    sizes = [sum(p.stat().st_size for p in parcel.glob("*.piece")) for parcel in out.iterdir()]
    assert len(sizes) == 4 and max(sizes) <= 3000 and sum(sizes) == 256 * 40 + 9
    made = join(store, tmp_path / "there")
    assert sorted(str(p.relative_to(tmp_path / "there")) for p in made) == [
        "inputs/big.bin",
        "inputs/deep/small.txt",
        "inputs/empty",
    ]
    for path in made:
        assert path.read_bytes() == (tmp_path / path.relative_to(tmp_path / "there")).read_bytes()
    before = made[0].stat().st_mtime_ns
    join(store, tmp_path / "there")
    assert made[0].stat().st_mtime_ns == before


def test_what_is_missing_is_named(source: Path, tmp_path: Path) -> None:
    _, store = carried(source, tmp_path)
    shutil.rmtree(store / "002")
    shutil.rmtree(store / "004")
    with pytest.raises(ParcelError, match="2 of 4 parcels are missing: 2, 4"):
        join(store, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_damage_is_found_on_arrival_and_on_joining(source: Path, tmp_path: Path) -> None:
    out, store = carried(source, tmp_path)
    piece = next((out / "001").glob("*.piece"))
    piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    with pytest.raises(ParcelError, match="carry the parcel again"):
        take(out / "001", store)
    stored = next((store / "001").glob("*.piece"))
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(ParcelError, match="wrong hash"):
        join(store, tmp_path / "there")
    assert not list((tmp_path / "there").rglob("*.partial"))


@pytest.mark.parametrize("name", ["../outside", "/outside", "inputs/../../outside"])
def test_a_path_that_leads_out_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    out, _ = carried(source, tmp_path)
    manifest = read_manifest(out / "001")
    manifest["files"][name] = manifest["files"].pop("inputs/big.bin")
    (out / "001" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ParcelError, match="leads out of its folder"):
        take(out / "001", tmp_path / "store")


def test_parcels_of_two_splits_are_told_apart(source: Path, tmp_path: Path) -> None:
    _, store = carried(source, tmp_path)
    (source / "empty").write_text("no longer")
    other = split([source], tmp_path / "again", 3000)
    take(other[0], store)
    with pytest.raises(ParcelError, match="different splits"):
        join(store, tmp_path / "there")


def test_wrong_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parcels.main(["join", "--store", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert parcels.main(["split", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    assert parcels.main(["take", str(tmp_path), "--store", str(tmp_path / "s")]) == 2
    assert offline_install.main(["install", str(tmp_path), "--target", str(tmp_path / "t")]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == said.count("\n") == 4


# ---- wheels


def test_platforms_are_all_that_run_there() -> None:
    tags = platforms("x86_64", 28)
    assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert "manylinux_2_31_x86_64" not in tags


def test_real_wheels_are_downloaded_carried_and_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two small packages, one of them for another Python and with a need that is met by what the other machine has."""
    have = tmp_path / "have.txt"
    have.write_text("pluggy==1.6.0\niniconfig==2.1.0\n-e something odd\n")
    out = tmp_path / "wheels"
    told = ["download", "tabulate==0.9.0", "MarkupSafe==3.0.2", "--python", "3.12", "--glibc", "28"]
    told += ["--out", str(out), "--have", str(have), "--parcels", str(tmp_path / "parcels"), "--size", "0.01"]
    assert offline_install.main(told) == 0
    said = capsys.readouterr().out
    names = sorted(path.name for path in out.glob("*.whl"))
    assert (
        names[0].startswith("MarkupSafe-3.0.2-cp312-cp312-manylinux") and names[1] == "tabulate-0.9.0-py3-none-any.whl"
    )
    assert "not met" not in said and "parcels in" in said
    store = tmp_path / "store"
    for parcel in (tmp_path / "parcels").iterdir():
        take(parcel, store)
    join(store, tmp_path / "there")
    here = tmp_path / "there" / "wheels"
    install = ["install", str(here), "--target", str(tmp_path / "site")]
    assert offline_install.main(install) == (0 if sys.version_info[:2] == (3, 12) else 2)
    # another Python refuses a wheel for 3.12; the pure one goes in alone
    listed = json.loads((here / "wheels.json").read_text())
    (here / "wheels.json").write_text(
        json.dumps({name: d for name, d in listed.items() if name.startswith("tabulate")})
    )
    assert offline_install.main(install) == 0
    code = "import tabulate; print(tabulate.__version__, tabulate.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.9.0", str(tmp_path / "site" / "tabulate" / "__init__.py")]


def test_a_wheel_that_was_changed_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"not what was listed")
    (tmp_path / "wheels.json").write_text(json.dumps({wheel.name: "0" * 64}))
    with pytest.raises(ParcelError, match="missing or damaged"):
        offline_install.install(tmp_path, tmp_path / "site")
    (tmp_path / "wheels.json").write_text(json.dumps({"../a-1-py3-none-any.whl": "0" * 64}))
    with pytest.raises(ParcelError, match="missing or damaged"):
        offline_install.install(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_needs_that_nothing_meets_are_told(tmp_path: Path) -> None:
    wheel = tmp_path / "odd-1.0-py3-none-any.whl"
    needs = ["numpy>=2", "torch", 'tomli; python_version < "3.11"', 'extra-thing; extra == "dev"', "absent"]
    lines = ["Metadata-Version: 2.1", "Name: odd", "Version: 1.0", *[f"Requires-Dist: {need}" for need in needs]]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("odd-1.0.dist-info/METADATA", "\n".join(lines))
    (tmp_path / "have.txt").write_text("numpy==1.26\nTorch==2.11.0+cu130\n")
    assert unmet([wheel], read_have(tmp_path / "have.txt"), "3.12", "x86_64") == [
        "odd needs numpy>=2; there is 1.26",
        "odd needs absent; there is none",
    ]


# ---- everything together


def test_inputs_are_packed_and_made_ready(source: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "train.jsonl"
    prompts.write_text('{"id": "a", "turns": ["Hello"]}\n' * 50)
    model = tmp_path / "model"
    shutil.copytree(source, model)
    carry, store, out = tmp_path / "carry", tmp_path / "store", tmp_path / "ready"
    told = ["pack", "--prompts", str(prompts), "--target", str(model), "--wheels", "tabulate==0.9.0"]
    assert prepare.main([*told, "--out", str(carry), "--size", "0.005"]) == 0
    for parcel in (carry / "tools").iterdir():
        take(parcel, store / "tools")
    take(carry / "target" / "001", store / "target")
    # the tools are of use while the target is still under way
    ready = prepare.unpack(store, out)
    assert ready.keys() == {"site", "prompts"}
    assert (ready["prompts"] / "train.jsonl").read_text() == prompts.read_text()
    assert (ready["site"] / "tabulate" / "__init__.py").is_file()
    for parcel in (carry / "target").iterdir():
        take(parcel, store / "target")
    ready = prepare.unpack(store, out)
    assert (ready["target"] / "deep" / "small.txt").read_text() == "few words"


def test_an_engine_travels_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheels, carry, store = tmp_path / "wheels", tmp_path / "carry", tmp_path / "store"
    told = ["pack", "--engine", str(wheels), "--wheels", "--target-wheels", "--out", str(carry)]
    assert prepare.main(told) == 2 and "offline_install download writes one" in capsys.readouterr().err
    assert not carry.exists()
    wheels.mkdir()
    wheel = wheels / "engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("engine/__init__.py", "")
        for name, text in (("METADATA", "Metadata-Version: 2.1\nName: engine\nVersion: 1.0\n"), ("RECORD", "")):
            archive.writestr(f"engine-1.0.dist-info/{name}", text)
        archive.writestr("engine-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (wheels / "wheels.json").write_text(json.dumps({wheel.name: parcels.sha256_of(wheel)}))
    assert prepare.main(told) == 0
    assert [path.name for path in carry.iterdir()] == ["engine"]
    for parcel in (carry / "engine").iterdir():
        take(parcel, store / "engine")
    ready = prepare.unpack(store, tmp_path / "ready")
    assert ready.keys() == {"engine-site"} and (ready["engine-site"] / "engine" / "__init__.py").is_file()
