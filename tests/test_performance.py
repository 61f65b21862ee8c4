"Performance before outcomes are known: estimates by window, held to what comes, withdrawn and given back."
import json

import numpy as np
import pandas as pd
import pytest

from mlcycle.core import canonical_json
from mlcycle.estimates import NOT_VALID
from mlcycle.health import MonitoringReport, groups_over_time, monitor_json
from mlcycle.monitoring import monitor, recorded
from mlcycle.retention import Erasure
from mlcycle.scoring import label
from test_monitoring import DAY, NOW, log, project_at, rows, start


def other_relation(df, seed):
    "The same people, who default for no reason that the model knows."
    return df.assign(y=np.where(np.random.default_rng(seed).random(len(df)) < df['p'].mean(), 'yes', 'no'))


@pytest.fixture(scope='module')
def life(tmp_path_factory):
    "Ten months: the relation changes in the fifth, comes back in the eighth; the last month has no outcomes yet."
    p = project_at(tmp_path_factory.mktemp('life') / 'p')
    for i in range(10):
        df = rows(600, seed=i)
        log(p, other_relation(df, i) if i in (4, 5, 6) else df, start(i), labels=i < 9)
    return p, monitor(p, now=NOW)


def test_estimates_are_learnt_from_the_first_window_and_stand(life):
    _, report = life
    first, *others = [w.estimated['roc_auc'] for w in report.windows]
    assert first.status == 'not estimable' and first.reason == 'the estimates were learnt from its outcomes'
    assert [e.status for e in others[:3]] == ['ok'] * 3 and '600 outcomes of its first windows' in others[0].reason
    assert 'not yet tested' in others[0].reason and others[2].reason.endswith('held in 2 of 2 earlier windows with outcomes')
    for w in report.windows[1:4]: assert w.estimated['roc_auc'].low < w.performance['roc_auc'].value < w.estimated['roc_auc'].high


def test_estimates_are_withdrawn_since_the_relation_changed_and_come_back(life):
    _, report = life
    states = [w.estimated['roc_auc'].status for w in report.windows]
    assert states == ['not estimable', 'ok', 'ok', 'ok', NOT_VALID, NOT_VALID, NOT_VALID, NOT_VALID, 'ok', 'ok']   # with the second good month
    gone = report.windows[5].estimated['roc_auc']
    assert gone.value is gone.low is gone.high is None and gone.reason.startswith(f'since {start(4)}')
    assert report.windows[5].as_made['roc_auc'].status == 'ok' and report.windows[5].gaps['roc_auc'].high < 0
    assert report.windows[9].labelled == 0 and report.windows[9].gaps == {} and report.windows[9].estimated['roc_auc'].value > .6


def test_the_ledger_holds_the_estimates_as_they_stand_and_is_not_written_twice(life):
    p, report = life
    assert recorded(p) == report
    head = p.ledger.head()
    assert monitor(p, now=NOW) == report and p.ledger.head() == head
    assert MonitoringReport.from_body(json.loads(canonical_json(report.body()))) == report
    told = monitor_json(report)['windows'][5]['performance']['roc_auc']
    assert told['status'] == 'ok' and told['estimated']['status'] == NOT_VALID and told['estimated']['value'] is None


def test_a_fall_is_estimated_before_outcomes_and_measured_after(tmp_path):
    p = project_at(tmp_path / 'fall')
    for i in range(3): log(p, rows(800, seed=i), start(i))
    alike = rows(4000, seed=9)
    alike = alike[alike['p'].between(.35, .65)].head(800).reset_index(drop=True)   # people who are hard to tell apart
    ids = log(p, alike, start(3), labels=False)
    (alarm,) = [a for a in monitor(p, now=NOW).alarms if a.cause == 'estimate']
    assert alarm.state == 'raised' and alarm.since[:10] == start(3) and 'estimated before outcomes are known' in alarm.why
    label(p, pd.DataFrame({'prediction_id': ids, 'label': alike['y'].to_numpy()}))
    after = {a.cause: a for a in monitor(p, now=NOW).alarms if a.cause in ('estimate', 'performance')}
    assert after['estimate'].state == 'resolved' and after['performance'].state == 'raised'


@pytest.mark.parametrize('task, metric', [('regression', 'mae'), ('multiclass', 'accuracy')])
def test_other_tasks_are_estimated_too(tmp_path, task, metric):
    p = project_at(tmp_path / task, task)
    rng = np.random.default_rng(5)
    for i in range(3):
        df = rows(400, seed=i)
        if task == 'regression': df = df.assign(p=np.log(df['income']), y=lambda d: d['p'] + rng.normal(0, .2, 400) * np.where(d['sex'] == 'f', 2, 1))
        else: df = df.assign(p=.6, y=np.where(rng.random(400) < .7, df['channel'], 'phone'))
        ids = log(p, df, start(i), labels=False)
        if task == 'multiclass':
            made = p.tables.read('predictions')
            new = made['prediction_id'].isin(ids).to_numpy()
            for c in ('branch', 'online', 'phone'):
                if f'score_{c}' not in made: made[f'score_{c}'] = np.nan
                made.loc[new, f'score_{c}'] = np.where(made.loc[new, 'channel'] == c, .6, .2)
            p.tables.write('predictions', made)
        if i < 2: label(p, pd.DataFrame({'prediction_id': ids, 'label': df['y'].to_numpy()}))
    report = monitor(p, now=NOW)
    told, gap = report.windows[2].estimated[metric], report.windows[1].gaps[metric]
    assert told.status == 'ok' and told.low < told.value < told.high and gap.low < 0 < gap.high
    assert abs(told.value - report.windows[1].performance[metric].value) < .1


def test_few_rows_and_few_outcomes_are_said(tmp_path):
    p = project_at(tmp_path / 'few')
    log(p, rows(40), start(0))
    log(p, rows(300, seed=1), start(1), labels=False)
    first, second = monitor(p, now=NOW).windows
    assert second.estimated['roc_auc'].status == first.estimated['roc_auc'].status == 'not estimable'
    assert 'needed to calibrate it' in second.estimated['roc_auc'].reason


def test_a_fall_is_split_into_rows_and_relation_once_outcomes_are_in(life):
    _, report = life
    for w in report.windows[4:7]:
        assert w.change.high < 0 and w.parts['relation'].high < 0 and abs(w.parts['inputs'].value) < .02
        assert w.parts['inputs'].value+w.parts['relation'].value == pytest.approx(w.change.value, abs=.06)
    assert report.windows[9].parts == {} and 'changed relation' in report._repr_html_()


def test_outcomes_by_the_time_they_became_known_and_groups_over_time(life):
    p, report = life
    assert int(report.arrivals.table.outcomes.sum()) == 9*600 and int(report.arrivals.table.corrections.sum()) == 0
    table = groups_over_time(report, 'sex', 'recall')
    assert set(table.group) == {'f', 'm'} and len(table) == 18 and (table.status == 'ok').all()
    assert 'by the time at which they became known' in report._repr_html_()


def test_rows_past_their_time_go_and_what_they_said_stays(tmp_path):
    p = project_at(tmp_path/'old', more='[retention]\npredictions_days = 100\nlabels_days = 100\nprofiles_days = 100\nlogs_days = 9999')
    for i in range(3): log(p, rows(200, seed=i), start(i))
    before = monitor(p, now=NOW)
    assert len(p.tables.read('predictions')) == 600 and not p.ledger.entries('erasure')
    later = pd.Timestamp(p.ledger.last('model').at)+200*DAY
    after = monitor(p, now=later)
    gone = {r.table: r.rows for r in p.ledger.last('erasure').body and Erasure.from_body(p.ledger.last('erasure').body).deleted.itertuples()}
    assert gone == {'labels': 600, 'predictions': 600, 'profile': 3} and len(p.tables.read('predictions')) == 0
    assert '1,203 rows' in after.note and after.windows == before.windows
    head = p.ledger.head()
    assert monitor(p, now=later).windows == before.windows and p.ledger.head() == head
