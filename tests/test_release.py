"""Release by the commands that a person types: replay and its gate, a canary on Adult that ends well and one that does not, traffic, rollback."""
import json, shutil
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from mlcycle.cli import main
from mlcycle.core import Project
from mlcycle.features import FeaturePlan
from mlcycle.ledger import champion
from mlcycle.scoring import log_rows, new_ids
from mlcycle.tally import Tally
from mlcycle.traffic import arms, current_traffic
from served import crown, new_project, register, sign


@pytest.fixture(scope='module')
def adult(data_dir) -> pd.DataFrame:
    rows = pd.read_csv(data_dir/'adult'/'adult.csv', nrows=16_000)
    rows = rows.rename(columns={'income-per-year': 'income'})
    return rows.assign(income=(rows['income'] == '>50K').astype(int), id=[f'p{i}' for i in range(len(rows))])


@pytest.fixture(scope='module')
def made(tmp_path_factory, adult) -> Project:
    "Three versions: the champion, one much like it, and one that has learnt the opposite."
    more = '[deployment.canary]\nsteps = [0.2, 0.5, 1.0]\nmin_rows = 300\n'
    project = new_project(tmp_path_factory.mktemp('release')/'project', target='income', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex", "race"]\n', more=more)
    train = adult.head(3000)
    crown(project, register(project, train, LogisticRegression(max_iter=500)))
    for c, rows in ((.3, train), (1, train.assign(income=1-train['income']))):
        version = register(project, rows, LogisticRegression(C=c, max_iter=500))
        sign(project, version)
        project.ledger.append(stage='retraining', kind='comparison', subject=version, body={'champion': '1', 'promotable': True}, actor='Ada')
    return project


@pytest.fixture
def project(made, tmp_path) -> Project:
    shutil.copytree(made.folder, tmp_path/'project')
    return Project(tmp_path/'project', actor='Ada')


def mlcycle(project: Project, *words: str):
    return CliRunner().invoke(main, ['--project', str(project.folder), *words])


def serve(project: Project, rows: pd.DataFrame) -> None:
    "Answer people by the arms of the present split."
    split, tally = current_traffic(project), Tally()
    for version, part in rows.groupby(arms(split, rows['id'])):
        model = project.registry.load(version)
        found = model.predict(part).assign(prediction_id=new_ids(len(part)), at=pd.Timestamp.now('UTC'), version=version, epoch=split.epoch)
        project.tables.write('predictions', log_rows(project, part, FeaturePlan.from_body(model.info.plan), found), mode='append')
        tally.seen('answered', version, count=len(part), epoch=split.epoch)
    tally.flush(project)


def test_a_replay_says_who_would_get_another_decision_and_its_gate_holds(project, adult):
    assert mlcycle(project, 'replay', '2').exit_code == 1 and 'nothing to replay' in mlcycle(project, 'replay', '2').output
    serve(project, adult.iloc[3000:5000])
    found = json.loads(mlcycle(project, 'replay', '2', '--json').output)
    other = json.loads(mlcycle(project, 'replay', '3', '--json').output)
    assert found['rows'] == other['rows'] == 2000 and found['churn']['high'] < .05 < .5 < other['churn']['low']
    again = [project.registry.load(v).predict(adult.iloc[3000:5000])['decision'].to_numpy() for v in '13']
    assert other['changed'] == int((again[0] != again[1]).sum())
    project.update_settings({'gates': [{'name': 'few surprises', 'before': 'promotion', 'evidence': 'replay', 'field': 'churn.high', 'at_most': .05}]})
    held = mlcycle(project, 'promote', '3')
    assert held.exit_code == 1 and 'few surprises' in held.output and champion(project.ledger) == '1'
    assert mlcycle(project, 'canary', '3').exit_code == 1     # not even for a few
    assert mlcycle(project, 'promote', '2').exit_code == 0 and champion(project.ledger) == '2'
    back = mlcycle(project, 'rollback', '--because', 'people wrote')
    assert back.exit_code == 0 and champion(project.ledger) == '1'
    assert 'people wrote' in mlcycle(project, 'history').output


def test_a_canary_like_the_champion_becomes_it(project, adult):
    begun = mlcycle(project, 'canary', '2', '--because', 'a fresh one')
    assert begun.exit_code == 0 and '20 %' in mlcycle(project, 'traffic').output
    serve(project, adult.iloc[3000:6000])
    raised = json.loads(mlcycle(project, 'canary', '--json').output)
    assert raised['state'] == 'raised' and current_traffic(project).shares['2'] == .5
    serve(project, adult.iloc[6000:8000])
    done = mlcycle(project, 'canary')
    assert done.exit_code == 0 and champion(project.ledger) == '2' and 'finished' in done.output
    assert mlcycle(project, 'canary').exit_code == 1     # none is on its way


def test_a_canary_that_learnt_the_opposite_is_stopped_and_everybody_is_back(project, adult):
    assert mlcycle(project, 'canary', '3', '--steps', '0.1,1').exit_code == 0
    serve(project, adult.iloc[3000:9000])
    stopped = mlcycle(project, 'canary', '--json')
    body = json.loads(stopped.output)
    assert stopped.exit_code == 1 and body['state'] == 'stopped' and body['because'].split(':')[0].startswith(('score', 'decisions', 'estimated'))
    assert current_traffic(project).shares == {'1': 1.0} and champion(project.ledger) == '1'
    seen = pd.DataFrame(body['readings']['data'], columns=body['readings']['columns'])
    assert {'sex Male', 'sex Female', ''} == set(seen['group']) and (seen['answer'] == 'stop').any()


def test_traffic_by_hand(project, adult):
    assert mlcycle(project, 'traffic', '2=0.25', '--because', 'a test of two').exit_code == 0
    first = arms(current_traffic(project), adult['id'])
    assert mlcycle(project, 'traffic', '2=0.5').exit_code == 0
    more = arms(current_traffic(project), adult['id'])
    assert abs((first == '2').mean()-.25) < .02 and abs((more == '2').mean()-.5) < .02 and (more[first == '2'] == '2').all()
    for words in (['2=x'], ['2'], ['2=0.7', '3=0.7'], ['9=0.1'], ['2=-1']):
        refused = mlcycle(project, 'traffic', *words)
        assert refused.exit_code in (1, 2) and 'Traceback' not in refused.output, words
    assert mlcycle(project, 'canary', '3').exit_code in (0, 1) and mlcycle(project, 'canary', '--stop', '--because', 'enough').exit_code in (0, 1)
