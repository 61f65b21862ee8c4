"""Intervals agree with their references, cover the truth as often as they say, and never turn into NaN."""
import math, time, tracemalloc
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from mlcycle.core import DataError, SettingsError, judge, Criterion
from mlcycle.statistics import (Resampling, auc_shares, bca, benjamini_hochberg, bootstrap, delong, delong_difference, difference,
                                holm, intervals, left_out, mean, newcombe, newcombe_auc, paired_rates, resampled_counts, square_and_add,
                                wilson)
from mlcycle.weighting import WEIGHTED, cells, lacking, numbers, unusable, weighted


def sample(n: int, seed: int=0, ties: bool=False):
    "Labels and two calibrated-looking scores of different strength."
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = (rng.random(n) < 1/(1+np.exp(1-1.2*x))).astype(float)
    a, b = 1/(1+np.exp(1-1.2*x)), 1/(1+np.exp(1-(x+0.7*rng.normal(size=n))))
    return (y, a.round(1), b.round(1)) if ties else (y, a, b)


SKLEARN = {
    'roc_auc': sk.roc_auc_score, 'average_precision': sk.average_precision_score, 'log_loss': sk.log_loss,
    'brier': sk.brier_score_loss, 'rmse': sk.root_mean_squared_error, 'mae': sk.mean_absolute_error, 'r2': sk.r2_score,
    'accuracy': sk.accuracy_score, 'balanced_accuracy': sk.balanced_accuracy_score, 'precision': sk.precision_score,
    'recall': sk.recall_score, 'f1': sk.f1_score, 'f1_macro': lambda y, d: sk.f1_score(y, d, average='macro')}
DECISIONS = {'accuracy', 'balanced_accuracy', 'precision', 'recall', 'f1', 'f1_macro'}


@pytest.mark.parametrize('name', SKLEARN)
@pytest.mark.parametrize('ties', [False, True])
def test_weighted_forms_equal_scikit_learn_on_repeated_rows(name, ties):
    y, s, _ = sample(300, ties=ties)
    s = (s >= 0.4).astype(float) if name in DECISIONS else s
    counts = np.random.default_rng(1).poisson(1, (4, 300)).astype(np.uint8)
    found = weighted(name, y, s).value(counts)
    for value, line in zip(found, counts):
        rows = np.repeat(np.arange(300), line)
        assert value == pytest.approx(SKLEARN[name](y[rows], s[rows]), abs=1e-10)


@pytest.mark.parametrize('name', ['roc_auc', 'log_loss', 'accuracy', 'balanced_accuracy', 'f1_macro'])
def test_weighted_forms_of_several_classes_equal_scikit_learn(name):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 200).astype(float)
    p = rng.dirichlet([1, 1, 1], 200)+2*np.eye(3)[y.astype(int)]*rng.random((200, 1))
    p = p/p.sum(axis=1, keepdims=True)
    counts = rng.multinomial(200, np.full(200, 1/200), size=3)
    s = p.argmax(axis=1).astype(float) if name in DECISIONS else p
    reference = {**SKLEARN, 'roc_auc': lambda y, p: sk.roc_auc_score(y, p, multi_class='ovr'),
                 'log_loss': lambda y, p: sk.log_loss(y, p, labels=[0, 1, 2])}[name]
    for value, line in zip(weighted(name, y, s).value(counts), counts):
        rows = np.repeat(np.arange(200), line)
        assert value == pytest.approx(reference(y[rows], s[rows]), abs=1e-10)


def test_calibration_error_is_the_weighted_gap_of_ten_equal_bins():
    y, s, _ = sample(500)
    bins = np.minimum((s*10).astype(int), 9)
    expected = sum(abs((y-s)[bins == b].sum()) for b in range(10))/500
    assert bootstrap('calibration_error', y, s).value == pytest.approx(expected)


def test_cells_give_the_same_values_as_rows():
    y, a, b = sample(2000, ties=True)
    keep, sizes = cells(y, a, b)
    assert len(keep) < 300 and sizes.sum() == 2000
    for name in ('roc_auc', 'average_precision', 'log_loss', 'calibration_error', 'r2'):
        whole = weighted(name, y, a).value(np.ones((1, 2000)))
        assert weighted(name, y[keep], a[keep]).value(sizes[None]) == pytest.approx(whole)


def test_multinomial_and_poisson_counts_give_the_same_interval():
    y, s, _ = sample(1900)
    once = np.ones(1900, dtype=int)
    few = bootstrap('brier', y, s, how=Resampling(resamples=4000))
    form = weighted('brier', np.tile(y, 2)[:3800], np.tile(s, 2)[:3800])   # above the limit of cells: Poisson
    many = intervals({'brier': form}, np.ones(3800, dtype=int), how=Resampling(resamples=4000))['brier']
    assert many.value == pytest.approx(few.value)
    assert (many.high-many.low)*math.sqrt(2) == pytest.approx(few.high-few.low, rel=0.06)
    assert sum(len(b) for b in resampled_counts(once, 7)) == 7


def test_counts_come_in_bounded_blocks():
    for block in resampled_counts(np.ones(1_000_000, dtype=int), 6): assert block.size <= 4_000_000
    for block in left_out(np.ones(300_000, dtype=int)): assert block.size <= 4_000_000
    assert sum(len(b) for b in left_out(np.ones(300_000, dtype=int))) == 200


def test_means_are_students():
    x = np.random.default_rng(3).exponential(size=12)
    ours, theirs = mean(x, level=0.9), stats.t.interval(0.9, 11, loc=x.mean(), scale=stats.sem(x))
    assert (ours.low, ours.high) == pytest.approx(theirs)
    for values in ([], [1.], [2.]*20, [1., math.nan]*10, x[:9], [math.inf]*20):
        assert mean(values).status != 'ok' and mean(values).low is None and mean(values).reason


def test_bca_agrees_with_scipy():
    x = np.random.default_rng(0).exponential(size=80)
    theirs = stats.bootstrap((x,), np.mean, method='BCa', n_resamples=9999, rng=np.random.default_rng(1))
    ours = bootstrap('mean', np.zeros(80), x, how=Resampling(resamples=9999))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.015)


def test_bca_is_the_percentile_interval_without_bias_or_skewness():
    replicates = np.linspace(-1, 1, 20_001)
    low, high = bca(0., replicates, np.array([-1., 1.]), np.array([1, 1]))
    assert (low, high) == pytest.approx((-0.95, 0.95), abs=1e-3)


def test_wilson_agrees_with_scipy():
    for k, n in [(0, 5), (1, 7), (30, 30), (17, 40), (500, 1000)]:
        theirs = stats.binomtest(k, n).proportion_ci(method='wilson')
        assert (wilson(k, n).low, wilson(k, n).high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    with pytest.raises(SettingsError, match='not a rate'): wilson(4, 3)
    with pytest.raises(SettingsError, match='level'): wilson(1, 3, level=95)


@pytest.mark.parametrize('counts, printed', [((56, 70, 48, 80), (0.0524, 0.3339)), ((9, 10, 3, 10), (0.1705, 0.8090)),
                                             ((6, 7, 2, 7), (0.0582, 0.8062)), ((5, 56, 0, 29), (-0.0381, 0.1926)),
                                             ((0, 10, 0, 10), (-0.2775, 0.2775)), ((10, 10, 0, 20), (0.6791, 1.0))])
def test_newcombe_gives_the_figures_of_his_table(counts, printed):
    assert (newcombe(*counts).low, newcombe(*counts).high) == pytest.approx(printed, abs=6e-5)


def test_corrections_agree_with_scipy_and_by_hand():
    p = np.random.default_rng(0).random(50)**3
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert holm([0.01, 0.02, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert len(holm([])) == len(benjamini_hochberg([])) == 0
    for bad in ([0.5, math.nan], [1.5], [-0.1]):
        with pytest.raises(SettingsError): holm(bad)


def by_pairs(y, s):
    "DeLong's components written out over all pairs, as the paper does."
    pos, neg = s[y == 1], s[y == 0]
    wins = (pos[:, None] > neg)+0.5*(pos[:, None] == neg)
    return wins.mean(), wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize('ties', [False, True])
def test_delong_by_ranks_equals_delong_by_pairs(ties):
    y, a, b = sample(150, ties=ties)
    (area_a, v10a, v01a), (area_b, v10b, v01b) = by_pairs(y, a), by_pairs(y, b)
    covariance = np.cov(v10a, v10b)/len(v10a)+np.cov(v01a, v01b)/len(v01a)
    area, shares = auc_shares(y, a)
    assert area == pytest.approx(area_a) == pytest.approx(sk.roc_auc_score(y, a))
    assert shares@shares == pytest.approx(covariance[0, 0])
    gap, p = delong_difference(y, a, b)
    error = math.sqrt(covariance[0, 0]+covariance[1, 1]-2*covariance[0, 1])
    assert gap.value == pytest.approx(area_a-area_b) and gap.high-gap.value == pytest.approx(1.959964*error)
    assert p == pytest.approx(2*stats.norm.sf(abs(gap.value)/error))


def test_delong_and_the_bootstrap_agree():
    y, a, b = sample(800)
    assert delong(y, a).low == pytest.approx(bootstrap('roc_auc', y, a).low, abs=0.006)
    one, other = delong_difference(y, a, b)[0], difference('roc_auc', y, (a, b))
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.006)


def test_a_perfect_ranking_is_not_certainty():
    apart = delong([0]*5+[1]*5, range(10))
    assert apart.value == 1 and apart.high == 1 and 0.5 < apart.low < 0.85
    assert delong([0]*400+[1]*400, range(800)).low > 0.98
    assert delong([1]*5+[0]*5, range(10)).low == 0 and delong([1]*5+[0]*5, range(10)).high < 0.5
    low, high = newcombe_auc(0.8, 3, 4)
    assert 0 < low < 0.8 < high < 1
    gap, p = delong_difference([0]*20+[1]*20, range(40), np.zeros(40))   # both variances are zero
    assert gap.value == 0.5 and gap.low < 0.5 < gap.high and p is None
    same, p = delong_difference([0]*20+[1]*20, range(40), range(40))
    assert (same.value, same.low, same.high, p) == (0, 0, 0, 1)


BAD = {'empty': ([], []), 'missing score': ([0, 1, 1], [.1, math.nan, .3]), 'infinite score': ([0, 1, 1], [.1, math.inf, .3]),
       'missing label': ([0, math.nan, 1], [.1, .2, .3]), 'one class': ([1]*20, np.linspace(0, 1, 20)),
       'no positive': ([0]*20, np.zeros(20))}


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize('name', WEIGHTED)
def test_what_cannot_be_measured_is_undefined_with_a_reason(case, name):
    y, s = BAD[case]
    for figure in (bootstrap(name, y, s), difference(name, y, (s, s))):
        body = figure.body()
        assert figure.status == 'ok' or figure.reason
        assert all(v is None or math.isfinite(v) for v in (body['value'], body['low'], body['high']))
        if case in ('empty', 'missing score', 'infinite score', 'missing label'): assert figure.status == 'undefined'
    if case == 'one class' and name in ('roc_auc', 'balanced_accuracy', 'r2'): assert figure.status == 'undefined'


def test_scores_that_are_no_probabilities_and_arguments_that_do_not_fit():
    y, s, _ = sample(50)
    for name in ('log_loss', 'brier', 'calibration_error'):
        assert 'not probabilities' in bootstrap(name, y, s*3).reason
    assert bootstrap('roc_auc', y, s*3).status == 'ok'
    with pytest.raises(SettingsError, match='50 labels came, and 49 scores'): bootstrap('roc_auc', y, s[:-1])
    with pytest.raises(SettingsError, match="No metric 'auc'"): bootstrap('auc', y, s)
    with pytest.raises(DataError, match='have to be numbers'): bootstrap('roc_auc', ['a', 'b'], [1, 2])


def test_no_spread_and_too_few_rows_are_never_a_pass():
    bar = Criterion(metric='mae', direction='<=', threshold=1.)
    for figure in (bootstrap('mae', np.arange(50), np.arange(50)), bootstrap('mae', [1, 2, 3], [1.1, 2.3, 3.2]),
                   bootstrap('precision', [1, 0]*20, [0]*40)):
        assert figure.status != 'ok' and figure.low is None and figure.reason and judge(figure, bar) == 'undetermined'
    rare = bootstrap('average_precision', [1]+[0]*99, np.linspace(1, 0, 100))   # a third of the resamples has no positive
    assert rare.status == 'too few' and rare.value == 1


def test_a_function_of_your_own_may_fail_or_return_nonsense():
    y, s, _ = sample(60)
    assert bootstrap(sk.roc_auc_score, y, s, how=Resampling(resamples=200)).metric == 'roc_auc_score'
    assert bootstrap(lambda y, s: math.nan, y, s, how=Resampling(resamples=50)).status == 'undefined'
    mine = bootstrap(lambda y, s: float(np.mean((y-s)**2)), y, s, how=Resampling(resamples=1000))
    assert mine.low == pytest.approx(bootstrap('brier', y, s, how=Resampling(resamples=1000)).low, abs=0.01)


def test_same_seed_same_interval_and_another_seed_another():
    y, s, _ = sample(300)
    assert bootstrap('brier', y, s, how=Resampling(seed=4)) == bootstrap('brier', y, s, how=Resampling(seed=4)) != bootstrap('brier', y, s, how=Resampling(seed=5))


COVERED = ['average_precision', 'log_loss', 'brier', 'r2', 'rmse']


def test_intervals_cover_the_truth_as_often_as_they_say():
    y, a, b = sample(400_000, seed=99)
    once = np.ones((1, len(y)), dtype=np.uint8)
    truth = {m: float(WEIGHTED[m](y, a).value(once)[0]) for m in COVERED+['roc_auc']}
    gaps = {m: truth[m]-float(WEIGHTED[m](y, b).value(once)[0]) for m in ('log_loss', 'roc_auc')}
    held = {m: [] for m in (*COVERED, 'roc_auc', 'calibration_error', 'log_loss gap', 'roc_auc gap')}
    for seed in range(160):
        y, a, b = sample(120, seed=seed)
        forms = {m: weighted(m, y, a) for m in (*COVERED, 'calibration_error')}
        found = intervals(forms, np.ones(120, dtype=int), how=Resampling(resamples=400)) | {'roc_auc': delong(y, a)}
        for m, e in found.items(): held[m].append(e.low <= truth.get(m, 0.) <= e.high)   # it is calibrated: its error is 0
        gap, _ = delong_difference(y, a, b)
        held['roc_auc gap'].append(gap.low <= gaps['roc_auc'] <= gap.high)
        gap = difference('log_loss', y, (a, b), how=Resampling(resamples=400))
        held['log_loss gap'].append(gap.low <= gaps['log_loss'] <= gap.high)
    covered = {m: float(np.mean(h)) for m, h in held.items()}
    assert all(0.89 <= c <= 0.99 for c in covered.values()), covered   # 0.95, three standard errors, small samples


def test_exact_intervals_cover_small_rates_and_small_areas():
    rng = np.random.default_rng(0)
    wide, areas, gaps = [], [], []
    for _ in range(2000):
        e = wilson(rng.binomial(25, 0.04), 25)
        wide.append(e.low <= 0.04 <= e.high)
        e = newcombe(rng.binomial(30, 0.9), 30, rng.binomial(20, 0.6), 20)
        gaps.append(e.low <= 0.3 <= e.high)
    truth = stats.norm.cdf(1.5/math.sqrt(2))
    for _ in range(600):
        e = delong([0]*12+[1]*6, np.r_[rng.normal(size=12), rng.normal(1.5, 1, 6)])
        areas.append(e.low <= truth <= e.high)
    assert min(np.mean(wide), np.mean(gaps), np.mean(areas)) > 0.92


def test_square_and_add_with_full_correlation_adds_the_reaches():
    a, b = wilson(3, 10), wilson(7, 10)
    both = square_and_add([a, b], [.5, .5], correlation=1.)
    assert both.low == pytest.approx((a.low+b.low)/2) and both.high == pytest.approx((a.high+b.high)/2)


def test_a_hundred_thousand_rows_take_seconds_and_little_memory():
    y, a, b = sample(100_000)
    tracemalloc.start(); start = time.process_time()
    figure = bootstrap('average_precision', y, a)
    taken, peak = time.process_time()-start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert figure.status == 'ok' and figure.value == pytest.approx(sk.average_precision_score(y, a))
    assert taken < 60 and peak < 400e6   # of the processor: one to three seconds


def test_above_the_budget_of_draws_the_estimate_says_so():
    y, s, _ = sample(600_000)
    figure = bootstrap('brier', y, s, how=Resampling(resamples=2000))
    assert 'normal interval from 666 resamples' in figure.reason
    error = np.std((y-s)**2)/math.sqrt(len(y))
    assert figure.high-figure.value == pytest.approx(1.96*error, rel=0.1)


def test_reasons_and_numbers():
    assert numbers([1, None]).tolist()[0] == 1 and np.isnan(numbers([1, None])[1])
    assert unusable(np.array([1.]), np.array([math.inf])) == '1 of 1 scores are missing or infinite'
    assert lacking('precision', np.array([1., 0]), np.array([0., 0])) == 'no positive decision'
    assert lacking('unknown to it', np.array([1.]), np.array([1.])) == ''


def test_paired_rates_invert_mcnemars_test_and_cover():
    for b, c, n in [(9, 2, 80), (3, 0, 300), (0, 0, 50), (20, 20, 40), (5, 0, 5), (0, 5, 5), (1, 4, 1000)]:
        e, mirror = paired_rates(b, c, n), paired_rates(c, b, n)
        assert -1 <= e.low <= e.value <= e.high <= 1 and (e.low, e.high) == pytest.approx((-mirror.high, -mirror.low), abs=1e-9)
        if b != c:
            level = 1-2*stats.norm.sf(abs(b-c)/math.sqrt(b+c))   # at McNemar's own level one end is exactly zero
            e = paired_rates(b, c, n, level=level)
            assert min(abs(e.low), abs(e.high)) == pytest.approx(0, abs=1e-9)
    assert paired_rates(0, 0, 0).status == 'undefined'
    rng, held = np.random.default_rng(0), []
    for b, c, _ in rng.multinomial(120, [0.06, 0.03, 0.91], size=1500):
        e = paired_rates(b, c, 120)
        held.append(e.low <= 0.03 <= e.high)
    assert 0.93 < np.mean(held) < 0.98
