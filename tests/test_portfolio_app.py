"The portfolio: every project of a folder, told apart, sorted, each leading to its own page."
import pytest

from apps import Looking, chromium, needs_chromium, served
from mlcycle.core import Project
from mlcycle.dashboard import publish_monitoring
from mlcycle.monitoring import monitor
from mlcycle.portfolio import portfolio, portfolio_app, portfolio_page, project_at
from test_monitoring import NOW, log, project_at as monitored_project, rows, start

BAD = '<img src=x onerror=window.harmed=1>'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "One project that is not well, one without a model, one whose settings cannot be read, and a folder that is none."
    root = tmp_path_factory.mktemp('portfolio')
    p = monitored_project(root/'loans')
    log(p, rows(300, seed=1).assign(income=lambda d: d['income']*100), start(0))
    monitor(p, now=NOW)
    publish_monitoring(p)
    (root/'new').mkdir()
    text = (root/'loans'/'mlcycle.toml').read_text()
    (root/'new'/'mlcycle.toml').write_text(text.replace(f'name = "{p.name}"', f'name = "{BAD}"'))
    (root/'torn').mkdir()
    (root/'torn'/'mlcycle.toml').write_text('[project')
    (root/'notes').mkdir()
    return root


def test_each_project_is_a_row_and_a_broken_one_breaks_nothing(folder):
    found = {s.place: s for s in portfolio(folder)}
    loans, new, torn = (next(s for s in found.values() if project_at(folder, s.place).name == name) for name in ('loans', 'new', 'torn'))
    assert (loans.health, loans.alarms > 0, loans.pages) == ('not well', True, ['monitoring'])
    assert (new.role, new.health) == ('no model yet', 'cannot tell') and 'problem: missing' in new.open_stages
    assert 'cannot be read' in torn.why and len(found) == 3 and project_at(folder, '../loans') is None


def test_what_needs_a_person_comes_first_and_names_are_escaped(folder):
    page = portfolio_page(folder)
    assert page.index('Not well') < page.index('Cannot tell') and BAD not in page and '&lt;img' in page
    app = portfolio_app(folder)
    app.children[1].children[1].value = 'not well'
    assert 'torn' not in app.children[2].value and '/shown/' in app.children[2].value


@needs_chromium
def test_in_chromium(folder):
    with served(folder, 'portfolio') as port, chromium() as browser:
        looking = Looking(browser, port).open()
        live = looking.live()
        looking.told(live, '1 not well, 2 cannot tell', selectors=3)
        assert live.evaluate('window.harmed') is None
        assert looking.walk() == ['Sort by', 'Health', 'Owner', 'monitoring']
        live.get_by_label('Sort by').select_option('name')
        live.get_by_label('Health').select_option('not well')
        live.wait_for_function("document.querySelectorAll('.portfolio tbody tr').length === 1")
        looking.page.set_viewport_size({'width': 390, 'height': 844})
        live.wait_for_function('document.documentElement.scrollWidth <= 390')   # the frame hears of it later than the page
        looking.tab_to('monitoring')
        looking.page.keyboard.press('Enter')
        looking.page.wait_for_url('**/shown/**')
        assert 'Not well' in looking.page.inner_text('body')
        assert not looking.strangers() and not looking.errors
