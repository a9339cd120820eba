"""``epoch_stored.py SITE STUDY CAP_MB``: one epoch of training at a site whose view may take CAP_MB of memory.

Prints one JSON line: ``images``; ``kind`` of the view; CPU seconds to build it and of the epoch; and the process's peak
resident memory in MB ``before`` the vault is opened, with the ``view`` made, and after the ``epoch``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

from client.site import Site
from client.training import FitSeed, LocalFit
from client.vault.view import ViewCache
from common.memory import keep_freed_memory
from common.models import build
from common.study import Study


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(home: Path, study_file: Path, cap_mb: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    study = Study.load(study_file)
    model = build(study, 0).to(memory_format=torch.channels_last)
    before, start = peak_mb(), time.process_time()
    site = Site.open(home, ViewCache(cap_mb * 10**6))
    view = site.require(study, "train")
    made, ready = peak_mb(), time.process_time()
    LocalFit(model, view, study, FitSeed(study.seed, 0, "site", 1)).run()
    done = time.process_time()
    site.close()
    memory = {"before": before, "view": made, "epoch": peak_mb()}
    print(
        json.dumps(
            {
                "images": len(view),
                "kind": type(view).__name__,
                "view_cpu_s": ready - start,
                "epoch_cpu_s": done - ready,
                **memory,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
