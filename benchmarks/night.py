"""Nine notebooks that each import pandas and scikit-learn and do 0.1 s of work, one after another: `mlcycle run` against one plain
Python process that does the same, and against papermill; then the same run again, with nothing changed.

    python benchmarks/night.py                     # five rounds, about three minutes
    python benchmarks/night.py --rounds 1          # a quick look
    python benchmarks/night.py --peer-python PATH  # papermill of another environment (pip install papermill ipykernel pandas scikit-learn)
    python benchmarks/night.py --first             # before everybody else on a busy machine (real-time priority; as root)

Bars: at most 1.5 times the plain process, at least 7 times faster than papermill, nothing changed in under 0.6 s. The commands of a
round run one after another; a ratio is taken within each round, and its median and range over the rounds are told. Every command
starts a fresh process, whose start counts; modules are compiled once, in a round that does not count, as after any installation.
"""
import argparse, os, statistics, subprocess, sys, tempfile, time
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


def timed(*command: str, cwd: Path, first: bool) -> float:
    "Seconds of a command that must succeed."
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'} | {'PYDEVD_DISABLE_FILE_VALIDATION': '1'}
    begun = time.perf_counter()
    done = subprocess.run(['chrt', '-r', '1']*first+[str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode: sys.exit(f'{command[:3]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
    return time.perf_counter()-begun


def measure(folder: Path, peer: str, options: argparse.Namespace) -> dict[str, float]:
    "One round: seconds by name."
    notebooks = [str(p) for p in sorted((folder/'notebooks').glob('0*.ipynb')) if '.out.' not in p.name]
    mlcycle = Path(sys.executable).parent/'mlcycle'
    plain = '\n'.join([WORK.format(seconds=options.seconds)]*len(notebooks))
    commands = {'plain Python': (sys.executable, '-c', plain), 'mlcycle run': (mlcycle, 'run', '--force'), 'nothing changed': (mlcycle, 'run'),
                'papermill': (peer, '-c', PAPERMILL, *notebooks)}
    return {name: timed(*command, cwd=folder, first=options.first) for name, command in commands.items()}


def over_rounds(rounds: list[dict[str, float]], above: str, below: str='') -> tuple[float, str]:
    "The median over the rounds of one command's seconds, or of a ratio of two, and the same with its range in words."
    values = sorted(r[above]/(r[below] if below else 1) for r in rounds)
    return statistics.median(values), f'{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=.1, help='of work in each notebook')
    parser.add_argument('--peer-python', default=sys.executable, help='the Python whose papermill is measured')
    parser.add_argument('--first', action='store_true', help='at real-time priority, so that what others do on this machine counts less')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.seconds)
        measure(Path(folder), options.peer_python, options)
        rounds = []
        for i in range(options.rounds):
            rounds.append(measure(Path(folder), options.peer_python, options))
            print(f'round {i+1}: '+', '.join(f'{name} {s:.2f} s' for name, s in rounds[-1].items()), flush=True)
    print(f'\n{"seconds":<18}median (range) over {len(rounds)} rounds\n'+'\n'.join(f'{name:<18}{over_rounds(rounds, name)[1]}' for name in rounds[0]))
    (slower, slower_said), (faster, faster_said) = over_rounds(rounds, 'mlcycle run', 'plain Python'), over_rounds(rounds, 'papermill', 'mlcycle run')
    unchanged, unchanged_said = over_rounds(rounds, 'nothing changed')
    print(f'\nmlcycle run takes {slower_said} times one plain process   (bar 1.50: {"met" if slower <= 1.5 else "NOT met"})')
    print(f'papermill takes {faster_said} times mlcycle run           (bar 7.0: {"met" if faster >= 7 else "NOT met"})')
    print(f'nothing changed: {unchanged_said} s                      (bar 0.60: {"met" if unchanged < .6 else "NOT met"})')
