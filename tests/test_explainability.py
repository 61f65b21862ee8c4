"""Explanations: contributions that add up, on models and rows of every awkward kind."""
import math
from itertools import combinations
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (ExtraTreesRegressor, GradientBoostingClassifier, HistGradientBoostingClassifier,
                              HistGradientBoostingRegressor, RandomForestClassifier)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from mlcycle.core import DataError, check_settings
from mlcycle.explainability import (Explanation, explain, forest_contributions, importance, is_calibrated, members,
                                    owners, raw_score, sound)
from mlcycle.features import Calibrated, build_pipeline
from mlcycle.plans import infer_plan


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Many small predictions are faster on one thread."
    from threadpoolctl import threadpool_limits
    with threadpool_limits(1): yield


class Model:
    "What `explain` asks of a registered model."
    def __init__(self, estimator, columns): self.estimator, self.columns = estimator, list(columns)
    def align(self, df): return df[self.columns]
    def scores(self, df):
        if not hasattr(self.estimator, 'classes_'): return self.estimator.predict(df)
        p = self.estimator.predict_proba(df)
        return p[:, 1] if p.shape[1] == 2 else p


def table(n=600, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'age': rng.integers(18, 80, n).astype(float), 'job': rng.choice(list('abcdefg'), n),
                       'job_a': rng.normal(size=n), 'booked': pd.Timestamp('2024-01-01')+pd.to_timedelta(rng.integers(0, 700, n), 'D'),
                       'steady': 3.0})
    signal = (df.age-50)/10+(df.job == 'b')*2+df.job_a+rng.normal(size=n)
    df['yes'], df['class'], df['amount'] = (signal > 0).astype(int), np.digitize(signal, [-1, 1]).astype(str), signal*7
    df.loc[rng.random(n) < 0.15, 'age'] = np.nan
    df.loc[rng.random(n) < 0.15, 'job'] = None
    return df


def fitted(df, target, task, estimator, kind):
    features = ['age', 'job', 'job_a', 'booked', 'steady']
    settings = check_settings({'project': {'name': 't'}, 'problem': {'target': target, 'task': task, **({'positive': 1} if task == 'binary' else {})},
                               'data': {'sources': [{'path': 'x.csv'}]}})
    plan = infer_plan(df[[*features, target]], settings)
    return Model(build_pipeline(plan, estimator, kind=kind).fit(df[features], df[target]), features)


CASES = {
    'boosting': ('yes', 'binary', HistGradientBoostingClassifier(max_iter=20), 'tree'),
    'classes': ('class', 'multiclass', HistGradientBoostingClassifier(max_iter=10), 'tree'),
    'quantity': ('amount', 'regression', HistGradientBoostingRegressor(max_iter=20), 'tree'),
    'one tree': ('yes', 'binary', DecisionTreeClassifier(max_depth=5), 'tree'),
    'forest': ('yes', 'binary', RandomForestClassifier(10, min_samples_leaf=5, random_state=0), 'tree'),
    'forest of classes': ('class', 'multiclass', RandomForestClassifier(5, min_samples_leaf=9, random_state=0), 'tree'),
    'extra trees': ('amount', 'regression', ExtraTreesRegressor(5, min_samples_leaf=9, random_state=0), 'tree'),
    'logistic': ('yes', 'binary', LogisticRegression(max_iter=500), 'linear'),
    'logistic classes': ('class', 'multiclass', LogisticRegression(max_iter=500), 'linear'),
    'ridge': ('amount', 'regression', Ridge(), 'linear'),
}
ODD = pd.DataFrame({'age': [np.nan, 33, 200], 'job': [None, 'astronaut', 'b'], 'job_a': [np.nan, 0.0, -50.0],
                    'booked': [pd.NaT, pd.Timestamp('1999-01-01'), pd.Timestamp('2024-05-05')], 'steady': [3.0, np.nan, 9.0]})


@pytest.mark.parametrize('case', CASES)
def test_contributions_and_base_add_up_to_the_score(case):
    "V06: missing values, unseen categories, a constant feature, on each kind of model."
    target, task, estimator, kind = CASES[case]
    df = table()
    model = fitted(df, target, task, estimator, kind)
    rows = pd.concat([df[model.columns].head(20), ODD], ignore_index=True)
    found = explain(model, df.tail(60), rows)
    assert found.exact and found.method == kind and sound(found) < 1e-9
    assert list(found.values.columns) == model.columns
    assert len(found.values) == len(rows)*(3 if task == 'multiclass' else 1)
    _, last = members(model.estimator)[0]
    expected = raw_score(last, model.estimator[1:-1].transform(model.estimator[0].transform(rows)))[0]
    assert np.allclose(np.reshape(found.scores, (len(rows), -1)), expected, atol=1e-9)


def shapley(score, x, Z):
    "By definition, over every coalition of columns."
    values, columns = [], list(x.index)
    for column in columns:
        others, total = [c for c in columns if c != column], 0
        for size in range(len(others)+1):
            for S in combinations(others, size):
                without = Z.assign(**{c: x[c] for c in S})
                total = total+(score(without.assign(**{column: x[column]}))-score(without)).mean(axis=0)/math.comb(len(others), size)/len(columns)
        values.append(total)
    return np.array(values)


@pytest.mark.parametrize('case', ['boosting', 'forest', 'logistic', 'quantity', 'classes'])
def test_they_are_the_shapley_values_of_the_raw_columns(case):
    target, task, estimator, kind = CASES[case]
    df = table()
    model = fitted(df, target, task, estimator, kind)
    Z, rows = df[model.columns].tail(12).reset_index(drop=True), df[model.columns].head(2)
    found = explain(model, Z, rows)
    score = model.estimator.predict if task == 'regression' else getattr(model.estimator, 'decision_function', None) or (lambda d: model.estimator.predict_proba(d)[:, 1:])
    if case == 'forest': score = lambda d: model.estimator.predict_proba(d)[:, 1]
    for i in range(2):
        truth = shapley(score, rows.iloc[i], Z)
        mine = found.values.to_numpy()[[r == i for r in found.rows]].T
        assert np.allclose(mine, truth.reshape(mine.shape), atol=1e-8)


def test_lightgbm_is_read_as_trees():
    lightgbm = pytest.importorskip('lightgbm')
    df = table()
    model = fitted(df, 'yes', 'binary', lightgbm.LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1), 'tree')
    found = explain(model, df.tail(50), df.head(30))
    assert found.method == 'tree' and sound(found) < 1e-9 and found.unit == 'log-odds'


@pytest.mark.parametrize('wrap', ['curve', 'cv', 'frozen', 'no curve'])
def test_calibration_is_taken_off_and_said(wrap):
    df = table()
    model = fitted(df, 'yes', 'binary', HistGradientBoostingClassifier(max_iter=10), 'tree')
    X, y = df[model.columns], df.yes
    if wrap in ('curve', 'no curve'):
        outer = Calibrated(model.estimator, {'method': 'sigmoid', 'slope': 0.8, 'intercept': 0.1} if wrap == 'curve' else None).fit(X, y)
    elif wrap == 'cv': outer = CalibratedClassifierCV(model.estimator, cv=2).fit(X, y)
    else: outer = CalibratedClassifierCV(FrozenEstimator(model.estimator)).fit(X, y)
    found = explain(Model(outer, model.columns), df.tail(50), df.head(10))
    assert found.exact and sound(found) < 1e-9
    assert is_calibrated(outer) == (wrap != 'no curve') == ('before calibration' in found.note)


@pytest.mark.parametrize('estimator', [GaussianNB(), PoissonRegressor(), Pipeline([('pca', PCA(2)), ('m', LogisticRegression())])])
def test_what_cannot_be_taken_apart_is_sampled_and_says_so(estimator):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(200, 3)), columns=list('abc'))
    y = (X.a+X.b > 0).astype(int)
    found = explain(Model(estimator.fit(X, y), 'abc'), X.tail(50), X.head(5))
    assert found.method == 'sampled' and not found.exact and 'sampling error' in found.note and sound(found) < 1e-9
    assert np.allclose(found.scores, Model(estimator, 'abc').scores(X.head(5)))


def test_sampling_comes_close_to_the_truth():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(300, 3)), columns=list('abc'))
    model = Model(GaussianNB().fit(X, (X.a+X.b*X.c > 0).astype(int)), 'abc')
    found = explain(model, X.tail(30), X.head(4))
    for i in range(4):
        assert np.allclose(found.values.iloc[i], shapley(model.scores, X.iloc[i], X.tail(30)), atol=0.06)


def test_single_feature_single_row_single_background():
    X = pd.DataFrame({'only': [0.0, 1.0, 2.0, 3.0]*20})
    for estimator in (LogisticRegression(), HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2), GaussianNB()):
        found = explain(Model(estimator.fit(X, X.only > 1), ['only']), X.head(1), X.tail(1))
        assert sound(found) < 1e-9 and found.values.shape == (1, 1)
        assert found.values.iloc[0, 0] == pytest.approx(found.scores[0]-found.base[0])


def test_no_rows_is_a_clear_error():
    X = pd.DataFrame({'a': [0.0, 1.0]*5})
    model = Model(LogisticRegression().fit(X, X.a > 0), ['a'])
    with pytest.raises(DataError, match='0 rows came'): explain(model, X, X.head(0))
    with pytest.raises(DataError, match='0 background rows'): explain(model, X.head(0), X)


def test_many_columns_find_their_inputs():
    "Names that invite mistakes: 300 columns whose one-hot inputs are called like other columns."
    rng = np.random.default_rng(0)
    df = pd.DataFrame({f'c_{i}' if i % 2 else f'c_{i+1}_x': rng.choice(['x', 'y'], 40) if i % 2 else rng.normal(size=40) for i in range(300)})
    texts = [c for c in df if df[c].dtype != float]
    encode = ColumnTransformer([('levels', OneHotEncoder(sparse_output=True), texts)], remainder=StandardScaler(), sparse_threshold=1).fit(df)
    found = owners([encode], df, list(range(300)))
    names = list(df.columns)
    truth = [names.index(t) for t in texts for _ in range(df[t].nunique())]+[names.index(c) for c in names if c not in texts]
    assert found.tolist() == truth


def test_wrongly_read_trees_fall_back_to_sampling(monkeypatch):
    "Were a library to store its trees differently tomorrow, the check would notice."
    df = table()
    model = fitted(df, 'yes', 'binary', HistGradientBoostingClassifier(max_iter=5), 'tree')
    import mlcycle.explainability as module
    monkeypatch.setitem(module.EXACT, 'tree', lambda *a: forest_contributions(*a)*1.01)
    found = explain(model, df.tail(20), df.head(3))
    assert found.method == 'sampled' and 'do not add up' in found.note and sound(found) < 1e-9


def test_importance_has_intervals_and_counts_rows_not_lines():
    rng = np.random.default_rng(0)
    values = pd.DataFrame({'a': rng.normal(0, 2, 300), 'b': rng.normal(0, 1, 300), '<i>': 0.0})
    one = Explanation(values=values, rows=list(range(300)), outputs=['']*300, base=[0.0]*300, scores=values.sum(axis=1).tolist(),
                      unit='log-odds', method='linear', exact=True, note='')
    found = importance(one)
    assert found.column.tolist() == ['a', 'b', '<i>'] and found.importance[2] == found.low[2] == found.high[2] == 0
    assert found.low[0] < 2*math.sqrt(2/math.pi) < found.high[0]
    assert importance(one).equals(found)
    again = Explanation(**{**one.model_dump(), 'values': pd.concat([values, values], ignore_index=True), 'rows': list(range(300))*2,
                           'outputs': ['x']*300+['y']*300, 'base': [0.0]*600, 'scores': one.scores*2})
    assert np.allclose(importance(again)[['importance', 'low', 'high']], found[['importance', 'low', 'high']])


def test_adult_in_seconds(data_dir):
    "Real data: gaps, forty countries, and a background that is not the rows."
    import time
    df = pd.read_csv(data_dir/'adult'/'adult.csv', nrows=8000, skipinitialspace=True).rename(columns=lambda c: c.strip())
    target = next(c for c in df if 'income' in c)
    settings = check_settings({'project': {'name': 'adult'}, 'data': {'sources': [{'path': 'adult.csv'}]},
                               'problem': {'target': target, 'task': 'binary', 'positive': next(v for v in df[target].unique() if '>' in v)}})
    plan = infer_plan(df, settings)
    features = [c for c in df if c != target]
    y = df[target].str.contains('>').astype(int)
    pipeline = build_pipeline(plan, HistGradientBoostingClassifier(max_iter=100, random_state=0), kind='tree').fit(df[features], y)
    start = time.process_time()
    found = explain(Model(pipeline, features), df.head(4000), df.tail(200))
    assert found.exact and sound(found) < 1e-9 and time.process_time()-start < 60
    assert set(importance(found).column[:4]) & {'capitalgain', 'capital-gain', 'relationship', 'marital-status', 'age', 'education-num', 'education'}
