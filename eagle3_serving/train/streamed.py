"""The target's features from a vLLM server that writes them into a folder: target and trainer may stand on different machines.

`eagle3 features` starts such a server: vLLM's `extract_hidden_states` runs each prompt and writes a file of its own, [tokens,
boundaries, hidden], beside a lock that is held until the file is whole; the answer names the file. The folder says which
boundaries its files hold.
"""

import fcntl
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eagle3_serving.checkpoint.source import read_json
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.files import write_whole
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import FeatureBatch, padded

CONTENTS = "features.json"  # in the store: what its server writes
_AT_ONCE = 16  # requests
_TIMEOUT_S = 600.0  # of one request
_PATIENCE_S = 60.0  # that a server may be away, say for a restart


def describe_store(store: Path, boundaries: Sequence[int], hidden_size: int) -> None:
    """Say in the store what its server writes: ascending `boundaries`, the last one the final norm's input."""
    store.mkdir(parents=True, exist_ok=True)
    write_whole(store / CONTENTS, json.dumps({"boundaries": sorted(boundaries), "hidden_size": hidden_size}) + "\n")


class FeatureServer:
    """`target` needs no decoder layers: its final norm alone is run here. `watched`: the boundaries wanted, in this order.

    Raises InputError where `store` is none, or holds other features than the target's.
    """

    def __init__(self, url: str, store: Path, target: Target, watched: Sequence[int]) -> None:
        import httpx

        self.url, self.store, self.target = url.rstrip("/"), store, target
        contents = self._contents()
        missing = sorted({*watched, target.num_layers} - set(contents))
        if missing:
            raise InputError(
                f"{store}: its server writes boundaries {' '.join(map(str, contents))}, without {' '.join(map(str, missing))}: "
                f"start it with eagle3 features --aux-layers {' '.join(map(str, sorted(watched)))}"
            )
        self.columns = [contents.index(k) for k in watched]
        self.count, self.final = len(contents), contents.index(target.num_layers)
        self.client = httpx.Client(base_url=self.url, timeout=httpx.Timeout(_TIMEOUT_S, connect=10.0))
        self.pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="features")
        self._asked: dict[Answer, Future[dict[str, Tensor]]] = {}
        self._model: str | None = None

    def ahead(self, answers: Sequence[Answer]) -> None:
        """Ask for what will be wanted next, without waiting."""
        for answer in answers:
            if answer not in self._asked:
                self._asked[answer] = self.pool.submit(self._features, answer)

    def extract(self, answers: Sequence[Answer]) -> FeatureBatch:
        """As `extract_features`. Raises CheckError where the server is gone, or gives what was not asked for."""
        self.ahead(answers)
        return padded(answers, [self._asked.pop(answer).result() for answer in answers])

    def _contents(self) -> list[int]:
        """The boundaries of the store's files, ascending."""
        way = f"start the server with eagle3 features --target {self.target.name} --store {self.store}"
        if not (self.store / CONTENTS).is_file():
            raise InputError(f"{self.store}: no {CONTENTS}, so nothing says what its files hold: {way}")
        said = read_json(self.store / CONTENTS)
        boundaries, hidden = said.get("boundaries"), said.get("hidden_size")
        if not isinstance(boundaries, list) or not all(type(k) is int for k in boundaries):
            raise InputError(f"{self.store / CONTENTS}: no list of boundaries: {way}")
        if hidden != self.target.hidden_size:
            raise InputError(
                f"{self.store}: features of width {hidden}, the target has {self.target.hidden_size}: {way}"
            )
        return boundaries

    def _features(self, answer: Answer) -> dict[str, Tensor]:
        """`aux_LF` and `final_RH` of one answer, asked for again while the server is away."""
        import httpx

        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._once(answer)
            except (httpx.TransportError, FileNotFoundError, SafetensorError) as error:
                if time.monotonic() > until:
                    raise CheckError(
                        f"{self.url}: no features of answer {answer.id} for {_PATIENCE_S:.0f} s ({type(error).__name__}: {error}); "
                        "what was saved is whole: when the server is back the same command goes on"
                    ) from None
                time.sleep(1.0)

    @torch.inference_mode()
    def _once(self, answer: Answer) -> dict[str, Tensor]:
        ids = answer.prompt_ids + answer.response_ids
        states_LKH = self._take(self._ask(ids), ids)
        norm = self.target.body.norm
        rows_RH = states_LKH[len(answer.prompt_ids) :, self.final].to(self.target.device, self.target.dtype)
        return {"aux_LF": states_LKH[:, self.columns].flatten(1).float(), "final_RH": norm(rows_RH).float()}

    def _ask(self, ids: tuple[int, ...]) -> Path:
        """Where the server writes what it found; a name in the store, whatever path it says."""
        if self._model is None:
            self._model = str(self._reply("GET", "/v1/models", None)["data"][0]["id"])
        asked = {"model": self._model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
        said = self._reply("POST", "/v1/completions", asked).get("kv_transfer_params")
        path = said.get("hidden_states_path") if isinstance(said, dict) else None
        if not isinstance(path, str):
            raise CheckError(f"{self.url}: its answer names no features: it was not started by eagle3 features")
        return self.store / Path(path).name

    def _reply(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        response = self.client.request(method, path, json=body)
        if response.status_code != 200:
            raise CheckError(f"{self.url}{path}: {response.status_code}: {response.text[:300]}")
        said: dict[str, Any] = response.json()
        return said

    def _take(self, path: Path, ids: tuple[int, ...]) -> Tensor:
        """The file's states [L, K, H], the file gone after. Waits for whoever writes it."""
        lock = path.with_name(f"{path.name}.lock")
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            found = load_file(path)
        path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        states: Tensor | None = found.get("hidden_states")
        tokens = found.get("token_ids")
        wanted = (len(ids), self.count, self.target.hidden_size)
        if states is None or tuple(states.shape) != wanted or tokens is None or tokens.tolist() != list(ids):
            raise CheckError(
                f"{path}: states of {wanted[0]} tokens at {self.count} boundaries of {wanted[2]} were asked for, there are "
                f"{None if states is None else tuple(states.shape)}: the store is not this server's, or its boundaries are others"
            )
        if not bool(states.isfinite().all()):
            raise CheckError(f"{self.url}: the target gives NaN or infinities; see the server's dtype")
        return states
