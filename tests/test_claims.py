"""Idempotency-Key: one answer and one row for one request, however often it is sent, over processes and kill -9."""
from concurrent.futures import ThreadPoolExecutor
import httpx
import pytest
from fastapi.testclient import TestClient
from sklearn.linear_model import LogisticRegression
from mlcycle.core import Project
from mlcycle.deployment import build_bundle
from mlcycle.scoring import predictions
from mlcycle.serving import create_app
from mlcycle.traffic import set_traffic
from served import crown, new_project, register, strange_rows
from ports import free_port
from waiting import PATIENCE, until
from test_serving import TOKEN, start
from test_workers import record_of


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Project:
    "Two versions with half of the ids each, so that one request is answered by both."
    project = new_project(tmp_path_factory.mktemp('claims')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    for seed in (0, 5): crown(project, register(project, strange_rows(seed=seed), LogisticRegression()))
    set_traffic(project, {'1': .5}, because='a test')
    return project


def client_of(source) -> TestClient:
    return TestClient(create_app(source, token=TOKEN), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)


def ask(client, body: dict, key: str, query: str=''): return client.post(f'/predict{query}', json=body, headers={'Idempotency-Key': key})


def body_of(project: Project, n: int=6, first: int=0) -> dict:
    return {'records': [record_of(project) | {'id': f'person {first+i}'} for i in range(n)]}


def test_one_answer_and_one_row_whichever_process_is_asked(project):
    one, other, body = client_of(project), client_of(project), body_of(project)
    before = len(predictions(project))
    first = ask(one, body, '"k-1"')
    assert first.status_code == 200 and {p['version'] for p in first.json()['predictions']} == {'1', '2'}
    assert [ask(c, body, 'k-1').content for c in (one, other, one)] == [first.content]*3     # quotes or none
    for query, told in (('', body_of(project, first=1)), ('?explain=1', body)):
        refused = ask(other, told, 'k-1', query)
        assert refused.status_code == 422 and refused.json()['code'] == 'key_reused'
    assert len(predictions(project)) == before+6 and ask(one, body, 'k-2').content != first.content and len(predictions(project)) == before+12
    wrong = {'records': [{'id': 1}]}
    assert ask(one, wrong, 'k-3').status_code == 422 and ask(one, body, 'k-3').status_code == 200     # nothing was logged under it: it is free
    for key in ('', 'x'*256, 'é'.encode()): assert ask(one, body, key).status_code == 400, key
    assert one.post('/predict', json=body).status_code == 200 and any(p['name'] == 'Idempotency-Key' for p in one.get('/openapi.json').json()['paths']['/predict']['post']['parameters'])


def test_what_ended_between_log_and_answer_is_found_in_the_log(project, monkeypatch):
    one, other, body = client_of(project), client_of(project), body_of(project, 100)
    before = len(predictions(project))
    def killed(name, answer): raise RuntimeError('ended here')
    monkeypatch.setattr(one.app.state.service.claims, 'keep', killed)
    assert ask(one, body, 'cut').status_code == 500
    service = one.app.state.service
    assert ask(other, body, 'cut').status_code == 409     # that process lives, and may be at it
    service.claims.alive.close()                          # now it does not
    set_traffic(project, {'1': .1}, because='a test')
    found = ask(other, body, 'cut')
    there = predictions(project)
    assert found.status_code == 200 and len(there) == before+100
    kept = there.set_index('prediction_id').loc[[p['prediction_id'] for p in found.json()['predictions']]]
    assert kept['id'].tolist() == [r['id'] for r in body['records']] and kept['score'].tolist() == [p['score'] for p in found.json()['predictions']]
    assert kept['version'].tolist() == [p['version'] for p in found.json()['predictions']] and kept['claim'].is_unique
    third = client_of(project)
    monkeypatch.setattr(third.app.state.service, 'submit', lambda *args: (_ for _ in ()).throw(OSError('before the log')))
    assert ask(third, body, 'early').status_code == 500
    assert ask(other, body, 'early').status_code == 200 and len(predictions(project)) == before+200     # nothing was logged, so it is answered now


def test_keys_hold_over_processes_and_kill_9(project):
    port = free_port()
    before = set(predictions(project)['prediction_id'])
    run, again = start(project, port=port), client_of(project)
    bodies, said = {f'w-{i}': body_of(project, 2, first=1000+i) for i in range(400)}, {}
    def send(key: str) -> None:
        with httpx.Client(base_url=f'http://127.0.0.1:{port}', headers={'Authorization': f'Bearer {TOKEN}'}, timeout=PATIENCE) as client:
            for _ in range(2):
                try: answer = ask(client, bodies[key], key)
                except httpx.TransportError: return
                if answer.status_code == 409: continue
                assert answer.status_code == 200 and said.setdefault(key, answer.content) == answer.content
    with ThreadPoolExecutor(4) as callers:
        work = [callers.submit(send, key) for key in bodies]
        until(lambda: len(said) >= 40)
        assert run.poll() is None
        for key in [*said][:5]: assert ask(again, bodies[key], key).content == said[key]     # this process, beside the one that answered
        run.kill()
        for w in work: w.result()
    run.wait(PATIENCE)
    run.stderr.close()
    for key, body in [*bodies.items()][:len(said)+20]:
        answer = ask(again, body, key)
        assert answer.status_code == 200 and said.setdefault(key, answer.content) == answer.content
    there = predictions(project)
    fresh = there[~there['prediction_id'].isin(before)]
    assert len(fresh) == 2*len(said) and fresh['claim'].is_unique


def test_a_bundle_says_that_it_remembers_nothing(project, tmp_path, monkeypatch):
    monkeypatch.setenv('MLCYCLE_LOG', 'off')
    build_bundle(project, out=tmp_path/'bundle')
    refused = ask(client_of(tmp_path/'bundle'), body_of(project), 'k')
    assert refused.status_code == 400 and refused.json()['code'] == 'no_keys'


def test_a_key_holds_on_every_machine_that_shares_the_ledger(tmp_path, postgres):
    "Two folders as on two machines: one answer and one row; what another works on is waited for; the database away and back."
    import shutil
    from mlcycle.claims import SharedClaims
    from mlcycle.inputs import BadRequest
    from mlcycle.ledger import database
    first = new_project(tmp_path/'a', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]', more=f'[store]\nledger = "{postgres}"\ntables = "{tmp_path}/tables"')
    first.update_settings({'project.name': 'keys of two'})
    first = Project(tmp_path/'a', actor='Ada')
    crown(first, register(first, strange_rows(), LogisticRegression()))
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    machines = [first, Project(tmp_path/'b', actor='Ada')]
    clients, body = [client_of(m) for m in machines], body_of(first)
    with ThreadPoolExecutor(8) as pool: said = [*pool.map(lambda i: ask(clients[i % 2], body, 'both'), range(16))]
    assert {a.status_code for a in said} <= {200, 409} and len({a.content for a in said if a.status_code == 200}) == 1
    assert [ask(c, body, 'both').content for c in clients] == [next(a.content for a in said if a.status_code == 200)]*2
    for client in clients: client.app.state.service.settle()
    assert [len(predictions(m)) for m in machines] == [6, 6]   # whichever of them answered, once
    here, there = (c.app.state.service.claims for c in clients)
    assert isinstance(here, SharedClaims) and here.owner != there.owner
    def working() -> str:
        try: return 'unclear' if there.take('held', b'body', '1').unclear else 'free'
        except BadRequest as error: return error.code
    held = here.take('held', b'body', '1')
    assert working() == 'in_progress'
    with database(postgres).connect() as c: c.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")
    assert here.take('other', b'body', '1').answer is None and working() == 'in_progress'     # it holds its lock again
    here.alive.close()                                                                        # the end of its process
    assert working() == 'unclear' and held.name in there.flying
    for c in clients: c.app.state.service.close()
