"The sample data: seeded, synthetic where it says so, learnable but not perfectly, drifting as asked."
import subprocess
import sys

import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlcycle.core import DataError, SettingsError
from mlcycle.samples import SAMPLES, loans, sample

NUMBERS = ['age', 'income', 'employment_years', 'loan_amount', 'term_months', 'existing_debt']
CATEGORIES = ['sex', 'region', 'purpose', 'credit_history', 'channel']


def learned(df, train, test):
    y = (df['defaulted'] == 'yes').to_numpy().astype(int)
    columns = make_column_transformer((StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown='ignore'), CATEGORIES))
    model = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(df[train], y[train])
    return roc_auc_score(y[test], model.predict_proba(df[test])[:, 1])


def test_same_seed_same_rows():
    assert loans(500, seed=3).equals(loans(500, seed=3)) and not loans(500, seed=3).equals(loans(500, seed=4))


def test_learnable_to_about_point_eight_and_weaker_after_the_relation_changes():
    early, late = slice(0, 6000), slice(6700, 10_000)
    assert .77 < learned(loans(10_000), early, late) < .83
    assert learned(loans(10_000, drift='concept'), early, late) < learned(loans(10_000), early, late) - .03


@pytest.mark.parametrize('seed', range(3))
def test_rates_dates_and_correlations_are_plausible(seed):
    df = loans(8000, seed=seed)
    assert .16 < (df['defaulted'] == 'yes').mean() < .20
    assert df['application_id'].is_unique and df['applied_at'].is_monotonic_increasing
    wait = (df['outcome_at'] - df['applied_at']).dt.days
    assert wait.min() >= 14 and 35 < wait.median() < 60
    assert df['age'].between(18, 79).all() and (df['employment_years'] <= df['age'] - 16).all()
    assert df['income'].corr(df['employment_years']) > .2 and df['loan_amount'].corr(df['income']) > .3
    assert .05 < df['credit_history'].isna().mean() < .12
    assert df.drop(columns='credit_history').notna().all().all()


def test_sizes_and_mistakes():
    assert len(loans(0)) == 0 and len(loans(1)) == 1
    assert loans(100, days=30, start='2023-05-01')['applied_at'].max() < pd.Timestamp('2023-05-31')
    with pytest.raises(SettingsError, match='Allowed'): loans(10, drift='sudden')
    with pytest.raises(SettingsError, match='Allowed: loans'): sample('titanic')
    with pytest.raises(DataError, match='not bundled'): sample('adult', 'nowhere.csv')


def test_every_sample_knows_its_own_columns(data_dir):
    for name in SAMPLES:
        s = sample(name, data_dir/'adult'/'adult.csv')
        named = {s.target, s.time, s.id, s.label_time, *s.protected} - {''}
        assert named <= set(s.frame.columns) and s.source and s.synthetic == (name == 'loans')
        assert s.positive is None or (s.frame[s.target] == s.positive).any()


def test_importing_is_light():
    code = "import sys, mlcycle.samples; print(sorted({'pandas', 'numpy', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
