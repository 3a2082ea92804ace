import os


def ensure_dir(path):
    if not os.path.exists(path):
        os.makedirs(path)


def chunks(items, n):
    for i in range(0, len(items), n):
        yield items[i:i + n]
