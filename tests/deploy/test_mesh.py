"""The mesh's proxy that ships, as a real Envoy between a gateway and scripted verifiers and drafts."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from services.common.identities import Identity
from services.common.tls_settings import ServerTls
from services.local.certificate_folder import CertificateFolder
from support.envoy import Envoy, StartEnvoy
from support.fakes import FakeDraft, FakeVerifier, continue_from, serve_fakes
from support.lasting import Lasting
from support.system import StartGateway, System, first_tokens

PROMPT = [70, 71, 72]


class Meshed:
    """A gateway that knows its verifiers and drafts through a proxy alone."""

    def __init__(self, system: System, envoy: Envoy, servers: list[Lasting]) -> None:
        self.system = system
        self.envoy = envoy
        self.servers = servers


@asynccontextmanager
async def meshed(
    start_mesh: StartEnvoy,
    start_gateway: StartGateway,
    certificates: CertificateFolder,
    verifiers: list[FakeVerifier],
    drafts: list[FakeDraft],
    **settings: Any,
) -> AsyncIterator[Meshed]:
    async with AsyncExitStack() as stack:

        async def start(fake: FakeVerifier | FakeDraft, identity: Identity) -> Lasting:
            tls = ServerTls(**certificates.server(identity, with_callers=True))
            return await stack.enter_async_context(Lasting.running(serve_fakes(fake, tls=tls, grace_seconds=20.0)))

        servers = [await start(verifier, Identity.VERIFIER) for verifier in verifiers]
        helpers = [await start(draft, Identity.DRAFT) for draft in drafts]
        addresses = [server.address for server in servers], [server.address for server in helpers]
        envoy = await stack.enter_async_context(start_mesh(*addresses))
        targets = [envoy.address("verifier")], [envoy.address("draft")] if drafts else []
        system = await stack.enter_async_context(start_gateway(*targets, **settings))
        yield Meshed(system, envoy, servers)


async def test_a_conversation_returns_to_its_verifier_and_draft_and_conversations_are_spread(
    start_mesh: StartEnvoy, start_gateway: StartGateway, certificates: CertificateFolder
) -> None:
    verifiers, drafts = [FakeVerifier() for _ in range(3)], [FakeDraft() for _ in range(2)]
    prompts = [[*PROMPT, 65 + number] for number in range(20)]
    async with meshed(start_mesh, start_gateway, certificates, verifiers, drafts) as mesh:
        for prompt in prompts * 3:
            assert (await mesh.system.generate(prompt, max_tokens=30)).token_ids == continue_from(prompt, 30)
            await mesh.envoy.idle()  # What has not quite ended is load too, and sends others elsewhere.
    for prompt in prompts:
        homes = [sum(list(opened.token_ids) == prompt for opened in verifier.opens) for verifier in verifiers]
        assert sorted(homes) == [0, 0, 3]
        homes = [sum(list(opened.token_ids)[:4] == prompt for opened in draft.opens) for draft in drafts]
        assert min(homes) == 0
    assert all(verifier.opens for verifier in verifiers)
    assert all(draft.opens for draft in drafts)


async def test_no_verifier_gets_more_than_its_share_of_a_popular_beginning(
    start_mesh: StartEnvoy, start_gateway: StartGateway, certificates: CertificateFolder
) -> None:
    go = asyncio.Event()
    verifiers = [FakeVerifier(commit_when=go) for _ in range(3)]
    async with meshed(start_mesh, start_gateway, certificates, verifiers, []) as mesh:
        go.set()
        for number in range(65, 91):  # What waits for a connection is not counted: so there are connections first.
            await mesh.system.generate([*PROMPT, number], max_tokens=3)
        await mesh.envoy.idle()
        go.clear()
        running = [asyncio.create_task(mesh.system.generate(PROMPT, max_tokens=9)) for _ in range(24)]
        async with asyncio.timeout(20):
            while sum(verifier.num_open for verifier in verifiers) < 24:
                await asyncio.sleep(0.01)
        go.set()
        assert {tuple((await each).token_ids) for each in running} == {tuple(continue_from(PROMPT, 9))}
    # What asks about models is under way too, and counts.
    assert max(verifier.most_open for verifier in verifiers) <= math.ceil(1.25 * 24 / 3) + 1


async def test_a_verifier_that_drains_finishes_what_it_has_and_gets_nothing_new(
    start_mesh: StartEnvoy, start_gateway: StartGateway, certificates: CertificateFolder
) -> None:
    go = asyncio.Event()
    verifiers = [FakeVerifier(commit_when=go, commits_first=True) for _ in range(2)]
    async with meshed(start_mesh, start_gateway, certificates, verifiers, []) as mesh:
        stream = mesh.system.client.generate(PROMPT, max_tokens=60)
        tokens = await first_tokens(stream)
        draining = next(number for number, verifier in enumerate(verifiers) if verifier.opens)
        mesh.servers[draining].stopping.set()
        await mesh.envoy.healthy("verifier", 1)
        more = [asyncio.create_task(mesh.system.generate([*PROMPT, n], max_tokens=9)) for n in range(65, 75)]
        async with asyncio.timeout(20):
            while len(verifiers[1 - draining].opens) < 10:
                await asyncio.sleep(0.01)
        assert not mesh.servers[draining].stopped.is_set()
        go.set()
        async for event in stream:
            tokens += event.delta.token_ids
        assert tokens == continue_from(PROMPT, 60)
        assert [(await each).token_ids for each in more] == [continue_from([*PROMPT, n], 9) for n in range(65, 75)]
    assert len(verifiers[draining].opens) == 1


async def test_a_stream_that_loses_its_verifier_goes_on_at_another_one_behind_the_same_proxy(
    start_mesh: StartEnvoy, start_gateway: StartGateway, certificates: CertificateFolder
) -> None:
    verifiers = [FakeVerifier(break_after=2) for _ in range(3)]
    async with meshed(start_mesh, start_gateway, certificates, verifiers, [], resume_seconds=20.0) as mesh:
        stream = mesh.system.client.generate(PROMPT, max_tokens=60)
        tokens = await first_tokens(stream)
        for verifier in verifiers:
            if not verifier.opens:
                verifier.break_after = None
        async for event in stream:
            tokens += event.delta.token_ids
    assert tokens == continue_from(PROMPT, 60)
    assert sum(len(verifier.opens) > 0 for verifier in verifiers) > 1


async def test_cancelling_reaches_the_verifier_and_the_draft(
    start_mesh: StartEnvoy, start_gateway: StartGateway, certificates: CertificateFolder
) -> None:
    verifier, draft = FakeVerifier(commit_when=asyncio.Event(), commits_first=True), FakeDraft()
    async with meshed(start_mesh, start_gateway, certificates, [verifier], [draft]) as mesh:
        stream = mesh.system.client.generate(PROMPT, max_tokens=60)
        await first_tokens(stream)
        await asyncio.wait_for(draft.opened.wait(), 10)
        await stream.aclose()
        await asyncio.wait_for(asyncio.gather(verifier.all_closed.wait(), draft.all_closed.wait()), 10)


async def test_the_proxy_calls_nobody_who_is_not_what_it_takes_him_for(
    start_mesh: StartEnvoy, certificates: CertificateFolder
) -> None:
    """A draft's certificate makes no verifier."""
    stranger = ServerTls(**certificates.server(Identity.DRAFT, with_callers=True))
    own = ServerTls(**certificates.server(Identity.VERIFIER, with_callers=True))
    async with serve_fakes(FakeVerifier(), tls=stranger) as first, serve_fakes(FakeVerifier(), tls=own) as second:
        async with start_mesh([first, second], num_healthy=1) as envoy:
            stats = await envoy.ask("/stats?filter=cluster.verifier.ssl.fail_verify_san")
    assert int(stats.partition(":")[2]) > 0
