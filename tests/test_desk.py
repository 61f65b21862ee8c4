"Desks under rough handling: two people at once, names that are long, right-to-left or pictures, a project that moved, no kernel."
import json, re, resource, shutil, signal, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from mlcycle.core import Project, escaped
from mlcycle.data import prepare_data
from mlcycle.data_desk import data_desk, set_role
from mlcycle.forms import Form, changes, undo, undoable, write
from mlcycle.jobs import Job, running, standing
from mlcycle.desk import Desk
from mlcycle.home import Beginning, home_desk
from mlcycle.problem_desk import problem_desk
from mlcycle.progress import progress_of
from waiting import PATIENCE, until

NAMES = ['x'*10_000, 'שלום', '😀 "quoted"', 'a.b\nc', '<script>alert(1)</script>']


@pytest.fixture
def project(tmp_path) -> Project:
    folder = tmp_path/'loans'
    folder.mkdir()
    (folder/'mlcycle.toml').write_text('# ours\n[project]\nname = "loans"\n[problem]\ntarget = "y"\ntask = "binary"\n[data]\nsources = [{path = "a.csv"}]\n')
    (folder/'a.csv').write_text('x,y\n1,0\n2,1\n')
    return Project(folder, actor='Ada')


@pytest.mark.parametrize('name', NAMES, ids=['long', 'right to left', 'emoji', 'dot and line break', 'markup'])
def test_a_column_of_any_name_is_left_out_and_back(project, name):
    set_role(project, name, 'left out')
    assert Project(project.folder).settings.data.drop == [name]
    page = Desk(project, 'Roles', [Form('Left out', ['data.drop'])]).html()
    assert '<script>' not in page and len(page) < 20_000
    undo(project)
    assert Project(project.folder).settings.data.drop == [] and '# ours' in (project.folder/'mlcycle.toml').read_text()


def test_columns_of_any_name_go_from_the_first_form_through_the_data_stage_and_its_desk(project):
    "A file with all of them: offered by name where a project begins, read, looked at, kept apart, and shown short and as text."
    rng, n = np.random.default_rng(0), 200
    x = rng.normal(size=n)
    rows = pd.DataFrame({**{name: x*i+rng.normal(size=n) for i, name in enumerate(NAMES)}, 'y': (x > 0).astype(int)})
    rows.to_csv(project.folder/'a.csv', index=False)
    beginning = Beginning(project.folder)
    beginning.widget()
    assert [v for _, v in beginning.asked['target'].widget.options] == list(rows)
    set_role(project, NAMES[0], 'protected'); set_role(project, NAMES[1], 'left out')
    report = prepare_data(Project(project.folder, actor='Ada'))
    roles = {c.name: c.role for c in report.plan.columns}
    assert list(roles) == list(rows) and roles[NAMES[1]] == 'dropped' and {roles[c] for c in NAMES[2:]} == {'feature'}
    for made in (data_desk, problem_desk):
        desk = made(Project(project.folder, actor='Ada'))
        desk.widget()
        page = desk.html()
        assert '<script' not in page and NAMES[0] not in page and len(page) < 200_000
    page = data_desk(project).html()
    assert all(escaped(name, 60) in page for name in NAMES[1:])


def test_two_people_writing_at_once_lose_nothing(project):
    code = ('import sys; from mlcycle.core import Project; from mlcycle.forms import write\n'
            'p = Project(sys.argv[1], actor=sys.argv[2])\n'
            'for i in range(1, 21): write(p, {sys.argv[3]: i})')
    both = [subprocess.Popen([sys.executable, '-c', code, project.folder, *who]) for who in (('Ada', 'development.trials'), ('Bob', 'monitoring.min_rows'))]
    assert [p.wait(PATIENCE) for p in both] == [0, 0]
    now = Project(project.folder).settings
    assert (now.development.trials, now.monitoring.min_rows) == (20, 20)


def test_a_moved_project_keeps_what_was_written_and_its_undo(project, tmp_path):
    set_role(project, 'x', 'protected')
    moved = Project(shutil.move(project.folder, tmp_path/'elsewhere'), actor='Bob')
    assert moved.settings.data.protected == ['x'] and undoable(moved).by == 'Ada'
    undo(moved)
    assert moved.settings.data.protected == []


def test_a_project_that_is_moved_while_its_desk_is_open_says_so_and_leaves_nothing_behind(project, tmp_path):
    form, job = Form('Budget', ['development.trials']), Job('data', 'Read')
    desk = Desk(project, 'Budget', [form, job])
    desk.widget()
    form.controls['development.trials'].widget.value = '9'
    assert not form.save.disabled
    moved = Path(shutil.move(project.folder, tmp_path/'elsewhere'))
    for act in (form.save.click, form.back.click, form.again.click):
        act()
        assert 'If the project was moved' in form.said.value and form.controls['development.trials'].read() == 9
    form.controls['development.trials'].widget.value = '10'
    assert form.save.disabled and 'If the project was moved' in form.preview.value
    job.go.click()
    assert 'If the project was moved' in job.box.value and not project.folder.exists()
    assert Project(moved).settings.development.trials != 9


def test_without_a_frontend_a_desk_is_complete_html_without_controls(project):
    page = home_desk(project)._repr_mimebundle_()
    assert 'application/vnd.jupyter.widget-view+json' not in page
    reading = home_desk(Project(project.folder, read_only=True))._repr_mimebundle_()['text/html']
    assert 'Run problem' in reading and '<svg' in reading and not re.search('<button|<select|<input', reading)


def test_a_full_disk_is_said_on_the_form_and_leaves_the_old_settings_whole(project):
    before, limit = (project.folder/'mlcycle.toml').read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    write(project, {'development.trials': 7})
    now = (project.folder/'mlcycle.toml').read_text()
    form = Form('Budget', ['development.trials'])
    Desk(project, 'Budget', [form]).widget()
    form.controls['development.trials'].widget.value = '9'
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(now)//2, limit[1]))
        form.save.click()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert 'File too large' in form.said.value and 'make room' in form.said.value and form.controls['development.trials'].read() == 9   # what was typed is still there
    assert [c.after for c in changes(project)] == [{'development.trials': 7}]   # no undo of what was not done
    form.save.click()
    assert Project(project.folder).settings.development.trials == 9 and 'Written' in form.said.value
    undo(project)
    assert (project.folder/'mlcycle.toml').read_text() == now != before and not list(project.folder.glob('*.tmp'))


def test_where_there_is_room_for_the_settings_but_not_for_their_undo_nothing_is_written(project):
    before, limit, journal = (project.folder/'mlcycle.toml').read_text(), resource.getrlimit(resource.RLIMIT_FSIZE), project.store/'settings.jsonl'
    journal.parent.mkdir()
    journal.write_text('\n'*(2*len(before)))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size+20, limit[1]))   # a part of a line
        with pytest.raises(OSError, match='File too large'): write(project, {'development.trials': 9})
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (project.folder/'mlcycle.toml').read_text() == before and not changes(project) and journal.stat().st_size == 2*len(before)


def test_a_line_torn_by_a_full_disk_takes_no_undo_with_it(project):
    write(project, {'development.trials': 7})
    with (project.store/'settings.jsonl').open('a') as file: file.write('\n{"at": "2026-')
    write(project, {'development.trials': 8})
    assert [c.after for c in changes(project)] == [{'development.trials': 7}, {'development.trials': 8}]
    undo(project)
    assert Project(project.folder).settings.development.trials == 7


def step_of(project: Project, work: str) -> None:
    "A data step that does nothing but some work."
    cells = [dict(cell_type='code', id=f'c{i}', metadata={'tags': ['parameters']} if not i else {}, source=s, outputs=[], execution_count=None)
             for i, s in enumerate(('project: str = "."  # folder of the project', work))]
    (project.folder/'notebooks').mkdir()
    (project.folder/'notebooks/02_data.ipynb').write_text(json.dumps(dict(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3'}}, nbformat=4, nbformat_minor=5)))


SLOW = ('from mlcycle.core import Project\nfrom mlcycle.progress import advance, long_work\nimport time\ndone = 0\n'
        'try:\n    with long_work(Project(project), "data"):\n        while done < 600: done += 1; advance(done, 600); time.sleep(1)\n'
        'except KeyboardInterrupt: pass\nassert done < 600')


def test_a_page_that_is_opened_again_finds_the_work_and_stops_it(project):
    "The browser was closed while the work ran: nothing ended, the new page shows it and takes no second start; Stop keeps what is done."
    step_of(project, SLOW)
    first, again = Job('data', 'Read'), Job('data', 'Read')
    gone, desk = Desk(project, 'Data', [first]), Desk(Project(project.folder, actor='Ada'), 'Data', [again])
    gone.widget()
    first.go.click()
    until(lambda: progress_of(project, 'data'))
    desk.widget()
    assert again.go.disabled and not again.end.disabled and again.process is None
    until(lambda: 'of at most 600' in again.box.value)
    again.begin(desk)
    assert 'running already' in again.box.value or again.busy
    again.end.click()
    until(lambda: not again.busy)
    assert standing(project, 'data').state == 'done' and not again.go.disabled
    assert [e.body['state'] for e in project.ledger.entries('run', 'data')] == ['started', 'done']
    first.process.wait(PATIENCE)


def test_a_button_that_is_pressed_where_nothing_has_changed_says_so(project):
    step_of(project, 'pass')
    job = Job('data', 'Read')
    Desk(project, 'Data', [job]).widget()
    for said in ('first run', 'Nothing that data reads has changed'):
        assert said not in job.box.value
        job.go.click()
        until(lambda: said in job.box.value)
    assert [e.body['state'] for e in project.ledger.entries('run', 'data')].count('done') == 1


def test_a_full_disk_starts_nothing_and_says_so(project):
    step_of(project, 'pass')
    job, limit = Job('data', 'Read'), resource.getrlimit(resource.RLIMIT_FSIZE)
    Desk(project, 'Data', [job]).widget()
    (project.store/'progress').mkdir(parents=True)
    (project.store/'progress/data.log').mkdir()   # nothing can be written there
    job.go.click()
    assert 'Is a directory' in job.box.value and not job.busy and not job.go.disabled and running(project, 'data') is None


def test_work_goes_on_when_the_kernel_that_began_it_is_killed(project):
    step_of(project, 'import time; time.sleep(1)')
    code = ('import sys, time; from mlcycle.core import Project; from mlcycle.jobs import start\n'
            'start(Project(sys.argv[1]), "data", {}); print("begun", flush=True); time.sleep(3600)')
    kernel = subprocess.Popen([sys.executable, '-c', code, project.folder], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout.readline() == 'begun\n'
    kernel.send_signal(signal.SIGKILL)
    kernel.wait(PATIENCE)
    until(lambda: standing(project, 'data').state == 'done')
