"""Explanations and intervals in an answer, for who asks: right, cheap for all others, and refused with a reason where there are none."""
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from mlcycle import service as service_module
from mlcycle.deployment import build_bundle
from mlcycle.explainability import explain
from mlcycle.inputs import to_records
from mlcycle.particulars import Residuals
from mlcycle.scoring import predictions
from mlcycle.serving import create_app
from served import HTML, crown, new_project, register, strange_rows
from test_serving import TOKEN


def amounts(n: int, seed: int) -> pd.DataFrame:
    "Rows whose outcome is an amount, with an error that grows with nothing."
    draw = np.random.default_rng(seed)
    rows = strange_rows(n, seed).drop(columns=['sex', 'label'])
    return rows.assign(label=100+10*rows[HTML]+draw.normal(scale=5, size=n))


def client_of(source) -> TestClient:
    return TestClient(create_app(source, token=TOKEN), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)


def ask(client, records: list[dict], query: str=''): return client.post(f'/predict{query}', json={'records': records})


def served(folder, rows: pd.DataFrame, estimator, *, test: pd.DataFrame | None=None, task: str='binary'):
    "A project whose champion was validated on a sealed test set, where there is one."
    project = new_project(folder, data='id = "id"', task=task)
    version = register(project, rows, estimator)
    if test is not None:
        sealed = project.tables.write('test', test)
        project.record(sealed, subject='test')
    crown(project, version)
    if test is not None:
        project.ledger.append(stage='validation', kind='validation', subject=version, body={'verdict': 'pass', 'test_hash': sealed.hash}, actor='Ada')
        sign_again(project, version)
    return project


def sign_again(project, version: str) -> None:
    from mlcycle.gates import approval_digest
    body = {'version': version, 'by': 'Grace', 'because': 'looks right', 'digest': approval_digest(project, version)}
    project.ledger.append(stage='governance', kind='approval', subject=version, body=body, actor='Grace')


@pytest.fixture(scope='module')
def regression(tmp_path_factory):
    return served(tmp_path_factory.mktemp('amounts')/'project', amounts(400, 0), HistGradientBoostingRegressor(max_iter=30), test=amounts(300, 1), task='regression')


def documented(client) -> list[str]: return [p['name'] for p in client.get('/openapi.json').json()['paths']['/predict']['post']['parameters']]


@pytest.fixture(scope='module')
def binary(tmp_path_factory):
    return served(tmp_path_factory.mktemp('classes')/'project', strange_rows(), HistGradientBoostingClassifier(max_iter=20))


def test_an_interval_holds_what_it_says_and_travels_with_a_bundle(regression, tmp_path):
    client, new = client_of(regression), amounts(600, 2)
    records = to_records(new, client.app.state.service.schema())
    before = len(predictions(regression))
    told = ask(client, records, '?interval=0.9').json()['predictions']
    low, high = (np.array([t['interval'][k] for t in told]) for k in ('low', 'high'))
    held = int(((low <= new['label']) & (new['label'] <= high)).sum())
    assert 510 <= held <= 580 and (low < [t['score'] for t in told]).all()     # 90 % of 600, give or take what 300 test rows and chance allow
    assert len(predictions(regression)) == before+600 and not [c for c in predictions(regression) if 'interval' in c]
    known = regression.latest(Residuals, subject='1')
    assert known.n == 300 and known.half(.9) == pytest.approx((high-low)[0]/2) and known.half(.9999) is None
    refused = ask(client, records[:1], '?interval=0.9999')
    assert refused.status_code == 422 and refused.json()['code'] == 'no_interval' and 'Ask for at most 0.997' in refused.json()['message']
    build_bundle(regression, out=tmp_path/'bundle')
    away = client_of(tmp_path/'bundle')
    assert documented(client) == ['explain', 'interval', 'Idempotency-Key'] and documented(away) == ['interval']
    assert ask(away, records[:1], '?interval=0.9').json()['predictions'][0]['interval']['low'] == pytest.approx(low[0])
    refused = ask(away, records[:1], '?explain=1')
    assert refused.status_code == 422 and refused.json()['code'] == 'no_explanation' and len(predictions(regression)) == before+600


def test_an_explanation_is_the_stages_own_and_names_columns_people_know(binary):
    client, rows = client_of(binary), strange_rows(5, seed=3)
    records = to_records(rows, client.app.state.service.schema())
    told = ask(client, records, '?explain=1').json()['predictions']
    model = binary.registry.load('1')
    train = binary.tables.read('train')
    wanted = explain(model, train.sample(100, random_state=0), rows)
    for t, base, values, score in zip(told, wanted.base, wanted.values.to_numpy(), wanted.scores):
        found = t['explanation']
        assert list(found['contributions']) == model.info.columns and found['exact'] and found['unit'] == wanted.unit
        assert found['base'] == pytest.approx(base) and list(found['contributions'].values()) == pytest.approx(values.tolist())
        assert found['base']+sum(found['contributions'].values()) == pytest.approx(score) and 1/(1+np.exp(-score)) == pytest.approx(t['score'])
    assert [t['score'] for t in ask(client, records).json()['predictions']] == [t['score'] for t in told]
    refused = ask(client, records, '?interval=0.9')
    assert refused.status_code == 422 and 'for amounts only' in refused.json()['message']
    assert ask(client, records*21, '?explain=1').status_code == 413
    for query in ('?explian=1', '?explain=2', '?interval=2', '?interval=', '?explain=1&explain=1'): assert ask(client, records, query).status_code == 422, query
    assert documented(client) == ['explain', 'Idempotency-Key']   # no interval of a probability


def test_who_asks_for_nothing_pays_nothing(binary, monkeypatch):
    client = client_of(binary)
    records = to_records(strange_rows(1), client.app.state.service.schema())
    def made(project): raise AssertionError('somebody paid for what nobody asked for')
    monkeypatch.setattr(service_module, 'project_particulars', made)
    assert ask(client, records).status_code == 200 and ask(client, records, '?explain=0').status_code == 200
    assert ask(client, records, '?explain=1').status_code == 500
