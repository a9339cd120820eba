"""Freed memory is kept: the same blocks serve every batch."""

from __future__ import annotations

import platform
import sys

import pytest

from common.memory import keep_freed_memory


def test_the_gnu_allocator_listens() -> None:
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()
        return
    assert keep_freed_memory()
    assert keep_freed_memory()  # asking twice is harmless: every process of a pool does


def test_elsewhere_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
