"""Metrics agree with scikit-learn and Fairlearn; groups, costs and comparisons keep their word on hard and on real data."""
import math
import fairlearn.metrics as fair
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mlcycle.core import Costs, DataError, Estimate, SettingsError, TASK_METRICS
from mlcycle.metrics import (ANALYTIC, METRICS, MISSING, Terms, by_group, default_metric, difference, disparity, evaluate,
                             grouped, measure, metric_names, scored)

BINARY = Terms(task='binary')


def binary(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(int)
    return y, np.clip(0.3+0.25*y+rng.normal(0, 0.2, n), 0, 1)


def test_every_metric_a_criterion_may_name_is_measured():
    assert {t: tuple(metric_names(t)) for t in TASK_METRICS} == TASK_METRICS
    assert all(default_metric(t) in metric_names(t) for t in TASK_METRICS)
    with pytest.raises(SettingsError, match='No task'): default_metric('ranking')
    assert METRICS['f1'].tasks == ('binary',) and METRICS['roc_auc'].tasks == ('binary', 'multiclass')


def test_binary_values_equal_scikit_learn():
    y, s = binary()
    d, found = (s >= 0.45).astype(int), evaluate(BINARY.model_copy(update=dict(threshold=0.45, costs=Costs(false_positive=2, false_negative=7))), y, s)
    expected = dict(roc_auc=sk.roc_auc_score(y, s), average_precision=sk.average_precision_score(y, s), log_loss=sk.log_loss(y, s),
                    brier=sk.brier_score_loss(y, s), accuracy=sk.accuracy_score(y, d), f1=sk.f1_score(y, d),
                    balanced_accuracy=sk.balanced_accuracy_score(y, d), precision=sk.precision_score(y, d),
                    recall=sk.recall_score(y, d), selection_rate=d.mean(),
                    cost=(2*((y == 0)&(d == 1))+7*((y == 1)&(d == 0))).mean())
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value) and found[name].low < value < found[name].high
    assert set(found) == set(expected) | {'calibration_error'}
    assert evaluate('binary', y, np.column_stack([1-s, s]), names=['brier'])['brier'].value == pytest.approx(expected['brier'])


def test_multiclass_values_equal_scikit_learn_whatever_the_labels_are_called():
    rng = np.random.default_rng(1)
    classes = ['<b>', 'a', 'zz']
    k = rng.integers(0, 3, 300)
    p = rng.dirichlet([1, 1, 1], 300)+np.eye(3)[k]*rng.random((300, 1))
    p /= p.sum(axis=1, keepdims=True)
    y = pd.Series(np.array(classes)[k])
    found = evaluate(Terms(task='multiclass', classes=classes), y, p)
    d = np.array(classes)[p.argmax(axis=1)]
    assert found['roc_auc'].value == pytest.approx(sk.roc_auc_score(y, p, multi_class='ovr', labels=classes))
    assert found['log_loss'].value == pytest.approx(sk.log_loss(y, p, labels=classes))
    assert found['f1_macro'].value == pytest.approx(sk.f1_score(y, d, average='macro'))
    assert found['balanced_accuracy'].value == pytest.approx(sk.balanced_accuracy_score(y, d))
    assert all(e.low < e.value < e.high for e in found.values())


def test_a_class_that_the_model_does_not_know_counts_as_an_error():
    p = np.tile([[0.8, 0.2], [0.3, 0.7]], (20, 1))
    y = ['a', 'b']*19+['c', 'c']
    terms = Terms(task='multiclass', classes=['a', 'b'])
    found = evaluate(terms, y, p)
    assert found['accuracy'].value == pytest.approx(38/40) and found['balanced_accuracy'].value == pytest.approx(2/3)
    assert 'does not know' in found['log_loss'].reason and found['roc_auc'].status == 'undefined'
    assert evaluate(terms, [*y[:-1], None], p)['accuracy'].reason == '1 of 40 labels are missing or infinite'


def test_regression_values_equal_scikit_learn_far_from_zero():
    rng = np.random.default_rng(2)
    y = 1e9+rng.normal(size=300)
    p = y+0.5*rng.normal(size=300)
    found = evaluate('regression', y, p)
    assert found['rmse'].value == pytest.approx(sk.root_mean_squared_error(y, p))
    assert found['r2'].value == pytest.approx(sk.r2_score(y, p)) and found['r2'].low < found['r2'].value < found['r2'].high
    assert found['mae'].value == pytest.approx(sk.mean_absolute_error(y, p))


def test_no_error_at_all_keeps_an_interval():
    y = np.array([0, 1]*15)
    found = evaluate('binary', y, y*0.8+0.1)
    for name in ('roc_auc', 'accuracy', 'balanced_accuracy', 'precision', 'recall', 'f1'):
        assert found[name].value == 1 and 0.7 < found[name].low < 0.97
    assert found['cost'].value == 0 and found['cost'].high > 0.05
    three = np.eye(3)[[0, 1, 2]*20]*0.9+0.03
    found = evaluate(Terms(task='multiclass', classes=[0, 1, 2]), [0, 1, 2]*20, three)
    assert all(found[n].value == 1 and 0.7 < found[n].low < 1 for n in ('f1_macro', 'accuracy', 'balanced_accuracy', 'roc_auc'))
    assert {found[n].n for n in ('f1_macro', 'accuracy', 'roc_auc')} == {len(three)}


@pytest.mark.parametrize('y, s', [([], []), ([1, 1], [.2, .4]), ([0]*30, [0.2]*30), ([0, 1, None], [.1, .2, .3]),
                                  ([0, 1, 1], [.1, None, .3]), ([0, 1], [-math.inf, .3]), ([1], [0.7])])
def test_hard_cases_are_never_nan_and_always_have_a_reason(y, s):
    for task, scores in (('binary', s), ('regression', s), ('multiclass', np.column_stack([s, s]) if s else np.empty((0, 2)))):
        for e in evaluate(Terms(task=task, classes=[0, 1]), y, scores).values():
            assert isinstance(e, Estimate) and (e.status == 'ok' or e.reason)
            assert all(v is None or math.isfinite(v) for v in (e.value, e.low, e.high))


def test_wrong_calls_say_what_came():
    y, s = binary(20)
    with pytest.raises(SettingsError, match="No binary metric 'rmse'"): evaluate('binary', y, s, names=['rmse'])
    with pytest.raises(DataError, match='0 and 1'): evaluate('binary', y+1, s)
    with pytest.raises(SettingsError, match='shape'): evaluate('binary', y, np.ones((20, 3)))
    with pytest.raises(SettingsError, match='classes'): evaluate('multiclass', y, s)
    with pytest.raises(SettingsError, match='20 labels and 3 groups'): by_group(scored('binary', y, s), ['a']*3)
    with pytest.raises(SettingsError, match='the same rows'): difference(scored('binary', y, s), scored('binary', 1-y, s), 'brier')


@pytest.mark.parametrize('name', ['f1', 'balanced_accuracy', 'cost'])
def test_closed_intervals_cover(name):
    rng = np.random.default_rng(5)
    p = np.array([0.15, 0.1, 0.05, 0.7])   # true and false positives, false and true negatives
    truth = dict(f1=0.3/0.45, balanced_accuracy=(0.75+0.7/0.8)/2, cost=0.1+5*0.05)[name]
    held, terms = [], BINARY.model_copy(update={'costs': Costs(false_negative=5)})
    for counts in rng.multinomial(150, p, 1500):
        y, d = np.repeat([1, 0, 1, 0], counts), np.repeat([1, 1, 0, 0], counts)
        e = ANALYTIC[name](scored(terms, y, d))
        held.append(e.low <= truth <= e.high)
    assert 0.93 < np.mean(held) < 0.98


def test_groups_small_missing_and_strange():
    y, s = binary(600)
    rng = np.random.default_rng(0)
    g = pd.Series(rng.choice(['<script>', "o'neil", 'few', None, MISSING], 600, p=[.45, .4, .02, .08, .05]))
    table = by_group(scored('binary', y, s), g, ['recall', 'selection_rate', 'log_loss'])
    assert list(table.columns) == ['group', 'n', 'metric', 'status', 'value', 'low', 'high', 'reason']
    assert set(table.group) == {'<script>', "o'neil", 'few', MISSING, repr(MISSING)} and table.group.iloc[-1] == MISSING
    few = table[table.group == 'few']
    assert (few.status == 'not estimable').all() and few.value.isna().all() and few.reason.str.contains('30 needed').all()
    assert table.groupby('metric').n.sum().eq(600).all()
    scarce = by_group(scored('binary', np.r_[np.ones(5), np.zeros(95)], np.linspace(0, 1, 100)), ['a']*100, ['recall', 'accuracy'])
    assert scarce.status.tolist() == ['not estimable', 'ok'] and scarce.reason[0] == '5 positive labels; 10 needed'


def test_groups_of_numbers_booleans_and_categories():
    ages = grouped(pd.Series([*range(18, 98), None]))
    assert ages.nunique() == 5 and ages.iloc[0] == '18 to 38' and ages.iloc[-1] == MISSING
    assert ages[:80].value_counts().between(19, 21).all()
    assert set(grouped([True, False, None])) == {'True', 'False', MISSING}
    assert set(grouped(pd.Categorical(['x', None, 'y']))) == {'x', 'y', MISSING}
    assert set(grouped([math.inf, *range(20)])) >= {'0 to 5'}
    assert grouped([0]*50+list(range(20))).value_counts().sum() == 70
    assert len(grouped([None, None])) == 2 and set(grouped([None, None])) == {MISSING}


def test_disparities_are_fairlearns():
    y, s = binary(900)
    g = np.random.default_rng(1).choice(['a', 'b', 'c'], 900)
    d = (s >= 0.4).astype(int)
    table = by_group(scored(Terms(task='binary', threshold=0.4), y, s), g, ['selection_rate', 'recall', 'false_positive_rate', 'accuracy'])
    for name, theirs in (('demographic_parity', fair.demographic_parity_difference),
                         ('equal_opportunity', fair.equal_opportunity_difference),
                         ('equalized_odds', fair.equalized_odds_difference)):
        e = disparity(table, name)
        assert e.value == pytest.approx(theirs(y, d, sensitive_features=g)) and e.low <= e.value <= e.high
    frame = fair.MetricFrame(metrics=sk.accuracy_score, y_true=y, y_pred=d, sensitive_features=g)
    assert disparity(table, 'accuracy').value == pytest.approx(frame.difference())


def test_the_disparity_of_two_groups_is_newcombes_and_of_many_equal_ones_covers_zero():
    from mlcycle.statistics import newcombe
    d, g = np.array([1]*56+[0]*14+[1]*48+[0]*32), ['a']*70+['b']*80
    e = disparity(by_group(scored('binary', d, d), g, ['selection_rate']), 'selection_rate')
    assert (e.low, e.high) == pytest.approx((newcombe(56, 70, 48, 80).low, newcombe(56, 70, 48, 80).high))
    rng, missed = np.random.default_rng(0), 0
    for _ in range(150):
        d = (rng.random(600) < 0.3).astype(int)
        missed += disparity(by_group(scored('binary', d, d), np.arange(600)%6, ['selection_rate']), 'selection_rate').low > 0
    assert missed <= 15   # picking the largest of fifteen pairs unadjusted would miss in nearly half


def test_disparity_needs_two_estimable_groups():
    y, s = binary(60)
    e = disparity(by_group(scored('binary', y, s), ['a']*50+['b']*10, ['recall']), 'recall')
    assert e.status == 'undefined' and e.reason == '1 group is estimable, two are needed'
    assert disparity(by_group(scored('binary', y, s), ['a']*60, ['recall']), 'brier').status == 'undefined'


@pytest.mark.parametrize('metric', TASK_METRICS['binary'])
def test_the_better_model_has_a_positive_difference_and_turned_round_the_mirror(metric):
    y, good = binary(1500)
    bad = np.clip(good+np.random.default_rng(3).normal(0, 0.3, 1500), 0, 1)
    good, bad = scored('binary', y, good), scored('binary', y, bad)
    ahead, behind = difference(good, bad, metric), difference(bad, good, metric)
    if metric not in ('selection_rate', 'calibration_error', 'recall', 'precision'): assert ahead.value > 0 and ahead.low > 0
    assert ahead.value == pytest.approx(-behind.value) and ahead.metric == metric
    assert ahead.low == pytest.approx(-behind.high, abs=0.01, rel=0.05) and ahead.low <= ahead.value <= ahead.high
    same = difference(good, good, metric)
    assert same.value == 0 and (same.high > 0) == (METRICS[metric].needs == 'decision')


@pytest.mark.parametrize('task', ['multiclass', 'regression'])
def test_differences_of_the_other_tasks(task):
    rng = np.random.default_rng(4)
    if task == 'regression': y, a, b, classes = (x := rng.normal(size=300)), x+rng.normal(0, .1, 300), x+rng.normal(0, .5, 300), []
    else:
        y, classes = rng.integers(0, 3, 300).astype(str), ['0', '1', '2']
        a, b = ((lambda p: p/p.sum(axis=1, keepdims=True))(np.eye(3)[y.astype(int)]*w+rng.random((300, 3))) for w in (1, .3))
    a, b = (scored(Terms(task=task, classes=classes), y, s) for s in (a, b))
    for metric in TASK_METRICS[task]:
        e = difference(a, b, metric)
        assert e.status == 'ok' and 0 < e.low < e.value < e.high


def test_each_model_keeps_its_own_threshold_and_costs_count():
    y, s = binary(500)
    costs = Costs(false_positive=1, false_negative=9)
    a, b = (scored(Terms(task='binary', threshold=t, costs=costs), y, s) for t in (0.2, 0.8))
    e = difference(a, b, 'cost')
    one, other = (measure(rows, ['cost'])['cost'].value for rows in (a, b))
    assert e.value == pytest.approx(other-one) and e.low > 0
    with pytest.raises(SettingsError): difference(a, b, 'rmse')
    assert difference(a, scored('binary', y, s*math.nan), 'roc_auc').status == 'undefined'


def test_adult_by_sex_and_race(data_dir):
    df = pd.read_csv(data_dir/'adult'/'adult.csv', skipinitialspace=True)
    target = next(c for c in df.columns if df[c].astype(str).str.contains('>50K').any())
    y = df[target].astype(str).str.contains('>50K').astype(int)
    race, sex = (next(c for c in df.columns if c.lower() == name) for name in ('race', 'sex'))
    score = df.groupby([df[sex], pd.cut(df[next(c for c in df if c.lower() == 'age')], 8)], observed=True)[target].transform(
        lambda v: v.astype(str).str.contains('>50K').mean()).astype(float)
    rows = scored(Terms(task='binary', threshold=0.3), y, score)
    table = by_group(rows, df[sex], ['selection_rate', 'recall', 'roc_auc', 'log_loss'])
    gap = disparity(table, 'demographic_parity')
    theirs = fair.demographic_parity_difference(y, score >= 0.3, sensitive_features=df[sex])
    assert gap.value == pytest.approx(theirs) and gap.low > 0.3
    assert by_group(rows, df[race], ['accuracy']).n.sum() == len(df)


def test_a_few_rows_decided_otherwise_are_no_proof():
    y = np.array([1, 0]*150)
    a, b = y*0.8+0.1, y*0.8+0.1
    b[[0, 2, 4]] = 0.2   # three rows that only a gets right
    for metric in ('accuracy', 'recall', 'balanced_accuracy'):
        e = difference(scored('binary', y, a), scored('binary', y, b), metric)
        assert e.value > 0 > e.low
    b[:30:2] = 0.2
    assert difference(scored('binary', y, a), scored('binary', y, b), 'accuracy').low > 0
