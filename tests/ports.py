"""A port for a server of the tests."""
import random, socket

POOL = range(20_000, 32_000)         # below those that outgoing connections take, so that none of them takes it before the server does


def free_port() -> int:
    "A port of the loopback address where nobody listens."
    for port in random.Random().sample(POOL, 50):
        with socket.socket() as s:
            try: s.bind(('127.0.0.1', port))
            except OSError: continue
            return port
    raise OSError(f'50 ports between {POOL[0]} and {POOL[-1]} are all taken')
