"""The plan, the cleaning and the pipeline: the same row gives the same inputs, however it travels."""
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings as how, strategies as st
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from mlcycle.core import DataError, canonical_json, check_settings
from mlcycle.features import Calibrated, Clean, apply_curve, build_pipeline
from mlcycle.plans import ColumnPlan, FeaturePlan, decode_target, encode_target, infer_plan, read_target
from mlcycle.values import clean_dates, clean_numbers, clean_text, clean_truths, plain

LINE, TREES = LogisticRegression(max_iter=300), HistGradientBoostingClassifier(max_iter=5)
STRANGE = ['<img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", 'a\nb', '0', 'index', '__class__', ' ', 'x'*500,
           'quote"and\'', '{{7*7}}', 'α→β', 'numbers__a', 'a (month)']


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Small models on a busy machine are fastest on one thread."
    with threadpool_limits(1): yield


def made(target='y', task='binary', positive=1, **data):
    return check_settings({'project': {'name': 'test'}, 'problem': {'target': target, 'task': task, 'positive': positive},
                           'data': {'sources': [{'path': 'x.csv', 'missing': data.pop('missing', [])}], **data}})


def rows(n=120, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'number': rng.normal(size=n), 'whole': rng.integers(0, 9, n), 'level': rng.choice(['a', 'b ', 'c'], n),
                       'yes': rng.choice([True, False], n), 'day': pd.Timestamp('2023-01-01')+pd.to_timedelta(rng.integers(0, 900, n), 'D')})
    df.loc[::7, 'number'] = np.nan
    df['y'] = ((df.whole > 4) ^ (rng.random(n) < .1)).astype(int)
    return df


def fitted(df, settings, estimator=LINE, kind='linear'):
    plan = infer_plan(df, settings)
    return build_pipeline(plan, estimator, kind=kind).fit(df[plan.inputs], read_target(df, settings)), plan


# values -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('value, text', [(3, '3'), (3.0, '3'), (np.float64(3), '3'), (np.int8(3), '3'), ('3.0', '3.0'), (True, 'True'),
                                         (np.bool_(False), 'False'), (None, None), (pd.NA, None), (pd.NaT, None), (float('nan'), None),
                                         (Decimal('1.50'), '1.50'), (2**70, str(2**70)), (float('inf'), 'inf'), ('', '')])
def test_one_spelling(value, text):
    assert plain(value) == text


@pytest.mark.parametrize('dtype', ['object', 'str', 'category', 'string'])
def test_text_of_any_storage(dtype):
    assert clean_text(pd.Series(['a ', ' b', 'a '], dtype=dtype)).tolist() == ['a', 'b', 'a']


@pytest.mark.parametrize('values', [pd.Series([1, None], dtype='Int64'), pd.Series([1.0, np.nan]), pd.Series(['1', None]), pd.Series([1, ''], dtype=object),
                                    pd.Series([Decimal(1), None], dtype=object), pd.Series(['1', '?']), pd.Series([1, -999])])
def test_numbers_of_any_storage(values):
    found = clean_numbers(values, {'name': 'n', 'missing_tokens': ['?', '-999']})
    assert found[0] == 1 and np.isnan(found[1])


def test_no_number_is_named_and_infinity_is_missing():
    with pytest.raises(DataError, match=r"'<b>': 1 of 2 values are not numbers, the first is 'wide'"):
        clean_numbers(pd.Series(['1', 'wide']), {'name': '<b>'})
    with pytest.raises(DataError): clean_numbers(pd.Series([True, 2], dtype=object), {'name': 'n'})
    assert np.isfinite(clean_numbers(pd.Series([1e300, 2.0**70, -1e300]), {'name': 'n'}).astype('float32')).all()
    assert np.isnan(clean_numbers(pd.Series([np.inf, -np.inf]), {'name': 'n'})).all()
    assert clean_numbers(pd.Series([np.inf, 5, -7]), {'name': 'n', 'low': 0, 'high': 10}).tolist() == [10, 5, 0]


def test_truths_and_dates():
    assert clean_truths(pd.Series(['Yes', 'F', None, 1, True], dtype=object), {'name': 'b'}).tolist()[:2] == [1, 0]
    with pytest.raises(DataError, match='maybe'): clean_truths(pd.Series(['maybe']), {'name': 'b'})
    zones = clean_dates(pd.Series(['2024-03-31T01:30:00+01:00', '2024-03-31', None]), {'name': 'd'})
    assert zones[0] == pd.Timestamp('2024-03-31T00:30Z') and zones[2] is pd.NaT
    for wrong in ('30.02.2024', '2024-02-30', '1711843200', '02/03/2024'):
        with pytest.raises(DataError, match='not dates'): clean_dates(pd.Series([wrong]), {'name': 'd'})
    with pytest.raises(DataError): clean_dates(pd.Series([1711843200]), {'name': 'd'})


# the plan ---------------------------------------------------------------------------------------------------------------
def test_plan_of_adult(data_dir):
    df = pd.read_csv(data_dir/'adult'/'adult.csv', nrows=4000)
    plan = infer_plan(df, made('income-per-year', positive='>50K', missing=['?'], protected=['sex', 'race'], drop=['race', 'fnlwgt']))
    of = {c.name: c for c in plan.columns}
    assert (of['race'].role, of['fnlwgt'].role, of['sex'].role) == ('protected-only', 'dropped', 'feature')
    assert of['workclass'].levels == 7 and plan.classes == ['<=50K', '>50K'] and 'race' not in plan.inputs
    assert FeaturePlan.from_body(json.loads(canonical_json(plan.body()))) == plan


def test_plan_of_titanic_leaves_names_out_with_the_reason(data_dir):
    plan = infer_plan(pd.read_csv(data_dir/'titanic'/'titanic.csv'), made('survived'))
    why = {c.name: c.why for c in plan.columns if c.role == 'dropped'}
    assert set(why) == {'name', 'ticket', 'cabin'} and 'free text' in why['name']
    named = infer_plan(pd.read_csv(data_dir/'titanic'/'titanic.csv'), made('survived', types={'cabin': 'category'}))
    assert 'cabin' in named.inputs


def test_plan_of_bike_sharing_counts_no_days(data_dir):
    df = pd.read_csv(data_dir/'bike_sharing_hourly'/'hour.csv')
    plan = infer_plan(df, made('cnt', 'regression', None, time='dteday', drop=['casual', 'registered']))
    of = {c.name: c for c in plan.columns}
    assert of['instant'].why == 'a row number' and of['dteday'].parts == ['month', 'weekday']
    assert not any('days' in c.parts for c in plan.columns)


def test_dates_are_counted_from_the_time_of_the_row():
    df = pd.DataFrame({'booked': pd.date_range('2023-01-01', periods=800).astype(str), 'y': [0, 1]*400})
    df['arrival'] = (pd.to_datetime(df.booked)+pd.to_timedelta(np.arange(800) % 30, 'D')).astype(str)
    plan = infer_plan(df, made(time='booked'))
    clean = Clean([c.body() for c in plan.used]).fit(df).transform(df)
    assert clean['arrival (days)'].tolist() == list(np.arange(800) % 30) and 'booked (days)' not in clean
    assert 'arrival (year)' not in clean and plan.inputs == ['booked', 'arrival']


def test_roles_and_reasons():
    df = rows().assign(id=range(120), outcome_at='2024-01-01', empty=None, same='x')
    plan = infer_plan(df, made(id='id', time='day', label_time='outcome_at', group='level'))
    of = {c.name: (c.role, c.why) for c in plan.columns}
    assert of['id'][0] == 'id' and of['day'][0] == 'time' and of['level'][0] == 'id'
    assert of['outcome_at'] == ('dropped', 'known only with the outcome')
    assert of['empty'] == ('dropped', 'no value in any row') and of['same'] == ('dropped', 'one value in every row')
    assert set(plan.inputs) == {'number', 'whole', 'yes', 'day'}


def test_treatments_reach_the_plan():
    accept = [{'action': 'missing_token', 'column': 'whole', 'value': 8}, {'action': 'clip', 'column': 'number', 'low': -1, 'high': 1},
              {'action': 'drop_column', 'column': 'yes'}]
    plan = infer_plan(rows(), made(accept=accept, refuse=[{'action': 'strip', 'column': 'level'}]))
    of = {c.name: c for c in plan.columns}
    assert (of['number'].low, of['number'].high, of['whole'].missing_tokens, of['yes'].role, of['level'].strip) == (-1, 1, ['8'], 'dropped', False)
    clean = Clean([c.body() for c in plan.used]).fit(rows()).transform(rows())
    assert clean.number.max() == 1 and clean.whole.max() == 7 and 'b ' in set(clean.level)


def test_nothing_to_learn_from_says_so():
    df = pd.DataFrame({'name': [f'n{i}' for i in range(99)], 'y': [0, 1, 1]*33})
    with pytest.raises(DataError, match='No column is left'): build_pipeline(infer_plan(df, made()), LINE)


# the same row, however it travels ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, target, task, positive', [('adult', 'income-per-year', 'binary', '>50K'), ('penguins', 'species', 'multiclass', None),
                                                          ('titanic', 'survived', 'binary', 1)])
def test_one_row_is_the_same_as_many(data_dir, name, target, task, positive):
    df = pd.read_csv(data_dir/name/f'{name}.csv', nrows=2000).dropna(subset=[target])
    settings = made(target, task, positive, missing=['?'])
    for estimator, kind in ((LINE, 'linear'), (TREES, 'tree')):
        model, plan = fitted(df, settings, estimator, kind)
        p, some = model.predict_proba(df), np.random.default_rng(0).permutation(len(df))[:12]
        one = np.vstack([model.predict_proba(df.iloc[[i]]) for i in some])
        records = json.loads(df.iloc[some].to_json(orient='records'))
        sent = np.vstack([model.predict_proba(pd.DataFrame([r])) for r in records])
        assert np.allclose(one, p[some], atol=1e-12) and np.allclose(sent, p[some], atol=1e-12)
        assert np.allclose(model.predict_proba(df.iloc[::-1])[::-1], p, atol=1e-12)


@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(-10, 10), st.floats(allow_nan=True), st.text(max_size=4)), min_size=1, max_size=60))
@how(max_examples=60, deadline=None)
def test_text_of_a_value_does_not_depend_on_the_batch(values):
    together = clean_text(pd.Series(values, dtype=object))
    alone = [clean_text(pd.Series([v], dtype=object))[0] for v in values]
    assert all(a == b or (a != a and b != b) for a, b in zip(together, alone))


def test_columns_by_name_only():
    model, plan = fitted(rows(), made())
    df = rows()
    assert (model.predict_proba(df[df.columns[::-1]].assign(extra=1)) == model.predict_proba(df)).all()
    with pytest.raises(DataError, match="Missing columns: 'number', 'day'"): model.predict_proba(df.drop(columns=['number', 'day']))
    with pytest.raises(DataError, match='DataFrame'): model.predict_proba(df[plan.inputs].to_numpy())
    with pytest.raises(DataError, match="Column 'whole'"): model.predict_proba(df.rename(columns={'whole': 'level', 'level': 'whole'}))


@pytest.mark.parametrize('kind, estimator', [('linear', LINE), ('tree', TREES), ('tree', RandomForestClassifier(5))])
def test_unseen_and_missing_everywhere(kind, estimator):
    model, plan = fitted(rows(), made(), estimator, kind)
    df = rows()
    for row in (df.assign(level='never seen'), df.assign(**{c: None for c in plan.inputs}), df.assign(whole=1e300, number=-np.inf), df.head(1)):
        assert np.isfinite(model.predict_proba(row)).all()
    assert len(model[0].transform(df.head(0))) == 0


# strange names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind, estimator', [('linear', LINE), ('tree', TREES)])
def test_strange_names_survive_the_whole_way(kind, estimator):
    from mlcycle.registry import dumps, loads
    rng = np.random.default_rng(0)
    df = pd.DataFrame({n: rng.normal(size=90) if i % 2 else rng.choice(['<b>', "'; drop"], 90) for i, n in enumerate(STRANGE)})
    df['a'], df['y'] = pd.date_range('2023-01-01', periods=90, freq='9D'), rng.integers(0, 2, 90)
    model, plan = fitted(df, made(), estimator, kind)
    assert plan.inputs == [*STRANGE, 'a']
    names = model[0].get_feature_names_out()
    assert len(set(names)) == len(names) and len(set(model[:-1].get_feature_names_out())) == model[:-1].transform(df).shape[1]
    assert (loads(dumps(model)).predict_proba(df) == model.predict_proba(df)).all()


def test_five_thousand_columns():
    df = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 5000)), columns=[f'c{i}' for i in range(5000)]).assign(y=[0, 1]*30)
    model, plan = fitted(df, made(), Ridge())
    assert len(plan.inputs) == 5000 and len(model.predict(df)) == 60


# targets ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('values, positive', [(['no', 'yes'], 'yes'), ([0, 1], 1), ([0.0, 1.0], 1), (['0', '1'], 1), ([False, True], True), ([False, True], None),
                                              (['N', 'Y'], None), ([' <=50K', '>50K '], '>50K'), ([2, 7], 7), (['b', 'a'], 'a')])
def test_binary_targets(values, positive):
    settings = made(positive=positive)
    df = pd.DataFrame({'y': values*30, 'x': range(60)})
    assert read_target(df, settings).tolist() == [0, 1]*30
    plan = infer_plan(df, settings)
    assert [plain(v) for v in decode_target([0, 1], plan)] == [plain(v).strip() for v in values]
    assert encode_target(df.y, plan).tolist() == [0, 1]*30


@pytest.mark.parametrize('values, positive, message', [
    (['a', 'b'], None, "'a', 'b'.*Set problem.positive"), (['a', 'b'], 'c', "'a', 'b'.*'c'"), (['a', 'b', 'c'], 'a', "'a', 'b', 'c'.*multiclass"),
    (['a', None], 'a', '1 of 2 values are missing'), (['a', ' '], 'a', '1 of 2 values are missing'), (['a', 'a'], 'a', 'one value only'), (['b', 'b'], 'a', 'is in no row that')])
def test_wrong_targets_are_named(values, positive, message):
    with pytest.raises(DataError, match=message): read_target(pd.DataFrame({'y': values}), made(positive=positive))


def test_other_targets():
    with pytest.raises(DataError, match="No column 'y' in the table. Columns: inccome"): read_target(pd.DataFrame({'inccome': [1]}), made())
    with pytest.raises(DataError, match='not numbers'): encode_target(pd.Series(['1', 'many'], name='y'), made(task='regression', positive=None))
    assert encode_target(pd.Series(['1', '2.5']), made(task='regression', positive=None)).tolist() == [1, 2.5]
    assert encode_target(pd.Series([1, 2.0, '3'], dtype=object), made(task='multiclass', positive=None)).tolist() == ['1', '2', '3']
    assert encode_target(pd.Series(['no', 'no']), made(positive=None)).tolist() == [0, 0]   # a quiet week, nothing declared
    assert encode_target(pd.Series([0, 0]), made()).tolist() == [0, 0] and encode_target(pd.Series([1, 1]), made()).tolist() == [1, 1]


# pipeline and calibration ---------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_model():
    df = rows(400).assign(many=[f'level {i % 40}' for i in range(400)])
    plan = infer_plan(df, made())
    models = [build_pipeline(plan, TREES, kind='tree', seed=s).fit(df, df.y).predict_proba(df) for s in (1, 1, 2)]
    assert (models[0] == models[1]).all() and not (models[0] == models[2]).all()


def test_many_levels_do_not_leak_the_outcome():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'who': [f'p{i % 300}' for i in range(900)], 'y': rng.integers(0, 2, 900)})
    plan = infer_plan(df, made(types={'who': 'category'}))
    model = build_pipeline(plan, TREES, kind='tree').fit(df, df.y)
    assert ((model.predict_proba(df)[:, 1] > .5) == df.y).mean() < .75   # a mean over the row itself would give nearly 1


@pytest.mark.parametrize('curve', [None, {'method': 'sigmoid', 'slope': 2., 'intercept': -1.}, {'method': 'isotonic', 'x': [0., .4, 1.], 'y': [.1, .2, .9]}])
def test_calibrated_is_an_estimator(curve):
    from mlcycle.registry import dumps, loads
    df = rows()
    plan = infer_plan(df, made())
    model = build_pipeline(plan, Calibrated(TREES, curve), kind='tree').fit(df, df.y)
    p = model.predict_proba(df)
    assert np.allclose(p.sum(axis=1), 1) and (p >= 0).all() and (loads(dumps(model)).predict_proba(df) == p).all()
    assert clone(model[-1]).curve == curve and set(model.predict(df)) <= {0, 1}
    raw = model[-1].estimator_.predict_proba(model[:-1].transform(df))[:, 1]
    assert (np.diff(p[np.argsort(raw, kind='stable'), 1]) >= -1e-12).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(.1, 10))
@how(max_examples=50, deadline=None)
def test_temperature_keeps_the_order_of_classes(raw, t):
    p = (np.array([raw])+.01)/(np.sum(raw)+.01*len(raw))
    q = apply_curve(p, {'method': 'temperature', 'temperature': t})
    assert np.isclose(q.sum(), 1) and (np.diff(q[0][np.argsort(p[0], kind='stable')]) >= -1e-9).all()


def test_a_column_plan_refuses_unknown_words():
    with pytest.raises(Exception): ColumnPlan(name='a', role='boss')
