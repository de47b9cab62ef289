"""Objects in S3, or in any service that speaks it: conditional puts, large ones in parts, what fails asked again.

Credentials, region and endpoint come from where all AWS programs have them (environment, profile, instance), and from
nowhere else: nothing here takes, keeps or prints one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import re
import time
from base64 import b64encode
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.errors import UsageError
from magc_data.shards.object_store import ReplacedError, StorageError, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import BufferedReader
    from pathlib import Path

PART_BYTES = 16 << 20
"""What is larger is put in parts of this size; S3 allows 10,000 of them, 5 MiB at the least."""
MAX_ATTEMPTS = 9
"""Of one request."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 20.0
"""Between attempts, doubled each time: half a minute in all, before a build gives up."""
MAX_UPLOADS = 3
"""Of one object: another build that begins gives up all uploads it finds, and a conflict asks for a new one."""
DIGEST_FIELD = "sha256"
"""In an object's metadata: of its whole content, to know it by whatever its parts or encryption are."""
KEYS_PER_DELETE = 1000

_ADDRESS = re.compile(r"s3a?://(?P<bucket>[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}
_IS_REPLACED = {"PreconditionFailed", "412", "NoSuchKey"}
"""The second where a condition names an object that is gone."""
_TRY_ANEW = {"ConditionalRequestConflict", "NoSuchUpload"}
_CREDENTIALS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to ones that may read and write there"
_WAYS_OUT = {
    "NoSuchBucket": "create the bucket first, or correct the address",
    "NotImplemented": "the service has no conditional puts, which a build needs; build in a folder and copy it",
    **dict.fromkeys(
        ("403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"),
        _CREDENTIALS,
    ),
}
_OTHER_WAY_OUT = "what is finished is kept, and the same command continues"


class _RefusedError(Exception):
    """An answer that says no; `code` is S3's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class S3Store(NamedTuple):
    """The objects under `s3://BUCKET/PREFIX`; each process has connections of its own."""

    address: str

    def listing(self) -> dict[str, Stored]:
        """Every object; a request a thousand."""
        bucket, prefix = split_address(self.address)
        goes_on = {"ContinuationToken": "NextContinuationToken"}
        pages = self._pages("list_objects_v2", goes_on, Bucket=bucket, Prefix=prefix)
        return {
            each["Key"].removeprefix(prefix): Stored(each["Size"], each["ETag"])
            for page in pages
            for each in page.get("Contents", ())
        }

    def get(self, name: str) -> bytes:
        """An object's content."""

        def whole(**where: str) -> bytes:
            return bytes(connections(os.getpid()).get_object(**where)["Body"].read())

        return bytes(self._named(name, whole, **self._key(name)))

    def put(self, name: str, content: bytes | Path, replaces: Stored | None) -> None:
        """Write an object if what is there is what it replaces; see ObjectStore."""
        condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces.version}
        for uploads in count(1):
            error = self._refusal_of_put(name, content, condition)
            # A put whose answer was lost finds itself when it is made again.
            if error is None or (error.code in _IS_REPLACED and self._holds(name, content)):
                return
            if error.code in _IS_REPLACED:
                raise ReplacedError(
                    f"{self.address.rstrip('/')}/{name} is not what this build found there: another build writes to "
                    "this address; let it end, then run the same command again"
                )
            if error.code not in _TRY_ANEW or uploads == MAX_UPLOADS:
                raise self._failure(name, error)
            time.sleep(_wait_s(uploads))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, a thousand a request."""
        bucket, prefix = split_address(self.address)
        rest = list(names)
        while rest:
            some, rest = rest[:KEYS_PER_DELETE], rest[KEYS_PER_DELETE:]
            objects = [{"Key": prefix + name} for name in some]
            answer = self._named(
                some[0],
                connections(os.getpid()).delete_objects,
                Bucket=bucket,
                Delete={"Objects": objects, "Quiet": True},
            )
            for error in answer.get("Errors", ()):
                raise self._failure(error["Key"], _RefusedError(error["Code"], error.get("Message", "")))

    def abort_uploads(self) -> int:
        """Give up uploads in parts under the address that have not ended: their parts cost money and show nowhere."""
        bucket, prefix = split_address(self.address)
        goes_on = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = self._pages("list_multipart_uploads", goes_on, Bucket=bucket, Prefix=prefix)
        uploads = [each for page in pages for each in page.get("Uploads", ())]
        for each in uploads:
            self._abort({"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]})
        return len(uploads)

    def _refusal_of_put(self, name: str, content: bytes | Path, condition: dict[str, str]) -> _RefusedError | None:
        try:
            with _opened(content) as stream:
                self._put_once(name, stream, condition)
        except _RefusedError as error:
            return error
        return None

    def _put_once(self, name: str, stream: BytesIO | BufferedReader, condition: dict[str, str]) -> None:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        about = {"Metadata": {DIGEST_FIELD: hashlib.file_digest(stream, "sha256").hexdigest()}}
        stream.seek(0)
        client, key = connections(os.getpid()), self._key(name)
        if size <= PART_BYTES:
            self._ask(client.put_object, **key, **_body(stream.read()), **about, **condition)
            return
        upload = {**key, "UploadId": self._ask(client.create_multipart_upload, **key, **about)["UploadId"]}
        try:
            parts = []
            for number, part in enumerate(iter(lambda: stream.read(PART_BYTES), b""), 1):
                answer = self._ask(client.upload_part, **upload, PartNumber=number, **_body(part))
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._ask(client.complete_multipart_upload, **upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            self._abort(upload)
            raise

    def _abort(self, upload: dict[str, str]) -> None:
        """Give up an upload; where that fails too, the next build under this address does it."""
        with contextlib.suppress(_RefusedError, StorageError):
            self._ask(connections(os.getpid()).abort_multipart_upload, **upload)

    def _holds(self, name: str, content: bytes | Path) -> bool:
        """Whether an object is there with this content."""
        try:
            there = self._ask(connections(os.getpid()).head_object, **self._key(name))
        except _RefusedError as error:
            if error.code in {"404", "NoSuchKey"}:
                return False
            raise self._failure(name, error) from None
        with _opened(content) as stream:
            return bool(there["Metadata"].get(DIGEST_FIELD) == hashlib.file_digest(stream, "sha256").hexdigest())

    def _key(self, name: str) -> dict[str, str]:
        bucket, prefix = split_address(self.address)
        return {"Bucket": bucket, "Key": prefix + name}

    def _pages(self, operation: str, goes_on: dict[str, str], **question: Any) -> Iterator[dict[str, Any]]:
        """The pages of a list; `goes_on` says which part of an answer goes where in the next question."""
        request = getattr(connections(os.getpid()), operation)
        while True:
            page = self._named("", request, **question)
            yield page
            if not page.get("IsTruncated"):
                return
            question |= {asked: page[found] for asked, found in goes_on.items()}

    def _named(self, name: str, request: Callable[..., Any], **question: Any) -> Any:
        """Ask, and say in a sentence what an answer that says no was about."""
        try:
            return self._ask(request, **question)
        except _RefusedError as error:
            raise self._failure(name, error) from None

    def _ask(self, request: Callable[..., Any], **question: Any) -> Any:
        """Ask until there is an answer.

        Raises:
            _RefusedError: the answer is no.
            StorageError: there is none after all attempts.
        """
        from botocore import exceptions as boto

        for attempt in count(1):
            try:
                return request(**question)
            except boto.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                what = f"{code} {error.response.get('Error', {}).get('Message', '')}".strip()
                if status not in _PASSING_STATUS and code not in _PASSING_CODES:
                    raise _RefusedError(code, what) from None
            except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
                raise StorageError(f"{self.address} cannot be reached ({error}): {_CREDENTIALS}") from None
            except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError) as error:
                what = " ".join(str(error).split())
            except boto.BotoCoreError as error:
                raise StorageError(f"{self.address} cannot be reached ({error}): {_OTHER_WAY_OUT}") from None
            if attempt == MAX_ATTEMPTS:
                raise StorageError(
                    f"{self.address} did not answer properly {MAX_ATTEMPTS} times, last with {what}: {_OTHER_WAY_OUT}"
                )
            time.sleep(_wait_s(attempt))
        raise AssertionError

    def _failure(self, name: str, error: _RefusedError) -> StorageError:
        where = f"{self.address.rstrip('/')}/{name}"
        return StorageError(f"{where} is refused ({error}): {_WAYS_OUT.get(error.code, _OTHER_WAY_OUT)}")


def split_address(address: str) -> tuple[str, str]:
    """Bucket and prefix of an address; a prefix that is not empty ends in a slash.

    Raises:
        UsageError: it is not `s3://BUCKET/PREFIX`.
    """
    found = _ADDRESS.fullmatch(address)
    prefix = "" if found is None else (found["prefix"] or "").strip("/")
    if found is None or "//" in prefix or not prefix.isprintable():
        raise UsageError(f"{address} is no address in S3: expected s3://BUCKET/PREFIX")
    return found["bucket"], prefix and f"{prefix}/"


def _wait_s(attempt: int) -> float:
    """Seconds before the next attempt: some chance in it keeps workers that fail together from coming back together."""
    return min(FIRST_WAIT_S * 2.0 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _body(content: bytes) -> dict[str, Any]:
    """Content with the digest that every service compares it with."""
    md5 = hashlib.md5(content, usedforsecurity=False).digest()
    return {"Body": content, "ContentMD5": b64encode(md5).decode()}


def _opened(content: bytes | Path) -> BytesIO | BufferedReader:
    return BytesIO(content) if isinstance(content, bytes) else content.open("rb")


@functools.lru_cache(maxsize=1)
def connections(process: int) -> Any:  # noqa: ARG001 - the number keeps a fork from its parent's connections
    """Connections of this process, used by all of its threads."""
    try:
        from botocore.config import Config
        from botocore.session import get_session
    except ModuleNotFoundError as error:
        raise UsageError(f's3:// needs the package {error.name}: pip install "magc[s3]"') from None
    # Asking again is `_ask`'s part: its limits hold whatever the environment says.
    once = Config(retries={"total_max_attempts": 1, "mode": "standard"}, connect_timeout=10, read_timeout=60)
    return get_session().create_client("s3", config=once)
