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
    blind         the same, with a reference whose weeks are not known: how far windows lie apart is learnt from them as they pass, and
                  until then a column rings only for what no restlessness thought likely would make

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
from mlcycle.profile import ColumnProfile, Profile, profile
from mlcycle.slow import follow

WEEKS, COLUMNS, REFERENCE = 13, 20, 5200
KINDS = ('independent', 'sizes', 'large', 'restless', 'blind')
SETTINGS = MonitoringSection(false_alarms='1 per quarter')


def drawn(rng, n: int, moved: np.ndarray) -> dict[str, np.ndarray]: # numbers, or places of levels
    "One week; `moved` shifts each column by so many of its standard deviations."
    make = (rng.normal, lambda size: np.exp(rng.normal(size=size)), lambda size: rng.poisson(8, size).astype(float), lambda size: rng.uniform(size=size))
    spread = (1, 2.16, 2.83, .289)
    found = {f'n{i}': make[i % 4](size=n)+moved[i]*spread[i % 4] for i in range(10)}
    found['n4'] = np.where(rng.random(n) < .6, 0, found['n4'])
    found['n5'] = np.where(rng.random(n) < .1, np.nan, found['n5'])
    for i in range(10):
        weight = 1/(np.arange(levels(i))+2)**(1 if i % 2 else .3)
        weight[0] *= np.exp(2*moved[10+i])
        found[f'c{i}'] = rng.choice(levels(i), n, p=weight/weight.sum())
    return found


def levels(i: int) -> int: return 400 if i == 9 else 2+3*i


def rows(found: dict) -> pd.DataFrame:
    "The same as a table."
    named = lambda name: [f'level {k}' for k in range(levels(int(name[1:])))]
    return pd.DataFrame({name: v if name[0] == 'n' else pd.Categorical.from_codes(v, named(name)) for name, v in found.items()})


def counted(found: dict, like: Profile) -> Profile:
    "What `profile` counts of a week, without the way through a table: as far as monitoring's judgement looks at it."
    return like.model_copy(update=dict(rows=len(found['n0']), columns={n: (_numbers if n[0] == 'n' else _names)(v, like.columns[n]) for n, v in found.items()}))


def _numbers(values: np.ndarray, like: ColumnProfile) -> ColumnProfile:
    x, edges = values[~np.isnan(values)], like.edges
    counts = np.bincount(np.searchsorted(edges, x, side='left'), minlength=len(edges)+1)
    facts = dict(minimum=float(x.min()), maximum=float(x.max()), mean=float(x.mean()), variance=float(x.var()), counts=counts.tolist())
    return like.model_copy(update=dict(rows=len(values), nulls=len(values)-len(x), nans=0, **facts))


def _names(codes: np.ndarray, like: ColumnProfile) -> ColumnProfile:
    counts = np.bincount(codes)
    told = {f'level {k}': int(counts[k]) for k in np.flatnonzero(counts)}
    known, fresh = ({v: n for v, n in told.items() if (v in like.levels) == named} for named in (True, False))
    return like.model_copy(update=dict(rows=len(codes), levels=known, fresh=fresh, other=0))


def sizes(kind: str, rng) -> np.ndarray:
    if kind == 'sizes': return rng.integers(100, 2000, WEEKS)
    return np.full(WEEKS, 5000 if kind == 'large' else 500)


def moves(kind: str, rng, weeks: int) -> np.ndarray:
    "How far each column moves in each week."
    if kind not in ('restless', 'blind'): return np.zeros((weeks, COLUMNS))
    return rng.normal(0, .1, (weeks, COLUMNS))*(np.arange(COLUMNS) % 2 == 0)


def quarter(seed: int, kind: str) -> tuple[int, int, float]: # alarms of single windows, of windows together, and what the columns said beforehand
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    past = [drawn(rng, REFERENCE//26, m) for m in moves(kind, rng, 26)]
    reference = profile(rows({name: np.concatenate([p[name] for p in past]) for name in past[0]}))
    known = apart(reference, [counted(p, reference) for p in past]) if kind != 'blind' else {}
    windows = [counted(drawn(rng, n, m), reference) for n, m in zip(sizes(kind, rng), moves(kind, rng, WEEKS))]
    alarms, told, rang, names = 0, 0., set(), set(reference.columns)-set(known)
    for i, window in enumerate(windows):
        near = neighbours_apart(reference, {c: [(a.columns[c], b.columns[c]) for a, b in zip(windows[:i], windows[1:i])] for c in names})
        tolerance = Tolerance(level=share_of('drift', SETTINGS, 7), floor=SETTINGS.min_effect, between=known | near)
        found = drift(reference, window, tolerance)
        alarms, told = alarms+int((found.status == 'drift').sum()), told+float(found.chance.sum())
        if names or i+1 == len(windows): rang |= together(reference, windows[:i+1], tolerance)   # what is known of columns changes each week
    return alarms, len(rang), told


def together(reference: Profile, windows: list[Profile], tolerance: Tolerance) -> set[tuple[int, str]]: # window, column
    "What rings for small and lasting drift."
    slow = follow(reference, windows, COLUMNS/share_of('slow drift', SETTINGS, 7), tolerance)
    return {(at, r.column) for at, t in enumerate(slow) for r in t.itertuples() if r.evidence >= r.needed}


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
