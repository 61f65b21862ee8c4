"Monitoring: windows, alarms and reports on logs that are empty, late, doubled, contradictory, gapped, dated in the future."
import json

import numpy as np
import pandas as pd
import pytest

import mlcycle.replay
from mlcycle.alarms import Finding, acknowledge_alarm, current_alarms, episodes, update_alarms
from mlcycle.core import Blocked, Estimate, Project, SettingsError, canonical_json
from mlcycle.plans import infer_plan
from mlcycle.health import MonitoringReport, blocking, health, monitor_json
from mlcycle.monitoring import monitor, recorded, replay_live
from mlcycle.scoring import label
from mlcycle.watches import window_bounds, window_number

NOW, DAY = '2025-06-01', pd.Timedelta(days=1)
SETTINGS = '''
[project]
name = "Loans"
[problem]
task = "{task}"
target = "y"
{positive}
{criteria}
[data]
sources = [{{name = "loans", path = "loans.csv"}}]
protected = ["sex", "age"]
time = "applied"
{more}
[governance]
signatures = 0
'''


def rows(n, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'income': rng.lognormal(8 + shift, .4, n).round(), 'age': rng.integers(18, 80, n).astype(float),
                       'sex': rng.choice(['f', 'm'], n), 'channel': rng.choice(['branch', 'online', 'phone'], n)})
    df['p'] = 1 / (1 + np.exp(-((8 + shift - np.log(df['income'])) * 2.5 - .5)))
    return df.assign(y=np.where(rng.random(n) < df['p'], 'yes', 'no'))


def project_at(folder, task='binary', more='', criteria=''):
    "A project with a training table and one registered version; what registering itself does is tested elsewhere."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'mlcycle.toml').write_text(SETTINGS.format(task=task, positive='positive = "yes"' if task == 'binary' else '', more=more, criteria=criteria))
    p = Project(folder, actor='Ada')
    train = rows(3000, seed=99).drop(columns='p')
    if task == 'regression': train['y'] = np.log(train['income']) + np.random.default_rng(1).normal(0, .2, 3000)
    if task == 'multiclass': train['y'] = train['channel']
    snapshot = p.tables.write('train', train)
    p.record(snapshot, subject='train')
    plan = infer_plan(train, p.settings)
    body = dict(version='1', hash='0' * 64, uri='', algorithm='by hand', task=task, threshold=.5 if task == 'binary' else None,
                classes=['branch', 'online', 'phone'] if task == 'multiclass' else [], columns=plan.inputs, plan=plan.body(), data=snapshot.hash)
    p.ledger.append(stage='development', kind='model', subject='1', body=body, actor='Ada')
    metric = {'binary': ('roc_auc', .74), 'multiclass': ('log_loss', .6), 'regression': ('rmse', .2)}[task]
    expected = Estimate(metric=metric[0], value=metric[1], low=metric[1] - .02, high=metric[1] + .02, n=2000)
    p.ledger.append(stage='validation', kind='validation', subject='1', actor='Ada', body={'verdict': 'pass', 'metrics': {metric[0]: expected.body()}})
    promote(p, '1')
    return p


def promote(p, version):
    p.ledger.append(stage='deployment', kind='promotion', subject=version, actor='Ada', body={'version': version, 'role': 'champion', 'because': 'x', 'previous': None})


def log(p, df, start, days=30, version='1', labels=True):
    "Predictions spread over some days, as scoring would have logged them, and their outcomes."
    ids = [f'{version}-{start}-{i:05}-{abs(hash((start, days))) % 10**6}' for i in range(len(df))]
    at = pd.Timestamp(start, tz='UTC') + pd.to_timedelta(np.linspace(0, days, len(df), endpoint=False), unit='D')
    made = pd.DataFrame({'prediction_id': ids, 'at': at.astype('datetime64[us, UTC]'), 'version': version, 'score': df['p'].to_numpy(), 'decision': (df['p'] >= .5).astype(int).to_numpy()})
    p.tables.write('predictions', pd.concat([made, df[['income', 'age', 'sex', 'channel']].reset_index(drop=True)], axis=1), mode='append')
    if labels: label(p, pd.DataFrame({'prediction_id': ids, 'label': df['y'].to_numpy()}))
    return ids


FIRST = window_bounds(window_number(pd.Series([pd.Timestamp('2024-02-01', tz='UTC')]), 30)[0], 30)[0]
def start(window): return (FIRST + window * 30 * DAY).strftime('%Y-%m-%d')


@pytest.fixture
def project(tmp_path): return project_at(tmp_path / 'loans')


def test_nothing_logged_is_a_report(project):
    report = monitor(project, now=NOW)
    assert report.note == 'No predictions have been logged.' and health(report).verdict == 'cannot tell' and not blocking(report)
    assert monitor_json(report)['windows'] == [] == monitor_json(report)['alarms'] and report.plot() is not None
    assert 'no predictions' in report._repr_html_() and project.ledger.entries('window') == []


@pytest.mark.parametrize('n, status', [(1, 'too few'), (29, 'too few'), (60, 'ok')])                                   # M01
def test_few_rows_are_never_no_drift(project, n, status):
    log(project, rows(n), start(0))
    (window,) = monitor(project, now=NOW).windows
    assert window.status == status and window.rows == n
    if n < 50: assert set(window.drift['status']) == {'too few'} and window.performance['roc_auc'].status == 'too few'
    assert health(recorded(project)).verdict != 'well' or n == 60


def test_windows_are_recorded_once_and_again_only_when_they_change(project):                                          # M05
    for i in range(3): log(project, rows(300, seed=i), start(i), labels=i < 2)
    ids = project.tables.read('predictions')['prediction_id'].tolist()
    first = monitor(project, now=NOW)
    head = project.ledger.head()
    assert monitor(project, now=NOW) == first == recorded(project) and project.ledger.head() == head
    assert [w.labelled for w in first.windows] == [300, 300, 0] and first.windows[2].performance['roc_auc'].status == 'too few'
    late = label(project, pd.DataFrame({'prediction_id': [*ids[600:800], ids[600], 'nobody'], 'label': ['yes'] * 200 + ['no', 'yes']}))
    assert (late.unknown, late.contradictory) == (1, 1)
    second = monitor(project, now=NOW)
    assert second.windows[:2] == first.windows[:2] and second.windows[2].labelled == 200
    assert len(project.ledger.entries('window')) == 4 and len(project.tables.read('labels')) == 600 + 202


def test_order_zone_and_future(project):                                                                              # M06
    df = rows(200)
    log(project, df.iloc[::-1], start(1))
    log(project, df, start(0))
    log(project, df[:80], '2030-01-01', days=1)
    report = monitor(project, now='2024-06-01')
    assert [w.rows for w in report.windows if w.rows] == [200, 200, 80] and [w.start for w in report.windows] == sorted(w.start for w in report.windows)
    last = report.windows[-1]
    assert last.future == 80 and not last.complete
    assert last.start[:4] == '2029' or last.start[:4] == '2030'
    times = pd.Series(pd.to_datetime(['2024-03-10 23:30-05:00', '2024-03-11 04:30Z'], utc=True, format='mixed'))
    assert window_number(times, 7).nunique() == 1


def test_alarm_rings_once_is_acknowledged_and_resolves(project):
    for i in range(2): log(project, rows(400, seed=i), start(i))
    for i in (2, 3): log(project, rows(400, seed=i).assign(income=lambda d: d['income'] * 100, p=.9), start(i))
    report = monitor(project, now=NOW)
    income = next(a for a in report.alarms if a.column == 'income')
    assert (income.state, income.since[:10], income.cause) == ('raised', start(2), 'drift') and income.why.startswith('about 100 times larger')
    assert {a.cause for a in report.alarms} == {'drift', 'performance'} and health(report).verdict == 'not well' and income in blocking(report)
    assert len(project.ledger.entries('alarm')) == len(report.alarms)
    with pytest.raises(SettingsError, match='name and a reason'): acknowledge_alarm(project, income.id, by=' ', because='x')
    acknowledge_alarm(project, income.id, by='Grace', because='known')
    for i in (4, 5): log(project, rows(400, seed=i), start(i))
    after = {a.id: a for a in monitor(project, now=NOW).alarms}[income.id]
    assert (after.state, after.until[:10], after.by) == ('resolved', start(4), 'Grace')
    with pytest.raises(Blocked, match='already resolved'): acknowledge_alarm(project, income.id, by='Grace', because='x')
    open_ones = [a.headline for a in recorded(project).alarms if a.state != 'resolved']
    assert open_ones == [] and health(recorded(project)).verdict == 'well' and health(recorded(project)).since[:10] == start(4)


def test_late_rows_can_take_an_alarm_back(project):
    def said(*answers): return episodes([(start(i), start(i + 1), [Finding(cause='drift', column='x', answer=a)]) for i, a in enumerate(answers)])
    assert [a.state for a in update_alarms(project, '1', said('clear', 'alarm'))] == ['raised']
    (gone,) = update_alarms(project, '1', said('clear', 'clear'))
    assert gone.state == 'resolved' and 'came later' in gone.because
    (moved,) = update_alarms(project, '1', said('clear', 'alarm'))
    assert moved.state == 'raised' and len(project.ledger.entries('alarm')) == 3
    (earlier,) = update_alarms(project, '1', said('alarm', 'alarm'))
    assert earlier.id == moved.id and len(project.ledger.entries('alarm')) == 3


def test_a_window_still_filling_does_not_ring(project):
    log(project, rows(400), start(0))
    log(project, rows(300).assign(income=1.0), start(1), days=10)
    within = (FIRST + 42 * DAY).isoformat()
    report = monitor(project, now=within)
    assert not report.windows[-1].complete and report.windows[-1].drift.set_index('column').loc['income', 'status'] == 'drift' and report.alarms == []
    assert any(a.column == 'income' for a in monitor(project, now=NOW).alarms)


def test_a_gap_is_a_window_and_an_alarm(project):
    for i in (0, 3): log(project, rows(300, seed=i), start(i))
    report = monitor(project, now=NOW)
    assert [w.status for w in report.windows] == ['ok', 'no data', 'no data', 'ok']
    assert [(a.cause, a.state) for a in report.alarms] == [('traffic', 'resolved')] and set(report.windows[1].drift['status']) == {'no data'}


def test_missing_column_and_strange_values_are_findings(project):
    log(project, rows(300), start(0))
    log(project, rows(300, seed=1).assign(channel=None, income=lambda d: d['income'].where(d.index > 30, np.inf), age=np.nan), start(1))
    report = monitor(project, now=NOW)
    quality = report.windows[1].quality.set_index('column')
    assert quality.loc['channel', 'missing'] == 1 and quality.loc['income', 'infinite'] > .1
    assert {a.column for a in report.alarms if a.cause == 'drift'} >= {'channel', 'age', 'income'}
    report.windows[1].by_group['group'].tolist()
    json.dumps(monitor_json(report), allow_nan=False)


def test_versions_are_watched_apart_and_old_ones_let_go(project):
    log(project, rows(300), start(0))
    log(project, rows(300, seed=1).assign(income=1.0), start(1))
    assert blocking(monitor(project, now=NOW))
    body = project.ledger.last('model', '1').body | {'version': '2'}
    project.ledger.append(stage='development', kind='model', subject='2', body=body, actor='Ada')
    promote(project, '2')
    log(project, rows(300, seed=2), start(2), version='2')
    report = monitor(project, now=NOW)
    assert report.champion == '2' and [w.version for w in report.windows] == ['1', '1', '2'] and not blocking(report)
    assert {a.because for a in report.alarms} == {'version 1 is no longer in use'}
    head = project.ledger.head()
    monitor(project, now=NOW)
    assert project.ledger.head() == head
    log(project, rows(9), start(2), version='77', labels=False)
    assert '9 predictions are of versions that are not registered' in monitor(project, now=NOW).note


@pytest.mark.parametrize('task', ['regression', 'multiclass'])
def test_other_tasks(tmp_path, task):
    p = project_at(tmp_path / task, task)
    df, rng = rows(400), np.random.default_rng(0)
    if task == 'regression': df = df.assign(y=np.log(df['income']) + rng.normal(0, .6, 400), p=np.log(df['income']))
    else: df = df.assign(y=df['channel'], p=.6)
    ids = log(p, df, start(0), labels=False)
    if task == 'multiclass':
        made = p.tables.read('predictions')
        for c in ('branch', 'online', 'phone'): made[f'score_{c}'] = np.where(df['channel'] == c, .6, .2)
        p.tables.write('predictions', made)
    label(p, pd.DataFrame({'prediction_id': ids, 'label': df['y'].to_numpy()}))
    report = monitor(p, now=NOW)
    (window,) = report.windows
    (outcomes,) = report.targets.table.to_dict('records')
    assert outcomes['status'] == {'regression': 'drift', 'multiclass': 'no drift'}[task] and outcomes['low'] < 0 < outcomes['high'] and outcomes['what'].split(' ')[0] == {'regression': 'mean', 'multiclass': 'share'}[task]   # amounts spread further, around the same mean
    assert report.together.figures['auc'].low < .5 < report.together.figures['auc'].high and report.together.rows == 400
    assert window.labelled == 400 and window.change.status == 'ok' and set(window.by_group['attribute']) == {'sex', 'age'}
    assert [a.cause for a in recorded(p).alarms] == (['performance'] if task == 'regression' else [])   # error grew from .2 to .6


def test_outcomes_that_changed_are_shown_and_ring_nobody(project):
    calm, worse = rows(400), rows(400, seed=1)
    log(project, calm, start(0))
    log(project, worse.assign(y=np.where(np.random.default_rng(2).random(400) < .35, 'yes', worse['y'])), start(1))
    late = log(project, rows(400, seed=3), start(2), labels=False)
    label(project, pd.DataFrame({'prediction_id': late[:40], 'label': ['yes'] * 40}))
    report = monitor(project, now=NOW)
    assert report.targets.table['status'].tolist() == ['no drift', 'drift', 'outcomes not in'] and report.targets.table['low'][1] > 0
    assert not {a.cause for a in report.alarms} & {'target', 'drift'} and 'rings nobody' in report._repr_html_()
    assert MonitoringReport.from_body(json.loads(canonical_json(report.body()))) == report


def test_criteria_of_the_problem_card_hold_in_production(tmp_path):
    p = project_at(tmp_path / 'c', criteria='success = [{metric = "roc_auc", direction = ">=", threshold = 0.9}]')
    log(p, rows(500), start(0))
    alarm = next(a for a in monitor(p, now=NOW).alarms if a.cause == 'criterion')
    assert alarm.why == 'not met: roc_auc >= 0.9' and 'promise' in alarm.advice


def test_replay_happens_once_even_when_interrupted(tmp_path, monkeypatch):
    p = project_at(tmp_path / 'r', more='label_time = "known"')
    assert replay_live(p).state == 'not possible'
    live = rows(200).assign(applied=pd.date_range(start(0), periods=200, freq='3h').repeat(1), known=lambda d: d['applied'] + 40 * DAY)
    p.record(p.tables.write('live', live), subject='live')
    def score(project, df, *, version):
        made = pd.DataFrame({'prediction_id': [f'id{i:04}' for i in np.random.default_rng(0).permutation(len(df))], 'at': pd.to_datetime(df['applied'], utc=True).astype('datetime64[us, UTC]'),
                             'version': version, 'score': df['p'].to_numpy(), 'decision': 0})
        project.tables.write('predictions', pd.concat([made, df[['income', 'age', 'sex', 'channel']]], axis=1), mode='append')
        return made
    monkeypatch.setattr(mlcycle.replay, 'score', score)
    monkeypatch.setattr(mlcycle.replay, 'label', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): replay_live(p)
    monkeypatch.setattr(mlcycle.replay, 'label', label)
    done = replay_live(p)
    assert (done.state, done.rows, done.labelled) == ('done', 200, 200) and replay_live(p) == done
    made = p.tables.read('predictions').merge(p.tables.read('labels'), on='prediction_id')
    assert len(p.tables.read('predictions')) == 200 == len(made)
    assert (made.sort_values('at_x')['label'].to_numpy() == (live['y'] == 'yes').to_numpy()).all()
    assert [e.body['state'] for e in p.ledger.entries('replay')] == ['begun', 'done']


def test_read_only_projects_can_look_and_not_monitor(project):
    log(project, rows(300), start(0))
    report = monitor(project, now=NOW)
    viewer = Project(project.folder, read_only=True)
    assert recorded(viewer) == report
    with pytest.raises(Blocked, match='read-only'): monitor(viewer)


def test_no_rows_and_no_ids_in_the_ledger_and_names_escaped(tmp_path):
    bad = '<img src=x onerror=alert(1)>'
    p = project_at(tmp_path / 'x')
    ids = log(p, rows(300).assign(channel=bad), start(0))
    report = monitor(p, now=NOW)
    everything = canonical_json([e.body for e in p.ledger.entries()])
    assert not any(i in everything for i in ids) and len(canonical_json(p.ledger.last('window').body)) < 30_000
    assert bad in everything and '<img' not in report._repr_html_() and '<img' not in report.windows[0]._repr_html_()


def test_window_length_is_a_parameter_and_kept_apart(project):
    log(project, rows(600), start(0))
    assert len(monitor(project, now=NOW).windows) == 1
    weeks = monitor(project, window_days=7, now=NOW)
    assert len(weeks.windows) in (5, 6) and sum(w.rows for w in weeks.windows) == 600 and recorded(project) == weeks
    assert len(recorded(project, window_days=30).windows) == 1


def test_report_as_json_and_back(project):
    log(project, rows(300), start(0))
    report = monitor(project, now=NOW)
    assert MonitoringReport.from_body(json.loads(canonical_json(report.body()))) == report
    told = monitor_json(report)
    assert {'from', 'to', 'rows', 'labelled', 'drift', 'performance'} <= set(told['windows'][0])
    assert told['windows'][0]['drift']['income']['status'] == 'no drift' and told['windows'][0]['performance']['roc_auc']['status'] == 'ok'
