"""A process whose disk is full for a while: adds jobs until some are refused, makes room, and adds one more.

``python -m tests.storage.limited_disk DIRECTORY LIMIT``; LIMIT is ``file-size`` (RLIMIT_FSIZE, an I/O error) or
``disk`` (a small file system of its own, which must be mounted there). Says what it was told of each job, and
whether the job was found afterwards.
"""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from durableq.errors import StorageError
from tests.storage.support import Backend

ARGUMENTS = json.dumps("x" * 20_000)


class FileSizeLimit:
    def __init__(self, directory: Path) -> None:
        limit = (directory / "jobs.db-wal").stat().st_size + 500_000
        self._hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self._hard))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._hard, self._hard))


class FullDisk:
    def __init__(self, directory: Path) -> None:
        self._ballast = directory / "ballast"
        free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
        self._ballast.write_bytes(bytes(free - 500_000))

    def lift(self) -> None:
        self._ballast.unlink()


async def main(directory: Path, kind: str) -> None:
    backend = Backend(str(directory / "jobs.db"))
    storage = await backend.open()
    told: dict[str, str] = {}

    async def add() -> None:
        job = backend.job(args_json=ARGUMENTS)
        try:
            await storage.insert([job])
        except StorageError as error:
            told[job.id] = type(error).__name__
        else:
            told[job.id] = "stored"

    limit: FileSizeLimit | FullDisk = FileSizeLimit(directory) if kind == "file-size" else FullDisk(directory)
    while len(told) < 500 and sum(answer != "stored" for answer in told.values()) < 5:
        await add()
    limit.lift()
    await add()
    report: list[Any] = [[answer, await storage.get(job_id) is not None] for job_id, answer in told.items()]
    await backend.close()
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
