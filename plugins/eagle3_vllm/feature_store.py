"""vLLM's own writer of hidden states (`extract_hidden_states`) where there is no CUDA: the same files and locks.

vLLM loads it by name, `kv_connector_module_path` of `--kv-transfer-config`; `eagle3 features` says it. On a GPU vLLM's own is used.
"""

from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
    extract_from_kv_cache,
)


class _Copied:
    """In the place of a CUDA event: the copy was made before this one was."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


class CpuHiddenStatesConnector(ExampleHiddenStatesConnector):
    """The copy to host memory, which is all that vLLM's does on a CUDA stream, is made at once."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        if not self._is_tp_rank_zero:
            return
        blocks_N = torch.tensor(pending.block_ids, dtype=torch.long)
        slots = (blocks_N[:, None] * self._block_size + torch.arange(self._block_size)).flatten()
        states_LKH = extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids)).clone()
        tensors = {"hidden_states": states_LKH, "token_ids": pending.token_ids.clone()}
        lock = self._lock_fds.pop(pending.req_id, None)
        written: Future[Any] = self._executor.submit(self._write_tensors, tensors, _Copied(), pending.filename, lock)
        self._req_copy_events[pending.req_id] = _Copied()
        self._req_futures[pending.req_id] = written
        written.add_done_callback(partial(self._on_write_done, pending.req_id))
