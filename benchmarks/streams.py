"""Real streams, told window by window as they came, with outcomes that are late: what was noticed, when, and what was claimed meanwhile.

Elec2 (does the price of electricity in New South Wales rise?) and bike sharing (how many bikes are hired in an hour?) are
cut into windows of 28 days. A model learns from the first half-year and is not trained again; outcomes come four weeks late.
After each window monitoring runs as it would have run that day. For each window the table says which alarms rang that day,
what was estimated before outcomes came, what was measured when they had, whether the estimate was wrong (the interval of
the gap leaves out zero), and whether it had been withdrawn. A third stream is made: loans without any drift, 20 columns, 26
weeks, many times over; there every alarm is false, and their share is set beside the budget.

    python benchmarks/streams.py --data ../shared/data                 # the two real streams
    python benchmarks/streams.py --loans --seeds 200                   # loans without drift
"""
import argparse
import logging
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

DAYS, LATE, TRAINED = 28, 28, 182   # of a window; until an outcome is known; the model learns from
SETTINGS = '''
[project]
name = "{name}"
[problem]
task = "{task}"
target = "{target}"
{positive}
[data]
sources = [{{path = "x.csv"}}]
time = "at"
[monitoring]
window_days = 28
false_alarms = "1 per quarter"
[governance]
signatures = 0
'''


def elec2(folder: Path) -> pd.DataFrame:
    "Half-hours from 7 May 1996 on. Until 2 May 1997 the columns on Victoria stand still, and so no plan uses them."
    rows = pd.read_csv(folder/'elec2/electricity.csv')
    day = (rows.period.diff() < 0).cumsum()
    at = pd.Timestamp('1996-05-07', tz='UTC')+pd.to_timedelta(day, unit='D')+pd.to_timedelta((rows.period*47).round()*30, unit='min')
    return rows.drop(columns=['date', 'day']).assign(at=at).rename(columns={'class': 'up'})


def bikes(folder: Path) -> pd.DataFrame:
    "Hours of 2011 and 2012. In the second year more people hire, and all year round the weather changes."
    rows = pd.read_csv(folder/'bike_sharing_hourly/hour.csv')
    at = pd.to_datetime(rows.dteday, utc=True)+pd.to_timedelta(rows.hr, unit='h')
    return rows[['hr', 'weekday', 'workingday', 'weathersit', 'temp', 'hum', 'windspeed', 'cnt']].assign(at=at)


# Changes that are documented, beside the alarms. In Elec2 the columns on Victoria stand still up to row 17,424, its SOURCE.md says, because
# Victoria was not connected yet (on 2 May 1997, by the literature; on 5 May by counting days of 48 rows). For bike sharing no day is documented:
# its rows tell of growth from 144 hirings an hour in 2011 to 235 in 2012.
KNOWN = {'elec2': {'1997-05-02': 'Victoria joins the market'}, 'bike sharing': {}}
STREAMS = {'elec2': (elec2, dict(task='binary', target='up', positive='positive = "UP"')),
           'bike sharing': (bikes, dict(task='regression', target='cnt', positive=''))}


def begun(folder: str, name: str, rows: pd.DataFrame, about: dict): # Project, and all later rows with scores
    "A project with one version, trained on the first half-year and measured on its last fifth."
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from mlcycle.core import Project
    from mlcycle.plans import encode_target, infer_plan
    from mlcycle.metrics import Terms, evaluate
    (Path(folder)/'mlcycle.toml').write_text(SETTINGS.format(name=name, **about))
    project = Project(folder, actor='Ada')
    first = rows[rows['at'] < rows['at'].min()+pd.Timedelta(days=TRAINED)].reset_index(drop=True)
    train, test = first.iloc[:len(first)*4//5], first.iloc[len(first)*4//5:]
    snapshot = project.tables.write('train', train)
    project.record(snapshot, subject='train')
    plan, binary = infer_plan(train, project.settings), about['task'] == 'binary'
    inputs = [c for c in plan.inputs if c != 'at']
    model = (HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor)(max_iter=60, random_state=0)
    y = lambda part: encode_target(part[about['target']], project.settings).to_numpy()
    model.fit(train[inputs], y(train))
    said = lambda part: model.predict_proba(part[inputs])[:, 1] if binary else model.predict(part[inputs])
    body = dict(version='1', hash='0'*64, uri='', algorithm='gradient boosting', task=about['task'], threshold=.5 if binary else None, classes=[],
                columns=inputs, plan=plan.body(), data=snapshot.hash)
    project.ledger.append(stage='development', kind='model', subject='1', body=body, actor='Ada')
    figures = evaluate(Terms(task=about['task'], resamples=200), y(test), said(test))
    project.ledger.append(stage='validation', kind='validation', subject='1', actor='Ada', body={'verdict': 'pass', 'metrics': {m: e.body() for m, e in figures.items()}})
    project.ledger.append(stage='deployment', kind='promotion', subject='1', actor='Ada', body={'version': '1', 'role': 'champion', 'because': 'first', 'previous': None})
    live = rows[rows['at'] >= first['at'].max()].reset_index(drop=True)
    live = live.assign(score=said(live), prediction_id=[f'{i:032x}' for i in range(len(live))], y=live[about['target']])
    return project, live.assign(decision=(live.score >= .5)*1. if binary else live.score, inputs=None)[['prediction_id', 'at', 'score', 'decision', 'y', *inputs]]


def told(name: str, data: Path) -> pd.DataFrame:
    "The stream as it was seen: one row a window."
    from mlcycle.monitoring import monitor
    from mlcycle.scoring import label
    from mlcycle.metrics import main_metric
    from mlcycle.watches import window_bounds, window_number
    read, about = STREAMS[name]
    with tempfile.TemporaryDirectory() as folder:
        project, live = begun(folder, name, read(data), about)
        numbers, metric, seen, at_once = window_number(live['at'], DAYS), main_metric(project), set(), {}
        for number in sorted(numbers.unique())[:-1]:
            now = window_bounds(number, DAYS)[1]
            fresh = live[numbers == number].drop(columns='y').assign(version='1')
            project.tables.write('predictions', fresh.assign(at=fresh['at'].astype('datetime64[us, UTC]')), mode='append')
            due = live[(live['at'] < now-pd.Timedelta(days=LATE)) & (live['at'] >= now-pd.Timedelta(days=LATE+DAYS)) & (numbers < number)]
            if len(due): label(project, pd.DataFrame({'prediction_id': due.prediction_id, 'label': due.y, 'at': due['at']+pd.Timedelta(days=LATE)}))
            report = monitor(project, now=now)
            rang = [a for a in report.alarms if a.id not in seen]
            seen |= {a.id for a in rang}
            newest = [w for w in report.windows if w.complete][-1]
            at_once[newest.start] = ([f'{a.cause} {a.column}'.strip() for a in rang], newest.estimated.get(metric))
        return with_known(as_table(report, metric, at_once), KNOWN[name])


def as_table(report, metric: str, at_once: dict) -> pd.DataFrame:
    "What was said that day, and what is known now."
    from mlcycle.health import drifted_columns
    rows = []
    figure = lambda e: '' if e is None else e.text.split(' (')[0] if e.status == 'ok' else e.status
    for w in report.windows:
        if w.start not in at_once: continue
        rang, shown = at_once[w.start]
        gap, measured = w.gaps.get(metric), w.performance.get(metric)
        rows.append({'from': w.start[:10], 'rows': w.rows, 'rang that day': ', '.join(rang), 'drifted': ', '.join(drifted_columns(w)), f'estimated {metric}': figure(shown), 'measured later': figure(measured),
                     'estimate': '' if gap is None or gap.status != 'ok' else 'wrong' if gap.low > 0 or gap.high < 0 else 'held',
                     'shown that day': 'yes' if shown is not None and shown.status == 'ok' else 'no',
                     'outcomes now': next((r.status for r in report.targets.table.itertuples() if r[1] == w.start), '')})
    return pd.DataFrame(rows)


def with_known(table: pd.DataFrame, known: dict[str, str]) -> pd.DataFrame:
    "The table with the documented changes in the windows in which they lie."
    starts, length = pd.to_datetime(table['from']), pd.Timedelta(days=DAYS)
    said = [', '.join(f'{day}: {what}' for day, what in known.items() if start <= pd.Timestamp(day) < start+length) for start in starts]
    return table.assign(**{'documented change': said})


def summary(name: str, table: pd.DataFrame, seconds: float) -> str:
    "The stream in a sentence."
    rang, both = table['rang that day'].str.split(', ').explode(), pd.crosstab(table['estimate'], table['shown that day'])
    count = lambda e, s: int(both.get(s, pd.Series(dtype=int)).get(e, 0))
    return (f'{name}: {len(table)} windows, {int((rang != "").sum())} alarms; estimates that were shown: {count("held", "yes")} held, {count("wrong", "yes")} wrong; '
            f'not shown: {count("wrong", "no")} would have been wrong, {count("held", "no")} would have held ({seconds:.0f} s of CPU)')


def calm(seed: int) -> tuple[int, int]: # false alarms of single windows, of windows together
    "26 weeks of loans without drift, 20 columns, judged as monitoring judges them."
    from mlcycle.budget import share_of
    from mlcycle.core import MonitoringSection
    from mlcycle.drift import Tolerance, apart, drift
    from mlcycle.profile import profile
    from mlcycle.samples import loans
    from mlcycle.slow import follow
    monitoring = MonitoringSection(false_alarms='1 per quarter')
    rows = loans(52*250, seed=seed, days=364).drop(columns=['application_id', 'outcome_at'])
    rng = np.random.default_rng(seed)
    for i in range(20-(rows.shape[1]-1)): rows[f'extra {i}'] = rng.normal(size=len(rows)) if i % 2 else rng.integers(0, 6, len(rows)).astype(str)
    week = ((rows['applied_at']-rows['applied_at'].min())/pd.Timedelta(days=7)).astype(int)
    rows = rows.drop(columns='applied_at')
    reference = profile(rows[week < 26])
    between = apart(reference, [profile(rows[week == w], like=reference) for w in range(26)])
    asked = Tolerance(level=share_of('drift', monitoring, 7), floor=monitoring.min_effect, between=between)
    windows = [profile(rows[week == w], like=reference) for w in range(26, 52)]
    single = sum(int((drift(reference, w, asked).status == 'drift').sum()) for w in windows)
    slow = follow(reference, windows, rows.shape[1]/share_of('slow drift', monitoring, 7), asked)
    return single, sum(int((t.evidence >= t.needed).sum()) for t in slow)


def without_drift(seeds: int, processes: int):
    "The share of calm streams with any alarm, beside what the budget allows the two causes."
    from mlcycle.budget import share_of
    from mlcycle.core import MonitoringSection
    from mlcycle.statistics import wilson
    with multiprocessing.Pool(processes) as pool: found = np.array(pool.map(calm, range(seeds), chunksize=4))
    allowed = 26*sum(share_of(c, MonitoringSection(false_alarms='1 per quarter'), 7) for c in ('drift', 'slow drift'))
    any_alarm = wilson(int((found.sum(1) > 0).sum()), seeds, metric='share')
    print(f'loans without drift: {seeds} streams of 26 weeks, 20 columns; {found[:, 0].sum()} alarms of single windows, {found[:, 1].sum()} of windows together: '
          f'{found.sum()/seeds:.3f} a stream where {allowed:.3f} are allowed; any alarm in {any_alarm.text}, allowed {1-np.exp(-allowed):.3f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--streams', nargs='*', default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument('--loans', action='store_true', help='loans without drift instead')
    parser.add_argument('--seeds', type=int, default=200)
    parser.add_argument('--processes', type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    if asked.loans: return without_drift(asked.seeds, asked.processes)
    for name in asked.streams:
        began = time.process_time()
        table = told(name, asked.data)
        print(f'\n{table.to_string(index=False)}\n\n{summary(name, table, time.process_time()-began)}', flush=True)


if __name__ == '__main__': main()
