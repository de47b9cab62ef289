"""Trees of image and map files, as the paper's code reads them.

    OUT/train/hr_256/KEY.jpg      the image's bytes (.png where the dataset has PNG)
    OUT/train/ref_256/KEY.png     the map's bytes: opened as RGB it has the class colours, opened as it is the class ids
    OUT/train/train_hr.txt        paths of the images, one a line, relative to OUT
    OUT/train/train_ref.txt       paths of the maps in the same order

Training reads the two lists, inference the two folders of a split by name; both pair image and map by position, so both
lists are sorted by key as the folders are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from magc_data.atomic import write_atomically

if TYPE_CHECKING:
    from magc_data.export.job import ExportJob, Side

IMAGES, MAPS = "hr_256", "ref_256"


def write_folders(job: ExportJob) -> None:
    """Write every side."""
    for side in job.sides:
        _write_side(job, side)


def _write_side(job: ExportJob, side: Side) -> None:
    names: dict[str, list[str]] = {IMAGES: [], MAPS: []}
    for folder in names:
        (job.folder / side.name / folder).mkdir(parents=True)
    for sample in job.samples(side):
        key = sample.row["key"]
        contents = {MAPS: (f"{key}.png", sample.semantic_map)}
        if sample.image is not None:
            contents[IMAGES] = (f"{key}.{sample.row['image_format']}", sample.image)
        for folder, (name, content) in contents.items():
            (job.folder / side.name / folder / name).write_bytes(content)
            names[folder].append(name)
        job.sample_done()
    for folder, suffix in ((IMAGES, "hr"), (MAPS, "ref")):
        paths = "".join(f"{side.name}/{folder}/{name}\n" for name in sorted(names[folder]))
        write_atomically(job.folder / side.name / f"{side.name}_{suffix}.txt", paths.encode())
