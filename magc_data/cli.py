"""`magc-data`: the command line. Answers go to stdout, everything else to stderr, errors as one plain sentence.

Exit codes: 0 done, 1 the job failed (or `verify` found something), 2 bad usage, 3 done, but `build --lock` found that
something has changed upstream, 130 interrupted.
Heavy modules are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from magc_data.command_line import new_app, run
from magc_data.config import BuildConfig, HealConfig, SplitConfig

app = new_app("magc-data", "Build, check and look at datasets of aligned aerial images and OpenStreetMap maps.")

Config = Annotated[BuildConfig, Parameter(name="*", negative="")]
SplitOptions = Annotated[SplitConfig, Parameter(name="*", negative="")]
Data = Annotated[Path, Parameter(help="Folder of a dataset.")]
Address = Annotated[Path | str, Parameter(help="Folder of a dataset, or an address (https://, s3:// ...).")]
"""For commands that only read."""
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the answer as JSON.")]
Quiet = Annotated[bool, Parameter(name="--quiet", negative="", help="No progress bar.")]


EXIT_CHANGED = 3


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")


def _answer_json(document: dict[str, Any]) -> None:
    _answer(json.dumps(document, indent=2, ensure_ascii=False))


@app.command
def plan(config: Config | None = None, *, as_json: Json = False) -> int:
    """Say what a build would fetch: tiles, bytes, hours, resolution, licence. Fetches no imagery."""
    from magc_data import plan as planning

    figures = planning.plan(config or BuildConfig())
    if as_json:
        _answer_json(planning.as_json(figures))
    else:
        _answer(planning.as_text(figures))
    return 0


@app.command
def build(config: Config | None = None, *, as_json: Json = False, quiet: Quiet = False) -> int:
    """Build a dataset of aligned image/map pairs. Running the same command again continues where it stopped."""
    from magc_data import build as building
    from magc_data.shards.capture_counts import captures_as_text

    config = config or BuildConfig()
    if config.task is not None:
        return _build_task(config, as_json=as_json, quiet=quiet)
    if config.lock is not None:
        return _rebuild(config, config.lock, as_json=as_json, quiet=quiet)
    if config.changes:
        return _build_changes(config, as_json=as_json, quiet=quiet)
    result = building.build(config, _say, quiet=quiet)
    counts = result.manifest["counts"]
    if as_json:
        _answer_json({"out": str(config.out), "was_complete": result.was_complete, **counts})
        return 0
    if result.was_complete:
        _answer(f"{config.out} is complete already ({counts['kept']} samples): nothing to do")
        return 0
    rejected = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items()) or "none"
    _answer(f"{config.out}: {counts['kept']} of {counts['planned']} tiles kept (rejected: {rejected})")
    if counts["transient"]:
        _answer(f"{counts['transient']} of the rejected may come yet: run the same command again to try them once more")
        _answer(f"the first: {_first_transient(config.out)}")
    for line in captures_as_text(result.manifest):
        _answer(line)
    # Nothing kept although something may come: a script must not take this for a dataset.
    return 1 if counts["transient"] and not counts["kept"] else 0


def _build_changes(config: BuildConfig, *, as_json: bool, quiet: bool) -> int:
    from magc_data import changes

    result = changes.build_changes(config, _say, quiet=quiet)
    counts = result.document["counts"]
    if as_json:
        _answer_json({"out": str(config.out), "was_complete": result.was_complete, **counts})
    else:
        _answer(changes.as_text(result, config.out))
    return 1 if counts["transient"] and not counts["kept"] else 0


def _rebuild(config: BuildConfig, lock: Path, *, as_json: bool, quiet: bool) -> int:
    """`build --lock`: exit code 3 if something has changed since the lock was made."""
    from magc_data import rebuild
    from magc_data.shards.capture_counts import captures_as_text

    result = rebuild.rebuild(config, lock, _say, quiet=quiet)
    comparison = result.comparison
    if as_json:
        _answer_json({"out": str(config.out), "is_same": comparison.is_same, **rebuild.as_json(comparison)})
    else:
        _answer(rebuild.as_text(comparison, config.out))
        for line in captures_as_text(result.built.manifest):
            _answer(line)
    return 0 if comparison.is_same else EXIT_CHANGED


def _build_task(config: BuildConfig, *, as_json: bool, quiet: bool) -> int:
    """`build --task I/N`: a part of the blocks, and no dataset yet."""
    from magc_data.array_job import build_task

    result = build_task(config, _say, quiet=quiet)
    if as_json:
        _answer_json({"out": str(config.out), "task": config.task, **result._asdict()})
        return 0
    _answer(
        f"task {config.task}: {result.made} blocks made, {result.own - result.made} of its {result.own} were there; "
        f"{result.finished} of the dataset's {result.blocks} are finished"
    )
    _answer("when all tasks are done, the same command without --task does what is left and publishes the dataset")
    return 0


def _first_transient(data: Path | str) -> str:
    """One rejection that the next run would try again, in words."""
    from magc_data.shards.folder import REJECTED_NAME
    from magc_data.shards.index import read_table
    from magc_data.shards.storage import location

    table = read_table(location(data) / REJECTED_NAME, ["key", "reason", "detail", "transient"])
    row = next(row for row in table.to_pylist() if row["transient"])
    return f"{row['key']} {row['reason']} ({row['detail']})"


@app.command
def info(data: Address, *, as_json: Json = False) -> int:
    """Say what a dataset is: place, sources, licences, counts."""
    from magc_data.ground_grid import grid_text
    from magc_data.shards.capture_counts import captures_as_text
    from magc_data.shards.manifest import read_manifest
    from magc_data.shards.storage import location

    manifest = read_manifest(data)
    if as_json:
        _answer_json(manifest)
        return 0
    counts, gsd_m = manifest["counts"], manifest["gsd_m"]
    resolution = f"{gsd_m['min']:.4f} to {gsd_m['max']:.4f} m/px" if counts["kept"] else "no samples"
    _answer(f"{data}: {counts['kept']} samples of {counts['planned']} planned, in {len(manifest['shards'])} shards")
    if view := manifest.get("view"):
        _answer(f"view of      {view['folder']}")
        for where in view["where"]:
            _answer(f"where        {where}")
    _answer(
        f"area         {', '.join(f'{value:.5f}' for value in manifest['bounds_lonlat'])} (west, south, east, north)"
    )
    _answer(f"resolution   {grid_text(manifest)}, {resolution} on the ground")
    folder = location(view["folder"] if view else data)
    for role, source in manifest["sources"].items():
        _answer(f"{role:<12} {source['name']} ({source['licence']}; {source['attribution']})")
        if not source["redistributable"]:
            _answer(f"{'':<12} not to be redistributed: see {folder / 'ATTRIBUTION.md'}")
    for line in captures_as_text(manifest):
        _answer(f"captured     {line}")
    _answer(f"scheme       {manifest['scheme']}: {', '.join(each['name'] for each in manifest['classes'])}")
    _answer(f"made by      magc {manifest['magc_version']}, format {manifest['format_version']}")
    return 0


@app.command
def verify(data: Address, *, as_json: Json = False, quiet: Quiet = False) -> int:
    """Check every digest, size, key, picture and pixel grid of a dataset; exit code 1 if anything is wrong."""
    from magc_data import verify as verification
    from magc_data.progress import Progress
    from magc_data.shards.manifest import read_manifest
    from magc_data.shards.view_file import resolve

    # Of a view, the whole dataset that it is of is checked, be its index as it may.
    kept = read_manifest(str(resolve(data).folder))["counts"]["kept"]
    with Progress(kept, "verify", quiet=quiet or as_json) as progress:
        result = verification.verify(data, progress)
    if as_json:
        _answer_json(result._asdict())
    else:
        for finding in result.findings:
            _answer(finding)
        verdict = f"{len(result.findings)} findings" if result.findings else "everything is as it should be"
        _answer(f"{data}: {result.samples} samples in {result.shards} shards checked, {verdict}")
        if result.findings and isinstance(data, Path):
            _say(f"`magc-data heal {data}` makes damaged parts again from the cache or the sources")
    return 1 if result.findings else 0


@app.command
def split(data: Data, config: SplitOptions | None = None, *, as_json: Json = False, quiet: Quiet = False) -> int:
    """Divide a dataset into train, val and test by squares of ground, with a certificate of what that kept apart."""
    from magc_data import split as splitting

    config = config or SplitConfig()
    if config.undo:
        undone = splitting.undo(data, quiet=quiet or as_json)
        if as_json:
            _answer_json({"undone": undone})
        else:
            _answer(f"{data}: " + ("block shards as before the split" if undone else "not split, nothing to undo"))
        return 0
    result = splitting.split(data, config, quiet=quiet or as_json)
    if as_json:
        _answer_json({"was_split": result.was_split, **result.certificate})
    else:
        _answer(splitting.as_text(config.out or data, result))
    return 0


@app.command
def heal(
    data: Data,
    *,
    imagery: Annotated[
        str | None, Parameter(help="Where the imagery is today, if not where dataset.json says.")
    ] = None,
    osm: Annotated[str | None, Parameter(help="Where the vectors are today, if not where dataset.json says.")] = None,
    scheme: Annotated[str | None, Parameter(help="The class scheme's YAML file, if it was your own.")] = None,
    water_polygons: Annotated[
        str | None, Parameter(help="Where the water polygons are today, if the dataset was built with some.")
    ] = None,
    rate: Annotated[float | None, Parameter(help="Requests a second to an imagery host, at most (default 8).")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Make damaged parts of a dataset again from the cache or the sources; exit code 1 if anything is left wrong."""
    from magc_data.heal import heal as repair
    from magc_data.progress import Progress
    from magc_data.shards.manifest import read_manifest
    from magc_data.shards.view_file import follow_views

    config = HealConfig(data=data, imagery=imagery, osm=osm, scheme=scheme, water_polygons=water_polygons, rate=rate)
    kept = read_manifest(follow_views(data)[0])["counts"]["kept"]
    with Progress(kept, "verify", quiet=quiet or as_json) as progress:
        result = repair(config, progress)
    findings = result.verification.findings
    if as_json:
        _answer_json({**result._asdict(), "verification": result.verification._asdict()})
        return 1 if findings else 0
    for name in result.rewritten:
        _answer(f"{name} was made anew")
    for sentence in result.not_healed:
        _answer(f"not healed: {sentence}")
    for finding in findings:
        _answer(f"still wrong: {finding}")
    verdict = f"{len(findings)} findings are left" if findings else "everything is as it should be"
    _answer(f"{data}: {len(result.rewritten)} files and {result.members_recovered} members made anew, {verdict}")
    return 1 if findings else 0


@app.command
def stats(data: Address, *, as_json: Json = False) -> int:
    """Show class shares, counts, ground resolution and why tiles were rejected."""
    from magc_data import stats as statistics

    figures = statistics.statistics(data)
    if as_json:
        _answer_json(statistics.as_json(figures))
    else:
        _answer(statistics.as_text(figures))
    return 0


@app.command(name="filter")
def filter_(
    data: Data,
    *,
    where: Annotated[
        str,
        Parameter(help="Condition on the index's columns, e.g. 'alignment>0.2 and building>0.01' (docs/reading.md)."),
    ],
    out: Annotated[Path, Parameter(help="Folder for the view.")],
    as_json: Json = False,
) -> int:
    """Make a view: a folder that stands for the samples that a condition is true of. Copies nothing."""
    from magc_data.view import make_view

    result = make_view(data, where, out)
    if as_json:
        _answer_json({"out": str(out), **result._asdict()})
    else:
        _answer(f"{out}: {result.kept} of {result.total} samples of {data}")
    return 0


@app.command
def preview(
    data: Address,
    *,
    out: Annotated[Path, Parameter(help="PNG file to write.")] = Path("preview.png"),
    count: Annotated[int, Parameter(help="Samples to show, at most.")] = 8,
    coverage: Annotated[bool, Parameter(negative="", help="Show where the tiles lie, coloured by split.")] = False,
) -> int:
    """Draw a contact sheet: image, map and overlay of samples from all over the dataset."""
    from magc_data.coverage import coverage_picture
    from magc_data.errors import UsageError
    from magc_data.preview import contact_sheet

    if coverage:
        _answer(f"{out}: {coverage_picture(data, out)} tiles")
        return 0

    if not 1 <= count <= 200:
        raise UsageError(f"--count is {count}: expected 1 to 200")
    shown = contact_sheet(data, out, count)
    _answer(f"{out}: {shown} samples")
    return 0


@app.command
def export(
    data: Address,
    *,
    format_name: Annotated[
        str, Parameter(name="--format", help="folders, huggingface, geotiff, coco or recipe (docs/exports.md).")
    ],
    out: Annotated[Path, Parameter(help="Folder to write; it must be new or empty.")],
    split: Annotated[str | None, Parameter(help="Only this split; without it all, each on its own.")] = None,
    i_hold_a_licence: Annotated[
        bool, Parameter(negative="", help="Export pixels of a source that forbids it; the export records this.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write a dataset, view or split in another form: for the paper's code, other libraries, GIS, or as a recipe."""
    from magc_data.export.job import export as write_export

    result = write_export(data, format_name, out, split, holds_licence=i_hold_a_licence, quiet=quiet or as_json)
    if as_json:
        _answer_json({"out": str(out), "format": format_name, **result._asdict()})
        return 0
    sides = ", ".join(f"{name} {count}" for name, count in result.samples.items())
    left_out = f"; {result.left_out} samples that belong to no split were left out" if result.left_out else ""
    _answer(f"{out}: {sum(result.samples.values())} samples as {format_name} ({sides}){left_out}")
    return 0


@app.command
def metadata(data: Data) -> int:
    """Write croissant.json, collection.json and DATASHEET.md again from what the dataset holds now."""
    from magc_data.errors import UsageError
    from magc_data.shards.describe import write_metadata
    from magc_data.shards.manifest import read_manifest

    manifest = read_manifest(data)
    if "view" in manifest:
        raise UsageError(f"{data} is a view and has no metadata of its own: give the dataset that it is a view of")
    write_metadata(data, manifest)
    _answer(f"{data}: metadata written")
    return 0


@app.command
def diff(
    before: Address,
    after: Address,
    *,
    as_json: Json = False,
    out: Annotated[Path | None, Parameter(help="PNG file for a sheet of what changed: tiles before and after.")] = None,
    count: Annotated[int, Parameter(help="Tiles on the sheet, at most.")] = 12,
    quiet: Quiet = False,
) -> int:
    """Say what changed between two datasets of one place: tiles, images, maps by class."""
    from magc_data import diff as comparison
    from magc_data.diff_picture import difference_sheet
    from magc_data.errors import UsageError
    from magc_data.progress import Progress
    from magc_data.shards.manifest import read_manifest

    if not 1 <= count <= 200:
        raise UsageError(f"--count is {count}: expected 1 to 200")
    with Progress(read_manifest(before)["counts"]["kept"], "diff", quiet=quiet or as_json) as progress:
        found = comparison.difference(before, after, progress)
    if as_json:
        _answer_json(comparison.as_json(found))
    else:
        _answer(comparison.as_text(found))
    if out is not None:
        shown = difference_sheet(found, out, count)
        _say(f"{out}: {shown} tiles")
    return 0


@app.command
def explore(
    data: Data,
    *,
    out: Annotated[Path | None, Parameter(help="HTML file to write (default: explore.html).")] = None,
    pictures_mb: Annotated[int | None, Parameter(help="Pictures that the file may hold, in MB (default: 64).")] = None,
    serve: Annotated[bool, Parameter(negative="", help="Serve the page on this machine instead.")] = False,
    port: Annotated[int | None, Parameter(help="Port of --serve (default: 8765; 0: any free one).")] = None,
    quiet: Quiet = False,
) -> int:
    """Look at a dataset in a browser: a page without network, or one served on 127.0.0.1 that shows every picture."""
    from magc_data.explore.commands import serve_dataset, write_dataset_page

    if serve:
        return serve_dataset(data, port, _answer, unused={"--out": out, "--pictures-mb": pictures_mb})
    return write_dataset_page(data, out, pictures_mb, _say, _answer, quiet=quiet, unused={"--port": port})


@app.command
def scheme(name: Annotated[str, Parameter(help="default, basic or sgdm.")] = "default") -> int:
    """Print a built-in class scheme as YAML, to start one's own from."""
    from magc_data.errors import UsageError
    from magc_data.schema.classes import BUILT_IN_SCHEMES, scheme_text

    if name not in BUILT_IN_SCHEMES:
        raise UsageError(f"scheme '{name}' is not built in: expected one of {', '.join(BUILT_IN_SCHEMES)}")
    sys.stdout.write(scheme_text(name))
    return 0


@app.command
def sources() -> int:
    """List the imagery and vector sources that this installation knows."""
    from magc_data.sources.registry import source_names

    for role, names in source_names().items():
        _answer(f"{role:<9} {', '.join(names)}")
    return 0


def normalise_bbox(arguments: list[str]) -> list[str]:
    """Let `--bbox W,S,E,N`, `--bbox=W,S,E,N` and `--bbox W S E N` all mean the same, negative numbers included."""
    result: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name != "--bbox":
            result.append(argument)
            continue
        if equals:
            rest.insert(0, value)
        values: list[str] = []
        while rest and len(values) < 4 and not rest[0].startswith("--"):
            values += [part for part in re.split(r"[,\s]+", rest.pop(0)) if part]
        result += ["--bbox", *values]
    return result


def join_extracts(arguments: list[str]) -> list[str]:
    """Let `--osm A --osm B` mean `--osm A,B`."""
    result: list[str] = []
    values: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name != "--osm" or not (equals or rest):
            result.append(argument)
            continue
        values.append(value if equals else rest.pop(0))
        if len(values) == 1:
            result += ["--osm", ""]
    if values:
        result[result.index("--osm") + 1] = ",".join(values)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, turn every expected failure into a sentence and an exit code."""
    run(app, join_extracts(normalise_bbox(sys.argv[1:] if arguments is None else arguments)), "magc-data")
