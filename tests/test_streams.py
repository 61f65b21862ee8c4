"One stream of awkward windows through the real monitor, night after night: each is a finding, and the rest of the report stays whole."
import json

import numpy as np
import pandas as pd
import pytest

from mlcycle.core import DataError, Project
from mlcycle.dashboard import first_choice, monitoring_app, monitoring_page, panel
from mlcycle.plans import FeaturePlan
from mlcycle.keeping import log_rows
from mlcycle.health import MonitoringReport, health, monitor_json
from mlcycle.monitoring import monitor, recorded
from mlcycle.scoring import label
from test_monitoring import DAY, FIRST, project_at, rows, start


def logged(project, df, since, days=30):
    "Rows as scoring logs them, with whatever other columns they have; and their outcomes."
    plan = FeaturePlan.from_body(project.ledger.last('model', '1').body['plan'])
    at = pd.Timestamp(since, tz='UTC')+pd.to_timedelta(np.linspace(0, days, len(df), endpoint=False), unit='D')
    made = pd.DataFrame({'prediction_id': [f'{since}-{i:06}' for i in range(len(df))], 'at': at.astype('datetime64[us, UTC]'), 'version': '1',
                         'score': df['p'].to_numpy(), 'decision': (df['p'] >= .5).astype(int).to_numpy()})
    strange = df[[c for c in df if c not in (*plan.inputs, 'sex', 'age', 'p', 'y')]].reset_index(drop=True)
    project.tables.write('predictions', pd.concat([log_rows(project, df, plan, made), strange], axis=1), mode='append')
    if len(df) < 1000: label(project, pd.DataFrame({'prediction_id': made['prediction_id'], 'label': df['y'].to_numpy()}))


def night(window): return (FIRST+(window+1)*30*DAY).isoformat()
def odd(seed, **columns): return rows(300, seed=seed).assign(**columns)


STREAM = [   # what comes in each window after the first
    lambda: rows(0),
    lambda: rows(1, seed=2),
    lambda: odd(3, income=np.nan),
    lambda: odd(4, income=lambda d: d['income'].where(d.index != 7, np.inf)),
    lambda: odd(5, region='north'),
    lambda: rows(300, seed=6).rename(columns={'channel': 'chan'}),
    lambda: rows(100_000, seed=7).assign(channel=[f'level {i}' for i in range(100_000)]),
    lambda: odd(8, age=lambda d: d['age'].astype(object).where(d.index % 3 > 0, 'old'))]


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    "The project after all nights, and what each night's report said."
    project = project_at(tmp_path_factory.mktemp('stream')/'loans')
    logged(project, rows(150, seed=0), start(0), days=15)
    nights = [monitor(project, now=(FIRST+15*DAY).isoformat())]                       # it is looked at while its first window fills
    logged(project, rows(150, seed=1), (FIRST+15*DAY).strftime('%Y-%m-%d'), days=15)
    for window, make in enumerate(STREAM, 1):
        df = make()
        if len(df): logged(project, df, start(window))
        nights.append(monitor(project, now=night(window)))
    return project, nights


def window(report, number): return next(w for w in report.windows if w.start[:10] == start(number))
def said(report, number): return window(report, number).drift.set_index('column')


def test_each_window_is_a_finding_of_the_night_in_which_it_came(watched):
    _, nights = watched
    assert [len(r.windows) for r in nights] == [1, *range(2, 10)]
    assert window(nights[1], 1).status == 'no data' and [(a.cause, a.since[:10]) for a in nights[1].alarms] == [('traffic', start(1))]   # not one window later
    assert window(nights[2], 2).status == 'too few' and set(said(nights[2], 2).status) == {'too few'}
    assert said(nights[3], 3).loc['income', 'status'] == 'drift' and 'without a value 0 % → 100 %' in said(nights[3], 3).loc['income', 'why']
    assert window(nights[4], 4).quality.set_index('column').loc['income', 'infinite'] == pytest.approx(1/300)
    assert said(nights[5], 5).loc['region', 'why'] == 'not in training, and the model does not read it'
    assert said(nights[6], 6).loc['channel', 'status'] == 'drift' and "perhaps 'channel' under another name" in said(nights[6], 6).loc['chan', 'why']
    assert said(nights[7], 7).loc['channel', 'status'] == 'drift' and window(nights[7], 7).quality.set_index('column').loc['channel', 'unseen'] == 1
    assert said(nights[8], 8).loc['age', 'missing'] == pytest.approx(1/3) and said(nights[8], 8).loc['age', 'status'] == 'drift'


def test_the_rest_of_the_report_is_whole(watched):
    "The other columns of every window are compared, and no finding is of a column that nothing happened to."
    project, nights = watched
    strange = {3: {'income'}, 4: set(), 5: {'region'}, 6: {'channel', 'chan'}, 7: {'channel'}, 8: {'age'}}
    for number, named in strange.items():
        status = said(nights[-1], number).status.drop(list(named))
        assert set(status) == {'no drift'} and {'income', 'age', 'sex', 'channel', 'score'} <= set(status.index) | named
        if number != 7: assert window(nights[-1], number).performance['roc_auc'].status == 'ok'
    assert {a.column for a in nights[-1].alarms if a.cause == 'drift'} <= {'income', 'channel', 'age'}
    assert recorded(project) == nights[-1] == MonitoringReport.from_body(json.loads(json.dumps(nights[-1].body(), allow_nan=False)))
    assert len(monitor_json(nights[-1])['windows']) == 9 and nights[-1].plot() is not None and health(nights[-1]).verdict == 'not well'


def test_a_text_in_a_column_of_numbers_is_refused_by_the_log_and_named(watched):
    project, _ = watched
    with pytest.raises(DataError, match="Column 'age' of table 'predictions'"):
        project.tables.write('predictions', project.tables.read('predictions').head(3).assign(age=['1', 'old', '2']), mode='append')


def test_a_clock_that_steps_back_opens_no_window_and_ends_no_alarm(watched):
    project, nights = watched
    last, head = nights[-1], project.ledger.head()
    back = monitor(project, now=night(4))
    assert [w.complete for w in back.windows] == [w.complete for w in last.windows] and [w.rows for w in back.windows] == [w.rows for w in last.windows]
    known, now = {a.id: a.state for a in last.alarms}, {a.id: a for a in back.alarms}
    assert {id: now[id].state for id in known} == known
    assert [(a.cause, a.column) for a in back.alarms if a.id not in known] == [('quality', 'at')] and 'dated in the future' in back.alarms[-1].why
    mended = monitor(project, now=night(8))
    assert mended.windows == last.windows and {a.state for a in mended.alarms if a.column == 'at'} == {'resolved'} and project.ledger.verify().ok
    assert project.ledger.head()[0] > head[0]


def test_the_page_shows_every_window_and_every_column(watched):
    project, _ = watched
    report = recorded(project)
    assert 'Not well since' in monitoring_page(project) and report._repr_html_()
    first = first_choice(project, report)
    for i, w in enumerate(report.windows):
        for column in w.drift.column[~w.drift.status.isin(['no drift', 'too few', 'no data'])]:
            assert panel(project, report, 'distribution', first._replace(window=i, column=column)).startswith('<h2>'), (w.start, column)
    app = monitoring_app(Project(project.folder, read_only=True))
    chooser = app.children[2].children[1]
    assert chooser.description == 'Window' and len(chooser.options) == 9
    for _, value in chooser.options: chooser.value = value
