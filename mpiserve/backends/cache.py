"""Files that are expensive to make, on disk, by their content: for all ranks and all jobs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpiserve.config.environment import number
from mpiserve.errors import Code, ModelError

LIMIT = 4e9  # bytes
PATIENCE = 600.0  # seconds that a rank waits for another one to make the same entry
LOOK = 0.05  # seconds between two looks at a lock that another process holds
SUMS = "sums.json"  # in each entry: the sha256 of its files
STALE = 86400.0  # seconds after which a folder of a process that died is removed


class Cache:
    """A folder with an entry for each key, which is a folder of files.

    Processes on several nodes may share it. An entry appears with all its files at once, and is
    never changed. Beyond `limit` bytes, the entries that were used last longest ago go.

    Args:
        folder: Where it is; by default MPISERVE_CACHE, or mpiserve in the user's folder of caches.
        limit: The most bytes; by default MPISERVE_CACHE_BYTES, or 4 GB.
    """

    def __init__(self, folder: Path | None = None, limit: float | None = None) -> None:
        self.folder = folder or default_folder()
        self.limit = number("MPISERVE_CACHE_BYTES", LIMIT) if limit is None else limit

    def find(self, key: str) -> Path | None:
        """Return the folder of an entry, if it is there and whole.

        Raises:
            ModelError: If others may write to the cache: what it holds is executed.
        """
        entry = self.folder / key
        if not entry.is_dir():
            return None
        _check_owner(self.folder)
        if not _whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry)
        return entry

    def get(self, key: str, make: Callable[[Path], None]) -> Path:
        """Return the folder of an entry; make it if it is missing, once for all that ask.

        Args:
            key: Its name.
            make: Called with an empty folder, to write the files.

        Raises:
            ModelError: If the folder cannot be used.
            Exception: Any exception of `make`.
        """
        if found := self.find(key):
            return found
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(Code.EMODEL, f"{error}; MPISERVE_CACHE names another folder") from None
        _check_owner(self.folder)
        with _locked(self.folder / f"{key}.lock"):
            return self.find(key) or self._made(key, make)

    def _made(self, key: str, make: Callable[[Path], None]) -> Path:
        new = Path(tempfile.mkdtemp(prefix="new-", dir=self.folder))
        try:
            make(new)
            (new / SUMS).write_text(json.dumps(_sums(new)))
            try:
                new.rename(self.folder / key)
            except OSError:  # another node, whose lock this one does not see, was faster
                if not self.find(key):
                    raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
        self._limit(key)
        return self.folder / key

    def _limit(self, kept: str) -> None:
        """Remove old entries; a process that uses one keeps the files that it has mapped."""
        entries = [(path.stat().st_mtime, _bytes(path), path) for path in self._entries()]
        total = sum(size for _, size, _ in entries)
        for used, size, path in sorted(entries):
            left_over = path.name.startswith("new-") and time.time() - used > STALE
            if path.name != kept and (left_over or total > self.limit):
                shutil.rmtree(path, ignore_errors=True)
                (self.folder / f"{path.name}.lock").unlink(missing_ok=True)
                total -= size

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir()]


def default_folder() -> Path:
    """Return MPISERVE_CACHE, or mpiserve in the user's folder of caches."""
    if chosen := os.environ.get("MPISERVE_CACHE"):
        return Path(chosen).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "mpiserve"


def _check_owner(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        text = f"{folder}: others may write to it, and what it holds is executed"
        raise ModelError(Code.EMODEL, f"{text}: chmod go-w, or set MPISERVE_CACHE")


def _sums(entry: Path) -> dict[str, str]:
    paths = sorted(path for path in entry.rglob("*") if path.is_file() and path.name != SUMS)
    return {str(path.relative_to(entry)): _sum(path) for path in paths}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(entry: Path) -> bool:
    try:
        return bool(json.loads((entry / SUMS).read_text()) == _sums(entry))
    except (OSError, ValueError):
        return False


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that processes of all nodes see, where the file system has such locks.

    Where it has none, or whoever holds it takes too long, several make the same entry: that only
    takes time.
    """
    with path.open("w") as file:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOOK)
            except OSError:
                break
        yield
