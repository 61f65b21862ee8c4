"""How many false alarms a quarter without drift really brings, against the budget that was written down.

Each quarter has a reference and thirteen weekly windows of its own, all rows from one distribution: 20 columns, normal, skewed, whole and
half-constant numbers, categories of 2 to 29 levels, one of 400, missing values. Columns are judged as monitoring judges them: each window by
`drift` with its share of the budget, all windows together by `follow`. An alarm is a window of a column that rings. The budget is one false alarm
a quarter, of which these two causes may spend sixty in a hundred. The rest is for performance, estimates and criteria, which are not simulated here.

    independent   500 rows a window, independent of each other
    sizes         100 to 2,000 rows, another number every week
    large         5,000 rows a window, so that chance stays below the smallest effect that matters
    restless      weeks that vary more than independent rows would: half of the columns move by a tenth of their spread, anew each week;
                  the reference has 26 weeks of the same kind, from which this is learnt
    blind         the same, with a reference whose weeks are not known: it is learnt from the windows as they pass

    python benchmarks/alarm_budget.py --quarters 1000
    python benchmarks/alarm_budget.py --quarters 40          # a quick run
"""
import argparse
import functools
import multiprocessing
import os
import time

import numpy as np
import pandas as pd
from scipy import stats

from mlcycle.budget import share_of
from mlcycle.core import MonitoringSection
from mlcycle.drift import Tolerance, apart, drift, neighbours_apart
from mlcycle.profile import profile
from mlcycle.slow import follow

WEEKS, COLUMNS, REFERENCE = 13, 20, 5200
KINDS = ('independent', 'sizes', 'large', 'restless', 'blind')
SETTINGS = MonitoringSection(false_alarms='1 per quarter')


def rows(rng, n: int, moved: np.ndarray) -> pd.DataFrame:
    "One week of rows; `moved` shifts each column by so many of its standard deviations."
    make = (rng.normal, lambda size: np.exp(rng.normal(size=size)), lambda size: rng.poisson(8, size).astype(float), lambda size: rng.uniform(size=size))
    spread = (1, 2.16, 2.83, .289)
    found = {f'n{i}': make[i % 4](size=n)+moved[i]*spread[i % 4] for i in range(10)}
    found['n4'] = np.where(rng.random(n) < .6, 0, found['n4'])
    found['n5'] = np.where(rng.random(n) < .1, np.nan, found['n5'])
    for i in range(10):
        levels = 400 if i == 9 else 2+3*i
        weight = 1/(np.arange(levels)+2)**(1 if i % 2 else .3)
        weight[0] *= np.exp(2*moved[10+i])
        found[f'c{i}'] = pd.Categorical.from_codes(rng.choice(levels, n, p=weight/weight.sum()), [f'level {k}' for k in range(levels)])
    return pd.DataFrame(found)


def sizes(kind: str, rng) -> np.ndarray:
    if kind == 'sizes': return rng.integers(100, 2000, WEEKS)
    return np.full(WEEKS, 5000 if kind == 'large' else 500)


def moves(kind: str, rng, weeks: int) -> np.ndarray:
    "How far each column moves in each week."
    if kind not in ('restless', 'blind'): return np.zeros((weeks, COLUMNS))
    return rng.normal(0, .1, (weeks, COLUMNS))*(np.arange(COLUMNS) % 2 == 0)


def quarter(seed: int, kind: str) -> tuple[int, int, float]: # alarms of single windows, of windows together, and what the columns said beforehand
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    past = [rows(rng, REFERENCE//26, m) for m in moves(kind, rng, 26)]
    reference = profile(pd.concat(past, ignore_index=True))
    known = apart(reference, [profile(p, like=reference) for p in past]) if kind != 'blind' else {}
    windows = [profile(rows(rng, n, m), like=reference) for n, m in zip(sizes(kind, rng), moves(kind, rng, WEEKS))]
    alarms, told, quiet, tolerance = 0, 0., [], None
    for window in windows:
        pairs = {}
        for (then, calm), (now, too) in zip(quiet, quiet[1:]):
            for c in calm & too - set(known): pairs.setdefault(c, []).append((then.columns[c], now.columns[c]))
        tolerance = Tolerance(level=share_of('drift', SETTINGS, 7), floor=SETTINGS.min_effect, between=known | neighbours_apart(pairs))
        found = drift(reference, window, tolerance)
        quiet.append((window, set(found.column[found.status == 'no drift'])))
        alarms, told = alarms+int((found.status == 'drift').sum()), told+float(found.chance.sum())
    slow = follow(reference, windows, COLUMNS/share_of('slow drift', SETTINGS, 7), tolerance)
    return alarms, sum(int((t.evidence >= t.needed).sum()) for t in slow), told


def interval(counts: np.ndarray) -> tuple[float, float]: # of the mean, 95 %
    half = 1.96*counts.std(ddof=1)/np.sqrt(len(counts))
    low, high = counts.mean()-half, counts.mean()+half
    return (max(low, 0.), high) if counts.sum() else (0., stats.gamma.isf(.05, 1)/len(counts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quarters', type=int, default=1000)
    parser.add_argument('--kinds', nargs='*', default=list(KINDS), choices=KINDS)
    parser.add_argument('--processes', type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    allowed = {cause: WEEKS*share_of(cause, SETTINGS, 7) for cause in ('drift', 'slow drift')}
    print(f'{args.quarters} quarters without drift, {WEEKS} weeks, {COLUMNS} columns; allowed per quarter: '
          + ', '.join(f'{cause} {a:.3f}' for cause, a in allowed.items()))
    print(f'{"":12} {"drift":>22} {"told beforehand":>16} {"slow drift":>22} {"both":>22} {"budget":>8}  within')
    for kind in args.kinds:
        began = time.perf_counter()
        with multiprocessing.Pool(args.processes) as pool:
            found = np.array(pool.map(functools.partial(quarter, kind=kind), range(args.quarters), chunksize=5))
        def cell(counts): return f'{counts.mean():.3f} [{interval(counts)[0]:.3f}, {interval(counts)[1]:.3f}]'
        both, budget = found[:, 0]+found[:, 1], sum(allowed.values())
        within = 'yes' if interval(both)[1] <= budget else 'no' if interval(both)[0] > budget else 'undetermined'
        print(f'{kind:12} {cell(found[:, 0]):>22} {found[:, 2].mean():>16.3f} {cell(found[:, 1]):>22} {cell(both):>22} {budget:>8.3f}  {within}'
              f'   ({time.perf_counter()-began:.0f} s)', flush=True)


if __name__ == '__main__': main()
