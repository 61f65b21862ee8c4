"""The explanation page in a real browser: figures of a project, read-only, no source, nothing fetched from outside."""
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from apps import Looking, chromium, needs_chromium, served
from mlcycle.attributions import record_attributions
from mlcycle.core import Project
from mlcycle.counterfactuals import counterfactuals
from mlcycle.explanation_app import contributions_table, explainability_app, publish_explainability, shown_rows
from mlcycle.gates import approval_digest
from mlcycle.registry import promote
from mlcycle.scoring import predictions, score
from mlcycle.validation import looks, validate
from test_validation import people, project_of, registered

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


def test_what_many_rows_have_in_common_was_recorded_by_a_step_and_names_columns_as_people_do(finished):
    version = predictions(finished).version[0]
    assert 'Next: mlcycle run monitoring' in texts(explainability_app(reading(finished)))
    found = record_attributions(finished, version)
    before = finished.ledger.head()
    page = explainability_app(reading(finished))
    text = texts(page)
    assert 'Next: mlcycle run monitoring' not in text and 'alt="Mean size of contributions by window' in text
    assert 'What would have changed it' in text and 'Held fixed:' in text and f'Means over {found.source}' in text
    assert 'onehot' not in text and '__' not in text and BAD not in text and finished.ledger.head() == before
    inputs = set(finished.registry.load(version).info.columns)
    assert set(found.partners.column) == inputs and set(found.groups.column) <= inputs | {''}


def test_no_answer_changes_what_cannot_be_changed(finished):
    shown = shown_rows(reading(finished), predictions(finished).version[0])
    protected = set(finished.settings.data.protected)
    for row in range(0, 40, 8):
        found = counterfactuals(shown.model, shown.rows.iloc[[row]], space=shown.space)
        for way in found.found:
            assert not set(way.changes.column) & protected
            changed = shown.rows.iloc[[row]].astype(object).assign(**{c.column: c.to for c in way.changes.itertuples()})
            numbers = [c for c in changed if pd.api.types.is_numeric_dtype(shown.rows[c])]
            again = shown.model.predict(changed.astype({c: float for c in numbers})).iloc[0]
            assert int(again.decision) != int(shown.model.predict(shown.rows.iloc[[row]]).decision.iloc[0])
            assert again.score == pytest.approx(way.score, abs=1e-4)


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


@needs_chromium
def test_in_chromium(finished):                                                                               # W03, W10
    publish_explainability(finished)
    files = {f: f.stat().st_mtime_ns for f in finished.store.rglob('*') if f.is_file() and f.suffix not in ('.db-shm', '.db-wal')}
    with served(finished.folder, 'explainability') as port, chromium() as browser:
        looking = Looking(browser, port).open()
        assert 'What the model uses' in looking.page.inner_text('body')   # before any kernel is up
        live = looking.live()
        live.wait_for_function("document.querySelectorAll('.mlc img').length >= 3")
        looking.told(live, 'What the model uses', 'champion since', 'Probability', selectors=3)
        secrets = ('explainability_app', 'MLCYCLE_PROJECT', str(finished.folder), 'import os')
        assert not any(secret in text for secret in secrets for text in (live.content(), looking.page.content(), ''.join(map(str, looking.frames))))
        assert live.evaluate('window.harmed') is None and live.locator('.mlc [onerror]').count() == 0
        assert live.evaluate('document.documentElement.scrollWidth') <= 1366
        assert [name for name in looking.walk() if name != 'Groups by'] == ['Version', 'Prediction', 'Prediction id', 'Column']   # that one where there are several
        looking.tab_to('Column')
        looking.page.keyboard.type('job')
        live.wait_for_function("[...document.querySelectorAll('.mlc img')].some(i => i.alt.startsWith('job:'))")
        contributions = "[...document.querySelectorAll('.mlc img')].find(i => i.alt.startsWith('Contributions')).alt"
        before = live.evaluate(contributions)
        live.get_by_label('Prediction', exact=True).select_option(index=9)
        live.wait_for_function(f'old => {contributions} != old', arg=before)
        looking.page.set_viewport_size({'width': 390, 'height': 844})
        live.wait_for_function('document.documentElement.scrollWidth <= 390')   # the frame hears of it later than the page
        assert not looking.strangers() and not looking.errors
    assert {f: f.stat().st_mtime_ns for f in files if f.exists()} == files
