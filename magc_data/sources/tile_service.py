"""What all tile services share: ask for a block's tiles politely, judge each answer once, remember it, read it back."""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.errors import FetchError, SourceError
from magc_data.image_check import check_tile_bytes
from magc_data.schema.sample import ImageFormat, Reason, Rejection, TileImage
from magc_data.sources.cache import COMMIT_EVERY_S, Answer, Cache, now_utc
from magc_data.sources.http import (
    IMAGERY_POLICY,
    METADATA_POLICY,
    RequestFailedError,
    remove_secrets,
    remove_secrets_of,
    service_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from shapely.geometry.base import BaseGeometry

    from magc_data.grid import Block, Tile
    from magc_data.sources.capture_dates import CaptureDates
    from magc_data.sources.http import HttpClient, HttpResponse
    from magc_data.sources.protocols import BlockAvailability, SourceInfo

MAX_TILE_BYTES = MAX_DOCUMENT_BYTES = 8 << 20
PLACEHOLDER_ETAG = "10i954m13i2"
"""ETag of World Imagery's 'no data' picture."""
HOPELESS_TILES = 16
"""If at least so many tiles of a block were asked for and every one failed, the service is not what it should be."""

_NO_TILE_STATUSES = frozenset({204, 404, 410, 422})
_REFUSAL_STATUSES = frozenset({401, 403, 498, 499})  # the last two are ArcGIS' own: invalid token, token required
_HEADERS_KEPT = ("content-type", "etag", "last-modified")


class Verdict(NamedTuple):
    """What was made of an answer; stored as JSON beside it."""

    format: str = ""
    """Of an accepted image; empty for a rejected one."""
    transcoded: bool = False
    """The image is made from the server's bytes, which are of another format."""
    reason: str = ""
    detail: str = ""
    image_sha256: str | None = None


class TileService:
    """An imagery source that answers a GET for each tile.

    Pickled (for the workers), it has forgotten how to ask, and with that every key in the address.

    Args:
        info: free of secrets, like everything here but `tile_url`.
        cache: this source's alone.
        tile_url: address of a tile.
        bucket: name of the service in the rate limiter.
        captures: what tells when the tiles were photographed, where anything does.
    """

    def __init__(
        self,
        info: SourceInfo,
        cache: Cache,
        tile_url: Callable[[Tile], str],
        bucket: str,
        captures: CaptureDates | None = None,
    ) -> None:
        self.info = info
        self.captures = captures
        self.cache = cache
        self._tile_url: Callable[[Tile], str] | None = tile_url
        self._bucket = bucket

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tile_url": None}

    def extent(self) -> BaseGeometry | None:
        """None: tile services do not say what they cover."""
        return None

    def availability(self, block: Block, http: HttpClient) -> BlockAvailability | None:  # noqa: ARG002 - the protocol's
        """None: most services cannot tell without sending the tiles."""
        return None

    def absent_tiles(self, block: Block, wanted: Collection[Tile], http: HttpClient) -> frozenset[Tile]:  # noqa: ARG002 - for subclasses
        """Those of the wanted tiles that the service says it does not have, so that they need not be asked for."""
        return frozenset()

    def fetch(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Bring the block's tiles into the cache; what is settled there is not asked for again.

        Raises:
            FetchError: the service does not work at all.
            SourceError: the service refuses (HTTP 401, 403), or the cache cannot be used.
        """
        if self.captures is not None:
            self.captures.fetch(block, http)
        self.fetch_tiles(block, http, on_tile)

    def fetch_tiles(self, block: Block, http: HttpClient, on_tile: Callable[[], None]) -> None:
        """The same without the dates of capture."""
        settled = self.cache.settled([tile.key for tile in block.tiles])
        wanted = [tile for tile in block.tiles if tile.key not in settled]
        for _ in settled:
            on_tile()
        if not wanted:
            return
        try:
            absent = self.absent_tiles(block, wanted, http)
            no_tile = Rejection(Reason.NOT_AVAILABLE, "the service lists no tile here")
            for tile in wanted:
                if tile in absent:
                    self.cache.put(_rejected(tile, 0, {}, no_tile))
                    on_tile()
            self._ask_all([tile for tile in wanted if tile not in absent], http, on_tile)
        finally:
            self.cache.flush()

    def read(self, tile: Tile) -> TileImage | Rejection:
        """The tile as it was fetched, without decoding it again, with what is known of its capture.

        Raises:
            SourceError: the cache cannot be used.
        """
        answer = self.cache.read(tile.key)
        image = _judged(answer)
        if self.captures is None or answer is None or isinstance(image, Rejection):
            return image
        capture = self.captures.at(tile, answer.fetched_at)
        return image._replace(capture_date=capture.date, capture=capture)

    def read_undated(self, tile: Tile) -> TileImage | Rejection:
        """The same without the date of capture."""
        return _judged(self.cache.read(tile.key))

    def _ask_all(self, tiles: list[Tile], http: HttpClient, on_tile: Callable[[], None]) -> None:
        """Ask through threads; only the calling thread writes and reports."""
        finished: SimpleQueue[Future[Answer]] = SimpleQueue()
        failed = 0
        last_detail = ""
        pool = ThreadPoolExecutor(IMAGERY_POLICY.concurrency, thread_name_prefix="tiles")
        try:
            for tile in tiles:
                pool.submit(self._ask, tile, http).add_done_callback(finished.put)
            for _ in tiles:
                answer = self._next(finished).result()
                self.cache.put(answer)
                if answer.transient:
                    failed += 1
                    last_detail = Verdict(**json.loads(answer.verdict)).detail
                on_tile()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failed == len(tiles) >= HOPELESS_TILES:
            raise FetchError(
                f"{self._bucket} gave none of the {failed} tiles asked for, instead of the last one {last_detail}: "
                f"check the address ({self.info.address}) and the network connection, then run the same command again"
            )

    def _next(self, finished: SimpleQueue[Future[Answer]]) -> Future[Answer]:
        while True:
            try:
                return finished.get(timeout=COMMIT_EVERY_S)
            except Empty:
                self.cache.flush_if_due()

    def _ask(self, tile: Tile, http: HttpClient) -> Answer:
        """One tile's answer, judged. Runs in a thread."""
        if self._tile_url is None:
            raise SourceError(f"{self.info.name}: a worker's copy of this source cannot fetch")
        url = self._tile_url(tile)
        judged: TileImage | Rejection | None = None

        def complaint(response: HttpResponse) -> str | None:
            nonlocal judged
            judged = self._judge(response, url)
            return judged.detail if isinstance(judged, Rejection) and judged.transient else None

        try:
            response = http.request(
                "GET",
                url,
                policy=IMAGERY_POLICY,
                complaint=complaint,
                bucket=self._bucket,
                max_body_bytes=MAX_TILE_BYTES,
            )
        except RequestFailedError as error:
            if not isinstance(judged, Rejection):
                judged = Rejection(Reason.FETCH_FAILED, error.seen, transient=True)
            return _rejected(tile, 0, {}, judged)
        if response.status != 200 or judged is None:
            judged = self._judge(response, url)
        headers = {name: response.headers[name] for name in _HEADERS_KEPT if name in response.headers}
        if isinstance(judged, Rejection):
            return _rejected(tile, response.status, headers, judged)
        verdict = Verdict(judged.format.value, transcoded=judged.data is not response.body)
        return Answer(tile.key, response.status, headers, response.body, _as_json(verdict), False, now_utc())

    def _judge(self, response: HttpResponse, url: str) -> TileImage | Rejection:
        status = _arcgis_error_code(response.body) or response.status
        if status in _REFUSAL_STATUSES:
            raise SourceError(
                f"{service_name(url)} refuses to give tiles (HTTP {status}): check that its address holds a valid key "
                f"or token and that its terms allow this use ({self.info.address})"
            )
        if status in _NO_TILE_STATUSES:
            return Rejection(Reason.NOT_AVAILABLE, f"HTTP {status}")
        if status != 200:
            return Rejection(Reason.FETCH_FAILED, f"HTTP {status}", transient=True)
        etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
        if response.headers.get("blank-tile", "").strip().lower() == "true" or etag == PLACEHOLDER_ETAG:
            digest = hashlib.sha256(response.body).hexdigest()
            return Rejection(Reason.PLACEHOLDER, "marked by the service as its 'no data' picture", False, digest)
        judged = check_tile_bytes(response.body, transient=True)
        # An error page may repeat the key that it was asked with.
        return (
            judged._replace(detail=remove_secrets_of(url, judged.detail)) if isinstance(judged, Rejection) else judged
        )


def _judged(answer: Answer | None) -> TileImage | Rejection:
    """What was made of an answer when it came."""
    if answer is None:
        return Rejection(Reason.FETCH_FAILED, "not fetched yet", transient=True)
    verdict = Verdict(**json.loads(answer.verdict))
    if verdict.transcoded:
        return check_tile_bytes(answer.body, transient=False)
    if verdict.format:
        return TileImage(answer.body, ImageFormat(verdict.format))
    return Rejection(Reason(verdict.reason), verdict.detail, answer.transient, verdict.image_sha256)


def _rejected(tile: Tile, status: int, headers: dict[str, str], rejection: Rejection) -> Answer:
    verdict = Verdict(reason=rejection.reason.value, detail=rejection.detail, image_sha256=rejection.image_sha256)
    return Answer(tile.key, status, headers, b"", _as_json(verdict), rejection.transient, now_utc())


def _as_json(verdict: Verdict) -> str:
    return json.dumps({name: value for name, value in verdict._asdict().items() if value})


def _arcgis_error_code(body: bytes) -> int | None:
    """ArcGIS servers report errors with HTTP 200 and `{"error": {"code": 498, ...}}`."""
    if not body.startswith(b"{") or len(body) > 65536:
        return None
    try:
        return int(json.loads(body)["error"]["code"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


# --- what a service says of itself -----------------------------------------------------------------------------------


def live_document(url: str, key: str, cache: Cache, http: HttpClient) -> bytes:
    """A JSON document; where the service cannot be reached, as `remember_document` last kept it (the log says so).

    So a dataset can be made anew from its cache without a network.

    Raises:
        FetchError: the service cannot be reached and the document was never seen.
        SourceError: the service answers with an error.
    """

    def complaint(response: HttpResponse) -> str | None:
        return None if isinstance(parsed_json(response.body), dict) else "something that is not JSON"

    try:
        response = http.request(
            "GET", url, policy=METADATA_POLICY, complaint=complaint, max_body_bytes=MAX_DOCUMENT_BYTES
        )
    except FetchError as error:
        remembered = cache.read(key)
        if remembered is None:
            raise
        logging.getLogger(__name__).warning("%s; going on with what was fetched before", error)
        return remembered.body
    if response.status != 200:
        raise SourceError(
            f"{remove_secrets(url)} answered HTTP {response.status}: expected a JSON document; "
            "check the address (and its token, if it needs one)"
        )
    return response.body


def remember_document(key: str, status: int, body: bytes, cache: Cache) -> Answer:
    """Keep a document beside the tiles."""
    answer = Answer(key, status, {}, body, "{}", False, now_utc())
    cache.put(answer)
    cache.flush()
    return answer


def parsed_json(body: bytes) -> Any:
    """A document from outside, whatever it holds; None where it is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
