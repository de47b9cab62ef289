"""`DATASHEET.md`: the questions of Gebru et al., "Datasheets for Datasets" (2021), answered from facts alone.

What no file of the dataset says (why it was made, who maintains it) is listed as open: whoever publishes answers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from magc_data.schema.sample import TILE_SIZE_PX

if TYPE_CHECKING:
    from magc_data.metadata.facts import Facts, Span

_IMAGES = "Images of format jpg are the server's bytes; those of format png were resampled, or transcoded without loss."
_MAPS = (
    "No person labelled a picture. A class is painted where it covers a pixel's centre. OpenStreetMap is not complete "
    "everywhere: a pixel without a class means that nothing was mapped there, not that nothing is there."
)
_OPEN_QUESTIONS = (
    "For what purpose was the dataset made, by whom, and who paid for it?",
    "Which uses should it not be put to?",
    "Who maintains it, and where are errors reported?",
)


def datasheet(facts: Facts) -> str:
    """The datasheet as Markdown."""
    manifest = facts.manifest
    counts, gsd_m = manifest["counts"], manifest["gsd_m"]
    has_images = "imagery" in manifest["sources"]
    scheme_sha256 = manifest["config"].get("scheme", {}).get("sha256", "not stated")
    lines = [f"# Datasheet: {facts.title}", "", facts.description, "", "## Composition", ""]
    lines += [
        f"- Samples: {facts.samples}; each is {'an image, a class map' if has_images else 'a class map'} and a record.",
        f"- Size: {TILE_SIZE_PX} x {TILE_SIZE_PX} pixels of {facts.grid_words} ({facts.crs}) each.",
        "- Place (west, south, east, north): {:.6f}, {:.6f}, {:.6f}, {:.6f} degrees.".format(*facts.bounds_lonlat),
    ]
    if facts.samples:
        lines.append(
            f"- Metres on the ground a pixel: {gsd_m['min']:.4f} to {gsd_m['max']:.4f}, mean {facts.gsd_m_mean:.4f}."
        )
    if has_images:
        formats = ", ".join(f"{count} {name}" for name, count in facts.image_formats.items())
        lines.append(f"- Bytes: {facts.image_bytes} of images ({formats or 'none'}), {facts.map_bytes} of maps.")
    else:
        lines.append(f"- Bytes: {facts.map_bytes} of maps.")
    if facts.splits:
        sides = ", ".join(f"{name} {count}" for name, count in facts.splits.items())
        lines.append(f"- Splits: {sides}; {facts.left_out} samples belong to none.")
    else:
        lines.append("- Splits: none.")
    if where := manifest.get("view", {}).get("where"):
        lines.append(f"- Selected from a larger dataset by: {'; '.join(where)}.")
    lines += ["", "| class | id | share of the pixels |", "|---|---|---|"]
    lines += [
        f"| {each['name']} | {each['id']} | {facts.class_shares.get(each['name'], 0.0):.2%} |"
        for each in manifest["classes"]
    ]
    lines += ["", "## Collection", "", facts.sampling, ""]
    lines += [f"- Rejected, {reason}: {count}." for reason, count in counts["rejected"].items()]
    for role, source in manifest["sources"].items():
        version = f", version {source['version']}" if source.get("version") else ", no version stated"
        lines.append(f"- {role.capitalize()}: {source['name']}{version}.")
    if has_images:
        lines.append(f"- Pictures taken: {_span(facts.captured, facts.samples)}.")
    lines.append(f"- OpenStreetMap as of: {_span(facts.osm, facts.samples)}.")
    lines += [
        "",
        "## Preprocessing and labels",
        "",
        f"Maps were drawn from vector data with class scheme '{manifest['scheme']}' (sha256 {scheme_sha256}). {_MAPS}",
        "",
        *([_IMAGES, ""] if has_images else []),
        f"Made by magc {manifest['magc_version']}, dataset format {manifest['format_version']}.",
        "",
        "## Distribution",
        "",
    ]
    for role, source in manifest["sources"].items():
        may = "may be redistributed" if source["redistributable"] else "may not be redistributed without a licence"
        lines.append(f"- {role.capitalize()}: {source['licence']}; {source['attribution']}; {may}. {source['terms']}")
    lines += ["", "## Not recorded by the tool", "", *[f"- {question}" for question in _OPEN_QUESTIONS], ""]
    return "\n".join(lines)


def _span(span: Span, samples: int) -> str:
    if not span.samples:
        return "not stated by the source"
    when = str(span.first) if span.first == span.last else f"{span.first} to {span.last}"
    return when if span.samples == samples else f"{when} (stated for {span.samples} of {samples} samples)"
