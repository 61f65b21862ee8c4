"""The data stage: treatments, leakage suspects, schema and evidence, on hard and on real data."""
import json
import numpy as np
import pandas as pd
import pytest
import tomlkit
from bs4 import BeautifulSoup
from sklearn.ensemble import HistGradientBoostingClassifier
from mlcycle.core import Blocked, DataError, Project, Treatment
from mlcycle.data import DataReport, check_schema, drop_line, prepare_data
from mlcycle.features import build_pipeline, fit_pipeline
from mlcycle.leakage import leakage_suspects
from mlcycle.split import SplitAdvice
from mlcycle.tables import Snapshot
from mlcycle.treatments import accept_line

HTML, FORMULA = '<img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0"


def make(folder, df, *, problem=None, **data) -> Project:
    path = df if isinstance(df, str) else 'rows.csv'
    if not isinstance(df, str): df.to_csv(folder/'rows.csv', index=False)
    settings = {'project': {'name': 'case'}, 'problem': {'task': 'binary', 'target': 'y', **(problem or {})},
                'data': {'sources': [{'path': path}], **data}}
    (folder/'mlcycle.toml').write_text(tomlkit.dumps(settings))
    return Project(folder, actor='Ada')


def rows(n=400, seed=0, **more) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({'a': rng.normal(size=n).round(6), 'b': rng.choice(['x', 'y', 'z'], n), **more,
                         'y': rng.integers(0, 2, n)})


def status(report: DataReport) -> dict:
    return {(r.action, r.column, r.value): r.status for r in report.treatments.itertuples()}


# --- treatments --------------------------------------------------------------------------------------------------------------------

def test_safe_ones_are_applied_others_wait_for_a_person(tmp_path):
    df = rows()
    df['country'] = np.where(np.arange(400) % 40 == 0, 'NA', np.where(np.arange(400) % 2, 'DE', 'FR'))
    df['job'] = np.where(np.arange(400) % 10 == 0, ' NULL ', np.where(np.arange(400) % 3, ' cook', 'nurse '))
    df['alley'] = np.where(np.arange(400) % 5 == 0, 'None', 'gravel')
    df['fixed'], df['copy'] = 1, df.a
    df.loc[3, 'a'] = 1e6; df.loc[3, 'copy'] = 1e6
    df['y'] = df.y.astype(object); df.loc[5, 'y'] = None
    df = pd.concat([df, df.iloc[[0, 0]]])
    found = status(prepare_data(make(tmp_path, df)))
    assert found == {('drop_missing_target', '', None): 'applied', ('drop_duplicates', '', None): 'proposed',
                     ('missing_token', 'country', 'NA'): 'proposed',
                     ('missing_token', 'job', 'NULL'): 'applied',
                     ('missing_token', 'alley', 'None'): 'proposed', ('strip', 'job', None): 'applied',
                     ('drop_column', 'fixed', None): 'applied', ('drop_column', 'copy', None): 'applied',
                     ('clip', 'a', None): 'proposed'} | \
                    ({('clip', 'copy', None): 'proposed'} if ('clip', 'copy', None) in found else {})
    here = Project(tmp_path)
    assert len(here.tables.read('data')) == 401

def test_accepting_refusing_and_none(tmp_path):
    df = rows()
    df['job'] = np.where(np.arange(400) % 10 == 0, ' NULL', ' cook')
    df['alley'] = np.where(np.arange(400) % 5 == 0, 'None', 'gravel')
    df['n'] = np.where(np.arange(400) % 9 == 0, '?', '7.5')
    df.loc[0, 'n'] = '1'
    df = pd.concat([df, df.iloc[[1]]])
    report = prepare_data(make(tmp_path, df,
                               accept=[{'action': 'missing_token', 'column': 'alley', 'value': 'None'},
                                       {'action': 'drop_duplicates'},
                                       {'action': 'clip', 'column': 'a', 'low': -1.0, 'high': 1.0}],
                               refuse=[{'action': 'strip', 'column': 'job'}]))
    found = status(report)
    for accepted in (('missing_token', 'alley', 'None'), ('drop_duplicates', '', None), ('clip', 'a', None)):
        assert found[accepted] == 'applied'
    assert found[('strip', 'job', None)] == 'refused'
    plan = {c.name: c for c in report.plan.columns}
    assert (plan['a'].low, plan['a'].high) == (-1.0, 1.0)
    assert not plan['job'].strip
    assert plan['alley'].missing_tokens == ['None']
    assert plan['n'].missing_tokens == ['?']
    assert report.rows == 400
    report = prepare_data(make(tmp_path, df, auto='none'))
    assert set(status(report).values()) == {'applied', 'proposed'}
    assert status(report)[('missing_token', 'n', '?')] == 'applied'
    assert status(report)[('missing_token', 'job', 'NULL')] == 'proposed'
    assert not {c.name: c for c in report.plan.columns}['job'].strip

def test_a_refused_token_stays_what_it_is(tmp_path):
    df = rows(); df['n'] = np.where(np.arange(400) % 9 == 0, '?', '7.5'); df.loc[1, 'n'] = '2'
    report = prepare_data(make(tmp_path, df, refuse=[{'action': 'missing_token', 'column': 'n'}]))
    assert status(report) == {('missing_token', 'n', '?'): 'refused'}
    assert (Project(tmp_path).tables.read('data').n == '?').sum() == 45
    assert {c.name: c for c in report.plan.columns}['n'].missing_tokens == []

def test_a_line_of_toml_survives_any_name():
    for name in ('a "b"', 'a\nb', HTML, FORMULA, "it's", '\\', 'ü'):
        line = accept_line(Treatment(action='drop_column', column=name))
        back = tomlkit.parse(f'accept = [{line}]').unwrap()
        assert back == {'accept': [{'action': 'drop_column', 'column': name}]}
        assert tomlkit.parse(drop_line([name, 'b'])).unwrap() == {'drop': [name, 'b']}

def test_the_plan_is_learnt_from_training_rows_alone(tmp_path):
    df = rows(1000); df['t'] = pd.date_range('2024-01-01', periods=1000).strftime('%Y-%m-%d')
    df['late'] = np.where(np.arange(1000) < 800, 'same', 'other')
    df.loc[999, 'a'] = 1e9
    report = prepare_data(make(tmp_path, df, time='t'))
    assert status(report) == {('drop_column', 'late', None): 'applied'}

def test_declared_text_keeps_its_tokens(tmp_path):
    df = rows(); df['country'] = np.where(np.arange(400) % 4 == 0, 'NULL', 'Germany')
    project = make(tmp_path, df, sources=[{'path': 'rows.csv', 'text': ['country']}])
    assert status(prepare_data(project)) == {} and (project.tables.read('train').country == 'NULL').any()


# --- leakage -----------------------------------------------------------------------------------------------------------------------

def test_a_deliberate_leak_is_named_before_training(tmp_path):
    df = rows()
    df['answer'] = np.where(df.y == 1, 'yes', 'no')
    df['shade'] = df.y*10+np.random.default_rng(1).normal(size=400)
    report = prepare_data(make(tmp_path, df))
    assert report.suspects.set_index('column').strength.to_dict() == {'answer': 'certain', 'shade': 'strong'}
    assert 'drop = ["answer", "shade"]' in ' '.join(report.findings.text)
    roles = {c.name: c.role for c in report.plan.columns}
    assert roles['answer'] == 'feature' and status(report)[('drop_column', 'answer', None)] == 'proposed'
    report = prepare_data(make(tmp_path, df, drop=['answer', 'shade']))
    assert not len(report.suspects)

def test_quantities_bands_scales_and_honest_columns():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'size': rng.gamma(3, 30, 1500), 'rooms': rng.integers(1, 7, 1500),
                       'noise': rng.normal(size=1500)})
    df['price'] = 2000*df['size']+5000*df.rooms+rng.normal(0, 60_000, 1500)
    assert not len(leakage_suspects(df, 'price'))
    df['price_usd'], df['band'] = df.price*1.1+3, pd.qcut(df.price, 5, labels=list('abcde')).astype(str)
    found = leakage_suspects(df, 'price').set_index('column')
    assert found.evidence.to_dict() == {'price_usd': 'copy', 'band': 'band'}
    assert set(found.strength) == {'certain'}

def test_leakage_ignores_what_cannot_be_told():
    df = rows(50); df['y'] = 1
    assert not len(leakage_suspects(df, 'y'))
    df = rows(60); df['id'] = [f'k{i}' for i in range(60)]
    assert 'id' not in set(leakage_suspects(df, 'y').column)

def test_dates_after_the_event(tmp_path):
    df = rows()
    df['booked'] = pd.date_range('2024-01-01', periods=400).strftime('%Y-%m-%d')
    df['left'] = pd.date_range('2024-02-01', periods=400).strftime('%Y-%m-%d')
    report = prepare_data(make(tmp_path, df, time='booked'))
    assert report.suspects.set_index('column').evidence.to_dict() == {'left': 'later'}


# --- names, schema, evidence -------------------------------------------------------------------------------------------------------

def test_odd_names_and_cells_are_shown_as_text_and_lost_nowhere(tmp_path):
    names = [HTML, FORMULA, '"; drop table runs; --', 'a\nb', ' ', '0', 'index', '__class__', 'x'*500]
    df = rows(); rng = np.random.default_rng(1)
    for i, n in enumerate(names):
        df[n] = np.where(rng.random(400) < 0.5, HTML,
                         'javascript:alert(1)') if i % 2 == 0 else rng.normal(size=400)
    report = prepare_data(make(tmp_path, df, protected=[HTML]))
    assert report.columns == list(df.columns) and Project(tmp_path).tables.read('data').shape == df.shape
    page = BeautifulSoup(report._repr_html_(), 'html.parser')
    assert not page.find_all(['img', 'script', 'a']) and HTML in page.get_text()
    check_schema(Project(tmp_path).tables.read('test'), report)
    assert {'name'} <= set(report.findings.kind)

def test_the_report_shows_the_missing_share_of_every_feature(tmp_path):
    df = rows()
    df[HTML] = np.where(np.arange(400)%4 == 0, None, 'there')
    df['token'] = np.where(np.arange(400)%2 == 0, '?', 'there')
    df.loc[::10, 'a'] = np.nan
    report = prepare_data(make(tmp_path, df))
    train = Project(tmp_path).tables.read('train')
    wanted = {HTML: train[HTML].isna().sum(), 'token': (train.token == '?').sum(), 'a': train.a.isna().sum()}
    assert dict(zip(report.missing.column, report.missing.missing)) == wanted and report.missing.share.is_monotonic_decreasing
    page = BeautifulSoup(report._repr_html_(), 'html.parser')
    table = next(t for t in page.find_all('table') if 'Missing values: 3 columns' in t.get_text())
    assert [r.td.get_text() for r in table.tbody.find_all('tr')] == list(report.missing.column) and not page.find_all('img')
    assert f'{wanted[HTML]/len(train):.1%}' in table.get_text()
    before = DataReport.from_body({k: v for k, v in report.body().items() if k != 'missing'})   # an entry of an earlier version
    assert len(before.missing) == 0

def test_the_schema_says_everything_at_once_and_no_row(tmp_path):
    df = rows()
    df['id'] = [f'P{i:04d}' for i in range(400)]
    df['t'] = pd.date_range('2024-01-01', periods=400).strftime('%Y-%m-%d')
    df['n'] = np.abs(df.a)
    report = prepare_data(make(tmp_path, df, id='id', time='t'))
    good = Project(tmp_path).tables.read('test')
    check_schema(good, report)
    check_schema(good.drop(columns='y'), report)
    check_schema(good.assign(extra=1), report)
    bad = good.drop(columns='a').assign(n=-1.0, b=7, id=None, t='soon', y=3)
    with pytest.raises(DataError) as error: check_schema(bad, report)
    text = str(error.value)
    for word in ("'a': the column is missing", "'n': not greater_than_or_equal_to(0), 80 values",
                 "'b': wrong type", "'id': missing, but never was", "'t': is a date", "'y': not isin"):
        assert word in text, text
    assert 'P00' not in text

def test_a_later_run_says_what_changed(tmp_path):
    prepare_data(make(tmp_path, rows()))
    report = prepare_data(make(tmp_path, rows().assign(b=1.5).rename(columns={'a': 'c'})))
    changed = report.findings[report.findings.kind == 'schema changed'].text.tolist()
    assert any("'a': the column is missing" in t for t in changed)
    assert any("'b': wrong type" in t for t in changed)

def test_evidence_is_written_last_and_repeats_itself(tmp_path):
    project = make(tmp_path, rows(), split={'live': 0.1})
    first, second = prepare_data(project), prepare_data(project)
    kinds = [(e.kind, e.subject) for e in project.ledger.entries()]
    assert kinds == 2*[('snapshot', 'data'), ('snapshot', 'train'), ('snapshot', 'test'),
                       ('snapshot', 'live'), ('split', ''), ('schema', '')]
    assert first.snapshots == second.snapshots and project.require(SplitAdvice).snapshots == first.snapshots
    for name in ('data', 'train', 'test', 'live'):
        snapshot = project.require(Snapshot, subject=name)
        assert len(project.tables.read(snapshot)) == snapshot.rows
    body = json.dumps(project.ledger.last('schema').body)
    assert str(tmp_path) not in body and project.latest(DataReport) == second
    with pytest.raises(Blocked): prepare_data(Project(tmp_path, read_only=True))

@pytest.mark.parametrize('df, problem, words', [
    (rows().assign(y=1), {}, ['one value', "'y'"]), (rows().assign(y=None), {},
                                                     ["'y'", 'no value in any row']),
                                                (rows(), {'target': 'inccome'},
                                                 ['inccome', 'Columns: a, b, y']),
    (rows().assign(y=lambda d: np.where(d.y == 1, 'bad', 'worse')), {}, ['problem.positive']),
                                                (rows(3).assign(y=[0, 1, None]), {}, [])])
def test_hard_targets(tmp_path, df, problem, words):
    try: prepare_data(make(tmp_path, df, problem=problem))
    except DataError as error:
        for word in words: assert word in str(error), str(error)
        assert Project(tmp_path).ledger.entries() == []
    else: assert not words

def test_degenerate_tables_are_survived(tmp_path):
    df = rows(60); df['gone'], df['same'] = None, 5
    report = prepare_data(make(tmp_path, df))
    assert {('drop_column', 'gone', None): 'applied', ('drop_column', 'same',
                                                       None): 'applied'}.items() <= status(report).items()
    df = pd.DataFrame({'a': 1, 'y': [0, 1]*30})
    assert prepare_data(make(tmp_path, df)).rows == 60
    assert prepare_data(make(tmp_path, pd.DataFrame({'a': range(20), 'y': [0, 1]*10}))).rows == 20

def test_few_rows_and_what_lies_beyond_single_floats_and_nanoseconds(tmp_path):
    "Fewer rows than count as seen, numbers that a tree cannot hold, and the dates that stand for 'never'."
    assert prepare_data(make(tmp_path, pd.DataFrame({'a': [1, 2, 3], 'y': [0, 1, 1]}))).rows == 3
    assert leakage_suspects(pd.DataFrame({'a': [1.0, 2.0], 'y': [0, 1]}), 'y').columns.tolist()
    df = rows(60)
    df['huge'], df['until'] = np.linspace(-1e300, 1e300, 60), ['9999-12-31', '1600-01-01', '2024-05-31']*20
    project = make(tmp_path, df)
    report = prepare_data(project)
    X = project.tables.read('train')
    scores = fit_pipeline(build_pipeline(report.plan, HistGradientBoostingClassifier(max_iter=2)), X.drop(columns='y'), X.y.to_numpy()).predict_proba(X)
    assert np.isfinite(scores).all() and {'huge', 'until'} <= {c.name for c in report.plan.columns if c.role == 'feature'}


# --- real data ---------------------------------------------------------------------------------------------------------------------

REAL = {'adult': ('adult/adult.csv', {'target': 'income-per-year', 'positive': '>50K'},
                  {'protected': ['sex', 'race']}),
        'hotel': ('hotel_bookings_h1/H1.csv', {'target': 'IsCanceled'}, {'protected': ['Country']}),
        'titanic': ('titanic/titanic.csv', {'target': 'survived'}, {}),
        'penguins': ('penguins/penguins.csv', {'target': 'species', 'task': 'multiclass'}, {}),
        'taxis': ('nyc_taxis/taxis.csv', {'target': 'fare', 'task': 'regression'}, {'time': 'pickup'}),
        'elec2': ('elec2/electricity.csv', {'target': 'class', 'positive': 'UP'}, {}),
        'bike': ('bike_sharing_hourly/hour.csv', {'target': 'cnt', 'task': 'regression'}, {'time': 'dteday'})}

@pytest.fixture(scope='module')
def prepared(data_dir, tmp_path_factory):
    out = {}
    for name, (file, problem, data) in REAL.items():
        folder = tmp_path_factory.mktemp(name)
        project = make(folder, str(data_dir/file), problem=problem, **data)
        out[name] = prepare_data(project), project.require(SplitAdvice), project
    return out

def test_real_sets_are_split_honestly(prepared):
    ways = {name: (advice.strategy, advice.column) for name, (_, advice, _) in prepared.items()}
    assert ways == {'adult': ('group', ''), 'hotel': ('group', ''), 'titanic': ('random', ''),
                    'penguins': ('random', ''), 'taxis': ('time', 'pickup'),
                    'elec2': ('time', ''), 'bike': ('time', 'dteday')}
    for name, (report, advice, project) in prepared.items():
        assert sum(advice.rows.values()) == report.rows
        assert advice.rows['test'] == pytest.approx(0.2*report.rows, rel=0.02)
        check_schema(project.tables.read('test'), report)
    for name in ('adult', 'hotel', 'titanic', 'penguins'): assert prepared[name][1].shared == 0

def test_known_quirks_are_found(prepared):
    adult, hotel, titanic, bike = (prepared[n][0] for n in ('adult', 'hotel', 'titanic', 'bike'))
    tokens = {k: v for k, v in status(adult).items() if k[0] == 'missing_token'}
    assert tokens == {('missing_token', c, '?'): 'applied'
                      for c in ('workclass', 'occupation', 'native-country')}
    assert ('same information', 'education-num') in set(zip(adult.findings.kind, adult.findings.column))
    assert not len(adult.suspects)
    assert adult.treatments.set_index('action').rows['drop_duplicates'] == 24
    assert status(adult)[('drop_duplicates', '', None)] == 'proposed'
    found = status(hotel)
    for safe in (('missing_token', 'Agent', 'NULL'), ('missing_token', 'Company', 'NULL'), ('strip', 'Meal', None)):
        assert found[safe] == 'applied'
    assert hotel.treatments.set_index('action').rows['drop_duplicates'] == 6092
    assert ('negative', 'ADR') in set(zip(hotel.findings.kind, hotel.findings.column))
    strengths = hotel.suspects.set_index('column').strength.to_dict()
    assert strengths['ReservationStatus'] == 'certain' and strengths['ReservationStatusDate'] == 'strong'
    assert {'AssignedRoomType', 'BookingChanges', 'RequiredCarParkingSpaces'} <= set(strengths)
    suspects = [(s.column, s.evidence, s.strength) for s in bike.suspects.itertuples()]
    assert suspects == [('casual', 'sum', 'certain'), ('registered', 'sum', 'certain')]
    assert any('"casual"' in t and '"registered"' in t for t in bike.findings.text)
    roles = {c.name: c.role for c in titanic.plan.columns}
    assert roles['name'] == 'dropped' and roles['age'] == roles['sex'] == 'feature'
    assert 'total' in set(prepared['taxis'][0].suspects.column)
    assert 'dropoff' in set(prepared['taxis'][0].suspects.column)
    assert not len(prepared['penguins'][0].suspects)
    assert not len(prepared['elec2'][0].suspects)
    assert not len(titanic.suspects)
