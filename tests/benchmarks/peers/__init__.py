"""Other frameworks, each in a venv of its own, made on demand and kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from measuring import Failed

ENVIRONMENT = {
    "RAY_DISABLE_METRICS_COLLECTION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


@dataclass(frozen=True)
class Peer:
    """``requirements`` go beside the torch that fedward itself has; ``script`` does the work."""

    name: str
    package: str
    requirements: tuple[str, ...]
    script: str


PEERS = (
    Peer("Flower + Ray, 2 actors", "flwr", ("flwr[simulation]>=1.41,<1.42",), "flower_ray.py"),
    Peer("NVFlare simulator, 2 threads", "nvflare", ("nvflare[PT]>=2.6",), "nvflare_sim.py"),
)


def cache() -> Path:
    """``FEDWARD_BENCH_CACHE``, or the user's cache folder."""
    named = os.environ.get("FEDWARD_BENCH_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "fedward-bench"


def install(peer: Peer) -> Path:
    """The peer's Python. Raises :class:`Failed` where it cannot be installed."""
    home = cache() / peer.package
    python = home / "bin" / "python"
    ready = home / ".ready"
    wanted = [f"torch=={metadata.version('torch')}", f"numpy=={metadata.version('numpy')}", *peer.requirements]
    if ready.exists() and ready.read_text() == "\n".join(wanted):
        return python
    uv = str(Path(sys.executable).with_name("uv"))
    _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home))
    _run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *wanted)
    ready.write_text("\n".join(wanted))
    return python


def version(python: Path, peer: Peer) -> str:
    code = f"from importlib import metadata; print(metadata.version('{peer.package}'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return f"{peer.package} {done.stdout.strip()}"


def _run(*command: str) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise Failed(f"cannot be installed: {said[-1] if said else type(error).__name__}") from None
