"""An object store for tests, ``bucket://name/key``, that processes may share: flat names, whole objects, conditions.

Its objects lie in the folder that BDJAX_TEST_BUCKETS names. ``trouble`` is asked before every request and may raise or wait.
"""

import contextlib
import datetime
import fcntl
import hashlib
import os
import random
import time
import uuid
from pathlib import Path
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractFileSystem

from bdjax.store import conditional

ROOT, LATENCY = "BDJAX_TEST_BUCKETS", "BDJAX_TEST_LATENCY"  # the latter in seconds, at most


class Bucket(AbstractFileSystem):
    protocol = "bucket"
    trouble = None  # (request, key) -> None

    def _bucket(self, path, request):
        name, _, key = self._strip_protocol(path).partition("/")
        time.sleep(random.uniform(0, float(os.environ.get(LATENCY, 0))))
        if Bucket.trouble is not None:
            Bucket.trouble(request, key)
        folder = Path(os.environ[ROOT]) / name
        if not folder.is_dir():
            raise FileNotFoundError("The specified bucket does not exist")
        return folder, key

    def _object(self, path, request):
        folder, key = self._bucket(path, request)
        return folder / quote(key, safe="")

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._object(path, "get").read_bytes()[start:end]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        target = self._object(path, "put")
        temporary = target.parent.parent / f"upload-{uuid.uuid4().hex}"
        temporary.write_bytes(value)
        try:
            os.link(temporary, target) if mode == "create" else os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def put_file(self, lpath, rpath, **kwargs):
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def get_file(self, rpath, lpath, **kwargs):
        Path(lpath).write_bytes(self.cat_file(rpath))

    def cp_file(self, path1, path2, **kwargs):
        self.pipe_file(path2, self.cat_file(path1))

    def rm_file(self, path):
        self._object(path, "delete").unlink()

    def modified(self, path):
        return datetime.datetime.fromtimestamp(self.info(path)["version"] / 1e9, datetime.UTC)

    def info(self, path, **kwargs):
        folder, key = self._bucket(path, "head")
        name = f"{folder.name}/{key}".rstrip("/")
        try:
            facts = (folder / quote(key, safe="")).stat()
        except (FileNotFoundError, IsADirectoryError):
            facts = None
        if key and facts is not None:
            return {"name": name, "size": facts.st_size, "type": "file", "version": facts.st_mtime_ns}
        if key and not any(other.startswith(f"{key}/") for other in self._keys(folder)):
            raise FileNotFoundError(path)
        return {"name": name, "size": 0, "type": "directory"}

    def ls(self, path, detail=True, **kwargs):
        folder, key = self._bucket(path, "list")
        start = f"{key}/" if key else ""
        below = [other[len(start) :] for other in self._keys(folder) if other.startswith(start)]
        if key and not below:
            raise FileNotFoundError(path)
        found = []
        for name in sorted({other.partition("/")[0] for other in below}):
            try:
                found.append(self.info(f"{folder.name}/{start}{name}"))
            except FileNotFoundError:  # removed meanwhile
                continue
        return found if detail else [each["name"] for each in found]

    def _keys(self, folder):
        return [unquote(name) for name in os.listdir(folder)]


class Conditions:
    """How objects are replaced and removed on a condition; what of an object is its version is S3's choice."""

    def __init__(self, fs):
        self.fs = fs

    def version(self, path):
        return hashlib.md5(self.fs.cat_file(path)).hexdigest()

    @contextlib.contextmanager
    def _still(self, path, version):
        with open(Path(os.environ[ROOT]) / "one-request-at-a-time", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                found = self.version(path)
            except FileNotFoundError:
                found = None
            if found != version:
                raise conditional.Changed
            yield

    def write(self, path, data, version):
        with self._still(path, version):
            self.fs.pipe_file(path, data)
        return hashlib.md5(data).hexdigest()

    def remove(self, path, version):
        with self._still(path, version):
            self.fs.rm_file(path)


PACKAGE = __name__.partition(".")[0]


def register():
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    conditional.CLIENTS[PACKAGE] = Conditions
