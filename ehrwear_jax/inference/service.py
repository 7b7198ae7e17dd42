"""Answers appends, reads and predictions over HTTP: the application that serve.py runs.

    POST /append   {"patient", "key", "events": [...], "signal": [...]}   -> {"appended": true}; false: it was before
    POST /read     {"patient", "time"}                                     -> {"z": [...]}
    POST /predict  {"patient", "task", "time"}                             -> {"prediction": {...}}
    POST /erase    {"patient"}                                             -> {"erased": true}
    GET  /health                                                           -> {"status": "ok"}

Patients are named in bodies and never in addresses, so that they are in no log of a proxy. All but /health need
`Authorization: Bearer TOKEN`. What is refused is answered by {"error": one sentence} and 400 (no JSON, or not these
fields), 401, 404 (no such patient, task or address), 409 (a key with other rows), 413 (too large a body), 408 (too slow
a body), 422 (rows that cannot be used), 429 (more requests than the token's rate), 503 (too many waiting).

One thread does all the work, in the order of the requests; others are turned away before they wait long. A line of the
log has the address's path, the status and the milliseconds: no patient, no body, no text of an error.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ehrwear_jax.inference.state_store import KeyTaken, StateStore, UnknownPatient

LOG = logging.getLogger("ehrwear_jax.serve")
_LONGEST_NAME = 256  # characters of a patient, a key, a task, a time
FIELDS: dict[str, dict[str, type]] = {
    "append": {"patient": str, "key": str, "events": list, "signal": list},
    "read": {"patient": str, "time": str},
    "predict": {"patient": str, "task": str, "time": str},
    "erase": {"patient": str},
}
_OPTIONAL = {"events", "signal"}
_BODY_UNREAD = (401, 408, 413, 429, 503)  # answers before all of the body has come, of which no more is then wanted


class Limits(NamedTuple):
    """What the service takes.

    Attributes:
      body_bytes: of a request. body_seconds: within which it has arrived.
      rate: requests a second of a token, on average; burst: at once. waiting: requests in all.
    """

    body_bytes: int = 8 * 2**20
    body_seconds: float = 20.0
    rate: float = 100.0
    burst: int = 200
    waiting: int = 64


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, sentence: str, retry_seconds: int = 0) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_seconds = status, sentence, retry_seconds


class Bucket:
    """Lets `rate` requests a second pass on average, and `burst` at once."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._last = float(burst), clock()

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = self._clock()
        self._left, self._last = min(self._burst, self._left + (now - self._last) * self._rate), now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Service:
    """The routes over a StateStore.

    Args:
      store: used by the service's own thread alone. tokens: any of which a request may bear.

    Raises:
      ValueError: there is no token.
    """

    def __init__(self, store: StateStore, tokens: Iterable[str], limits: Limits | None = None) -> None:
        self._store, self._limits = store, limits or Limits()
        self._tokens = [t.encode() for t in tokens]
        if not self._tokens or not all(self._tokens):
            raise ValueError("the service needs a token that requests bear")
        self._buckets = [Bucket(self._limits.rate, self._limits.burst) for _ in self._tokens]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._n_waiting = 0

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [Route(f"/{name}", self._endpoint(name), methods=["POST"]) for name in FIELDS]
        routes.append(Route("/health", self._health, methods=["GET"]))
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._worker.shutdown(wait=True)
        self._store.close()

    async def _health(self, _: Request) -> Response:
        return _answer(200, {"status": "ok"})

    def _endpoint(self, name):
        async def answer(request: Request) -> Response:
            begin = time.monotonic()
            try:
                response = _answer(200, await self._answered(name, request))
            except Refused as refused:
                response = _answer(refused.status, {"error": refused.sentence}, refused.retry_seconds)
            except ClientDisconnect:
                response = _answer(400, {"error": "the request ended before its body"})
            LOG.info("/%s %d %.0f ms", name, response.status_code, 1e3 * (time.monotonic() - begin))
            return response

        return answer

    async def _answered(self, name, request):
        bucket = self._buckets[self._token_of(request)]
        if not bucket.take():
            raise Refused(429, "more requests than the rate of the token", 1)
        if self._n_waiting >= self._limits.waiting:
            raise Refused(503, "too many requests are waiting", 1)
        self._n_waiting += 1
        try:
            body = await self._body(request)
            # shielded: work that began is finished and accounted for, whoever has stopped listening
            work = asyncio.get_running_loop().run_in_executor(self._worker, self._worked, name, body)
            return await asyncio.shield(work)
        finally:
            self._n_waiting -= 1

    def _token_of(self, request):
        """Which token the request bears, found in a time that tells nothing of it."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        same = [hmac.compare_digest(given.encode(), token) for token in self._tokens]
        if kind.lower() != "bearer" or not any(same):
            raise Refused(401, "a token is needed: Authorization: Bearer TOKEN")
        return same.index(True)

    async def _body(self, request):
        """The body, of which no more than the limit is ever in memory."""
        too_large = Refused(413, f"the body is larger than {self._limits.body_bytes:,} bytes")
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self._limits.body_bytes:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limits.body_bytes:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, "the body took too long") from None
        return b"".join(parts)

    def _worked(self, name, body):
        """What a request is answered, in the worker's thread."""
        given = _fields(name, body)
        try:
            return getattr(self, f"_{name}")(**given)
        except Refused:
            raise
        except UnknownPatient:
            raise Refused(404, "nothing is known of this patient") from None
        except KeyTaken as error:
            raise Refused(409, str(error)) from None
        except ValueError as error:
            raise Refused(422, str(error)) from None
        except BaseException as error:  # a panic of polars is no Exception; the next request finds the state as on disk
            LOG.error("/%s failed: %s", name, type(error).__name__)
            raise Refused(500, "the request failed, and nothing of it was taken") from None

    def _append(self, patient, key, events=None, signal=None):
        return {"appended": self._store.append(patient, key, events, signal)}

    def _read(self, patient, time):
        return {"z": [_number(x) for x in self._store.read(patient, time).tolist()]}

    def _predict(self, patient, task, time):
        if task not in self._store.model.tasks:
            raise Refused(404, f"the model has no such task; it has {', '.join(self._store.model.tasks) or 'none'}")
        found = self._store.predict(patient, task, time)
        return {"prediction": {name: _number(x) for name, x in found.items()}}

    def _erase(self, patient):
        return {"erased": self._store.erase(patient)}


def _number(x):
    return None if x is None or (isinstance(x, float) and not math.isfinite(x)) else x


def _answer(status, content, retry_seconds=0):
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": str(retry_seconds)} if retry_seconds else {})
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Connection": "close"} if status in _BODY_UNREAD else {}
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def _no_constant(_):
    raise ValueError("no JSON")


def _fields(name: str, body: bytes) -> dict[str, Any]:
    """The fields of a request; Refused unless they are those of FIELDS."""
    try:
        given = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    wanted = FIELDS[name]
    if not isinstance(given, dict) or set(given) - set(wanted) or set(wanted) - set(given) - _OPTIONAL:
        raise Refused(400, f"the body is to be an object with {', '.join(wanted)}")
    for field, value in given.items():
        if not isinstance(value, wanted[field]):
            kind = "text" if wanted[field] is str else "a list"
            raise Refused(400, f"{field} is to be {kind}")
        if isinstance(value, str) and not 0 < len(value) <= _LONGEST_NAME:
            raise Refused(400, f"{field} is to have 1 to {_LONGEST_NAME} characters")
    return given
