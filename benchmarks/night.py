"""Nine notebooks that each import pandas and scikit-learn and do 0.1 s of work, one after another: `mlcycle run` against one plain
Python process that does the same, and against papermill; then the same run again, with nothing changed.

    python benchmarks/night.py                     # three rounds, about two minutes
    python benchmarks/night.py --rounds 1          # a quick look
    python benchmarks/night.py --peer-python PATH  # papermill of another environment (pip install papermill ipykernel pandas scikit-learn)

Bars: at most 1.5 times the plain process, at least 7 times faster than papermill, nothing changed in under 0.6 s. Each figure is the
best of the rounds: on a machine that others use, the best is what the work costs. Every command starts a fresh process, whose start counts.
"""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from mlcycle.fingerprints import STEPS

WORK = 'import time\nimport pandas as pd, sklearn.linear_model\nbegun = time.process_time()\nwhile time.process_time()-begun < {seconds}: pass\nprint(pd.Series([1, 2]).sum())'
TOML = '''[project]
name = "night"
[problem]
target = "y"
task = "binary"
[data]
sources = [{path = "data.csv"}]
[run]
side_by_side = 1
'''
PAPERMILL = 'import sys, papermill\nfor path in sys.argv[1:]: papermill.execute_notebook(path, path+".out.ipynb", progress_bar=False, kernel_name="python3")'


def make(folder: Path, seconds: float) -> list[Path]:
    "A project of nine such notebooks."
    (folder/'notebooks').mkdir()
    (folder/'mlcycle.toml').write_text(TOML)
    (folder/'data.csv').write_text('x,y\n1,0\n2,1\n')
    for step in STEPS.values():
        cells = [new_code_cell('project: str = "."', metadata={'tags': ['parameters']}), new_code_cell(WORK.format(seconds=seconds))]
        nbformat.write(new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), folder/'notebooks'/step.notebook)
    return sorted((folder/'notebooks').glob('*.ipynb'))


def timed(*command: str, cwd: Path) -> float:
    "Seconds of a command that must succeed."
    begun = time.perf_counter()
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'PYDEVD_DISABLE_FILE_VALIDATION': '1'})
    if done.returncode: sys.exit(f'{command[:3]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
    return time.perf_counter()-begun


def measure(folder: Path, peer: str, options: argparse.Namespace) -> dict[str, float]:
    "One round: seconds by name."
    notebooks = [str(p) for p in sorted((folder/'notebooks').glob('0*.ipynb')) if '.out.' not in p.name]
    mlcycle = Path(sys.executable).parent/'mlcycle'
    plain = '\n'.join([WORK.format(seconds=options.seconds)]*len(notebooks))
    return {'plain Python': timed(sys.executable, '-c', plain, cwd=folder),
            'mlcycle run': timed(mlcycle, 'run', '--force', cwd=folder),
            'nothing changed': timed(mlcycle, 'run', cwd=folder),
            'papermill': timed(peer, '-c', PAPERMILL, *notebooks, cwd=folder)}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=.1, help='of work in each notebook')
    parser.add_argument('--peer-python', default=sys.executable, help='the Python whose papermill is measured')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.seconds)
        rounds = []
        for i in range(options.rounds):
            rounds.append(measure(Path(folder), options.peer_python, options))
            print(f'round {i+1}: '+', '.join(f'{name} {s:.2f} s' for name, s in rounds[-1].items()), flush=True)
    best = {name: min(r[name] for r in rounds) for name in rounds[0]}
    slower, faster = best['mlcycle run']/best['plain Python'], best['papermill']/best['mlcycle run']
    print(f'\n{"":<18}{"seconds":>9}\n'+'\n'.join(f'{name:<18}{s:>9.2f}' for name, s in best.items()))
    print(f'\nmlcycle run takes {slower:.2f} times one plain process   (bar 1.50: {"met" if slower <= 1.5 else "NOT met"})')
    print(f'papermill takes {faster:.1f} times mlcycle run           (bar 7.0: {"met" if faster >= 7 else "NOT met"})')
    print(f'nothing changed: {best["nothing changed"]:.2f} s                      (bar 0.60: {"met" if best["nothing changed"] < .6 else "NOT met"})')
