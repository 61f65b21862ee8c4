"""What NannyML and Evidently say of the same columns in the same bins, kept for tests/test_drift.py to compare with.

Two tables of twelve columns: categories, and whole numbers of at most ten values, so that every library has the same bins.
NannyML and Evidently run in environments of their own; what they say is written to tests/agreement.json with their versions.

    python -m venv nannyml   && nannyml/bin/pip   install 'nannyml==0.13.*' statsmodels
    python -m venv evidently && evidently/bin/pip install 'evidently==0.7.*' 'pandas<3'
    nannyml/bin/python benchmarks/agreement.py nannyml && evidently/bin/python benchmarks/agreement.py evidently
    python benchmarks/agreement.py            # what is kept, beside what mlcycle says
"""
import argparse
import importlib.metadata
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

KEPT, SEED = Path(__file__).resolve().parents[1]/'tests/agreement.json', 11


def tables() -> tuple[pd.DataFrame, pd.DataFrame]: # reference, current
    "Six categories and six whole numbers, half of them drifted; every value is there on both sides."
    rng, sides = np.random.default_rng(SEED), ({}, {})
    for i in range(6):
        levels, values, drifted = [f'level {k}' for k in range(2+2*i)], np.arange(3+i), i % 2
        for side, frame, rows in zip((0, 1), sides, (4000, 1500)):
            weight = 1/(np.arange(len(levels))+2+drifted*side*np.arange(len(levels)))
            frame[f'c{i}'] = np.r_[levels, rng.choice(levels, rows-len(levels), p=weight/weight.sum())]
            chance = np.exp(-.5*((values-values.mean()-.4*drifted*side)/1.2)**2)
            frame[f'n{i}'] = np.r_[values, rng.choice(values, rows-len(values), p=chance/chance.sum())].astype(float)
    return tuple(pd.DataFrame(frame) for frame in sides)


def of_nannyml(reference: pd.DataFrame, current: pd.DataFrame) -> dict:
    "Distances on levels; the numbers' values are taken for levels, and once more as numbers."
    os.environ['NML_DISABLE_USAGE_LOGGING'] = '1'   # it would tell its makers of every call
    import nannyml
    def said(then, now, methods, kind):
        how = {f'{kind}_methods': list(methods), 'chunk_number': 1}
        found = nannyml.UnivariateDriftCalculator(column_names=list(then), **how).fit(then).calculate(now)
        table = found.filter(period='analysis').to_df()
        return {c: {m: float(table[(c, m, 'value')].iloc[0]) for m in methods} for c in then}
    levels = said(reference.astype(str), current.astype(str), ('jensen_shannon', 'hellinger', 'chi2'), 'categorical')
    numbers = [c for c in reference if c.startswith('n')]
    more = said(reference[numbers], current[numbers], ('kolmogorov_smirnov', 'wasserstein'), 'continuous')
    return {c: told | more.get(c, {}) for c, told in levels.items()}


def of_evidently(reference: pd.DataFrame, current: pd.DataFrame) -> dict:
    "The functions behind its presets, called column by column: on levels, and of numbers once more as numbers."
    from evidently.legacy.calculations.stattests import registry
    from evidently.legacy.core import ColumnType
    def said(then, now, names, kind):
        tests = {name: registry.get_stattest(then, now, kind, name) for name in names}
        return {name: float(test(then, now, kind, None).drift_score) for name, test in tests.items()}
    texts = [frame.astype(str) for frame in (reference, current)]
    found = {c: said(texts[0][c], texts[1][c], ('psi', 'jensenshannon', 'hellinger', 'chisquare'), ColumnType.Categorical) for c in reference}
    for c in (c for c in reference if c.startswith('n')): found[c] |= said(reference[c], current[c], ('ks', 'wasserstein'), ColumnType.Numerical)
    return found


PEERS = {'nannyml': of_nannyml, 'evidently': of_evidently}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('peer', nargs='?', choices=list(PEERS))
    peer, kept = parser.parse_args().peer, json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if peer:
        versions = {p: importlib.metadata.version(p) for p in (peer, 'pandas', 'numpy', 'scipy')}
        kept[peer] = {'versions': versions, 'seed': SEED, 'made by': f'benchmarks/agreement.py {peer}', 'values': PEERS[peer](*tables())}
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True)+'\n')
        return
    from mlcycle.drift import drift
    ours = drift(*tables()).set_index('column')[['psi', 'jensen_shannon', 'hellinger', 'ks', 'wasserstein', 'chi_squared']]
    theirs = pd.DataFrame({(peer, c): told for peer, k in kept.items() for c, told in k['values'].items()}).T
    print(ours.sort_index().round(6), theirs.sort_index().round(6), sep='\n\n')


if __name__ == '__main__': main()
