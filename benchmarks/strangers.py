"""What strangers can make a server say: Schemathesis' cases for every operation of the document that the server itself gives.

    python benchmarks/strangers.py [--cases 10000] [--processes 2] [--seed 0]

A server of its own answers for a model that takes every kind of column: numbers, codes, words, truths as truths and as words, dates, with
and without missing values, an id, a time, a protected attribute. Each operation gets a third of its cases by the document, a third against
it, and a third that no document tells: other methods, drawn addresses, headers and bodies. Keys and ids of predictions are such that the
cases get past the first refusal: half of the keys are new, half of the outcomes are of predictions that were made. The share of answers
200 is printed beside what came, and every refusal of a request that fits the document is told in groups: how many, what the server
said, and the shortest body it said it about. Every tenth case is sent again without the token.

Hypothesis only draws here: nothing is targeted or kept in a database, and what is found is told, not shortened, so that the cases cost
what drawing and sending them costs. Schemathesis' own phases `examples` and `coverage` are run once beside it. Exit status 1 where
anything was found. It needs the packages that the tests need.
"""
import argparse, collections, http.client, json, multiprocessing, random, re, signal, subprocess, sys, tempfile, time
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
from serving import TOKEN
from serving_faults import Serving

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
HEADERS, METHODS, ROUND = {'Authorization': f'Bearer {TOKEN}'}, ['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH', 'TRACE', 'CONNECT', 'get', 'X'], 200


def every_kind(n: int, seed: int=0) -> pd.DataFrame:
    "Synthetic rows with every kind of column that a model can take."
    draw = np.random.default_rng(seed)
    x, day = draw.normal(size=n), pd.Timestamp('2024-01-01')+pd.to_timedelta(draw.integers(0, 700, n), 'D')
    some = lambda values: pd.Series(values, dtype=object).where(draw.random(n) > .2)
    return pd.DataFrame({'id': [f'p{i}' for i in range(n)], 'at': day.strftime('%Y-%m-%d'), 'x': x, 'gap': some(draw.normal(size=n)).astype(float), 'code': draw.integers(1, 5, n),
                         'word': draw.choice(['a', 'b', 'c'], n), 'maybe': some(draw.choice(['u', 'v'], n)), 'flag': draw.random(n) < .5, 'said': draw.choice(['yes', 'no'], n),
                         'since': (day-pd.to_timedelta(draw.integers(0, 4000, n), 'D')).strftime('%Y-%m-%d'), 'sex': draw.choice(['f', 'm'], n),
                         'label': np.where(x+draw.normal(scale=.5, size=n) > 0, 'yes', 'no')})


def prepared(folder: Path) -> tuple: # project, a body that it answers
    "A project whose champion takes every kind of column."
    from served import crown, new_project, register
    from sklearn.linear_model import LogisticRegression
    from mlcycle.service import open_service
    from mlcycle.inputs import to_records
    project, rows = new_project(folder, data='id = "id"\ntime = "at"\nprotected = ["sex"]\ndrop = ["sex"]'), every_kind(400)
    crown(project, register(project, rows, LogisticRegression()))
    return project, json.dumps({'records': to_records(rows.head(1), open_service(project).schema())})


class Refusals(dict):
    "Refusals of requests that fit the document: (operation, status, what was said) → how many, and the shortest that was sent."
    def see(self, where: str, answer, sent) -> None:
        "Count one."
        told = answer.json()
        said = '; '.join(dict.fromkeys(f'{e["column"]}: {e["message"]}' for e in told.get('errors') or ())) or told['message']
        body, key = sent.body.decode() if isinstance(sent.body, bytes) else sent.body or '', sent.headers.get('Idempotency-Key')
        self._add((where, answer.status_code, PLACE.sub('…', said)[:300]), 1, f'{sent.path_url} {f"key {key!r} " if key else ""}{body}'[:500])

    def _add(self, group: tuple, n: int, sent: str) -> None:
        before, shortest = self.get(group, (0, sent))
        self[group] = before+n, min(shortest, sent, key=len)

    def join(self, other: 'Refusals') -> None:
        "Those of another caller beside these."
        for group, (n, sent) in other.items(): self._add(group, n, sent)

    def __str__(self) -> str:
        groups = sorted(self.items(), key=lambda pair: (pair[0][0], -pair[1][0]))
        return '\n'.join(f'{n:>6} × {where} {status}: {said}\n         {sent}' for (where, status, said), (n, sent) in groups) or 'none'

PLACE = re.compile(r"(?<![\w.])'[^']*'|(?<![\w.])\d+(?![\w.])|\b[0-9a-f]{32}\b")   # what differs from one refusal to the next of its kind


class Talk:
    "One caller: sends cases, and writes down what is not as it should be."
    def __init__(self, port: int, seed: int):
        import requests
        self.port, self.session, self.draw, self.n = port, requests.Session(), random.Random(seed), 0
        self.statuses, self.findings, self.refused, self.known = collections.Counter(), collections.Counter(), Refusals(), collections.deque(maxlen=1000)

    def take(self) -> tuple: # statuses, findings, refusals
        "What came since this was last asked."
        came = self.statuses, self.findings, self.refused
        self.statuses, self.findings, self.refused = collections.Counter(), collections.Counter(), Refusals()
        return came

    def ask(self, case, way: str) -> None:
        "A case of Schemathesis: called, checked; one in ten without a token."
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
        checks, self.n, where = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance], self.n+1, f'{case.method.upper()} {case.path}'
        if way == 'by the document': self._deepen(case)
        answer = case.call(headers=HEADERS, session=self.session, timeout=30)
        self.statuses[where, way, answer.status_code] += 1
        try: case.validate_response(answer, headers=HEADERS, checks=checks)
        except BaseException as error: self.findings[where, way, str(error)[:2000]] += 1
        self._told(where, way, answer.status_code, answer.content)
        if way == 'by the document' and 400 <= answer.status_code < 500: self.refused.see(where, answer, answer.request)
        if case.path == '/predict' and answer.status_code == 200: self.known += [p['prediction_id'] for p in answer.json()['predictions']]
        if self.n % 10 == 0 and case.path != '/health':
            status = case.call(headers=HEADERS | {'Authorization': 'Bearer wrong-wrong-wrong'}, session=self.session, timeout=30).status_code
            self.statuses[case.path, 'without the token', status] += 1
            if status != 401: self.findings[where, way, f'without the token: {status}'] += 1

    def _deepen(self, case) -> None:
        if self.n % 2: return
        key = (case.headers or {}).get('Idempotency-Key')
        if isinstance(key, str): case.headers['Idempotency-Key'] = f'{self.draw.getrandbits(64):x}-{key}'[:255].rstrip()
        if case.path == '/label' and self.known:
            for label in case.body['labels']: label['prediction_id'] = self.draw.choice(self.known)

    def plainly(self, path: str, sent: tuple) -> None:
        "A request that no document tells."
        method, query, headers, body = sent
        line = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        try:
            line.putrequest(method, path+query, skip_accept_encoding=True)
            for name, value in {**HEADERS, **headers, 'Content-Length': str(len(body))}.items(): line.putheader(name, value)
            line.endheaders(body)
            answer = line.getresponse()
            self.statuses[path, 'untold', answer.status] += 1
            self._told(path, 'untold', answer.status, answer.read())
        except (http.client.HTTPException, OSError) as error: self.findings[path, 'untold', f'{error!r} for {method} {query!r} {headers}'[:500]] += 1
        finally: line.close()

    def _told(self, where: str, way: str, status: int, content: bytes) -> None:
        if b'Traceback' in content or status >= 500: self.findings[where, way, f'{status}: {content[:500]!r}'] += 1


def untold(usual: str):
    "Methods, addresses, headers and bodies that no document tells."
    from hypothesis import strategies as st
    plain = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=' #?'), max_size=40)
    name = st.text(st.sampled_from('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_'), min_size=1, max_size=20).filter(lambda n: n.lower() not in ('authorization', 'host', 'content-length', 'transfer-encoding', 'connection', 'expect', 'upgrade'))
    known = st.sampled_from(['Content-Type', 'Accept', 'Origin', 'X-Forwarded-For', 'X-HTTP-Method-Override', 'Range', 'If-None-Match', 'Cookie', 'Idempotency-Key', 'Content-Encoding', 'Forwarded'])
    value = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters=''.join(map(chr, range(127, 160)))), max_size=60).map(str.strip) | st.sampled_from(['application/json', 'gzip', '*/*', 'null', ''])
    body = st.binary(max_size=60) | st.sampled_from([b'', b'{}', b'[]', b'{"records": []}', b'[{}]', b'null', b'[1e999]'])
    return st.tuples(st.just(usual) | st.sampled_from(METHODS), st.just('') | plain.map('?'.__add__) | plain.map('/'.__add__), st.dictionaries(name | known, value, max_size=4).map({'Content-Type': 'application/json'}.__or__), body)


def talk(port: int, cases: int, seed: int, said) -> None:
    "All operations in turn, a round of each way and then the next; puts what came of each turn into a queue, and None at the end."
    import schemathesis
    from schemathesis.generation import GenerationMode
    api, caller = schemathesis.openapi.from_url(f'http://127.0.0.1:{port}/openapi.json', headers=HEADERS), Talk(port, seed)
    ways, size = {'by the document': GenerationMode.POSITIVE, 'against it': GenerationMode.NEGATIVE}, -(-cases//3)
    work = [([(partial(caller.ask, way=way), operation.as_strategy(generation_mode=mode)) for way, mode in ways.items()],
             (partial(caller.plainly, operation.path), untold(operation.method.upper()))) for operation in [found.ok() for found in api.get_all_operations()]]
    for begun in range(0, size, ROUND):
        turn, salt = min(ROUND, size-begun), seed*1_000_003+begun
        for told, (do, strategy) in work:
            drawn = sum(draw(s, d, turn, salt) for d, s in told)
            draw(strategy, do, 3*turn-drawn, salt)   # what the document leaves nothing to draw for
        said.put(caller.take())
    said.put(None)


def draw(strategy, do, cases: int, seed: int) -> int: # cases drawn
    "Draw and do; ends early where there is nothing more to draw."
    import hypothesis
    from hypothesis.errors import Unsatisfiable
    done = [0]
    @hypothesis.seed(seed)
    @hypothesis.given(strategy)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, phases=[hypothesis.Phase.generate], suppress_health_check=[*hypothesis.HealthCheck])
    def some(drawn) -> None:
        done[0] += 1
        do(drawn)
    try: some()
    except Unsatisfiable: pass   # nothing can be wrong about a GET without parameters
    return done[0]


def phases(port: int, folder: Path) -> int: # exit status
    "Schemathesis' own cases by its own command: the document's examples, and each constraint at its edges."
    command = [str(Path(sys.executable).parent/'schemathesis'), 'run', f'http://127.0.0.1:{port}/openapi.json', '--header', f'Authorization: Bearer {TOKEN}', '--phases', 'examples,coverage',
               '--checks', 'not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance', '--request-timeout', '10']
    return subprocess.run(command, cwd=folder).returncode   # it leaves a cache where it runs


async def around(folder: Path, cases: int, processes: int, seed: int) -> tuple: # statuses, findings, refusals, status of the phases
    "Start, talk, stop."
    import asyncio
    (project, body), statuses, findings, refused = prepared(folder/'project'), collections.Counter(), collections.Counter(), Refusals()
    server, said = Serving(folder, project.folder, 1), multiprocessing.Queue()
    await server.start(body)
    try:
        memory, callers = [server.memory()], [multiprocessing.Process(target=talk, args=(server.port, cases//processes, seed*processes+i, said)) for i in range(processes)]
        for c in callers: c.start()
        for _ in callers:
            while (part := await asyncio.to_thread(said.get)) is not None:
                statuses, findings = statuses+part[0], findings+part[1]
                refused.join(part[2])
                print(f'{sum(statuses.values()):,} cases, {sum(findings.values())} findings', table(statuses, findings).to_string(index=False), sep='\n', flush=True)
        for c in callers: c.join()
        status = await asyncio.to_thread(phases, server.port, folder)
        memory.append(server.memory())
    finally: await server.end(signal.SIGTERM)
    if 'Traceback' in (log := server.log.read_text()): findings['server', 'log', log[log.index('Traceback'):][:3000]] += log.count('Traceback')
    print(f'memory of the server, MB: {memory[0]:.0f} before, {memory[1]:.0f} after')
    return statuses, findings, refused, status


def table(statuses: collections.Counter, findings: collections.Counter) -> pd.DataFrame:
    "A line for each operation and way."
    ways = dict.fromkeys((where, way) for where, way, _ in statuses)
    def line(where: str, way: str) -> dict:
        mine = {s: n for (w, y, s), n in statuses.items() if (w, y) == (where, way)}
        return {'operation': where, 'way': way, 'cases': sum(mine.values()), '200': f'{mine.get(200, 0)/sum(mine.values()):.0%}',
                'came': ' '.join(f'{s}:{n}' for s, n in sorted(mine.items())), 'findings': sum(n for (w, y, _), n in findings.items() if (w, y) == (where, way))}
    return pd.DataFrame([line(*w) for w in sorted(ways)])


def main() -> None:
    import asyncio
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=10_000, help='of an operation')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', default='.', help='where the server writes')
    given, started = parser.parse_args(), time.time()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        statuses, findings, refused, status = asyncio.run(around(Path(place).resolve(), given.cases, given.processes, given.seed))
    print(table(statuses, findings).to_string(index=False))
    print(f'{sum(statuses.values()):,} cases in {time.time()-started:.0f} s; {sum(findings.values())} findings')
    print(f'\nrefused, though by the document:\n{refused}')
    for (where, way, what), n in findings.most_common(): print(f'\n{n} × {where}, {way}:\n{what}')
    sys.exit(bool(findings or status))


if __name__ == '__main__': main()
