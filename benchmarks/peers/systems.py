"""The peers: which there are, what each is installed from, where it stores, and what its acknowledgement is worth."""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Store(Enum):
    """Where jobs are."""

    MEMORY = "memory"
    SQLITE = "SQLite"
    REDIS = "Redis"
    REDIS_FSYNC = "Redis, AOF fsync always"
    POSTGRESQL = "PostgreSQL"


@dataclass(frozen=True, slots=True)
class System:
    """One peer at one setting."""

    name: str
    adapter: str
    """The module in `adapters` that speaks to it."""
    store: Store
    requirements: tuple[str, ...]
    durability: str
    """The setting, in its own words."""
    is_durable: bool
    """Whether a job that is acknowledged is on disk."""
    drained: int = 20_000
    """So many jobs are drained: fewer of those that are slow, whose rate that does not change."""

    @property
    def package(self) -> str:
        """The distribution whose version is told."""
        return self.requirements[0].partition("==")[0].partition("[")[0] if self.requirements else "durableq"

    @property
    def key(self) -> str:
        return f"{self.adapter}-fsync" if self.store is Store.REDIS_FSYNC else self.adapter


def _on_redis(name: str, adapter: str, *requirements: str, drained: int, drained_fsync: int) -> tuple[System, System]:
    """Redis as Debian starts it, and with every write on disk before its answer."""
    return (
        System(name, adapter, Store.REDIS, requirements, "appendonly no", is_durable=False, drained=drained),
        System(
            name,
            adapter,
            Store.REDIS_FSYNC,
            requirements,
            "appendonly yes, appendfsync always",
            is_durable=True,
            drained=drained_fsync,
        ),
    )


DURABLEQ: Final = System("durableq", "durableq", Store.SQLITE, (), 'durability="full"', is_durable=True)

SYSTEMS: Final = (
    System(
        "Huey",
        "huey_sqlite",
        Store.SQLITE,
        ("huey==3.5.4",),
        "fsync=True, synchronous=FULL",
        is_durable=True,
        drained=10_000,
    ),
    System(
        "persist-queue",
        "persist_queue_sqlite",
        Store.SQLITE,
        ("persist-queue==1.1.0",),
        "SQLiteAckQueue: WAL, synchronous=FULL",
        is_durable=True,
        drained=6_000,
    ),
    System(
        "DBOS",
        "dbos_sqlite",
        Store.SQLITE,
        ("dbos==3.4.0",),
        "rollback journal, synchronous=FULL",
        is_durable=True,
        drained=1_500,
    ),
    System(
        "litequeue",
        "litequeue_sqlite",
        Store.SQLITE,
        ("litequeue==0.14; python_version >= '3.12'", "litequeue==0.9; python_version < '3.12'"),
        "WAL, synchronous=NORMAL",
        is_durable=False,
    ),
    System(
        "fastapi-taskflow",
        "taskflow_sqlite",
        Store.SQLITE,
        ("fastapi-taskflow==0.12.1",),
        "in memory until the task has run",
        is_durable=False,
    ),
    *_on_redis("arq", "arq_redis", "arq==0.28.0", "hiredis==3.5.0", drained=6_000, drained_fsync=1_500),
    *_on_redis("SAQ", "saq_redis", "saq[redis,hiredis]==0.26.4", drained=8_000, drained_fsync=4_000),
    *_on_redis("streaQ", "streaq_redis", "streaq==7.2.0", drained=4_000, drained_fsync=3_000),
    *_on_redis(
        "Taskiq",
        "taskiq_redis_",
        "taskiq[orjson,uv]==0.13.0",
        "taskiq-redis==1.2.4",
        "hiredis==3.5.0",
        drained=10_000,
        drained_fsync=5_000,
    ),
    *_on_redis("Celery", "celery_redis", "celery[redis]==5.7.0", "hiredis==3.5.0", drained=3_000, drained_fsync=1_000),
    *_on_redis(
        "Dramatiq", "dramatiq_redis", "dramatiq[redis]==2.2.1", "hiredis==3.5.0", drained=15_000, drained_fsync=8_000
    ),
    System(
        "PgQueuer",
        "pgqueuer_postgresql",
        Store.POSTGRESQL,
        ("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
        "fsync=on, synchronous_commit=on",
        is_durable=True,
    ),
    System(
        "Procrastinate",
        "procrastinate_postgresql",
        Store.POSTGRESQL,
        ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0"),
        "fsync=on, synchronous_commit=on",
        is_durable=True,
        drained=1_500,
    ),
)
