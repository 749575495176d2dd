"""Objects that are written or removed only if nobody else has changed them: what Amazon's, Google's and Azure's storage can do.

fsspec can say "only where there is none" and cannot say "only if it is still this version", so each store's client is asked in
its own way. A version is Amazon's and Azure's ETag and Google's generation. Whether a server heeds a condition is tried out.
"""

import contextlib
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from bdjax.errors import UserError, first_line
from bdjax.store import objects

if TYPE_CHECKING:
    from upath import UPath


class Changed(FileExistsError):
    """An object has another version than the condition names, is gone, or is there where there should be none."""


class Client(Protocol):
    """What is asked of a store's own client; each method raises :class:`Changed` where the condition does not hold."""

    def __init__(self, fs: Any) -> None: ...

    def version(self, path: str) -> str:
        """Return the version of an object; FileNotFoundError where there is none."""

    def write(self, path: str, data: bytes, version: str | None) -> str:
        """Replace the object of this version, or create one where the version is None; return the new version."""

    def remove(self, path: str, version: str) -> None:
        """Remove the object of this version."""


class Amazon:
    """Whatever speaks S3, through s3fs."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def _call(self, request: str, path: str, **arguments: Any) -> Any:
        bucket, key, _ = self._fs.split_path(path)
        try:
            return self._fs.call_s3(request, Bucket=bucket, Key=key, **arguments)
        except OSError as error:
            answer = getattr(error.__cause__, "response", None) or {}
            # 412: the condition does not hold. 409: somebody else writes or removes the object at this moment.
            if answer.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                raise Changed from error
            raise

    def version(self, path: str) -> str:
        return str(self._call("head_object", path)["ETag"])

    def write(self, path: str, data: bytes, version: str | None) -> str:
        if version is None:
            return str(self._call("put_object", path, Body=data, IfNoneMatch="*")["ETag"])
        try:
            return str(self._call("put_object", path, Body=data, IfMatch=version)["ETag"])
        except FileNotFoundError:
            raise Changed from None

    def remove(self, path: str, version: str) -> None:
        self._call("delete_object", path, IfMatch=version)


class Google:
    """Google Cloud Storage, through gcsfs."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def _call(self, method: str, url: str, *names: str, **arguments: Any) -> Any:
        try:
            return self._fs.call(method, url, *names, **arguments)
        except FileExistsError:  # what gcsfs makes of the answer 412
            raise Changed from None

    def version(self, path: str) -> str:
        bucket, key, _ = self._fs.split_path(path)
        return str(self._call("GET", "b/{}/o/{}", bucket, key, json_out=True)["generation"])

    def write(self, path: str, data: bytes, version: str | None) -> str:
        bucket, key, _ = self._fs.split_path(path)
        url = self._fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
        query = {"uploadType": "media", "name": key, "ifGenerationMatch": version or "0"}
        plain = {"Content-Type": "application/octet-stream"}
        return str(self._call("POST", url, bucket, headers=plain, data=data, json_out=True, **query)["generation"])

    def remove(self, path: str, version: str) -> None:
        bucket, key, _ = self._fs.split_path(path)
        self._call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=version)


class Azure:
    """Azure's blobs, through adlfs."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def _call(self, request: str, path: str, *arguments: Any, **named: Any) -> Any:
        from fsspec.asyn import sync

        container, name, _ = self._fs.split_path(path)

        async def call() -> Any:
            async with self._fs.service_client.get_blob_client(container=container, blob=name) as blob:
                return await getattr(blob, request)(*arguments, **named)

        try:
            return sync(self._fs.loop, call)
        except Exception as error:
            status = getattr(error, "status_code", None)
            if status in (409, 412):
                raise Changed from error
            if status == 404:
                raise FileNotFoundError(str(error)) from error
            raise

    def _unchanged(self, version: str) -> dict[str, Any]:
        from azure.core import MatchConditions

        return {"etag": version, "match_condition": MatchConditions.IfNotModified}

    def version(self, path: str) -> str:
        return str(self._call("get_blob_properties", path).etag)

    def write(self, path: str, data: bytes, version: str | None) -> str:
        condition = {"overwrite": False} if version is None else {"overwrite": True, **self._unchanged(version)}
        return str(self._call("upload_blob", path, data, **condition)["etag"])

    def remove(self, path: str, version: str) -> None:
        self._call("delete_blob", path, **self._unchanged(version))


CLIENTS: dict[str, type[Client]] = {"s3fs": Amazon, "gcsfs": Google, "adlfs": Azure}  # by the package of the fsspec class


class Conditional:
    """The objects of one store that heeds conditions.

    Args:
      client: the store's own.
      removes: whether it also removes on a condition; some only write.
    """

    def __init__(self, client: Client, removes: bool = True):
        self._client, self.removes = client, removes

    def read(self, path: "UPath") -> tuple[str, bytes]:
        """Return the version of an object and its content, which is at least as new.

        Raises:
          FileNotFoundError: there is none.
          UserError: the store cannot be reached, or refuses.
        """
        with objects.reaching(path):
            version = self._client.version(path.path)
        return version, objects.get(path)

    def write(self, path: "UPath", data: bytes, version: str | None) -> str | None:
        """Replace the object of this version, or create one; return the new version, or None where somebody else was faster.

        Args:
          path: of the object.
          data: content that nobody else would write: a writer whose answer was lost, and who asks again, knows it by that.
          version: what the object must still be; None: there must be none.

        Raises:
          UserError: the store cannot be reached or refuses, or there is no such bucket.
        """
        try:
            with objects.reaching(path), objects.missing_bucket(path):
                return self._client.write(path.path, data, version)
        except Changed:
            with contextlib.suppress(FileNotFoundError):
                now, content = self.read(path)
                return now if content == data else None
        return None

    def remove(self, path: "UPath", version: str) -> bool:
        """Remove the object of this version; return False where it has another one, True where it is gone.

        Raises:
          UserError: the store cannot be reached, or refuses.
        """
        try:
            with objects.reaching(path), contextlib.suppress(FileNotFoundError):
                self._client.remove(path.path, version)
        except Changed:
            return False
        return True


def tried(folder: "UPath") -> Conditional | str:
    """Return the objects of a store that heeds conditions, which was tried out with one below this folder, or why it does not.

    Raises:
      UserError: the store cannot be reached, or refuses what needs no condition either.
    """
    packages = {each.__module__.partition(".")[0] for each in type(folder.fs).__mro__}
    client = next((client for package, client in CLIENTS.items() if package in packages), None)
    if client is None:
        return "its client is not known for it"
    store, path = Conditional(client(folder.fs)), folder / f".probe.{uuid.uuid4().hex[:12]}"
    try:
        first = store.write(path, b"first", None)
        second = first and store.write(path, b"second", first)
        if not first or not second or store.write(path, b"third", first) or store.write(path, b"fourth", None):
            return "its server ignores it"
        store.removes = _removes(store, path, first, second)
    except UserError as error:  # servers that do not know a condition may refuse the request
        objects.put(path, b"fifth")  # raises where nothing can be written without a condition either
        return first_line(error.__cause__ or error)
    finally:
        objects.remove(path)
    return store


def _removes(store: Conditional, path: "UPath", old: str, now: str) -> bool:
    try:
        return not store.remove(path, old) and store.remove(path, now)
    except UserError:
        return False
