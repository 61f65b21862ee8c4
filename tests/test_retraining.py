"""Retraining on real tables, ledger and registry: reasons, rows nobody has seen twice, and verdicts that only intervals give."""
import json, shutil, tempfile
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlcycle.core import Blocked, DataError, Estimate, Project, SettingsError
from mlcycle.features import build_pipeline
from mlcycle.plans import infer_plan, read_target
from mlcycle.gates import check_all
from mlcycle.recent import ChallengerRows, challenger_rows, held_back, recent, unseen
from mlcycle.registry import promote
from mlcycle.retraining import Comparison, Decision, compare, decide, newest_outcomes, open_request, read_verdict, realised, request_challenger
from mlcycle.scoring import label, score

TOML = '''
gates = [{{name = "compared", evidence = "comparison", field = "promotable", equals = true}}]
[project]
name = "R"
[problem]
task = "{task}"
target = "y"
{positive}
{criteria}
[data]
sources = [{{name = "s", path = "s.csv"}}]
{data}
[monitoring]
min_rows = 40
[retraining]
min_rows = 100
max_age_days = 30
{margin}
'''


@cache
def blank_registry() -> Path:
    "An empty MLflow store, made once: creating one takes longer than any test here."
    folder = Path(tempfile.mkdtemp())
    (folder/'mlcycle.toml').write_text(TOML.format(task='regression', positive='', data='', criteria='', margin=''))
    project = Project(folder, actor='Ada')
    project.registry.client().search_registered_models()
    return project.store/'mlflow.db'


def make(folder, *, task='binary', data='time = "day"', criteria='', margin='') -> Project:
    folder.mkdir(exist_ok=True)
    (folder/'store').mkdir(exist_ok=True)
    shutil.copy(blank_registry(), folder/'store'/'mlflow.db')
    positive = 'positive = "yes"' if task == 'binary' else ''
    (folder/'mlcycle.toml').write_text(TOML.format(task=task, positive=positive, data=data, criteria=criteria, margin=margin))
    return Project(folder, actor='Ada')


def world(n: int, start: str='2024-01-01', weight: float=2, seed: int=0, task: str='binary') -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    signal = weight*x+rng.logistic(size=n)
    y = {'binary': np.where(signal > 0, 'yes', 'no'), 'regression': signal,
         'multiclass': np.select([signal < -1, signal < 1], ['low', 'mid'], 'top')}[task]
    days = pd.Timestamp(start)+pd.to_timedelta(np.sort(rng.integers(0, 60, n)), unit='D')
    return pd.DataFrame({'day': days.strftime('%Y-%m-%d'), 'x': x, 'z': rng.integers(0, 5, n), 'y': y})


def train_on(project: Project, rows: pd.DataFrame, trained_on: str, estimator=None) -> str: # the version
    plan = infer_plan(rows, project.settings)
    plan = plan.model_copy(update={'columns': [c.model_copy(update={'parts': []}) for c in plan.columns]})
    estimator = estimator or (LinearRegression() if plan.task == 'regression' else LogisticRegression())
    y = read_target(rows, plan)
    fitted = build_pipeline(plan, estimator).fit(rows[plan.inputs], y)
    facts = {'algorithm': type(estimator).__name__, 'plan': plan.body(), 'data': trained_on, 'threshold': 0.5 if plan.task == 'binary' else None,
             'classes': sorted(set(y)) if plan.task == 'multiclass' else plan.classes}
    return project.registry.register(fitted, example=rows[plan.inputs], facts=facts).version


def begin(project: Project, rows: pd.DataFrame, table: str='train') -> str:
    snapshot = project.tables.write(table, rows)
    project.record(snapshot, subject=table)
    if table != 'train': return ''
    version = train_on(project, rows, snapshot.hash)
    promote(project, version, because='first')
    return version


def produce(project: Project, rows: pd.DataFrame, version: str='champion', labels: int | None=None) -> pd.DataFrame:
    found = score(project, rows.drop(columns='y'), version=version)
    known = pd.DataFrame({'prediction_id': found.prediction_id, 'label': rows.y.to_numpy()}).head(labels)
    if len(known): label(project, known)
    return found


@pytest.fixture(scope='module')
def turned(tmp_path_factory) -> Project:
    "A champion whose world has turned, with six hundred outcomes."
    project = make(tmp_path_factory.mktemp('p'), criteria='success = [{metric = "roc_auc", direction = ">=", threshold = 0.7}]')
    begin(project, world(400))
    produce(project, world(600, '2024-04-01', weight=-2, seed=1))
    return project


def test_the_whole_turn(turned):
    decision = decide(turned)
    assert decision.action == 'retrain' and 'roc_auc >= 0.7 is not met' in decision.reasons[0] and decision.outcomes == 600
    rows = challenger_rows(turned)
    facts = turned.latest(ChallengerRows)
    assert (facts.train, facts.production, facts.unseen) == (400, 400, 200) and len(rows) == 800 and rows.day.is_monotonic_increasing
    version = train_on(turned, rows, facts.hash)
    assert [g.answer for g in check_all(turned, version)] == ['missing']
    found = compare(turned, version)
    assert (found.verdict, found.promotable, found.rows, found.source, found.champion) == ('better', True, 200, 'production', '1')
    assert found.gain.low > 0 and found.challenger_metrics['roc_auc'].value-found.champion_metrics['roc_auc'].value == pytest.approx(found.gain.value)
    assert [g.answer for g in check_all(turned, version)] == ['pass']
    body = json.dumps(turned.ledger.last('comparison', version).body)
    assert 'NaN' not in body and len(body) < 20_000 and turned.latest(Comparison) == found
    waiting = decide(turned)
    assert waiting.action == 'nothing' and f'version {version} already waits' in waiting.reasons[-1]


def test_no_row_is_learnt_from_and_compared_on(turned):
    facts = turned.ledger.entries('challenger_rows')[-1] if turned.ledger.last('challenger_rows') else None
    rows = challenger_rows(turned) if facts is None else turned.tables.read('challenger')
    version = train_on(turned, rows, turned.latest(ChallengerRows).hash)
    kept, _ = unseen(turned, turned.registry.info(version), turned.registry.info('1'))
    assert len(kept.rows) == 200 and not set(kept.rows.x) & set(rows.x)
    assert kept.rows.day.min() >= rows.day.max()


def test_without_outcomes_there_is_nothing_to_train_on(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(200))
    with pytest.raises(DataError, match='no outcome of any prediction is known yet.*mlcycle label'): challenger_rows(project)
    produce(project, world(150, '2024-04-01', seed=1), labels=60)
    with pytest.raises(DataError, match='60 outcomes are known, retraining.min_rows asks for 100, 40 more.*mlcycle retrain --anyway'): challenger_rows(project)
    decision = decide(project, now=datetime.now(timezone.utc)+timedelta(days=45))
    assert decision.action == 'nothing' and '45 days old' in decision.reasons[0] and decision.reasons[1].startswith('but 60 outcomes')


def test_a_person_may_take_on_that_outcomes_are_too_few_and_it_is_evidence(tmp_path):
    "Asking is held back and says by what; taking it on needs a name and a reason; no gate opens by it."
    project = make(tmp_path/'p')
    begin(project, world(200))
    produce(project, world(150, '2024-04-01', seed=1), labels=30)
    request_challenger(project, by='Bob', because='a new law')
    held = decide(project)
    assert held.action == 'nothing' and held.despite == '' and '70 more' in held.reasons[-1] and 'mlcycle retrain --anyway --as NAME' in held.reasons[-1]
    with pytest.raises(SettingsError, match='a name and a reason'): request_challenger(project, by='Ada', because=' ', anyway=True)
    assert decide(project).action == 'nothing'
    asked = request_challenger(project, by='Ada', because='nothing better will come', anyway=True)
    request_challenger(project, by='Bob', because='still that law')   # takes nothing back
    assert '30 outcomes are known' in asked.against and open_request(project) == asked and project.ledger.entries('request')[-2].body['by'] == 'Ada'
    taken_on = decide(project)
    assert (taken_on.action, taken_on.despite) == ('retrain', 'Ada takes it on: nothing better will come')
    rows, facts = challenger_rows(project, despite=taken_on.despite), project.latest(ChallengerRows)
    assert len(rows) == 220 and (facts.production, facts.unseen) == (20, 10) and facts.despite.endswith('Ada takes it on: nothing better will come')
    found = compare(project, train_on(project, rows, facts.hash))
    assert found.verdict == 'undetermined' and check_all(project, found.challenger)[0].answer == 'fail'
    assert open_request(project) is None and decide(project).action == 'nothing'


def test_without_any_outcome_history_alone_is_learnt_from(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(200)); begin(project, world(80, '2024-03-10', seed=4), 'live')
    rows, facts = challenger_rows(project, despite='Ada takes it on: other candidates'), project.latest(ChallengerRows)
    assert len(rows) == 200 and (facts.production, facts.until) == (0, []) and facts.despite.startswith('no outcome of any prediction is known yet; Ada')
    version = train_on(project, rows, facts.hash)
    produce(project, world(90, '2024-04-01', seed=1))
    assert len(unseen(project, project.registry.info(version))[0].rows) == 90   # none of them was learnt from


def test_outcomes_of_one_kind_teach_nothing(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(200))
    produce(project, world(150, '2024-04-01').assign(y='no'))
    with pytest.raises(DataError, match="all 150 outcomes are 'no'"): challenger_rows(project)
    assert decide(project).performance['roc_auc'].status == 'undefined'


def alarm(project, id, kind, state='raised', version='1'):
    body = dict(id=id, kind=kind, column='x', state=state, version=version, since='2024-05-01T00:00:00+00:00', why='far away')
    project.ledger.append(stage='monitoring', kind='alarm', subject=id, body=body, actor='Ada')


def test_reasons_age_alarms_and_none_of_them(tmp_path):
    project = make(tmp_path/'p')
    assert decide(project).reasons == ['no version is champion; mlcycle run development makes one']
    project.ledger.append(stage='development', kind='model', subject='0', body={}, actor='Ada')
    assert decide(project).reasons == ['no version is champion; version 0 waits, mlcycle status says at which gate']
    project = make(tmp_path/'q')
    begin(project, world(200))
    assert decide(project).action == 'nothing' and 'no alarm that counts is open' in decide(project).reasons[0]
    produce(project, world(200, '2024-04-01', seed=1))
    assert decide(project, now=datetime.now(timezone.utc)+timedelta(days=31)).action == 'retrain'
    alarm(project, 'a', 'quality'); alarm(project, 'b', 'drift', version='9'); alarm(project, 'c', 'drift', 'acknowledged')
    alarm(project, 'd', 'performance'); alarm(project, 'd', 'performance', 'resolved')
    calm = decide(project)
    assert calm.action == 'nothing' and 'would not cure it' in calm.notes[0] and not calm.alarms
    alarm(project, 'e', 'drift')
    found = decide(project)
    assert found.action == 'retrain' and found.alarms == ['e'] and "drift alarm of 'x' since 2024-05-01" in found.reasons[0]
    assert project.latest(Decision, subject='1') == found


def test_five_alarms_are_one_retraining(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(200))
    produce(project, world(200, '2024-04-01', seed=1))
    for i in range(5): alarm(project, f'a{i}', 'drift')
    assert decide(project).action == 'retrain'
    challenger_rows(project)
    again = decide(project)
    assert again.action == 'nothing' and '0 outcomes have come since, 100 are needed' in again.reasons[-1]
    produce(project, world(120, '2024-07-01', seed=2))
    assert decide(project).action == 'retrain'


def test_a_kill_criterion_that_is_reached_and_one_between_groups(tmp_path):
    criteria = ('kill = [{metric = "accuracy", direction = "<=", threshold = 0.6}]\n'
                'success = [{metric = "selection_rate", direction = "<=", threshold = 0.1, group_by = "side"}]')
    project = make(tmp_path/'p', criteria=criteria, data='time = "day"\nprotected = ["side"]')
    rows = world(300).assign(side='l')
    begin(project, rows.assign(side=np.where(rows.x > 0, 'l', 'r')))
    later = world(300, '2024-04-01', weight=-2, seed=3)
    produce(project, later.assign(side=np.where(later.x > 0, 'l', 'r')))
    reasons = decide(project).reasons
    assert any('kill criterion accuracy <= 0.6 is reached' in r for r in reasons)
    assert any('selection_rate difference over side <= 0.1 is not met' in r for r in reasons)


def test_a_batch_without_times_is_cut_by_random_ids(tmp_path):
    project = make(tmp_path/'p', data='')
    begin(project, world(200).drop(columns='day'))
    produce(project, world(300, seed=5).drop(columns='day'))
    rows = challenger_rows(project)
    version = train_on(project, rows, project.latest(ChallengerRows).hash)
    kept, source = unseen(project, project.registry.info(version), project.registry.info('1'))
    assert source == 'production' and len(kept.rows) == 100 and not set(kept.rows.x) & set(rows.x)
    produce(project, world(50, seed=6).drop(columns='day'))
    assert len(unseen(project, project.registry.info(version))[0].rows) == 150


def test_rows_of_training_and_test_are_recognised_by_their_ids(tmp_path):
    project = make(tmp_path/'p', data='id = "k"')
    rows = world(700, seed=7).drop(columns='day').assign(k=[f'k{i}' for i in range(700)])
    begin(project, rows[:200]); begin(project, rows[200:300].reset_index(drop=True), 'test')
    produce(project, rows)
    learnt = challenger_rows(project)
    assert len(learnt) == 200+266 and learnt.k.is_unique and not set(learnt.k) & set(rows.k[200:300])
    version = train_on(project, learnt, project.latest(ChallengerRows).hash)
    kept, _ = unseen(project, project.registry.info(version), project.registry.info('1'))
    assert len(kept.rows) >= 134 and not set(kept.rows.k) & set(learnt.k)


def test_what_two_versions_answered_is_counted_once(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(200))
    shadow = train_on(project, world(200), project.registry.info('1').data)
    promote(project, shadow, to='shadow', because='watch it')
    rows = world(150, '2024-04-01', seed=1)
    for version in ('champion', shadow): produce(project, rows, version)
    assert len(recent(project).rows) == 150
    assert sorted(recent(project).rows.x) == sorted(rows.x)


def test_strange_names_and_types_come_back_as_they_were(tmp_path):
    project = make(tmp_path/'p', data='time = "day"')
    def strange(frame):
        n, rng = len(frame), np.random.default_rng(len(frame))
        return frame.assign(**{'<img src=x onerror=alert(1)>': rng.choice(["=cmd|' /C calc'!A0", 'b'], n), 'at': rng.normal(size=n),
                               'prediction_id': rng.integers(0, 9, n), 'label': rng.choice(['u', 'v'], n), 'flag': rng.random(n) < .5,
                               'some': np.where(rng.random(n) < .3, np.nan, rng.integers(0, 4, n))})
    begin(project, strange(world(200)))
    rows = strange(world(150, '2024-04-01', seed=1))
    produce(project, rows)
    back = recent(project).rows.sort_values('x', ignore_index=True)
    pd.testing.assert_frame_equal(back, rows.sort_values('x', ignore_index=True)[list(back)], check_dtype=False)
    assert back.dtypes.astype(str).to_dict() == project.tables.read('train').dtypes.astype(str).to_dict()
    assert len(challenger_rows(project)) == 300


def test_rows_held_back_at_the_split_stand_in(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(300)); begin(project, world(80, '2024-03-10', seed=4), 'live')
    version = train_on(project, world(300), project.registry.info('1').data)
    assert len(held_back(project).rows) == 80
    found = compare(project, version)
    assert (found.source, found.rows, found.verdict) == ('live', 80, 'not worse')   # the same model twice
    assert found.since.startswith('2024-03-1') and found.gain.value == 0


def test_too_few_rows_are_undetermined_and_open_no_gate(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(300))
    version = train_on(project, world(300), project.registry.info('1').data)
    produce(project, world(39, '2024-04-01', seed=1))
    found = compare(project, version)
    assert found.verdict == 'undetermined' and not found.promotable and '39 rows' in found.why and '40 are needed' in found.why
    assert check_all(project, version)[0].answer == 'fail'


def test_a_worse_challenger_and_a_margin(tmp_path):
    project = make(tmp_path/'p', margin='non_inferiority = 0.9')
    begin(project, world(300))
    produce(project, world(200, '2024-04-01', seed=1))
    worse = train_on(project, world(300), project.registry.info('1').data, DummyClassifier(strategy='prior'))
    found = compare(project, worse)
    assert found.verdict == 'worse' and not found.promotable and found.margin == 0.9   # a margin never excuses a proven loss


def test_rows_that_are_gone_leave_no_comparison(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(300))
    produce(project, world(200, '2024-04-01', seed=1))
    rows = challenger_rows(project)
    version = train_on(project, rows, project.latest(ChallengerRows).hash)
    stranger = train_on(project, rows, 'f'*64)
    found = compare(project, stranger)
    assert found.verdict == 'undetermined' and f'What version {stranger} learnt from is gone' in found.why
    project.record(project.tables.write('train', world(50, seed=9)), subject='train')
    project.tables.vacuum('train')
    found = compare(project, version)
    assert found.verdict == 'undetermined' and not found.promotable and 'What version 1 learnt from is gone or changed' in found.why


def test_versions_that_answer_different_questions(tmp_path):
    project = make(tmp_path/'p')
    begin(project, world(300))
    produce(project, world(200, '2024-04-01', seed=1))
    (project.folder/'mlcycle.toml').write_text((project.folder/'mlcycle.toml').read_text().replace('"yes"', '"no"'))
    turned_round = Project(project.folder, actor='Ada')
    version = train_on(turned_round, world(300), project.registry.info('1').data)
    found = compare(turned_round, version)
    assert found.verdict == 'undetermined' and 'different questions' in found.why


def test_wrong_calls_are_refused(tmp_path):
    project = make(tmp_path/'p')
    with pytest.raises(Blocked, match='No version is champion'): compare(project, '1')
    begin(project, world(200))
    with pytest.raises(SettingsError, match='other than the champion'): compare(project, '1')
    with pytest.raises(SettingsError, match="No model version '7'"): compare(project, '7')
    with pytest.raises(SettingsError, match='challenger other than'): compare(project, 'challenger')
    version = train_on(project, world(200), project.registry.info('1').data)
    project.ledger.append(stage='retirement', kind='retirement', subject=version, body={'version': version}, actor='Ada')
    with pytest.raises(Blocked, match='retired'): compare(project, version)
    reader = Project(project.folder, read_only=True)
    for call in (decide, challenger_rows): 
        with pytest.raises(Blocked, match='read-only'): call(reader)
    with pytest.raises(Blocked, match='read-only'): compare(reader, version)


@pytest.mark.parametrize('task', ['multiclass', 'regression'])
def test_the_other_tasks_go_round_as_well(tmp_path, task):
    project = make(tmp_path/'p', task=task)
    begin(project, world(300, task=task))
    produce(project, world(400, '2024-04-01', weight=-2, seed=1, task=task))
    rows = challenger_rows(project)
    version = train_on(project, rows, project.latest(ChallengerRows).hash)
    found = compare(project, version)
    assert found.verdict == 'better' and found.metric == {'multiclass': 'log_loss', 'regression': 'rmse'}[task]
    figures = realised(project, '1', newest_outcomes(project, '1'))
    assert figures[found.metric].status == 'ok'


@pytest.mark.parametrize('low, high, margin, verdict', [(.01, .02, 0, 'better'), (-.02, -.01, .5, 'worse'), (-.01, .02, .01, 'not worse'),
                                                        (-.01, .02, 0, 'undetermined'), (0, 0, 0, 'not worse')])
def test_the_verdict_reads_the_interval(low, high, margin, verdict):
    assert read_verdict(Estimate(metric='m', value=(low+high)/2, low=low, high=high), margin) == verdict


@pytest.mark.parametrize('status', ['undefined', 'too few', 'not estimable'])
def test_nothing_that_is_not_ok_is_a_pass(status):
    assert read_verdict(Estimate(metric='m', status=status, value=.5, low=.4, high=.6, reason='r'), 1.) == 'undetermined'
