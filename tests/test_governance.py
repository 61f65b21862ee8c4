"Approvals, cards, history and audit: G06, G07, G08, G09, D01 and C02 of the reliability cases."
import json, sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
import pytest
from bs4 import BeautifulSoup
from mlcycle import governance
from mlcycle.core import Blocked, IntegrityError, MissingEvidence, MlcycleError, Project, SettingsError
from mlcycle.documents import one_line, plain_name
from mlcycle.gates import approval_digest, must_pass, signatures
from mlcycle.cards import VIEWS, Card, card
from mlcycle.governance import approve, audit, history
from mlcycle.ledger import champion

HOSTILE = ['<img src=x onerror=alert(1)>', '</script><script>x=1</script>', '[click](javascript:alert(1))', "=cmd|' /C calc'!A0",
           '{{7*7}}', '{% for x in y %}', '${x}', '%(x)s', 'a\r\n2026-01-01 entry 7 approved', '\u202egnp.exe', 'x'*10_000, '| a | b |', '`code`']
TOML = '''
[project]
name = {name}
author = "Ada"
[problem]
target = "default"
task = "binary"
[data]
sources = [{{path = "loans.csv"}}]
protected = ["sex"]
{more}'''

def make(folder, *, more='', name='loans', actor='night') -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'mlcycle.toml').write_text(TOML.format(name=json.dumps(name), more=more), encoding='utf-8')
    return Project(folder, actor=actor)

def register(project, version='1', *, hash='a'*64, author='Ada', actor='night', **more):
    body = dict(version=version, hash=hash, algorithm='LogisticRegression', author=author, columns=['age'], data='d'*64, **more)
    return project.ledger.append(stage='development', kind='model', subject=version, body=body, actor=actor)

def validate(project, version='1', verdict='pass', value=0.84, hash='a'*64, **more):
    roc_auc = dict(metric='roc_auc', status='ok', value=value, low=value-.02, high=value+.02, n=1200, level=0.95, reason='')
    body = dict(verdict=verdict, metrics=dict(roc_auc=roc_auc), model_hash=hash, looks=1, **more)
    return project.ledger.append(stage='validation', kind='validation', subject=version, body=body, actor='night')

def promote(project, version, role='champion', **more):
    "As `mlcycle.registry.promote` records it, its gates aside."
    return project.ledger.append(stage='governance', kind='promotion', subject=version, actor='Grace',
                                 body=dict(version=version, role=role, because='gates open', previous=None, **more))

@pytest.fixture
def project(tmp_path) -> Project:
    project = make(tmp_path/'p')
    register(project), validate(project)
    return project

def refused(project, match, version='1', by='Grace', because='Looked at it.'):
    before = len(project.ledger.entries())
    with pytest.raises(Blocked, match=match) as caught: approve(project, version, by=by, because=because)
    entries = project.ledger.entries()
    assert len(entries) == before+1 and entries[-1].kind == 'refusal' and entries[-1].body['why'] == str(caught.value)
    assert not project.ledger.entries('approval') and str(caught.value).count('\n') <= 10
    return str(caught.value)

# ---- G06: who may approve what

@pytest.mark.parametrize('by', ['Ada', ' ada ', 'ADA', 'A\u200bda', 'Ada\u202e', 'Ａｄａ', 'night', 'Ada\r\n'])
def test_author_or_creator_cannot_approve(project, by): refused(project, 'cannot approve', by=by)

@pytest.mark.parametrize('by,because', [('', 'x'), ('Grace', ''), ('  ', 'x'), ('Grace', '\n\t'), ('\u200b', 'x')])
def test_empty_name_or_reason(project, by, because): refused(project, 'needs a name and a reason', by=by, because=because)

def test_allow_list(tmp_path):
    project = make(tmp_path/'p', more='[governance]\napprovers = ["Grace Hopper", "Ada"]')
    register(project), validate(project)
    refused(project, 'may not approve.*Grace Hopper', by='Mallory')
    refused(project, 'cannot approve', by='Ada')   # on the list, but she built it
    assert approve(project, '1', by='grace  hopper', because='Fine.').by == 'grace hopper'

def test_retired_unknown_unvalidated(project):
    refused(project, r"No model version '7'\. Versions: 1", version='7')
    register(project, '2', hash='b'*64)
    with pytest.raises(MissingEvidence, match='mlcycle run validation'): approve(project, '2', by='Grace', because='x')
    validate(project, '2', hash='a'*64)
    with pytest.raises(MissingEvidence, match='other bytes'): approve(project, '2', by='Grace', because='x')
    project.ledger.append(stage='retirement', kind='retirement', subject='1', body=dict(version='1'), actor='x')
    refused(project, 'retired', version='1')
    assert len(project.ledger.entries('refusal')) == 4

class InTwoDays(datetime):
    @classmethod
    def now(cls, tz=None): return datetime.now(tz)+timedelta(days=2)

def test_expired(tmp_path, monkeypatch):
    project = make(tmp_path/'p', more='[retraining]\nmax_age_days = 0.001')
    register(project), validate(project)
    monkeypatch.setattr(governance, 'datetime', InTwoDays)
    refused(project, 'expired.*mlcycle retrain')

def test_superseded(project):
    register(project, '2', hash='b'*64)
    promote(project, '1'), promote(project, '2')
    refused(project, 'replaced as champion by version 2.*mlcycle rollback')
    promote(project, '1', rollback=True)
    assert approve(project, '1', by='Grace', because='Back in office.').version == '1'

def test_second_time_has_no_effect(project):
    first = approve(project, '1', by='Grace', because='Good.')
    again = approve(project, '1', by=' GRACE', because='Better.')
    assert again == first and len(project.ledger.entries('approval')) == len(signatures(project, '1')) == 1

def test_two_approvers_at_once_are_both_recorded_once(project):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda by: approve(Project(project.folder, actor='x'), '1', by=by, because='Good.'), ['Grace', 'Katherine']))
    assert {e.body['by'] for e in project.ledger.entries('approval')} == {'Grace', 'Katherine'}
    assert len(signatures(project, '1')) == 2 and audit(project).ok

def test_same_person_at_once_counts_once(project):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda by: approve(Project(project.folder, actor='x'), '1', by=by, because='Good.'), ['Grace']*6))
    assert len(signatures(project, '1')) == 1

# ---- G07: what an approval binds

CHANGES = {
    'artifact': lambda p: register(p, hash='b'*64),
    'schema': lambda p: p.ledger.append(stage='development', kind='model', subject='1', actor='night',
        body=dict(version='1', hash='a'*64, author='Ada', columns=['age', 'income'], data='d'*64)),
    'data': lambda p: p.ledger.append(stage='development', kind='model', subject='1', actor='night',
        body=dict(version='1', hash='a'*64, author='Ada', columns=['age'], data='e'*64)),
    'metrics': lambda p: validate(p, value=0.85),
    'verdict': lambda p: validate(p, verdict='fail')}

@pytest.mark.parametrize('what', CHANGES)
def test_any_change_voids_the_approval(project, what):
    for by in ('Grace', 'Katherine'): approve(project, '1', by=by, because='Good.')
    assert len(signatures(project, '1')) == 2
    bound = approval_digest(project, '1')
    CHANGES[what](project)
    assert approval_digest(project, '1') != bound and signatures(project, '1') == []
    with pytest.raises(Blocked, match='signed'): must_pass(project, '1', before='promotion')
    assert 'void' in card(project, '1').to_markdown()

def test_another_look_does_not_void(project):
    approve(project, '1', by='Grace', because='Good.')
    body = project.ledger.last('validation', '1').body | dict(looks=2)
    project.ledger.append(stage='validation', kind='validation', subject='1', body=body, actor='night')
    assert len(signatures(project, '1')) == 1

def test_signing_again_after_a_change(project):
    first = approve(project, '1', by='Grace', because='Good.')
    validate(project, value=0.85)
    second = approve(project, '1', by='Grace', because='Still good.')
    assert second.digest != first.digest and len(signatures(project, '1')) == 1

# ---- G08: closed when the ledger cannot be written

def test_nothing_happens_when_the_ledger_cannot_be_written(project, monkeypatch):
    def fail(*args, **kw): raise IntegrityError('The ledger cannot be used: disk I/O error.')
    monkeypatch.setattr(type(project.ledger), 'append', fail)
    with pytest.raises(IntegrityError): approve(project, '1', by='Grace', because='Good.')
    assert not project.ledger.entries('approval')

def test_read_only_refuses_to_approve_and_still_shows_cards(project):
    viewer = Project(project.folder, read_only=True)
    with pytest.raises(Blocked, match='read-only'): approve(viewer, '1', by='Grace', because='Good.')
    before = len(project.ledger.entries())
    assert card(viewer, '1').gaps and len(project.ledger.entries()) == before

# ---- G09, D01, C02: words from strangers

@pytest.mark.parametrize('text', HOSTILE)
def test_hostile_names_and_comments_are_one_entry_and_shown_escaped(project, text):
    before = len(project.ledger.entries())
    approval = approve(project, '1', by=text, because=text)
    assert len(project.ledger.entries()) == before+1 and audit(project).ok
    assert not any(c in approval.by+approval.because for c in '\r\n\u202e')
    for view in VIEWS:
        document = card(project, '1', view=view)
        assert clean(document.to_html(), f'{view} {text[:20]!r}')
        assert '<img' not in document.to_markdown() and '<script' not in document.to_markdown()
    if len(text) > 2000: assert 'cut: 10,000 characters' in approval.because and len(approval.because) < 2100 and len(approval.by) < 300

def clean(page: str, where: str) -> bool:
    "No element or attribute of the page stems from data."
    soup = BeautifulSoup(page, 'html.parser')
    assert not soup.find_all(['img', 'script', 'iframe', 'a']), where
    assert not [a for tag in soup.find_all(True) for a in tag.attrs if a.startswith('on')], where
    return True

def test_hostile_settings_and_columns_everywhere(tmp_path):
    for i, text in enumerate(HOSTILE[:6]):
        project = make(tmp_path/f'p{i}', name=text[:200])
        register(project, author='Ada', parameters={text: text})
        frame = dict(columns=[text, 'value'], data=[[text, 1.0], [None, None]])
        validate(project, by_group=frame, importance=frame, verdicts=frame, disparities={})
        project.ledger.append(stage='problem', kind='problem', actor='Ada', body=dict(objective=text, decision=text, owner=text, gaps=[text],
            success=[], kill=[], risk=dict(eu_ai_act='high-risk', sr_26_2='high', reasons=[text], unanswered=[], duties='', caution='')))
        for view in VIEWS: clean(card(project, view=view).to_html(), view)
        assert text[:20].replace('\u202e', '\\u202e') in BeautifulSoup(card(project).to_html(), 'html.parser').get_text()

def test_words():
    assert one_line('a\r\nb\tc\x00') == 'a b c\\u0000' and one_line('déjà 見') == 'déjà 見'
    assert plain_name('Ｇrace\u2066 Hopper\n') == 'Grace Hopper' and plain_name('x'*10_000) != plain_name('y'*10_000)

# ---- cards

def test_an_empty_project_has_a_card_full_of_gaps(tmp_path):
    project = make(tmp_path/'p')
    for view in VIEWS:
        document = card(project, view=view)
        assert document.version is None and document.gaps and 'not trained yet' in document.title
        assert all(g.startswith('Missing: ') and ' — ' in g for g in document.gaps)
        text = document.to_markdown()
        assert text.count('Missing: ') >= 2*len(document.gaps) and text.index('gaps.') < text.index('## ')

def test_what_nobody_declared_is_counted_once_in_every_view(tmp_path):
    from mlcycle.problem import seal_problem
    project = make(tmp_path/'p')
    undeclared = seal_problem(project).gaps
    words = {'objective': 'what it is for', 'decision': 'the decision it helps with', 'owner': 'who answers for it',
             'out of scope': 'not to be used for', 'protected attributes': 'protected attributes: attributes'}
    for view in VIEWS:
        found = [g.removeprefix('Missing: ') for g in card(project, view=view).gaps]
        for word, other in words.items():
            same = [g for g in found if g.lower().startswith((f'{word}:', other, f'what it must {other}'))]
            assert len(same) <= 1 and all(any(g.startswith(said) for said in undeclared) for g in same), (view, same)
        assert all(sum(g.startswith(said) for g in found) == 1 for said in undeclared), view

def test_figures_carry_interval_count_entry_and_date(project):
    entry = project.ledger.last('validation', '1')
    row = next(b for b in card(project, '1').sections['Validation'] if b.get('title') == 'On the sealed test set')['rows'][0]
    assert row == ['roc_auc', '0.84', '0.82 to 0.86 (95%)', '1,200', 'ok', f'entry {entry.seq}, {entry.at[:10]}']

def test_undefined_figures_say_why(project):
    none = dict(metric='roc_auc', status='undefined', value=None, low=None, high=None, n=3, level=0.95, reason='one class only')
    body = dict(verdict='undetermined', metrics=dict(roc_auc=none), model_hash='a'*64, looks=1)
    project.ledger.append(stage='validation', kind='validation', subject='1', body=body, actor='night')
    assert 'undefined: one class only' in card(project, '1').to_html()
    assert 'could not be measured: one class only' in card(project, '1', view='plain').to_html()

def test_the_plain_view_tells_differences_between_groups_in_words(project):
    gap = lambda metric, **more: dict(metric=metric, status='ok', value=.1, low=.02, high=.2, n=900, level=.95, reason='') | more
    validate(project, disparities={'sex: recall': gap('recall'), '{0} <b>: accuracy': gap('accuracy', status='undefined', value=None, low=None, high=None, reason='one group')})
    texts = [b['text'] for b in card(project, '1', view='plain').sections['Whether it works as well for everybody']]
    assert 'finds 10 more in one group by sex than in another (the data allow for 2 to 20).' in ' '.join(texts)
    assert any('{0} <b>' in t and 'could not be measured: one group' in t for t in texts)

def test_same_evidence_same_card_recorded_once(project):
    first = card(project, '1')
    assert card(project, '1') == first and len(project.ledger.entries('card')) == 1
    approve(project, '1', by='Grace', because='Good.')
    assert card(project, '1') != first and len(project.ledger.entries('card')) == 2
    kept = Card.from_body(project.ledger.last('card', '1 model').body)
    assert kept == card(project, '1') and kept.to_html() == card(project, '1').to_html()

def test_a_card_does_not_take_evidence_of_another_version(project):
    register(project, '2', hash='b'*64)
    assert 'Missing: On the sealed test set — mlcycle run validation' in card(project, '2').gaps
    assert card(project).version == '2'   # nobody was promoted: the newest
    promote(project, '1')
    assert card(project).version == '1' and champion(project.ledger) == '1'

def test_unknown_version_and_view(project):
    with pytest.raises(SettingsError, match='Views: model, annex-iv, sr-26-2, nist-rmf, plain'): card(project, view='pdf')
    with pytest.raises(SettingsError, match='Versions: 1'): card(project, '<b>9</b>')

def test_views_claim_nothing(project):
    for view in VIEWS:
        text = card(project, '1', view=view).to_markdown().lower()
        assert 'not a statement of compliance' in text and 'is compliant' not in text and 'complies with' not in text
    annex = card(project, '1', view='annex-iv')
    assert len(annex.order) == 9 and all(annex.sections[name] for name in annex.order)
    assert any('declaration of conformity' in g for g in annex.gaps)

# ---- history and audit

def test_history_tells_who_was_what_when(project):
    register(project, '2', hash='b'*64)
    promote(project, '1'), promote(project, '2', 'challenger'), promote(project, '2', by='Katherine')
    project.ledger.append(stage='retirement', kind='retirement', subject='1', body=dict(version='1'), actor='x')
    rows = history(project)
    assert [(r['version'], r['role'], r['by']) for r in rows] == [('1', 'champion', 'Grace'), ('2', 'challenger', 'Grace'), ('2', 'champion', 'Katherine')]
    assert rows[0]['to'] == rows[2]['from'] == rows[1]['to'] and rows[2]['to'] is None
    assert set(rows[0]) >= {'version', 'role', 'from', 'to', 'by', 'because', 'entry'}
    at = lambda when: [(r['version'], r['role']) for r in history(project, when)]
    assert at(rows[0]['from']) == [('1', 'champion')] and at(rows[2]['from']) == [('2', 'champion')]
    assert at(rows[2]['from'][:10]) == [('2', 'champion')] and at('2000-01-01') == []   # a bare date: the end of that day
    assert json.loads(json.dumps(rows)) == rows

def test_history_names_the_evidence_of_the_gates(project):
    promote(project, '1', gates=dict(validated=[2], signed=[5, 4]))
    assert history(project)[0]['evidence'] == [2, 4, 5]

@pytest.mark.parametrize('when', ['yesterday', '2026-13-01', '', '12/05/2026'])
def test_history_refuses_what_is_no_date(project, when):
    with pytest.raises(SettingsError, match='no date'): history(project, when)

def test_retiring_the_champion_ends_its_role(project):
    promote(project, '1')
    project.ledger.append(stage='retirement', kind='retirement', subject='1', body=dict(version='1'), actor='x')
    assert history(project)[0]['to'] is not None and history(project, '2999-01-01') == []

def touch(project, statement):
    with sqlite3.connect(project.store/'ledger.db') as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall(): db.execute(f'DROP TRIGGER {name}')
        db.execute(statement)

def test_audit_finds_a_changed_approval(project):
    approve(project, '1', by='Grace', because='Good.')
    head = project.ledger.head()
    assert audit(project, [head]).ok
    touch(project, "UPDATE ledger SET body = replace(body, 'Grace', 'Mallory') WHERE kind = 'approval'")
    found = audit(project)
    assert not found.ok and found.broken == head[0] and 'changed' in found.why

def test_audit_finds_a_cut_end_only_by_a_kept_head(project):
    head = project.ledger.head()
    touch(project, 'DELETE FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)')
    assert not audit(project).ok   # the head beside the ledger
    (project.folder/'ledger.heads').unlink()
    assert audit(project).ok and not audit(project, [head]).ok
    assert 'disagree' in audit(project, [head, (head[0], 'f'*64)]).why

def test_every_error_is_ours(project):
    for call in (lambda: approve(project, '\x00', by='x', because='y'), lambda: card(project, '\x00'), lambda: approve(project, 'v'*10_000, by='x', because='y')):
        with pytest.raises(MlcycleError): call()
    assert audit(project).ok
