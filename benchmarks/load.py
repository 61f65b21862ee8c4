"""A closed-loop HTTP client: C connections, each sends a request, waits for the whole answer, and sends the next.

    python benchmarks/load.py PLAN.json       the plan comes in a file, the figures go to standard output as JSON

A plan holds host, port, path, headers, bodies (a list of texts, sent in turn), clients, seconds and warm (seconds that are
not counted). Requests are built before the first is sent, so that the client costs every server alike and little.
"""
import asyncio, json, sys, time


class Caller(asyncio.Protocol):
    "One connection: the time of every answer, by status."
    def __init__(self, requests: list[bytes], first: int, until: float, done: asyncio.Future):
        self.requests, self.turn, self.until, self.done = requests, first, until, done
        self.times, self.statuses, self.buffer = [], {}, b''

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(self.requests[self.turn % len(self.requests)])
        self.turn += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not whole(self.buffer): return
        now, status = time.perf_counter(), int(self.buffer[9:12])
        self.times.append((now, now-self.started))
        self.statuses[status] = self.statuses.get(status, 0)+1
        if status != 200 and len(self.statuses) == 1: self.shown = self.buffer
        self.buffer = b''
        if now < self.until: self.send()
        else: self.transport.close()

    def connection_lost(self, error) -> None:
        if not self.done.done(): self.done.set_result(None)


def whole(answer: bytes) -> bool:
    "Whether an answer has arrived to its end."
    head, found, body = answer.partition(b'\r\n\r\n')
    if not found: return False
    lower = head.lower()
    at = lower.find(b'content-length:')
    if at >= 0: return len(body) >= int(lower[at+15:].split(b'\r\n', 1)[0])
    return body.endswith(b'0\r\n\r\n')


def requests(plan: dict) -> list[bytes]:
    "The bytes of each request."
    headers = {'Host': f'{plan["host"]}:{plan["port"]}', 'Content-Type': 'application/json', **plan.get('headers', {})}
    head = ''.join(f'{k}: {v}\r\n' for k, v in headers.items())
    bodies = [b.encode() for b in plan['bodies']]
    return [f'POST {plan["path"]} HTTP/1.1\r\n{head}Content-Length: {len(b)}\r\n\r\n'.encode()+b for b in bodies]


async def run(plan: dict) -> dict:
    "Latencies in seconds (sorted), answers a second, and how often each status came."
    loop, sent = asyncio.get_running_loop(), requests(plan)
    begun = time.perf_counter()+plan.get('warm', 0)
    callers = []
    for i in range(plan['clients']):
        callers.append(caller := Caller(sent, i*7, begun+plan['seconds'], loop.create_future()))
        await loop.create_connection(lambda: caller, plan['host'], plan['port'])
    await asyncio.gather(*(c.done for c in callers))
    counted = sorted(took for c in callers for at, took in c.times if at >= begun)
    ended = max(c.times[-1][0] for c in callers if c.times)
    statuses = {}
    for c in callers:
        for status, n in c.statuses.items(): statuses[str(status)] = statuses.get(str(status), 0)+n
    at = lambda share: counted[min(len(counted)-1, int(share*len(counted)))]
    return {'n': len(counted), 'median': at(.5), 'p90': at(.9), 'p99': at(.99), 'rate': len(counted)/(ended-begun), 'statuses': statuses,
            'shown': next((c.shown[-500:].decode('utf-8', 'replace') for c in callers if hasattr(c, 'shown')), '')}


if __name__ == '__main__':
    with open(sys.argv[1], encoding='utf-8') as f: print(json.dumps(asyncio.run(run(json.load(f)))))
