"What is written for others is read by the others' own readers: shell, systemd, GitHub's schema, Airflow's imports, jupyter-scheduler's models."
import json, re, shlex, shutil, subprocess, sys, types
import pytest, yaml
from click.testing import CliRunner
from mlcycle.cli import main
from mlcycle.core import Project, SettingsError
from mlcycle.project import copy_steps
from mlcycle.schedule import slots
from mlcycle.timetables import KINDS, write_timetable
from test_schedule import project_with

SCHEDULE = 'zone = "Europe/Berlin"\nmonitoring = "30 2 * * *"\nretraining = "0 5 * * MON"'


@pytest.fixture
def project(tmp_path) -> Project:
    "In a folder whose name means something to shells, cron, systemd and printf."
    project = project_with(tmp_path/'50% of $HOME "it\'s"', SCHEDULE, name='Loans & more %n ${{ x }}')
    copy_steps(project.folder/'notebooks')
    return project




def test_cron(project):
    (path,) = write_timetable(project, 'cron', every=10)
    comment, line = path.read_text().splitlines()
    when, command = re.fullmatch(r'((?:\S+ ){5})(.*)', line).groups()
    assert comment.startswith('#') and when == '*/10 * * * * ' and '%' not in command.replace(r'\%', '')      # a bare % would end the command
    words = shlex.split(command.replace(r'\%', '%'))
    assert words[1:] == ['--project', str(project.folder), 'schedule', 'run-due'] and words[0].endswith('mlcycle')
    assert subprocess.run(command.replace(r'\%', '%'), shell=True, capture_output=True, text=True).returncode == 0   # it runs; nothing is due
    assert [s.state for s in slots(project, 'monitoring')] == ['begun']                                             # counting began with the writing


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason='systemd-analyze is not installed')
def test_systemd(project):
    service, timer = write_timetable(project, 'systemd')
    checked = subprocess.run(['systemd-analyze', 'verify', '--man=no', service, timer], capture_output=True, text=True)
    ours = [line for line in checked.stderr.splitlines() if service.stem in line]
    assert not ours, ours
    when = re.search('OnCalendar=(.*)', timer.read_text())[1]
    assert 'Next elapse' in subprocess.run(['systemd-analyze', 'calendar', when], capture_output=True, text=True, check=True).stdout
    assert '50%% of $$HOME' in service.read_text() and 'Persistent=true' in timer.read_text()


@pytest.mark.parametrize('more, runner', [('', ['self-hosted']), ('[store]\nledger = "postgresql://ada:${LEDGER_PASSWORD}@db/x"\ntables = "s3://bucket/tables"', 'ubuntu-latest')])
def test_github(tmp_path, more, runner):
    project = project_with(tmp_path/'p', SCHEDULE, more=more)
    from mlcycle.timetables import github_workflow
    ((name, text),) = github_workflow(project, 5).files.items()
    (tmp_path/name).write_text(text)
    subprocess.run([sys.executable, '-m', 'check_jsonschema', '--builtin-schema', 'vendor.github-workflows', tmp_path/name], check=True, capture_output=True)
    workflow = yaml.safe_load(text)
    job = workflow['jobs']['run-due']
    assert {(m['cron'], m['timezone']) for m in workflow[True]['schedule']} == {('30 2 * * *', 'Europe/Berlin'), ('0 5 * * MON', 'Europe/Berlin')}
    assert job['runs-on'] == runner and 'schedule run-due' in job['steps'][-1]['run'] and workflow['permissions'] == {'contents': 'read'}
    assert job.get('env', {}) == ({} if not more else {'LEDGER_PASSWORD': '${{ secrets.LEDGER_PASSWORD }}'})


def test_github_knows_less_of_cron(tmp_path):
    with pytest.raises(SettingsError, match='GitHub knows no L'): write_timetable(project_with(tmp_path, 'monitoring = "0 2 L * *"'), 'github')


def test_airflow(project, monkeypatch):
    "The file against stand-ins that keep what they are given; a real Airflow is too large for this gate."
    made, tasks = [], []
    class DAG:
        def __init__(self, **facts): self.facts, self.dag_id = facts, facts['dag_id']; made.append(facts)
        def __enter__(self): return self
        def __exit__(self, *error): pass
    for name, parts in {'airflow': {}, 'airflow.sdk': {'DAG': DAG}, 'airflow.timetables': {}, 'airflow.providers': {}, 'airflow.providers.papermill': {},
                        'airflow.timetables.trigger': {'CronTriggerTimetable': lambda cron, timezone: (cron, timezone)}, 'airflow.providers.papermill.operators': {},
                        'airflow.providers.papermill.operators.papermill': {'PapermillOperator': lambda **facts: tasks.append(facts)}}.items():
        module = types.ModuleType(name)
        module.__dict__.update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    (path,) = write_timetable(project, 'airflow')
    exec(compile(path.read_text(), path.name, 'exec'), space := {})
    assert [d['schedule'] for d in made] == [('30 2 * * *', 'Europe/Berlin'), ('0 5 * * MON', 'Europe/Berlin')]
    assert all(d['catchup'] is False and d['max_active_runs'] == 1 and d['start_date'].tzinfo and re.fullmatch(r'[\w.-]+', d['dag_id']) and d['dag_id'] in space for d in made)
    assert [t['task_id'] for t in tasks] == ['monitoring', 'retraining'] and tasks[0]['parameters'] == {'project': str(project.folder)}
    assert {t['kernel_name'] for t in tasks} == {'mlcycle'}   # Airflow's own Python has no mlcycle
    assert tasks[0]['input_nb'] == f'{project.folder}/notebooks/06_monitoring.ipynb' and tasks[0]['output_nb'].endswith('{{ ts_nodash }}.ipynb') and project.reports.is_dir()


def test_jupyter_scheduler(project, tmp_path):
    "Created in jupyter-scheduler's own database, through its own model."
    from jupyter_scheduler.environments import CondaEnvironmentManager
    from jupyter_scheduler.models import CreateJobDefinition
    from jupyter_scheduler.orm import create_tables
    from jupyter_scheduler.scheduler import Scheduler
    url = f'sqlite:///{tmp_path/"jobs.sqlite"}'
    create_tables(url)
    scheduler = Scheduler(root_dir=str(project.folder), environments_manager=CondaEnvironmentManager(), db_url=url)
    scheduler.staging_path = str(tmp_path/'staging')
    scheduler.task_runner = None
    for path in write_timetable(project, 'jupyter'):
        id = scheduler.create_job_definition(CreateJobDefinition(**json.loads(path.read_text())))
        made = scheduler.get_job_definition(id)
        assert made.timezone == 'Europe/Berlin' and made.parameters == {'project': repr(str(project.folder))} and made.active
        assert made.runtime_environment_name in [e.name for e in CondaEnvironmentManager().list_environments()]


def test_the_command(project):
    done = CliRunner().invoke(main, ['--project', str(project.folder), 'schedule', 'write', 'systemd'])
    assert done.exit_code == 0 and 'systemctl --user enable --now' in done.output
    assert CliRunner().invoke(main, ['--project', str(project.folder), 'schedule', 'write', 'cron', '--every', '7']).exit_code == 2


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_scheduled_writes_nothing(tmp_path, kind):
    with pytest.raises(SettingsError, match='Nothing is scheduled'): write_timetable(project_with(tmp_path, ''), kind)
    assert not (tmp_path/'schedule').exists()
