"""Windows over a scene: they cover it, their weights add up to one, and none depends on what is asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magc_model.scene.budget import PROBED_STEPS, RateCurves, allocate, curves
from magc_model.scene.grid import WINDOW_OVERLAP_PX, WINDOW_STEP_PX, Axis, Window, blocks, padded

LENGTHS = st.integers(1, 60).map(lambda count: 64 * count)


@given(LENGTHS)
def test_weights_of_all_windows_add_up_to_one(length: int) -> None:
    axis, total = Axis(length), np.zeros(length)
    for number in range(axis.windows):
        start, stop = axis.span(number)
        assert start % 64 == 0
        assert stop % 64 == 0
        assert 0 < stop - start <= WINDOW_STEP_PX + WINDOW_OVERLAP_PX
        assert axis.windows == 1 or stop - start > WINDOW_OVERLAP_PX
        total[start:stop] += axis.weights(number)
    assert np.allclose(total, 1, atol=1e-6)


@given(LENGTHS, st.data())
def test_touching_windows_are_all_that_touch(length: int, data: st.DataObject) -> None:
    axis = Axis(length)
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    by_hand = [n for n in range(axis.windows) if axis.span(n)[0] < stop and axis.span(n)[1] > start]
    assert list(axis.touching(start, stop)) == by_hand


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([384, 512, 1024]))
def test_blocks_cover_each_pixel_once(width: int, height: int, side: int) -> None:
    window = Window(side - 7, 5, width, height)
    found = list(blocks(window, side))
    assert sum(each.width_px * each.height_px for each in found) == width * height
    for each in found:
        assert each.meets(window) == each
        assert each.x_px // side == (each.x_px + each.width_px - 1) // side  # within one square of the grid
        assert each.y_px // side == (each.y_px + each.height_px - 1) // side


def test_windows_meet_widen_and_count_from_each_other() -> None:
    one = Window(10, 20, 100, 50)
    assert one.meets(Window(0, 0, 60, 60)) == Window(10, 20, 50, 40)
    assert one.meets(Window(200, 0, 5, 5)).is_empty
    assert one.widened(15, Window(0, 0, 120, 100)) == Window(0, 5, 120, 80)
    assert one.within(Window(4, 5, 9, 9)) == Window(6, 15, 100, 50)
    assert [padded(each) for each in (1, 64, 65)] == [64, 64, 128]


# --- which chunk gets which rate --------------------------------------------------------------------------------------


def synthetic_curves(chunks: int, seed: int) -> RateCurves:
    """Exponential decay at rates and scales that differ by chunk."""
    random = np.random.default_rng(seed)
    steps = np.arange(256)
    bits = random.uniform(50, 5000, (chunks, 1)) * np.exp(steps / 255 * random.uniform(1, 3, (chunks, 1)))
    errors = random.uniform(1, 1000, (chunks, 1)) * np.exp(-steps / 255 * random.uniform(0.5, 3, (chunks, 1)))
    return RateCurves(bits, errors)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_spent_and_no_exchange_makes_it_better(seed: int) -> None:
    table = synthetic_curves(12, seed)
    rows = np.arange(12)
    budget = float(table.bits[:, 128].sum())
    steps = allocate(table, budget)
    spent, error = table.bits[rows, steps].sum(), table.squared_error[rows, steps].sum()
    assert 0.97 * budget <= spent <= budget
    assert error <= table.squared_error[:, 128].sum()  # one rate for all, at the same cost
    random = np.random.default_rng(seed)
    for _ in range(2000):
        other = np.clip(steps + random.integers(-3, 4, 12) * (random.random(12) < 0.3), 0, 255)
        if table.bits[rows, other].sum() <= spent:
            assert table.squared_error[rows, other].sum() >= error - 1e-6


def test_a_budget_below_the_smallest_gives_the_smallest() -> None:
    assert not allocate(synthetic_curves(3, 0), 1.0).any()


def test_curves_go_through_what_was_probed_and_are_monotone() -> None:
    table = synthetic_curves(4, 7)
    probes = np.stack([table.bits[:, PROBED_STEPS], table.squared_error[:, PROBED_STEPS]], axis=2)
    found = curves(probes)
    assert np.allclose(found.bits, table.bits, rtol=0.01)
    assert np.allclose(found.squared_error, table.squared_error, rtol=0.02, atol=0.02)
    assert (np.diff(found.bits) >= 0).all()
    assert (np.diff(found.squared_error) <= 0).all()
