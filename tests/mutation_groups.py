"""Which modules are mutated together, and which tests stand for them: the fast ones that look at them most closely."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Modules, and the tests that stand for them."""

    name: str
    modules: Sequence[str]
    tests: Sequence[str]
    slow_too: str = "nothing"
    """Tests whose names have this are run for each fault, however long they take."""


STATEMENT_TESTS = (
    "tests/storage/test_contract.py",
    "tests/storage/test_details.py",
    "tests/storage/test_writer_details.py",
    "tests/storage/test_finished_doorbell.py",
    "tests/storage/test_group.py",
    "tests/storage/test_handover.py",
    "tests/storage/test_invariants.py",
    "tests/storage/test_leftovers.py",
    "tests/storage/test_own_transactions.py",
    "tests/storage/test_unique_replays.py",
)
WRITER_TESTS = (
    *STATEMENT_TESTS,
    "tests/storage/test_checkpoint_details.py",
    "tests/storage/test_group_details.py",
    "tests/storage/test_sharing.py",
    "tests/storage/test_versions.py",
    "tests/storage/test_writer.py",
    "tests/storage/test_writer_faults.py",
)

DETAILS = (
    "tests/storage/test_connection_details.py",
    "tests/storage/test_handover_details.py",
    "tests/storage/test_lookout_details.py",
    "tests/storage/test_one_writer.py",
    "tests/storage/test_store_details.py",
    "tests/storage/test_writer_life.py",
)

GROUPS = (
    Group("retry", ["retry"], ["tests/test_retry.py", "tests/test_retry_details.py"]),
    Group(
        "decisions",
        ["engine.decisions"],
        ["tests/test_decisions.py", "tests/test_decisions_details.py", "tests/engine/test_retry_signals.py"],
    ),
    Group(
        "codec",
        ["codec", "options", "settings"],
        [
            "tests/test_codec.py",
            "tests/test_codec_refusals.py",
            "tests/test_codec_details.py",
            "tests/test_options.py",
            "tests/test_options_details.py",
        ],
    ),
    Group(
        "leases",
        ["engine.claimer", "engine.settler", "engine.reaper", "engine.heartbeat"],
        [
            "tests/engine/test_lease_details.py",
            "tests/engine/test_care_details.py",
            "tests/engine/test_worker.py",
        ],
        slow_too="test_care_details",
    ),
    Group(
        "redaction",
        ["redaction", "secret_names", "placeholders"],
        ["tests/test_redaction.py", "tests/test_redaction_details.py"],
    ),
    Group("encryption", ["encryption"], ["tests/test_encryption.py", "tests/test_encryption_details.py"]),
    Group(
        "auth",
        [
            f"fastapi.{name}"
            for name in ("principals", "admin", "admin_answers", "admin_models", "admin_filters", "showing")
        ],
        [
            "tests/fastapi/test_admin.py",
            "tests/fastapi/test_admin_details.py",
            "tests/fastapi/test_security.py",
            "tests/fastapi/test_schemas.py",
            "tests/fastapi/test_showing.py",
        ],
    ),
    Group("tokens", ["fastapi.tokens"], ["tests/fastapi/test_tokens.py"]),
    Group("history", ["history"], ["tests/test_history.py"]),
    Group(
        "statements",
        [
            f"storage.sqlite.{name}"
            for name in (
                "insertion",
                "settling",
                "transitions",
                "rows",
                "liveness",
                "payloads",
                "statements",
                "replies",
            )
        ],
        STATEMENT_TESTS,
    ),
    Group(
        "writing",
        [f"storage.sqlite.{name}" for name in ("group", "operation", "inbox", "checkpoint", "versions")],
        WRITER_TESTS,
    ),
    Group(
        "threads",
        [
            f"storage.sqlite.{name}"
            for name in (
                "writer",
                "committing",
                "sharing",
                "handover",
                "doorbells",
                "lookout",
                "reader",
                "connection",
            )
        ],
        [*DETAILS, "tests/storage/test_writer_details.py", "tests/storage/test_handover.py"],
    ),
    Group(
        "store",
        [f"storage.sqlite.{name}" for name in ("store", "transacting", "mending", "looking", "searching")],
        [*DETAILS, *WRITER_TESTS, "tests/storage/test_looking_details.py"],
    ),
)
