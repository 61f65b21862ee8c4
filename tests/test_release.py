"""Releases through a server: a shadow that nobody sees, a candidate with a share of the ids, one that is stopped."""
import json
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from sklearn.linear_model import LogisticRegression
from mlcycle.canary import Canary, begin, running
from mlcycle.cli import main
from mlcycle.core import Project
from mlcycle.plans import infer_plan
from mlcycle.inputs import input_schema, to_records
from mlcycle.registry import promote
from mlcycle.release import compare_shadow
from mlcycle.scoring import label, predictions
from mlcycle.serving import create_app, look_at_canary
from mlcycle.service import ProjectService
from mlcycle.tally import counted
from mlcycle.traffic import arms, current_traffic
from served import HTML, crown, new_project, register, sign, strange_rows
from waiting import until

TOKEN = 'a-token-for-tests-0123456789'


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Project:
    "Version 1 is champion; 2 is as good; 3 says yes to nearly all."
    project = new_project(tmp_path_factory.mktemp('release')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]', more='[deployment.canary]\nmin_rows = 50\nsteps = [0.5, 1.0]')
    rows = strange_rows()
    crown(project, register(project, rows, LogisticRegression()))
    register(project, strange_rows(seed=5), LogisticRegression())
    register(project, rows.assign(label=np.where(rows[HTML] > -1.5, 'yes', 'no')), LogisticRegression())
    return project


@pytest.fixture()
def client(project, monkeypatch):
    monkeypatch.setattr(ProjectService, 'every', 0.0)
    client = TestClient(create_app(project, token=TOKEN), base_url='http://localhost', headers={'Authorization': f'Bearer {TOKEN}'}, raise_server_exceptions=False)
    yield client
    client.app.state.service.close()


def send(client, project, first: int, n: int) -> list[dict]:
    "Records of n ids; the answers."
    rows = strange_rows(n, seed=first)
    plain = to_records(rows, input_schema(infer_plan(strange_rows(), project.settings), project.settings, sample=strange_rows()))
    records = [r | {'id': f'p{first+i}', 'sex': s} for i, (r, s) in enumerate(zip(plain, rows['sex']))]
    answer = client.post('/predict', json={'records': records})
    assert answer.status_code == 200, answer.text
    return answer.json()['predictions']


def test_a_shadow_changes_no_answer_and_is_compared_when_outcomes_come(project, client):
    before = send(client, project, 0, 60)
    promote(project, '2', to='shadow', because='a test')
    beside = send(client, project, 0, 60)
    assert [(b['version'], b['score'], b['decision']) for b in before] == [(a['version'], a['score'], a['decision']) for a in beside] and {a['version'] for a in beside} == {'1'}
    service = client.app.state.service
    until(lambda: len(service.shadow.rows) == 60)
    service.settle()
    said = project.tables.read('shadow')
    assert set(said['prediction_id']) == {a['prediction_id'] for a in beside} and set(said['version']) == {'2'} and not set(predictions(project)['version'])-{'1'}
    direct = project.registry.load('2').scores(strange_rows(60, seed=0))
    scored = said.set_index('prediction_id').loc[[a['prediction_id'] for a in beside], 'score']
    assert np.allclose(scored, direct, atol=1e-9)
    label(project, predictions(project)[['prediction_id']].tail(60).assign(label=['yes', 'no']*30))
    report = compare_shadow(project)
    assert (report.version, report.champion, report.rows) == ('2', '1', 60) and {e.n for e in report.quality.values()} == {60}
    told = CliRunner().invoke(main, ['shadow', '--project', str(project.folder)])
    assert told.exit_code == 0 and report.headline in told.output and 'better by, roc_auc: ' in told.output
    asked = CliRunner().invoke(main, ['shadow', '2', '--json', '--project', str(project.folder)])
    assert json.loads(asked.output)['churn'] == report.body()['churn'] and [e.subject for e in project.ledger.entries('shadow')] == ['2']*3


def test_a_shadow_that_fails_is_counted_and_never_seen(project, client):
    send(client, project, 0, 5)
    service = client.app.state.service
    service.shadow.ready.scorer.head = service.shadow.ready.scorer.head._replace(one=lambda row: 1/0)
    assert {a['version'] for a in send(client, project, 100, 3)} == {'1'}
    until(lambda: sum(n for (*_, what), n in [*service.tally.counts.items()] if what == 'failed') == 3)
    service.settle()
    table = counted(project, 'version', 'what')
    assert table.loc[(table['version'] == '2') & (table['what'] == 'failed'), 'count'].tolist() == [3]


def test_a_candidate_answers_its_share_and_a_bad_one_is_stopped_by_the_server(project, client):
    sign(project, '3')
    begun = begin(project, '3', because='a test')
    traffic, asked = current_traffic(project), []
    for i in range(12):
        asked += send(client, project, 1000*(i+1), 100)
        look_at_canary(client.app.state.service)
        if running(project) is None: break
    log = predictions(project)
    mine = log[log['epoch'] == begun.epochs[0]]
    assert set(mine['version']) == {'1', '3'} and (mine['version'] == arms(traffic, mine['id'])).all() and set(mine['prediction_id']) <= {a['prediction_id'] for a in asked}
    ended = project.latest(Canary)
    assert ended.state == 'stopped' and current_traffic(project).shares == {'1': 1.0}, ended.headline
    assert {a['version'] for a in send(client, project, 50_000, 50)} == {'1'}     # from the next request on


def test_a_candidate_that_breaks_is_stopped_for_its_errors_and_costs_nobody_an_answer(project, client):
    sign(project, '2')
    begin(project, '2', because='a test')
    send(client, project, 60_000, 10)
    client.app.state.service.improve()     # what a running server does between two looks
    arm = client.app.state.service.standing.arms['2']
    arm.scorer.head = arm.scorer.head._replace(one=lambda row: 1/0, many=lambda rows: 1/0)
    for i in range(12):
        assert {a['version'] for a in send(client, project, 70_000+1000*i, 100)} == {'1'}
        look_at_canary(client.app.state.service)
        if running(project) is None: break
    ended = project.latest(Canary)
    assert (ended.version, ended.state) == ('2', 'stopped') and 'errors' in ended.because
