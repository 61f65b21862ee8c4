"""The whole gate: a browser and a database for the tests that need them, notebooks in step with modules, then the tests.

Run as `.venv/bin/python tests/gate.py`; arguments go to pytest.
"""
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
QUIET = {'MLFLOW_DISABLE_TELEMETRY': 'true', 'DO_NOT_TRACK': '1', 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE',   # two workers share two cores
         'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}


def run(*command, **options) -> None:
    "Run a command in the repository; a failure ends the gate with its status."
    print('$', *map(str, command), flush=True)
    done = subprocess.run([str(c) for c in command], cwd=HERE, env={**os.environ, **QUIET}, **options)
    if done.returncode: sys.exit(done.returncode)


def installed(*programs: str) -> bool: return all(shutil.which(p) for p in programs)


def install_what_tests_need() -> None:
    "Chromium for the browser tests and PostgreSQL for the ledger's, where this account may install them."
    postgres = installed('initdb') or list(Path('/usr/lib/postgresql').glob('*/bin/initdb'))
    wanted = [name for name, there in (('chromium', installed('chromium')), ('postgresql', postgres)) if not there]
    if not wanted: return
    if installed('apt-get') and (os.getuid() == 0 or installed('sudo')):
        sudo = [] if os.getuid() == 0 else ['sudo']
        run(*sudo, 'apt-get', 'update', '-qq', stdout=subprocess.DEVNULL)
        run(*sudo, 'apt-get', 'install', '-y', '-qq', *wanted, stdout=subprocess.DEVNULL)
    elif 'chromium' in wanted: run(BIN/'playwright', 'install', 'chromium')


def in_step() -> None:
    "Clean notebooks, modules exported from them, README made from index.ipynb: doing each again changes nothing."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)/'mlcycle'
        shutil.copytree(HERE, copy, symlinks=True, ignore=shutil.ignore_patterns('.venv', '.git', '*.egg-info', '__pycache__', 'build'))
        before = snapshot(copy)
        for command in (['nbdev_clean'], ['nbdev_export'], [sys.executable, '-c', 'from mlcycle.report import write_readme; write_readme()']):
            subprocess.run(command, cwd=copy, env={**os.environ, **QUIET, 'PYTHONPATH': str(copy)}, check=True)
        after = snapshot(copy)
        changed = sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if changed: sys.exit(f'not in step with the notebooks: {", ".join(changed)}. Run nbdev_clean, nbdev_export and write_readme().')


def snapshot(folder: Path) -> dict[Path, bytes]:
    "The files that are made from notebooks, and the notebooks."
    names = [*folder.glob('nbs/**/*.ipynb'), *folder.glob('mlcycle/*.py'), folder/'README.md']
    return {p.relative_to(folder): p.read_bytes() for p in names if '.ipynb_checkpoints' not in p.parts}


if __name__ == '__main__':
    install_what_tests_need()
    in_step()
    run(BIN/'nbdev_test', '--n_workers', '2')
    run(sys.executable, '-m', 'pytest', '-q', '-n', '2', '--dist', 'worksteal', *sys.argv[1:])
