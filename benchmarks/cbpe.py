"""Estimated performance of half a million rows in chunks of 50,000, against NannyML: the same values, and the time of both.

    python -m venv nannyml && nannyml/bin/pip install nannyml==0.13.1 statsmodels
    python benchmarks/cbpe.py --peer-python nannyml/bin/python [--rows 500000] [--chunk 50000] [--runs 3]

Both get the same reference rows (with outcomes) and the same rows to estimate, as a DataFrame in memory; a run learns from the reference,
and estimates six metrics with an interval for every chunk of both. "given" takes the scores for chances in both, so that the values can be
compared; "own" is what each does by itself (NannyML: isotonic where a cross-validation asks for it; mlcycle: a spline of the log-odds), and
is set beside the metrics on the outcomes, which neither has seen. Reading and starting are not timed. Medians; the ratio is NannyML over mlcycle.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd

TIMES, CLOSE = 8, 1e-6   # promised: how many times faster, and how near the values are, the scores taken for chances in both
METRICS = {'roc_auc': 'roc_auc', 'average_precision': 'average_precision', 'f1': 'f1', 'precision': 'precision', 'recall': 'recall', 'accuracy': 'accuracy'}


def rows(n: int, seed: int, shift: float, sure: float) -> pd.DataFrame:
    "Scores, decisions and outcomes; `sure` times as sure as it should be."
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1.2, n)
    y = (rng.random(n) < 1/(1+np.exp(-x))).astype(int)
    s = 1/(1+np.exp(-sure*x))
    return pd.DataFrame({'score': s, 'decision': (s >= .5).astype(int), 'label': y})


def timed(work, runs: int) -> tuple[list[float], dict]:
    "Seconds of each run, and what the last one found."
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter()-began)
    return seconds, found


def peer(reference: pd.DataFrame, current: pd.DataFrame, chunk: int, own: bool) -> dict:
    "NannyML's estimates by metric, one a chunk of the rows without outcomes."
    import nannyml
    from nannyml.calibration import NoopCalibrator
    cbpe = nannyml.CBPE(metrics=list(METRICS), y_true='label', y_pred='decision', y_pred_proba='score', problem_type='classification_binary',
                        chunk_size=chunk, **({} if own else {'calibrator': NoopCalibrator()}))
    found = cbpe.fit(reference).estimate(current.drop(columns='label')).filter(period='analysis').to_df()
    return {m: found[(m, 'value')].astype(float).tolist() for m in METRICS}


def ours(reference: pd.DataFrame, current: pd.DataFrame, chunk: int, own: bool) -> dict:
    "mlcycle's estimates, and the gaps of the reference's chunks, which are what its back-test reads."
    from mlcycle.estimates import Estimator, estimate, gaps, learn
    from mlcycle.metrics import Terms
    from mlcycle.recalibration import Curve
    terms = Terms(task='binary', threshold=.5)
    given = Curve(classes=2, coefficients=(0., 1.), covariance=((0., 0.), (0., 0.)), rows=len(reference))
    estimator = learn(terms, reference, None, 'the reference') if own else Estimator(terms, given, 'the reference')
    for i in range(0, len(reference), chunk): gaps(estimator, reference.iloc[i:i+chunk])
    found = [estimate(estimator, current.iloc[i:i+chunk]) for i in range(0, len(current), chunk)]
    return {m: [f[m].value for f in found] for m in METRICS}


def measure(how, reference: Path, current: Path, *, chunk: int, runs: int) -> dict:
    "Seconds and values of one side, given chances and its own."
    tables = [pd.read_csv(p) for p in (reference, current)]
    how(*(t.head(2000) for t in tables), 1000, False)   # imports are not timed
    found = {'given': timed(lambda: how(*tables, chunk, False), runs)}
    tables = [pd.read_csv(str(p).replace('given', 'own')) for p in (reference, current)]
    return found | {'own': timed(lambda: how(*tables, chunk, True), runs)}


def truth(current: pd.DataFrame, chunk: int) -> dict:
    "The metrics on the outcomes."
    from mlcycle.performance import Answered, expected
    parts = [current.iloc[i:i+chunk] for i in range(0, len(current), chunk)]
    return {m: [expected(m, p.label.to_numpy(float), Answered(p.score.to_numpy(float), p.decision.to_numpy(float))).value for p in parts] for m in METRICS}


def write(folder: Path, n: int) -> None:
    for name, sure in (('given', 1.), ('own', 1.6)):
        rows(n, 1, 0, sure).to_csv(folder/f'reference-{name}.csv', index=False)
        rows(n, 2, .4, sure).to_csv(folder/f'current-{name}.csv', index=False)


def show(mine: dict, theirs: dict, real: dict) -> None:
    for name in ('given', 'own'):
        a, b = (statistics.median(found[name][0]) for found in (mine, theirs))
        print(f'{name:>6}: mlcycle {a:7.3f} s   NannyML {b:7.3f} s   ratio {b/a:5.1f}')
    ratio = statistics.median(theirs['given'][0])/statistics.median(mine['given'][0])
    print(f'{"met" if ratio >= TIMES else "NOT MET"}: {ratio:.1f} times faster, {TIMES} promised')
    print(f'\n{"metric":<18} {"largest difference":>19} {"mlcycle off":>12} {"NannyML off":>12}   (given; own: mean distance from the outcomes)')
    furthest = 0.
    for m in METRICS:
        apart = np.abs(np.subtract(mine['given'][1][m], theirs['given'][1][m])).max()
        furthest = max(furthest, apart)
        off = [np.abs(np.subtract(found['own'][1][m], real[m])).mean() for found in (mine, theirs)]
        print(f'{m:<18} {apart:19.1e} {off[0]:12.5f} {off[1]:12.5f}')
    print(f'{"met" if furthest <= CLOSE else "NOT MET"}: values at most {furthest:.1e} apart, {CLOSE:.0e} promised')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--peer-python', help='the interpreter of an environment with NannyML; left out: mlcycle alone')
    parser.add_argument('--rows', type=int, default=500_000)
    parser.add_argument('--chunk', type=int, default=50_000)
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--peer', help=argparse.SUPPRESS)   # the folder of the rows: this process is NannyML's
    given = parser.parse_args()
    if given.peer:
        print(json.dumps(measure(peer, *(Path(given.peer)/f'{n}-given.csv' for n in ('reference', 'current')), chunk=given.chunk, runs=given.runs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.rows)
        mine = measure(ours, *(Path(folder)/f'{n}-given.csv' for n in ('reference', 'current')), chunk=given.chunk, runs=given.runs)
        if not given.peer_python:
            print({name: f'{statistics.median(found[0]):.3f} s' for name, found in mine.items()})
            return
        command = [given.peer_python, __file__, '--peer', folder, '--chunk', str(given.chunk), '--runs', str(given.runs)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ|{'NML_DISABLE_USAGE_LOGGING': '1'})
        if done.returncode: sys.exit(f'NannyML did not run:\n{done.stderr[-2000:]}')
        show(mine, json.loads(done.stdout.splitlines()[-1]), truth(pd.read_csv(Path(folder)/'current-own.csv'), given.chunk))


if __name__ == '__main__': main()
