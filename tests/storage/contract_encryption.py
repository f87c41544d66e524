"""What every backend promises to the renewal of keys: to show all payloads in bounded pieces, and to overwrite none."""

from dataclasses import replace

from durableq.codec import checksum
from durableq.encryption import Payloads as Row
from durableq.encryption import Rewrite
from durableq.models import Succeeded
from durableq.storage.protocol import Storage
from tests.storage.contract_unique import numbered
from tests.storage.support import Backend, claim, settle, stored

PREFIX = '{"$encrypted":{"key":"new"'


class Payloads:
    async def test_each_row_comes_once_in_its_order_however_small_the_pieces(
        self, backend: Backend, storage: Storage
    ) -> None:
        jobs = [backend.job(args_json=numbered(number)) for number in range(5)]
        await storage.insert(jobs)
        found: list[Row] = []
        after = 0
        while piece := await storage.payloads(PREFIX, after=after, limit=2):
            assert len(piece) <= 2
            found, after = found + piece, piece[-1].seq
        assert [(one.job_id, one.task, one.args, one.checksum) for one in found] == [
            (job.id, job.task, job.args_json, checksum(job.args_json)) for job in jobs
        ]

    async def test_values_under_the_newest_key_are_left_out_each_by_itself(
        self, backend: Backend, storage: Storage
    ) -> None:
        new, old = f'{PREFIX},"nonce":""}}}}', '{"$encrypted":{"key":"newer"}}'
        pairs = [(new, old), (old, new), (new, new), (old, None), (new, None)]
        jobs = [backend.job(args_json=args) for args, _ in pairs]
        await storage.insert(jobs)
        leases = {lease.id: lease for lease in await claim(storage)}
        outcomes = [(leases[job.id], Succeeded(result)) for job, (_, result) in zip(jobs, pairs, strict=True)]
        await settle(storage, outcomes)
        found = await storage.payloads(PREFIX, after=0, limit=10)
        assert [(one.args, one.result) for one in found] == [
            *((None, old), (old, None), (None, None), (old, None), (None, None))
        ]

    async def test_a_piece_is_some_megabytes_or_a_single_row(self, backend: Backend, storage: Storage) -> None:
        large = '{"x":"%s"}' % ("x" * 3_000_000)
        await storage.insert([backend.job(args_json=large) for _ in range(3)])
        assert len(first := await storage.payloads(PREFIX, after=0, limit=10)) == 1
        assert len(await storage.payloads(PREFIX, after=first[0].seq, limit=10)) == 1


class Rewriting:
    async def test_what_has_changed_meanwhile_is_not_overwritten(self, backend: Backend, storage: Storage) -> None:
        jobs = [backend.job(args_json=numbered(number)) for number in range(2)]
        await storage.insert(jobs)
        [first, second] = await storage.payloads(PREFIX, after=0, limit=10)
        rewrites = [
            Rewrite(first.seq, numbered(0), numbered(7), checksum(numbered(7))),
            Rewrite(second.seq, numbered(0), numbered(8), checksum(numbered(8))),
        ]
        assert await storage.rewrite(rewrites, []) == (1, 0)
        assert await stored(storage, jobs[0].id) == replace(jobs[0], args_json=numbered(7))
        assert await stored(storage, jobs[1].id) == jobs[1]
        assert [lease.checksum for lease in await claim(storage)] == [checksum(numbered(7)), checksum(numbered(1))]

    async def test_a_lease_holds_and_its_result_is_stored_though_its_arguments_were_rewritten(
        self, backend: Backend, storage: Storage
    ) -> None:
        [lease] = await backend.claimed(storage)
        before = lease.args_json
        assert await storage.rewrite([Rewrite(lease.seq, before, numbered(7), checksum(numbered(7)))], []) == (1, 0)
        assert await settle(storage, [(lease, Succeeded("1"))]) == frozenset()
        assert await storage.rewrite([], [Rewrite(lease.seq, "2", "3", 0)]) == (0, 0)
        assert await storage.rewrite([], [Rewrite(lease.seq, "1", "3", 0)]) == (0, 1)
        assert (await stored(storage, lease.id)).result_json == "3"
