"""Mutated checkpoints against `eagle3-convert` and `eagle3 check`: each ends in 0, 1 or 2 with one clear line.

    python -m benchmarks.fuzz_checkpoints --count 5000 --out benchmarks/results/fuzz-checkpoints.json

Every mutation starts from a drafter that is right, written as one of the dialects, sharded or as a pickle. Truncations, flipped bits,
headers that lie, renamed, reshaped, retyped and missing tensors, keys of config.json of any kind, hostile pickles and
index files. What fails the run: an exception that is no Eagle3Error, more than one line, over ten seconds, a file that a
pickle made, a destination or a leftover after a failure.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import write_json
from eagle3_serving.checkpoint import check, convert, save_drafter
from eagle3_serving.checkpoint.dialects import DIALECTS, WRITABLE
from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.errors import Eagle3Error

LIMIT_S = 10
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 17, 10**6, 10**12, 2**63, 1.5, float("inf"), float("nan"), "", "x", "../x", [], [1],
    [1, 5, 8], [2, 6, 9], [-5, 99, 3], ["a"], [[1]], {}, {"a": 1}, {"rope_type": "yarn"}, {"rope_type": "linear", "factor": -1},
    {"rope_type": [], "factor": {}}, "a" * 5000, "\x00", "nan",
]  # fmt: skip


class Bomb:
    """What a hostile pickle would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def originals(folder: Path) -> list[Path]:
    """A drafter that is right, in every dialect that is written, and as shards and a pickle."""
    torch.manual_seed(0)
    config = DrafterConfig(32, 48, 4, 2, 8, 64, 24, 32, (2, 6, 9))
    drafter = Drafter(config, torch.arange(24) * 2 + 1)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.4)
    save_drafter(drafter, folder / "own", torch.float32)
    found = [folder / "own"]
    for dialect in WRITABLE:
        convert(folder / "own", folder / dialect, to=dialect, num_target_layers=12)
        found.append(folder / dialect)
    tensors = load_file(folder / "own" / "model.safetensors")
    for name in ("pickle", "shards"):
        shutil.copytree(folder / "own", folder / name)
        (folder / name / "model.safetensors").unlink()
        found.append(folder / name)
    torch.save(tensors, folder / "pickle" / "pytorch_model.bin")
    names = sorted(tensors)
    weight_map = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    for i in range(2):
        save_file({n: tensors[n] for n in names[i::2]}, folder / "shards" / f"model-{i}.safetensors")
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return found


def weights(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")))


def truncate(folder: Path, rng: random.Random, mark: Path) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def grow(folder: Path, rng: random.Random, mark: Path) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 200)))


def flip(folder: Path, rng: random.Random, mark: Path) -> None:
    """Bits of the head, where the structure is, or anywhere."""
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    span = min(len(data), rng.choice((8, 64, 2000, len(data))))
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(span)] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def lie(folder: Path, rng: random.Random, mark: Path) -> None:
    """One entry of a safetensors header says something else."""
    path = weights(folder, rng)
    data = path.read_bytes()
    if path.suffix == ".bin":
        return flip(folder, rng, mark)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([n for n in header if n != "__metadata__"])
    entry = header[name]
    what = rng.randrange(6)
    if what == 0:
        entry["dtype"] = rng.choice(["F32", "F16", "I64", "BOOL", "F8_E4M3", "Q9", None, 3])
    elif what == 1:
        entry["shape"] = rng.choice(
            [[], [-1, 4], [2**62, 4], [10**9], "x", None, [1.5], [0], [1] * 20, entry["shape"][::-1]]
        )
    elif what == 2:
        a, b = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            [[b, a], [a - 8, b], [a, b + 8], [0, 2**60], [-8, b], [a], "x", None, [a + 4, b + 4]]
        )
    elif what == 3:
        header[rng.choice(["fc.weight", "layers.70.mlp.up_proj.weight", "x" * 3000, "", "../up", "layers.1.hidden_norm.weight",
                           "layers.99999999999999999999.x", "model." + name])] = header.pop(name)  # fmt: skip
    elif what == 4:
        del header[name]
    else:
        header["__metadata__"] = rng.choice([None, 3, {"a": 1}, [], {"format": "pt"}])
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    return None


def retensor(folder: Path, rng: random.Random, mark: Path) -> None:
    """A tensor renamed, reshaped, retyped, removed, doubled, or filled with nonsense; the file itself is proper."""
    path = weights(folder, rng)
    pickled = path.suffix == ".bin"
    tensors = torch.load(path, weights_only=True) if pickled else load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    what = rng.randrange(9)
    if what == 0:
        tensors[
            rng.choice(
                [f"model.{name}", name.replace("proj", "norm"), f"midlayer.{name}", "t2d", "d2t", "x.lora_A.weight"]
            )
        ] = tensors.pop(name)
    elif what == 1:
        tensors[name] = tensor.reshape(-1)
    elif what == 2:
        tensors[name] = tensor[: max(0, tensor.shape[0] - rng.randrange(1, 5))] if tensor.dim() else tensor
    elif what == 3:
        tensors[name] = tensor.to(
            rng.choice([torch.int32, torch.bool, torch.float16, torch.float64, torch.int8, torch.uint8])
        )
    elif what == 4:
        del tensors[name]
    elif what == 5:
        tensors[name] = torch.full_like(tensor, rng.choice([0, 1, 3]))
    elif what == 6:
        tensors[name] = tensor.float() / 0
    elif what == 7:
        tensors["d2t"] = torch.randint(-100, 200, (rng.choice([24, 24, 23, 0]),))
    else:
        tensors[f"{name}_scale"] = torch.ones(rng.choice([(), (1,), (3, 5)]))
        tensors[name] = tensor.to(torch.float8_e4m3fn)
    tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
    if pickled:
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


def reconfigure(folder: Path, rng: random.Random, mark: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = config
        inner = [k for k, v in config.items() if isinstance(v, dict)]
        if inner and rng.random() < 0.3:
            place = config[rng.choice(inner)]
        key = rng.choice(
            [
                *place,
                "tie_word_embeddings",
                "eagle_config",
                "architectures",
                "bias",
                "quantization_config",
                "rope_scaling",
            ]
        )
        if rng.random() < 0.2:
            place.pop(key, None)
        else:
            place[key] = rng.choice(VALUES)
    path.write_text(json.dumps(config))


def hostile(folder: Path, rng: random.Random, mark: Path) -> None:
    what = rng.randrange(6)
    index = folder / "model.safetensors.index.json"
    if what == 0:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        torch.save({"fc.weight": torch.ones(2), "x": Bomb(mark)}, folder / "pytorch_model.bin")
    elif what == 1:
        name = rng.choice(
            [
                "../own/model.safetensors",
                "/etc/passwd",
                "a/../../b.safetensors",
                "..",
                ".",
                "",
                "x\0y",
                "C:\\x.safetensors",
                7,
                None,
                ["x"],
            ]
        )
        index.write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    elif what == 2:
        index.write_text(
            rng.choice(
                [
                    "[]",
                    "{}",
                    '{"weight_map": []}',
                    '{"weight_map": {"a": "b"}}',
                    "[" * 100_000,
                    "nul",
                    '{"weight_map": {"a": "model.bin"}}',
                ]
            )
        )
    elif what == 3:
        (folder / "config.json").write_text(
            rng.choice(
                [
                    "",
                    "[]",
                    "null",
                    "{",
                    "[" * 100_000,
                    '{"a": 1e999}',
                    "\ufeff{}",
                    '{"hidden_size": ' + "9" * 5000 + "}",
                ]
            )
        )
    elif what == 4:
        path = weights(folder, rng)
        path.unlink()
        rng.choice(
            [
                lambda: path.mkdir(),
                lambda: path.symlink_to(path),
                lambda: path.symlink_to("/dev/zero"),
                lambda: os.mkfifo(path),
            ]
        )()
    else:
        (folder / rng.choice(["adapter_config.json", "hf_quant_config.json"])).write_text(rng.choice(["{}", "[]", "x"]))


MUTATIONS = (truncate, grow, flip, lie, lie, retensor, retensor, reconfigure, reconfigure, reconfigure, hostile)


class TimeUp(Exception):
    pass


def _time_up(number: int, frame: FrameType | None) -> None:
    raise TimeUp


def one(seed: int, sources: list[Path], folder: Path) -> tuple[str, int, str, str]:
    """Make mutation `seed` and run both commands: its kind, exit code and message of the conversion, and what is wrong."""
    rng = random.Random(seed)
    drafter, mark, out = folder / "drafter", folder / "mark", folder / "out"
    shutil.copytree(rng.choice(sources), drafter)
    mutate = rng.choice(MUTATIONS)
    for _ in range(rng.choice((1, 1, 1, 2))):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError):
            mutate(drafter, rng, mark)  # a second mutation may not be able to read what the first one left
    torch.manual_seed(seed)
    to = rng.choice(WRITABLE)
    options: dict[str, Any] = {
        "dialect": rng.choice([None, None, None, *DIALECTS]),
        "num_target_layers": rng.choice([12, 12, None]),
    }
    wrong, message, code = [], "", 0
    signal.signal(signal.SIGALRM, _time_up)
    for name, command in (
        ("convert", lambda: convert(drafter, out, to=to, dtype=rng.choice([None, None, "bfloat16"]), **options)),
        ("check", lambda: check(drafter, **options)),
    ):
        signal.alarm(LIMIT_S)
        try:
            command()
            said, ended = "", 0
        except Eagle3Error as error:
            said, ended = str(error), error.exit_code
        except TimeUp:
            wrong.append(f"{name}: over {LIMIT_S} s")
            continue
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        finally:
            signal.alarm(0)
        if ended and (not said.strip() or "\n" in said or len(said) > 6000):
            wrong.append(f"{name}: no clear line: {said[:200]!r}")
        if name == "convert":
            message, code = said, ended
            if ended and out.exists():
                wrong.append("convert failed and left a destination")
            if not ended and check_output(out, to):
                wrong.append(f"convert left an output that is not right: {check_output(out, to)}")
    if mark.exists():
        wrong.append("a pickle was executed")
    left = {path.name for path in folder.iterdir()} - {"drafter", "out", "mark"}
    if left:
        wrong.append(f"left behind: {sorted(left)}")
    return mutate.__name__, code, message, "; ".join(wrong)


def check_output(out: Path, to: str) -> str:
    """What the check says of a conversion that said it was done."""
    found = check(out, engine=DIALECTS[to].engines[0], num_target_layers=12, values=False)
    return "; ".join(finding.line() for finding in found if finding.breaks)


def fuzz(count: int, first: int = 0) -> dict[str, Any]:
    """Run mutations `first` to `first + count`; the record of it."""
    codes: dict[str, Counter[str]] = {}
    failures, slowest = [], 0.0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        sources = originals(Path(made))
        for seed in range(first, first + count):
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                kind, code, message, wrong = one(seed, sources, Path(folder))
                slowest = max(slowest, time.perf_counter() - begun)
            codes.setdefault(kind, Counter())[str(code)] += 1
            if wrong:
                failures.append({"seed": seed, "kind": kind, "wrong": wrong, "message": message[:200]})
    return {
        "count": count,
        "exit_codes": {kind: dict(sorted(c.items())) for kind, c in sorted(codes.items())},
        "slowest_s": round(slowest, 2),
        "seconds": round(time.perf_counter() - started, 1),
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first mutation")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = fuzz(args.count, args.first)
    print(json.dumps(record, indent=1))
    if args.out:
        write_json(args.out, {"command": f"python -m benchmarks.fuzz_checkpoints --count {args.count}", **record})
    if record["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
