"""Hostile requests to tools.serve, which has to answer all of them and the honest ones between:
python -m tests.serve_faults --requests 2000

Random bytes, cut and flipped images, JSON of every wrong kind, forms without an end, wrong methods
and lengths. Each must be answered with a status below 500, or 503; after each hundred an honest
request must be answered as before.
"""

import argparse
import io
import json
import logging
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ATOMS = [None, True, -1, 1e308, '', 'x' * 300, '\ud800', 'NaN', [], {}, [[]], 10**30, 0.1, '1_5']
JSON = {'Content-Type': 'application/json'}


def picture(draw: random.Random) -> bytes:
    from PIL import Image

    size = draw.choice([(1, 1), (28, 28), (300, 2), (64, 64)])
    mode = draw.choice(['L', 'RGB', 'RGBA', 'P', '1', 'I;16', 'CMYK'])
    kind = draw.choice(['png', 'jpeg', 'gif', 'bmp', 'webp', 'tiff'])
    file = io.BytesIO()
    try:
        Image.new(mode, size, 1).save(file, kind)
    except (OSError, ValueError, KeyError):  # not every format has every mode
        Image.new('L', size, 1).save(file, 'png')
    return file.getvalue()


def damaged(content: bytes, draw: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(draw.randrange(1, 8)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content[: draw.randrange(len(content) + 1)] if draw.random() < 0.5 else content)


def value(draw: random.Random, depth: int = 0) -> Any:
    if depth > 4 or draw.random() < 0.4:
        return draw.choice(ATOMS)
    if draw.random() < 0.5:
        return [value(draw, depth + 1) for _ in range(draw.randrange(5))]
    names = ['inputs', 'price', 'thousand_km', '', 'x' * 99, '\0']
    return {draw.choice(names): value(draw, depth + 1) for _ in range(draw.randrange(5))}


def hostile(draw: random.Random) -> dict[str, Any]:
    """The arguments of a request."""
    kind = draw.randrange(12)
    post = {'method': 'POST', 'url': '/predict'}
    if kind == 0:
        return {**post, 'content': draw.randbytes(draw.randrange(3000))}
    if kind == 1:
        return {**post, 'content': damaged(picture(draw), draw)}
    if kind == 2:
        files = [('file', (draw.choice(['', 'a.png', '../../x']), damaged(picture(draw), draw)))]
        return {**post, 'files': files * draw.choice([1, 2, 300])}
    if kind == 3:
        return {**post, 'headers': JSON, 'content': json.dumps(value(draw)).encode()}
    if kind == 4:
        deep = draw.choice([b'[', b'{"a":']) * draw.choice([50, 950, 100_000])
        return {**post, 'headers': JSON, 'content': deep}
    if kind == 5:
        return {**post, 'headers': JSON, 'content': damaged(b'{"inputs": [[1, 2], NaN]}', draw)}
    if kind == 6:
        head = {
            'Content-Type': draw.choice(['multipart/form-data', 'multipart/form-data; boundary=x'])
        }
        return {**post, 'headers': head, 'content': b'--x\r\n' * draw.randrange(99)}
    if kind == 7:
        method = draw.choice(['GET', 'PUT', 'DELETE', 'OPTIONS', 'PATCH'])
        return {'method': method, 'url': draw.choice(['/predict', '/nothing', '/../etc/passwd'])}
    if kind == 8:
        top = draw.choice(['0', '-1', 'x', '1e9', '%00', '5', '99999999999999999999'])
        return {**post, 'url': f'/predict?top={top}', 'content': picture(draw)}
    if kind == 9:
        return {**post, 'content': bytes(draw.choice([0, 1, 9_000_000]))}  # the last is too large
    if kind == 10:
        return {**post, 'headers': JSON, 'content': json.dumps({'inputs': [value(draw)] * 300})}
    head = {draw.choice(['Content-Type', 'X-Y']): draw.choice(['', ';;;', 'application/json' * 99])}
    return {**post, 'headers': head, 'content': b'{}'}


def attack(client: Any, honest: dict[str, Any], n_requests: int, seed: int = 0) -> Counter:
    """How often which status was answered. Raises AssertionError for what must not happen."""
    draw, counts = random.Random(seed), Counter()
    expected = client.request(**honest).json()
    assert 'predictions' in expected, expected
    for number in range(n_requests):
        request = hostile(draw)
        answer = client.request(**request)
        counts[answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code == 503, (number, request, answer.text)
        if number % 100 == 99:
            assert client.request(**honest).json() == expected, f'after request {number}'
    assert client.get('/health').json()['status'] == 'ok'
    return counts


def main() -> None:
    import httpx

    from tests.test_serve import served
    from tests.trained import train_run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--requests', type=int, default=2000)
    n_requests = parser.parse_args().requests
    logging.getLogger('httpx').setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for kind, content in (
            ('images', {'content': picture(random.Random(1))}),
            ('own_dataset', {'json': np.zeros(32).tolist()}),
        ):
            run = train_run(kind, Path(folder, kind))
            with served(run) as (url, process), httpx.Client(base_url=url, timeout=60) as client:
                honest = {'method': 'POST', 'url': '/predict', **content}
                counts = attack(client, honest, n_requests)
                assert process.poll() is None
            print(f'{kind}: {n_requests} hostile requests, answered', dict(sorted(counts.items())))


if __name__ == '__main__':
    main()
