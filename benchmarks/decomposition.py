"""How often the split of a change into inputs and relation covers the truth, and how long it takes.

    python benchmarks/decomposition.py [--lives 40] [--rows 800] [--kinds 'relation weakens']

No peer: NannyML and Evidently do not split a change. The truth is known because the rows are made: four lives of one
model, in which nothing changes, the rows change (their mean, or their spread), or the relation does. Where only one of
the two changed, the interval of the other one has to hold zero, and does so in 95 of 100 lives if it is honest.
"""
import argparse
import time

import numpy as np
import pandas as pd

from mlcycle.decomposition import read_outcomes, split_change
from mlcycle.metrics import Terms
from mlcycle.plans import ColumnPlan, FeaturePlan

PLAN = FeaturePlan(columns=[ColumnPlan(name=c, type='number') for c in 'abcd'], target='y', task='binary', positive=1,
                   classes=['0', '1'])
TERMS = Terms(task='binary', threshold=.5)
LIVES = {   # name → (shift of the mean, factor of the spread, share of the relation that is left)
    'nothing changes': (0, 1, 1), 'rows shift': (1, 1, 1), 'rows spread': (0, 1.6, 1), 'relation weakens': (0, 1, .4),
    'both': (1, 1, .4)}
HOLDS_ZERO = {'nothing changes': ('inputs', 'relation'), 'rows shift': ('relation',), 'rows spread': ('relation',),
              'relation weakens': ('inputs',), 'both': ()}


def life(n: int, rng, *, shift=0., spread=1., left=1.) -> pd.DataFrame:
    "Rows, the scores of a model that does not know of one interaction, and outcomes."
    X = rng.normal(size=(n, 4))
    X[:, 0] = X[:, 0]*spread+shift
    said = 1.2*X[:, 0]+.8*X[:, 1]
    truth = left*1.2*X[:, 0]+.8*X[:, 1]+.5*X[:, 0]*X[:, 1]
    rows = pd.DataFrame(X, columns=list('abcd')).assign(score=1/(1+np.exp(-said)))
    return rows.assign(label=(rng.random(n) < 1/(1+np.exp(-truth))).astype(int))


def split(seed: int, n: int, metric: str, how: tuple) -> dict:
    rng = np.random.default_rng(seed)
    shift, spread, left = how
    before, after = life(n, rng), life(n, rng, shift=shift, spread=spread, left=left)
    return split_change(metric, read_outcomes(metric, TERMS, before), read_outcomes(metric, TERMS, after), plan=PLAN, terms=TERMS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lives', type=int, default=40, help='lives of each kind')
    parser.add_argument('--rows', type=int, default=800, help='rows on either side')
    parser.add_argument('--metrics', nargs='+', default=['roc_auc', 'brier'], help='metrics that are split')
    parser.add_argument('--kinds', nargs='+', default=list(LIVES), choices=list(LIVES), help='lives that are lived')
    asked, table = parser.parse_args(), []
    for metric in asked.metrics:
        for name in asked.kinds:
            began = time.process_time()
            found = [split(seed, asked.rows, metric, LIVES[name]) for seed in range(asked.lives)]
            seconds = (time.process_time()-began)/asked.lives
            for part in ('inputs', 'relation'):
                mine = [f[part] for f in found if f[part].status == 'ok']
                zero = sum(e.low <= 0 <= e.high for e in mine)
                table.append((metric, name, part, np.mean([e.value for e in mine]), np.mean([e.high-e.low for e in mine])/2,
                              f'{zero} of {len(mine)}', 'yes' if part in HOLDS_ZERO[name] else 'no', f'{seconds:.2f}'))
    columns = ['metric', 'life', 'part', 'mean', 'half width', 'holds zero', 'zero is true', 'seconds']
    print(pd.DataFrame(table, columns=columns).round(4).to_string(index=False))


if __name__ == '__main__': main()
