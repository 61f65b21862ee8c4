"""What strangers send: Schemathesis' cases for every operation that the server describes, and bodies that it cannot send."""
import re
import pytest
import schemathesis
from jsonschema import Draft202012Validator
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from fastapi.testclient import TestClient
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from sklearn.linear_model import LogisticRegression
from mlcycle.core import Project
from mlcycle.serving import create_app
from served import crown, new_project, register, strange_rows, taken_in

TOKEN = 'a-token-for-tests-0123456789'
HEADERS = {'Authorization': f'Bearer {TOKEN}', 'Host': 'localhost'}


@pytest.fixture(scope='module')
def app(tmp_path_factory):
    project = new_project(tmp_path_factory.mktemp('strangers')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    return create_app(project, token=TOKEN)


@pytest.fixture(scope='module')
def api(app): return schemathesis.openapi.from_asgi('/openapi.json', app, headers=HEADERS)


@pytest.mark.parametrize('mode', [*GenerationMode])
def test_nothing_that_the_document_allows_or_forbids_makes_it_stumble(api, mode):
    "Thirty cases an operation that fit the document, and thirty that do not."
    seen = set()
    for found in api.get_all_operations():
        operation = found.ok()
        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
        def ask(case) -> None:
            case.call_and_validate(headers=HEADERS, checks=[not_a_server_error, status_code_conformance, response_schema_conformance])
            if case.path != '/health': assert case.call(headers=HEADERS | {'Authorization': 'Bearer wrong'}).status_code == 401
            seen.add(case.path)
        try: ask()
        except Unsatisfiable: assert mode == GenerationMode.NEGATIVE   # nothing can be wrong about a GET without parameters
    assert {'/predict', '/label'} <= seen


def test_bodies_that_schemathesis_cannot_send(app):
    client = TestClient(app, base_url='http://localhost', headers=HEADERS | {'Content-Type': 'application/json'}, raise_server_exceptions=False)
    bodies = {'NaN': '{"records": [{"score": NaN}]}', 'infinity': '[{"score": 1e999}]', 'doubled': '{"records": [], "records": [{}]}', 'deep': '[{"score": '*1000+'1'+'}]'*1000,
              'doubled column': '[{"score": 1, "score": 2}]', 'half': '{"records": [{', 'digits': '[{"score": '+'9'*5000+'}]', 'bytes': b'\xff\xfe\x00'}
    for path in ('/predict', '/label'):
        for name, body in bodies.items():
            answer = client.post(path, content=body)
            assert answer.status_code in (400, 413, 422), (path, name, answer.status_code)
            assert {'code', 'message', 'request_id'} <= set(answer.json()) and 'Traceback' not in answer.text
        assert taken_in(app, path, TOKEN, part=100_000, parts=500) == (413, 21)     # 50 MB, no length announced: two are taken in


def test_addresses_that_ask_for_too_much(app):
    client = TestClient(app, base_url='http://localhost', headers=HEADERS | {'Content-Type': 'application/json'}, raise_server_exceptions=False)
    for query in ('explain=1&'*30, 'explain='+'1'*5000, 'interval=%ff%fe', 'interval=1e999', 'interval=0.9', 'explain=%00', '%', '=&=', 'explain[]=1', 'a;b'):
        answer = client.post(f'/predict?{query}', content='[]')
        assert answer.status_code == 422 and {'code', 'message', 'request_id'} <= set(answer.json()), query


def test_the_document_promises_what_is_taken_and_no_more(app):
    "Dates at the ends of the calendar, and keys at the ends of theirs."
    client = TestClient(app, base_url='http://localhost', headers=HEADERS)
    paths = client.get('/openapi.json').json()['paths']
    told = Draft202012Validator(paths['/label']['post']['requestBody']['content']['application/json']['schema'])
    for at in ('2024-02-29', '0001-01-01', '9999-12-31T23:59:59+01:00', '2024-05-31T08:00:00.5Z', '0000-02-03', '0001-01-01T00:00:00+05:00', '9999-12-31T23:00:00-01:00', '2016-12-31T23:59:60Z', '2024-05-31t08:00:00z'):
        body = {'labels': [{'prediction_id': 'nobody', 'label': 'no', 'at': at}]}
        assert told.is_valid(body) == (client.post('/label', json=body).status_code == 200), at
    operation = paths['/predict']['post']
    key, record = operation['parameters'][-1], operation['requestBody']['content']['application/json']['example']
    for sent in ('"', '""', '"a"', 'a b', 'k'*255, 'k'*256):
        answer = client.post('/predict', json=record, headers={key['name']: sent})
        assert bool(re.search(key['schema']['pattern'], sent)) == (answer.status_code == 200), sent


def test_the_document_lists_the_levels_and_ends_beyond_which_the_settings_refuse(tmp_path):
    project = new_project(tmp_path/'project', data='drop = ["id", "sex"]', more='[deployment.inputs]\nunseen = "refuse"\ncolumns = [{name = "score", low = -9, high = 0}]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    client = TestClient(create_app(project, token=TOKEN), base_url='http://localhost', headers=HEADERS)
    operation = client.get('/openapi.json').json()['paths']['/predict']['post']['requestBody']['content']['application/json']
    told, record, seen = Draft202012Validator(operation['schema']), operation['example']['records'][0] | {'score': -1}, set()
    for change in ({}, {'version': 'y'}, {'version': 'z'}, {'prediction_id': 's'}, {'prediction_id': 'r', 'score': 0}, {'score': .5}, {'score': -10}):
        body = {'records': [record | change]}
        answer = client.post('/predict', json=body)
        seen.add(answer.status_code)
        assert told.is_valid(body) == (answer.status_code == 200), (change, answer.text)
    assert seen == {200, 422} and 'allowed: x, y' in client.post('/predict', json={'records': [record | {'version': 'z'}]}).json()['message']
