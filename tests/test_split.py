"""Splits and folds: nothing from the future, no group on both sides, the same seed the same rows."""
import numpy as np
import pandas as pd
import pytest
from mlcycle.core import DataError, check_settings
from mlcycle.folds import choose_strategy, cut_at, make_folds, near_duplicates, row_groups
from mlcycle.split import advise_split


def settings(task='binary', seed=0, split=None, **data):
    return check_settings({'project': {'name': 'case', 'seed': seed},
                           'problem': {'task': task, 'target': 'y',
                                       **({'positive': 1} if task == 'binary' else {})},
                           'data': {'sources': [{'path': 'a.csv'}], 'split': split or {}, **data}})

def rows(n=600, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({'a': rng.normal(size=n), 'b': rng.normal(size=n),
                         'g': rng.integers(0, 60, n).astype(str),
                         't': pd.Timestamp('2024-01-01')+pd.to_timedelta(rng.integers(0, 90, n), 'D'),
                         'y': rng.integers(0, 2, n)})


def test_time_order_lets_nothing_through():
    df = rows()
    advice, parts = advise_split(df, settings(time='t', split={'live': 0.1}))
    assert advice.strategy == 'time'
    assert parts['train'].t.max() < parts['test'].t.min()
    assert parts['test'].t.max() < parts['live'].t.min()
    assert sum(map(len, parts.values())) == len(df) and set(advice.cut) == {'train', 'test', 'live'}
    for train, test in make_folds(parts['train'], settings(time='t'), 4):
        assert parts['train'].t.iloc[train].max() < parts['train'].t.iloc[test].min()

def test_a_time_that_cannot_order_is_refused():
    df = rows()
    df.loc[3, 't'] = pd.NaT
    with pytest.raises(DataError, match="1 of 600 rows have no 't'"): advise_split(df, settings(time='t'))
    with pytest.raises(DataError, match='is text'): advise_split(rows().assign(t='soon'), settings(time='t'))
    with pytest.raises(DataError, match='moments'):
        advise_split(rows().assign(t=pd.Timestamp('2024-01-01')).iloc[:0], settings(time='t'))

def test_groups_stay_on_one_side():
    df = rows()
    for s in (settings(group='g', split={'live': 0.1}), settings(id='g', split={'live': 0.1})):
        advice, parts = advise_split(df, s)
        sets = [set(p.g) for p in parts.values()]
        assert advice.strategy == 'group'
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
        assert 80 <= len(parts['test']) <= 130
        for train, test in make_folds(df, s, 5): assert not set(df.g.iloc[train]) & set(df.g.iloc[test])
    timed = df.assign(g=(df.t.dt.dayofyear//3).astype(str))
    advice, parts = advise_split(timed, settings(time='t', group='g'))
    assert not set(parts['train'].g) & set(parts['test'].g)
    with pytest.raises(DataError, match='comes again'): advise_split(df, settings(time='t', group='g'))

def test_near_copies_stay_on_one_side():
    df = rows(300).drop(columns=['t', 'g'])
    copies = df.head(40).assign(a=lambda d: d.a*(1+1e-7), y=lambda d: 1-d.y)
    both = pd.concat([df, copies], ignore_index=True).sample(frac=1, random_state=0, ignore_index=True)
    advice, parts = advise_split(both, settings())
    assert (advice.strategy, advice.shared) == ('group', 0) and '40 rows' in advice.reason
    advice, _ = advise_split(both, settings(split={'strategy': 'random'}))
    assert advice.shared > 0 and any('all but equal to a training row' in r for r in advice.reasons)

def test_coarse_columns_are_no_copies():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'a': rng.integers(0, 3, 500), 'b': rng.choice(list('xy'), 500),
                       'y': rng.integers(0, 2, 500)})
    choice = choose_strategy(df, settings())
    assert choice.strategy == 'random' and 'coarse' in choice.reasons[0]

def test_random_keeps_the_shares_of_classes():
    df = rows().drop(columns=['t']).assign(y=lambda d: (np.arange(600) % 20 == 0).astype(int))
    advice, parts = advise_split(df, settings(split={'live': 0.1}))
    assert advice.strategy == 'random'
    assert {n: int(p.y.sum()) for n, p in parts.items()} == {'train': 21, 'test': 6, 'live': 3}
    again, other = (advise_split(df, settings(seed=seed, split={'live': 0.1}))[1] for seed in (0, 1))
    assert parts['test'].equals(again['test']) and not parts['test'].equals(other['test'])
    for train, test in make_folds(df, settings(), 5): assert df.y.iloc[test].sum() == 6

def test_order_of_rows_counts_when_outcomes_resemble_their_neighbours():
    rng = np.random.default_rng(0)
    y = np.where((np.arange(3000)//7+rng.integers(0, 2, 3000)//2) % 2 == 0, 1, 0)
    df = rows(3000).drop(columns=['t', 'g']).assign(y=y)
    advice, parts = advise_split(df, settings())
    assert advice.strategy == 'time'
    assert advice.column == ''
    assert parts['test'].a.equals(df.a.tail(600).reset_index(drop=True))
    sorted_ = df.sort_values('y', ignore_index=True)
    assert choose_strategy(sorted_, settings()).strategy == 'random'
    blocks = df.assign(y=(np.arange(3000) % 1000 < 300).astype(int))
    assert choose_strategy(blocks, settings()).strategy == 'random'
    assert choose_strategy(df.sample(frac=1, random_state=0), settings()).strategy == 'random'

def test_a_date_that_nobody_declared_is_mentioned():
    choice = choose_strategy(rows(), settings())
    assert choice.strategy == 'random' and any("'t' looks like a time" in r for r in choice.reasons)

def test_late_outcomes_are_counted():
    df = rows(); df['known'] = df.t+pd.Timedelta(days=30)
    advice, _ = advise_split(df, settings(time='t', label_time='known'))
    assert any('became known only after' in r for r in advice.reasons)

def test_regression_and_many_classes():
    df = rows().drop(columns='t')
    advice, parts = advise_split(df.assign(y=df.a*2), settings('regression'))
    assert list(advice.parts.columns) == ['part', 'rows', 'mean'] and len(parts['test']) == 120
    advice, parts = advise_split(df.assign(y=np.random.default_rng(0).choice(['p', 'q', 'r'], 600)),
                                 settings('multiclass'))
    assert set(parts['test'].y) == set('pqr')
    lone = df.assign(y=['only']+['p', 'q']*299+['p'])
    assert 'only' in set(advise_split(lone, settings('multiclass'))[1]['train'].y)

def test_too_little_is_said():
    with pytest.raises(DataError, match='too few'): make_folds(rows(8), settings(), 5)
    with pytest.raises(DataError, match='nothing to train'):
        advise_split(rows(), settings(split={'test': 0.6, 'live': 0.4}))
    with pytest.raises(DataError, match='no groups'):
        advise_split(rows().drop(columns='t'), settings(split={'strategy': 'group'}))
    with pytest.raises(DataError, match='1 group is too few'):
        make_folds(rows().assign(g='one'), settings(group='g'), 5)

def test_cuts_never_divide_a_moment():
    moments = np.sort(np.random.default_rng(0).integers(0, 20, 200))
    for position in range(201):
        cut = cut_at(moments, position)
        assert cut in (0, 200) or moments[cut-1] < moments[cut]

def test_near_duplicates_see_through_rounding_and_case():
    df = pd.DataFrame({'a': [1.0001, 1.0002, 5.0, 0.0, -0.0, np.nan, np.nan],
                       'b': ['Ann ', ' ann', 'Bob', 'c', 'C', None, None], 'y': 0})
    assert near_duplicates(df, settings()).tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert row_groups(df, settings())[0] is not None
