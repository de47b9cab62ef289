"""How figures are written: one way in the page, the text and the plots."""

from magc_model.evaluate.bootstrap import Estimate
from magc_model.evaluate.measurement import CUT_PX, On
from magc_model.evaluate.results import MetricInfo

BYTES_A_TILE = CUT_PX**2 / 8
"""Of one bit a pixel."""

NONE = "–"

ON_WORDS = {On.TILES: "tiles", On.SCENES: "scenes"}


def number(value: float | None, decimals: int, signed: bool = False) -> str:
    """With a minus sign that is one; a dash where there is none."""
    if value is None:
        return NONE
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: Estimate, decimals: int, signed: bool = False) -> str:
    """Its two ends; empty where there are none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low, decimals, signed)} to {number(estimate.high, decimals, signed)}"


def bits(value: float | None) -> str:
    """Bits a pixel."""
    return NONE if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def bytes_a_tile(bpp: float | None) -> str:
    """The same in bytes of a tile of 256 px."""
    return NONE if bpp is None else f"{bpp * BYTES_A_TILE:,.0f}"


def seconds(value: float) -> str:
    """With as many digits as are worth it."""
    if value < 1:
        return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def heading(info: MetricInfo) -> str:
    """A metric above a column: its label, its unit, and which way is better."""
    unit = f", {info.unit}" if info.unit and info.unit not in info.label else ""
    return f"{info.label}{unit} {info.better.arrow}"


def count(number_of: int, one: str, many: str | None = None) -> str:
    """`1 scene`, `2 scenes`."""
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"
