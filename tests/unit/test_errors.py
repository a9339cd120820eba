"""Errors: one line each, a code of its own that may cross the network, an exit code that is not zero."""

from __future__ import annotations

from common import errors
from common.errors import FedwardError, RunError, one_line

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedwardError)]


def test_every_kind_has_a_code_of_its_own_and_fails() -> None:
    assert len(KINDS) > 10
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert 0 < kind.exit_code < 256
        assert kind.__doc__
        assert kind.code.replace("-", "").isalpha()


def test_an_error_is_one_line_whatever_it_names() -> None:
    error = RunError("runs/a\nb\x1b[31m\u2028: exists; choose another --out")
    assert str(error) == "runs/a\\nb\\x1b[31m\\u2028: exists; choose another --out"
    assert one_line("é … ü: 日本") == "é … ü: 日本"
