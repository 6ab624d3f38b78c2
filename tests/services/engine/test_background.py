"""A step in the background is given up for what cannot wait, and computed anew afterwards."""

from services.common.background import BACKGROUND_PRIORITY
from services.engine.cpu.forward import CpuForward
from support.driver import GREEDY, add, append, generate, make_engine

PROMPT = [10, 20, 30, 40, 50]


def test_a_step_that_is_given_up_leaves_nothing_behind(target_folder: str) -> None:
    engine = make_engine(target_folder)
    assert isinstance(engine.runner.forward, CpuForward)
    (alone,) = generate(engine, [PROMPT], 8)
    background = add(engine, PROMPT[:4], GREEDY, priority=BACKGROUND_PRIORITY)
    engine.hurry(True)
    for _ in range(2):
        assert engine.step() == []
        assert not background.num_computed
    engine.hurry(False)
    engine.remove(background)
    background = add(engine, PROMPT, GREEDY, priority=BACKGROUND_PRIORITY)
    found: list[int] = []
    for number in range(16):
        engine.hurry(number % 2 == 1)
        for result in engine.step():
            found.append(result.token_ids[-1])
            append(background, found[-1])
    assert found == alone
    engine.remove(background)
    engine.check_integrity()


def test_what_others_wait_for_is_not_given_up(target_folder: str) -> None:
    engine = make_engine(target_folder)
    sequences = [add(engine, PROMPT, GREEDY, priority=priority) for priority in (0, BACKGROUND_PRIORITY)]
    engine.hurry(True)
    assert [result.sequence for result in engine.step()] == sequences
