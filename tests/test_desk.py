"Desks under rough handling: two people at once, names that are long, right-to-left or pictures, a project that moved, no kernel."
import re, shutil, subprocess, sys
import pytest
from mlcycle.core import Project
from mlcycle.data_desk import set_role
from mlcycle.forms import Form, undo, undoable
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
