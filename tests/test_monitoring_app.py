"The monitoring page in a real browser: figures of a finished project, read-only, nothing of the source, nothing fetched from outside."
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from mlcycle.core import Project
from mlcycle.dashboard import monitoring_app
from mlcycle.monitoring import monitor
from mlcycle.viewer import app_command, app_environment
from test_monitoring import NOW, log, project_at, rows, start

ARGUMENTS = '--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update --disable-sync'.split()
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
def served(finished):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(app_command('monitoring', port=port), env=app_environment(finished), start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try: socket.create_connection(('127.0.0.1', port), .3).close()
        except OSError: time.sleep(.2)
        else: break
    yield port
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(20)


@pytest.mark.skipif(not Path('/usr/bin/chromium').exists(), reason='no Chromium on this machine')
@pytest.mark.timeout(180)
def test_in_chromium(finished, served, tmp_path):                                                                      # W03, W10
    from playwright.sync_api import sync_playwright
    files = {f: f.stat().st_mtime_ns for f in finished.store.rglob('*') if f.is_file() and f.suffix not in ('.db-shm', '.db-wal')}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path='/usr/bin/chromium', args=ARGUMENTS)
        page = browser.new_page(viewport={'width': 1366, 'height': 768})
        asked, left = [], []
        page.on('request', lambda r: asked.append(r.url))
        page.on('requestfailed', lambda r: left.append((r.url, r.failure)))
        page.goto(f'http://127.0.0.1:{served}/', timeout=120_000)
        page.wait_for_selector('.mlc .verdict', timeout=120_000)
        page.wait_for_function("document.querySelectorAll('.mlc img').length >= 4", timeout=60_000)
        words = page.inner_text('body')
        assert 'Not well since' in words and 'about 100 times larger' in words and 'Alarms' in words
        content = page.content()
        assert not any(secret in content for secret in ('monitoring_app', 'MLCYCLE_PROJECT', str(finished.folder), 'import os'))
        assert page.evaluate('window.harmed') is None and page.locator('.mlc [onerror]').count() == 0
        assert page.evaluate('document.documentElement.scrollWidth') <= 1366
        assert all(page.evaluate("[...document.querySelectorAll('.mlc img')].map(i => i.naturalWidth > 0)"))
        page.get_by_label('Column').select_option('age')
        page.wait_for_function("[...document.querySelectorAll('.mlc img')].some(i => i.alt.startsWith('age:'))", timeout=60_000)
        page.set_viewport_size({'width': 400, 'height': 800})
        page.wait_for_timeout(500)
        assert page.evaluate('document.documentElement.scrollWidth') <= 420
        browser.close()
    assert {f: f.stat().st_mtime_ns for f in files if f.exists()} == files
    at_home = (f'http://127.0.0.1:{served}/', f'ws://127.0.0.1:{served}/', 'data:', 'blob:')
    stopped = {u for u, why in left if why == 'csp'}   # refused by the page's own policy before anything is sent
    assert {u for u in asked if not u.startswith(at_home)} <= stopped
