"Profiles: what is counted, that merging is addition, and the hard columns."
import datetime
import functools
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlcycle.core import DataError, IntegrityError, canonical_json
from mlcycle.profile import LEVELS, LONGEST, Profile, load_profile, merge, profile, quantile, save_profile, summary


def awkward(rows=1200, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'number': rng.normal(1e9, 1, rows), 'whole': rng.integers(0, 7, rows), 'zeros': rng.poisson(.3, rows).astype(float),
                       'group': rng.choice(list('abcde'), rows), 'flag': rng.random(rows) < .3,
                       'day': pd.Timestamp('2024-01-01') + pd.to_timedelta(rng.integers(0, 400, rows), unit='D'),
                       'text': [f'note {i} {"x" * (i % 17)}' for i in range(rows)], 'empty': [None] * rows,
                       'constant': 3, 'infinite': np.inf})
    df.loc[rng.random(rows) < .1, 'number'] = np.nan
    df.loc[rng.random(rows) < .05, 'zeros'] = -np.inf
    df.loc[rng.random(rows) < .1, 'group'] = None
    df.loc[rng.random(rows) < .1, 'day'] = pd.NaT
    return df


@pytest.mark.parametrize('pieces', [1, 2, 7, 60])
def test_a_month_is_the_sum_of_its_days_in_any_order(pieces):
    df = awkward()
    whole, rng = profile(df), np.random.default_rng(pieces)
    parts = [profile(df.iloc[i], like=whole) for i in np.array_split(rng.permutation(len(df)), pieces)]
    together = functools.reduce(merge, parts)
    grouped = merge(functools.reduce(merge, parts[:pieces // 2], profile(df[:0], like=whole)), functools.reduce(merge, parts[pieces // 2:]))
    for other in (together, grouped):
        for name, one in whole.columns.items():
            two = other.columns[name]
            for field in ('kind', 'rows', 'nulls', 'infinities', 'unread', 'minimum', 'maximum', 'edges', 'counts', 'levels', 'other'):
                assert getattr(one, field) == getattr(two, field), (name, field)
            for field in ('mean', 'variance'):
                if getattr(one, field) is not None: assert getattr(two, field) == pytest.approx(getattr(one, field), rel=1e-7, abs=1e-9)


def test_every_kind_is_recognised_and_every_missing_value_counted():
    df = awkward()
    p = profile(df)
    assert {n: c.kind for n, c in p.columns.items()} == dict(
        number='number', whole='number', zeros='number', group='category', flag='boolean', day='date', text='text',
        empty='category', constant='number', infinite='number')
    for name, c in p.columns.items():
        assert c.rows == len(df) and c.missing == df[name].isna().sum(), name
        assert c.valid + c.missing + c.infinities + c.unread == c.rows
        assert sum(c.counts) + sum(c.levels.values()) + c.other == c.valid, name
    assert p.columns['zeros'].infinities == np.isinf(df['zeros']).sum()
    assert p.columns['infinite'].valid == 0 and p.columns['infinite'].minimum is None
    assert 'note' not in canonical_json(p.body())


@pytest.mark.parametrize('rows', [0, 1, 3])
def test_hardly_any_rows(rows):
    whole = profile(awkward())
    p = profile(awkward()[:rows], like=whole)
    assert p.rows == rows and {n: c.kind for n, c in p.columns.items()} == {n: c.kind for n, c in whole.columns.items()}
    assert Profile.from_body(p.body()) == p == Profile.from_body(profile(awkward()[:rows], like=p).body())
    assert profile(pd.DataFrame()).rows == 0 and summary(profile(pd.DataFrame())).empty


def test_reference_kinds_win_only_where_the_values_allow_it():
    reference = profile(pd.DataFrame({'n': [1., 2, 3], 'd': pd.to_datetime(['2024-01-01'] * 3), 'b': [True, False, True], 'c': list('xyx')}))
    text = pd.DataFrame({'n': ['1', ' 2.5 ', '9'], 'd': ['2024-01-01', '2024-05-01T10:00:00+02:00', None], 'b': ['True', 'false', 'TRUE'], 'c': list('xyz')})
    read = profile(text, like=reference).columns
    assert [c.kind for c in read.values()] == ['number', 'date', 'boolean', 'category']
    assert [c.stored for c in read.values()] == ['text', 'text', 'text', ''] and not any(c.unread for c in read.values())
    assert read['n'].maximum == 9 and read['b'].levels == {'True': 2, 'False': 1}
    changed = profile(pd.DataFrame({'n': list('abc'), 'd': ['soon'] * 3, 'b': [1, 0, 1], 'c': [1, 2, 3]}), like=reference).columns
    assert [c.kind for c in changed.values()] == ['category', 'category', 'number', 'number']


def test_a_changed_type_does_not_stop_a_merge():
    reference = profile(pd.DataFrame({'n': np.arange(100.)}))
    good, bad = profile(pd.DataFrame({'n': [1., 2]}), like=reference), profile(pd.DataFrame({'n': list('abc')}), like=reference)
    for both in (merge(good, bad), merge(bad, good)): assert both.columns['n'].rows == 5 and both.columns['n'].unread in (2, 3)
    extra = merge(good, profile(pd.DataFrame({'n': [3.], 'new': ['z']}), like=reference))
    assert extra.rows == 3 and extra.columns['new'].rows == 1 and extra.columns['n'].rows == 3


def test_hundred_thousand_levels_stay_bounded():
    reference = profile(pd.DataFrame({'c': ['known', 'rare'] * 200}))
    df = pd.DataFrame({'c': [f'v{i}' for i in range(100_000)] + ['known'] * 10 + ['rare']})
    began = time.perf_counter()
    c = profile(df, like=reference).columns['c']
    assert time.perf_counter() - began < 3
    assert len(c.levels) == LEVELS and c.levels['known'] == 10 and c.levels['rare'] == 1 and c.distinct == 100_002
    assert c.other + sum(c.levels.values()) == len(df)


def test_names_and_levels_of_strangers():
    bad = ['<img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", 'a"\n\'b', 'é' * 500, '']
    p = profile(pd.DataFrame({name: ['<script>1</script>', 'x' * 10_000, 'x' * 10_001] for name in bad}))
    assert list(p.columns) == bad and '<script' not in p._repr_html_() and '<img' not in p._repr_html_()
    assert max(map(len, p.columns[''].levels)) == LONGEST + 1
    with pytest.raises(DataError, match='twice'): profile(pd.DataFrame([[1, 2]], columns=['a', 'a']))


def test_storages_of_one_column_agree():
    values = [1.5, None, 3.0, 4.0]
    plain = profile(pd.DataFrame({'x': values}))
    for other in (pd.array(values, dtype='Float64'), pd.array(values, dtype=pd.ArrowDtype(pa.float64())), pd.Series(values, dtype=object)):
        assert profile(pd.DataFrame({'x': other})) == plain
    arrow = pd.arrays.ArrowExtensionArray(pa.array([1.0, None, float('nan'), float('inf')]))
    c = profile(pd.DataFrame({'x': arrow})).columns['x']
    assert (c.nulls, c.nans, c.infinities, c.valid) == (1, 1, 1, 1)
    days = [datetime.date(2024, 1, 1), None]
    for other in (pd.Series(days, dtype=object), pd.Series(pd.to_datetime(days)), pd.Series(pd.to_datetime(days, utc=True)), pd.array(days, dtype=pd.ArrowDtype(pa.date32()))):
        assert profile(pd.DataFrame({'d': other})).columns['d'].minimum == pd.Timestamp('2024-01-01').timestamp()


@pytest.mark.parametrize('make', [lambda g: g.normal(size=5000), lambda g: g.lognormal(0, 2, 5000), lambda g: g.poisson(2, 5000).astype(float)])
def test_quantiles_are_within_one_bin(make):
    x = make(np.random.default_rng(1))
    c = profile(pd.DataFrame({'x': x})).columns['x']
    for q in (0, .01, .25, .5, .77, .99, 1):
        share_below, share_upto = (x < quantile(c, q)).mean(), (x <= quantile(c, q)).mean()
        assert share_below - .021 <= q <= share_upto + .021, q


def test_a_profile_on_disk_is_checked(tmp_path):
    p = profile(awkward())
    name = save_profile(tmp_path, p)
    assert save_profile(tmp_path, p) == name and load_profile(tmp_path, name) == p
    (tmp_path / f'{name}.json').write_text('{"rows":1,"columns":{}}')
    with pytest.raises(IntegrityError): load_profile(tmp_path, name)


def test_fast_enough_to_be_forgotten():
    rng, n = np.random.default_rng(0), 200_000
    df = pd.DataFrame({f'n{i}': rng.normal(size=n) for i in range(20)} |
                      {f'c{i}': np.array([f'level {j}' for j in range(50)])[rng.integers(0, 50, n)] for i in range(10)})
    began = time.perf_counter()
    profile(df)
    assert time.perf_counter() - began < 3   # a fifth of the rows in the time allowed for all: the machine is shared


def test_real_tables(data_dir):
    df = pd.read_csv(next((data_dir / 'adult').glob('*.csv')), skipinitialspace=True)
    p = profile(df)
    assert p.rows == len(df) and p.columns['age'].kind == 'number' and 'Husband' in ' '.join(p.columns['relationship'].levels)
    half = merge(profile(df[::2], like=p), profile(df[1::2], like=p))
    assert half.columns['age'].counts == p.columns['age'].counts
