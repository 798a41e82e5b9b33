"""Turns and the arithmetic of rates, by a clock that only the steps move."""

import pytest

from resnext_jax.analysis import timing


@pytest.fixture
def contender(monkeypatch):
    """Makes contenders of so many seconds a step; notes the calls; a call may be disturbed by two seconds."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make(name: str, seconds: float, calls: list[str], disturbed: int = 0, **more) -> timing.Contender:
        def step() -> None:
            calls.append(name)
            now[0] += seconds + (2.0 if len(calls) == disturbed else 0.0)

        return timing.Contender({"train": step}, wait=id, **more)

    return make


def test_turns_and_rates(contender):
    """0.1 s and 0.4 s of 8 images, and one repeat that is disturbed."""
    calls: list[str] = []
    contenders = {"ours": contender("o", 0.1, calls), "peer": contender("p", 0.4, calls, 11, num_compiles=2)}
    rates = timing.images_per_s(contenders, "train", batch_size=8, repeats=3)
    # What may compile and one more to know the time, then as many as fill half a second, in turns.
    assert "".join(calls) == "ooppp" + "ooooop" * 3
    assert rates["ours"] == pytest.approx([80, 80, 80])
    assert rates["peer"] == pytest.approx([8 / 2.4, 20, 20])
    result = timing.summary(rates)
    assert (result["ours"], result["peer"], result["ratio"]) == pytest.approx((80, 20, 4))
    assert result["range"]["peer"] == pytest.approx([8 / 2.4, 20])
    assert "compare" not in result


def test_a_slow_one_takes_part_in_three_turns_spread_over_all(contender):
    """100 s a step, beside 0.5 s; the fast one is timed in all seven turns."""
    calls: list[str] = []
    contenders = {"ours": contender("o", 0.5, calls), "compare": contender("n", 100.0, calls)}
    rates = timing.images_per_s(contenders, "train", batch_size=10, repeats=7)
    assert "".join(calls) == "oonn" + "on" + "oo" + "on" + "o" + "on" + "o"
    result = timing.summary(rates)
    assert (result["ours"], result["compare"], result["ratio_compare"]) == pytest.approx((20, 0.1, 200))
    assert (result["peer"], result["ratio"]) == (None, None)
    assert result["repeats"] == {"ours": 7, "compare": 3}
