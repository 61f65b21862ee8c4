"""What a server under load loses when it is killed.

    python benchmarks/serving_faults.py [--seconds 600] [--kills 3] [--clients 8] [--workers 2]

It keeps a server under load while it is killed with SIGKILL at even distances, started again, and its champion rolled back
and retired in the middle. Then it counts, over every answer with status 200 that a caller has in hand: predictions that are not in the
log (lost), that are in it twice (doubled), and answers by a version that was retired or rolled back two seconds before the request was
sent, or that was never approved. All three must be 0. The memory of the server's largest process is taken at the beginning and at the
end, and that of each process all the while: one that is killed and its successor are told apart, and one that grows shows a rise in the
later half of its time.
"""
import argparse, asyncio, json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
from serving import ALONE, OURS, TOKEN, ask, free_port, make_project, records, rows, script


class Serving:
    "A server of its own process group that is killed and started again on one port."
    def __init__(self, folder: Path, project: Path, workers: int):
        self.command = lambda: [sys.executable, script(folder, 'ours.py', OURS), str(self.port), str(project), str(workers)]
        self.port, self.log, self.ready = free_port(), folder/'server.log', asyncio.Event()

    async def start(self, body: str) -> None:
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(self.command(), env={**ALONE, 'MLCYCLE_TOKEN': TOKEN}, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            if self.process.poll() is not None: raise SystemExit(f'the server ended: {self.log.read_text()[-2000:]}')
            try: await asyncio.to_thread(ask, self.port, '/predict', body); break
            except OSError: await asyncio.sleep(.1)
        else: raise SystemExit('the server did not start')
        self.ready.set()

    def memory(self) -> float:
        "Megabytes of the largest process."
        return max(self.each().values())

    def each(self) -> dict[int, float]: # process → megabytes
        "The memory of the server's processes that can answer."
        import psutil
        try:
            first = psutil.Process(self.process.pid)
            found = [p for p in first.children(recursive=True) if 'resource_tracker' not in ' '.join(p.cmdline())] or [first]
            return {p.pid: p.memory_info().rss/2**20 for p in found}
        except psutil.NoSuchProcess: return {}   # it is being killed

    async def end(self, how: int) -> None:
        self.ready.clear()
        os.killpg(self.process.pid, how)
        await asyncio.to_thread(self.process.wait, 60)
        try: os.killpg(self.process.pid, signal.SIGKILL)   # a worker that outlived it
        except ProcessLookupError: pass


async def call(server: Serving, bodies: list[bytes], until: float, came: list) -> None:
    "One caller: a connection, a request, the whole answer; what it has in hand goes to `came`."
    turn, sent = 0, 0.
    while time.monotonic() < until:
        await server.ready.wait()
        try: reader, writer = await asyncio.open_connection('127.0.0.1', server.port)
        except OSError: await asyncio.sleep(.05); continue
        try:
            while time.monotonic() < until:
                body, sent = bodies[turn % len(bodies)], time.time()
                turn += 1
                writer.write(f'POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'.encode()+body)
                head = await reader.readuntil(b'\r\n\r\n')
                length = int(head.lower().partition(b'content-length:')[2].split(b'\r\n')[0])
                answer = await reader.readexactly(length)
                status = int(head[9:12])
                said = [(p['prediction_id'], p['version']) for p in json.loads(answer)['predictions']] if status == 200 else [(None, None)]
                came += [(sent, status, *s) for s in said]
        except (OSError, asyncio.IncompleteReadError): came.append((sent, 0, None, None))   # it was killed while this one waited: no answer, no promise
        finally: writer.close()


async def watch(server: Serving, until: float, every: float) -> list[tuple]: # (process, when, megabytes)
    "The memory of each process while there is load."
    found = []
    while time.monotonic() < until:
        if server.ready.is_set(): found += [(pid, time.monotonic(), mb) for pid, mb in server.each().items()]
        await asyncio.sleep(every)
    return found


def growth(seen: list[tuple]) -> list[str]: # one a process, in the order in which they came
    "What a process had when its load began, at most, and at the end; and how fast the later half of its time added to it."
    lines = []
    for _, t in pd.DataFrame(seen, columns=['process', 'at', 'mb']).groupby('process', sort=False):
        lasted, late = t['at'].iloc[-1]-t['at'].iloc[0], t[t['at'] >= (t['at'].iloc[0]+t['at'].iloc[-1])/2]
        slope = np.polyfit(late['at'], late['mb'], 1)[0]*60 if len(late) > 2 else float('nan')
        lines.append(f'{lasted:4.0f} s: {t["mb"].iloc[0]:.0f} MB, at most {t["mb"].max():.0f}, last {t["mb"].iloc[-1]:.0f}; {slope:+.1f} a minute in the later half')
    return lines


async def faults(folder: Path, project, bodies: list[bytes], *, seconds: float, kills: int, clients: int, workers: int) -> dict:
    "Load, kills and one rollback; returns what was counted."
    server, came, body = Serving(folder, project.folder, workers), [], bodies[0].decode()
    await server.start(body)
    try:
        memory, until = [server.memory()], time.monotonic()+seconds
        callers = [asyncio.create_task(call(server, bodies[i:]+bodies[:i], until, came)) for i in range(clients)]
        watching = asyncio.create_task(watch(server, until, min(5, seconds/20)))
        gone = await trouble(server, project, body, seconds=seconds, kills=kills)
        await asyncio.gather(*callers)
        memory.append(server.memory())
    finally: await server.end(signal.SIGTERM)
    return counted(project, came, gone)|{'memory_mb': [round(m) for m in memory], 'each process': growth(await watching)}


async def trouble(server: Serving, project, body: str, *, seconds: float, kills: int) -> float: # when the rollback was done
    "Kills at even distances, a rollback past the middle, then the retirement of what was rolled back from."
    from mlcycle.registry import rollback
    steps = sorted([('kill', (i+1)/(kills+1)) for i in range(kills)]+[('rollback', .55), ('retire', .7)], key=lambda s: s[1])
    begun, gone = time.monotonic(), 0.
    for what, share in steps:
        await asyncio.sleep(max(0, begun+share*seconds-time.monotonic()))
        if what == 'kill':
            await server.end(signal.SIGKILL)
            await server.start(body)
        elif what == 'rollback':
            await asyncio.to_thread(rollback, project, because='a fault on purpose')
            gone = time.time()
        else: project.ledger.append(stage='retirement', kind='retirement', subject='2', actor='Ada', body={'version': '2', 'successor': '1', 'because': 'a fault on purpose'})
    return gone


def counted(project, came: list, gone: float) -> dict:
    "What is in hand against what is in the log."
    from mlcycle.scoring import predictions
    log = predictions(project)['prediction_id']
    given = pd.DataFrame(came, columns=['sent', 'status', 'id', 'version'])
    good = given[given['status'] == 200]
    wrong = (good['version'] == '2') & (good['sent'] > gone+2) | ~good['version'].isin(['1', '2'])
    return {'answers': len(good), 'other statuses': given.loc[given['status'] != 200, 'status'].value_counts().to_dict(), 'lost': int((~good['id'].isin(log)).sum()),
            'doubled': int(log.duplicated().sum()), 'by a retired or unapproved version': int(wrong.sum()), 'kept and not told': len(log)-len(good),
            'rolled back from 2 to 1 within s': round(float(good.loc[good['version'] == '2', 'sent'].max()-gone), 2)}


def prepared(folder: Path, n: int) -> tuple: # project, bodies
    "A project with a champion, an approved second version that takes its place, and a third that nobody approved."
    from mlcycle.plans import encode_target, infer_plan
    from mlcycle.gates import approval_digest
    from mlcycle.registry import promote
    from serving import pipeline
    data = rows(n+200)
    project, _ = make_project(folder/'project', data.head(n))
    plan = infer_plan(data.head(n), project.settings)
    stored = project.ledger.last('snapshot', 'train').body['hash']
    for seed in (1, 2):
        part = data.head(n).sample(frac=.8, random_state=seed)
        fitted = pipeline().fit(part[plan.inputs], encode_target(part['label'], project.settings))
        version = project.registry.register(fitted, example=part[plan.inputs].head(), facts={'algorithm': 'boosting', 'plan': plan.body(), 'data': stored, 'threshold': .5}).version
    project.ledger.append(stage='validation', kind='validation', subject='2', body={'verdict': 'pass'}, actor='Ada')
    project.ledger.append(stage='governance', kind='approval', subject='2', actor='Grace',
                          body={'version': '2', 'by': 'Grace', 'because': 'a benchmark', 'digest': approval_digest(project, '2')})
    project.ledger.append(stage='retraining', kind='comparison', subject='2', body={'champion': '1', 'promotable': True}, actor='Ada')
    promote(project, '2', to='champion', because='a benchmark')
    asked = data.tail(200).drop(columns='label').reset_index(drop=True)
    return project, [records(asked.iloc[[i]]).encode() for i in range(100)]


def run_faults(folder: Path, *, seconds: float, kills: int=3, clients: int=8, workers: int=2, n: int=5000) -> dict:
    "All of it in a folder."
    project, bodies = prepared(folder, n)
    return asyncio.run(faults(folder, project, bodies, seconds=seconds, kills=kills, clients=clients, workers=workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=600)
    parser.add_argument('--kills', type=int, default=3)
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--folder', default='.', help='where the server writes')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place).resolve()
        found = run_faults(folder, seconds=given.seconds, kills=given.kills, clients=given.clients, workers=given.workers)
    for line in found.pop('each process'): print(f'a process that lived under load for {line}')
    for name, value in found.items(): print(f'{name:40} {value}')
    if found['lost'] or found['doubled'] or found['by a retired or unapproved version']: sys.exit(1)


if __name__ == '__main__': main()
