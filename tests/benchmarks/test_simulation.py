"""The policies, on given times and acceptance: never slower than none, and little lost to the network."""

from benchmarks.simulation import ROUND_TRIPS_MS, Point, simulate


def test_never_slower_and_the_network_is_hidden_where_a_step_is_longer() -> None:
    points = simulate()
    assert all(point.ahead > point.plain for point in points)

    def at(load: int, ms: int) -> Point:
        return next(point for point in points if (point.num_streams, point.round_trip_ms) == (load, ms))

    for load in {point.num_streams for point in points}:
        assert at(load, 5).ahead > 0.8 * at(load, 0).ahead
        assert at(load, ROUND_TRIPS_MS[-1]).ahead > at(load, ROUND_TRIPS_MS[-1]).serial
