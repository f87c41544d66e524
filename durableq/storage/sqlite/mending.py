"""The verbs by which people change jobs and queues. Each leaves its line in the audit trail, in its transaction."""

import json
import sqlite3
from dataclasses import replace
from functools import partial
from typing import Any, Final

from durableq.clock import Clock
from durableq.models import Job, JobFilter, JobState
from durableq.storage.sqlite import searching, transitions
from durableq.storage.sqlite.reader import Reader
from durableq.storage.sqlite.transacting import Transacting, always

AT_ONCE: Final = 100
"""Jobs that people change together, in one transaction."""
LOOKED_AT_ONCE: Final = 20_000
"""Jobs that are looked through for them in one read, so that other reads come in between."""


class Mending(Transacting):
    """The part of `SqliteStorage` that people use."""

    _clock: Clock
    _reader: Reader

    async def retry(self, job_id: str, *, who: str, args_json: str | None = None) -> Job[Any]:
        act = self._retrying(who, args_json)
        return await self._transact(partial(act, job_id=job_id, now=self._clock.wall()), makes_work=always)

    async def retry_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        dead = replace(where, state=JobState.DEAD)
        return await self._to_each(dead, self._retrying(who, None), searching.RETRYABLE, limit=limit, makes_work=bool)

    def _retrying(self, who: str, args_json: str | None) -> transitions.Act[Job[Any]]:
        lookout = self._writer.lookout

        def act(connection: sqlite3.Connection, job_id: str, *, now: int) -> Job[Any]:
            job = transitions.retry(connection, job_id, now=now, who=who, args_json=args_json)
            lookout.learn_limit(connection)  # its limits begin anew
            return job

        return act

    async def cancel(self, job_id: str, *, who: str) -> Job[Any]:
        run = partial(transitions.cancel, job_id=job_id, now=self._clock.wall(), who=who)
        return await self._transact(run, finishes=always, cancels=True)

    async def cancel_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        act = partial(transitions.cancel_once, who=who)
        return await self._to_each(where, act, searching.UNFINISHED, limit=limit, finishes=bool, cancels=True)

    async def delete(self, job_id: str, *, who: str) -> None:
        await self._transact(partial(transitions.delete, job_id=job_id, now=self._clock.wall(), who=who))

    async def delete_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        act = partial(transitions.delete, who=who)
        return await self._to_each(where, act, searching.FINISHED, limit=limit)

    async def pause(self, queue: str, *, who: str) -> None:
        await self._transact(partial(transitions.pause, queue=queue, now=self._clock.wall(), who=who))
        self._writer.lookout.learn_again()  # its name may be new

    async def resume(self, queue: str, *, who: str) -> None:
        run = partial(transitions.resume, queue=queue, now=self._clock.wall(), who=who)
        await self._transact(run, makes_work=bool)

    async def _to_each(
        self, where: JobFilter, act: transitions.Act[object], hint: str, *, limit: int, **follows: Any
    ) -> int:
        """Do something to each job that matches, oldest first, in pieces, so that none holds up the jobs of others.

        They are looked for by a reader; the writer only asks again whether those it is given still match.
        """
        [(first, last)] = await self._reader.fetch("SELECT min(seq), max(seq) FROM durableq_jobs")
        done, after = 0, (first or 1) - 1
        while done < limit and after < (last or 0):
            wanted, until = min(AT_ONCE, limit - done), after + LOOKED_AT_ONCE
            query = searching.oldest_first(where, hint, after=after, until=until, limit=wanted)
            found = [row[0] for row in await self._reader.fetch(*query)]
            after = found[-1] if len(found) == wanted else until
            if found:
                seqs = json.dumps(found)
                run = partial(transitions.to_each, where=where, seqs=seqs, act=act, now=self._clock.wall())
                done += await self._transact(run, **follows)
        return done
