"""Checks of the models of a system: their services, what a draft shares with its target, whether speculation pays."""

from collections.abc import Iterator, Sequence

from paceline.cli.doctor.finding import Finding, ok, warning, wrong
from paceline.cli.doctor.names import name_of
from paceline.cli.doctor.report import Report, Service
from paceline.v1 import model_pb2, operations_pb2

_READY = operations_pb2.SERVICE_STATE_READY
_AWAY = operations_pb2.SERVICE_STATE_AWAY
_UNSUITED = operations_pb2.SERVICE_STATE_UNSUITED
_LOW, _MIN_ROUNDS = 0.5, 100
"""Acceptance per position below which most rounds win less than one token; and rounds from which it is known."""
_FITTING = (
    "serve a draft of the same family, whose tokenizer.json is the target's: `paceline serve draft --engine.model`"
)


def check_models(report: Report) -> Iterator[Finding]:
    """All of these checks, model by model."""
    for model in report.models:
        yield from _check_model(report, model)
    for role, what, make in (
        (operations_pb2.SERVICE_ROLE_PREFIX_CACHE, "prompts are computed anew", warning),
        (operations_pb2.SERVICE_ROLE_ADAPTER_STORE, "requests with adapters that are not loaded yet fail", wrong),
    ):
        for service in report.services(role):
            check = name_of(service).partition(" at ")[0]
            if service.state == _READY:
                yield ok(check, f"ready at {service.address}")
            else:
                yield make(check, f"{_trouble(service)}: {what}", _start(service))


def _check_model(report: Report, model: model_pb2.Model) -> Iterator[Finding]:
    name = model.target.id
    verifiers = report.services(operations_pb2.SERVICE_ROLE_VERIFIER, name)
    drafts = report.services(operations_pb2.SERVICE_ROLE_DRAFT, name)
    if model.available and not verifiers:
        yield ok(name, f"can be asked for: {_described(model.target)}")
    if not model.available and not verifiers:
        yield wrong(name, "cannot be asked for: it has no live verifier", "start one: `paceline serve verifier`")
    yield from _check_verifiers(name, verifiers)
    if report.status is None:
        yield from _check_draft_of_list(model)
    else:
        yield from _check_drafts(model, drafts)
    yield from _check_adapters(report, name, verifiers, drafts)
    yield from _check_speculation(name, report.speculation.get(name, []), has_draft=model.HasField("draft"))


def _check_verifiers(name: str, verifiers: Sequence[Service]) -> Iterator[Finding]:
    is_served = any(verifier.state == _READY for verifier in verifiers)
    for verifier in verifiers:
        if verifier.state == _READY:
            yield ok(name, f"{name_of(verifier)} is ready: {_described(verifier.model_info)}")
        elif is_served:
            yield warning(name, f"{_trouble(verifier)}; the others serve what it would", _start(verifier))
        else:
            yield wrong(name, f"{_trouble(verifier)}, and no other serves the model", _start(verifier))
    if len({verifier.model_info.revision_digest for verifier in verifiers if verifier.state == _READY}) > 1:
        do = "restart those with the old weights; until then no text moves from one to the other"
        yield warning(name, "its verifiers run different revisions of the model", do)


def _check_draft_of_list(model: model_pb2.Model) -> Iterator[Finding]:
    """What the list of models says, where the gateway tells no more."""
    if model.draft_problem:
        yield wrong(model.target.id, f"its draft is not used: {model.draft_problem}", _FITTING)
    elif model.HasField("draft"):
        yield from _check_pair(model.target, model.draft, "draft")


def _check_drafts(model: model_pb2.Model, drafts: Sequence[Service]) -> Iterator[Finding]:
    name = model.target.id
    if not drafts and model.HasField("draft"):
        yield from _check_draft_of_list(model)
    elif not drafts:
        yield ok(name, "has no draft: texts are continued without, or with what followed before")
    for draft in drafts:
        if draft.state == _READY:
            yield from _check_pair(model.target, draft.model_info, name_of(draft))
        elif draft.state == _UNSUITED:
            yield wrong(name, f"the {name_of(draft)} is not used: {draft.problem}", _FITTING)
        else:
            yield warning(name, f"{_trouble(draft)}: nothing is drafted there", _start(draft))


def _check_pair(target: model_pb2.ModelInfo, draft: model_pb2.ModelInfo, name: str) -> Iterator[Finding]:
    """What a draft that is used shares with its target."""
    is_well = True
    if not (target.vocabulary_digest and draft.vocabulary_digest):
        is_well = False
        yield warning(
            target.id,
            f"the {name} is used for having as many tokens as the target; whether they are the same cannot be told",
            "put the tokenizer.json of each model beside its weights",
        )
    if target.max_context_tokens and draft.max_context_tokens < target.max_context_tokens:
        is_well = False
        yield warning(
            target.id,
            f"the {name} takes {draft.max_context_tokens} tokens and the target {target.max_context_tokens}: past its "
            "own it proposes nothing",
            "take a draft of a longer context, or lower the target's `max_context_tokens` to what you need",
        )
    if is_well:
        yield ok(target.id, f"the {name} is used, and its tokens are the target's: {_described(draft)}")


def _check_adapters(
    report: Report, model: str, verifiers: Sequence[Service], drafts: Sequence[Service]
) -> Iterator[Finding]:
    adapters = [adapter for adapter in report.adapters if adapter.model in ("", model)]
    for verifier in verifiers:
        if adapters and verifier.state == _READY and not verifier.takes_adapters:
            do = "restart it with the setting `adapter_store`"
            yield wrong(model, f"the {name_of(verifier)} takes no adapters, and there are {len(adapters)}", do)
    for draft in drafts:
        if draft.state != _READY:
            continue
        with_own = [adapter.name for adapter in adapters if adapter.draft_digest]
        if with_own and not draft.takes_adapters:
            do = "restart it with the setting `adapter_store`"
            yield warning(
                model, f"the {name_of(draft)} cannot take its part of {_listed(with_own)}: it guesses worse", do
            )
    without = [adapter.name for adapter in adapters if not adapter.draft_digest]
    if without and any(draft.state == _READY for draft in drafts):
        yield ok(model, f"with {_listed(without)} the draft guesses as for the base model: it has no part for it")


def _check_speculation(
    name: str, verifiers: Sequence[model_pb2.SpeculationState], *, has_draft: bool
) -> Iterator[Finding]:
    for number, state in enumerate(verifiers, 1):
        of = name if len(verifiers) == 1 else f"{name}, verifier {number}"
        ways = {load.num_rows: load.way for load in state.loads if load.draft_revision_digest or not has_draft}
        on = [rows for rows, way in ways.items() if way != model_pb2.SPECULATION_WAY_OFF]
        off = [rows for rows, way in ways.items() if way == model_pb2.SPECULATION_WAY_OFF]
        why = next((each.reason for each in reversed(state.decisions) if each.reason.startswith("off")), "")
        because = f" ({why})" if why else ""
        if not ways:
            yield ok(of, "whether speculation pays was not measured yet: it takes some hundred rounds")
        elif has_draft and not on:
            yield warning(
                of,
                f"speculation is off at every load, for it was measured to be no faster{because}",
                "a smaller draft, cores or a GPU of its own for it, or one trained on this target's texts may pay; "
                "`paceline stats` shows what was measured",
            )
        else:
            at = f"on at up to {max(on)} texts at once" if on else "off, as there is no draft"
            yield ok(of, f"speculation is {at}{f', off at {min(off)}{because}' if on and off else ''}")
        yield from _check_acceptance(of, state)


def _check_acceptance(of: str, state: model_pb2.SpeculationState) -> Iterator[Finding]:
    if not state.HasField("acceptance") or state.num_acceptance_rounds < _MIN_ROUNDS:
        return
    rate = state.acceptance
    says = f"of the draft's next tokens the target takes {rate:.0%}, where those before were taken"
    if rate >= _LOW:
        yield ok(of, says)
        return
    do = (
        "take a draft of the target's own family, or train it on the target's answers; a high temperature, or texts "
        "of a kind that the draft does not know, lower it too. Where a draft does not pay, nothing is drafted"
    )
    yield warning(of, f"{says}: a round wins {rate / (1 - rate):.1f} tokens at best", do)


def _trouble(service: Service) -> str:
    how = "does not answer" if service.state == _AWAY else "answers, and cannot be used yet"
    return f"the {name_of(service)} {how} ({service.problem or 'it does not say why'})"


def _start(service: Service) -> str:
    if service.state == _AWAY:
        return "see that it runs, that its log says `listening`, and that the gateway's settings have its address"
    return "wait until its log says `serving`; if it does not, the log says why"


def _described(info: model_pb2.ModelInfo) -> str:
    return f"{info.architecture}, {info.max_context_tokens} tokens, {info.dtype} on {info.device}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
