"Desks under rough handling: two people at once, names that are long, right-to-left or pictures, a project that moved, no kernel."
import json, re, resource, shutil, signal, subprocess, sys, time
import pytest
from mlcycle.core import Project
from mlcycle.data_desk import set_role
from mlcycle.forms import Form, changes, undo, undoable, write
from mlcycle.jobs import standing
from mlcycle.desk import Desk
from mlcycle.home import home_desk

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


def test_two_people_writing_at_once_lose_nothing(project):
    code = ('import sys; from mlcycle.core import Project; from mlcycle.forms import write\n'
            'p = Project(sys.argv[1], actor=sys.argv[2])\n'
            'for i in range(1, 21): write(p, {sys.argv[3]: i})')
    both = [subprocess.Popen([sys.executable, '-c', code, project.folder, *who]) for who in (('Ada', 'development.trials'), ('Bob', 'monitoring.min_rows'))]
    assert [p.wait(60) for p in both] == [0, 0]
    now = Project(project.folder).settings
    assert (now.development.trials, now.monitoring.min_rows) == (20, 20)


def test_a_moved_project_keeps_what_was_written_and_its_undo(project, tmp_path):
    set_role(project, 'x', 'protected')
    moved = Project(shutil.move(project.folder, tmp_path/'elsewhere'), actor='Bob')
    assert moved.settings.data.protected == ['x'] and undoable(moved).by == 'Ada'
    undo(moved)
    assert moved.settings.data.protected == []


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
    assert 'File too large' in form.said.value and form.controls['development.trials'].read() == 9   # said, and what was typed is still there
    assert (project.folder/'mlcycle.toml').read_text() == now != before and not list(project.folder.glob('*.tmp'))


def test_a_line_torn_by_a_full_disk_takes_no_undo_with_it(project):
    write(project, {'development.trials': 7})
    with (project.store/'settings.jsonl').open('a') as file: file.write('\n{"at": "2026-')
    write(project, {'development.trials': 8})
    assert [c.after for c in changes(project)] == [{'development.trials': 7}, {'development.trials': 8}]
    undo(project)
    assert Project(project.folder).settings.development.trials == 7


def test_work_goes_on_when_the_kernel_that_began_it_is_killed(project):
    cells = [dict(cell_type='code', id=f'c{i}', metadata={'tags': ['parameters']} if not i else {}, source=s, outputs=[], execution_count=None)
             for i, s in enumerate(('project: str = "."  # folder of the project', 'import time; time.sleep(1)'))]
    (project.folder/'notebooks').mkdir()
    (project.folder/'notebooks/02_data.ipynb').write_text(json.dumps(dict(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3'}}, nbformat=4, nbformat_minor=5)))
    code = ('import sys, time; from mlcycle.core import Project; from mlcycle.jobs import start\n'
            'start(Project(sys.argv[1]), "data", {}); print("begun", flush=True); time.sleep(60)')
    kernel = subprocess.Popen([sys.executable, '-c', code, project.folder], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout.readline() == 'begun\n'
    kernel.send_signal(signal.SIGKILL)
    kernel.wait(10)
    until = time.monotonic()+60
    while standing(project, 'data').state != 'done' and time.monotonic() < until: time.sleep(.3)
    assert standing(project, 'data').state == 'done'
