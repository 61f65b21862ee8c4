"""The desk of the data stage on many rows: the first view, each accepted proposal, and the memory it takes.

    python benchmarks/desk.py                      # 1,000,000 rows × 50 columns
    python benchmarks/desk.py --rows 20000         # quick

Made-up numbers and words, a third of the columns with something to clean. The data stage runs once, as at night; then a fresh process
that has done its imports (a warm kernel) opens the desk as widgets, accepts proposals one after another, and turns to the next page.
There is no peer: the bars are 3 s, 0.5 s and 1.5 GB.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd

BARS = {'first view, s': 3., 'slowest accepted proposal, s': .5, 'memory of the desk, GB': 1.5}


def made_up(rows: int, columns: int, seed: int=0) -> pd.DataFrame:
    "A target, numbers with strays and gaps, and words of which some stand for missing."
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    df = {'y': np.where(x+rng.normal(size=rows) > 0, 'yes', 'no')}
    for i in range(columns-1):
        if i % 3 == 0: df[f'number_{i}'] = np.where(rng.random(rows) < .002, 1e6, x*(i % 5)/5+rng.normal(size=rows))
        elif i % 3 == 1: df[f'gaps_{i}'] = np.where(rng.random(rows) < .1, np.nan, rng.gamma(2, size=rows))
        else: df[f'word_{i}'] = rng.choice(['red', 'green', 'blue', '?', 'unknown'], rows, p=[.4, .3, .2, .06, .04])
    return pd.DataFrame(df)


def prepare(folder: Path, rows: int, columns: int) -> float: # seconds of the data stage
    "A project whose data stage has run."
    from mlcycle.core import Project
    from mlcycle.data import prepare_data
    made_up(rows, columns).to_parquet(folder/'rows.parquet')
    (folder/'mlcycle.toml').write_text('[project]\nname = "many"\n[problem]\ntarget = "y"\ntask = "binary"\npositive = "yes"\n'
                                       '[data]\nsources = [{path = "rows.parquet"}]\nauto = "none"\n')
    begun = time.perf_counter()
    prepare_data(Project(folder, actor='Ada'))
    return time.perf_counter()-begun


def sit_down(folder: Path) -> dict: # in a process of its own
    "Open the desk, accept every proposal, and say how long each took."
    import ipywidgets, pandas   # what a warm kernel has
    from mlcycle.core import Project
    from mlcycle.data_desk import data_desk, treatment_lines
    os.environ['MLCYCLE_DESK'] = 'live'
    Project(folder, actor='Ada').update_settings({'data.accept': [], 'data.refuse': []})   # as before an earlier run
    begun = time.perf_counter()
    project = Project(folder, actor='Ada')
    desk = data_desk(project)
    desk.widget()
    first = time.perf_counter()-begun
    cleaning = next(p for p in desk.parts if getattr(p, 'title', '') == 'Cleaning')
    took = []
    for _ in range(min(12, len(treatment_lines(project)))):
        line = next(l for l, _ in cleaning.made if l.presses[0].name == 'Accept')
        begun = time.perf_counter()
        cleaning._do(line.presses[0].do)
        took.append(time.perf_counter()-begun)
    return {'first view, s': first, 'slowest accepted proposal, s': max(took), 'median accepted proposal, s': float(np.median(took)),
            'proposals accepted': len(took), 'memory of the desk, GB': highest_memory()}


def highest_memory() -> float: # GB
    "This process's highest memory; rusage would count the parent's, from before the new program began."
    status = Path('/proc/self/status').read_text()
    return int(next(l.split()[1] for l in status.splitlines() if l.startswith('VmHWM')))/2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--columns', type=int, default=50)
    parser.add_argument('--folder', type=Path, help='a project that an earlier run has left')
    parser.add_argument('--sit', action='store_true', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sit: return print(json.dumps(sit_down(given.folder))) or 0
    folder = given.folder or Path(tempfile.mkdtemp())
    if not (folder/'store').exists(): print(f'data stage of {given.rows:,} × {given.columns}: {prepare(folder, given.rows, given.columns):.1f} s, in {folder}')
    told = subprocess.run([sys.executable, __file__, '--sit', '--folder', folder], check=True, capture_output=True, text=True).stdout
    for name, value in json.loads(told).items():
        bar = BARS.get(name)
        print(f'{name:32} {value:8.3f}'+(f'   bar {bar:g}: {"met" if value <= bar else "NOT met"}' if bar else ''))
    return 0


if __name__ == '__main__': sys.exit(main())
