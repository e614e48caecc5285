"""Counts on their way from a worker to the endpoint."""

from pathlib import Path

import pytest
import torch
from eagle3_vllm.metrics import FOLDER, Tally, TreeCollector

from eagle3_serving.tree import PADDING


@pytest.fixture
def tally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tally:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return Tally(torch.device("cpu"))


def samples(folder: Path) -> dict[str, float]:
    found = [sample for family in TreeCollector(folder).collect() for sample in family.samples]
    return {"".join([s.name, *s.labels.values()]): s.value for s in found}


def test_padding_is_not_counted_and_a_request_that_does_not_draft_is_no_draft(tally: Tally, tmp_path: Path) -> None:
    tally.sums[:3] += torch.tensor([1, 2, 2])  # by the kernel that accepts
    tally.report_draft(torch.tensor([[-1, 0, PADDING], [PADDING] * 3]), torch.tensor([True, False]))
    tally.write()
    found = samples(tmp_path)
    assert found["vllm:eagle3_verify_passes_total"] == 1
    assert found["vllm:eagle3_nodes_verified_total"] == 2
    assert found["vllm:eagle3_tokens_accepted_total"] == 2
    assert found["vllm:eagle3_accepted_length"] == 3.0
    assert found["vllm:eagle3_drafts_total"] == 1 and found["vllm:eagle3_nodes_budgeted_total"] == 2


def test_workers_add_up_and_fallbacks_have_their_reasons(tally: Tally, tmp_path: Path) -> None:
    tally.report_fallback("request", "grammar")
    tally.report_fallback("request", "grammar")
    tally.write()
    (tmp_path / "1.json").write_text((tmp_path / tally.file.name).read_text())  # type: ignore[union-attr]
    assert samples(tmp_path)["vllm:eagle3_fallbacks_totalrequestgrammar"] == 4


def test_ranks_that_count_the_same_are_counted_once(tally: Tally, tmp_path: Path) -> None:
    second = Tally(torch.device("cpu"), writes=False)
    second.sums[:3] += 1
    for one in (tally, second):
        one.write()
    assert [path.name for path in tmp_path.iterdir()] == [tally.file.name]  # type: ignore[union-attr]
    assert samples(tmp_path)["vllm:eagle3_verify_passes_total"] == 0


def test_a_damaged_file_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "7.json").write_text("{")
    assert samples(tmp_path)["vllm:eagle3_accepted_length"] == 1.0


def test_a_folder_that_is_gone_stops_no_worker(tally: Tally) -> None:
    assert tally.file is not None
    tally.file = tally.file.parent / "gone" / "1.json"
    tally.write()
