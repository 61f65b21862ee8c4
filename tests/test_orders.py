"""Steps carried out elsewhere and projects run together: on Dask workers that share the store, and one command for a whole folder."""
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import psutil, pytest
from mlcycle.core import Project, SettingsError
from mlcycle.orders import carry_out_there
from mlcycle.pipeline import run, with_run
from test_pipeline import LIMITS, make, project, rewrite, STEPS, TOML
from waiting import PATIENCE, until

MLCYCLE = Path(sys.executable).parent/'mlcycle'


def call(*words, cwd=None) -> subprocess.CompletedProcess:
    done = subprocess.run([MLCYCLE, *map(str, words)], capture_output=True, text=True, cwd=cwd)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


@pytest.fixture(scope='module')
def cluster():
    "Two workers, as processes of their own."
    from distributed import LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host='127.0.0.1') as cluster: yield cluster


WHO = 'import json, os, psutil; json.dump([p.pid for p in psutil.Process().parents()], open("{0}.parents", "w")); print(n)'


def test_steps_run_on_the_workers_and_leave_the_same(project, cluster):
    "The workers' processes are the kernels' parents; what is left is what a run here leaves, also after a failure."
    for step in ('problem', 'data'): rewrite(project, step, WHO.format(step))
    rewrite(project, 'development', 'print("kept")', 'raise ValueError("no")')
    there = with_run(project, cluster=cluster.scheduler_address, retries=1)
    done = run(there, ['problem', 'data', 'development'], parameters={'n': '3'})
    assert [(s.state, s.attempts) for s in done.steps] == [('done', 1), ('done', 1), ('failed', 2)] and 'ValueError: no' in done.steps[2].why
    workers = {w.pid for w in cluster.workers.values()}
    assert all(workers & set(json.loads((project.folder/f'{s}.parents').read_text())) for s in ('problem', 'data'))
    assert all('3' in (project.folder/s.report).read_text() for s in done.steps[:2]) and 'kept' in (project.folder/done.steps[2].report).read_text()
    assert [s.state for s in run(project, ['problem', 'data'], parameters={'n': '3'}).steps] == ['unchanged']*2   # here, nothing is left to do
    assert project.ledger.verify().ok


def test_a_worker_that_dies_costs_an_attempt_elsewhere_not_the_run(project, cluster):
    "The step is begun again on the other worker; the scheduler makes good the loss."
    rewrite(project, 'data', 'import os, pathlib, signal, psutil\nif not pathlib.Path("once").exists():\n    pathlib.Path("once").write_text("")\n'
            f'    worker = next(p for p in psutil.Process().parents() if p.pid in {[w.pid for w in cluster.workers.values()]})\n    worker.kill()\n'
            '    import time; time.sleep(3600)\nprint("done elsewhere")')
    done = run(with_run(project, cluster=cluster.scheduler_address), ['data'])
    assert done.steps[0].state == 'done' and 'done elsewhere' in (project.folder/done.steps[0].report).read_text()


RUNNER = '''import sys; from mlcycle.core import Project; from mlcycle.pipeline import run, with_run
run(with_run(Project(sys.argv[1]), cluster=sys.argv[2]), ["data"])'''


def test_kill_minus_nine_of_the_runner_ends_what_its_workers_do(project, cluster):
    rewrite(project, 'data', 'import os, time; open("pid", "w").write(str(os.getpid()))', 'time.sleep(3600)')
    process = subprocess.Popen([sys.executable, '-c', RUNNER, str(project.folder), cluster.scheduler_address])
    until(lambda: (project.folder/'pid').exists() and (project.folder/'pid').read_text())
    kernel = psutil.Process(int((project.folder/'pid').read_text()))
    process.send_signal(signal.SIGKILL); process.wait()
    assert psutil.wait_procs([kernel], timeout=PATIENCE)[1] == []
    rewrite(project, 'data', 'print(n)')
    assert run(project, ['data']).steps[0].state == 'done'


def test_a_worker_without_the_folder_or_with_another_ledger_is_refused(project, cluster, tmp_path):
    order = dict(folder=str(tmp_path/'nowhere'), stage='data', run='a-run', parameters={}, prints={})
    with pytest.raises(Exception, match='no project at'): carry_out_there(order, 10)
    with pytest.raises(Exception, match='another ledger'): carry_out_there({**order, 'folder': str(project.folder)}, 10)
    with pytest.raises(SettingsError, match='tls://'): run(with_run(project, cluster='tcp://192.0.2.1:8786'), ['data'])
    with pytest.raises(SettingsError, match='run.retries'): with_run(project, retries=99)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    "Three projects: one whole, one whose second step fails, one whose settings are wrong; and things that are none."
    root = tmp_path_factory.mktemp('many')
    for name in ('a', 'b', 'teams/c\x1b[2J'):
        home = root/name
        (home/'notebooks').mkdir(parents=True)
        (home/'mlcycle.toml').write_text(TOML.replace('"test"', json.dumps(name[:7])))
        (home/'data.csv').write_text('x,y\n1,0\n2,1\n')
        for step in STEPS.values(): make(home/'notebooks'/step.notebook, 'print(n)')
    make(root/'b'/'notebooks'/'02_data.ipynb', 'raise RuntimeError("disk")')
    (root/'teams/c\x1b[2J/mlcycle.toml').write_text('[project]\nnme = "c"\n')
    (root/'.hidden').mkdir(); shutil.copy(root/'a'/'mlcycle.toml', root/'.hidden'/'mlcycle.toml'); (root/'notes').mkdir()
    return root


def test_every_project_of_a_folder_with_one_summary_and_a_true_status(folder):
    done = call('run', 'problem', 'data', '--all', folder, '--kernels', 'papermill', '-p', 'n', '7', '--json')
    found = json.loads(done.stdout)
    assert done.returncode == found['exit_status'] == 2 and [(p['folder'], p['state'], p['exit_status']) for p in found['projects']] \
        == [('a', 'done', 0), ('b', 'failed', 1), ('teams/c\x1b[2J', 'failed', 2)]
    assert 'data is failed' in found['projects'][1]['headline'] and 'nme' in found['projects'][2]['headline']
    assert '7' in (folder/'a'/'reports'/found['projects'][0]['run']/'02_data.html').read_text()
    (folder/'teams/c\x1b[2J/mlcycle.toml').unlink()
    done = call('run', 'problem', 'data', '--all', folder, '-p', 'n', '7')
    assert done.returncode == 1 and '2 projects: 1 unchanged, 1 failed; b is failed' in done.stdout and '\x1b' not in done.stdout


def test_a_fleet_that_is_killed_leaves_nobody(folder):
    make(folder/'a'/'notebooks'/'01_problem.ipynb', 'import time; time.sleep(3600)')
    process = subprocess.Popen([MLCYCLE, 'run', 'problem', '--all', str(folder)], stdout=subprocess.DEVNULL)
    ledger = Project(folder/'a', read_only=True).ledger
    until(lambda: (e := ledger.last('run', 'problem')) and e.body['state'] == 'started')
    kin = until(lambda: psutil.Process(process.pid).children(recursive=True))
    process.send_signal(signal.SIGKILL); process.wait()
    assert kin and psutil.wait_procs(kin, timeout=PATIENCE)[1] == []


@pytest.mark.parametrize('words, what', [(('--all', 'nowhere'), 'no folder'), (('--all', '.'), 'No project'), (('--all', '.', '--project', '.'), 'one of them')])
def test_a_wrong_call_is_two(words, what, tmp_path):
    done = call('run', *words, cwd=tmp_path)
    assert done.returncode == 2 and what in done.stderr


def test_how_a_run_goes_can_be_said_for_one_run(project):
    "Flags win over mlcycle.toml and are not written; a run otherwise done is not a changed step; a changed parameter is named."
    before = (project.folder/'mlcycle.toml').read_text()
    rewrite(project, 'data', 'import time; time.sleep(3600)')
    for limit in LIMITS:
        done = call('run', 'problem', 'data', '--deadline', limit, '--retries', '2', '--kernels', 'papermill', '--project', project.folder)
        assert done.returncode == 1 and f'deadline of {limit} s' in done.stderr and (project.folder/'mlcycle.toml').read_text() == before
        if project.ledger.entries('run', 'data'): break   # a very slow machine does not come so far at first
    rewrite(project, 'data', 'print(n)')
    told = json.loads(call('run', 'problem', 'data', '-p', 'n', '4', '--json', '--project', project.folder).stdout)
    assert [(s['state'], s['why'][:40]) for s in told['steps']] == [('done', 'changed: parameter n (not given → 4)'), ('done', 'changed: parameter n (not given → 4), no')]
    assert [s.state for s in run(project, ['problem', 'data'], parameters={'n': '4'}).steps] == ['unchanged']*2
