"The monitoring page in a real browser: figures of a finished project, read-only, nothing of the source, nothing fetched from outside."
import pytest

from apps import Looking, chromium, needs_chromium, served
from mlcycle.core import Project
from mlcycle.dashboard import PANELS, drawn_panels, monitoring_app, monitoring_page, publish_monitoring
from mlcycle.monitoring import monitor
from mlcycle.pages import last_page
from test_monitoring import NOW, log, project_at, rows, start

BAD = '<img src=x onerror=window.harmed=1>'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    p = project_at(tmp_path_factory.mktemp('app') / 'loans', criteria=f'objective = "{BAD}"')
    for i in range(2): log(p, rows(300, seed=i), start(i))
    log(p, rows(300, seed=3).assign(income=lambda d: d['income'] * 100, channel=BAD), start(2))
    monitor(p, now=NOW)
    return p


def html_of(widget): return ''.join(getattr(w, 'value', '') for w in [widget] + list(getattr(widget, 'children', ())) if isinstance(getattr(w, 'value', ''), str)) + \
    ''.join(html_of(c) for c in getattr(widget, 'children', ()))


def test_the_page_answers_the_first_question_without_a_browser(finished):
    before = finished.ledger.head()
    page = monitoring_app(Project(finished.folder, read_only=True))
    text = html_of(page)
    assert 'Not well since' in text and 'about 100 times larger' in text and 'To do' in text and 'read-only' in text
    assert BAD not in text and '&lt;img' in text and finished.ledger.head() == before


def test_selectors_follow_one_another(finished):
    page = monitoring_app(Project(finished.folder, read_only=True))
    window, column = page.children[2].children[1:3]
    first = html_of(page.children[3])
    window.value = window.options[-1][1]
    assert html_of(page.children[3]) != first and column.value == column.options[0][1]
    column.value = 'age'
    assert 'age: shares in training' in html_of(page.children[3])


def test_an_empty_project_says_so(tmp_path):
    text = html_of(monitoring_app(Project(project_at(tmp_path / 'e').folder, read_only=True)))
    assert 'Cannot tell' in text and 'no predictions have been logged' in text


@pytest.fixture(scope='module')
def door(finished):
    publish_monitoring(finished)
    with served(finished.folder, 'monitoring') as port: yield port


def test_the_drawn_page_holds_the_same_panels_and_is_taken_over(finished):
    publish_monitoring(finished)
    text = monitoring_page(finished)
    assert BAD not in text and 'Not well since' in text and '<script' not in text and 'http://' not in text
    assert set(drawn_panels(finished)) == set(PANELS)
    shown = html_of(monitoring_app(Project(finished.folder, read_only=True)))
    assert all(html in shown for html in drawn_panels(finished).values())
    page, html = last_page(finished, 'monitoring')
    assert html == text and finished.ledger.verify().ok


@needs_chromium
def test_in_chromium(finished, door):                                                                                  # W03, W10
    files = {f: f.stat().st_mtime_ns for f in finished.store.rglob('*') if f.is_file() and f.suffix not in ('.db-shm', '.db-wal')}
    with chromium() as browser:
        looking = Looking(browser, door).open()
        page = looking.page
        page.wait_for_selector('.mlc .verdict')
        still = page.inner_text('body')
        assert 'Not well since' in still and 'about 100 times larger' in still and 'Drawn' in still   # before any kernel is up
        live = looking.live()
        looking.told(live, 'Not well since', 'about 100 times larger', 'Alarms', selectors=5)
        content = live.content()+page.content()+''.join(map(str, looking.frames))
        assert not any(secret in content for secret in ('monitoring_app', 'MLCYCLE_PROJECT', str(finished.folder), 'import os'))
        assert live.evaluate('window.harmed') is None and live.locator('.mlc [onerror]').count() == 0
        assert live.evaluate('document.documentElement.scrollWidth') <= 1366
        assert looking.walk() == ['roc_auc in numbers', 'Version', 'Window', 'Column', 'Groups by', 'Metric']   # by keyboard alone, and out again
        looking.tab_to('roc_auc in numbers')
        page.keyboard.press('Enter')
        assert live.locator('details').get_attribute('open') is not None
        looking.tab_to('Column')
        page.keyboard.type('age')
        live.wait_for_function("[...document.querySelectorAll('.mlc img')].some(i => i.alt.startsWith('age:'))")
        quality = "[...document.querySelectorAll('.mlc h2')].find(h => h.textContent.startsWith('Data quality')).parentElement.innerText"
        for name, key, panel in (('Window', 'ArrowDown', quality), ('Metric', 'ArrowDown', "document.querySelectorAll('.mlc img[alt^=\"selection_rate by group\"]').length")):
            before = live.evaluate(panel)
            looking.tab_to(name)
            page.keyboard.press(key)
            live.wait_for_function(f'old => {panel} !== old', arg=before)
        page.set_viewport_size({'width': 390, 'height': 844})
        live.wait_for_function('document.documentElement.scrollWidth <= 390')   # the frame hears of it later than the page
        assert not looking.strangers() and not looking.errors
    assert {f: f.stat().st_mtime_ns for f in files if f.exists()} == files
