"""Plain numbers that are shown when they are asked for: what is counted, by what, and how many there can be."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.model_server.metrics import Counts


def shown(reader: InMemoryMetricReader) -> dict[tuple[tuple[str, object], ...], float]:
    """Numbers by their labels."""
    data = reader.get_metrics_data()
    assert data is not None
    ((scope,),) = [resource.scope_metrics for resource in data.resource_metrics]
    (metric,) = scope.metrics
    return {tuple(sorted((point.attributes or {}).items())): point.value for point in metric.data.data_points}


def test_numbers_are_told_apart_by_their_labels() -> None:
    reader = InMemoryMetricReader()
    counts = Counts(MeterProvider([reader]).get_meter("test"), "some", "1", "Some.", "origin", "ready")
    counts.add(2, "draft", True)
    counts.add(3, "draft", True)
    counts.add(1, "draft", False)
    assert shown(reader) == {
        (("origin", "draft"), ("ready", True)): 5,
        (("origin", "draft"), ("ready", False)): 1,
    }


def test_a_number_without_labels_is_there_before_it_counts() -> None:
    reader = InMemoryMetricReader()
    counts = Counts(MeterProvider([reader]).get_meter("test"), "some", "1", "Some.")
    assert shown(reader) == {(): 0}
    counts.add(0.5)
    assert shown(reader) == {(): 0.5}


def test_beyond_some_hundreds_all_are_one() -> None:
    reader = InMemoryMetricReader()
    counts = Counts(MeterProvider([reader]).get_meter("test"), "some", "1", "Some.", "adapter")
    for number in range(5000):
        counts.add(1, f"{number:x}")
    counts.add(1, "0")
    found = shown(reader)
    assert len(found) == 1001
    assert found[(("adapter", "0"),)] == 2
    assert found[(("adapter", "other"),)] == 4000
