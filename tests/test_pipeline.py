"""Running notebooks: what papermill lets through, what a crash leaves behind, and what is run again."""
import json, os, signal, subprocess, sys, threading, uuid
from datetime import datetime
from pathlib import Path
import nbformat, psutil, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from mlcycle.core import Blocked, DataError, Project, SettingsError
from mlcycle.execution import parameters_of, run_notebook
from mlcycle.kernels import MARK, Limits, PlainKernels, WarmKernels
from mlcycle.pipeline import STEPS, needs, run, status
from waiting import PATIENCE, until

TOML = '''[project]
name = "test"
[problem]
target = "y"
task = "binary"
[data]
sources = [{path = "data.csv"}]
'''
HEAD = 'project: str = "."  # folder\nn: int = 1  # how many\nrate: float = 0.5\nflag: bool = False\nwords: str = "a=b"\noptions: dict = {"a": 1}'


def make(path: Path, *sources: str, parameters: str | None=HEAD) -> Path:
    cells = [new_markdown_cell('# Step')]+([new_code_cell(parameters, metadata={'tags': ['parameters']})] if parameters else [])
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells+[new_code_cell(s) for s in sources]), path)
    return path


class Noon(datetime):
    "The clock of the steps that depend on the date: the tests' midnight is nobody's affair."
    @classmethod
    def now(cls, tz=None): return cls(2026, 11, 2, 12, tzinfo=tz)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.setattr('mlcycle.fingerprints.datetime', Noon)
    (tmp_path/'mlcycle.toml').write_text(TOML)
    (tmp_path/'data.csv').write_text('x,y\n1,0\n2,1\n')
    for step in STEPS.values(): make(tmp_path/'notebooks'/step.notebook, 'print(n)')
    return Project(tmp_path, actor='Ada')


def rewrite(project: Project, stage: str, *sources: str, **options) -> Path:
    return make(project.folder/'notebooks'/STEPS[stage].notebook, *sources, **options)


KERNELS = {'warm': WarmKernels, 'papermill': PlainKernels}
LIMITS = (6, 40, 300)   # seconds; the longer ones where the machine is so slow that a kernel is not up by then


def execute(project: Project, *sources: str, kind='warm', limit=PATIENCE, **parameters):
    source = rewrite(project, 'problem', *sources)
    with KERNELS[kind](project.folder, Limits(seconds=limit)) as kernels:
        return run_notebook(source, project.folder/'out'/'step.ipynb', parameters=parameters, kernels=kernels)


@pytest.mark.parametrize('name', ["n=1;open('pwned','w').write('x');n", 'a b', 'class', '__x', 'n\n', 'zzz', ''])
def test_a_name_is_never_code(project, name):
    with pytest.raises(SettingsError, match='No parameter'): run(project, ['problem'], parameters={name: '1'})
    assert not (project.folder/'pwned').exists() and project.ledger.entries('run') == []


@pytest.mark.parametrize('text', ['"""', '\\', 'two\nlines', '{x}', '🦆', "it's", 'x'*100_000])
def test_values_arrive_as_sent(project, text):
    done = execute(project, 'import json; json.dump(words, open("got.json", "w"))', words=text)
    assert done.state == 'done' and json.loads((project.folder/'got.json').read_text()) == text


def test_types_are_the_declared_ones(project):
    rewrite(project, 'problem', 'import json; json.dump([n, rate, flag, options], open("got.json", "w"))')
    run(project, ['problem'], parameters={'n': '7', 'rate': '0.1', 'flag': 'true', 'options': '{"b": 2}'})
    assert json.loads((project.folder/'got.json').read_text()) == [7, 0.1, True, {'b': 2}]
    for bad in ({'n': 'seven'}, {'n': '1.5'}, {'flag': 'perhaps'}):
        with pytest.raises(SettingsError, match=next(iter(bad))): run(project, ['problem'], parameters=bad)


def test_without_a_parameters_cell_nothing_runs(project):
    rewrite(project, 'data', 'n = 1', parameters=None)
    with pytest.raises(DataError, match="tagged 'parameters'"): run(project, ['data'], parameters={'n': '2'})


@pytest.mark.parametrize('content, what', [('not json', 'not a notebook'), ('{}', 'not a notebook'), ('<<<<<<< ours\n{}', 'merge conflict'), ('', 'not a notebook')])
def test_a_file_that_is_no_notebook(project, content, what):
    (project.folder/'notebooks'/'02_data.ipynb').write_text(content)
    with pytest.raises(DataError, match=what): run(project)


@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('end, why', [('os.kill(os.getpid(), 9)', 'kernel died'), ('os._exit(0)', 'kernel died'), ('sys.exit(0)', 'stopped early'), ('sys.exit(3)', 'SystemExit')])
def test_an_end_in_the_middle_is_a_failure(project, end, why, kind):
    done = execute(project, 'print("before")', f'import os, sys; {end}', 'print("after")', kind=kind)
    assert done.state == 'failed' and why in done.why and done.exit_status == 1
    saved = nbformat.read(project.folder/'out'/'step.ipynb', as_version=4)
    assert saved.cells[-1].metadata.papermill.status != 'completed' and saved.metadata.mlcycle.state == 'failed'
    assert 'before' in str([c.get('outputs') for c in saved.cells])


@pytest.mark.parametrize('kind', KERNELS)
def test_a_loop_without_end_is_stopped(project, kind):
    for limit in LIMITS:
        done = execute(project, 'print("so far", flush=True)', 'while True: pass', limit=limit, kind=kind)
        assert done.state == 'failed' and 'time limit' in done.why
        saved = (project.folder/'out'/'step.ipynb').read_text()
        if 'so far\\n' in saved: break
    else: raise AssertionError(saved)


def marked_processes() -> list:
    found = []
    for p in psutil.process_iter():
        try:
            if MARK in p.environ() and p.status() != psutil.STATUS_ZOMBIE: found.append(p)
        except (psutil.Error, OSError): pass   # it ended meanwhile, or is somebody else's
    return [p for p in found if p.pid != os.getpid()]


DAEMON = '''import subprocess, sys
code = "import os, time\\nif os.fork(): os._exit(0)\\nos.setsid()\\nif os.fork(): os._exit(0)\\ntime.sleep(900)"
subprocess.run([sys.executable, '-c', code, words])
subprocess.Popen(['sleep', '901', words])'''   # sleeps so long and 0 more


@pytest.mark.parametrize('kind', KERNELS)
def test_nothing_is_left_behind(project, kind):
    mine = f'0.{uuid.uuid4().int}'   # another test may be at the same beside this one
    done = execute(project, DAEMON, kind=kind, words=mine)
    assert done.state == 'done' and len(done.left_behind) >= 1
    assert not [p for p in marked_processes() if mine in p.cmdline()]


def test_a_failing_cell_saves_the_notebook_and_fails_the_run(project):
    rewrite(project, 'data', 'print("kept")', 'raise ValueError("<script>alert(1)</script>")')
    done = run(project)
    assert [s.state for s in done.steps] == ['done', 'failed'] and done.exit_status == 1
    assert 'ValueError: <script>' in done.steps[1].why
    page = (project.folder/done.steps[1].report).read_text()
    assert 'kept' in page and '<script' not in page and 'Content-Security-Policy' in page
    assert status(project)['stages'][1]['state'] == 'failed'


def test_only_what_changed_is_run_again(project):
    assert [s.state for s in run(project).steps] == ['done']*9
    assert [s.state for s in run(project).steps] == ['unchanged']*9
    (project.folder/'data.csv').write_text('x,y\n1,0\n2,1\n3,1\n')
    assert [s.stage for s in run(project).steps if s.state == 'done'] == ['problem', 'data']
    rewrite(project, 'validation', 'print(n+1)')
    again = run(project)
    assert [(s.stage, s.why) for s in again.steps if s.state == 'done'] == [('validation', 'changed: notebook')]
    project.update_settings({'retraining.max_age_days': 90})
    assert [s.stage for s in run(project).steps if s.state == 'done'] == ['retraining']
    assert [s.stage for s in run(project, ['data'], force=True).steps if s.state == 'done'] == ['data']
    assert [s.stage for s in run(project, start='governance').steps] == ['governance', 'retirement']


def test_failure_stops_and_the_next_run_goes_on_from_there(project):
    rewrite(project, 'development', 'raise RuntimeError("disk")')
    assert [s.state for s in run(project).steps] == ['done', 'done', 'failed']
    rewrite(project, 'development', 'print(n)')
    assert [s.state for s in run(project).steps] == ['unchanged', 'unchanged']+['done']*7


def test_a_step_that_waits_for_a_person_is_blocked_and_the_rest_is_done(project):
    rewrite(project, 'deployment', 'from mlcycle.core import Blocked\nraise Blocked("waits for a signature. Next: mlcycle approve 1")')
    done = run(project)
    assert [s.state for s in done.steps] == ['done']*4+['blocked']+['done']*4 and done.exit_status == 1
    assert status(project)['stages'][4]['state'] == 'blocked' and 'mlcycle approve' in status(project)['stages'][4]['why']
    assert [s.state for s in run(project).steps] == ['unchanged']*4+['blocked']+['unchanged']*4


def test_a_notebook_edited_while_it_runs_counts_next_time(project):
    rewrite(project, 'problem', 'import time, pathlib; pathlib.Path("begun").write_text("")\nwhile not pathlib.Path("edited").exists(): time.sleep(.05)')
    worker = threading.Thread(target=lambda: run(Project(project.folder), ['problem']))
    worker.start()
    until((project.folder/'begun').exists)
    rewrite(project, 'problem', 'print("edited")')
    (project.folder/'edited').write_text('')
    worker.join()
    assert status(project)['stages'][0]['state'] == 'stale'
    assert run(project, ['problem']).steps[0].why == 'changed: notebook'


RUNNER = 'import sys; from mlcycle.core import Project; from mlcycle.pipeline import run; run(Project(sys.argv[1]))'


def test_kill_minus_nine_of_the_runner(project):
    "The warm process and its kernels go with it; what had ended stays done, what had not is run again."
    rewrite(project, 'data', 'import time, pathlib; pathlib.Path("begun").write_text(""); time.sleep(3600)')
    process = subprocess.Popen([sys.executable, '-c', RUNNER, str(project.folder)])
    ended = lambda: [e.subject for e in project.ledger.entries('run') if e.body['state'] == 'done']
    until(lambda: ended() == ['problem'] and (project.folder/'begun').exists())
    with pytest.raises(Blocked, match='under way'): run(project)
    kin = psutil.Process(process.pid).children(recursive=True)
    assert len(kin) >= 2
    process.send_signal(signal.SIGKILL); process.wait()
    assert 'interrupted' in status(project)['stages'][1]['why']
    assert psutil.wait_procs(kin, timeout=PATIENCE)[1] == []
    rewrite(project, 'data', 'print(n)')
    assert [s.state for s in run(project).steps] == ['unchanged']+['done']*8
    assert project.ledger.verify().ok and not list(project.reports.glob('*/.*'))


NEVER_TWICE = 'import time, pathlib; p = pathlib.Path("tried"); n = len(p.read_text()) if p.exists() else 0; p.write_text("x"*(n+1)); assert n > 1, "not yet"'


def test_a_step_is_tried_again_as_often_as_allowed_and_never_for_a_wrong_call(project):
    rewrite(project, 'data', NEVER_TWICE)
    project.update_settings({'run.retries': 1})
    done = run(project, ['data'])
    assert done.exit_status == 1 and done.steps[0].attempts == 2 and 'not yet' in done.steps[0].why
    done = run(project, ['data'])
    assert done.exit_status == 0 and done.steps[0].attempts == 1
    rewrite(project, 'data', 'from mlcycle.core import DataError\nraise DataError("no such column")')
    assert run(project, ['data']).steps[0].attempts == 1


def test_the_deadline_of_a_run_ends_what_runs_and_begins_nothing_more(project):
    rewrite(project, 'data', 'print("so far")', 'import time; time.sleep(3600)')
    run(project, ['problem'])
    for limit in LIMITS:
        project.update_settings({'run.deadline_seconds': float(limit), 'run.retries': 3})
        done = run(project)
        assert done.exit_status == 1
        if done.steps[1:] and done.steps[1].report and 'so far\n' in (project.folder/done.steps[1].report).read_text(): break
    assert [(s.stage, s.state) for s in done.steps] == [('problem', 'unchanged'), ('data', 'failed')] and f'deadline of {limit} s' in done.steps[1].why


def test_steps_that_need_nothing_of_each_other_run_side_by_side(project):
    "Each waits for the other to begin; one after another they would wait for ever."
    for mine, other in (('problem', 'data'), ('data', 'problem')):
        rewrite(project, mine, f'import time, pathlib; pathlib.Path("{mine}.begun").write_text("")\nwhile not pathlib.Path("{other}.begun").exists(): time.sleep(.05)')
    project.update_settings({'run.step_seconds': float(PATIENCE)})
    assert [s.state for s in run(project, ['problem', 'data']).steps] == ['done', 'done']


def test_what_a_step_reads_is_left_by_a_step_that_it_needs():
    "The order of the steps covers the evidence that they declare."
    leaves = {'problem': {'problem', 'feasibility'}, 'data': {'schema', 'split', 'snapshot'}, 'development': {'model', 'leaderboard'},
              'validation': {'validation'}, 'deployment': {'bundle'}, 'monitoring': {'window', 'alarm'}, 'retraining': {'comparison'}}
    derived = {'unvalidated': {'model'}, 'standing': {'validation', 'model'}}
    order = list(STEPS)
    for stage, step in STEPS.items():
        reads = set().union(*(derived.get(e, {e.partition(':')[0]}) for e in step.evidence))
        for earlier in order[:order.index(stage)]:
            if leaves.get(earlier, set()) & reads: assert earlier in needs(stage), (stage, earlier)
        assert needs(stage) <= set(order[:order.index(stage)])


def by_stream(outputs: list) -> list:
    "A cell's outputs, each stream's text in one piece: how two streams interleave, and where they are cut, is the system's affair."
    text = {}
    for o in outputs:
        if o.output_type == 'stream': text[o.name] = text.get(o.name, '')+o.text
    return [dict(sorted(text.items())), [o for o in outputs if o.output_type != 'stream']]


FROM_A_CHILD = '''import time
came, write = [], sys.stdout.write
sys.stdout.write = lambda text: (came.append(text), write(text))[1]
_ = subprocess.run(["echo", "from a child"])
while "from a child" not in "".join(came): time.sleep(.05)   # a thread of the kernel reads it, after the child has ended
del sys.stdout.write'''


def test_both_kinds_of_kernels_leave_the_same_notebook(project, monkeypatch):
    "Streams, rich outputs, errors in order, widgets with their state, an Output widget, updated displays, a child's output."
    cells = ['import sys, os, subprocess; print("out"); print("err", file=sys.stderr); 7', 'from IPython.display import display, HTML, update_display\n'
             'display(HTML("<b>x</b>"), display_id="one"); update_display(HTML("<b>y</b>"), display_id="one")',
             'import ipywidgets as w\nslider = w.IntSlider(value=3)\nout = w.Output()\nwith out: print("inside")\ndisplay(slider, out)',
             'import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()', FROM_A_CHILD, '{"cwd": os.getcwd(), "main": __name__}',
             '%%bash\necho magic', 'import numpy as np; rng = np.random.default_rng(0); (rng.normal(size=(60, 60)) @ rng.normal(size=(60, 60))).sum().hex()']
    seen = {}
    monkeypatch.delenv('PYTEST_CURRENT_TEST')   # ipykernel captures no file descriptors under pytest
    for kind in KERNELS:
        done = execute(project, *cells, kind=kind)
        assert done.state == 'done', done.why
        made = nbformat.read(project.folder/'out'/'step.ipynb', as_version=4)
        state = list(made.metadata.widgets['application/vnd.jupyter.widget-state+json']['state'].values())
        outputs = json.dumps([by_stream(c.get('outputs', [])) for c in made.cells])
        for i, model in enumerate(sorted({o['data']['application/vnd.jupyter.widget-view+json']['model_id'] for c in made.cells for o in c.get('outputs', [])
                                          if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})}, key=outputs.index)): outputs = outputs.replace(model, str(i))
        seen[kind] = outputs, sorted(s['model_name'] for s in state), sorted(str(s['state'].get('value', s['state'].get('outputs'))) for s in state)
        assert 'from a child' in outputs and 'inside' in str(state) and 'image/png' in outputs
    assert seen['warm'] == seen['papermill']


def test_help_notebook_of_papermill_explains_the_parameters():
    from importlib.resources import files
    for step in STEPS.values():
        path = files('mlcycle.steps')/step.notebook
        known = parameters_of(nbformat.read(str(path), as_version=4), step.notebook)
        assert next(iter(known)) == 'project' and all(p.type and p.help for p in known.values()), step.notebook
    shown = subprocess.run([sys.executable, '-m', 'papermill', '--help-notebook', str(files('mlcycle.steps')/'03_development.ipynb')],
                           capture_output=True, text=True).stdout
    assert 'trials: int' in shown and 'mlcycle.toml' in shown


FIGURES = """from typing import ClassVar
from mlcycle.core import Estimate, Project, Result
class Told(Result):
    kind: ClassVar[str] = 'validation'
    stage: ClassVar[str] = 'validation'
    verdict: str
    metrics: dict[str, Estimate]
    headline = property(lambda self: f'Version 1: {self.verdict}, <b>really</b>')
here = Project(project)
told = Told(verdict='pass' if n == 1 else 'fail', metrics={'roc_auc': Estimate(metric='roc_auc', value=.8-n/50, low=.79-n/50, high=.81-n/50, n=900)})
here.record(told, subject='1')
told"""


def test_a_report_opens_with_what_it_says_what_changed_and_what_waits(project):
    "Ten lines: verdict, the figures of the run before beside those of this one, decisions; the page of the run links every step."
    from bs4 import BeautifulSoup
    rewrite(project, 'validation', FIGURES)
    rewrite(project, 'deployment', 'from mlcycle.core import Blocked\nraise Blocked("waits for a signature. Next: mlcycle approve 1")')
    first = run(project, ['validation', 'deployment'])
    again = run(project, ['validation', 'deployment'], parameters={'n': '2'})
    opening = [BeautifulSoup((project.folder/r.steps[0].report).read_text(), 'html.parser').find('section', class_='summary') for r in (first, again)]
    assert 'Nothing earlier to compare with' in opening[0].text and 'Version 1: pass, <b>really</b>' in opening[0].text
    rows = [[c.text for c in r.find_all('td')] for r in opening[1].find_all('tr')][1:]
    assert rows == [['Verdict', 'pass', 'fail', ''], ['roc_auc', '0.780 [0.770, 0.790] (n = 900)', '0.760 [0.750, 0.770] (n = 900)', '-0.020, intervals overlap']]
    assert len(opening[1].find_all(['p', 'tr', 'li'])) <= 10 and 'class="summary"' in (project.folder/again.steps[0].report).read_text()[:4000]
    page = BeautifulSoup((project.folder/again.index).read_text(), 'html.parser')
    assert again.index == f'reports/{again.run}/index.html' and 'mlcycle approve 1' in page.ul.text and 'parameter n (not given → 2)' in page.table.text
    assert all((project.folder/again.index).parent.joinpath(a['href']).exists() for a in page.find_all('a')) and len(page.find_all('a')) == 2
    assert run(project, ['validation', 'deployment'], parameters={'n': '2'}).index == ''   # nothing ran
