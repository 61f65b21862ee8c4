"""Profile two tables and compare every column: mlcycle beside Evidently 0.7 and NannyML 0.13.

The data: 1,000,000 rows of reference and 200,000 of a window, 20 numbers and 10 categories of 5 to 200 levels, 2 % nulls,
7 columns drifted. Text comes as Python strings, as Arrow strings or as categories. All sides read the same Parquet files first;
only the work itself is timed, in one process each, and the median is told. What was promised (BARS) is said to be met or not at the end;
where a peer cannot read a storage its error is told, and what was promised for that storage is measured with categories.

    python -m venv evidently && evidently/bin/pip install 'evidently==0.7.*' 'pandas<3' pyarrow
    python -m venv nannyml   && nannyml/bin/pip   install 'nannyml==0.13.*' statsmodels pyarrow
    python benchmarks/profile_drift.py --evidently evidently/bin/python --nannyml nannyml/bin/python

A quick run without peers: python benchmarks/profile_drift.py --rows 100000 --window 20000
"""
import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DRIFTED = ('n00', 'n03', 'n07', 'n11', 'c01', 'c04', 'c08')
LEVELS = (5, 8, 12, 20, 30, 50, 80, 120, 160, 200)
BARS = {('evidently', 'object'): 100, ('evidently', 'arrow'): 200, ('evidently', 'category'): 200, ('nannyml', 'object'): 25, ('nannyml', 'arrow'): 25,
        ('nannyml', 'category'): 25}   # how many times faster, both tables
WINDOW_BAR, MEGABYTES = 400, 100       # a window against the stored reference, of Evidently's drift preset; beyond the data


def make(rows: int, drifted: bool, seed: int):
    "A table: normal, lognormal, uniform and small whole numbers; categories of falling frequency; 2 % nulls."
    import numpy as np
    import pandas as pd
    rng, columns = np.random.default_rng(seed), {}
    for i in range(20):
        name = f'n{i:02d}'
        x = (rng.normal(50, 10, rows), rng.lognormal(3, 1, rows), rng.random(rows)*1000, rng.poisson(8, rows).astype(float))[i % 4]
        if drifted and name in DRIFTED: x = x*1.15+{0: 1, 1: 0, 2: 0, 3: 1}[i % 4]
        columns[name] = np.where(rng.random(rows) < .02, np.nan, x)
    for i, levels in enumerate(LEVELS):
        shares = 1/(np.arange(levels)+2)
        if drifted and f'c{i:02d}' in DRIFTED: shares[0] *= 2.5
        codes = rng.choice(levels, rows, p=shares/shares.sum())
        codes[rng.random(rows) < .02] = -1
        columns[f'c{i:02d}'] = pd.Categorical.from_codes(codes, [f'level {k:03d}' for k in range(levels)])
    return pd.DataFrame(columns)


def write(folder: Path, rows: int, window: int, seed: int) -> None:
    for name, n, drifted in (('reference', rows, False), ('current', window, True)):
        df = make(n, drifted, seed+drifted)
        df.astype({c: 'str' for c in df if c.startswith('c')}).to_parquet(folder/f'{name}.parquet', index=False)


def read(path: Path, text: str):
    "The table with its text as `object` (a Python string a cell), `arrow` or `category`."
    import pandas as pd
    import pyarrow as pa
    df = pd.read_parquet(path)
    names = [c for c in df if c.startswith('c')]
    if text == 'object':
        for c in names: df[c] = pd.Series([None if v is None or v != v else sys.intern(v) for v in df[c].to_numpy(object)], dtype=object)
    if text == 'category': df = df.astype({c: 'category' for c in names})
    if text == 'arrow' and int(pd.__version__[0]) < 3: df = df.astype({c: pd.ArrowDtype(pa.string()) for c in names})
    return df


def timed(work, repeats: int) -> tuple[dict, object]:
    "Median wall and processor seconds of some runs, and the last answer."
    walls, processor = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        answer = work()
        walls.append(time.perf_counter()-began)
        processor.append(time.process_time()-used)
    return dict(seconds=statistics.median(walls), processor=statistics.median(processor)), answer


def evidently(reference, current, *, repeats: int) -> dict:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset, DataSummaryPreset
    names = [c for c in reference if c.startswith('c')]
    definition = DataDefinition(numerical_columns=[c for c in reference if c.startswith('n')], categorical_columns=names)
    pair = [Dataset.from_pandas(d, data_definition=definition) for d in (current, reference)]
    def run(presets):
        answer = Report(presets).run(*pair)
        return answer.dict()
    both, said = timed(lambda: run([DataDriftPreset(), DataSummaryPreset()]), repeats)
    alone, said = timed(lambda: run([DataDriftPreset()]), repeats)
    return dict(both=both, drift=alone, flagged=None, said=str(said)[:300])


def nannyml(reference, current, *, repeats: int) -> dict:
    import nannyml as nml
    import warnings
    warnings.simplefilter('ignore')
    text = [c for c in reference if c.startswith('c')]
    def run(**chunks):
        maker = nml.UnivariateDriftCalculator(column_names=list(reference), treat_as_categorical=text, **chunks,
                                              continuous_methods=['kolmogorov_smirnov', 'jensen_shannon'],
                                              categorical_methods=['chi2', 'jensen_shannon'])
        return maker.fit(reference).calculate(current).filter(period='analysis').to_df()
    def alerts(df): return sorted({c for c, method, what in df.columns if what == 'alert' and df[c, method, what].any()})
    same, said = timed(lambda: run(chunk_size=len(current)), repeats)
    unequal, other = timed(lambda: run(chunk_number=10), 1)
    return dict(both=same, flagged=alerts(said), unequal=unequal, flagged_unequal=alerts(other))


def mlcycle(reference, current, *, repeats: int) -> dict:
    import numpy as np
    from mlcycle.drift import drift
    from mlcycle.profile import Profile, profile
    def both():
        like = profile(reference)
        return drift(like, profile(current, like=like))
    def flagged(found): return sorted(found.column[found.status == 'drift'])
    both()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    together, found = timed(both, max(repeats, 5))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024
    stored = profile(reference)
    alone, _ = timed(lambda: drift(stored, profile(current, like=stored)), max(repeats, 5))
    tenth = profile(reference[:len(reference)//10])
    smaller, _ = timed(lambda: drift(tenth, profile(current, like=tenth)), max(repeats, 5))
    half = drift(stored, profile(current[:len(current)//7], like=stored))
    return dict(both=together, window=alone, window_small_reference=smaller, flagged=flagged(found), flagged_unequal=flagged(half),
                peak_mb=peak(both), kept_mb=more, bytes=len(json.dumps(stored.body())))


def peak(work) -> float:
    "Megabytes beyond what was there before, at the most, while `work` runs."
    import threading
    import psutil
    me, most, over = psutil.Process(), [0], threading.Event()
    start = me.memory_info().rss
    def watch():
        while not over.wait(.002): most[0] = max(most[0], me.memory_info().rss-start)
    thread = threading.Thread(target=watch)
    thread.start()
    work()
    over.set()
    thread.join()
    return most[0]/2**20


TOOLS = {'mlcycle': mlcycle, 'evidently': evidently, 'nannyml': nannyml}


def one(tool: str, text: str, folder: Path, repeats: int) -> None:
    pair = [read(folder/f'{n}.parquet', text) for n in ('reference', 'current')]
    print('RESULT '+json.dumps(TOOLS[tool](*pair, repeats=repeats)))


def ask(python: str, tool: str, text: str, options) -> dict:
    command = [python, __file__, '--tool', tool, '--text', text, '--folder', str(options.folder), '--repeats', str(options.repeats)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    lines = [line for line in done.stdout.splitlines() if line.startswith('RESULT ')]
    if not lines and tool == 'mlcycle': sys.exit(f'{tool} failed:\n{done.stderr[-3000:]}')
    if not lines: return {'failed': error_of(done.stderr)}
    return json.loads(lines[-1][7:])


def error_of(stderr: str) -> str:
    "The last error that was raised, in one line, without where."
    said = stderr.strip().splitlines() or ['no output']
    begins = [i for i, said_here in enumerate(said) if re.match(r'[\w.]+(Error|Exception)\b', said_here)]
    return ' '.join(part.strip() for part in said[begins[-1] if begins else -1:])


def table(options) -> None:
    peers, kept = {'evidently': options.evidently, 'nannyml': options.nannyml}, []
    print(f'{"tool":10} {"text":9} {"seconds":>9} {"processor":>9} {"ratio":>7}   what')
    for text in options.texts.split(','):
        ours = ask(sys.executable, 'mlcycle', text, options)
        kept += own(text, ours)
        for tool, python in peers.items():
            if python: kept += beside(tool, text, ask(python, tool, text, options), ours)
    print('\npromised')
    for what, met in kept: print(f'  {"met    " if met else "not measured" if met is None else "NOT MET"} {what}')


def own(text: str, ours: dict) -> list[tuple[str, bool]]:
    "What mlcycle took and found; what was promised of it alone."
    line('mlcycle', text, ours['both'], None, f'{ours["peak_mb"]:.0f} MB beyond the data; flagged {ours["flagged"]}')
    line('mlcycle', text, ours['window'], None, 'a new window against the stored reference')
    line('mlcycle', text, ours['window_small_reference'], None, 'the same, a reference of a tenth of the rows')
    return [(f'{text}: {ours["peak_mb"]:.0f} MB beyond the data, {MEGABYTES} allowed', ours['peak_mb'] <= MEGABYTES),
            (f'{text}: exactly the {len(DRIFTED)} drifted columns', ours['flagged'] == sorted(DRIFTED)),
            (f'{text}: exactly these with a smaller window', ours['flagged_unequal'] == sorted(DRIFTED))]


def beside(tool: str, text: str, theirs: dict, ours: dict) -> list[tuple[str, bool | None]]:
    "What a peer took and found; what was promised beside it."
    bar = BARS[tool, text]
    if 'failed' in theirs:
        print(f'{tool:10} {text:9} fails on this storage: {theirs["failed"][:200]}', flush=True)
        return [(f'{text}: {bar}× {tool}, which fails on this storage: see categories', None)]
    ratio = theirs['both']['seconds']/ours['both']['seconds']
    line(tool, text, theirs['both'], ratio, f'both tables; flagged {theirs["flagged"]}')
    kept = [(f'{text}: {ratio:.0f}× {tool}, {bar}× promised', ratio >= bar)]
    if 'drift' in theirs:
        alone = theirs['drift']['seconds']/ours['window']['seconds']
        line(tool, text, theirs['drift'], alone, 'the drift preset alone, against our window')
        kept.append((f"{text}: a window {alone:.0f}× {tool}'s drift preset, {WINDOW_BAR}× promised", alone >= WINDOW_BAR))
    if 'unequal' in theirs:
        others = [c for c in theirs['flagged_unequal'] if c not in DRIFTED]
        line(tool, text, theirs['unequal'], None, f'unequal chunks: {len(others)} columns flagged that did not drift')
    return kept


def line(tool: str, text: str, took: dict, ratio: float | None, what: str) -> None:
    print(f'{tool:10} {text:9} {took["seconds"]:9.3f} {took["processor"]:9.3f} {"" if ratio is None else f"{ratio:.0f}×":>7}   {what}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=1_000_000, help='rows of the reference')
    parser.add_argument('--window', type=int, default=200_000, help='rows of the window')
    parser.add_argument('--repeats', type=int, default=3, help='runs of each; the median is told')
    parser.add_argument('--texts', default='object,arrow,category', help='how text is stored, with commas')
    parser.add_argument('--evidently', help="Python of an environment with Evidently")
    parser.add_argument('--nannyml', help="Python of an environment with NannyML")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--tool', choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument('--text', help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool: return one(options.tool, options.text, options.folder, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        write(options.folder, options.rows, options.window, options.seed)
        table(options)


if __name__ == '__main__': main()
