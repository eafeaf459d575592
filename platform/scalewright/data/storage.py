"""Where bytes lie: a folder or an S3 bucket, behind one way to read and write ranges.

Every failure of a store is one of three, and says which: the object is not there (`MissingError`),
access was refused (`AccessError`), or the store failed for now (`StoreError`), which alone is
worth another try. Messages name the key and the cause, never a signed URL or a secret.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import numpy as np

from scalewright.errors import DataError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0  # without a byte; a stalled answer ends here at the latest
ANSWER_TIMEOUT_S, PART_BYTES = 120.0, 2**20  # a whole answer; looked at after each part
CONNECTIONS = 64
SIGNED_S, SIGNED_KEYS = 600.0, 4096  # how long a signed URL is used, and for how many objects
BUSY = (429, 500, 502, 503, 504)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")


Answer = TypeVar("Answer")
# Calls what it is given, again where it may; how often and until when is the caller's.
Trying = Callable[[Callable[[], Answer]], Answer]


class MissingError(DataError):
    """The object is not there, and will not be."""


class AccessError(DataError):
    """The store refuses: credentials are wrong, expired or too weak."""


class ExpiredError(AccessError):
    """Credentials that were good until now."""


class StoreError(DataError):
    """The store failed, was too slow or gave too few bytes; another try may do."""


class CorruptError(StoreError):
    """Bytes that are too few or not those catalogued; a wire may have done it, so try again."""


class Storage(Protocol):
    """Objects by key, under a prefix; safe to share between threads."""

    def read(self, key: str, offset: int = 0, size: int | None = None) -> memoryview: ...

    def write(self, key: str, data: bytes | memoryview) -> None: ...

    def keys(self, prefix: str) -> list[str]: ...


class Archive(Storage, Protocol):
    """A store that large files are brought to and deleted from."""

    def write_large(self, key: str, data: Iterable[memoryview], trying: Trying[Any]) -> None: ...

    def delete(self, key: str) -> None: ...


def open_storage(place: str) -> Archive:
    """`s3://bucket/prefix`, with credentials and endpoint as boto3 finds them, or a folder."""
    if "://" not in place:
        return Folder(Path(place))
    parts = urlsplit(place)
    if parts.scheme != "s3" or not parts.netloc:
        raise DataError(f"{place!r}: expected a folder, or s3://bucket/prefix")
    return Bucket(parts.netloc, parts.path.strip("/"))


def place_of(home: Path, path: str) -> str:
    """A place as every process can open it: a URL as it is, a path under `home`, absolute."""
    return path if "://" in path else str((home / path).resolve())


class Folder:
    """A folder as a store; keys are paths under it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        path = self._root / key
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size - offset if size is None else size
                data = _room(size)
                count = os.preadv(file.fileno(), [data], offset)
        except FileNotFoundError:
            raise MissingError(f"{path}: no such file") from None
        except PermissionError as error:
            raise AccessError(f"{path}: {error.strerror}") from None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        if count != size:
            raise CorruptError(f"{path}: ends after {count} of {size} bytes at {offset}")
        return data

    def write(self, key: str, data: bytes | memoryview) -> None:
        path = self._root / key
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StoreError(f"{path}: {error.strerror}") from None

    def write_large(self, key: str, data: Iterable[memoryview], trying: Trying[Any]) -> None:
        """Write the parts of `data` one after another, and bring them to the disk."""
        path = self._root / key
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Delete a file if it is there, and folders that are empty then."""
        path = self._root / key
        try:
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or any(folder.iterdir()):
                    break
                folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def keys(self, prefix: str) -> list[str]:
        found = (path for path in self._root.rglob("*") if path.is_file())
        names = (str(path.relative_to(self._root)) for path in found)
        return sorted(name for name in names if name.startswith(prefix))


class Bucket:
    """A bucket, or what is under a prefix of it, over boto3.

    Its client is made anew in a process that was forked from this one: sockets must not be shared.
    Tries are the caller's, who knows the deadline; this one tries once.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._clients: dict[int, Any] = {}
        self._signed: dict[str, _Signed] = {}

    def read(self, key: str, offset: int = 0, size: int | None = None) -> memoryview:
        client = self._client()
        try:
            return self._read(client, key, offset, size)
        except ExpiredError:  # they may have been renewed where boto3 finds them
            return self._read(self._client(instead_of=client), key, offset, size)

    def _read(self, client: Any, key: str, offset: int, size: int | None) -> memoryview:
        if size is not None:
            data = self._read_signed(client, key, offset, size)
            if data is not None:
                return data
        asked = {} if size is None and not offset else {"Range": _range(offset, size)}
        with _translated(self._place(key)):
            answer = client.get_object(Bucket=self._bucket, Key=self._prefix + key, **asked)
            with answer["Body"] as body:
                told = answer["ContentLength"]
                if size is None:
                    return _filled(told, body, self._place(key))
                if told != size:
                    raise CorruptError(
                        f"{self._place(key)}: gave {told} of {size} bytes at {offset}"
                    )
                return _filled(size, body, self._place(key))

    def _read_signed(self, client: Any, key: str, offset: int, size: int) -> memoryview | None:
        """A range by a URL that is signed once for many: less than half the CPU of a boto3 call.

        None where boto3 should ask itself: it follows buckets to other regions, and its errors say
        what is wrong.
        """
        from botocore.awsrequest import AWSRequest

        place = self._place(key)
        with _translated(place):
            url, asked = self._url(client, key), {"Range": _range(offset, size)}
            request = AWSRequest("GET", url, asked, stream_output=True).prepare()
            # The client's own session: its certificates, proxies, timeouts and connections.
            answer = client._endpoint.http_session.send(request)
            try:
                told = answer.headers.get("Content-Length")
                if answer.status_code == 206 and told == str(size):
                    # The answer of http.client, which fills our buffer; urllib3 copies twice.
                    data = _filled(size, answer.raw._fp, place)
                    answer.raw.release_conn()
                    return data
                if answer.status_code in BUSY:
                    raise StoreError(f"{place}: {answer.status_code} {answer.raw.reason}")
            finally:
                answer.raw.close()
        self._signed.pop(key, None)
        return None

    def _url(self, client: Any, key: str) -> str:
        signed, now_s = self._signed.get(key), time.monotonic()
        if signed is None or signed.client is not client or signed.until_s < now_s:
            if len(self._signed) >= SIGNED_KEYS:
                self._signed.clear()
            asked = {"Bucket": self._bucket, "Key": self._prefix + key}
            url = client.generate_presigned_url("get_object", asked, ExpiresIn=2 * SIGNED_S)
            signed = self._signed[key] = _Signed(url, client, now_s + SIGNED_S)
        return signed.url

    def write(self, key: str, data: bytes | memoryview) -> None:
        with _translated(self._place(key)):
            self._client().put_object(Bucket=self._bucket, Key=self._prefix + key, Body=bytes(data))

    def write_large(self, key: str, data: Iterable[memoryview], trying: Trying[Any]) -> None:
        """Write an object in parts, each of at least 5 MiB but the last, at most 10,000 of them.

        Each part has tries of its own; an upload that fails leaves nothing behind that costs.
        """
        parts = iter(data)
        first, second = next(parts, memoryview(b"")), next(parts, None)
        if second is None:
            trying(lambda: self.write(key, first))
            return
        where = {"Bucket": self._bucket, "Key": self._prefix + key}
        begun = trying(lambda: self._call("create_multipart_upload", where))
        upload = where | {"UploadId": begun["UploadId"]}
        try:
            tags = []
            for number, part in enumerate(chain((first, second), parts), start=1):
                asked = upload | {"PartNumber": number, "Body": bytes(part)}
                answer = trying(partial(self._call, "upload_part", asked))
                tags.append({"PartNumber": number, "ETag": answer["ETag"]})
            asked = upload | {"MultipartUpload": {"Parts": tags}}
            trying(lambda: self._call("complete_multipart_upload", asked))
        except BaseException:
            with suppress(DataError):
                self._call("abort_multipart_upload", upload)
            raise

    def delete(self, key: str) -> None:
        """Delete an object if it is there."""
        self._call("delete_object", {"Bucket": self._bucket, "Key": self._prefix + key})

    def _call(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        with _translated(self._place(asked["Key"].removeprefix(self._prefix))):
            answer: dict[str, Any] = getattr(self._client(), name)(**asked)
            return answer

    def keys(self, prefix: str) -> list[str]:
        with _translated(self._place(prefix)):
            pages = (
                self._client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
            )
            found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.removeprefix(self._prefix) for key in found)

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _client(self, instead_of: Any = None) -> Any:
        """This process's client; a new one if it still is the one given."""
        with self._lock:
            client = self._clients.get(process := os.getpid())
            if client is None or client is instead_of:
                client = _new_client()
                self._clients = {process: client}
            return client


@dataclass(frozen=True)
class _Signed:
    """Where an object may be read, by which client's credentials, until when."""

    url: str
    client: Any
    until_s: float


def _range(offset: int, size: int | None) -> str:
    return f"bytes={offset}-" + ("" if size is None else str(offset + size - 1))


def _room(size: int) -> memoryview:
    """Bytes that are written to; numpy does not fill them with zeros first, as bytearray does."""
    return np.empty(size, np.uint8).data


def _filled(size: int, body: Any, place: str) -> memoryview:
    """So many bytes of an answer; one that drips must not hold its thread for ever."""
    data, count, begin_s = _room(size), 0, time.monotonic()
    while got := body.readinto(data[count : count + PART_BYTES]):
        count += got
        if time.monotonic() - begin_s > ANSWER_TIMEOUT_S:
            raise StoreError(f"{place}: {count} of {size} bytes in {ANSWER_TIMEOUT_S:g} s")
    if count < size:
        raise StoreError(f"{place}: the answer ended after {count} of {size} bytes")
    return data


def _new_client() -> Any:
    import boto3
    from botocore.config import Config

    # A session of its own: the default one of boto3 is not safe to share between threads.
    return boto3.session.Session().client(
        "s3",
        config=Config(
            # botocore signs URLs by version 2 in old regions, which newer buckets refuse.
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1},
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


class _translated:  # noqa: N801 - a context manager, read as a verb
    """What botocore raises becomes one of ours, with the key and the cause in it."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from botocore import exceptions as boto
        from urllib3.exceptions import HTTPError

        if isinstance(error, boto.ClientError):
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            told = f"{self._place}: {code or status} ({error.response['Error'].get('Message', '')})"
            if code in ("NoSuchKey", "NoSuchBucket", "404") or status == 404:
                raise MissingError(told) from None
            if code in _EXPIRED:
                raise ExpiredError(f"{told}; renew the credentials that boto3 finds here") from None
            if status in (401, 403):
                raise AccessError(
                    f"{told}; check the credentials that boto3 finds here, and what they allow"
                ) from None
            if status == 416:
                raise CorruptError(f"{told}: it ends before the bytes asked for") from None
            raise StoreError(told) from None
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            raise AccessError(
                f"{self._place}: no credentials found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine"
            ) from None
        if isinstance(error, boto.CredentialRetrievalError | boto.SSOError):
            raise AccessError(
                f"{self._place}: credentials could not be renewed ({type(error).__name__}); log in "
                "again, or repair what gives them"
            ) from None
        if isinstance(error, boto.BotoCoreError | HTTPError | OSError):
            raise StoreError(f"{self._place}: {type(error).__name__}{_server(error)}") from None


def _server(error: BaseException) -> str:
    """Which server could not be reached, where botocore tells; never what was asked of it."""
    parts = urlsplit(getattr(error, "kwargs", {}).get("endpoint_url") or "")
    port = f":{parts.port}" if parts.port else ""
    return f" at {parts.scheme}://{parts.hostname}{port}" if parts.hostname else ""
