"""What durableq asks of the operating system beside SQLite: locks, file systems, sockets, fork.

All platform-dependent calls of the storage stand here. Linux first; macOS by the same POSIX calls. Where there is
no ``fcntl``, liveness falls back on leases alone and recovery is slower.
"""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from durableq.errors import StorageUnusable

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    fcntl: Any = None
else:
    fcntl = _fcntl

OPENING: Final = 0
"""The byte of the lock file that is held while a database is created, migrated or closed."""
_TO_THE_END: Final = 0
"""What `fcntl.lockf` calls a length without end."""

_NETWORK_FILESYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "webdav"}
)
_LOCAL_FUSE: Final = frozenset({"fuseblk", "fuse.fuse-overlayfs"})
_forks = 0


def forks() -> int:
    """Return how often this process is a fork of the one that imported durableq: handles of another count are dead."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1
    _open_locks.clear()


def network_filesystem(path: Path) -> str | None:
    """Return the type of the network file system that holds ``path``, or None when it is a local one."""
    kind = _filesystem_type(path)
    if kind in _NETWORK_FILESYSTEMS or (kind.startswith("fuse") and kind not in _LOCAL_FUSE):
        return kind
    return None


def _filesystem_type(path: Path) -> str:
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""  # not Linux: nothing to tell by
    resolved, best, kind = str(path.resolve()), "", ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        mount_point = re.sub(r"\\([0-7]{3})", lambda one: chr(int(one[1], 8)), before.split()[4])
        inside = resolved == mount_point or resolved.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):
            best, kind = mount_point, after.split()[0]
    return kind


def lock_holder(path: Path, byte: int) -> int | None:
    """Return the process that holds a POSIX lock on this byte of a file, where ``/proc/locks`` tells."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or "->" in fields or fields[1] not in ("POSIX", "OFDLCK"):
            continue
        if int(fields[5].rsplit(":", 1)[1]) != inode or fields[3] != "WRITE":
            continue
        if int(fields[6]) <= byte and (fields[7] == "EOF" or byte <= int(fields[7])):
            return int(fields[4])
    return None


def own_pid() -> int:
    return os.getpid()


def sync(path: Path) -> None:
    """Make a file durable, or the entries of a directory: SQLite syncs these too, but swallows an error there.

    Never a file that SQLite has open in this process: closing it would drop SQLite's locks.
    """
    with syncing(path):
        pass


@contextlib.contextmanager
def syncing(path: Path) -> Iterator[None]:
    """The same once the block has ended. What cannot be opened is told before it begins."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LockFile:
    """One file of one-byte locks, shared by all processes on a database.

    The kernel frees a byte the instant its process dies. POSIX locks belong to the process: closing *any*
    descriptor of the file drops them all, so a process opens the file once (`open_lock_file`), and never probes a
    byte that it holds itself. The file is never deleted: an unlinked one stays locked while its path tests free.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 0
        self.opening = threading.Lock()
        """The byte of `OPENING` among the threads of this process: a lock of the kernel knows only processes."""
        self._held: set[int] = set()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)

    def acquire(self, byte: int) -> bool:
        """Take the lock on a byte; False when another process has it."""
        if byte in self._held:
            return True
        if self._try_lock(byte):
            self._held.add(byte)
            return True
        return False

    def release(self, byte: int) -> None:
        if byte in self._held:
            self._held.discard(byte)
            self._unlock(byte)

    def is_free(self, byte: int) -> bool:
        """Whether no process holds the byte. Without kernel locks nothing is known to be free."""
        if byte in self._held or fcntl is None:
            return False
        if not self._try_lock(byte):
            return False
        self._unlock(byte)
        return True

    def is_any_held(self) -> bool:
        """Whether some process holds a byte, but for the one of `OPENING`. Without kernel locks nobody knows: False."""
        if self._held - {OPENING}:
            return True
        if not self._try_lock(OPENING + 1, _TO_THE_END):
            return True
        self._unlock(OPENING + 1, _TO_THE_END)
        return False

    def close(self) -> None:
        os.close(self._descriptor)

    def _try_lock(self, byte: int, length: int = 1) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int, length: int = 1) -> None:
        if fcntl is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, length, byte)


_open_locks: dict[str, LockFile] = {}
_open_locks_guard = threading.Lock()


def open_lock_file(path: Path) -> LockFile:
    """Return this process's one handle of a lock file; each call needs one `close_lock_file`."""
    with _open_locks_guard:
        locks = _open_locks.get(str(path))
        if locks is None:
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                locks = LockFile(path)
            except OSError as error:
                raise StorageUnusable(
                    f"cannot keep the lock file {path}: {error.strerror}; durableq needs a writable directory "
                    "beside the database for its locks and sockets"
                ) from error
            _open_locks[str(path)] = locks
        locks.users += 1
        return locks


def close_lock_file(locks: LockFile) -> None:
    """Give a handle back; the file is closed with the last one, when none of its bytes is held any more."""
    with _open_locks_guard:
        locks.users -= 1
        if locks.users == 0 and _open_locks.get(str(locks.path)) is locks:
            del _open_locks[str(locks.path)]
            locks.close()


Bell = Literal["sock", "done"]
"""The ending of a doorbell's name: what it is rung for."""
WORK: Final[Bell] = "sock"
"""There may be work, or a job to cancel."""
FINISHED: Final[Bell] = "done"
"""A job may be finished that somebody waits for. It hangs only while somebody does."""


class Doorbell:
    """A process' Unix datagram socket: a byte in it means that it is worth looking.

    Lost bytes do not matter, a full queue means "already rung", and a missing socket means "gone": the sleeper
    looks by itself every quarter of a second.
    """

    def __init__(self, directory: Path, worker_id: int, kind: Bell = WORK) -> None:
        self.kind = kind
        self._path = directory / f"{worker_id}.{kind}"
        self._path.unlink(missing_ok=True)  # of an earlier database of this name: the id is ours, we hold its lock
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.socket.setblocking(False)
            with _short_path(self._path) as address:
                self.socket.bind(address)
            self._path.chmod(0o600)
        except BaseException:
            self.socket.close()
            raise

    def drain(self) -> None:
        """Take the bytes out, so that the next one wakes again."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.recv(16)

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):  # who rings at what is left finds nobody, and its name is never used again
            self._path.unlink()


class Ringer:
    """Rings the doorbells of other processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ring(self, worker_id: int, kind: Bell = WORK) -> None:
        with contextlib.suppress(OSError), _short_path(self._directory / f"{worker_id}.{kind}") as address:
            self._socket.sendto(b"!", address)

    def close(self) -> None:
        self._socket.close()


def remove_doorbells(directory: Path, worker_id: int) -> None:
    """Remove what a dead process left."""
    for kind in (WORK, FINISHED):
        with contextlib.suppress(OSError):
            (directory / f"{worker_id}.{kind}").unlink(missing_ok=True)


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Give a socket path that fits the 108 bytes of ``sun_path``, however deep the directory."""
    if len(os.fsencode(path)) < 100 or not hasattr(os, "O_PATH"):
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)
