"""Serving: the door, strict records, what a stranger can learn, durability under kill -9, and the end of a version's life."""
import asyncio, gc, json, os, re, signal, socket, subprocess, sys, time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from sklearn.linear_model import LogisticRegression
from mlcycle import logbook, service as service_module, serving
from mlcycle.access import find_token, may_listen
from mlcycle.paths import ScoringPath
from mlcycle.core import Blocked, DataError, Project, SettingsError
from mlcycle.deployment import build_bundle
from mlcycle.inputs import FEW, BadRequest, InputColumn, RecordReader, frame_of, input_schema, to_records, valid_records
from mlcycle.plans import infer_plan
from mlcycle.scoring import label as label_rows, labelled, predictions, score
from mlcycle.service import collect
from mlcycle.serving import create_app
from mlcycle.spool import Writer, waiting
from ports import free_port
from waiting import PATIENCE, until
from served import FORMULA, HTML, LONG, crown, new_project, register, retire, strange_rows, taken_in

TOKEN = 'a-token-for-tests-0123456789'


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Project:
    "A project whose champion was trained on strangers' columns; `sex` is only logged."
    project = new_project(tmp_path_factory.mktemp('serving')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    return project


@pytest.fixture(scope='module')
def app(project): return create_app(project, token=TOKEN)


@pytest.fixture(scope='module')
def client(app): return TestClient(app, base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)


@pytest.fixture(scope='module')
def record(project) -> dict:
    rows = strange_rows()
    return to_records(rows.head(1), input_schema(infer_plan(rows, project.settings), project.settings, sample=rows))[0]


def post(client, body: bytes | str | dict, path: str='/predict', **headers):
    body = json.dumps(body) if isinstance(body, dict) else body
    return client.post(path, content=body, headers={'Content-Type': 'application/json', **headers})


# --- the door

BAD_TOKENS = [{}, {'Authorization': ''}, {'Authorization': 'Bearer'}, {'Authorization': 'Bearer '}, {'Authorization': 'Bearer wrong'}, {'Authorization': f'Bearer {TOKEN}x'},
              {'Authorization': f'Bearer {TOKEN[:-1]}'}, {'Authorization': f'Basic {TOKEN}'}, {'Authorization': 'Basic !!!'}, {'Authorization': f'Bearer {"é"*20}'.encode()},
              {'X-Token': TOKEN}, {'Cookie': f'token={TOKEN}'}]


def test_every_route_asks_for_the_token_but_health(app):
    "Every entry of app.routes, every method; a new route that is open makes this fail."
    stranger = TestClient(app, base_url='http://localhost', raise_server_exceptions=False)
    assert {'/predict', '/label', '/health', '/ready', '/metrics', '/model', '/docs', '/openapi.json'} == {r.path for r in app.routes}
    for route in app.routes:
        for method in getattr(route, 'methods', None) or {'GET'}:
            for headers in BAD_TOKENS:
                status = stranger.request(method, route.path, headers=headers).status_code
                assert (status == 401) == (route.path != '/health'), (route.path, method, headers, status)
    assert stranger.get('/health').json() == {'status': 'ok'} and stranger.head('/health').status_code == 200     # balancers ask without a body
    for path in ('/nothing', '/health/', '/health/../model', '//health', '/static/x', '/docs/oauth2-redirect', '/redoc'):
        assert stranger.get(path).status_code == 401, path
    assert stranger.get('/model', params={'token': TOKEN}).status_code == 401
    with pytest.raises(Exception), stranger.websocket_connect('/predict'): pass


def test_a_browser_may_ask_with_basic(app):
    assert TestClient(app, base_url='http://localhost').get('/docs', auth=('anyone', TOKEN)).status_code == 200


def test_host_and_origin(client):
    for host in ('evil.example', 'evil.example:8000', 'localhost.evil.example', '127.0.0.1.nip.io', '', 'localhost@evil.example'):
        assert client.get('/model', headers={'Host': host}).status_code == 400, host
    for host in ('localhost', 'LOCALHOST:8000', '127.0.0.1:9', '[::1]:8000'): assert client.get('/model', headers={'Host': host}).status_code == 200, host
    for origin in ('http://evil.example', 'null', 'http://localhost.evil.example', 'https://evil.example:8000'):
        answer = client.get('/model', headers={'Origin': origin})
        assert answer.status_code == 403 and 'access-control-allow-origin' not in answer.headers
        assert post(client, '{}', Origin=origin).status_code == 403
        assert client.options('/predict', headers={'Origin': origin, 'Access-Control-Request-Method': 'POST'}).status_code == 403
    assert client.get('/model', headers={'Origin': 'http://localhost:8000'}).status_code == 200
    assert client.get('/health', headers={'Host': '10.1.2.3:8000'}).status_code == 200    # the kubelet asks by address


def test_weak_tokens_and_open_addresses_are_refused(project, monkeypatch, tmp_path):
    for token in ('', 'seven77', 'password', 'a'*64, 'x y'*3):
        with pytest.raises(SettingsError, match='protects nothing'): create_app(project, token=token)
    monkeypatch.delenv('MLCYCLE_TOKEN', raising=False)
    for host in ('0.0.0.0', '::', '192.168.1.5'):
        with pytest.raises(Blocked, match='no token'): may_listen(host)
    monkeypatch.setenv('MLCYCLE_TOKEN', TOKEN)
    with pytest.raises(Blocked, match='unencrypted'): may_listen('0.0.0.0')
    monkeypatch.setenv('MLCYCLE_TLS', 'outside')
    assert may_listen('0.0.0.0') == {} and find_token(tmp_path/'token') == (TOKEN, False)
    monkeypatch.delenv('MLCYCLE_TOKEN')
    token, drawn = find_token(tmp_path/'token')
    assert drawn and (tmp_path/'token').stat().st_mode & 0o777 == 0o600 and find_token(tmp_path/'token') == (token, False)
    os.chmod(tmp_path/'token', 0o644)
    with pytest.raises(Blocked, match='chmod 600'): find_token(tmp_path/'token')


def test_the_page_about_it_loads_nothing_and_shows_names_as_text(client):
    page = client.get('/docs')
    assert page.status_code == 200 and "default-src 'none'" in page.headers['content-security-policy']
    assert not re.search(r'(?i)<script|<img|<link|<iframe|src=|href=|@import|url\(', page.text.replace('&lt;img src=x', ''))
    assert '&lt;img src=x onerror=alert(1)&gt;' in page.text and '/predict' in page.text
    document = client.get('/openapi.json').json()
    item = document['paths']['/predict']['post']['requestBody']['content']['application/json']['schema']['properties']['records']['items']
    assert HTML in item['required'] and 'sex' in item['properties'] and 'sex' not in item['required'] and item['additionalProperties'] is False
    for path, more in (('/predict', 'predictions'), ('/label', 'rows')):     # what it gives as an example can be sent as it stands
        told = post(client, document['paths'][path]['post']['requestBody']['content']['application/json']['example'], path)
        assert told.status_code == 200 and told.json()[more], told.text


# --- records

def test_records_in_predictions_out_and_outcomes_later(client, project, record):
    before = len(predictions(project))
    answer = post(client, {'records': [record, record | {'sex': 'f', 'id': '007'}]})
    assert answer.status_code == 200
    one, two = answer.json()['predictions']
    assert set(one) == {'prediction_id', 'version', 'score', 'decision'} and one['score'] == two['score'] and one['prediction_id'] != two['prediction_id']
    rows = predictions(project)
    assert len(rows) == before+2
    kept = rows.set_index('prediction_id').loc[[one['prediction_id'], two['prediction_id']]]
    assert kept['sex'].tolist()[1] == 'f' and kept['id'].tolist()[1] == '007' and kept[HTML].tolist() == [record[HTML]]*2
    direct = project.registry.load('1').predict(strange_rows().head(1))['score'].iloc[0]
    assert one['score'] == pytest.approx(direct, abs=1e-12)
    told = post(client, {'labels': [{'prediction_id': one['prediction_id'], 'label': 'yes'}, {'id': '007', 'label': 'no', 'at': '2100-01-01'}]}, '/label')
    assert told.json()['matched'] == 2
    assert labelled(project).set_index('prediction_id').loc[[one['prediction_id'], two['prediction_id']], 'label'].tolist() == [1, 0]


@pytest.mark.parametrize('value, why', [('NaN', 'NaN'), ('"NaN"', 'string'), ('1e999', 'too large'), ('-1e999', 'too large'), ('-Infinity', 'Infinity'), ('null', 'null'), ('"1.5"', 'string'),
                                        ('true', 'boolean'), ('[1]', 'list'), ('{"a": 1}', 'object'), (str(2**70), 'whole number'), ('1'*5000, 'whole number'),
                                        ('[NaN]', 'list'), ('{"a": {"b": NaN}}', 'object')])
def test_a_value_that_is_no_number_is_named(client, record, value, why):
    text = json.dumps({'records': [record, record | {HTML: '@@'}]}).replace('"@@"', value)
    answer = post(client, text)
    assert answer.status_code == 422, answer.text
    error = answer.json()['errors'][0]
    assert error['record'] == 1 and error['column'] == HTML and why in error['message'] and answer.json()['request_id']


@pytest.mark.parametrize('flag', ['true', 'null'])   # a body without a truth is looked at more quickly
def test_the_quick_way_takes_nothing_that_the_slow_way_refuses(flag):
    "A few hundred bodies, each with one thing changed in one record, few and many records: the same values or the same refusal."
    takes = [InputColumn(name='n', type='number', accepts='number', nullable=False), InputColumn(name='m:x', type='number', accepts='number'),
             InputColumn(name='code', type='category', accepts='number'), InputColumn(name='word', type='category', accepts='string'),
             InputColumn(name='flag', type='boolean', accepts='boolean'), InputColumn(name='yes', type='boolean', accepts='string'),
             InputColumn(name='day', type='date', accepts='string', nullable=False), InputColumn(name='id', type='text', accepts='string', required=False)]
    usual = {'n': '1.5', 'm:x': '-2', 'code': '7', 'word': '"a: é"', 'flag': flag, 'yes': '"no"', 'day': '"2024-05-31T08:00:00Z"'}
    values = ['null', 'true', '1', '1.0', '-0.0', '1e308', '1e309', '9007199254740991', '9007199254740992', '9007199254740993', '18446744073709551616', 'NaN', '-Infinity', '01',
              '""', '":"', '"x\\ny"', '"\\ud800"', '"2024-05-31"', '"2024-02-30"', '"YES"', '[]', '{}', '[1]', '{"n": 1}']
    reader, text = RecordReader(takes), lambda record: '{'+', '.join(f'"{k}": {v}' for k, v in record)+'}'
    def said(read) -> object:
        try: return [{k: (type(v), v) for k, v in r.items()} for r in read()]
        except BadRequest as error: return error.message
    changed = [[*usual.items()], [*usual.items()][::-1], [*usual.items(), ('id', '"x"')], [*usual.items(), ('id', 'null')], [*usual.items(), ('other', '1')]]
    changed += [[(k, value if k == name else v) for k, v in usual.items()] for name in usual for value in values]
    changed += [[(k, v) for k, v in usual.items() if k != name] for name in usual] + [[*usual.items(), (name, v)] for name, v in usual.items()]
    quick = 0
    for record in changed:
        for n in (1, FEW+5):
            body = ('{"records": ['+', '.join([text(usual.items())]*(n-1)+[text(record)])+']}').encode()
            assert said(lambda: reader.read(body)) == said(lambda: valid_records(body, takes)), body
            found = reader._quick(body)
            quick += found is not None
            if n > FEW and found: assert frame_of(found, takes).equals(frame_of([*found], takes))
    assert quick > 50


def test_names_that_are_wrong(client, record):
    cases = {'more': (record | {'more': 1}, 'more', 'not a column'), 'target': (record | {'label': 'yes'}, 'label', 'not a column'),
             'missing': ({k: v for k, v in record.items() if k != FORMULA}, FORMULA, 'missing'), 'surrogate': (record | {FORMULA: '\ud800'}, FORMULA, 'surrogate'),
             'proto': (record | {'__proto__': 1}, '__proto__', 'not a column')}
    for body, column, why in cases.values():
        errors = post(client, {'records': [body]}).json()['errors']
        assert errors[0]['column'] == column and why in errors[0]['message']
    twice = json.dumps({'records': [record]})[:-3]+f', {json.dumps(HTML)}: 1.0}}]}}'
    assert post(client, twice).json()['errors'] == [{'record': 0, 'column': HTML, 'message': 'is given twice'}]
    assert post(client, {'records': [record | {FORMULA: 'never seen'}]}).status_code == 200    # a new category is no mistake
    for doubled in ('{"records": [], "records": []}', '{"a": NaN}', '{"records": NaN}', 'NaN', '"x"', '7', 'null', '[]', '{}', '{"records": {}}', '{"records": [1]}', '[[]]', '{"records": [null]}'):
        assert post(client, doubled).status_code == 422, doubled
    assert post(client, json.dumps([record])).status_code == 200


@pytest.mark.parametrize('body', [b'', b'{', b'\xff\xfe', b'{"records": [{"a": "\xff"}]}', b'['*100_000, b'{"a":'*100_000, b'\x00', '{"records": [}'.encode('utf-16'), b'\xef\xbb\xbf{}'])
def test_what_is_not_json(client, body):
    answer = post(client, body)
    assert answer.status_code in (400, 422) and answer.json()['code'] and 'Traceback' not in answer.text


def test_too_large_too_many_and_not_plain_json(client, record):
    assert post(client, b'x'*2_000_001).status_code == 413
    assert taken_in(client.app, '/predict', TOKEN, part=10_000, parts=400) == (413, 201)     # no more is taken in than is allowed
    assert post(client, b'{}', **{'Content-Length': '99999999999999999999'}).status_code == 413
    many = post(client, '['+','.join(['{}']*10_001)+']')
    assert many.status_code == 413 and 'at most 10,000' in many.json()['message']
    assert client.post('/predict', content=b'{}', headers={'Content-Type': 'text/plain'}).status_code == 415
    assert post(client, b'\x1f\x8b', **{'Content-Encoding': 'gzip'}).status_code == 415
    assert client.post('/predict').status_code == 415 and client.get('/predict').status_code == 405 and client.get('/none').status_code == 404


def test_strange_outcomes(client):
    for bad in ({'prediction_id': 7, 'label': 'yes'}, {'prediction_id': 'a'}, {'prediction_id': 'a', 'label': {}}, {'prediction_id': 'a', 'label': 'maybe'}, {'label': 'yes'},
                {'prediction_id': 'a', 'label': 'yes', 'at': 'soon'}, {'prediction_id': 'a', 'label': 'yes', 'b': 'c', 'd': 'e'}):
        assert post(client, {'labels': [bad]}, '/label').status_code == 422, bad
    assert post(client, '{"labels": [{"prediction_id": "a", "label": NaN}]}', '/label').status_code == 422
    assert post(client, {'labels': [{'prediction_id': 'nobody', 'label': 'yes'}]}, '/label').json()['unknown'] == 1


# --- what goes wrong inside

@pytest.fixture()
def broken(project, record, monkeypatch):
    "Ask a server whose part `name` is another; gives the answer, the rows that were added and the figures."
    def ask(name: str, value, where, *, compiled: bool=True):
        app = create_app(project, token=TOKEN)
        client = TestClient(app, base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)
        main = app.state.service.standing.main
        assert main.scorer is not None
        if not compiled: main.scorer = None
        before = len(predictions(project))
        with monkeypatch.context() as patch:
            patch.setattr(main.scorer if where == 'scorer' else where, name, value)
            answer = post(client, {'records': [record]})
            metrics = client.get('/metrics').text
        assert post(client, {'records': [record]}).status_code == 200     # the fault over, it answers again
        return answer, len(predictions(project))-before-1, metrics
    return ask


def raising(error: Exception):
    def instead(*args, **kwargs): raise error
    return instead


SECRET = '/home/ada/project/secret.py'


def test_a_model_that_gives_no_number_is_a_bad_gateway_and_counted(broken, project):
    model = project.registry.load('1')
    faults = [('one', lambda record, s=s: s, 'scorer', True) for s in (float('nan'), float('inf'), None, 'x')]+[('one', raising(ZeroDivisionError(SECRET)), 'scorer', True)]
    faults += [('predict_proba', lambda *a, s=s: np.column_stack([s, s]), type(model.estimator), False) for s in (np.array([np.nan]), np.array([np.inf]), np.zeros(2))]
    for name, value, where, compiled in faults:
        answer, rows, metrics = broken(name, value, where, compiled=compiled)
        assert answer.status_code == 502 and answer.json()['code'] == 'model' and rows == 0 and SECRET not in answer.text
        assert 'mlcycle_problems_total{code="model"} 1.0' in metrics


def test_what_cannot_be_kept_is_not_given(broken):
    for error in (OSError(28, 'No space left on device', SECRET), Blocked(SECRET), RuntimeError(SECRET)):
        answer, rows, _ = broken('_write', lambda self, data, error=error: error, Writer)
        assert answer.status_code == 503 and answer.json()['code'] == 'log' and rows == 0 and 'score' not in answer.text and SECRET not in answer.text
        assert answer.headers['retry-after']


def test_errors_say_nothing_about_the_inside(broken, client, project):
    for where, name in ((service_module, 'answered'), (logbook.Logbook, '_content')):
        answer, rows, _ = broken(name, raising(RuntimeError(SECRET)), where)
        assert answer.status_code in (500, 503) and rows == 0
        assert not re.search(rf'Traceback|{SECRET}|{re.escape(str(project.folder))}|\.py|RuntimeError', answer.text) and answer.json()['request_id']


def test_an_error_nobody_thought_of_is_told_like_every_other_on_every_route(project):
    app = create_app(project, token=TOKEN)
    client = TestClient(app, base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)
    for name in ('look', 'now', 'label'): setattr(app.state.service, name, raising(ZeroDivisionError(SECRET)))
    answers = [client.get('/ready'), client.get('/model'), post(client, {'records': [{}]}), post(client, {'labels': [{'prediction_id': 'p', 'label': 'yes'}]}, '/label')]
    for answer in answers:
        told = answer.json()
        assert (answer.status_code, told['code'], set(told)) == (500, 'unexpected', {'code', 'message', 'request_id'}) and SECRET not in answer.text
        assert told['request_id'] == answer.headers['x-request-id'] and answer.headers['content-type'] == 'application/json'


def test_both_ways_give_the_same_answer_and_the_choice_is_evidence(project, client, record):
    "Compiled arithmetic and the pipeline: one answer, to 1e-9."
    app = create_app(project, token=TOKEN)
    app.state.service.standing.main.scorer = None
    rows = [to_records(strange_rows().iloc[[i]], input_schema(infer_plan(strange_rows(), project.settings), project.settings, sample=strange_rows()))[0] for i in range(20)]
    quick = [post(client, {'records': [r]}).json()['predictions'][0] for r in rows]
    plainly = post(TestClient(app, base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}), {'records': rows}).json()['predictions']
    assert max(abs(a['score']-b['score']) for a, b in zip(quick, plainly)) <= 1e-9 and [a['decision'] for a in quick] == [b['decision'] for b in plainly]
    evidence = project.latest(ScoringPath, subject='1')
    assert (evidence.path, evidence.changed, evidence.rows) == ('compiled', 0, 200) and evidence.distance <= 1e-9
    said = client.get('/model').json()
    assert said['scoring'] == {'path': 'compiled', 'how': evidence.how, 'why': evidence.why} and said['traffic']['shares'] == {'1': 1.0}


def test_what_strangers_send_is_not_kept(client, record, project):
    "Ever new names, levels, ids, paths, queries, headers and broken bodies leave no entry behind, wherever entries are held."
    def strange(n: int) -> None:
        for i in range(n):
            word = f'{n}-{i}-'+os.urandom(4).hex()
            post(client, {'records': [record | {word: 1}]}), post(client, {'records': [record | {FORMULA: word}]}), post(client, word), post(client, {word: []})
            post(client, {'records': [record | {'id': word}]*30}), post(client, {'labels': [{'prediction_id': word, 'label': word}]}, '/label')
            client.get('/'+word), client.get(f'/model?{word}'), post(client, {'records': [record]}, f'/predict?{word}=1'), post(client, b'[1e999]', **{word: word})
            client.request(word[:5].upper(), '/predict')
    def entries() -> int:
        gc.collect()
        return sum(len(o) for o in gc.get_objects() if type(o) in (dict, list, set, deque))
    strange(20)
    before = entries()
    strange(50)
    assert entries()-before < 50


def test_free_memory_goes_back_to_the_system_while_it_serves(project, monkeypatch):
    said = []
    monkeypatch.setattr(serving, 'SETTLE', .02)
    monkeypatch.setattr(serving, 'give_back', lambda: said.append(gc.get_freeze_count() > 10_000))   # and what was loaded once is at rest
    with TestClient(create_app(project, token=TOKEN), base_url='http://localhost') as client:
        until(lambda: client.get('/health') and said.count(True) > 1)
    assert gc.get_freeze_count() == 0


# --- in the hands of a real server

def start(project: Project, *, port: int, workers: int=1) -> subprocess.Popen:
    code = 'import sys\nfrom mlcycle.core import Project\nfrom mlcycle.serving import serve\nserve(Project(sys.argv[1]), port=int(sys.argv[2]), workers=int(sys.argv[3]))'
    run = subprocess.Popen([sys.executable, '-c', code, str(project.folder), str(port), str(workers)], env=os.environ | {'MLCYCLE_TOKEN': TOKEN}, stderr=subprocess.PIPE, text=True)
    def answers() -> bool:
        if run.poll() is not None: raise AssertionError(run.stderr.read())
        try: return httpx.get(f'http://127.0.0.1:{port}/health', timeout=PATIENCE).status_code == 200
        except httpx.TransportError: return False
    try: until(answers)
    except AssertionError: run.kill(); raise
    return run


def ask_until_it_dies(port: int, record: dict, ids: list[str]) -> None:
    "Keep the prediction ids of every 200, asked for by one client after another request."
    with httpx.Client(base_url=f'http://127.0.0.1:{port}', headers={'Authorization': f'Bearer {TOKEN}'}, timeout=PATIENCE) as client:
        while True:
            try: answer = client.post('/predict', json={'records': [record, record]})
            except httpx.TransportError: return
            assert answer.status_code == 200
            ids += [p['prediction_id'] for p in answer.json()['predictions']]


def test_each_200_is_one_row_after_kill_9_and_after_sigterm(project, record):
    before, said = set(predictions(project)['prediction_id']), []
    for how in (signal.SIGKILL, signal.SIGTERM):
        port = free_port()
        run = start(project, port=port)
        with ThreadPoolExecutor(4) as clients:
            had = len(said)
            work = [clients.submit(ask_until_it_dies, port, record, said) for _ in range(4)]
            until(lambda: len(said) >= had+100)
            os.kill(run.pid, how)
            for w in work: w.result()
        run.wait(PATIENCE)
        run.stderr.close()
        if how == signal.SIGTERM: assert waiting(project, 'predictions') == 0     # the last thing it did
    there = predictions(project)['prediction_id']
    assert there.is_unique and set(said) <= set(there) and len(said) >= 200
    extra = set(there)-before-set(said)
    assert len(extra) <= 16     # kept, and the answer was cut off by the kill


def test_the_default_server_is_on_loopback_with_a_token_shown_once(project):
    run = subprocess.Popen([sys.executable, '-c', 'import sys\nfrom mlcycle.serving import serve\nserve(sys.argv[1], port=int(sys.argv[2]))', str(project.folder), str(free_port())],
                           env={k: v for k, v in os.environ.items() if k != 'MLCYCLE_TOKEN'}, stderr=subprocess.PIPE, text=True)
    line = run.stderr.readline()
    token = (project.store/'token').read_text()
    try:
        assert token in line and 'shown once' in line and (project.store/'token').stat().st_mode & 0o777 == 0o600
        port = int(re.search(r':(\d+)/', line)[1])
        def ready() -> bool:
            try: return httpx.get(f'http://127.0.0.1:{port}/ready', headers={'Authorization': f'Bearer {token}'}, timeout=PATIENCE).json()['status'] == 'ready'
            except httpx.TransportError: return False
        until(ready)
        import psutil
        assert {c.laddr.ip for c in psutil.Process(run.pid).net_connections() if c.status == 'LISTEN'} == {'127.0.0.1'}
        slow = socket.create_connection(('127.0.0.1', port))
        slow.sendall(b'POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer '+token.encode()+b'\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{')
        assert httpx.get(f'http://127.0.0.1:{port}/health', timeout=PATIENCE).status_code == 200     # a slow sender holds nobody else up
        slow.settimeout(.01)
        with pytest.raises(TimeoutError): slow.recv(1)                                               # and is still being waited for
        slow.close()
    finally:
        run.terminate(); run.wait(PATIENCE); run.stderr.close()


def test_a_port_that_is_taken_is_a_wrong_call_and_nothing_is_said_to_be_served(project):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        said = subprocess.run([str(Path(sys.executable).parent/'mlcycle'), 'serve', '--port', str(port), '--project', str(project.folder)], capture_output=True, text=True, env=os.environ | {'MLCYCLE_TOKEN': TOKEN})
    assert said.returncode == 2 and f'port {port}' in said.stderr and '--port N' in said.stderr and 'http://' not in said.stderr and len(said.stderr.splitlines()) == 1


def test_a_port_that_cannot_be_is_refused_before_anything_is_loaded(project):
    from click.testing import CliRunner
    from mlcycle.cli import main
    for command in ('serve', 'lab', 'app'):
        for port in ('0', '65536', '99999', 'http'):
            found = CliRunner().invoke(main, [command, '--port', port, '--project', str(project.folder)])
            assert found.exit_code == 2 and '--port' in found.output


def test_an_outcome_that_cannot_be_kept_is_no_fault_of_its_caller(client, project, record, monkeypatch):
    made = post(client, {'records': [record]}).json()['predictions'][0]
    body = {'labels': [{'prediction_id': made['prediction_id'], 'label': 'yes'}]}
    def full(*given, **more): raise OSError(28, 'No space left on device: /srv/models/store')
    with monkeypatch.context() as disk:
        disk.setattr('deltalake.write_deltalake', full)
        refused = post(client, body, path='/label')
    assert refused.status_code == 503 and refused.json()['code'] == 'log' and '/srv' not in refused.text and refused.headers['retry-after']
    assert post(client, body, path='/label').json()['matched'] == 1


def test_places_are_limited(project, record):
    from mlcycle.access import Guard, access_for
    started, go = [], asyncio.Event()
    async def slow(scope, receive, send):
        started.append(1); await go.wait()
        await send({'type': 'http.response.start', 'status': 200, 'headers': []}); await send({'type': 'http.response.body', 'body': b''})
    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Guard(slow, access_for(TOKEN, at_once=4))), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}) as client:
            waiting_ones = [asyncio.create_task(client.get('/x')) for _ in range(10)]
            while len(started)+sum(t.done() for t in waiting_ones) < 10: await asyncio.sleep(.01)     # four are let in, six turned away
            go.set()
            return [(a.status_code, a.headers.get('retry-after')) for a in await asyncio.gather(*waiting_ones)]
    answers = asyncio.run(all_at_once())
    assert answers.count((200, None)) == 4 and answers.count((503, '1')) == 6


# --- what the log keeps of a person

KEYS = {'MLCYCLE_HASH_KEY': 'f3b1c9d07e5a42d8b6', 'other': '0d9f8e7c6b5a4132aa'}
DECLARED = '''[deployment.log]
columns = [{name = "id", stored = "hashed"}, {name = "sex", stored = "dropped"}, {name = "=cmd|' /C calc'!A0", stored = "dropped"}]
'''


def raw_bytes(folder: Path) -> bytes: return b''.join(f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file())


def test_ids_are_hashed_and_columns_dropped_wherever_rows_are_kept(tmp_path, record, monkeypatch):
    "The server, batch and the outcomes that come later: joined by prediction id and by id, and the id itself is nowhere."
    project = new_project(tmp_path/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]', more=DECLARED)
    crown(project, register(project, strange_rows(), LogisticRegression()))
    monkeypatch.delenv('MLCYCLE_HASH_KEY', raising=False)
    with pytest.raises(SettingsError, match='there is no key.*MLCYCLE_HASH_KEY'): create_app(project, token=TOKEN)
    monkeypatch.setenv('MLCYCLE_HASH_KEY', KEYS['MLCYCLE_HASH_KEY'])
    client = TestClient(create_app(project, token=TOKEN), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'})
    person = record | {'id': 'customer-4711', 'sex': 'zzz'}
    said = post(client, {'records': [person, person | {'id': 'customer-4712'}]}).json()['predictions']
    score(project, strange_rows().head(1).assign(id='customer-4713', sex='zzz'))
    kept = predictions(project)
    assert len(kept) == 3 and not {'id', 'sex', FORMULA} & set(kept) and kept['hashed id'].str.fullmatch('[0-9a-f]{64}').all() and kept['hashed id'].is_unique
    labels = [{'id': f'customer-{n}', 'label': 'yes', 'at': '2100-01-01'} for n in (4711, 4713)]+[{'prediction_id': said[1]['prediction_id'], 'label': 'no'}]
    assert post(client, {'labels': labels}, '/label').json()['matched'] == 3 and labelled(project).sort_values('at')['label'].tolist() == [1, 0, 1]
    assert set(project.tables.read('labels')['id']) <= {'', *kept['hashed id']}
    assert b'customer-47' not in (written := raw_bytes(project.store)) and KEYS['MLCYCLE_HASH_KEY'].encode() not in written and b'zzz' not in written
    build_bundle(project, out=tmp_path/'bundle')
    monkeypatch.setenv('MLCYCLE_LOG', str(tmp_path/'lines'))
    away = TestClient(create_app(tmp_path/'bundle', token=TOKEN), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'})
    far = post(away, {'records': [person | {'id': 'customer-4799'}]}).json()['predictions'][0]
    assert post(away, {'labels': [{'id': 'customer-4799', 'label': 'no', 'at': '2100-01-01'}]}, '/label').status_code == 200
    assert b'customer-47' not in (tmp_path/'lines').read_bytes() and collect(project, tmp_path/'lines') == 1
    assert labelled(project).set_index('prediction_id').loc[far['prediction_id'], 'label'] == 0     # home again, and joined by the hash
    monkeypatch.setenv('MLCYCLE_HASH_KEY', KEYS['other'])
    with pytest.raises(SettingsError, match='not the one that key number 1 was'): create_app(project, token=TOKEN)


def test_what_the_log_lacks_is_undetermined_and_never_answered_again(tmp_path, monkeypatch):
    monkeypatch.setenv('MLCYCLE_HASH_KEY', KEYS['MLCYCLE_HASH_KEY'])
    rules = '[deployment.log]\nothers = "dropped"\ncolumns = [{name = "version", stored = "kept"}, {name = "score", stored = "hashed"}, {name = "id", stored = "dropped"}]\n'
    project = new_project(tmp_path/'project', data='id = "id"', more=rules)
    for seed in (0, 1): register(project, strange_rows(seed=seed), LogisticRegression())
    crown(project, '1')
    score(project, strange_rows(seed=7), at='2026-03-01')
    assert set(predictions(project)) >= {'input version', 'hashed score'} and not {'id', HTML, 'input score'} & set(predictions(project))
    from mlcycle.monitoring import monitor
    from mlcycle.release import replay
    window = monitor(project).windows[0]
    state = window.drift.set_index('column')['status']
    assert state['version'] == 'no drift' and state[HTML] == state['score'] == 'undetermined' and not (state == 'missing column').any()
    with pytest.raises(DataError, match='deployment.log does not keep'): replay(project, '2')
    from mlcycle.recent import recent
    label_rows(project, pd.DataFrame({'prediction_id': predictions(project)['prediction_id'].head(3), 'label': 'yes'}))
    with pytest.raises(DataError, match='deployment.log does not keep .*score'): recent(project)
    with pytest.raises(DataError, match='Give them by prediction_id'): label_rows(project, pd.DataFrame({'id': ['001'], 'label': ['yes']}))


def test_what_training_never_saw_is_treated_as_declared_counted_and_marked(tmp_path, record):
    "A new level as other by default, a missing value refused by default; both otherwise where the settings say so; here and in a bundle."
    project = new_project(tmp_path/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    make = lambda source: TestClient(create_app(source, token=TOKEN), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'})
    person = {k: v for k, v in record.items() if k != 'sex'}
    client, new, gap = make(project), person | {FORMULA: 'never "seen"'}, person | {HTML: None}
    assert post(client, {'records': [person, new]}).status_code == 200 and post(client, {'records': [gap]}).json()['errors'][0]['column'] == HTML
    figures = client.get('/metrics').text
    assert f'mlcycle_treated_total{{column="{FORMULA}",treatment="other"}} 1.0' in figures
    assert predictions(project)['treated'].map(lambda m: m if isinstance(m, str) else '').tolist() == ['', json.dumps({FORMULA: 'other'})]
    rules = {'unseen': 'refuse', 'missing': 'missing', 'columns': [{'name': 'version', 'missing': 'value', 'value': 'y'}, {'name': 'prediction_id', 'unseen': 'other'},
                                                                         {'name': 'score', 'high': 50}, {'name': LONG, 'low': 0, 'outside': 'take'}]}
    project.update_settings({'deployment.inputs': rules})
    build_bundle(project, out=tmp_path/'bundle')
    for client in (make(project), make(tmp_path/'bundle')):
        refused = post(client, {'records': [person, new]})
        assert refused.status_code == 422 and refused.json()['errors'] == [{'record': 1, 'column': FORMULA, 'message': 'is a level that training never saw; allowed: =1+1, a, b'}]
        without = {k: v for k, v in gap.items() if k not in (HTML, 'version')}
        one, same, other = post(client, {'records': [without, person | {HTML: None, 'version': 'y'}, person | {'prediction_id': 'new'}]}).json()['predictions']
        assert one['score'] == same['score']
        figures = client.get('/metrics').text
        for column, treatment, n in ((HTML, 'missing', 2), ('version', 'missing', 1), ('prediction_id', 'other', 1)):
            assert f'mlcycle_treated_total{{column="{column}",treatment="{treatment}"}} {n}.0' in figures
        item = client.get('/openapi.json').json()['paths']['/predict']['post']['requestBody']['content']['application/json']['schema']['properties']['records']['items']
        assert not {HTML, 'version'} & set(item['required']) and item['properties']['score']['maximum'] == 50
        wrong = post(client, {'records': [person, person | {'score': 51}]})
        assert wrong.status_code == 422 and wrong.json()['errors'] == [{'record': 1, 'column': 'score', 'message': 'is out of range; allowed: at most 50'}]
        assert post(client, {'records': [person | {'score': 50, LONG: -1}]*20}).status_code == 200
        assert f'mlcycle_treated_total{{column="{LONG[:200]}",treatment="outside"}} 20.0' in client.get('/metrics').text
        assert post(client, client.get('/openapi.json').json()['paths']['/predict']['post']['requestBody']['content']['application/json']['example']).status_code == 200
    assert json.loads(predictions(project)['treated'].iloc[2]) == {HTML: 'missing', 'version': 'missing'} and predictions(project)['input version'].iloc[2] == 'y'


# --- versions come and go (last: they change the project)

def test_the_server_follows_the_ledger_and_a_retired_version_says_who_comes_next(project, record, monkeypatch):
    monkeypatch.setattr(service_module.ProjectService, 'every', 0.0)
    app = create_app(project, token=TOKEN)
    client = TestClient(app, base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)
    old = TestClient(create_app(project, token=TOKEN, version='1'), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)
    assert post(client, {'records': [record]}).json()['version'] == '1'
    version = register(project, strange_rows(seed=5), LogisticRegression())
    file = project.store/project.registry.info(version).uri
    content = file.read_bytes()
    crown(project, version)
    file.write_bytes(content[:-10]+bytes(10))     # the new champion's bytes are touched: the old one stays, and says its name
    assert post(client, {'records': [record]}).json()['version'] == '1'
    file.write_bytes(content)
    project.ledger.append(stage='governance', kind='card', subject='', body={}, actor='Ada')     # something new to look at
    assert post(client, {'records': [record]}).json()['version'] == version and client.get('/model').json()['version'] == version
    retire(project, '1', successor=version)
    day, gone = time.strftime('%Y-%m-%d', time.gmtime()), post(old, {'records': [record]})
    assert gone.status_code == 410 and gone.json()['retired'] == {'version': '1', 'at': gone.json()['retired']['at'], 'successor': version, 'because': 'a test'}
    old.app.state.service.settle()
    from mlcycle.retirement import dependents
    days = {day, time.strftime('%Y-%m-%d', time.gmtime())}     # two at midnight
    assert {('refused', f'1 request since it was retired, from 1 address, the last on {d}') for d in days} & {*dependents(project, '1')}
    assert old.get('/ready').status_code == 503 and old.get('/model').status_code == 410 and old.get('/health').status_code == 200 and old.get('/docs').status_code == 200
    assert TestClient(create_app(project, token=TOKEN, version='1'), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}).post('/predict', json={'records': [record]}).status_code == 410
    assert post(client, {'records': [record]}).status_code == 200
    project.ledger.append(stage='validation', kind='validation', subject=version, body={'verdict': 'fail'}, actor='Ada')     # the signature is void now
    closed = post(client, {'records': [record]})
    assert closed.status_code == 503 and closed.json()['code'] == 'blocked' and client.get('/ready').status_code == 503
    with pytest.raises(Blocked): create_app(project, token=TOKEN)
    ended = subprocess.run([sys.executable, '-c', 'import sys\nfrom mlcycle.serving import serve\nfrom mlcycle.core import MlcycleError\n'
                            'try: serve(sys.argv[1], port=1, version="1")\nexcept MlcycleError as e: print(e); sys.exit(e.exit_status)', str(project.folder)], capture_output=True, text=True)
    assert ended.returncode == 1 and f'Ask version {version} instead' in ended.stdout


@pytest.fixture(scope='module')
def dated(tmp_path_factory):
    "A server whose model takes a date, and whose records may say when they happened; and a record that it answers."
    rows = strange_rows().assign(since=(pd.Timestamp('2020-01-01')+pd.to_timedelta(np.arange(200), 'D')).strftime('%Y-%m-%d'), when='2024-05-31')
    project = new_project(tmp_path_factory.mktemp('dated')/'project', data='id = "id"\ntime = "when"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, rows, LogisticRegression()))
    port, record = free_port(), to_records(rows.head(1), input_schema(infer_plan(rows, project.settings), project.settings, sample=rows))[0]
    run = start(project, port=port)
    with httpx.Client(base_url=f'http://127.0.0.1:{port}', headers={'Authorization': f'Bearer {TOKEN}', 'Content-Type': 'application/json'}, timeout=PATIENCE) as client: yield client, record
    run.terminate(), run.wait(PATIENCE), run.stderr.close()


OUTSIDE = ['0001-01-01T00:00+05:00', '9999-12-31T23:59-05:00', '-0001-01-01', '0000-01-01', '10000-01-01', '2024-02-30', '2024-13-01', '2024-05-31T25:00', '2024-05-31T08:00:61Z',
           '2024-05-31T08:00+24:00', '2024-05-31T', '2024-W09-4', '31.05.2024', '20240531', '', ' ', '2024-05-31\u0000', '\u0662\u0660\u0662\u0664-05-31', '\ud800', 20240531, 1e308, True, [], {}]


@pytest.mark.parametrize('n', [1, 20, 100])   # one by one; by columns; by columns, and so into the log
def test_no_date_makes_a_server_stumble(dated, n):
    "Dates that do not exist, lie outside the calendar in UTC, or are none: 422 for each, whichever column and record they stand in."
    client, record = dated
    def status(column: str, value: object, at: int) -> int:
        records = [record | ({column: value} if i == at else {}) for i in range(n)]
        return client.post('/predict', content=json.dumps({'records': records})).status_code
    wrong = {(column, str(value)): s for column in ('since', 'when') for value in OUTSIDE if (s := status(column, value, n-1)) != 422}
    assert not wrong
    for value in ('0001-01-01', '9999-12-31', '2024-05-31T08:00:00.123456+02:00', '2024-05-31 08:00', '1969-12-31T23:59:59Z'):
        assert [status(column, value, 0) for column in ('since', 'when')] == [200, 200], value


def test_no_date_of_an_outcome_makes_a_server_stumble(dated):
    client, record = dated
    made = client.post('/predict', content=json.dumps({'records': [record]})).json()['predictions'][0]['prediction_id']
    for value in [*OUTSIDE, '0001-01-01', '9999-12-31']:
        answer = client.post('/label', content=json.dumps({'labels': [{'prediction_id': made, 'label': 'yes', 'at': value}]}))
        assert answer.status_code == (422 if value in OUTSIDE else 200), (value, answer.text)
