"""The explanation page in a real browser: figures of a project, read-only, no source, nothing fetched from outside."""
import os, signal, socket, subprocess, time
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from mlcycle.core import Project
from mlcycle.explanation_app import contributions_table, explainability_app, shown_rows
from mlcycle.gates import approval_digest
from mlcycle.registry import promote
from mlcycle.scoring import predictions, score
from mlcycle.validation import looks, validate
from test_validation import people, project_of, registered

ARGUMENTS = ('--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update '
             '--disable-sync').split()
BAD = '<img src=x onerror=window.harmed=1>'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A validated, signed, promoted version that has answered; with markup in names and values."
    df = people(900).rename(columns={'<img src=x onerror=alert(1)>': BAD})
    df.loc[:5, 'job'] = BAD
    project = project_of(tmp_path_factory.mktemp('app'), train=df.iloc[:600], test=df.iloc[600:])
    version = registered(project, df.iloc[:600], HistGradientBoostingClassifier(max_iter=20, random_state=0), 'tree').version
    validate(project)
    for name in ('Bo', 'Cy'):
        body = {'version': version, 'by': name, 'because': 'looked', 'digest': approval_digest(project, version)}
        project.ledger.append(stage='governance', kind='approval', subject=version, body=body, actor=name)
    promote(project, version, because='it passed')
    score(project, df.iloc[600:650], at='2026-03-01T00:00:00Z')
    score(project, df.iloc[650:900], at='2026-04-01T00:00:00Z')
    return project


def texts(widget):
    "The HTML of a page; what is typed or chosen is no markup."
    import ipywidgets
    own = widget.value if isinstance(widget, ipywidgets.HTML) else ''
    return own+''.join(texts(c) for c in getattr(widget, 'children', ()))


def named(widget, label):
    if getattr(widget, 'description', None) == label: return widget
    return next((found for c in getattr(widget, 'children', ()) if (found := named(c, label)) is not None), None)


def reading(project): return Project(project.folder, read_only=True)


def test_the_page_shows_logged_predictions_and_writes_nothing(finished):
    before, seen = finished.ledger.head(), len(looks(finished))
    page = explainability_app(reading(finished))
    text = texts(page)
    assert 'champion since' in text and 'As recorded by validation' in text and 'Probability' in text
    assert '200 newest logged predictions' in text and 'read-only' in text
    assert BAD not in text and '&lt;img src=x' in text
    assert finished.ledger.head() == before and len(looks(finished)) == seen


def test_an_old_prediction_is_found_by_its_id(finished):
    first = predictions(finished).prediction_id[0]
    page = explainability_app(reading(finished))
    assert first not in str(named(page, 'Prediction').options)
    named(page, 'Prediction id').value = first
    assert first in named(page, 'Prediction').options[0][0] and named(page, 'Prediction').value == 0
    named(page, 'Prediction id').value = BAD
    assert 'No prediction' in texts(page) and BAD not in texts(page)


def test_what_is_shown_is_what_was_answered(finished):
    log = predictions(finished).iloc[::-1].reset_index(drop=True)
    shown = shown_rows(reading(finished), log.version[0])
    assert np.allclose(shown.model.scores(shown.rows), log.score[:200])
    table = contributions_table(shown, 3)
    assert table.contribution.sum()+shown.explanation.base[3] == pytest.approx(shown.explanation.scores[3])


def test_choices_follow(finished):
    page = explainability_app(reading(finished))
    before = texts(page)
    named(page, 'Prediction').value = 7
    middle = texts(page)
    named(page, 'Column').value = 'job'
    assert before != middle != texts(page) and 'alt="job: contribution' in texts(page)


def test_classes_can_be_chosen_and_an_unvalidated_version_says_so(tmp_path):
    df = people(500)
    project = project_of(tmp_path, 'task = "multiclass"\ntarget = "kind"', train=df)
    registered(project, df, LogisticRegression(max_iter=300))
    page = explainability_app(reading(project))
    text = texts(page)
    assert 'Not validated yet' in text and 'not promoted' in text and 'it was trained on' in text
    assert [o[1] for o in named(page, 'Class').options] == ['0', '1', '2']
    named(page, 'Class').value = '2'
    assert 'of 2 over its values' in texts(page)


def test_no_model_and_a_touched_model_are_said(tmp_path):
    df = people(300)
    project = project_of(tmp_path, train=df)
    assert 'mlcycle run development' in texts(explainability_app(reading(project)))
    made = registered(project, df)
    (project.store/made.uri).write_bytes(b'touched')
    text = texts(explainability_app(reading(project)))
    assert 'is not the one that was recorded' in text and 'Traceback' not in text and str(tmp_path) not in text


@pytest.fixture(scope='module')
def served(finished):
    from mlcycle.viewer import app_command, app_environment
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(app_command('explainability', port=port), env=app_environment(finished), start_new_session=True,
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
def test_in_chromium(finished, served):                                                                       # W03, W10
    from playwright.sync_api import sync_playwright
    files = {f: f.stat().st_mtime_ns for f in finished.store.rglob('*') if f.is_file() and f.suffix not in ('.db-shm', '.db-wal')}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path='/usr/bin/chromium', args=ARGUMENTS)
        page = browser.new_page(viewport={'width': 1366, 'height': 768})
        asked, refused, frames = [], set(), []
        page.on('request', lambda r: asked.append(r.url))
        page.on('requestfailed', lambda r: refused.add(r.url) if r.failure == 'csp' else None)
        page.on('websocket', lambda w: w.on('framereceived', lambda f: frames.append(f)))
        page.goto(f'http://127.0.0.1:{served}/', timeout=120_000)
        page.wait_for_selector('.mlc .said', timeout=120_000)
        page.wait_for_function("document.querySelectorAll('.mlc img').length >= 3", timeout=60_000)
        words = page.inner_text('body')
        assert 'What the model uses' in words and 'champion since' in words and 'Probability' in words
        secrets = ('explainability_app', 'MLCYCLE_PROJECT', str(finished.folder), 'import os')
        assert not any(secret in text for secret in secrets for text in (page.content(), ''.join(map(str, frames))))
        assert page.evaluate('window.harmed') is None and page.locator('.mlc [onerror]').count() == 0
        assert all(page.evaluate("[...document.querySelectorAll('.mlc img')].map(i => i.naturalWidth > 0)"))
        assert page.evaluate('document.documentElement.scrollWidth') <= 1366
        page.get_by_label('Column').select_option('job')
        page.wait_for_function("[...document.querySelectorAll('.mlc img')].some(i => i.alt.startsWith('job:'))", timeout=60_000)
        contributions = "[...document.querySelectorAll('.mlc img')].find(i => i.alt.startsWith('Contributions')).alt"
        before = page.evaluate(contributions)
        page.get_by_label('Prediction', exact=True).select_option(index=9)
        page.wait_for_function(f'old => {contributions} != old', arg=before, timeout=60_000)
        if os.environ.get('SCREENSHOT'): page.set_viewport_size({'width': 1366, 'height': 1300}); page.screenshot(path=os.environ['SCREENSHOT'], full_page=True)
        page.set_viewport_size({'width': 400, 'height': 800})
        page.wait_for_timeout(500)
        assert page.evaluate('document.documentElement.scrollWidth') <= 420
        browser.close()
    assert {f: f.stat().st_mtime_ns for f in files if f.exists()} == files
    home = (f'http://127.0.0.1:{served}/', f'ws://127.0.0.1:{served}/', 'data:', 'blob:')
    assert {u for u in asked if not u.startswith(home)} <= refused
