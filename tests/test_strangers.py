"""What strangers send: Schemathesis' cases for every operation that the server describes, and bodies that it cannot send."""
import pytest
import schemathesis
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
