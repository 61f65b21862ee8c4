"""The search, the choice, calibration and threshold, on real rows; the registry is the real one in one test."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

import mlcycle.search
from mlcycle.calibration import choose_curve, choose_threshold, cross_fitted, fit_curve
from mlcycle.core import Blocked, Costs, DataError, MissingEvidence, Project, SettingsError, canonical_json
from mlcycle.development import Leaderboard, develop, in_order, typical_rows
from mlcycle.search import CANDIDATES, ORDER, candidates


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    with threadpool_limits(1): yield


class Shelf:
    "Stands in for the registry: keeps what it is given."
    def __init__(self, project): self.project, self.models, self.logged = project, [], {}
    def register(self, pipeline, *, example, facts):
        self.models.append((pipeline, example, facts))
        pipeline.predict(example)
        return SimpleNamespace(version=str(len(self.models)), run_id='run')
    def client(self):
        return SimpleNamespace(log_batch=lambda run, metrics: self.logged.update(metrics=metrics), log_dict=lambda run, d, f: self.logged.update({f: d}))


def project_for(folder, target, task, positive=None, more='', shelf=True):
    positive = '' if positive is None else f'positive = {positive!r}\n'
    (folder/'mlcycle.toml').write_text(f'[project]\nname = "test"\n[problem]\ntarget = "{target}"\ntask = "{task}"\n{positive}'
                                       f'[data]\nsources = [{{path = "x.csv", missing = ["?"]}}]\n{more}')
    project = Project(folder)
    if shelf: project.__dict__['registry'] = Shelf(project)
    return project


def tumours():
    from sklearn.datasets import load_breast_cancer
    b = load_breast_cancer(as_frame=True)
    return b.data.iloc[:, :12].assign(benign=b.target)


# real rows ------------------------------------------------------------------------------------------------------------------
def test_penguins_have_three_classes(data_dir, tmp_path):
    df = pd.read_csv(data_dir/'penguins'/'penguins.csv')
    project = project_for(tmp_path, 'species', 'multiclass')
    board = develop(project, trials=5, train=df)
    assert board.metric == 'log_loss' and board.metrics['accuracy'].low > .95 and board.threshold is None
    assert board.algorithm == 'linear' and board.beats_dummy.low > .5
    pipeline, example, facts = project.registry.models[0]
    assert facts['classes'] == ['Adelie', 'Chinstrap', 'Gentoo'] and list(pipeline.classes_) == facts['classes']
    assert set(board.rows.algorithm) >= {'dummy', 'linear', 'boosting', 'forest'}
    assert Leaderboard.from_body(project.ledger.last('leaderboard').body) == board


def test_titanic_through_the_real_registry(data_dir, tmp_path):
    df = pd.read_csv(data_dir/'titanic'/'titanic.csv')
    project = project_for(tmp_path, 'survived', 'binary', 1, shelf=False)
    board = develop(project, trials=6, train=df.iloc[:700])
    model = project.registry.load(board.version)
    found = model.predict(df.iloc[700:])
    assert roc_auc_score(df.survived[700:], found.score) > .8
    assert model.info.algorithm == board.algorithm and model.info.threshold == board.threshold.value and not {'name', 'ticket'} & set(model.info.columns)
    assert model.info.metrics == board.metrics and model.info.plan['target'] == 'survived'
    assert [e.kind for e in project.ledger.entries()][-2:] == ['model', 'leaderboard'] and project.ledger.last('leaderboard').subject == board.version
    run = project.registry.client().get_run(model.info.run_id)
    assert run.data.metrics['trial_score'] and run.data.params


def test_adult_reaches_092_within_a_small_budget(data_dir, tmp_path):
    df = pd.read_csv(data_dir/'adult'/'adult.csv').sample(frac=1, random_state=0)
    project = project_for(tmp_path, 'income-per-year', 'binary', '>50K', '[development]\ncandidates = ["linear", "boosting"]\nfolds = 3')
    board = develop(project, trials=3, train=df.iloc[:20_000])
    pipeline, _, facts = project.registry.models[0]
    assert board.algorithm == 'boosting' and board.metrics['roc_auc'].low > .92
    assert roc_auc_score(df['income-per-year'][20_000:] == '>50K', pipeline.predict_proba(df.iloc[20_000:])[:, 1]) > .922


def test_bike_sharing_is_tried_in_order_of_time(data_dir, tmp_path):
    df = pd.read_csv(data_dir/'bike_sharing_hourly'/'hour.csv', parse_dates=['dteday']).iloc[::8]
    project = project_for(tmp_path, 'cnt', 'regression', None, 'time = "dteday"\ndrop = ["casual", "registered", "instant"]\n[development]\nfolds = 3')
    board = develop(project, trials=5, train=df)
    assert board.metric == 'rmse' and board.calibration is None and board.threshold is None
    assert board.metrics['r2'].low > .5 and any('past that the first fold learns from' in n for n in board.notes)
    assert board.rows.n.iloc[0] < len(df) and board.algorithm in ('boosting', 'forest')


# the search ---------------------------------------------------------------------------------------------------------------------
def test_same_seed_same_leaderboard_and_another_seed_another(tmp_path):
    boards = []
    for i, seed in enumerate((3, 3, 4)):
        (tmp_path/str(i)).mkdir()
        project = project_for(tmp_path/str(i), 'benign', 'binary', 1, '[development]\ncandidates = ["linear", "boosting"]\nfolds = 3')
        project.update_settings({'project.seed': seed})
        boards.append(develop(project, trials=6, train=tumours()))
    same = [canonical_json({k: v for k, v in b.body().items() if k != 'budget'}) for b in boards]
    assert same[0] == same[1] != same[2]


def test_time_cuts_and_says_so(tmp_path):
    project = project_for(tmp_path, 'benign', 'binary', 1)
    board = develop(project, seconds=1, trials=500, train=tumours())
    assert board.budget['cut_by_time'] and 'cut by time' in board.notes[0]
    assert 2 <= board.budget['trials'] < 500


def test_interrupt_keeps_what_is_done(tmp_path, monkeypatch):
    real, calls = mlcycle.search.cross_validate, []
    def interrupted(*args, **how):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        return real(*args, **how)
    monkeypatch.setattr(mlcycle.search, 'cross_validate', interrupted)
    board = develop(project_for(tmp_path, 'benign', 'binary', 1), train=tumours())
    assert board.budget['interrupted'] and board.budget['trials'] == 3 and 'interrupted by a person' in board.notes[0]
    calls[:] = [1, 1, 1]   # at once: there is nothing to keep
    with pytest.raises(KeyboardInterrupt): develop(project_for(tmp_path, 'benign', 'binary', 1), train=tumours())


def test_a_failing_candidate_is_a_failed_trial(tmp_path, monkeypatch):
    def broken(*args): raise ValueError('singular')
    monkeypatch.setitem(CANDIDATES, 'linear', CANDIDATES['linear'].model_copy(update={'make': broken}))
    board = develop(project_for(tmp_path, 'benign', 'binary', 1), trials=7, train=tumours())
    failed = board.trials[board.trials.state == 'failed']
    assert set(failed.algorithm) == {'linear'} and len(failed) == 2 and 'singular' in failed.reason.iloc[0] and board.algorithm != 'linear'
    for name in ('boosting', 'forest'): monkeypatch.setitem(CANDIDATES, name, CANDIDATES[name].model_copy(update={'make': broken}))
    with pytest.raises(DataError, match='No candidate could be fitted: linear: ValueError: singular'):
        develop(project_for(tmp_path, 'benign', 'binary', 1), trials=9, train=tumours())


def test_noise_ties_with_the_dummy_and_says_so(tmp_path):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(300, 4)), columns=list('abcd')).assign(y=rng.integers(0, 2, 300))
    board = develop(project_for(tmp_path, 'y', 'binary', 1), trials=6, train=df)
    assert any('nothing here is shown to be better' in n for n in board.notes) and board.beats_dummy.low <= 0
    assert board.algorithm == 'linear' and board.calibration.method in ('none', 'sigmoid')


@pytest.mark.parametrize('metric', ['log_loss', 'average_precision', 'cost', 'f1', 'brier'])
def test_other_metrics_can_be_improved(tmp_path, metric):
    board = develop(project_for(tmp_path, 'benign', 'binary', 1, f'[development]\nmetric = "{metric}"\nfolds = 3'), trials=4, train=tumours())
    assert board.metric == metric and board.rows.status.iloc[0] == 'ok' and board.beats_dummy.low > 0


def test_rates_without_a_better_side_are_refused(tmp_path):
    with pytest.raises(SettingsError, match='no better side'):
        develop(project_for(tmp_path, 'benign', 'binary', 1, '[development]\nmetric = "selection_rate"'), train=tumours())


def test_lightgbm_when_asked_for(tmp_path):
    pytest.importorskip('lightgbm')
    from mlcycle.registry import dumps, loads
    project = project_for(tmp_path, 'benign', 'binary', 1, '[development]\ncandidates = ["lightgbm"]\nfolds = 3')
    board = develop(project, trials=3, train=tumours())
    pipeline = project.registry.models[0][0]
    assert board.algorithm == 'lightgbm' and board.metrics['roc_auc'].low > .9
    again = loads(dumps(pipeline))
    assert np.allclose(again.predict_proba(tumours()), pipeline.predict_proba(tumours()))


def test_candidates_are_in_order_and_wrong_ones_named(tmp_path):
    settings = project_for(tmp_path, 'y', 'multiclass').settings
    assert [c.name for c in candidates(settings)] == ['dummy', 'linear', 'boosting', 'forest'] and ORDER[-1] == 'forest'
    for asked, message in ((['svm'], "no algorithm 'svm'"), (['dummy'], 'besides dummy')):
        wrong = settings.model_copy(update={'development': settings.development.model_copy(update={'candidates': asked})})
        with pytest.raises(SettingsError, match=message): candidates(wrong)


# before the search ----------------------------------------------------------------------------------------------------------------
def test_wrong_rows_are_named_before_anything_is_fitted(tmp_path):
    project = project_for(tmp_path, 'benign', 'binary', 1)
    with pytest.raises(MissingEvidence, match='mlcycle run data'): develop(project)
    with pytest.raises(DataError, match="No column 'benign'"): develop(project, train=tumours().drop(columns='benign'))
    with pytest.raises(DataError, match='one value only'): develop(project, train=tumours().assign(benign=1))
    with pytest.raises(DataError, match='too few'): develop(project, train=tumours().groupby('benign').head(3))
    assert not project.ledger.entries() and not project.registry.models


def test_read_only_projects_develop_nothing(tmp_path):
    project_for(tmp_path, 'benign', 'binary', 1)
    with pytest.raises(Blocked): develop(Project(tmp_path, read_only=True), train=tumours())


def test_very_many_rows_are_searched_in_part(tmp_path):
    board = develop(project_for(tmp_path, 'benign', 'binary', 1, '[development]\nmax_rows = 300'), trials=3, train=tumours())
    assert (board.budget['rows'], board.budget['rows_fitted']) == (300, 569) and any('300 of 569 rows' in n for n in board.notes)


def test_strange_names_and_levels_are_only_text(tmp_path):
    df = tumours().rename(columns={'mean radius': '<img src=x onerror=alert(1)>', 'mean texture': 'a\nb'})
    df['<script>alert(1)</script>'] = np.where(df.benign == 1, '<b>', "'; drop table x; --")
    df.loc[::3, '<script>alert(1)</script>'] = '{{7*7}}'
    board = develop(project_for(tmp_path, 'benign', 'binary', 1), trials=4, train=df)
    assert '<img' not in board._repr_html_() and '<script' not in board._repr_html_()
    board.plot()


def test_the_example_is_nobody(data_dir):
    df = pd.read_csv(data_dir/'titanic'/'titanic.csv').assign(none=None, day=pd.Timestamp('2024-01-01'), ok=True)
    made = typical_rows(df)
    assert list(made.dtypes) == list(df.dtypes) and len(made) == 3
    rows = df[['pclass', 'sex', 'age', 'fare']].apply(tuple, axis=1)
    assert not set(made[['pclass', 'sex', 'age', 'fare']].apply(tuple, axis=1)) & set(rows)


# calibration and threshold -----------------------------------------------------------------------------------------------------------
def scores(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.beta(1.5, 3, n)
    return (rng.random(n) < truth).astype(int), truth


def test_a_staircase_only_where_a_line_will_not_do():
    y, truth = scores(6000)
    bent = .1*truth+.8*(truth > .45)   # a jump that no line in log-odds can follow
    parts = np.array_split(np.arange(len(y)), 5)
    kept = choose_curve(y, np.column_stack([1-bent, bent]), parts=parts)
    assert kept.method == 'isotonic' and kept.gain.low > 0
    assert choose_curve(y[:600], np.column_stack([1-bent, bent])[:600], parts=np.array_split(np.arange(600), 5)).method in ('none', 'sigmoid')
    assert 0 < fit_curve(y, np.column_stack([1-bent, bent]), 'isotonic')['y'][0]


def test_no_curve_is_judged_on_its_own_rows():
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 2, 400), np.column_stack([np.full(400, .5)]*2)+rng.normal(0, .01, (400, 1))*[1, -1]
    assert choose_curve(y, p, parts=np.array_split(np.arange(400), 5)).method == 'none'
    ordered = cross_fitted(y, p, np.array_split(np.arange(400), 4), method='sigmoid', ordered=True)
    assert np.isnan(ordered[:100]).all() and not np.isnan(ordered[100:]).any()


def test_folds_in_order_are_known():
    assert in_order([(np.arange(5), np.arange(5, 8)), (np.arange(8), np.arange(8, 10))])
    assert not in_order([(np.arange(5, 10), np.arange(5)), (np.arange(5), np.arange(5, 10))])


@pytest.mark.parametrize('costs, asked', [(Costs(), .5), (Costs(false_positive=3.), .75), (Costs(false_positive=0., false_negative=0.), .5),
                                          (Costs(false_positive=0.), 0.), (Costs(false_negative=0.), 1.)])
def test_thresholds_follow_from_costs(costs, asked):
    y, truth = scores()
    assert choose_threshold(y, truth, costs).value == asked


def test_luck_moves_a_threshold_no_more_often_than_it_may():
    rng, moved = np.random.default_rng(0), 0
    for _ in range(100):
        truth = rng.beta(1, 3, 300)
        moved += choose_threshold((rng.random(300) < truth).astype(int), truth, Costs(false_negative=5.)).value != 1/6
    assert moved <= 10   # five are allowed; the cheapest of a hundred, taken by its own interval, moves twenty


def test_a_threshold_without_an_error_still_has_an_interval_of_cost():
    y = np.array([0, 1]*20)
    found = choose_threshold(y, .1+.8*y, Costs())
    assert found.cost.value == 0 and found.cost.high > .05


def test_hindsight_wins_only_when_clearly_cheaper():
    y, truth = scores()
    squeezed = choose_threshold(y, truth/5, Costs())
    assert squeezed.value < .2 and 'cheaper by' in squeezed.why and squeezed.cost.value < y.mean()
