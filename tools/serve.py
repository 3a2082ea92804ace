"""Serve a trained model on this machine: python -m tools.serve -r saved/models/NAME/RUN

Or a file that tools.export wrote as ONNX, for which torch need not be installed. POST /predict
takes images, rows, sentences or arrays; / is a page to try it on; /health and /metrics are for
machines.
What clients send is judged by its size before it is read, and waits in a queue that has an end.
"""

import argparse
import asyncio
import functools
import json
import logging
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armature.errors import ConfigError, exit_on_user_error, positive
from tools.arguments import positive_number
from tools.exported_model import ExportedModel
from tools.use_inputs import ImageInput
from tools.use_outputs import finite

PAGE = Path(__file__).with_name('serve.html')
N_LATENCIES = 1000  # of which /metrics gives the quantiles
SENT = {  # what /predict takes, for the OpenAPI page
    'multipart/form-data': {
        'schema': {
            'type': 'object',
            'properties': {
                'file': {'type': 'array', 'items': {'type': 'string', 'format': 'binary'}}
            },
        }
    },
    'application/json': {
        'schema': {
            'description': 'one input, or several as {"inputs": [...]}: a row {"column": value}, a '
            'sentence, an array of numbers'
        }
    },
    'application/octet-stream': {'schema': {'type': 'string', 'format': 'binary'}},
}


@dataclass
class Limits:
    """What a client may ask for; the rest is refused with 413, 422 or 503 and a word."""

    max_bytes: int = 8 * 2**20  # of a request
    max_pixels: int = 25_000_000  # of an image
    max_words: int = 10_000  # of a sentence
    max_inputs: int = 256  # in a request
    timeout_s: float = 30.0  # from a request's first byte to its answer
    max_queue: int = 64  # requests that wait


class Refused(Exception):
    """A request that is not answered: the status, and why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Service:
    """Answers requests one after the other, in a thread of its own, and counts them.

    model: has predict(sources, top), input_format and class_names (a run, an ExportedModel).
    """

    def __init__(self, model: Any, limits: Limits):
        self.model, self.limits = model, limits
        for name in ('max_pixels', 'max_words'):
            if hasattr(model.input_format, name):
                setattr(model.input_format, name, getattr(limits, name))
        self.n_waiting, self.counts = 0, Counter()
        self.latencies_s = deque(maxlen=N_LATENCIES)
        self.thread = ThreadPoolExecutor(1, 'model')

    async def answer(self, request: Any, top: int) -> dict[str, Any]:
        """A row for each input, and what whoever sent them may not expect. Raises Refused."""
        from starlette.requests import ClientDisconnect

        try:
            async with asyncio.timeout(self.limits.timeout_s):
                sources = await self._sources(request)
                if self.n_waiting >= self.limits.max_queue:
                    raise Refused(503, f'{self.n_waiting} requests wait already: try again later')
                self.n_waiting += 1
                try:
                    work = functools.partial(self.model.predict, sources, top)
                    rows = await asyncio.get_running_loop().run_in_executor(self.thread, work)
                finally:
                    self.n_waiting -= 1
        except TimeoutError:
            why = f'not done within {self.limits.timeout_s:g} seconds: send less, or later'
            raise Refused(503, why) from None
        except ClientDisconnect:
            raise Refused(400, 'the client has left') from None
        except RecursionError:
            raise Refused(422, 'nested too deeply') from None
        except Refused:
            raise
        except Exception as error:  # the model's own
            logging.exception('the model has failed')
            raise Refused(500, f'the model has failed: {type(error).__name__}') from error
        if all('error' in row for row in rows):
            raise Refused(422, '; '.join(row['error'] for row in rows[:3]))
        notes = self.model.input_format.notes(sources)
        return {'predictions': [finite(row) for row in rows]} | ({'notes': notes} if notes else {})

    async def _sources(self, request: Any) -> list[Any]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.max_bytes:
                raise Refused(413, f'more than {self.limits.max_bytes:,} bytes')
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        if kind == 'multipart/form-data':
            sources = await self._files(request.headers, bytes(body))
        elif kind == 'application/json':
            sources = parsed(bytes(body))
        else:
            sources = [bytes(body)]
        if not sources or len(sources) > self.limits.max_inputs:
            raise Refused(413 if sources else 422, f'expected 1 to {self.limits.max_inputs} inputs')
        takes_files = isinstance(self.model.input_format, ImageInput)
        if takes_files != all(isinstance(source, bytes) for source in sources):
            expected = 'JSON, with the header Content-Type: application/json'
            if takes_files:
                expected = 'an image: its bytes, or a form with files'
            raise Refused(422, f'this model takes {expected}')
        return sources

    async def _files(self, headers: Any, body: bytes) -> list[bytes]:
        from starlette.formparsers import MultiPartException, MultiPartParser

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        most = self.limits.max_inputs + 1
        try:
            form = await MultiPartParser(headers, chunks(), max_files=most, max_fields=most).parse()
        except (MultiPartException, ValueError, KeyError) as error:
            raise Refused(422, f'this is no form with files: {error}') from error
        files = [each for _, each in form.multi_items() if not isinstance(each, str)]
        try:
            return [await each.read() for each in files]
        finally:
            await form.close()

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        lines = ['# TYPE predict_requests_total counter']
        lines += [
            f'predict_requests_total{{status="{status}"}} {n}'
            for status, n in sorted(self.counts.items())
        ]
        lines += ['# TYPE predict_waiting gauge', f'predict_waiting {self.n_waiting}']
        lines.append('# TYPE predict_latency_seconds summary')
        latencies = sorted(self.latencies_s)
        for share in (0.5, 0.9, 0.99) if latencies else ():
            value = latencies[min(len(latencies) - 1, int(share * len(latencies)))]
            lines.append(f'predict_latency_seconds{{quantile="{share}"}} {value:.6f}')
        return '\n'.join(lines) + '\n'

    def about(self) -> dict[str, Any]:
        """What the page needs to know of the model."""
        input_format = self.model.input_format
        known = ('size', 'mode', 'numeric', 'categorical', 'categories', 'shape')
        return {
            'takes': type(input_format).__name__,
            'classes': self.model.class_names,
            **{name: getattr(input_format, name) for name in known if hasattr(input_format, name)},
        }


def parsed(body: bytes) -> list[Any]:
    """The inputs in a JSON text: {"inputs": [...]}, or one of them alone."""

    def refuse(name: str) -> None:
        raise ValueError(f'{name} is no number that JSON knows')

    try:
        found = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        why = 'nested too deeply' if isinstance(error, RecursionError) else error
        raise Refused(422, f'this is no JSON: {why}') from error
    if isinstance(found, dict) and isinstance(found.get('inputs'), list):
        return found['inputs']
    return [found]


def create_app(model: Any, limits: Limits | None = None) -> Any:
    """The FastAPI application that answers with `model`."""
    from fastapi import FastAPI, Query, Request
    from fastapi.responses import HTMLResponse, PlainTextResponse, Response

    service = Service(model, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.thread.shutdown()

    # Without FastAPI's own page, which loads its scripts from elsewhere.
    app = FastAPI(title='A trained model', docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post('/predict', openapi_extra={'requestBody': {'content': SENT}})
    async def predict(request: Request, top: int = Query(1, ge=1, le=1000)) -> Response:
        """A row for each input: prediction and probability of the `top` classes, or value."""
        began = time.perf_counter()
        try:
            status, answer = 200, await service.answer(request, top)
        except Refused as refused:
            status, answer = refused.status, {'detail': str(refused)}
        service.counts[status] += 1
        service.latencies_s.append(time.perf_counter() - began)
        headers = {'Retry-After': '1'} if status == 503 else None
        # In ASCII: what is repeated of the request need not be text that can be encoded.
        return Response(json.dumps(answer), status, headers, 'application/json')

    @app.get('/health')
    async def health() -> dict[str, Any]:
        return {'status': 'ok', 'waiting': service.n_waiting}

    @app.get('/metrics')
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics())

    @app.get('/about')
    async def about() -> dict[str, Any]:
        return service.about()

    @app.get('/', include_in_schema=False)
    @app.get('/docs', include_in_schema=False)
    async def page() -> HTMLResponse:
        own = "default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"
        return HTMLResponse(
            PAGE.read_text(encoding='utf-8'), headers={'Content-Security-Policy': own}
        )

    return app


def model_of(path: str) -> Any:
    """An exported ONNX file (or its folder), which needs no torch; else a run."""
    file = Path(path, 'model.onnx') if Path(path, 'model.onnx').is_file() else Path(path)
    if file.suffix == '.onnx':
        if not file.is_file():
            raise ConfigError(f'{file} is not there: name a file that tools.export wrote')
        return ExportedModel(file)
    from predict import load_run  # imports torch

    return load_run(path)


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise ConfigError(
            f'{host}:{port} cannot be had ({reason}): take another --port or --host'
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '-r',
        '--resume',
        metavar='MODEL',
        required=True,
        help='a run folder, a checkpoint, a packed folder, or a model.onnx',
    )
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 is for everybody')
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--max-mb', type=positive_number, default=Limits.max_bytes / 2**20)
    parser.add_argument('--max-pixels', type=positive, default=Limits.max_pixels)
    parser.add_argument(
        '--timeout', type=positive_number, default=Limits.timeout_s, help='in seconds'
    )
    parser.add_argument('--max-queue', type=positive, default=Limits.max_queue)
    with exit_on_user_error():
        given = parser.parse_args()
        try:
            import fastapi  # noqa: F401
            import multipart  # noqa: F401 (python-multipart, which forms need)
            import uvicorn
        except ImportError as error:
            raise ConfigError(
                f'{error.name} is not installed: pip install -r requirements-serve.txt'
            ) from error
        model = model_of(given.resume)
        limits = Limits(
            int(given.max_mb * 2**20),
            given.max_pixels,
            timeout_s=given.timeout,
            max_queue=given.max_queue,
        )
        app = create_app(model, limits)
        listener = listen(given.host, given.port)
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        print(f'http://{given.host}:{listener.getsockname()[1]} answers', flush=True)
        # On SIGTERM nothing new is taken, and what is under way is finished.
        server = uvicorn.Config(
            app,
            log_level='warning',
            timeout_graceful_shutdown=int(given.timeout) + 1,
            limit_concurrency=500,
        )
        uvicorn.Server(server).run(sockets=[listener])


if __name__ == '__main__':
    main()
