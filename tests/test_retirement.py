"""Retirement: who depends, what stands in the way, the end itself, what is deleted and what is left, and a crash at each step."""
import json, shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
import pandas as pd, pytest
from bs4 import BeautifulSoup
from sklearn.linear_model import LogisticRegression
from mlcycle import retirement
from mlcycle.core import Blocked, Project, SettingsError
from mlcycle.ledger import Ledger, champion, retired, roles
from mlcycle.registry import promote, rollback
from mlcycle.retirement import Erasure, Retirement, plan_retirement, retire
from mlcycle.scoring import Retired, label, score
from mlcycle.spool import spool
from mlcycle.tables import Tables
from served import crown, new_project, register, sign, strange_rows

HTML = '<img src=x onerror=alert(1)>'
NOW = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "Version 1 answers; version 2 is signed and compared; version 3 is neither. Names and rows are strangers'."
    rows = strange_rows(120)
    project = new_project(tmp_path_factory.mktemp('base')/'p', data='id = "id"\nprotected = ["sex"]', more='[retention]\npredictions_days = 30\nlabels_days = 60\n[schedule]\nmonitoring = "0 6 * * *"\n')
    for _ in range(3): register(project, rows, LogisticRegression(max_iter=200))
    crown(project, '1')
    sign(project, '2')
    project.ledger.append(stage='retraining', kind='comparison', subject='2', body={'champion': '1', 'promotable': True}, actor='Ada')
    return project.folder


@pytest.fixture
def project(base, tmp_path, monkeypatch):
    monkeypatch.setattr(retirement, '_now', lambda: NOW)
    shutil.copytree(base, tmp_path/'p')
    return Project(tmp_path/'p', actor='Ada')


def ask(project: Project, *days: float, version: str='1', name: str='CANARY') -> pd.DataFrame:
    "One prediction so many days before now, each about somebody."
    rows = strange_rows(len(days)).assign(id=[f'{name}-{d:g}' for d in days])
    return score(project, rows.drop(columns='label'), version=version, at=pd.Series([NOW-timedelta(days=d) for d in days]))


def outcomes(project: Project, scored: pd.DataFrame, days: float) -> None:
    label(project, pd.DataFrame({'prediction_id': scored['prediction_id'], 'label': 'yes', 'at': (NOW-timedelta(days=days)).isoformat()}))


def all_bytes(project: Project) -> bytes: return b'\n'.join(p.read_bytes() for p in project.folder.rglob('*') if p.is_file())


# The plan

def test_a_plan_changes_nothing_and_names_who_depends(project):
    ask(project, 0.5, 3, 29, 45)
    project.ledger.append(stage='deployment', kind='bundle', subject='1', body={'version': '1', 'folder': 'bundles/x-1'}, actor='Ada')
    project.ledger.append(stage='monitoring', kind='window', subject='1', body={'version': '1', 'from': '2026-05-01', 'to': '2026-05-31', 'rows': 3, 'labelled': 0}, actor='Ada')
    for state in ('raised', 'acknowledged'):
        project.ledger.append(stage='monitoring', kind='alarm', subject='a', body={'id': 'a', 'version': '1', 'kind': 'drift', 'column': HTML, 'since': '2026-05-01', 'state': state}, actor='Ada')
    project.ledger.append(stage='monitoring', kind='alarm', subject='b', body={'id': 'b', 'version': '1', 'kind': 'drift', 'state': 'resolved'}, actor='Ada')
    before, head = all_bytes(project), project.ledger.head()
    plan = retire(project, '1', successor='2', because='old')
    assert plan.dependents['what'].tolist() == ['role', 'schedule', 'bundle', 'callers', 'monitoring', 'alarm']
    assert plan.dependents['detail'].tolist()[3] == '3 predictions on 3 of the 30 days before 2026-06-01'
    assert plan.obstacles == [] and plan.deleted.values.tolist() == [['predictions', 1, 'version 1', '2026-05-02']]
    assert project.ledger.head() == head and all_bytes(project) == before and not project.reports.exists()
    assert '<img' not in plan._repr_html_() and 'nothing stands in the way' in plan.headline


def test_lately_is_measured_by_the_newest_prediction_of_anybody(project):
    ask(project, 100, 120)
    assert 'callers' in plan_retirement(project, '1').dependents['what'].tolist()          # quiet, but so is everybody
    promote(project, '2', because='better')
    ask(project, 1, version='2')
    assert 'callers' not in plan_retirement(project, '1').dependents['what'].tolist()


def test_which_version_is_meant_by_default(project):
    assert plan_retirement(project).version == '1'            # nobody else ever answered
    promote(project, '2', because='better')
    plan = plan_retirement(project)
    assert (plan.version, plan.successor) == ('1', '2')


@pytest.mark.parametrize('successor, said', [(None, 'mlcycle retire 1 --successor 3 --because TEXT'), ('1', 'is the version that goes'), ('9', 'is no version'),
                                            (HTML, 'is no version'), ('3', 'mlcycle run validation')])
def test_the_version_that_answers_does_not_leave_nobody(project, successor, said):
    before = project.ledger.head()
    plan = retire(project, '1', successor=successor, because='old')
    assert said in ' '.join(plan.obstacles)
    with pytest.raises(Blocked, match='cannot be retired') as caught: retire(project, '1', successor=successor, because='old', confirm=True)
    assert said in str(caught.value) and project.ledger.head() == before and champion(project.ledger) == '1'


def test_calls_that_are_wrong(project):
    with pytest.raises(SettingsError, match='Versions: 1, 2, 3'): plan_retirement(project, '../1')
    with pytest.raises(SettingsError, match='--because'): retire(project, '1', successor='2', because='  ', confirm=True)
    with pytest.raises(Blocked, match='read-only'): retire(Project(project.folder, read_only=True), '1', successor='2', because='old', confirm=True)
    retire(project, '3', because='never used', confirm=True)
    assert 'is retired itself' in plan_retirement(project, '1', successor='3').obstacles[0] and retired(project.ledger) == {'3'}


# The end

def test_a_retired_version_answers_nobody_and_says_who_does(project):
    done = retire(project, '1', successor='2', because='a newer one is better', confirm=True, by='Grace')
    assert roles(project.ledger) == {'champion': '2', 'challenger': None, 'shadow': None} and retired(project.ledger) == {'1'}
    assert (done.successor, done.by, done.roles) == ('2', 'Grace', ['champion'])
    with pytest.raises(Retired, match='a newer one is better. Ask version 2 instead'): ask(project, 1, version='1')
    assert len(ask(project, 1, version='champion')) == 1
    for call in (lambda: promote(project, '1', because='x'), lambda: promote(project, '1', to='shadow', because='x'), lambda: rollback(project, because='x')):
        with pytest.raises(Blocked): call()
    takeover = project.ledger.entries('promotion')[-1]
    assert takeover.body['previous'] == '1' and takeover.body['by'] == 'Grace' and 'takes over from version 1' in takeover.body['because']
    aliases = project.registry.client().get_registered_model(project.registry.name).aliases
    assert {k: str(v) for k, v in aliases.items()} == {'champion': '2'}
    assert project.ledger.verify().ok and project.latest(Retirement, subject='1') == done


def test_once_is_enough(project):
    first = retire(project, '1', successor='2', because='old', confirm=True)
    head = project.ledger.head()
    assert retire(project, '1', successor='3', because='again', confirm=True) == first and project.ledger.head() == head
    plan = plan_retirement(project, '1', successor='3')
    assert plan.successor == '2' and plan.obstacles == [] and 'is retired since' in plan.headline


def test_the_handover_is_whole_escaped_and_hashed(project):
    project.ledger.append(stage='problem', kind='problem', subject='', body={'objective': HTML, 'out_of_scope': '| `x` [a](javascript:alert(1))', 'target': 'label'}, actor='Ada')
    ask(project, 1)
    done = retire(project, '1', successor='2', because=f'{HTML}\n# too old', confirm=True)
    from mlcycle.core import digest
    texts = {path: (project.folder/path).read_text() for path in done.documents}
    assert {path: digest(text) for path, text in texts.items()} == done.documents and sorted(texts) == ['reports/retirement-1/handover.html', 'reports/retirement-1/handover.md']
    page, text = BeautifulSoup(texts['reports/retirement-1/handover.html'], 'html.parser'), texts['reports/retirement-1/handover.md']
    assert not page.find_all(['img', 'script']) and HTML in page.get_text() and '\n# too old' not in text and '<img' not in text
    info = project.registry.info('1')
    for needed in (info.hash, info.uri, 'scikit-learn==', 'Grace', 'looks right', 'version 2', '1 prediction on 1 of the 30 days', 'Missing: what the people who ran it learnt'):
        assert needed.replace('version 2', '| 2 |').replace('_', '\\_') in text or needed in page.get_text(), needed


def test_bundles_in_the_project_get_the_notice(project):
    from mlcycle.deployment import build_bundle
    from mlcycle.bundle import BundleService
    bundle = build_bundle(project, '1')
    outside = project.folder.parent/'elsewhere'
    shutil.copytree(project.folder/bundle.folder, outside)
    service = BundleService(project.folder/bundle.folder)
    assert service.now().main.version == '1'
    retire(project, '1', successor='2', because='old', confirm=True)
    with pytest.raises(Retired, match='Ask version 2 instead'): service.now()
    assert json.loads((project.folder/bundle.folder/'retired.json').read_text())['because'] == 'old' and not (outside/'retired.json').exists()


# Deleting

def test_retention_takes_the_right_rows_and_leaves_no_byte_of_them(project):
    old = ask(project, 30+1/1440, 31, 200, name='CANARY-OLD')
    young = ask(project, 30-1/1440, 2, name='CANARY-YOUNG')
    outcomes(project, old[:1], 61); outcomes(project, old[1:2], 59); outcomes(project, young[:1], 1)
    plan = retire(project, '1', successor='2', because='old')
    assert plan.deleted.values.tolist() == [['labels', 1, 'version 1', '2026-04-02'], ['predictions', 3, 'version 1', '2026-05-02']]
    retire(project, '1', successor='2', because='old', confirm=True)
    assert project.tables.read('predictions')['prediction_id'].tolist() == young['prediction_id'].tolist()
    assert set(project.tables.read('labels')['prediction_id']) == {old['prediction_id'].iloc[1], young['prediction_id'].iloc[0]}
    left = all_bytes(project)
    assert b'CANARY-OLD' not in left and b'CANARY-YOUNG' in left
    for gone in old['prediction_id'].drop(old.index[1]): assert gone.encode() not in left
    begun, done = [Erasure.from_body(e.body) for e in project.ledger.entries('erasure', '1')]
    assert (begun.state, done.state) == ('begun', 'done') and done.deleted['rows'].tolist() == [1, 3] and begun.before == done.before
    assert all(len(h) == 64 for h in done.deleted['ids_hash']) and project.ledger.verify().ok


def test_other_versions_rows_stay(project):
    ask(project, 100)
    promote(project, '2', because='better')
    other = ask(project, 100, version='2')
    retire(project, '1', because='old', confirm=True)
    assert project.tables.read('predictions')['prediction_id'].tolist() == other['prediction_id'].tolist()


def test_what_waits_in_the_spool_is_erased_too(project):
    done = ask(project, 100, name='OLD')
    row = project.tables.read('predictions')
    spool(project, 'predictions', row.assign(prediction_id='f'*32, id='CANARY-SPOOLED'))
    retire(project, '1', successor='2', because='old', confirm=True)
    assert len(project.tables.read('predictions')) == 0 and b'CANARY-SPOOLED' not in all_bytes(project) and done['prediction_id'].iloc[0].encode() not in all_bytes(project)


def test_later_the_rest_becomes_due_and_at_last_the_file(project, monkeypatch):
    scored = ask(project, 40, 5)
    outcomes(project, scored[:1], 40)
    retire(project, '1', successor='2', because='old', confirm=True)
    assert len(project.tables.read('predictions')) == 1 and len(project.tables.read('labels')) == 1
    monkeypatch.setattr(retirement, '_now', lambda: NOW+timedelta(days=25))
    assert plan_retirement(project, '1').deleted.values.tolist() == [['labels', 1, 'no prediction', '2026-04-27']]     # its prediction went before
    monkeypatch.setattr(retirement, '_now', lambda: NOW+timedelta(days=26))
    retire(project, '1', because='due', confirm=True)
    assert len(project.tables.read('predictions')) == 0 and len(project.tables.read('labels')) == 0 and project.registry.load('1')
    monkeypatch.setattr(retirement, '_now', lambda: datetime.now(timezone.utc)+timedelta(days=3651))
    file = project.store/project.registry.info('1').uri
    retire(project, '1', because='due', confirm=True)
    assert not file.exists() and (project.store/project.registry.info('2').uri).exists()
    last = project.latest(Erasure, subject='1')
    assert last.state == 'done' and last.deleted['table'].tolist() == ['model file'] and len(project.ledger.entries('retirement')) == 1


# Crashes

class Crash(BaseException): "As if the process were killed."

PLACES = [(Ledger, 'append'), (Tables, 'delete'), (Tables, 'vacuum'), (retirement, 'write_atomic'), (retirement, '_notify_bundles')]

def crash_at(monkeypatch, n: int, after: bool) -> dict:
    "The n-th of all writing calls is the last thing that happens, or does not happen any more."
    count = {'calls': 0}
    def wrapped(original):
        def call(*args, **kwargs):
            count['calls'] += 1
            if count['calls'] == n and not after: raise Crash
            found = original(*args, **kwargs)
            if count['calls'] == n: raise Crash
            return found
        return call
    for owner, name in PLACES: monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    return count


def test_a_crash_at_any_step_is_completed_by_the_next_call(project, tmp_path, monkeypatch):
    scored = ask(project, 200, 100, 1)
    outcomes(project, scored, 90)
    for n in range(1, 40):
        for after in (False, True):
            shutil.rmtree(tmp_path/'copy', ignore_errors=True)
            shutil.copytree(project.folder, tmp_path/'copy')
            with monkeypatch.context() as patched:
                count = crash_at(patched, n, after)
                try: retire(Project(tmp_path/'copy', actor='Ada'), '1', successor='2', because='old', confirm=True)
                except Crash: pass
            again = Project(tmp_path/'copy', actor='Ada')
            assert again.ledger.verify().ok and champion(again.ledger) in ('1', '2')
            if '1' in retired(again.ledger): assert all((again.folder/p).exists() for p in again.latest(Retirement).documents) and champion(again.ledger) == '2'
            told = again.latest(Erasure)
            if told and told.state == 'done': assert len(again.tables.read('predictions')) == 1
            retire(again, '1', successor='2', because='old', confirm=True)
            assert champion(again.ledger) == '2' and again.tables.read('predictions')['prediction_id'].tolist() == scored['prediction_id'].tolist()[2:]
            states = [e.body['state'] for e in again.ledger.entries('erasure')]
            assert states == ['begun', 'done'] and again.latest(Erasure).deleted['rows'].tolist() == [3, 2], (n, after, states)
            assert len(again.ledger.entries('retirement')) == 1 and not [i for i in scored['prediction_id'][:2] if i.encode() in all_bytes(again)]
        if count['calls'] < n: break
    assert n > 8, 'the case has to reach the end'


def test_a_role_that_is_given_meanwhile_refuses_the_end(project, monkeypatch):
    "Version 2 becomes champion while its handover is written: nothing is retired, and somebody still answers."
    real = retirement.handover
    def meanwhile(*args, **options):
        promote(Project(project.folder, actor='Bo'), '2', because='better')
        return real(*args, **options)
    monkeypatch.setattr(retirement, 'handover', meanwhile)
    with pytest.raises(Blocked, match='Meanwhile Bo recorded another promotion'): retire(project, '2', because='old', confirm=True)
    assert retired(project.ledger) == set() and champion(project.ledger) == '2'
    monkeypatch.setattr(retirement, 'handover', real)
    assert retire(project, '1', because='old', confirm=True).successor == '2' and retired(project.ledger) == {'1'}
