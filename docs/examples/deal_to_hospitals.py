"""Deal one labelled folder out to hospitals as a study's simulation does: a folder with a label sheet for each.

    python docs/examples/deal_to_hospitals.py configs/pneumonia-guangzhou-three.yaml DIR SCANS

A federation in which each hospital imports its folder then holds the very images, in the very splits, that
`fedward simulate STUDY --data DIR` gives its virtual ones, and where the sites' aliases are the same too
(site-1, site-2 …) its numbers are the simulation's. One difference: an import leaves out a picture that the hospital
has already, a simulation does not. Where there are such, give `--data` a folder of the hospitals' own directories, and
the study `partition: {kind: natural, column: site}`.
"""

import csv
import shutil
import sys
from pathlib import Path

from common.study import Study
from simulations.datasets import open_source
from simulations.partition import partition
from simulations.sites import cohort_of, labelled_items


def deal(study: Study, data: Path, out: Path) -> None:
    items = labelled_items(study, open_source(study, data))
    shards = partition(cohort_of(study, items), study.partition, study.data.split, study.class_names, study.seed)
    for shard in shards:
        folder = out / shard.site
        folder.mkdir(parents=True)
        rows = []
        for index, split in zip(shard.indices, shard.splits, strict=True):
            item = items[index]
            name = Path(item.key).name
            shutil.copy(data / item.key, folder / name)
            rows.append((name, "|".join(item.labels[study.data.label_column]), item.patient, split))
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as sheet:
            csv.writer(sheet).writerows([("file", "label", "patient", "split"), *rows])
        print(f"{folder}: {len(rows)} images")


if __name__ == "__main__":
    deal(Study.load(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
