"""Encryption at rest: with a `KeyRing`, arguments and results are stored as AES-256-GCM envelopes.

An envelope is bound to its job, task, column and key: changed, or copied to another row, it does not open. Needs the
extra: ``pip install durableq[encryption]``. **Not encrypted**: progress, ``current_job().log`` lines, error messages
and tracebacks (which may quote arguments), tags, headers, unique keys that were given as text, task and queue names,
sizes and times. A child process of ``runner="process"`` gets its arguments in clear, over a pipe that only it and its
parent hold.

The nonce is not random but the first 96 bits of an HMAC-SHA-256, under a key of its own, of the place and the text:
the synthetic nonce of SIV (RFC 5297, and RFC 8452 for GCM; the sub-keys come from HKDF-Expand, RFC 5869). The same
nonce therefore only comes back with the same text in the same place, or once in 2^96 like a random one; and a call that
is repeated under its idempotency key gives the very envelope that is stored. Renew a key before it has written 2^32
values, as for random nonces (NIST SP 800-38D §8.3).
"""

import base64
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Final, Literal, NamedTuple, NoReturn, Protocol, TypeVar

from durableq.codec import checksum
from durableq.errors import ConfigurationError, DurableQError, ResultUnavailable
from durableq.models import Job, JobExtras

R = TypeVar("R")

ENVIRONMENT_VARIABLE: Final = "DURABLEQ_ENCRYPTION_KEYS"
"""``name:key`` pairs, the newest first, between commas; keys as base64."""

KEY_MISSING: Final = "durableq.KeyMissing"
"""The error type of a dead letter whose key the ring lacks. With the key back, retry them: nothing is lost."""
CORRUPT: Final = "durableq.PayloadCorrupt"
NOT_ENCRYPTED: Final = "durableq.NotEncrypted"

Column = Literal["args", "result"]

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPENING: Final = '{"$encrypted":{"key":"'


class CannotOpen(DurableQError):
    """A stored value cannot be read. ``kind`` is what a dead letter says: its key is missing, or it was changed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class KeyRing:
    """The keys that values are encrypted with: the first, newest one writes, all of them read.

    ``keys`` maps names (letters, digits, ``. _ -``; best a date, see `digest`) to keys of 32 bytes, or their base64
    text; `new_key` makes one.
    With ``refuse_plain``, what is stored in clear is not run: somebody who can write to the file could else replace
    an envelope by arguments of their own. Leave it out until `DurableQ.rotate_keys` has encrypted what is there.

    A worker that lacks a key makes dead letters of what it cannot read. While processes are replaced one by one, a new
    key therefore first goes to the *end* of each ring, and to the front once all have it; likewise a first ring is
    given to all with ``encrypt=False``, which reads, but still writes in clear. Raises `ConfigurationError`, also
    when the extra is not installed; no message holds a key. Safe for threads.
    """

    def __init__(self, keys: Mapping[str, bytes | str], *, encrypt: bool = True, refuse_plain: bool = False) -> None:
        if not keys:
            raise ConfigurationError("expected at least one encryption key, got none")
        if refuse_plain and not encrypt:
            raise ConfigurationError("a key ring with refuse_plain cannot have encrypt=False: it would refuse its own")
        self.encrypts = encrypt
        self.refuse_plain = refuse_plain
        self._keys = {name: _Key(_checked_name(name), _key_bytes(name, given)) for name, given in keys.items()}
        self._newest = next(iter(self._keys.values()))
        self._unique_key = _sub_key(min(self._keys.items())[1].secret, "unique")

    @classmethod
    def from_text(cls, text: str, *, refuse_plain: bool = False) -> "KeyRing":
        """Read a ring as the environment variable has it: ``2026-11:BASE64,2026-10:BASE64``, the newest first.

        With the word ``clear`` in front it is one that does not encrypt.
        """
        pairs = list(filter(None, map(str.strip, text.split(","))))
        encrypt = pairs[:1] != ["clear"]
        keys: dict[str, str] = {}
        for number, pair in enumerate(pairs if encrypt else pairs[1:], 1):
            name, colon, key = pair.partition(":")
            if not colon:  # it may be a key without its name: not shown
                raise ConfigurationError(f"encryption keys: expected 'name:key' between commas, pair {number} is not")
            if name.strip() in keys:
                raise ConfigurationError(f"encryption keys: two are named {_checked_name(name.strip())!r}")
            keys[name.strip()] = key.strip()
        return cls(keys, encrypt=encrypt, refuse_plain=refuse_plain)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "KeyRing | None":
        """Return the ring of ``DURABLEQ_ENCRYPTION_KEYS``, or None where that is not set, or empty."""
        text = environment.get(ENVIRONMENT_VARIABLE, "").strip()
        return cls.from_text(text) if text else None

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(self._keys)}>"

    def __deepcopy__(self, memo: Any) -> "KeyRing":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyRing cannot be pickled: it holds keys")

    @property
    def prefix(self) -> str:
        """What every envelope of the newest key begins with."""
        return _envelope_prefix(self._newest.name)

    def seal(self, text: str, job_id: str, task: str, column: Column) -> str:
        """Return the envelope of a JSON text at its place; one text at one place always gives the same."""
        if not self.encrypts:
            return text
        key = self._newest
        place, plain = _place(job_id, task, column, key.name), text.encode()
        nonce = hmac.digest(key.nonce_key, len(place).to_bytes(8, "big") + place + plain, "sha256")[:_NONCE_BYTES]
        data = key.cipher.encrypt(nonce, plain, place)
        return f'{_envelope_prefix(key.name)},"nonce":"{_base64(nonce)}","data":"{_base64(data)}"}}}}'

    def open(self, stored: str, job_id: str, task: str, column: Column) -> str:
        """Return the JSON text of a stored value; one in clear is returned as it is. Raises `CannotOpen`."""
        if not is_sealed(stored):
            if self.refuse_plain:
                raise CannotOpen(NOT_ENCRYPTED, f"the stored {column} are in clear, which this key ring refuses")
            return stored
        envelope = _parse(stored, column)
        key = self._keys.get(envelope.key)
        if key is None:
            raise _missing_key(envelope.key, column, f"which is not on the ring ({', '.join(self._keys)})")
        try:
            plain: bytes = key.cipher.decrypt(envelope.nonce, envelope.data, _place(job_id, task, column, key.name))
            return plain.decode()
        except Exception:  # of its own kind, which only the extra has; or too short, or no text
            raise CannotOpen(
                CORRUPT,
                f"the stored {column} were changed, or belong to another job, or were encrypted with another key "
                f"named {key.name!r}; not executed",
            ) from None

    def moved(self, stored: str, task: str, from_id: str, to_id: str) -> str:
        """Return stored arguments as they stand in another row, or the same one, under the newest key.

        What cannot be opened comes back as it is.
        """
        try:
            return self.seal(self.open(stored, from_id, task, "args"), to_id, task, "args")
        except CannotOpen:
            return stored

    def digest(self, text: str) -> str:
        """Name a text without telling what it is, even to those who can guess it.

        By the key whose own name sorts first, wherever it stands: the oldest, of keys that are named by their date.
        So a newer key changes no name; but taking that key off the ring does, and a job from before is then not
        found to be the same as one from afterwards.
        """
        return hmac.digest(self._unique_key, text.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedExtras(JobExtras):
    """Those of a job whose stored arguments may have to be compared with others, or moved to another row."""

    ring: KeyRing = field(compare=False, repr=False)

    def moved_args(self, stored: str, task: str, from_id: str, to_id: str) -> str:
        return self.ring.moved(stored, task, from_id, to_id)


def with_ring(extras: JobExtras, ring: KeyRing) -> SealedExtras:
    return SealedExtras(ring=ring, **{name: getattr(extras, name) for name in JobExtras.__dataclass_fields__})


def chosen_ring(given: object, environment: Mapping[str, str]) -> KeyRing | None:
    """Return the ring that the code gave, or else that of the environment. Raises `ConfigurationError`."""
    if given is None:
        return KeyRing.from_environment(environment)
    if not isinstance(given, KeyRing):
        raise ConfigurationError(f"expected encryption=KeyRing({{name: key}}), got a {type(given).__name__}")
    return given


def new_key() -> str:
    """Return a new random key as base64 text, for a `KeyRing` or the environment."""
    return _base64(os.urandom(_KEY_BYTES))


def is_sealed(stored: str) -> bool:
    """Whether it is an envelope, by its beginning. No arguments begin like this: it is no name of a parameter."""
    return stored.startswith(_OPENING)


def _missing_key(name: str, column: Column, why: str) -> CannotOpen:
    return CannotOpen(KEY_MISSING, f"the stored {column} are encrypted with the key {name!r}, {why}")


def without_a_ring(stored: str, column: Column) -> CannotOpen | None:
    """Say why a queue that has no keys cannot read a stored value; None for one in clear."""
    if not is_sealed(stored):
        return None
    try:
        name = _parse(stored, column).key
    except CannotOpen as error:
        return error
    return _missing_key(name, column, "and this queue has no keys: DurableQ(..., encryption=KeyRing(...))")


def opened(job: Job[R], ring: KeyRing | None) -> Job[R]:
    """Return a job with its arguments and its result in clear. What the ring cannot open stays as it is stored."""
    if ring is None:
        return job
    result_json = None if job.result_json is None else _or_as_stored(ring, job.result_json, job, "result")
    return replace(job, args_json=_or_as_stored(ring, job.args_json, job, "args"), result_json=result_json)


def result_of(job: Job[Any], ring: KeyRing | None) -> str | None:
    """Return a stored result in clear. Raises `ResultUnavailable`, which names a key that is missing."""
    if job.result_json is None:
        return None
    try:
        if ring is not None:
            return ring.open(job.result_json, job.id, job.task, "result")
        problem = without_a_ring(job.result_json, "result")
    except CannotOpen as error:
        problem = error
    if problem is not None:
        raise ResultUnavailable(f"the result of job {job.id} cannot be read: {problem}") from None
    return job.result_json


# -- renewing ----------------------------------------------------------------------------------------------


class Payloads(NamedTuple):
    """A stored row, with those of its values that are not under the newest key."""

    seq: int
    job_id: str
    task: str
    checksum: int
    """Of the arguments as they are stored."""
    args: str | None
    result: str | None


class Rewrite(NamedTuple):
    """A value to be replaced, if it is still what it was."""

    seq: int
    before: str
    after: str
    checksum: int
    """Of ``after``."""


class Rewritable(Protocol):
    """The two storage verbs that renewing needs."""

    async def payloads(self, prefix: str, *, after: int, limit: int) -> list[Payloads]:
        """The next rows above ``seq`` ``after``, at most ``limit`` and some megabytes; none at the end.

        Values that begin with ``prefix`` are left out.
        """
        ...

    async def rewrite(self, args: Sequence[Rewrite], results: Sequence[Rewrite]) -> tuple[int, int]:
        """Replace values that are still the same, in one transaction; return how many of each."""
        ...


class Rotation(NamedTuple):
    """What `DurableQ.rotate_keys` did."""

    looked_at: int
    """Jobs."""
    args: int
    results: int
    unreadable: int
    """Values left as they are: their key is missing, or they are damaged, or in clear where that is refused."""


async def rotate(storage: Rewritable, ring: KeyRing, batch: int) -> Rotation:
    """Bring all stored arguments and results under the newest key, those in clear too.

    In batches, each one transaction in which every value is compared before it is replaced: beside running workers,
    and with any number of these at once. Killed at any moment it has lost nothing; started again it goes on, as what
    is done already is only looked at.
    """
    if not ring.encrypts:
        raise ConfigurationError("this key ring does not encrypt (encrypt=False), so there is nothing to rotate to")
    if not 1 <= batch <= 10_000:
        raise ConfigurationError(f"expected batch to be 1 to 10,000 jobs, got {batch!r}")
    looked_at = args = results = unreadable = after = 0
    while found := await storage.payloads(ring.prefix, after=after, limit=batch):
        renewals = [_renewed(ring, row) for row in found]
        new_args = [one for one, _, _ in renewals if one is not None]
        new_results = [one for _, one, _ in renewals if one is not None]
        if new_args or new_results:
            written = await storage.rewrite(new_args, new_results)
            args, results = args + written[0], results + written[1]
        unreadable += sum(bad for _, _, bad in renewals)
        looked_at, after = looked_at + len(found), found[-1].seq
    return Rotation(looked_at, args, results, unreadable)


def _renewed(ring: KeyRing, row: Payloads) -> tuple[Rewrite | None, Rewrite | None, int]:
    """The two rewrites of a row, and how many of its values cannot be read."""
    rewrites: list[Rewrite | None] = []
    unreadable = 0
    columns: tuple[tuple[Column, str | None], ...] = (("args", row.args), ("result", row.result))
    for column, stored in columns:
        rewrite = None
        if stored is not None:
            try:
                if column == "args" and checksum(stored) != row.checksum:
                    raise CannotOpen(CORRUPT, "damaged")  # a new checksum would hide it
                plain = ring.open(stored, row.job_id, row.task, column)
                sealed = ring.seal(plain, row.job_id, row.task, column)
                rewrite = Rewrite(row.seq, stored, sealed, checksum(sealed))
            except (CannotOpen, UnicodeError):
                unreadable += 1
        rewrites.append(rewrite)
    return rewrites[0], rewrites[1], unreadable


# ----------------------------------------------------------------------------------------------------------


class _Key:
    """One key, and what is derived from it."""

    __slots__ = ("cipher", "name", "nonce_key", "secret")

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = name
        self.secret = secret
        self.cipher = _new_cipher(_sub_key(secret, "encryption"))
        self.nonce_key = _sub_key(secret, "nonce")


class _Envelope(NamedTuple):
    key: str
    nonce: bytes
    data: bytes


def _new_cipher(key: bytes) -> Any:
    try:
        ciphers = import_module("cryptography.hazmat.primitives.ciphers.aead")
    except ImportError:
        raise ConfigurationError(
            "encryption needs the library cryptography: pip install durableq[encryption]"
        ) from None
    return ciphers.AESGCM(key)


def _sub_key(secret: bytes, purpose: str) -> bytes:
    """HKDF-Expand (RFC 5869 §2.3) for 32 bytes; §3.3 lets a key that is random already go without the first step."""
    return hmac.digest(secret, f"durableq 1 {purpose}".encode() + b"\x01", "sha256")


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or _KEY_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            "expected the name of each encryption key to be 1 to 64 letters, digits, dots, dashes or underscores, "
            f"got a {type(name).__name__} that is not"  # it may be a key: not shown
        )
    return name


def _key_bytes(name: str, given: object) -> bytes:
    secret = given
    if isinstance(secret, str):
        try:
            secret = base64.b64decode(secret.strip().translate(_URL_SAFE).encode(), validate=True)
        except ValueError:
            raise ConfigurationError(f"encryption key {name!r}: expected base64 of 32 bytes, it is no base64") from None
    if not isinstance(secret, bytes) or len(secret) != _KEY_BYTES:
        size = f"{len(secret)} bytes" if isinstance(secret, bytes) else f"a {type(secret).__name__}"
        raise ConfigurationError(
            f"encryption key {name!r}: expected 32 random bytes (durableq.encryption.new_key() makes them), got {size}"
        )
    return secret


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _place(job_id: str, task: str, column: Column, key: str) -> bytes:
    """What an envelope is bound to. As JSON, for names may hold any separator."""
    return json.dumps(["durableq 1", job_id, task, column, key]).encode()


def _envelope_prefix(key: str) -> str:
    return f'{_OPENING}{key}"'


def _parse(stored: str, column: Column) -> _Envelope:
    try:
        content = json.loads(stored)["$encrypted"]
        nonce, data = (base64.b64decode(content[name], validate=True) for name in ("nonce", "data"))
        return _Envelope(_checked_name(content["key"]), nonce, data)
    except (ValueError, TypeError, LookupError, RecursionError):
        raise CannotOpen(CORRUPT, f"the envelope of the stored {column} is damaged; not executed") from None


def _or_as_stored(ring: KeyRing, stored: str, job: Job[Any], column: Column) -> str:
    try:
        return ring.open(stored, job.id, job.task, column)
    except CannotOpen:
        return stored


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
