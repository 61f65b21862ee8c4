"""Scoring: who may answer, what is logged, what outcomes do; rows of strangers, crashes, and the real sets."""
import os, signal, subprocess, sys
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from mlcycle import scoring
from mlcycle.core import Blocked, DataError, IntegrityError, Project, SettingsError
from mlcycle.scoring import BrokenAnswer, Retired, admit, formula_safe, label, label_file, labelled, predictions, score
from mlcycle.spool import gather, spool, waiting
from served import FORMULA, HTML, LONG, crown, new_project, register, retire, sign, strange_rows


@pytest.fixture(scope='module')
def ready(tmp_path_factory) -> Project:
    "A project whose champion was trained on strangers' columns."
    project = new_project(tmp_path_factory.mktemp('scoring')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    return project


def test_strange_columns_survive_from_training_to_the_log(ready):
    rows = strange_rows(30, seed=1)
    before = len(predictions(ready))
    scored = score(ready, rows)
    logged = predictions(ready).iloc[before:].set_index('prediction_id').loc[scored['prediction_id']]
    for column, stored in [(HTML, HTML), ('a"b\nc', 'a"b\nc'), ('score', 'input score'), ('at', 'input at'), (LONG, LONG)]:
        assert np.array_equal(logged[stored].to_numpy(float), rows[column].to_numpy(float)), column
    for column, stored in [(FORMULA, FORMULA), ('version', 'input version'), ('prediction_id', 'input prediction_id'), ('id', 'id'), ('sex', 'sex')]:
        assert logged[stored].tolist() == rows[column].tolist(), column
    assert np.array_equal(logged['score'], scored['score']) and set(logged['version']) == {'1'}
    assert 'label' not in logged and 'input label' not in logged     # the outcome is never logged with the prediction


def test_column_order_and_extra_columns_change_nothing_and_missing_ones_are_named(ready):
    rows = strange_rows(20, seed=2)
    plain = score(ready, rows, log=False)['score']
    assert np.array_equal(score(ready, rows[rows.columns[::-1]].assign(more=1), log=False)['score'], plain)
    with pytest.raises(DataError, match='score'): score(ready, rows.drop(columns='score'), log=False)
    with pytest.raises(DataError, match='named columns'): score(ready, rows.to_numpy(), log=False)


def test_index_is_kept_and_ids_are_unique(ready):
    rows = strange_rows(50, seed=3).set_index(pd.Index(range(100, 150)))
    scored = score(ready, rows, log=False)
    assert scored.index.equals(rows.index) and scored['prediction_id'].is_unique and len(score(ready, rows.iloc[:0])) == 0
    assert len(set(scoring.new_ids(100_000))) == 100_000


class Fake:
    "A loaded model that gives what it is told to."
    def __init__(self, real, found): self.info, self.version, self.found = real.info, real.version, found
    def predict(self, df):
        if isinstance(self.found, Exception): raise self.found
        return self.found


@pytest.mark.parametrize('found', [pd.DataFrame({'score': [np.nan, 1], 'decision': [0, 1]}), pd.DataFrame({'score': [np.inf, 1], 'decision': [0, 1]}),
                                   pd.DataFrame({'score': [None, 1], 'decision': [0, 1]}), pd.DataFrame({'score': [1.0], 'decision': [1]}),
                                   IntegrityError('a score that is not a number')])
def test_no_broken_answer_leaves_the_house_or_is_logged(ready, monkeypatch, found):
    fake, before = Fake(ready.registry.load('1'), found), len(predictions(ready))
    monkeypatch.setattr(type(ready.registry), 'load', lambda self, version: fake)
    with pytest.raises(BrokenAnswer, match='mlcycle rollback'): score(ready, strange_rows(2))
    assert len(predictions(ready)) == before


def test_event_times(ready):
    rows = strange_rows(3)
    assert score(ready, rows, at='2026-03-29T02:30:00+01:00', log=False)['at'].astype(str).unique().tolist() == ['2026-03-29 01:30:00+00:00']
    own = pd.Series(pd.to_datetime(['2026-01-01', '2026-01-02', '2026-01-03']), index=rows.index)
    assert score(ready, rows, at=own, log=False)['at'].dt.day.tolist() == [1, 2, 3]
    for bad in ('yesterday', '20260101', '30.02.2026', '2026-02-30', 1767225600, '-0001-01-01', '0001-01-01T00:00+05:00', '9999-12-31T23:59-05:00'):
        with pytest.raises(DataError, match='is not a time'): score(ready, rows, at=bad, log=False)


def test_outcomes_unknown_doubled_contradictory_missing(ready):
    ids = score(ready, strange_rows(6, seed=4))['prediction_id'].tolist()
    say = lambda *pairs, **more: label(ready, pd.DataFrame(list(pairs), columns=['prediction_id', 'label']).assign(**more))
    first = say((ids[0], 'yes'), (ids[1], 'no'), (ids[0], 'yes'), ('nobody', 'no'), (ids[2], None), (None, 'yes'))
    assert (first.rows, first.matched, first.unknown, first.doubled, first.contradictory, first.missing) == (6, 3, 1, 1, 0, 2)
    second = say((ids[0], 'no'), (ids[1], 'no'), ('nobody', 'yes'))
    assert (second.matched, second.unknown, second.doubled, second.contradictory) == (2, 1, 1, 1)
    found = labelled(ready).set_index('prediction_id')['label']
    assert found[ids[0]] == 0 and found[ids[1]] == 0 and ids[2] not in found and found.dtype == int
    kept = ready.tables.read('labels')
    assert len(kept[kept['prediction_id'] == ids[0]]) == 3 and len(kept[kept['prediction_id'] == 'nobody']) == 2
    say((ids[0], 'yes'), at='2020-01-01')   # an older statement that arrives later does not win
    assert labelled(ready).set_index('prediction_id')['label'][ids[0]] == 0


def test_an_outcome_the_task_does_not_know_is_refused_whole(ready):
    given = score(ready, strange_rows(2, seed=5))['prediction_id'].tolist()
    before = ready.tables.read('labels') if ready.tables.exists('labels') else []
    for wrong in ('maybe', 1, 'Yes', '=1+1'):
        with pytest.raises(DataError, match="row 2.*Allowed: 'no', 'yes'"): label(ready, pd.DataFrame({'prediction_id': given, 'label': ['yes', wrong]}))
    assert len(ready.tables.read('labels') if ready.tables.exists('labels') else []) == len(before)
    with pytest.raises(DataError, match='prediction_id'): label(ready, pd.DataFrame({'key': ['a'], 'label': ['yes']}))


def test_outcomes_by_id_go_to_the_newest_prediction_before_them(ready):
    row = strange_rows(1, seed=6).assign(id='customer 9')
    january, february = (score(ready, row, at=at)['prediction_id'].iloc[0] for at in ('2026-01-01', '2026-02-01'))
    label(ready, pd.DataFrame({'id': ['customer 9'], 'label': ['no'], 'at': ['2026-01-20']}))
    label(ready, pd.DataFrame({'id': ['customer 9'], 'label': ['yes'], 'at': ['2026-02-20']}))
    found = labelled(ready).set_index('prediction_id')['label']
    assert found[january] == 0 and found[february] == 1
    early = label(ready, pd.DataFrame({'id': ['customer 9', 'nobody'], 'label': ['yes', 'no'], 'at': ['2025-12-01', '2026-01-01']}))
    assert (early.matched, early.unknown) == (0, 2)


def test_windows(ready):
    score(ready, strange_rows(2, seed=7), at='2031-05-01')
    score(ready, strange_rows(3, seed=8), at='2031-06-01')
    assert len(predictions(ready, since='2031-05-01', until='2031-06-01')) == 2
    assert len(predictions(ready, since='2031-01-01', version='1')) == 5 and len(predictions(ready, version='2')) == 0


def test_formula_guard_on_everything_a_spreadsheet_runs():
    strange = ['=1+1', '+1', '-1+1', '@SUM(A1)', '\t=1', '\r=1', 'plain', '', None]
    out = formula_safe(pd.DataFrame({s or 'x': [s] for s in strange[:-2]}))
    assert all(c[0] == "'" and v[0] == "'" for c, v in zip(out.columns[:-1], out.iloc[0, :-1])) and out['plain'][0] == 'plain'
    numbers = formula_safe(pd.DataFrame({'n': [-1.5, 2], 'd': pd.to_datetime(['2026-01-01', None]), 'b': [True, False], 'c': pd.Categorical(['=x', 'y'])}))
    assert numbers['n'].tolist() == [-1.5, 2] and numbers['c'].tolist() == ["'=x", 'y']


def test_read_only_projects_do_not_score_and_still_read(ready):
    shut = Project(ready.folder, read_only=True)
    with pytest.raises(Blocked, match='read-only'): score(shut, strange_rows(1))
    with pytest.raises(Blocked, match='read-only'): label(shut, pd.DataFrame({'prediction_id': ['a'], 'label': ['yes']}))
    assert len(score(shut, strange_rows(1), log=False)) == 1 and len(predictions(shut)) > 0


# --- who may answer

def test_the_way_to_the_first_answer_and_to_the_last(tmp_path):
    project, rows = new_project(tmp_path/'p'), strange_rows(60)
    with pytest.raises(Blocked, match='mlcycle run development'): score(project, rows)
    version = register(project, rows, LogisticRegression())
    with pytest.raises(Blocked, match='no champion.*mlcycle run validation'): score(project, rows)
    with pytest.raises(Blocked, match='mlcycle run validation'): score(project, rows, version=version)
    project.ledger.append(stage='validation', kind='validation', subject='1', body={'verdict': 'undetermined'}, actor='Ada')
    with pytest.raises(Blocked, match='undetermined'): score(project, rows, version='1')
    project.ledger.append(stage='validation', kind='validation', subject='1', body={'verdict': 'pass'}, actor='Ada')
    with pytest.raises(Blocked, match='mlcycle approve 1'): score(project, rows, version='1')
    sign(project, '1')
    assert len(score(project, rows, version='1')) == 60     # it may answer by its number, but nobody made it champion
    with pytest.raises(Blocked, match='mlcycle promote 1 --to champion'): score(project, rows)
    with pytest.raises(SettingsError, match="'9'"): score(project, rows, version='9')
    crown(project, '1')
    assert admit(project) == '1'
    project.ledger.append(stage='validation', kind='validation', subject='1', body={'verdict': 'pass', 'auc': 0.5}, actor='Ada')   # another finding: the signature is void
    with pytest.raises(Blocked, match='mlcycle approve 1'): score(project, rows)
    sign(project, '1')
    retire(project, '1', successor='2')
    for name in ('champion', '1'):
        with pytest.raises(Retired, match='Ask version 2 instead') as error: score(project, rows, version=name)
        assert error.value.facts['because'] == 'a test' and error.value.exit_status == 1
    assert len(predictions(project)) == 60


def test_model_bytes_touched_after_approval_do_not_answer(tmp_path):
    project, rows = new_project(tmp_path/'p'), strange_rows(60)
    crown(project, register(project, rows, LogisticRegression()))
    file = project.store/project.registry.info('1').uri
    content = bytearray(file.read_bytes()); content[len(content)//2] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError): score(project, rows)
    assert len(predictions(project)) == 0


# --- crashes

def test_what_the_spool_acknowledged_is_in_the_table_once_whatever_was_killed(tmp_path):
    new_project(tmp_path/'p')
    code = ('import sys, pandas as pd\nfrom mlcycle.core import Project\nfrom mlcycle.spool import spool, gather\n'
            'p, who = Project(sys.argv[1]), sys.argv[2]\n'
            'for i in range(10**6):\n'
            '    if who == "g": gather(p, "predictions", key="prediction_id"); continue\n'
            '    spool(p, "predictions", pd.DataFrame({"prediction_id": [f"{who}-{i}"], "x": [float(i)]})); print(f"{who}-{i}", flush=True)\n')
    said: list[str] = []
    for round in range(3):
        runs = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'p'), who], stdout=subprocess.PIPE, text=True) for who in (f'a{round}', 'g')]
        said += [runs[0].stdout.readline().strip() for _ in range(11+8*round)]
        for run in runs: os.kill(run.pid, signal.SIGKILL)
        said += runs[0].communicate()[0].split()
        runs[1].communicate()
    project = Project(tmp_path/'p')
    gather(project, 'predictions', key='prediction_id')
    there = project.tables.read('predictions')['prediction_id']
    assert waiting(project, 'predictions') == 0 and there.is_unique
    assert set(said) <= set(there) and len(said) > 50


def test_spooled_rows_are_seen_by_readers(ready):
    before = len(predictions(ready))
    spool(ready, 'predictions', predictions(ready).tail(1).assign(prediction_id='spooled'))
    assert len(predictions(ready)) == before+1 and waiting(ready, 'predictions') == 0


# --- real sets

def test_three_classes_of_penguins(tmp_path, data_dir):
    from mlcycle.sources import read_file
    file = next((data_dir/'penguins').glob('*.csv'))
    rows, _ = read_file(file, missing=['NA'])
    rows = rows[rows['species'].notna()].reset_index(drop=True)
    project = new_project(tmp_path/'p', target='species', task='multiclass')
    crown(project, register(project, rows, LogisticRegression(max_iter=500)))
    scored = score(project, rows.drop(columns='species'))
    assert np.allclose(scored[[c for c in scored if c.startswith('score_')]].sum(axis=1), 1) and (scored['decision'] == rows['species']).mean() > .95
    label(project, pd.DataFrame({'prediction_id': scored['prediction_id'], 'label': rows['species']}))
    found = labelled(project)
    assert set(found['label']) == set(rows['species']) and len(found) == len(rows)


def test_a_quantity_is_labelled_as_one(tmp_path):
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({'x': draw.normal(size=80), 'when': pd.date_range('2026-01-01', periods=80, freq='h').astype(str)}).assign(y=lambda d: 3*d['x'])
    project = new_project(tmp_path/'p', target='y', task='regression', data='time = "when"')
    crown(project, register(project, rows, LinearRegression()))
    scored = score(project, rows)
    assert scored['at'].iloc[5] == pd.Timestamp('2026-01-01T05:00Z') and np.allclose(scored['decision'], scored['score'])
    label(project, pd.DataFrame({'prediction_id': scored['prediction_id'], 'label': rows['y']}))
    found = labelled(project, since='2026-01-02')
    assert len(found) == 56 and np.allclose(found['label'], found['score'], atol=.5)
    with pytest.raises(DataError, match='a number'): label(project, pd.DataFrame({'prediction_id': ['a'], 'label': ['much']}))


def test_moments_at_the_edge_of_the_calendar():
    from mlcycle.answering import moments
    assert moments([{'at': '0001-01-01'}, {'at': '9999-12-31T23:59:59Z'}], 'at') == [-62135596800000000, 253402300799000000]
    assert moments([{'at': '2024-05-31T08:00:00.123456+02:00'}], 'at') == [1717135200123456]
    for outside in ('0001-01-01T00:00+05:00', '9999-12-31T23:59-05:00', '-0001-01-01'):
        with pytest.raises(DataError, match='row 2.*is not a time'): moments([{'at': '2024-05-31'}, {'at': outside}], 'at')
