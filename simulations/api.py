"""``simulate`` from Python: the command's twin for notebooks and scripts."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.errors import RunError, StudyError
from common.study import Study

if TYPE_CHECKING:
    from simulations.outcome import Simulation

_GUARD = (
    "with workers > 1 each worker process reads this script again; put the call under "
    '`if __name__ == "__main__":` (or into a function called there), or use workers=1'
)


def simulate(
    study: Study | Mapping[str, Any] | Path | str,
    data: Path | str | Sequence[Path | str] | None = None,
    *,
    out: Path | str | None = None,
    arms: Sequence[str] | None = None,
    repeats: int = 1,
    workers: int = 1,
    threads: int = 1,
    device: str = "cpu",
    engine: Literal["inprocess", "ray"] = "inprocess",
    quiet: bool = False,
) -> Simulation:
    """Play a whole federation on this machine; what ``fedward simulate`` does, and the same numbers.

    ``study``: a :class:`~common.study.Study`, a study file's path, a mapping of its keys, or its
    YAML text (a text with line breaks, or one that begins with ``{``). ``data``: a path that
    :func:`simulations.datasets.open_source` recognises, a list of such paths (each may be ``NAME=PATH``), or ``None``
    for phantoms. ``out``: the run's folder, by default ``runs/<time>-<study>``. ``arms``: by default all that the
    study has. The other arguments are the command's options; ``quiet`` prints no progress.

    Works where an event loop runs (Jupyter). With ``workers`` above 1, a *script* must call it
    under ``if __name__ == "__main__":``; a notebook need not. Torch's number of threads is put back
    afterwards. Interrupting a run keeps its finished rounds: ``fedward simulate --resume RUN``
    continues it, :meth:`Simulation.open` then shows it.

    Raises the :class:`~common.errors.FedwardError` that the command would print.
    """
    _refuse_second_reading(workers)
    # This is the front door here, as fedward.py is for the command; before anything imports Flower.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from simulations.environment import Stopwatch

    stopwatch = Stopwatch(whole_process=False)
    if engine not in ("inprocess", "ray"):
        raise StudyError(f"engine: unknown engine {engine!r}; known: inprocess, ray")
    for name, value in (("repeats", repeats), ("workers", workers), ("threads", threads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RunError(f"{name} must be a whole number ≥ 1, got {value!r}")
    found, where = read_study(study)
    from simulations.arms import arms_of, check_arms
    from simulations.cli import check_device, check_parts, parse_arms  # and torch, Flower: not before a study is good
    from simulations.datasets import open_source
    from simulations.outcome import Simulation
    from simulations.progress import choose_progress
    from simulations.run import Plan, Run, default_out

    check_parts(found, where)
    named = arms if isinstance(arms, str | None) else ",".join(map(str, arms))
    chosen = arms_of(found) if named is None else parse_arms(named)
    check_arms(found, chosen)
    plan = Plan(chosen, repeats, engine, workers, threads, check_device(device), str(where.parent))
    source = open_source(found, _paths(data))
    target = default_out(found, _now) if out is None else Path(out).expanduser()
    with _threads_put_back():
        run = Run.start(found, plan, source, target, stopwatch)
        if quiet:
            run.execute()
        else:
            progress = choose_progress(as_json=False)
            try:
                run.execute(progress)
            finally:
                progress.close()
    return Simulation.open(run.folder.path)


def _paths(data: Path | str | Sequence[Path | str] | None) -> Path | list[Path] | None:
    if data is None:
        return None
    if isinstance(data, str | Path):
        return Path(data).expanduser()
    return [Path(one).expanduser() for one in data]


def read_study(study: Study | Mapping[str, Any] | Path | str) -> tuple[Study, Path]:
    """The study, and its file: what errors name, and what a relative ``model.weights`` lies beside.

    Without a file it is called ``study`` and lies in the working directory.

    Raises :class:`StudyError`.
    """
    if isinstance(study, Study):
        return study, Path("study")
    if isinstance(study, Mapping):
        try:
            text = json.dumps(dict(study), default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise StudyError(f"study: not plain data ({error}); give texts, numbers, lists and mappings") from None
        return Study.parse(text), Path("study")
    if isinstance(study, str) and ("\n" in study or study.lstrip().startswith("{")):
        return Study.parse(study), Path("study")
    if isinstance(study, str | Path):
        path = Path(study).expanduser()
        return Study.load(path), path
    raise StudyError(f"study: a {type(study).__name__}; give a Study, a study file's path, a mapping or YAML text")


def _plain(value: Any) -> Any:
    """What a mapping made in Python may hold beside JSON's own: parts of a study, NumPy's numbers, paths, dates."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if hasattr(value, "item") else str(value)


def _now() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")


@contextmanager
def _threads_put_back() -> Iterator[None]:
    """The engine sets torch's threads for reproducible sums; a notebook goes on with its own."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_second_reading(workers: int) -> None:
    """Raise where this call is, or would lead to, a worker's reading of an unguarded script.

    ``multiprocessing`` starts workers afresh and has each import the main script first, so that
    a call at its top level would simulate again in every worker.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RunError(_GUARD)
    if workers > 1 and _called_at_top_level():
        raise RunError(_GUARD)


def _called_at_top_level() -> bool:
    """Whether the main script's own file is on the stack outside ``if __name__ …``.

    A notebook's or a prompt's ``__main__`` has no file and is not read again.
    """
    main = vars(sys.modules["__main__"])
    frame = sys._getframe()
    while frame.f_back is not None and not (frame.f_code.co_name == "<module>" and frame.f_globals is main):
        frame = frame.f_back
    if frame.f_globals is not main or not main.get("__file__"):
        return False
    try:
        script = ast.parse(Path(frame.f_code.co_filename).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False  # not to be read: then the worker says it, see above
    line = frame.f_lineno
    return not any(
        isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or line) and _tests_name(node.test)
        for node in ast.walk(script)
    )


def _tests_name(test: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))
