"Drift: agreement with SciPy, false alarms, power, and everything that is not a comparison."
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

import mlcycle.drift as module
from mlcycle.drift import FIELDS, PARTS, Tolerance, distributions, drift, unit_factor
from mlcycle.measures import chi_squared, hellinger, jensen_shannon, kolmogorov_smirnov, psi, total_variation, wasserstein
from mlcycle.profile import Profile, merge, profile
from mlcycle.showing import number_of


def table(rng, rows, columns=20):
    df = {f'n{i}': (rng.normal, rng.exponential, rng.uniform, rng.lognormal)[i % 4](size=rows) for i in range(columns // 2)}
    df |= {f'c{i}': rng.choice([f'level {k}' for k in range(2 + 3 * i)], rows) for i in range(columns - columns // 2)}
    df['n1'] = np.where(rng.random(rows) < .6, 0, df['n1'])   # half the column is one value
    df['n2'] = np.where(rng.random(rows) < .1, np.nan, df['n2'])
    return pd.DataFrame(df)


def by_column(found): return found.set_index('column')


@pytest.mark.parametrize('seed', range(20))
def test_measures_agree_with_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 200, 12), rng.integers(0, 200, 12)
    assert jensen_shannon(a, b) == pytest.approx(jensenshannon(a, b, base=2), abs=1e-9)
    assert total_variation(a, b) == pytest.approx(np.abs(a / a.sum() - b / b.sum()).sum() / 2)
    assert hellinger(a, b) == pytest.approx(np.sqrt(1 - np.sqrt(a / a.sum() * b / b.sum()).sum()))
    places = np.sort(rng.normal(size=12))
    assert wasserstein(a, b, places) == pytest.approx(stats.wasserstein_distance(places, places, a, b))
    c, d = a + 20, b + 20
    assert chi_squared(c, d)[1] == pytest.approx(stats.chi2_contingency([c, d]).pvalue)
    assert psi(c, d) == pytest.approx(stats.entropy(c, d) + stats.entropy(d, c))   # PSI is the sum of both divergences
    x, y = rng.normal(size=500), np.round(rng.normal(.1, 1, 300), 1)
    expected = stats.ks_2samp(x, y, method='asymp')
    assert kolmogorov_smirnov(x, y, raw=True) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-9)
    reference = profile(pd.DataFrame({'x': x}))
    binned = kolmogorov_smirnov(reference.columns['x'].counts, profile(pd.DataFrame({'x': y}), like=reference).columns['x'].counts)
    assert binned[0] <= expected.statistic + 1e-12 and binned[0] >= expected.statistic - .03 and binned[1] >= expected.pvalue - 1e-12


@pytest.fixture(scope='module')
def agreement():
    path = Path(__file__).resolve().parents[1]/'benchmarks/agreement.py'
    spec = importlib.util.spec_from_file_location('agreement', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference, current = module.tables()
    return reference, drift(reference, current).set_index('column'), {peer: k['values'] for peer, k in json.loads(module.KEPT.read_text()).items()}


def test_values_agree_with_nannyml_in_the_same_bins(agreement):
    reference, ours, theirs = agreement
    for column, told in theirs['nannyml'].items():
        mine = ours.loc[column]
        assert mine.jensen_shannon == pytest.approx(told['jensen_shannon'], abs=1e-9) and mine.hellinger == pytest.approx(told['hellinger'], abs=1e-9)
        if column.startswith('c') and reference[column].nunique() > 2:   # of two levels, NannyML's is after Yates
            assert mine.chi_squared == pytest.approx(told['chi2'], rel=1e-9)
        if column.startswith('n'):
            assert mine.ks == pytest.approx(told['kolmogorov_smirnov'], abs=1e-9) and mine.wasserstein == pytest.approx(told['wasserstein'], abs=1e-9)


def test_values_agree_with_evidently_in_the_same_bins(agreement):
    reference, ours, theirs = agreement
    for column, told in theirs['evidently'].items():
        mine = ours.loc[column]
        assert mine.psi == pytest.approx(told['psi'], abs=1e-9) and mine.hellinger == pytest.approx(told['hellinger'], abs=1e-9)
        assert mine.jensen_shannon == pytest.approx(told['jensenshannon'] / np.sqrt(np.log(2)), abs=1e-9)   # theirs is in nats
        if column.startswith('n'):                                      # theirs is in standard deviations of the reference
            assert mine.wasserstein == pytest.approx(told['wasserstein'] * reference[column].std(), rel=1e-3)


def test_undefined_is_none_and_never_a_number():
    for measure in (psi, jensen_shannon, hellinger, total_variation, chi_squared, kolmogorov_smirnov):
        for pair in (([], []), ([0, 0], [1, 1]), ([1, 1], [0, 0])): assert measure(*pair) is None, measure
    for pair in (([np.nan], [1.]), ([], [1.]), ([np.inf], [1.])): assert kolmogorov_smirnov(*pair, raw=True) is None
    assert chi_squared([5, 0], [7, 0]) == (0, 1) and psi([1, 0], [0, 1]) > 1


@pytest.mark.parametrize('rows, status', [(0, 'no data'), (1, 'too few'), (29, 'too few'), (30, 'no drift')])
def test_few_rows(rows, status):                                                                                      # M01
    df = table(np.random.default_rng(0), 3000)
    found = drift(profile(df), df.sample(rows, random_state=0), Tolerance(min_rows=30))
    assert status in set(found['status']) and (rows >= 30 or set(found['status']) == {status})
    assert len(found) == 20 and (rows == 0 or found['why'].str.contains(f'{number_of(rows, "row")}, 30 are needed').any() == (rows < 30))


def test_bad_columns_do_not_hide_good_ones():                                                                         # M02
    rng = np.random.default_rng(0)
    bad = dict(all_missing=np.nan, infinite=np.inf, constant=7)
    found = by_column(drift(table(rng, 4000).assign(**bad), table(rng, 800).assign(**bad)))
    assert len(found) == 23 and (found['status'] == 'no drift').sum() == 21
    assert found.loc[['all_missing', 'infinite'], 'status'].tolist() == ['undetermined'] * 2
    assert found.loc[['all_missing', 'infinite'], 'why'].str.len().min() > 5
    emptied = by_column(drift(table(rng, 4000), table(rng, 800).assign(n0=np.nan, c0=None)))
    assert emptied.loc[['n0', 'c0'], 'status'].tolist() == ['drift'] * 2 and emptied.loc['n0', 'effect'] == 1
    stuck = by_column(drift(pd.DataFrame({'x': [3.] * 500}), pd.DataFrame({'x': [4.] * 500})))
    assert stuck.loc['x', 'status'] == 'drift'


def test_a_statistic_that_fails_is_undetermined(monkeypatch):                                                         # M03
    rng = np.random.default_rng(0)
    monkeypatch.setattr(module, 'gap_of', lambda *a: np.nan)
    monkeypatch.setattr(module, 'DISTANCES', module.DISTANCES | {'total_variation': lambda *a: np.nan})
    assert set(drift(profile(table(rng, 900)), table(rng, 900))['status']) == {'undetermined'}


def test_each_kind_of_change_is_its_own_finding():                                                                    # M04
    rng = np.random.default_rng(0)
    reference, current = table(rng, 4000), table(rng, 1000)
    current['c0'] = np.where(rng.random(1000) < .2, 'brand new', current['c0'])
    current = current[current['c1'] != 'level 0'].assign(n3=lambda d: [f'a{v}' for v in d['n3']], more=1).drop(columns='n4')
    current['c9'] = [f'id {i % 5000}' for i in range(len(current))]
    began = time.process_time()
    found = by_column(drift(reference, current))
    assert time.process_time() - began < 30
    assert found.loc['c0', 'why'].startswith("new level 'brand new'") and "level 'level 0' gone" in found.loc['c1', 'why']
    assert found.loc[['n3', 'n4', 'more'], 'status'].tolist() == ['type changed', 'missing column', 'new column']
    assert found.loc[['c0', 'c1', 'c9'], 'status'].tolist() == ['drift'] * 3 and (found['status'] == 'no drift').sum() == 15
    many = pd.DataFrame({'c': [f'v{i}' for i in range(100_000)]})
    assert drift(pd.DataFrame({'c': ['a', 'b'] * 500}), many)['status'].tolist() == ['drift']


def test_no_more_false_alarms_than_allowed():                                                                         # M07
    rng, level, alarms = np.random.default_rng(7), .05, 0
    reference = table(rng, 5000)
    like, windows = profile(reference), 120
    tolerance = Tolerance(level=level, floor=0)   # the floor is taken away: the level alone has to hold
    for _ in range(windows): alarms += (drift(like, table(rng, 400), tolerance)['status'] == 'drift').any()
    assert alarms <= stats.binom.ppf(.999, windows, level), alarms


def test_known_shifts_are_found():                                                                                    # M08
    rng, found = np.random.default_rng(8), []
    reference = table(rng, 5000).assign(g=rng.choice(['a', 'b'], 5000, p=[.1, .9]))
    like = profile(reference)
    for _ in range(60):
        current = table(rng, 1000).assign(g=rng.choice(['a', 'b'], 1000, p=[.2, .8]))
        statuses = by_column(drift(like, current.assign(n0=current['n0'] + .5)))['status']
        found.append((statuses == 'drift')[['n0', 'g']].to_numpy())
    assert np.mean(found, axis=0).min() >= .95


def test_large_data_does_not_fire_on_trivia():
    rng = np.random.default_rng(0)
    a, b = pd.DataFrame({'x': rng.normal(size=300_000)}), pd.DataFrame({'x': rng.normal(.02, 1, 300_000)})
    found = drift(a, b).iloc[0]
    assert found['p_value'] < 1e-6 and found['threshold'] == .05 and found['status'] == 'no drift'


@pytest.mark.parametrize('factor', [100, .01, 1000, 12])
def test_a_change_of_unit_is_named(factor):
    rng = np.random.default_rng(0)
    a = pd.DataFrame({'x': rng.lognormal(8, .5, 3000)})
    reference = profile(a)
    assert unit_factor(reference.columns['x'], profile(a[:500] * factor, like=reference).columns['x']) == pytest.approx(factor)
    assert unit_factor(reference.columns['x'], profile(a[:500] + 5000, like=reference).columns['x']) is None
    assert 'times' in drift(reference, a[:500] * factor).iloc[0]['why']


def test_a_month_of_days_says_what_the_month_says():
    rng = np.random.default_rng(0)
    like, month = profile(table(rng, 3000)), table(rng, 900).assign(n0=lambda d: d['n0'] + 1)
    days = [profile(month[i:i + 30], like=like) for i in range(0, 900, 30)]
    together = days[0]
    for day in days[1:]: together = merge(together, day)
    one, two = (by_column(drift(like, p))[['status', 'effect', 'p_value']] for p in (together, profile(month, like=like)))
    pd.testing.assert_frame_equal(one.sort_index(), two.sort_index())


def test_parts_add_up_for_every_kind():
    rng = np.random.default_rng(0)
    df = table(rng, 2000).assign(day=pd.Timestamp('2024-01-01') + pd.to_timedelta(rng.integers(0, 300, 2000), unit='D'), flag=rng.random(2000) < .5,
                                 whole=rng.poisson(2, 2000), one=5, text=[f'{"x" * (i % 40)} {i}' for i in range(2000)], none=None)
    like = profile(df)
    now = profile(df[:300].assign(whole=99, one=6), like=like)
    for name, column in like.columns.items():
        parts = distributions(column, now.columns[name])
        assert parts['reference'].sum() == column.valid and parts['current'].sum() == now.columns[name].valid, name
        assert parts['part'].is_unique or column.kind != 'number', name
        if column.kind == 'number': assert len(parts) <= PARTS + 2
    assert drift(like, now).columns.tolist() == FIELDS
    assert by_column(drift(like, now)).loc['whole', 'why'].endswith('100 % outside the range of the reference')


def test_strangers_names_are_only_text():
    bad = '<img src=x onerror=alert(1)>'
    found = drift(pd.DataFrame({bad: ['a', 'b'] * 200}), pd.DataFrame({bad: [bad, '$\\frac{'] * 200}))
    assert found.loc[0, 'column'] == bad and found.loc[0, 'status'] == 'drift'


def test_real_drift_in_hotel_bookings(data_dir):
    df = pd.read_csv(next((data_dir / 'hotel_bookings_h1').glob('*.csv')), skipinitialspace=True)
    year = next(c for c in df.columns if c.lower() in ('arrivaldateyear', 'arrival_date_year'))
    found = by_column(drift(df[df[year] == df[year].min()], df[df[year] == df[year].max()]))
    assert len(found) == df.shape[1] and found.loc[year, 'status'] == 'drift' and 'no drift' in set(found['status'])
