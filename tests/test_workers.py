"""Several processes on one address, under real load: promotion and rollback, the split, a worker's death, the drain."""
import json, os, re, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import httpx
import psutil
import pytest
from sklearn.linear_model import LogisticRegression
from mlcycle.core import Project
from mlcycle.inputs import input_schema, to_records
from mlcycle.plans import infer_plan
from mlcycle.registry import rollback
from mlcycle.scoring import predictions
from mlcycle.service import ProjectService
from mlcycle.spool import waiting
from mlcycle.traffic import arms, set_traffic
from mlcycle.workers import make_no_more
from served import crown, new_project, register, sign, strange_rows
from ports import free_port
from test_serving import TOKEN, start
from waiting import PATIENCE, until

HEADERS = {'Authorization': f'Bearer {TOKEN}'}


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Project:
    project = new_project(tmp_path_factory.mktemp('workers')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    register(project, strange_rows(seed=5), LogisticRegression())
    return project


@pytest.fixture(scope='module')
def server(project):
    port = free_port()
    run = start(project, port=port, workers=2)
    yield run, port
    if run.poll() is None: run.kill()
    run.wait(PATIENCE)
    run.stderr.close()


class Load:
    "Callers in threads, each a new connection every few requests; what came back, with its time."
    def __init__(self, port: int, record: dict, callers: int=3):
        self.port, self.record, self.came, self.failed, self.over = port, record, [], [], threading.Event()
        self.threads = [threading.Thread(target=self.call, args=(i,)) for i in range(callers)]

    def call(self, i: int) -> None:
        n = 0
        while not self.over.is_set():
            with httpx.Client(base_url=f'http://127.0.0.1:{self.port}', headers=HEADERS, timeout=PATIENCE) as client:
                for _ in range(5):
                    if self.over.is_set(): break
                    n += 1
                    sent = time.monotonic()
                    try: answer = client.post('/predict', json={'records': [self.record | {'id': f'{i}-{n}'}]})
                    except httpx.TransportError as error: self.failed.append((sent, repr(error))); break
                    body = answer.json()
                    said = (body['predictions'][0]['prediction_id'], body['predictions'][0]['version']) if answer.status_code == 200 else (None, answer.text)
                    self.came.append((sent, time.monotonic(), answer.status_code, f'{i}-{n}', *said))

    def __enter__(self):
        for t in self.threads: t.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        for t in self.threads: t.join()


def record_of(project: Project) -> dict:
    rows = strange_rows()
    return to_records(rows.head(1), input_schema(infer_plan(rows, project.settings), project.settings, sample=rows))[0]


def workers_of(run) -> list[psutil.Process]:
    def works(p: psutil.Process) -> bool:
        try: return p.status() != psutil.STATUS_ZOMBIE and 'resource_tracker' not in ' '.join(p.cmdline())
        except psutil.NoSuchProcess: return False     # it ended meanwhile
    return [p for p in psutil.Process(run.pid).children() if works(p)]


def told(load: Load, version: str, since: float=0, n: int=30) -> None:
    "Wait until some that asked after a moment were told a version."
    until(lambda: sum(sent > since and v == version for sent, *_, v in [*load.came]) >= n)


def longest_after(load: Load, version: str, since: float, before: float) -> float:
    "How long after a moment somebody still asked who was then told a version."
    return max((sent-since for sent, *_, v in load.came if since < sent < before and v == version), default=0)


def test_promotion_rollback_and_split_under_load_drop_nothing(project, server):
    run, port = server
    assert len(workers_of(run)) == 2
    with Load(port, record_of(project)) as load:
        told(load, '1')
        crown(project, '2')
        promoted = time.monotonic()
        time.sleep(2.5)
        told(load, '2', promoted)
        asked = time.monotonic()
        rollback(project, because='it was a mistake')     # it holds before this returns
        back = time.monotonic()
        time.sleep(2.5)
        told(load, '1', back)
        done = time.monotonic()
        sign(project, '2')
        split = set_traffic(project, {'2': .3}, because='a test')
        for version in '12': told(load, version, time.monotonic())
    assert not load.failed and {status for _, _, status, *_ in load.came} == {200} and len(load.came) >= 150
    slowest = max(came-sent for sent, came, *_ in load.came)     # the look at the ledger is a part of somebody's answer
    assert longest_after(load, '1', promoted, asked) < ProjectService.every+2*slowest
    assert longest_after(load, '2', back, done) < ProjectService.every+2*slowest
    log = predictions(project).set_index('prediction_id')
    kept = log.loc[[i for *_, i, _ in load.came]]
    assert log.index.is_unique and kept['version'].tolist() == [v for *_, v in load.came]
    mine = kept[kept['epoch'] == split.epoch]
    assert set(mine['version']) == {'1', '2'} and (mine['version'] == arms(split, mine['id'])).all()     # each id by its arm, in every process


def test_figures_are_those_of_all_workers(project, server):
    run, port = server
    record = record_of(project)
    def counted() -> list[float]:
        texts = [httpx.get(f'http://127.0.0.1:{port}/metrics', headers=HEADERS, timeout=PATIENCE).text for _ in range(6)]
        return [sum(float(n) for n in re.findall(r'^mlcycle_predictions_total\{.*\} (\S+)$', text, re.M)) for text in texts]
    for _ in range(20): assert httpx.post(f'http://127.0.0.1:{port}/predict', json={'records': [record]*6}, headers=HEADERS, timeout=PATIENCE).status_code == 200
    before = counted()
    assert len(set(before)) == 1 and before[0] >= 120     # whoever is asked
    for _ in range(20): assert httpx.post(f'http://127.0.0.1:{port}/predict', json={'records': [record]}, headers=HEADERS, timeout=PATIENCE).status_code == 200
    assert set(counted()) == {before[0]+20}


def test_threads_share_few_pools_of_memory(project, server):
    "A pool that the C library keeps for some threads is 64 MB of addresses, at a multiple of 64 MB, of which a part can be written."
    run, port = server
    body = json.dumps({'records': [record_of(project) | {'id': 'x'*150}]*1500})
    def ask(_) -> int: return httpx.post(f'http://127.0.0.1:{port}/predict', content=body, headers=HEADERS | {'Content-Type': 'application/json'}, timeout=PATIENCE).status_code
    with ThreadPoolExecutor(12) as callers: assert {*callers.map(ask, range(24))} == {200}
    def pools(pid: int) -> int:
        lines = re.findall(r'(?m)^([0-9a-f]+)-[0-9a-f]+ rw-p 00000000 00:00 0 *\n([0-9a-f]+)-([0-9a-f]+) ---p 00000000 00:00 0', Path(f'/proc/{pid}/maps').read_text())
        return sum(int(start, 16) % 2**26 == 0 and int(end, 16)-int(start, 16) == 2**26 for start, _, end in lines)
    if sys.platform == 'linux': assert all(pools(p.pid) <= 2 for p in workers_of(run)), [pools(p.pid) for p in workers_of(run)]


def test_a_worker_dies_and_another_takes_its_place(project, server):
    run, port = server
    victim = workers_of(run)[0]
    with Load(port, record_of(project)) as load:
        until(lambda: load.came)
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: not victim.is_running())   # a dead leader whose threads still end holds its sockets
        gone, came = time.monotonic(), len(load.came)+3
        until(lambda: len(workers_of(run)) == 2 and len(load.came) > came)
    assert {status for _, _, status, *_ in load.came} == {200} and all(sent < gone for sent, _ in load.failed)     # only what was in its hands
    there = predictions(project)['prediction_id']
    assert there.is_unique and {i for *_, i, _ in load.came} <= set(there)


def test_sigterm_lets_each_finish(project, server):
    run, port = server
    processes, before = [psutil.Process(run.pid), *workers_of(run)], len(predictions(project))+waiting(project, 'predictions')
    with Load(port, record_of(project)) as load:
        until(lambda: len(load.came) > 20)
        run.terminate()
        assert run.wait(PATIENCE) == 0
        load.over.set()
    assert {status for _, _, status, *_ in load.came} == {200}
    assert [why for _, why in load.failed if 'ConnectError' not in why] == []     # whoever was let in got an answer; the others were refused
    assert waiting(project, 'predictions') == 0 and not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    kept = predictions(project)['prediction_id']
    assert {i for *_, i, _ in load.came} <= set(kept) and len(kept)-before == len(load.came)     # what was cut was not begun: it can be sent again


SLOW = '''import sys
from mlcycle import workers
workers.SLOWEST = 2.0
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        while True: await send({'type': (await receive())['type']+'.complete'})
    import asyncio; await asyncio.sleep(3 if scope['path'] == '/long' else 0)
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'2')]})
    await send({'type': 'http.response.body', 'body': b'ok'})
workers.run_alone(app, port=int(sys.argv[1]), log_level='error', timeout_keep_alive=20, server_header=False)'''


def connected(port: int) -> socket.socket | None:
    try: return socket.create_connection(('127.0.0.1', port), timeout=PATIENCE)
    except OSError: return None


def test_who_never_finishes_asking_is_not_waited_for():
    "Nothing, half a head, a second head that drips: closed; a request that is long at work is answered, and may be followed by another."
    port = free_port()
    run = subprocess.Popen([sys.executable, '-c', SLOW, str(port)])
    def line(*said: bytes) -> socket.socket:
        one = until(lambda: connected(port))
        for part in said: one.sendall(part)
        return one
    ask = lambda path: f'GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode()
    try:
        with line() as nothing, line(b'GET / HTTP/1.1\r\nHo') as half, line(ask('/'), b'GET / HTTP/1.1\r\nHo') as second, line(ask('/long')) as long:
            assert nothing.recv(100) == half.recv(100) == b''                     # ended by the server
            told = b''
            while part := second.recv(1000): told += part
            assert told.count(b'200 OK') == 1
            told = b''
            while b'\r\n\r\nok' not in told:
                told += (part := long.recv(1000))
                assert part
            long.sendall(ask('/'))
            assert b'200 OK' in long.recv(1000)
    finally: run.terminate(); run.wait(PATIENCE)


@pytest.mark.skipif(sys.platform != 'linux', reason='filters are asked for on Linux alone')
def test_where_the_system_takes_no_filter_the_door_is_shut_without():
    "A system whose room for filters is spent refuses one (EPERM), as a locked address does: who waits is taken all the same, and nothing is raised."
    with socket.create_server(('127.0.0.1', 0)) as door:
        door.setsockopt(socket.SOL_SOCKET, 44, 1)   # SO_LOCK_FILTER
        with pytest.raises(PermissionError): door.setsockopt(socket.SOL_SOCKET, 26, bytes(16))
        with socket.create_connection(door.getsockname()) as caller:
            shutting = threading.Thread(target=make_no_more, args=(door,))
            shutting.start()
            with door.accept()[0] as taken:
                shutting.join(PATIENCE)
                caller.sendall(b'here')
                assert taken.recv(4) == b'here' and not shutting.is_alive()


def test_a_head_of_a_request_has_an_end():
    "A header without end, headers without end: refused after some ten thousand bytes; a long body behind a short head is not."
    port = free_port()
    run = subprocess.Popen([sys.executable, '-c', SLOW, str(port)])
    def told(head: bytes, part: bytes, most: int) -> tuple[int, bytes]: # bytes that were taken, answer
        sent = 0
        with until(lambda: connected(port)) as line:
            try:
                line.sendall(head)
                while sent < most: line.sendall(part); sent += len(part); time.sleep(.001)
                return sent, line.recv(100)
            except OSError: return sent, b''
    try:
        for part in (b'a'*10_000, b'X: '+b'a'*9_000+b'\r\n'):
            taken, answer = told(b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ', part, 50_000_000)
            assert taken < 20_000_000 and b'200' not in answer
        taken, answer = told(b'POST /long HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n', b'a'*10_000, 1_000_000)
        assert taken == 1_000_000 and b'200 OK' in answer
    finally: run.terminate(); run.wait(PATIENCE)
