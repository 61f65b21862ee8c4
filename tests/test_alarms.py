"An alarm's life by the command line: it blocks until somebody answers, is silent while it is muted, rings again when the mute ends."
import json
import pytest
from click.testing import CliRunner
from test_monitoring import log, project_at, rows, start
from mlcycle.alarms import current_alarms
from mlcycle.channels import notices
from mlcycle.cli import main
from mlcycle.core import Project
from mlcycle.log import read_log
from mlcycle.health import blocking
from mlcycle.monitoring import monitor

CHANNELS = '[alarms]\nchannels = [{name = "notes", kind = "file", path = "alarms.jsonl"}, {name = "gone", kind = "command", command = ["no-such-program"]}]\n'


@pytest.fixture(scope='module')
def drifted(tmp_path_factory):
    "A project in which income is a hundred times larger since the second window."
    project = project_at(tmp_path_factory.mktemp('base')/'loans', more=CHANNELS)
    for i, shift in enumerate((0, 4.6, 4.6)): log(project, rows(300, seed=i, shift=shift), start(i))
    return project


def mlcycle(project, *words, status=0):
    done = CliRunner().invoke(main, ['--project', str(project.folder), *words])
    assert done.exit_code == status, done.output
    return done.output


def test_the_whole_life(drifted, monkeypatch):
    mlcycle(drifted, 'monitor', status=1)
    listed = {a['id']: a for a in json.loads(mlcycle(drifted, 'alarm', 'list', '--json'))}
    income = next(a for a in listed.values() if a['column'] == 'income')
    assert income['state'] == 'raised' and income['notified'] == ['notes']
    lines = (drifted.folder/'alarms.jsonl').read_text().splitlines()
    assert len(lines) == 1 and {a['id'] for a in json.loads(lines[0])['alarms']} == set(listed)        # one message for all of them
    mlcycle(drifted, 'monitor', status=1)
    assert len((drifted.folder/'alarms.jsonl').read_text().splitlines()) == 1                          # the same cause does not ring twice
    assert all(n.state == 'failed' and 'no-such-program' in n.why for n in notices(drifted, 'gone'))
    for id in listed: mlcycle(drifted, 'alarm', 'ack', id, '--as', 'Grace', '--because', 'unit change, known')
    mlcycle(drifted, 'monitor')
    assert 'unit change, known' in mlcycle(drifted, 'alarm', 'list')
    assert 'already acknowledged' in mlcycle(drifted, 'alarm', 'ack', income['id'], '--as', 'Grace', '--because', 'again', status=1)
    assert 'muted until 2999-01-01' in mlcycle(drifted, 'alarm', 'mute', income['id'][:6], '--until', '2999-01-01', '--as', 'Grace', '--because', 'until the fix')
    assert 'is past' in mlcycle(drifted, 'alarm', 'mute', income['id'], '--until', '2020-01-01', '--as', 'Grace', '--because', 'x', status=2)
    mlcycle(drifted, 'monitor')
    events = [l['event'] for l in read_log(drifted, stage='monitoring')]
    assert {'alarm raised', 'alarm acknowledged', 'alarm muted', 'looked', 'delivered', 'failed'} <= set(events)
    assert [a.id for a in blocking(monitor(drifted, now='2999-01-01T00:00:01'))] == [income['id']]     # the mute is over, the cause is not
    assert current_alarms(Project(drifted.folder))[[a.id for a in current_alarms(drifted)].index(income['id'])].rings == 2
    last = json.loads((drifted.folder/'alarms.jsonl').read_text().splitlines()[-1])
    assert [(a['id'], a['rings']) for a in last['alarms']] == [(income['id'], 2)]
    assert 'looked' in mlcycle(drifted, 'log', '--since', '1h', '--stage', 'monitoring')
    assert json.loads(mlcycle(drifted, 'log', '--json'))[0]['project'] == 'Loans'
    assert 'is no moment' in mlcycle(drifted, 'log', '--since', 'yesterday', status=2)


def test_names_and_reasons_are_needed(drifted):
    assert 'Missing option' in mlcycle(drifted, 'alarm', 'ack', 'abc', '--as', 'Grace', status=2)
    assert 'needs a name and a reason' in mlcycle(drifted, 'alarm', 'ack', 'abc', '--as', ' ', '--because', 'x', status=2)
    assert 'alarms begin with' in mlcycle(drifted, 'alarm', 'mute', 'zzz', '--until', '2999-01-01', '--as', 'a', '--because', 'b', status=2)


def test_ended_by_a_person_until_a_later_window_has_the_cause_again(tmp_path):
    project = project_at(tmp_path/'loans')
    mlcycle(project, 'alarm', 'channel', 'notes', 'file', 'path=alarms.jsonl')
    assert 'notes took the test' in mlcycle(project, 'alarm', 'try', 'notes')
    for i, shift in enumerate((0, 4.6)): log(project, rows(300, seed=i, shift=shift), start(i))
    mlcycle(project, 'monitor', status=1)
    open_ones = [a.id for a in current_alarms(project)]
    for id in open_ones: assert ', resolved: ' in mlcycle(project, 'alarm', 'resolve', id, '--as', 'Grace', '--because', 'the unit is mended')
    mlcycle(project, 'monitor')                                                       # the same windows do not ring again
    assert {a.state for a in current_alarms(project)} == {'resolved'} and 'Nothing is left to end' in mlcycle(project, 'alarm', 'resolve', open_ones[0], '--as', 'G', '--because', 'x', status=1)
    log(project, rows(300, seed=2, shift=4.6), start(2))
    mlcycle(project, 'monitor', status=1)                                             # but it was not mended
    income = next(a for a in current_alarms(project) if a.column == 'income')
    assert (income.state, income.rings) == ('raised', 2)
    told = [a for line in (project.folder/'alarms.jsonl').read_text().splitlines() for a in json.loads(line)['alarms'] if a['id'] == income.id]
    assert [(a['event'], a['rings']) for a in told] == [('raised', 1), ('resolved', 1), ('raised', 2)]
    assert 'No channel' in mlcycle(project, 'alarm', 'try', 'pager', status=2) and 'left: none' in mlcycle(project, 'alarm', 'channel', 'notes', '--remove')
    assert 'needs a kind' in mlcycle(project, 'alarm', 'channel', 'notes', status=2)
