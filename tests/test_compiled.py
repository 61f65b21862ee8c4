"""Compiled scoring: every pipeline that development makes, on strange values, gives the pipeline's own scores and decisions."""
import json
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from mlcycle.arithmetic import form_of, read_form
from mlcycle.bundle import BundleService
from mlcycle.compiled import choose, compile_pipeline, parts_of
from mlcycle.paths import ScoringPath
from mlcycle.core import check_settings, jsonable
from mlcycle.deployment import build_bundle
from mlcycle.encoding import Unusual
from mlcycle.features import Calibrated, build_pipeline
from mlcycle.plans import encode_target, infer_plan
from mlcycle.inputs import input_schema, read_records, to_records
from mlcycle.onnx import choose_onnx
from mlcycle.registry import Model, ModelVersion
from mlcycle.service import ProjectService
from served import crown, new_project, register, strange_rows


def people(n: int=600, seed: int=0) -> pd.DataFrame:
    "Every type of column, with missing values, sentinels, white space, many levels and two dates."
    draw = np.random.default_rng(seed)
    df = pd.DataFrame({'age': draw.normal(40, 12, n).round(1), 'income': draw.lognormal(8, 1, n), 'debt': draw.choice([0., 5., -99.], n),
                       'town': draw.choice(['Bonn', 'Ulm ', ' Kiel', 'Hof'], n), 'street': draw.choice([f's{i}' for i in range(60)], n), 'code': draw.choice([1, 2, 3], n),
                       'member': draw.choice(['yes', 'no'], n), 'asked': pd.Timestamp('2023-01-01')+pd.to_timedelta(draw.integers(0, 900*24, n), unit='h')})
    df['born'] = (df['asked']-pd.to_timedelta(draw.integers(6000, 30000, n), unit='D')).dt.strftime('%Y-%m-%d')
    df['asked'] = df['asked'].dt.strftime('%Y-%m-%dT%H:%M:%SZ')
    for column, share in (('age', .1), ('town', .05), ('member', .05), ('born', .03)): df.loc[draw.random(n) < share, column] = None
    signal = df['age'].fillna(30)/10+np.log(df['income'])+(df['town'] == 'Hof')+draw.normal(size=n)
    return df.assign(two=np.where(signal > signal.median(), 'yes', 'no'), three=pd.qcut(signal, 3, labels=['a', 'b', 'c']).astype(str), amount=signal)


TARGET = {'binary': 'two', 'multiclass': 'three', 'regression': 'amount'}
SETTINGS = {'project': {'name': 'x'}, 'data': {'sources': [{'path': 'x.csv', 'missing': ['-99']}], 'time': 'asked', 'types': {'code': 'category', 'street': 'category'},
                                               'accept': [{'action': 'clip', 'column': 'income', 'low': 500, 'high': 20000}]}}


def model_of(task: str, estimator, kind: str) -> tuple[Model, list, pd.DataFrame]:
    rows = people().drop(columns=[t for t in TARGET.values() if t != TARGET[task]])
    settings = check_settings({**SETTINGS, 'problem': {'target': TARGET[task], 'task': task}})
    plan = infer_plan(rows, settings)
    fitted = build_pipeline(plan, estimator, kind=kind).fit(rows[plan.inputs][:400], encode_target(rows[TARGET[task]], settings)[:400])
    info = ModelVersion(version='1', hash='h', uri='', algorithm='x', task=task, columns=plan.inputs, plan=plan.body(), threshold=.5 if task == 'binary' else None,
                        classes=jsonable(list(fitted.classes_)) if task == 'multiclass' else [])
    return Model(info, fitted), input_schema(plan, settings, sample=rows), rows


CASES = [('binary', LogisticRegression(max_iter=2000), 'linear'), ('multiclass', LogisticRegression(max_iter=2000), 'linear'), ('regression', Ridge(), 'linear'),
         ('binary', HistGradientBoostingClassifier(max_iter=30), 'tree'), ('multiclass', HistGradientBoostingClassifier(max_iter=10), 'tree'),
         ('regression', HistGradientBoostingRegressor(max_iter=30), 'tree'), ('regression', HistGradientBoostingRegressor(max_iter=10, loss='poisson'), 'tree'),
         ('binary', RandomForestClassifier(10), 'tree'), ('multiclass', RandomForestClassifier(10), 'tree'), ('regression', RandomForestRegressor(10), 'tree'),
         ('binary', ExtraTreesClassifier(10), 'linear'), ('binary', KNeighborsClassifier(), 'linear'),
         ('binary', Calibrated(HistGradientBoostingClassifier(max_iter=10), {'method': 'sigmoid', 'slope': 1.3, 'intercept': -.2}), 'tree'),
         ('binary', Calibrated(LogisticRegression(max_iter=2000), {'method': 'isotonic', 'x': [0., .4, 1.], 'y': [.1, .5, .9]}), 'linear'),
         ('multiclass', Calibrated(LogisticRegression(max_iter=2000), {'method': 'temperature', 'temperature': 1.7}), 'linear')]


def boosters() -> list:
    lightgbm, xgboost = pytest.importorskip('lightgbm'), pytest.importorskip('xgboost')
    return [('binary', lightgbm.LGBMClassifier(n_estimators=20, verbosity=-1), 'tree'), ('multiclass', lightgbm.LGBMClassifier(n_estimators=5, verbosity=-1), 'tree'),
            ('regression', lightgbm.LGBMRegressor(n_estimators=20, verbosity=-1), 'tree'), ('binary', xgboost.XGBClassifier(n_estimators=20), 'tree'),
            ('regression', xgboost.XGBRegressor(n_estimators=20), 'tree')]


def check(task: str, estimator, kind: str) -> None:
    model, columns, rows = model_of(task, estimator, kind)
    scorer, path = choose(model, columns, rows)
    assert scorer is not None, path.why
    assert path.rows == len(rows) and path.changed == 0 and path.distance <= 1e-9, path
    given = to_records(rows.tail(40), columns)
    odd = [dict(given[0]) for _ in range(6)]
    for record, (column, value) in zip(odd, [('town', 'nowhere'), ('town', '  '), ('income', 1e300), ('street', '-99'), ('debt', -99), ('asked', '2024-02-29 10:15')]): record[column] = value
    empty = {c.name: None if c.nullable else given[0][c.name] for c in columns if c.required}
    for record in [*given, *odd, empty]:
        wanted = model.scores(read_records(json.dumps([record]).encode(), columns))[0]
        assert np.abs(np.array(scorer.one(record))-wanted).max() <= 1e-9, record
    if form := form_of(parts_of(model.estimator, model.info.columns, task), task):
        read, sent = read_form(form), {c.name: [r[c.name] for r in given+odd] for c in columns if c.required}
        assert np.array_equal(read.many(sent), scorer.many(sent)) and [read.one(r) for r in given+odd] == [scorer.one(r) for r in given+odd]
        with pytest.raises(Unusual): read.one(given[0] | {'asked': '2024-W09-4'})
    assert bool(form) == (scorer.masks is not None)
    for value in ('2024-W09-4', '2024-02-30', '0001-01-01T00:00+05:00', '9999-12-31T23:59-05:00'):   # the last two lie outside the calendar in UTC
        with pytest.raises(Unusual): scorer.one(given[0] | {'asked': value})


@pytest.mark.parametrize('task, estimator, kind', CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_every_pipeline_of_the_house_gives_its_own_scores(task, estimator, kind): check(task, estimator, kind)


@pytest.mark.parametrize('i', range(5))
def test_boosters_of_other_libraries(i): check(*boosters()[i])


@pytest.mark.parametrize('leaves, masked', [(31, True), (60, True), (100, False)])
def test_masks_and_the_estimator_agree_to_the_last_bit(leaves, masked):
    "On values that are missing, never seen, or stand on a threshold; trees of too many leaves are left to the estimator."
    rows = people(2000)
    rows['member'] = rows['member'].mask(rows.index % 7 == 0)
    model, columns, _ = model_of('binary', HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=leaves, min_samples_leaf=2), 'tree')
    scorer = compile_pipeline(model.estimator, model.info.columns, 'binary')
    assert (scorer.masks is not None) == masked
    given = to_records(rows, columns)
    for i, record in enumerate(given): record['town'] = ['nowhere', None, 'Hof', ' Ulm '][i % 4]
    if masked:
        cuts = [t for place in scorer.masks.places.values() for t in place.thresholds.tolist() if 500 < t < 20000]
        for record, cut in zip(given, cuts): record['income'] = cut
    sent = {c.name: [r[c.name] for r in given] for c in columns if c.required}
    assert np.array_equal(scorer.many(sent), scorer.head.many(scorer.encode_all(sent)))
    assert np.abs(scorer.many(sent)-np.array([scorer.one(r) for r in given])).max() < 1e-12


def test_what_would_change_a_decision_is_refused():
    model, columns, rows = model_of('binary', LogisticRegression(max_iter=2000), 'linear')
    scorer = compile_pipeline(model.estimator, model.info.columns, 'binary')
    model.estimator[-1].coef_ = model.estimator[-1].coef_+.5     # the pipeline moves on, what was compiled does not
    from mlcycle.paths import compare, verdict
    found = compare(model, columns, rows, scorer=scorer)
    assert found.changed > 0 and 'would differ' in verdict(found)
    assert choose(model, columns, rows.head(0))[0] is None and choose(model, columns, None)[1].path == 'pipeline'


# --- by ONNX Runtime in 32 bits, for who asks for it

def test_every_estimator_as_onnx_keeps_its_decisions_or_says_why_not():
    found = {}
    for task, estimator, kind in [*CASES, *boosters()]:
        model, columns, rows = model_of(task, estimator, kind)
        scorer, path = choose_onnx(model, columns, rows)
        assert scorer is not None and (path.asked, path.rows, path.changed) == ('onnx', len(rows), 0), (estimator, path)
        if path.path == 'onnx': assert 'ONNX' in scorer.how and 0 <= path.distance <= path.tolerance
        else: assert path.path == 'compiled' and path.distance <= 1e-9 and path.why.startswith('not as ONNX, because')
        found[str(estimator), task] = path.path
    assert list(found.values()).count('onnx') >= 8, found


def test_a_server_answers_by_onnx_where_the_settings_ask_for_it_and_exactly_again_where_they_do_not(tmp_path):
    project = new_project(tmp_path/'project', data='id = "id"', more='[deployment]\nscorer = "onnx"\n')
    crown(project, register(project, strange_rows(), HistGradientBoostingClassifier(max_iter=10, random_state=0)))
    records = to_records(strange_rows(50, seed=3), ProjectService(project).schema())
    def scores(service) -> tuple[str, np.ndarray]:
        standing = service.now() or service.look()
        return standing.main.how['path'], np.array([t['score'] for part in service.predict(standing, records) for t in part.told])
    path, near = scores(ProjectService(project))
    evidence = project.latest(ScoringPath, subject='1')
    assert path == evidence.path == 'onnx' and evidence.changed == 0 and 0 < evidence.distance <= .005 and 'scores by up to' in evidence.why
    assert len(project.ledger.entries('compiled')) == 1     # the second server looked it up
    exact = project.registry.load('1').scores(strange_rows(50, seed=3))
    assert 0 < np.abs(near-exact).max() < .005
    build_bundle(project, out=tmp_path/'bundle')
    assert np.abs(scores(BundleService(tmp_path/'bundle'))[1]-exact).max() <= 1e-9     # away from home: exactly
    project.update_settings({'deployment.scorer': 'exact'})
    path, again = scores(ProjectService(project))
    assert path == 'compiled' and np.abs(again-exact).max() <= 1e-9
