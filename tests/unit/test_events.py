"""A run's events: whole lines, whatever ended the run before."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from common.errors import RunError
from server.events import EventLog, JsonLines


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_fact_is_one_line_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonLines.append_to(path)
    log = EventLog(sink, now=lambda: "2026-01-01T00:00:00.000+00:00")
    log.emit("round", arm="federated", round=1, note="é\nü")
    assert lines(path) == [
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "round", "arm": "federated", "round": 1, "note": "é\nü"}
    ]
    log.emit("finished")
    sink.close()
    assert [line["event"] for line in lines(path)] == ["round", "finished"]


@pytest.mark.parametrize("left", ["", '{"a":1}\n', '{"a":1}\n{"half', '{"half', '{"a":1}\n' + "x" * 200_000])
def test_half_a_line_that_a_kill_left_is_cut_off(left: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(left)
    sink = JsonLines.append_to(path)
    EventLog(sink).emit("resumed")
    sink.close()
    found = lines(path)
    assert found[-1]["event"] == "resumed"
    assert found[:-1] == ([{"a": 1}] if left.startswith('{"a"') else [])


def test_a_number_that_is_none_is_not_written_as_one(tmp_path: Path) -> None:
    sink = JsonLines.append_to(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        EventLog(sink).emit("round", loss=float("nan"))
    sink.close()
    assert (tmp_path / "events.jsonl").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as stream:
        sink = JsonLines(stream)
        with pytest.raises(RunError, match=r"events cannot be written: No space left on device; free some space"):
            EventLog(sink).emit("round")
        sink.close()


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"events\.jsonl cannot be written: "):
        JsonLines.append_to(tmp_path / "none" / "events.jsonl")


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonLines.append_to(path)
    log = EventLog(sink)
    threads = [
        threading.Thread(target=lambda n=n: [log.emit("x", thread=n, text="y" * 500) for _ in range(40)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    assert len(lines(path)) == 160
