"The desks in a real JupyterLab, by clicks and typing alone, by keyboard alone, and the night that follows from what was clicked."
import json, re
import pytest
from mlcycle.core import Project
from mlcycle.ledger import champion
from mlcycle.pipeline import status
from mlcycle.validation import Validation
import walk

pytest.importorskip('playwright')


CASE = walk.ADULT._replace(criterion=('roc_auc', '>=', '0.6'))   # so few rows can show that much
ALL = """from mlcycle.core import Project
from mlcycle.ledger import champion
from IPython.display import display
from importlib import import_module
here = Project('..', actor='Ada')
for stage in ('problem', 'data', 'development', 'validation', 'deployment', 'monitoring', 'retraining', 'governance', 'retirement'):
    display(getattr(import_module(f'mlcycle.{stage}_desk'), f'{stage}_desk')(here))"""
MARK = """() => { window.reachable = [...document.querySelectorAll('.mlcycle-live')].flatMap(d => [...d.querySelectorAll('a[href],button,input,select,textarea,[tabindex]')])
  .filter(e => e.offsetParent !== null && !e.disabled && e.tabIndex >= 0);
  return window.reachable.map(e => [e.tabIndex, e.getBoundingClientRect().top, (e.labels?.[0]?.innerText || e.innerText || e.placeholder || '').slice(0, 40)]) }"""
FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  return [window.reachable.indexOf(e), s.boxShadow !== 'none' || s.outlineStyle !== 'none'] }"""
UNNAMED = re.compile(r'^ *- (?:button|checkbox|combobox|link|searchbox|slider|textbox)(?! ").*', re.M)


def by_keyboard(seat, case) -> dict:
    "All nine desks on one page, without a mouse: what Tab reaches, what it is called, and what Enter and Space do."
    page = seat.page
    seat.open(f'{case.name}/notebooks/desks.ipynb')
    seat.run_all()
    page.locator('.mlcycle-live h3', has_text='Retirement').wait_for()
    page.wait_for_function("() => [...document.querySelectorAll('.mlcycle-live')].at(-1).querySelectorAll('button').length > 2")
    desks = page.locator('.mlcycle-live')
    unnamed = [line for i in range(desks.count()) for line in UNNAMED.findall(desks.nth(i).aria_snapshot())]
    reachable, visited = page.evaluate(MARK), []
    page.evaluate('() => window.reachable[0].focus()')
    for _ in range(2*len(reachable)):   # what only scrolls is reached as well
        visited.append(page.evaluate(FOCUS))
        if visited[-1][0] == len(reachable)-1: break
        page.keyboard.press('Tab')
    fold = page.locator('.mlcycle-live .mlcycle-fold').first
    inner, folds = page.locator('.mlcycle-live .mlcycle-fold + .widget-vbox').first, []
    for key in ('Enter', 'Space'):
        fold.press(key)
        inner.wait_for(state='visible' if key == 'Enter' else 'hidden')   # Enter opens it, Space folds it again
        folds.append(inner.is_visible())
    seat.row('Owner', 'Card').locator('input').first.focus()
    page.keyboard.type('Grace')
    seat.part('Card').get_by_text("owner = ").first.wait_for()
    while 'Write to' not in page.evaluate('() => document.activeElement.innerText || ""'): page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    seat.part('Card').get_by_text('Written: project.owner').first.wait_for()
    return dict(desks=desks.count(), unnamed=unnamed, reachable=reachable, visited=visited, folds=folds)


@pytest.fixture(scope='module')
def walked(data_dir, tmp_path_factory):
    "Adult, a part of it, from a folder with nothing but the file to a champion, its bundle and the plan of its end; what the page asked strangers for."
    folder = walk.lay_out(CASE, tmp_path_factory.mktemp('desk'), rows=700)
    keyboard = {}
    def reach(seat, case) -> None:
        cell = dict(cell_type='code', id='all', metadata={}, source=ALL, outputs=[], execution_count=None)
        (folder/case.name/'notebooks/desks.ipynb').write_text(json.dumps(dict(cells=[cell], metadata={'kernelspec': {'name': 'python3', 'display_name': 'Python 3'}}, nbformat=4, nbformat_minor=5)))
        keyboard.update(by_keyboard(seat, case))
    seat = walk.walk(CASE, folder, stages=(*walk.FIRST, walk.approve, walk.plan_end, reach))
    return Project(folder/'adult', read_only=True), seat.strangers, keyboard


def test_nine_desks_are_worked_by_keyboard_alone(walked):
    "Tab goes through them in the order in which they are read, every control is named, the focus shows, Enter and Space press, and a form is written without a mouse."
    project, _, found = walked
    assert found['desks'] == 9 and found['unnamed'] == []
    assert {index for index, _, _ in found['reachable']} == {0} and len(found['reachable']) > 60
    tops = [top for _, top, _ in found['reachable']]
    assert all(later > earlier-30 for earlier, later in zip(tops, tops[1:]))
    stops = [i for i, _ in found['visited'] if i >= 0]
    assert stops == list(range(len(found['reachable']))) and all(shows for _, shows in found['visited'])
    assert found['folds'] == [True, False]
    assert Project(project.folder, read_only=True).settings.project.owner == 'Grace'


def test_a_person_reaches_a_champion_and_the_plan_of_its_end_by_clicks_alone(walked):
    project, strangers, _ = walked
    stages = {s['stage']: s for s in status(project)['stages']}
    assert {stages[s]['state'] for s in ('data', 'development', 'validation', 'deployment', 'retirement')} == {'done'} and stages['monitoring']['state'] == 'missing'
    assert stages['problem']['why'].startswith('changed since: settings')   # the split was decided after the seal, and it says so
    assert project.settings.problem.objective == CASE.objective and project.settings.development.trials == CASE.trials
    assert [e.subject for e in project.ledger.entries('look')] == ['1'] and project.latest(Validation).version == '1'
    assert [e.body['by'] for e in project.ledger.entries('approval')] == ['Grace', 'Katherine'] and champion(project.ledger) == '1'
    assert not project.ledger.entries('retirement') and len(project.ledger.entries('leaderboard')) == 1   # a plan ends nothing; a closed browser began nothing anew
    assert len(project.ledger.entries('schema')) == 1   # Run all of a step that is done has shown it, not done it again
    assert strangers == []


def test_what_was_clicked_gives_the_same_figures_at_night_in_a_fresh_copy(walked, tmp_path):
    project, *_ = walked
    assert walk.night_apart(walk.ADULT, project.folder.parent, tmp_path) == []
