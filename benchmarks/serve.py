"""Requests per second and the slowest of a hundred, against the bare model in a loop:
python benchmarks/serve.py

A server of its own process, LeNet on 28x28 images, asked through HTTP by 1, 4 and 16 clients; the
loop reads the same image, makes a batch of one and calls the model, in this process.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
from PIL import Image

from benchmarks.predict import config_of, write_images
from parse_config import ConfigParser
from predict import load_run
from train import build

ROOT = Path(__file__).resolve().parent.parent


def image() -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(file, 'png')
    return file.getvalue()


def show(name: str, n_requests: int, took_s: float, latencies: list[float]) -> None:
    latencies = sorted(latencies)
    middle, slow = (1000 * latencies[int(share * len(latencies))] for share in (0.5, 0.99))
    print(f'{name:12} {n_requests / took_s:7.0f} per second, p50 {middle:6.2f}, p99 {slow:6.2f} ms')


def ask(url: str, content: bytes, n_clients: int, seconds: float) -> None:
    latencies, until = [], time.perf_counter() + seconds

    def client() -> None:
        with httpx.Client(base_url=url) as line:
            while (began := time.perf_counter()) < until:
                line.post('/predict', content=content).raise_for_status()
                latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    show(f'{n_clients} clients', len(latencies), seconds, latencies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=5.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / 'images', 200)
        config = ConfigParser(config_of(folder, 0))
        build(config).train()
        run, content, latencies = load_run(config.save_dir), image(), []
        started = time.perf_counter()
        while (began := time.perf_counter()) < started + seconds:
            run.predict([content])
            latencies.append(time.perf_counter() - began)
        show('bare model', len(latencies), seconds, latencies)
        command = [sys.executable, '-m', 'tools.serve', '-r', str(config.save_dir), '--port', '0']
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            url = re.search(r'http://\S+', server.stdout.readline())[0]
            for n_clients in (1, 4, 16):
                ask(url, content, n_clients, seconds)
        finally:
            server.terminate()
            server.wait()


if __name__ == '__main__':
    main()
