"Each slot once: with two schedulers, over clock changes, after sleep, beside a run that lasts, after a crash."
import json, os, signal, subprocess, sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo
import pytest
from click.testing import CliRunner
from mlcycle.alarms import acknowledge_alarm, current_alarms
from mlcycle.cli import main
from mlcycle.core import Blocked, Project, SettingsError
from mlcycle.log import last_event, log_event, read_log
from mlcycle.schedule import begin, claim, finish, run_due, slots, upcoming
from mlcycle.silence import silence

TOML = '''
[project]
name = "{name}"
[problem]
task = "binary"
target = "y"
[data]
sources = [{{name = "loans", path = "loans.csv"}}]
[schedule]
{schedule}
{more}
'''
HOURLY = 'monitoring = "0 * * * *"'
utc = lambda *parts: datetime(*parts, tzinfo=timezone.utc)


def project_with(folder, schedule, more='', name='Loans') -> Project:
    folder.mkdir(exist_ok=True)
    (folder/'mlcycle.toml').write_text(TOML.format(schedule=schedule, more=more, name=name))
    return Project(folder, actor='Ada')


def done(project, step): return 'done', ''
def states(project, step='monitoring') -> list[str]: return [s.state for s in slots(project, step)]


@pytest.mark.parametrize('zone, cron, first, days, jitter', [                                                  # N20
    ('Europe/Berlin', '30 2 * * *', utc(2026, 3, 26), 7, 1), ('Europe/Berlin', '30 2 * * *', utc(2026, 10, 22), 7, 1),
    ('US/Pacific', '0 0 * * *', utc(2022, 3, 10, 9), 7, 17), ('America/New_York', '30 1 * * *', utc(2026, 10, 30), 5, 5),
    ('Australia/Lord_Howe', '15 2 * * *', utc(2026, 10, 1), 7, 3)])
def test_one_run_a_calendar_day_over_clock_changes(tmp_path, zone, cron, first, days, jitter):
    project = project_with(tmp_path, f'zone = "{zone}"\nmonitoring = "{cron}"')
    begin(project, first)
    ran, now = [], first
    while now < first+timedelta(days=days):
        now += timedelta(minutes=30, seconds=(now.minute*7) % jitter)
        ran += run_due(project, now=now, run=done)
    local = [datetime.fromisoformat(s.slot).astimezone(ZoneInfo(zone)).date() for s in ran]
    assert len(local) == len(set(local)) == days and local == [local[0]+timedelta(days=i) for i in range(days)]
    assert set(states(project)) == {'begun', 'done'}


def test_three_days_of_sleep_are_caught_up_once(tmp_path):                                                        # N21
    project = project_with(tmp_path, HOURLY)
    begin(project, utc(2026, 4, 1, 0, 30))
    (slot,) = run_due(project, now=utc(2026, 4, 4, 0, 30), run=done)
    assert slot.slot == '2026-04-04T00:00:00+00:00' and states(project) == ['begun', *['missed']*71, 'done']
    assert all('caught up by the run for 2026-04-04T00:00' in s.why for s in slots(project) if s.state == 'missed')
    assert run_due(project, now=utc(2026, 4, 4, 0, 31), run=done) == []


def test_a_new_schedule_owes_nothing_and_a_clock_that_steps_back_repeats_nothing(tmp_path):
    project = project_with(tmp_path, HOURLY)
    assert run_due(project, now=utc(2026, 4, 1, 12, 30), run=done) == []
    assert len(run_due(project, now=utc(2026, 4, 1, 13, 1), run=done)) == 1
    assert run_due(project, now=utc(2026, 4, 1, 12, 59), run=done) == run_due(project, now=utc(2026, 4, 1, 13, 2), run=done) == []
    project = project_with(tmp_path, 'monitoring = "*/10 * * * *"')
    assert run_due(project, now=utc(2026, 4, 2, 12, 5), run=done) == [] and len(run_due(project, now=utc(2026, 4, 2, 12, 10), run=done)) == 1


RACER = '''
import os, sys
from datetime import datetime, timedelta, timezone
from mlcycle.core import Project
from mlcycle.schedule import run_due
project, start = Project(sys.argv[1], actor=sys.argv[2]), datetime(2026, 4, 1, 0, 30, tzinfo=timezone.utc)
def run(project, step):
    os.close(os.open(project.folder/'busy', os.O_CREAT | os.O_EXCL))   # fails when two run at once
    os.unlink(project.folder/'busy')
    return 'done', ''
print('ready', flush=True)
for i in range(1, int(sys.argv[3])+1):
    sys.stdin.readline()
    for slot in run_due(project, now=start+timedelta(hours=i), run=run):
        with open(project.folder/'ran', 'a') as f: f.write(slot.slot+'\\n')
    print('looked', flush=True)
'''


def race(folder, hours, *, in_step=False) -> list[str]:
    "Two processes that look at the same hours, each as fast as it can or both at once hour by hour; what ran."
    racers = [subprocess.Popen([sys.executable, '-c', RACER, folder, name, str(hours)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in 'AB']
    def go(lines):
        for r in racers: r.stdin.write('go\n'*lines); r.stdin.flush()
        assert [r.stdout.readline() for _ in range(lines) for r in racers] == ['looked\n']*2*lines
    for r in racers: assert r.stdout.readline() == 'ready\n'
    for lines in [1]*hours if in_step else [hours]: go(lines)
    for r in racers: assert r.wait(120) == 0
    return (folder/'ran').read_text().split('\n')[:-1]


def test_two_schedulers_start_each_slot_once(tmp_path):                                                           # N18
    project = project_with(tmp_path, HOURLY)
    begin(project, utc(2026, 4, 1, 0, 30))
    ran = race(tmp_path, 50)
    found = states(project)
    assert len(ran) == len(set(ran)) == found.count('done') and found.count('done')+found.count('missed') == 50
    assert set(found) <= {'begun', 'done', 'missed'}                                      # one may overtake the other, which then catches up


def test_two_schedulers_that_look_at_the_same_moment_miss_nothing(tmp_path):                                      # N18
    project = project_with(tmp_path, HOURLY)
    begin(project, utc(2026, 4, 1, 0, 30))
    ran = race(tmp_path, 50, in_step=True)
    assert len(ran) == len(set(ran)) == 50 and states(project) == ['begun', *['done']*50]


def test_two_schedulers_on_a_database(tmp_path, postgres):
    project = project_with(tmp_path, HOURLY, more=f'[store]\nledger = "{postgres}"', name='scheduled')
    begin(project, utc(2026, 4, 1, 0, 30))
    ran = race(tmp_path, 25)
    found = states(project)
    assert len(ran) == len(set(ran)) == found.count('done') and found.count('done')+found.count('missed') == 25 and not (tmp_path/'store/schedule.db').exists()


@pytest.mark.parametrize('overlap, expected', [('queue', ['begun', 'running', 'missed', 'queued']), ('skip', ['begun', 'running', 'skipped', 'skipped'])])
def test_never_two_at_once(tmp_path, overlap, expected):                                                          # N19
    project = project_with(tmp_path, f'overlap = "{overlap}"\n{HOURLY}')
    begin(project, utc(2026, 4, 1, 0, 30))
    slot = claim(project, 'monitoring', utc(2026, 4, 1, 1, 1))
    for hour in (2, 3): assert run_due(project, now=utc(2026, 4, 1, hour, 1), run=done) == []
    assert states(project) == expected and {s.policy for s in slots(project)[1:]} == {overlap}
    finish(project, slot, 'done', '')
    again = run_due(project, now=utc(2026, 4, 1, 3, 30), run=done)
    assert [s.slot[11:13] for s in again] == (['03'] if overlap == 'queue' else [])


def test_a_run_that_was_killed_does_not_block_the_next(tmp_path):
    project = project_with(tmp_path, HOURLY)
    begin(project, utc(2026, 4, 1, 0, 30))
    code = ('import sys, time\nfrom datetime import datetime, timezone\nfrom mlcycle.core import Project\nfrom mlcycle.schedule import claim\n'
            'print(claim(Project(sys.argv[1]), "monitoring", datetime(2026, 4, 1, 1, 1, tzinfo=timezone.utc)).state, flush=True)\ntime.sleep(3600)')
    runner = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert runner.stdout.readline() == 'running\n' and run_due(project, now=utc(2026, 4, 1, 1, 2), run=done) == []
    runner.send_signal(signal.SIGKILL); runner.wait()
    assert len(run_due(project, now=utc(2026, 4, 1, 2, 1), run=done)) == 1 and states(project) == ['begun', 'interrupted', 'done']


def test_a_busy_project_waits_and_a_failure_is_told(tmp_path):
    project = project_with(tmp_path, HOURLY)
    begin(project, utc(2026, 4, 1, 0, 30))
    def busy(project, step): raise Blocked('Another run is under way.')
    def broken(project, step): raise SettingsError('the source is not there')
    assert run_due(project, now=utc(2026, 4, 1, 1, 1), run=busy) == [] and states(project) == ['begun', 'queued']
    (slot,) = run_due(project, now=utc(2026, 4, 1, 1, 5), run=broken)
    assert (slot.state, slot.why) == ('failed', 'the source is not there')
    def crash(project, step): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_due(project, now=utc(2026, 4, 1, 2, 5), run=crash)
    assert states(project) == ['begun', 'failed', 'interrupted'] and [l['event'] for l in read_log(project)][-1] == 'slot interrupted'


def test_steps_due_together_run_in_the_order_of_the_stages(tmp_path):
    project = project_with(tmp_path, 'retraining = "0 6 * * *"\nmonitoring = "0 6 * * *"\ndata = "0 6 1 * *"')
    begin(project, utc(2026, 4, 1, 5))
    assert [s.step for s in run_due(project, now=utc(2026, 4, 1, 6), run=done)] == ['data', 'monitoring', 'retraining']
    assert [s.step for s in run_due(project, now=utc(2026, 4, 2, 6), run=done)] == ['monitoring', 'retraining']
    assert [(r['step'], r['next'][:16], r['state']) for r in upcoming(project, utc(2026, 4, 2, 7))][0] == ('data', '2026-05-01T06:00', 'done')


@pytest.mark.parametrize('schedule, why', [('monitoring = "every night"', 'no cron expression'), ('zone = "Europe/Berlyn"', 'no time zone'),
    ('nightly = "0 0 * * *"', 'unknown key'), ('monitoring = "0 0 * * *\\n* * * * *"', 'no cron expression'), ('zone = "../../etc/passwd"', 'no time zone')])
def test_schedules_that_cannot_be_kept_are_refused(tmp_path, schedule, why):
    with pytest.raises(SettingsError, match=why): project_with(tmp_path, schedule)


def test_expressions_are_read_in_full(tmp_path):
    with pytest.raises(SettingsError, match='Bad hour'): begin_and_look(project_with(tmp_path, 'monitoring = "0 25 * * *"'))


def begin_and_look(project): begin(project, utc(2026, 1, 1)); run_due(project, now=utc(2026, 1, 2), run=done)


def test_the_command_runs_the_real_step_and_tells(tmp_path):
    "A due step whose notebook is missing is a failed slot, exit 1; when nothing is due nothing is said."
    project = project_with(tmp_path, HOURLY)
    mlcycle = lambda *words: CliRunner().invoke(main, ['--project', str(tmp_path), 'schedule', *words])
    assert mlcycle('run-due').output == '' and states(project) == ['begun']
    begin_at = datetime.now(timezone.utc)-timedelta(hours=2)
    project.store.joinpath('schedule.db').unlink()
    begin(project, begin_at)
    ran = mlcycle('run-due', '--json')
    assert ran.exit_code == 1 and json.loads(ran.output)[0]['state'] == 'failed' and '06_monitoring.ipynb' in ran.output
    assert json.loads(mlcycle('show', '--json').output)[0]['state'] == 'failed' and 'monitoring' in mlcycle('show').output
    empty = project_with(tmp_path/'empty', '')
    assert 'Nothing is scheduled' in CliRunner().invoke(main, ['--project', str(empty.folder), 'schedule', 'show']).output and not empty.store.exists()


def test_when_nobody_looks_somebody_says_so(tmp_path):                                                            # M09
    project = project_with(tmp_path, 'monitoring = "0 * * * *"\nretraining = "30 * * * *"', more='[alarms]\nchannels = [{name = "notes", kind = "file", path = "a.jsonl"}]')
    project.ledger.append(stage='deployment', kind='promotion', subject='1', actor='Ada', body={'version': '1', 'role': 'champion'})
    log_event(project, 'monitoring', 'looked')
    now = datetime.fromisoformat(last_event(project, 'monitoring', 'looked')['at']).replace(minute=45)             # of the same hour, whenever that was
    begin(project, now)
    def only_retraining(project, step): return ('done', '') if step == 'retraining' else ('failed', 'its process was killed')
    run_due(project, now=now+timedelta(hours=1), run=only_retraining)
    assert current_alarms(project) == []                                                                           # one interval is no silence
    run_due(project, now=now+timedelta(hours=3), run=only_retraining)
    (alarm,) = current_alarms(project)
    assert alarm.cause == 'silence' and 'last looked at' in alarm.why and 'silence' in (tmp_path/'a.jsonl').read_text()
    run_due(project, now=now+timedelta(hours=4), run=only_retraining)
    assert len(current_alarms(project)) == 1 and len((tmp_path/'a.jsonl').read_text().splitlines()) == 1
    acknowledge_alarm(project, alarm.id, by='Grace', because='the machine was moved')
    assert silence(project) == ''
    checked = CliRunner().invoke(main, ['--project', str(tmp_path), 'monitor', '--check', '--json'])
    assert checked.exit_code == 0 and json.loads(checked.output) == {'silent': False, 'alarm': None}
    from mlcycle.monitoring import monitor
    monitor(project)
    assert current_alarms(project)[0].state == 'resolved' and current_alarms(project)[0].because == 'production has been looked at again'


def test_monitor_check_and_status_say_it(tmp_path, monkeypatch):
    project = project_with(tmp_path, 'monitoring = "* * * * *"')
    project.ledger.append(stage='deployment', kind='promotion', subject='1', actor='Ada', body={'version': '1', 'role': 'champion'})
    monkeypatch.setattr('mlcycle.silence.due_looks', lambda project, now: [now+timedelta(days=1)]*2)
    checked = CliRunner().invoke(main, ['--project', str(tmp_path), 'monitor', '--check'])
    assert checked.exit_code == 1 and 'last looked at never' in checked.output
