"""What the tests share: where the real data lies, and a database."""
import os, shutil, subprocess, tempfile
from pathlib import Path
import pytest
from ports import free_port
from waiting import PATIENCE

SHARED = Path(__file__).resolve().parents[2]/'shared'


@pytest.fixture(scope='session')
def data_dir() -> Path:
    "The folder of real data sets; a test that needs it is skipped only where there is no `shared` folder at all."
    if not SHARED.exists(): pytest.skip('no ../shared beside the checkout: the real data sets are not here')
    return SHARED/'data'


@pytest.fixture(scope='session')
def postgres(tmp_path_factory):
    "A PostgreSQL of our own on a loopback port, where its programs are installed."
    found = sorted(Path('/usr/lib/postgresql').glob('*/bin/initdb')) or [Path(p) for p in [shutil.which('initdb')] if p]
    if not found: pytest.skip('PostgreSQL is not installed')
    tools, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix='mlcycle-postgres-', dir='/tmp'))   # a socket's path is short
    folder.chmod(0o755)
    as_user = []
    if os.getuid() == 0: shutil.chown(folder, 'postgres'); as_user = ['runuser', '-u', 'postgres', '--']
    run = lambda *command: subprocess.run([*as_user, *command], check=True, stdout=subprocess.DEVNULL, cwd='/tmp')
    run(tools/'initdb', '-D', folder/'data', '-A', 'trust', '-U', 'mlcycle')
    for port in [free_port() for _ in range(3)]:
        try: run(tools/'pg_ctl', '-D', folder/'data', '-w', '-t', str(PATIENCE), '-l', folder/'log', '-o', f'-p {port} -k {folder} -c listen_addresses=127.0.0.1', 'start')
        except subprocess.CalledProcessError: continue                                   # somebody was faster
        break
    else: pytest.fail(f'PostgreSQL does not start: {(folder/"log").read_text()[-2000:]}')
    yield f'postgresql://mlcycle@127.0.0.1:{port}/postgres'
    run(tools/'pg_ctl', '-D', folder/'data', '-m', 'immediate', 'stop')
    shutil.rmtree(folder, ignore_errors=True)
