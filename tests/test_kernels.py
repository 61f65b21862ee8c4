"""What a step may use, what it leaves behind, and what the night does when the machine is rough: full disk, moved folder, killed kernel."""
import json, os, shutil, signal, subprocess, sys, tempfile
from pathlib import Path
import nbformat, psutil, pytest
from mlcycle.core import Project
from mlcycle.execution import run_notebook
from mlcycle.kernels import ROOM, Limits, PlainKernels, WarmKernels
from mlcycle.pipeline import run, status
from test_pipeline import STEPS, TOML, make, project, rewrite
from waiting import PATIENCE, until

KERNELS = {'warm': WarmKernels, 'papermill': PlainKernels}


def pages(project: Project, kind: str, notebooks: dict[str, list[str]], **limits) -> dict:
    "Notebooks run one after another by the same kernels: name → (execution, its outputs as text)."
    told = {}
    with KERNELS[kind](project.folder, Limits(**limits)) as kernels:
        for name, sources in notebooks.items():
            source = make(project.folder/'notebooks'/f'{name}.ipynb', *sources)
            done = run_notebook(source, project.folder/'out'/f'{name}.ipynb', parameters={}, kernels=kernels)
            told[name] = done, str([c.get('outputs') for c in nbformat.read(project.folder/'out'/f'{name}.ipynb', 4).cells])
    return told


@pytest.mark.parametrize('kind', KERNELS)
def test_each_step_has_a_namespace_a_memory_limit_and_a_seed_of_its_own(project, kind):
    "What one leaves the next does not find; too much memory is an error with the setting's name, and the next step has its share again."
    told = pages(project, kind, {
        'first': ['import os, random, numpy as np\nmine, pid = 7, os.getpid()\nos.environ["LEFT"] = "x"\nos.chdir("/")\nnp.set_printoptions(precision=1)', 'print(np.random.random(), "drawn")'],
        'greedy': ['big = bytearray(4_000_000_000)'],
        'second': ['import os, numpy as np\nprint("mine" in globals(), os.environ.get("LEFT"), os.path.basename(os.getcwd()), np.get_printoptions()["precision"])',
                   'print(np.random.random(), "drawn")']}, seconds=PATIENCE, memory_mb=1500)
    assert [d.state for d, _ in told.values()] == ['done', 'failed', 'done']
    assert 'MemoryError' in told['greedy'][0].why and 'run.memory_mb is 1500' in told['greedy'][0].why
    assert f'False None {project.folder.name} 8' in told['second'][1]
    assert told['first'][1].split(' drawn')[0][-12:] != told['second'][1].split(' drawn')[0][-12:]


RUNNER = 'import sys; from mlcycle.core import Project; from mlcycle.pipeline import run; run(Project(sys.argv[1]), ["data"])'
SPREAD = 'import os, subprocess, time\nsubprocess.Popen(["sleep", "3917"], start_new_session=True)\nopen("pid", "w").write(str(os.getpid()))'


@pytest.fixture
def temporary(monkeypatch):
    "A temporary folder of one's own, where nobody else's kernels come and go; its name is short enough for a socket's."
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv('TMPDIR', folder)
        monkeypatch.setattr(tempfile, 'tempdir', folder)
        yield Path(folder)


def rooms() -> set[Path]: return set(Path(tempfile.gettempdir()).glob(f'{ROOM}*'))


def test_kill_minus_nine_of_the_runner_leaves_no_process_and_the_next_run_no_folder(project, temporary):
    "Also a child that went into a session of its own; what lay in the system's temporary folder goes when the next run begins."
    rewrite(project, 'data', SPREAD, 'time.sleep(3600)')
    process = subprocess.Popen([sys.executable, '-c', RUNNER, str(project.folder)])
    until(lambda: (project.folder/'pid').exists() and (project.folder/'pid').read_text())
    kin = psutil.Process(process.pid).children(recursive=True)
    left = rooms()
    assert any('3917' in ' '.join(p.cmdline()) for p in kin)
    process.send_signal(signal.SIGKILL); process.wait()
    assert psutil.wait_procs(kin, timeout=PATIENCE)[1] == [] and left
    rewrite(project, 'data', 'print(n)')
    assert run(project, ['data']).steps[0].state == 'done' and not left & rooms()


def test_a_killed_kernel_fails_its_step_and_is_tried_again(project):
    rewrite(project, 'data', 'import os, pathlib\nif not pathlib.Path("once").exists(): pathlib.Path("once").write_text(""); os.kill(os.getpid(), 9)\nprint("second time")')
    project.update_settings({'run.retries': 1})
    done = run(project, ['data']).steps[0]
    assert (done.state, done.attempts) == ('done', 2) and 'second time' in (project.folder/done.report).read_text()


def test_a_project_that_is_moved_goes_on_where_it_was(project, tmp_path):
    "Nothing names the old place: the next run finds nothing changed, the audit passes, reports and status are there."
    run(project, ['problem', 'data'])
    moved = tmp_path.with_name(f'{tmp_path.name} moved elsewhere é')
    shutil.move(tmp_path, moved)
    again = Project(moved)
    assert [s.state for s in run(again, ['problem', 'data']).steps] == ['unchanged']*2 and again.ledger.verify().ok
    assert all((moved/s['report']).exists() for s in [e.body for e in again.ledger.entries('run') if e.body['state'] == 'done'])
    assert [s['state'] for s in status(again)['stages']][:2] == ['done', 'done']
    assert [s.state for s in run(again, ['data'], force=True).steps] == ['done'] and str(tmp_path) not in ''.join(p.read_text() for p in moved.rglob('*.html'))


MLCYCLE = Path(sys.executable).parent/'mlcycle'


@pytest.mark.parametrize('kind, moment', [('warm', 'in a cell'), ('papermill', 'in a cell'), ('warm', 'before the first kernel')])
def test_control_c_says_one_paragraph_and_leaves_no_process(project, kind, moment):
    "As a terminal sends it, to the whole group: nothing of papermill's is said, the step is open to be run again, all processes are gone."
    rewrite(project, 'data', 'import os\nopen("pid", "w").write(str(os.getpid()))', 'import time; time.sleep(3600)')
    process = subprocess.Popen([MLCYCLE, 'run', 'data', '--kernels', kind, '--project', str(project.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # a gate in the background ignores it, and hands that on
    if moment == 'in a cell': until(lambda: (project.folder/'pid').exists() and (project.folder/'pid').read_text())
    else: until(lambda: psutil.Process(process.pid).children())
    kin = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and said == 'mlcycle: stopped. What was done is kept; give the same command again to go on from there.\n', (out, said)
    assert kin and psutil.wait_procs(kin, timeout=PATIENCE)[1] == []
    rewrite(project, 'data', 'print(n)')
    assert run(project, ['data']).steps[0].state == 'done'


@pytest.fixture
def small_disk(tmp_path):
    "A disk of six megabytes."
    disk = tmp_path/'disk'
    disk.mkdir()
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('this account may not mount a small disk')
    yield disk
    subprocess.run(['umount', '-l', disk], check=True)


def test_a_full_disk_is_said_and_nothing_that_was_there_is_lost(small_disk):
    "The run ends with an error in words; the ledger is whole; with room again the next run goes on."
    (small_disk/'mlcycle.toml').write_text(TOML)
    (small_disk/'data.csv').write_text('x,y\n1,0\n2,1\n')
    for step in STEPS.values(): make(small_disk/'notebooks'/step.notebook, 'print(n)')
    project = Project(small_disk, actor='Ada')
    assert run(project, ['problem']).exit_status == 0
    make(small_disk/'notebooks'/'02_data.ipynb', 'open("filler", "wb").write(bytes(20_000_000))')
    done = subprocess.run([MLCYCLE, 'run', 'problem', 'data', '--project', str(small_disk)], capture_output=True, text=True)
    assert done.returncode == 1 and ('No space left' in done.stderr or 'Make room' in done.stderr) and 'Traceback' not in done.stderr, done.stderr
    (small_disk/'filler').unlink()
    make(small_disk/'notebooks'/'02_data.ipynb', 'print("there is room")')
    assert Project(small_disk).ledger.verify().ok
    assert [s.state for s in run(Project(small_disk), ['problem', 'data']).steps] == ['unchanged', 'done'] and not list(small_disk.rglob('.*.tmp'))


def test_the_end_of_a_run_is_told_to_the_channels_that_want_it(project):
    "Whatever the end; a channel that fails is logged and does not change the status; one that asked for alarms only hears nothing."
    rewrite(project, 'data', 'raise ValueError("no")')
    project.update_settings({'alarms.channels': [{'name': 'file', 'kind': 'file', 'on': ['run'], 'path': 'told.jsonl'}, {'name': 'broken', 'kind': 'command', 'on': ['run'], 'command': ['false']},
                                                 {'name': 'alarms', 'kind': 'file', 'path': 'alarms.jsonl'}]})
    assert run(project, ['problem']).exit_status == 0 and run(project, ['data']).exit_status == 1
    told = [json.loads(line) for line in (project.folder/'told.jsonl').read_text().splitlines()]
    assert [(t['headline'], t['facts']['exit_status']) for t in told] == [('test: 1 done', 0), ('test: 1 failed; data is failed', 1)] and 'ValueError: no' in told[1]['facts']['data']
    assert not (project.folder/'alarms.jsonl').exists() and 'broken' in ''.join(p.read_text() for p in (project.store/'logs').rglob('*') if p.is_file())
