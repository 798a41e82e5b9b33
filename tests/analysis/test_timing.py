"""Turns and the arithmetic of rates, by a clock that only the steps move."""

import pytest

from resnext_jax.analysis import timing


def test_turns_and_rates(monkeypatch):
    """By a clock that only the steps move: 0.1 s and 0.4 s of 8 images, and one repeat that is disturbed."""
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def step(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            now[0] += seconds + (2.0 if len(calls) == 12 else 0.0)

        return run

    steps, wait = {"ours": step("ours", 0.1), "peer": step("peer", 0.4)}, dict.fromkeys(("ours", "peer"), id)
    rates = timing.images_per_s(steps, wait, batch_size=8, repeats=3)
    # Three to warm up, then as many as fill half a second, in turns.
    assert "".join(name[0] for name in calls) == "ooopppooooopooooopooooop"
    assert rates["ours"] == pytest.approx([80, 80, 80])
    assert rates["peer"] == pytest.approx([8 / 2.4, 20, 20])
    result = timing.compare(rates)
    assert (result["ours"], result["peer"], result["ratio"]) == pytest.approx((80, 20, 4))
    assert result["range"]["peer"] == pytest.approx([8 / 2.4, 20])
