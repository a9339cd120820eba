"""What every test shares: one thread, no telemetry, fixtures for what may be missing, Hypothesis profiles."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

# Before torch, ray or flwr is imported anywhere: these are read once, at import.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "MPLBACKEND": "Agg",
}.items():
    os.environ[_name] = _value

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# A shell starts background jobs with Ctrl-C ignored, and nohup ignores hang-ups; every process below inherits
# that, and the tests send these signals.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("FEDWARD_CI") == "1"
"""Set by ``.ci/run``, which installs the services that tests need: there a missing one is a failure."""
SOAK = os.environ.get("FEDWARD_SOAK") == "1"
"""Set by ``make soak``: full matrices instead of seeded samples."""

# Two busy cores make any deadline, and "too slow", a matter of luck.
settings.register_profile(
    "dev", deadline=None, max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.register_profile("soak", parent=settings.get_profile("dev"), max_examples=5000)
settings.load_profile("soak" if SOAK else "ci" if IN_CI else "dev")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first, slow ones last; GPU tests only where a GPU is, the full matrices only in ``make soak``."""
    left_out = {item for item in items if item.get_closest_marker("soak")} if not SOAK else set()
    gpu = {item for item in items if item.get_closest_marker("gpu")}
    if gpu and not _cuda_is_available():
        left_out |= gpu
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``.ci/run`` a skip is a failure, except for the folder of real images when it is absent."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "shared" not in reason:
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid}: skipped where nothing may be missing: {reason}"
    return report


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """A test that changes torch's thread count changes it for itself only."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _flower_home() -> Iterator[None]:
    """Flower's configuration and local federation in a folder of their own, never in the user's home."""
    with tempfile.TemporaryDirectory(prefix="fedward-flwr-", ignore_cleanup_errors=True) as home:
        os.environ["FLWR_HOME"] = home
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and papers beside the repository, or where FEDWARD_SHARED says."""
    path = Path(os.environ.get("FEDWARD_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no ../shared beside the repository, and FEDWARD_SHARED names none")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that can run headless."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    if IN_CI:
        pytest.fail("Chromium is missing; .ci/run should have installed it")
    pytest.skip("Chromium is not installed: apt-get install chromium")
