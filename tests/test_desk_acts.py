"The desks where a person decides: on one small project with a real registry, by the widgets' own values, against the ledger."
import os, re
from html.parser import HTMLParser
from importlib import import_module
import numpy as np, pandas as pd, pytest
from mlcycle.core import Project
from mlcycle.deployment_desk import deployment_desk, shadow_html
from mlcycle.desk import unfolded
from mlcycle.forms import Form
from mlcycle.governance_desk import governance_desk
from mlcycle.monitoring_desk import monitoring_desk
from mlcycle.retirement_desk import retirement_desk
from mlcycle.retraining_desk import retraining_desk
from waiting import PATIENCE

DESKS = {'deployment': deployment_desk, 'monitoring': monitoring_desk, 'retraining': retraining_desk, 'governance': governance_desk, 'retirement': retirement_desk}
UNKIND = '<script>alert(1)</script>'
TOML = f'''[project]
name = "Loans"
author = "Ada"
[problem]
task = "binary"
target = "repaid"
[data]
sources = [{{name = "loans", path = "loans.csv"}}]
id = "id"
protected = ["sex"]
drop = ["sex"]
'''


@pytest.fixture(scope='module')
def lender(tmp_path_factory) -> Project:
    "Two versions by Ada, both validated; nobody has signed; a stranger's words in a group and a reason."
    from sklearn.linear_model import LogisticRegression
    from mlcycle.features import build_pipeline
    from mlcycle.plans import infer_plan
    folder = tmp_path_factory.mktemp('loans')
    (folder/'mlcycle.toml').write_text(TOML)
    project, rows = Project(folder, actor='night'), people(600)
    plan, train = infer_plan(rows, project.settings), project.tables.write('train', rows)
    project.record(train, subject='train')
    for harshness in (0, .3):
        pipeline = build_pipeline(plan, LogisticRegression()).fit(rows[plan.inputs], rows['repaid'])
        pipeline[-1].intercept_ -= harshness
        facts = {'algorithm': 'logistic', 'plan': plan.body(), 'data': train.hash, 'threshold': .5}
        version = project.registry.register(pipeline, example=rows[plan.inputs], facts=facts).version
        figure = dict(metric='roc_auc', status='ok', value=.8, low=.77, high=.83, n=600, level=.95, reason='')
        criteria = dict(columns=['verdict', 'kind', 'criterion', 'value', 'low', 'high', 'n', 'threshold', 'why'], data=[['pass', 'success', 'roc_auc >= 0.7', .8, .77, .83, 600, .7, UNKIND]])
        project.ledger.append(stage='validation', kind='validation', subject=version, actor='night', body=dict(verdict='pass', why=UNKIND, metrics={'roc_auc': figure}, verdicts=criteria, looks=1))
    return project


def people(n: int, seed: int=0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    income = draw.normal(1, 1, n)
    return pd.DataFrame({'id': [f'p{seed}-{i}' for i in range(n)], 'income': income, 'sex': draw.choice(['f', UNKIND], n), 'repaid': (income+draw.normal(0, .7, n) > 0).astype(int)})


class Person:
    "Somebody at a desk."
    def __init__(self, project: Project, stage: str):
        self.desk = DESKS[stage](project)
        self.desk.widget()

    def act(self, button: str):
        return next((a, p) for a in unfolded(self.desk.parts) for p in getattr(a, 'panels', ()) if p.deed.name == button)

    def press(self, button: str, **typed) -> str:
        "Fill in and press; what the act says."
        act, panel = self.act(button)
        for name, value in typed.items(): act.controls[name].value = value
        assert not panel.button.disabled, panel.why.value
        panel.button.click()
        act.thread.join(PATIENCE)
        return act.said.value

    def why_not(self, button: str, **typed) -> str:
        "Fill in; why the button waits."
        act, panel = self.act(button)
        for name, value in typed.items(): act.controls[name].value = value
        assert panel.button.disabled
        return panel.why.value


def test_a_life_is_decided_by_buttons_and_every_decision_is_evidence(lender):
    "Signed by two others than the author, promoted, answered, compared, shadowed, let in, rolled back, ended: each by name and with a reason."
    from mlcycle.ledger import champion
    from mlcycle.release import ShadowReport
    from mlcycle.scoring import answers, label, score
    here = Person(lender, 'deployment')
    assert 'ADA built version 1 and cannot approve it' in here.why_not('Approve', version='1', by='  ADA ', because='mine')
    assert 'waits at' in here.why_not('Promote to champion') and 'mlcycle approve 1' in here.why_not('Promote to champion')
    for name in ('Grace', 'Hedy'): assert f'approved by {name}' in here.press('Approve', version='1', by=name, because=f'read it {UNKIND}')
    assert 'Version 1 is champion' in here.press('Promote to champion') and champion(lender.ledger) == '1'

    new = people(200, seed=1)
    made = score(lender, new)
    label(lender, pd.DataFrame({'prediction_id': made['prediction_id'], 'label': new['repaid']}))
    assert 'another decision' in here.press('Replay', version='2', by='Grace', because='who is hit?') and lender.ledger.last('replay', '2').actor == 'Grace'
    assert 'No version stands as a shadow' in here.desk.html() and 'Version 2 is shadow' in here.press('Promote to shadow', version='2', by='Grace', because='nobody is told')
    here.act('Compare the shadow')[0].controls['version'].value = '2'
    assert 'seen no request as a shadow yet' in here.act('Compare the shadow')[0].shown.value
    said = answers(lender.registry.load('2'), new)[['score', 'decision']].assign(prediction_id=made['prediction_id'], version='2', at=pd.Timestamp.now('UTC'))
    lender.tables.write('shadow', said.head(40), mode='append')   # as a server does, of the first forty records
    here.desk.refresh()
    assert 'Still to fill in: By' in here.why_not('Compare the shadow', by=' ')
    assert 'another decision from version 2 than from version 1' in here.press('Compare the shadow', by='Hedy')
    assert '40 outcomes are known, monitoring.min_rows asks for 50' in here.act('Compare the shadow')[0].shown.value   # said as missing, not as a figure
    lender.tables.write('shadow', said.tail(160), mode='append')
    assert here.press('Compare the shadow', by='Hedy') and lender.ledger.last('shadow', '2').actor == 'Hedy'
    better, seen = ShadowReport.from_body(lender.ledger.last('shadow', '2').body).quality['roc_auc'], shadow_html(lender)
    assert (better.status, better.n) == ('ok', 200) and 'nobody is told' in seen and seen.count('>200<') == 2 and 'Grace' in seen
    assert 'may not answer yet' in here.why_not('Begin', version='2', by='Grace', because='newer')

    desk = Person(lender, 'retraining')
    assert 'asked for by Hedy' in desk.press('Ask for a challenger', by='Hedy', because='a new law')
    assert 'whatever stands against it' in desk.press('Train one anyway', by='Hedy', because='a new law')
    for name in ('Grace', 'Hedy'): here.press('Approve', version='2', by=name, because='read it')
    assert 'compared: missing' in here.why_not('Promote to champion')
    assert 'let version 2 pass gate compared' in here.press('Override the gate', version='2', gate='compared', by='Grace', because='the replay is enough')
    assert 'differs by' in desk.press('Compare again', version='2', by='Hedy') and lender.ledger.last('comparison', '2').actor == 'Hedy'
    assert 'begun at 1 %' in here.press('Begin', version='2', by='Grace', because='newer') and 'stopped' in here.press('Stop', by='Grace', because='enough seen')
    assert 'Version 2 is champion' in here.press('Promote to champion', version='2', by='Hedy', because='let it answer')
    assert 'Version 1 is champion again' in here.press('Roll back', by='Grace', because='complaints')

    end = Person(lender, 'retirement')
    assert 'Type the version again' in end.why_not('Retire this version', version='2', by='Hedy', because='rolled back from')
    end.act('Retire this version')[1].once_more.value = '2'
    assert 'Version 2 is retired; version 1 answers instead' in end.press('Retire this version')
    decided = [(e.kind, e.body['by']) for e in lender.ledger.entries(('approval', 'override', 'promotion', 'request', 'retirement'))]
    assert decided == [('approval', 'Grace'), ('approval', 'Hedy'), ('promotion', 'Hedy'), ('promotion', 'Grace'), ('request', 'Hedy'), ('request', 'Hedy'), ('approval', 'Grace'), ('approval', 'Hedy'),
                       ('override', 'Grace'), ('promotion', 'Hedy'), ('promotion', 'Grace'), ('retirement', 'Hedy')]


@pytest.mark.parametrize('stage', ['problem', 'data', 'development', 'validation', *DESKS])
def test_a_form_that_nobody_has_touched_finds_no_mistake_and_writes_nothing(lender, stage):
    "What is not set stays so, a whole number too."
    desk = getattr(import_module(f'mlcycle.{stage}_desk'), f'{stage}_desk')(lender)
    forms = [p for p in unfolded(desk.parts) if isinstance(p, Form)]
    for form in forms: form.widget(desk)
    assert forms and [(f.title, *f.changed()) for f in forms] == [(f.title, {}, {}) for f in forms]


class Controls(HTMLParser):
    "What a page could be clicked or typed into."
    def __init__(self, page: str):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in ('button', 'input', 'select', 'textarea', 'script', 'iframe') or any(k.startswith('on') for k, _ in attributes): self.found.append(tag)


@pytest.mark.parametrize('stage', DESKS)
def test_without_a_kernel_a_desk_is_whole_and_holds_no_control(lender, stage):
    page = DESKS[stage](Project(lender.folder, read_only=True))._repr_mimebundle_()
    assert list(page) == ['text/html', 'text/plain'] and not Controls(page['text/html']).found and UNKIND not in page['text/html']
    assert re.search(r'mlcycle \w+ ', page['text/html']) and not re.search(r'https?://(?!www.w3.org)', page['text/html'])


@pytest.mark.parametrize('stage', DESKS)
def test_before_anything_ran_a_desk_says_what_is_missing(tmp_path, stage):
    (tmp_path/'mlcycle.toml').write_text(TOML)
    desk = DESKS[stage](Project(tmp_path))
    desk.widget()
    ready = [p.deed.name for a in unfolded(desk.parts) for p in getattr(a, 'panels', ()) if not p.button.disabled]
    assert not ready and 'mlcycle run' in desk.html() and not (tmp_path/'store/ledger.db').exists()


def test_what_another_person_changes_meanwhile_is_not_signed(lender):
    "Between reading and pressing, the sealed test was opened again with another verdict."
    here = Person(lender, 'deployment')
    act, panel = here.act('Approve')
    for name, value in dict(version='1', by='Mary', because='looks good').items(): act.controls[name].value = value
    old = lender.ledger.last('validation', '1').body
    Project(lender.folder, actor='Bob').ledger.append(stage='validation', kind='validation', subject='1', body=old | {'verdict': 'fail', 'looks': 2}, actor='Bob')
    panel.button.click()
    act.thread.join(PATIENCE)
    assert 'nothing was done' in act.said.value and 'Sealed test: fail' in act.shown.value and not any(e.body['by'] == 'Mary' for e in lender.ledger.entries('approval'))


def test_a_gap_and_an_outcome_are_handed_in_by_name(lender):
    from mlcycle.log import last_event
    here = Person(lender, 'governance')
    assert 'Hedy on incident response plan' in here.press('Write it down', what='incident response plan', text=f'Call the desk {UNKIND}', by='Hedy')
    assert UNKIND not in here.desk.html()
    (lender.folder/'late.csv').write_text('prediction_id,label\nnobody,1\n')
    assert '1 unknown' in Person(lender, 'monitoring').press('Keep the outcomes', file='late.csv', by='Hedy', because='from the branch')
    assert last_event(lender, 'monitoring', 'outcomes came')['because'] == 'from the branch'
