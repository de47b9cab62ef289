"""The report in a paragraph."""

from collections.abc import Iterator

from magc_model.evaluate.curves import Method
from magc_model.evaluate.measurement import On
from magc_model.evaluate.report.wording import ON_WORDS, bits, count, interval, number
from magc_model.evaluate.results import Results

SAID = ("lpips", "dists", "fid", "patch-frechet-rand", "musiq", "map-consistency", "psnr-y")
"""Metrics of the summary, where they were measured."""


def summary(results: Results) -> tuple[str, ...]:
    """Its sentences, in plain text."""
    return tuple(_sentences(results))


def _sentences(results: Results) -> Iterator[str]:
    subject, *others = results.codecs
    grounds = []
    for on in results.measured_on():
        point = next(each for each in results.points if each.on is on)
        if on is On.TILES:
            grounds.append(count(point.items, "tile"))
        else:
            grounds.append(f"{count(point.items, 'scene')} ({count(point.cuts, 'cut')} of 256 px)")
    rates = len({(each.codec, each.rate) for each in results.points})
    among = f"{subject.label} and {count(len(others), 'other codec')}" if others else subject.label
    were = "were" if others else "was"
    yield (
        f"{among} {were} measured at {rates} settings in all on {' and '.join(grounds)}, by "
        f"{count(len(results.metrics), 'metric')}; rates are of the bytes of whole files."
    )
    if results.anchor and subject.name != results.anchor:
        for on in results.measured_on():
            yield _against_anchor(results, on)
    if results.missing:
        labels = ", ".join(each.label for each in results.missing)
        yield f"Not to be had here: {labels}; the reasons and the ways out are below."


def _against_anchor(results: Results, on: On) -> str:
    subject, anchor = results.codecs[0], results.codec(results.anchor or "")
    infos = {each.name: each for each in results.metrics}
    said: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    refused, overlap = None, None
    measured = [name for name in SAID if name in infos] or [each.name for each in results.metrics if each.better.sign]
    for name in measured:
        for each in results.bjontegaard:
            if (each.on, each.metric, each.codec) != (on, name, subject.name):
                continue
            fit = next(one for one in each.metric_deltas if one.method is Method.CUBIC)
            if fit.delta is None:
                refused = refused or fit.refused
                continue
            info = infos[name]
            overlap = overlap or fit.overlap
            unit = " dB" if info.unit == "dB" else ""
            figure = f"{number(fit.delta.value, info.decimals, signed=True)}{unit}"
            around = interval(fit.delta, info.decimals, signed=True)
            judged = _judged(fit.delta.low, fit.delta.high, info.better.sign)
            said[judged].append(f"{info.label} {figure}{f' ({around})' if around else ''}")
    if not any(said.values()):
        reason = refused or "no metric was measured on both"
        return f"On {ON_WORDS[on]} {subject.label} cannot be compared with {anchor.label}: {reason}."
    over = f" over {bits(overlap.low)} to {bits(overlap.high)} bits a pixel" if overlap else ""
    words = "; ".join(f"{judged} in {', '.join(each)}" for judged, each in said.items() if each)
    return f"Against {anchor.label} on {ON_WORDS[on]}, on average{over}, {subject.label} is {words}."


def _judged(low: float | None, high: float | None, sign: int) -> str:
    if low is None or high is None or not sign or low <= 0 <= high:
        return "undecided"
    return "better" if sign * low > 0 else "worse"
