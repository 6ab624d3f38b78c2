"""Cores are divided between the models of one machine."""

import pytest

from services.local.threads import divide_threads


@pytest.mark.parametrize("num_cores", [1, 2, 4, 64])
def test_cores_are_divided_so_that_all_are_used(num_cores: int) -> None:
    threads = divide_threads(num_cores, with_draft=True)
    assert min(threads) >= 1
    assert threads.verifier <= num_cores
    assert divide_threads(num_cores, with_draft=False).verifier == num_cores
