"""The registry: what is stored and loaded, what is refused, who holds which role, and what a crash, a move or another process leaves."""
import io, json, os, pickle, random, shutil, socket, sqlite3, subprocess, sys, threading, warnings, zipfile
from pathlib import Path
import joblib, numpy as np, pandas as pd, pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (ExtraTreesClassifier, GradientBoostingClassifier, GradientBoostingRegressor, HistGradientBoostingClassifier,
                              HistGradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import FunctionTransformer
from mlcycle.core import Blocked, DataError, IntegrityError, Project, SettingsError, check_settings
from mlcycle.features import build_pipeline
from mlcycle.plans import encode_target, infer_plan
from mlcycle.ledger import champion, roles, versions
from mlcycle.modelfiles import TRUSTED_TYPES, dumps, loads
from mlcycle.registry import Model, ModelVersion, promote, rollback
from ports import free_port
from waiting import PATIENCE, until

TOML = '''gates = []
project = {{name = "{name}", author = "Ada"}}
problem = {{task = "{task}", target = "y"}}
data = {{sources = [{{path = "x.csv"}}]}}
{more}
'''
ROWS = pd.DataFrame({'age': [20., 30., 40., 50.]*5, 'visits': [1., 5., 2., 8.]*5})
FITTED = LogisticRegression().fit(ROWS, [0, 0, 1, 1]*5)
FACTS = {'algorithm': 'logistic', 'threshold': 0.5}


def project_in(folder: Path, *, name: str='churn', task: str='binary', more: str='') -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'mlcycle.toml').write_text(TOML.format(name=name, task=task, more=more))
    return Project(folder, actor='Ada')


@pytest.fixture(scope='module')
def three(blank, tmp_path_factory):
    "A project with three versions; whoever changes it works on a copy."
    project = fresh(blank, tmp_path_factory.mktemp('three')/'churn')
    for _ in range(3): project.registry.register(FITTED, example=ROWS, facts=FACTS)
    return project.folder


@pytest.fixture(scope='module')
def blank(tmp_path_factory):
    "An MLflow file with nothing in it, made once."
    project = project_in(tmp_path_factory.mktemp('blank'))
    project.registry.client()
    return project.store/'mlflow.db'


def fresh(blank: Path, folder: Path, **how) -> Project:
    "A project without versions; only making MLflow's file is spared."
    (folder/'store').mkdir(parents=True)
    shutil.copy(blank, folder/'store'/'mlflow.db')
    return project_in(folder, **how)


@pytest.fixture
def project(three, tmp_path):
    shutil.copytree(three, tmp_path/'churn')
    return Project(tmp_path/'churn', actor='Ada')


def aliases(project: Project) -> dict:
    return {k: str(v) for k, v in project.registry.client().get_registered_model(project.registry.name).aliases.items()}


# Files of models

def table(task: str) -> tuple:
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'x': rng.normal(size=120), 'c': rng.choice(list('abc'), 120), 'm': np.where(rng.random(120) < .2, np.nan, rng.normal(size=120))})
    df['y'] = {'binary': (df.x > 0).astype(int), 'multiclass': np.where(df.x < -.5, 'lo', np.where(df.x > .5, 'hi', 'mid')), 'regression': np.exp(df.x)}[task]
    problem = {'task': task, 'target': 'y', 'positive': 1 if task == 'binary' else None}
    settings = check_settings({'project': {'name': 't'}, 'problem': problem, 'data': {'sources': [{'path': 'x'}]}})
    plan = infer_plan(df, settings)
    return plan, df[plan.inputs], encode_target(df['y'], settings)


def boosted():
    try: from lightgbm import LGBMClassifier
    except ImportError: return []
    return [LGBMClassifier(n_estimators=3, verbose=-1)]


CLASSIFIERS = [LogisticRegression(), RandomForestClassifier(3), ExtraTreesClassifier(3), HistGradientBoostingClassifier(max_iter=3), GradientBoostingClassifier(n_estimators=3),
               CalibratedClassifierCV(LogisticRegression(), method='isotonic', cv=2), CalibratedClassifierCV(LogisticRegression(), method='sigmoid', cv=2),
               CalibratedClassifierCV(LogisticRegression(), method='temperature', cv=2), KNeighborsClassifier(), KNeighborsClassifier(algorithm='ball_tree', metric='manhattan'),
               DummyClassifier(), MLPClassifier((3,), max_iter=5), *boosted()]
REGRESSORS = [Ridge(), ElasticNet(), RandomForestRegressor(3), GradientBoostingRegressor(n_estimators=3, loss='huber'), KNeighborsRegressor(), DummyRegressor(),
              *(HistGradientBoostingRegressor(max_iter=3, **how) for how in ({}, {'loss': 'poisson'}, {'loss': 'gamma'}, {'loss': 'absolute_error'}, {'loss': 'quantile', 'quantile': .5}))]


@pytest.mark.parametrize('task', ['binary', 'multiclass', 'regression'])
@pytest.mark.filterwarnings('ignore')
def test_each_estimator_comes_back_the_same(task):
    plan, X, y = table(task)
    for estimator in REGRESSORS if task == 'regression' else CLASSIFIERS[::2 if task == 'multiclass' else 1]:
        made = build_pipeline(plan, estimator, kind='tree' if 'Hist' in type(estimator).__name__ else 'linear').fit(X, y)
        back, ask = loads(dumps(made)), 'predict' if task == 'regression' else 'predict_proba'
        assert np.array_equal(getattr(made, ask)(X), getattr(back, ask)(X)), estimator
    if task != 'regression':
        frozen = CalibratedClassifierCV(FrozenEstimator(build_pipeline(plan, RandomForestClassifier(3)).fit(X, y))).fit(X, y)
        assert np.array_equal(frozen.predict_proba(X), loads(dumps(frozen)).predict_proba(X))


class Touch:
    "Runs when it is unpickled."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))


def zipped(**members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        for name, content in members.items(): z.writestr(name, content)
    return buffer.getvalue()


def test_what_is_no_skops_file_of_ours_is_refused_and_nothing_runs(tmp_path):
    canary = tmp_path/'ran'
    dumped = io.BytesIO()
    joblib.dump(Touch(canary), dumped)
    own_list = zipped(**{'schema.json': json.dumps({'__class__': 'system', '__module__': 'os', '__loader__': 'FunctionNode', 'trusted': ['os.system'], 'protocol': 2,
                                                    '_skops_version': '0.16.0', '__id__': 1, 'content': {'module_path': 'os', 'function': 'system'}})})
    for content in (pickle.dumps(Touch(canary)), dumped.getvalue(), b'', b'PK', b'PK\x03\x04 cut', zipped(**{'a.pkl': pickle.dumps(Touch(canary))}),
                    zipped(**{'schema.json': '{}'}), zipped(**{'schema.json': 'not json'}), own_list, dumps(FITTED)[:-40]):
        with pytest.raises(IntegrityError) as caught: loads(content)
        assert len(str(caught.value)) < 400
    assert not canary.exists()


def test_a_type_outside_the_list_is_named():
    with pytest.raises(IntegrityError, match=r'(posix|os)\.getcwd'): dumps(FunctionTransformer(os.getcwd))
    import skops.io
    with pytest.raises(IntegrityError, match='subprocess.run'): loads(skops.io.dumps(FunctionTransformer(subprocess.run)))
    assert not [t for t in TRUSTED_TYPES if t.split('.')[0] not in ('mlcycle', 'sklearn', 'lightgbm', 'xgboost', 'collections', 'numpy')]


def test_a_file_beyond_the_limit_is_not_read(project, monkeypatch):
    monkeypatch.setattr('mlcycle.modelfiles.LARGEST', 100)
    with pytest.raises(IntegrityError, match='allowed are 100'): project.registry.load('1')


def test_a_flipped_bit_is_found_before_anything_reads_the_file(project, monkeypatch):
    info = project.registry.info('1')
    file, rng = project.store/info.uri, random.Random(0)
    whole = file.read_bytes()
    def forbidden(content): raise AssertionError('the file was read before its hash was checked')
    with monkeypatch.context() as patched:
        patched.setattr('mlcycle.registry.loads', forbidden)
        for _ in range(200):
            content = bytearray(whole)
            content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            file.write_bytes(bytes(content))
            with pytest.raises(IntegrityError, match='is not the one that was recorded'): project.registry.load('1')
        for content in (whole[:-1], whole+b'\0', b'', pickle.dumps(FITTED), (project.store/project.registry.info('2').uri).read_bytes()+b' '):
            file.write_bytes(content)
            with pytest.raises(IntegrityError): project.registry.load('1')
    file.write_bytes(dumps(LogisticRegression().fit(ROWS, [1, 1, 0, 0]*5)))      # another valid model
    with pytest.raises(IntegrityError, match='recorded'): promote(project, '1', because='x')
    file.unlink()
    with pytest.raises(IntegrityError, match='is gone'): project.registry.load('1')
    file.write_bytes(whole)
    assert project.registry.load('1').version == '1'


def test_a_recorded_path_cannot_leave_the_project(project, tmp_path):
    (tmp_path/'evil.skops').write_bytes(dumps(FITTED))
    body = project.ledger.last('model', '1').body
    for uri in ('../../evil.skops', str(tmp_path/'evil.skops'), '../../../../../../etc/passwd'):
        project.ledger.append(stage='development', kind='model', subject='9', body={**body, 'version': '9', 'uri': uri}, actor='Eve')
        with pytest.raises(SettingsError, match='leaves the project folder'): project.registry.load('9')


def test_another_scikit_learn_is_an_error_not_a_warning(project, monkeypatch):
    from importlib.metadata import version
    for there, refused in (('1.8.2', True), ('2.9.0', True), (version('scikit-learn'), False), ('.'.join(version('scikit-learn').split('.')[:2])+'.99', False)):
        monkeypatch.setattr('mlcycle.modelfiles.installed', lambda name: there)
        if not refused: assert project.registry.load('1'); continue
        with pytest.raises(IntegrityError, match=there): project.registry.load('1')


# Registering

def test_what_is_recorded(project):
    info = project.registry.info('3')
    assert (info.version, info.author, info.task, info.columns, info.threshold) == ('3', 'Ada', 'binary', ['age', 'visits'], 0.5)
    assert info.hash and not info.uri.startswith('/') and any(r.startswith('scikit-learn==') for r in info.requirements)
    assert versions(project.ledger) == ['1', '2', '3'] and ModelVersion.from_body(info.body()) == info
    assert loads(project.registry.content('3')).predict(ROWS[:1])[0] == 0


def test_mlflow_shows_it_with_signature_example_and_pins(project):
    client = project.registry.client()
    import mlflow
    version = client.get_model_version('churn', '2')
    folder = project.store/Path(project.registry.info('2').uri).parent
    logged = mlflow.models.get_model_info(version.source)
    assert logged.signature.inputs.input_names() == ['age', 'visits'] and logged.saved_input_example_info
    assert set(project.registry.info('2').requirements) < set((folder/'requirements.txt').read_text().split())
    assert np.array_equal(mlflow.sklearn.load_model('models:/churn/2').predict(ROWS), FITTED.predict(ROWS))
    run = client.get_run(version.run_id)
    assert run.data.tags['mlflow.source.name'] == 'mlcycle'


def test_loading_imports_no_mlflow(project):
    code = ("import sys, pandas as pd; from mlcycle.core import Project; p = Project(sys.argv[1], read_only=True); "
            "print(p.registry.load('1').predict(pd.DataFrame({'age': [20.], 'visits': [1.]})).to_json(), 'mlflow' in sys.modules, 'deltalake' in sys.modules)")
    done = subprocess.run([sys.executable, '-c', code, str(project.folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ['False', 'False']


@pytest.mark.parametrize('fitted_on, facts, error, said', [
    (['n', 'n', 'y', 'y']*5, {}, DataError, 'fitted on 0 and 1, this one on n, y'), ([0, 0, 1, 2]*5, {}, DataError, '0, 1, 2'),
    ([0, 0, 1, 1]*5, {'treshold': 1}, SettingsError, 'treshold')])
def test_what_would_be_read_wrongly_is_not_registered(project, fitted_on, facts, error, said):
    before = len(list((project.store/'artifacts').rglob('*')))
    with pytest.raises(error, match=said): project.registry.register(LogisticRegression().fit(ROWS, fitted_on), example=ROWS, facts={'algorithm': 'l', **facts})
    with pytest.raises(IntegrityError, match='getcwd'):
        odd = FunctionTransformer(os.getcwd)
        odd.classes_ = [0, 1]
        project.registry.register(odd, example=ROWS, facts={'algorithm': 'l'})
    assert versions(project.ledger) == ['1', '2', '3'] and len(list((project.store/'artifacts').rglob('*'))) == before


def test_classes_keep_the_order_of_the_scores(blank, tmp_path):
    project = fresh(blank, tmp_path/'p', task='multiclass')
    made = LogisticRegression().fit(ROWS, ['c', 'a', 'b', 'a']*5)
    with pytest.raises(DataError, match='in their order: a, b, c'): project.registry.register(made, example=ROWS, facts={'algorithm': 'l', 'classes': ['c', 'b', 'a']})
    project.registry.register(made, example=ROWS, facts={'algorithm': 'l', 'classes': ['a', 'b', 'c']})
    found = project.registry.load('1').predict(ROWS)
    assert found.columns.tolist() == ['score', 'decision', 'score_a', 'score_b', 'score_c'] and found['decision'].tolist() == made.predict(ROWS).tolist()
    assert len(project.registry.load('1').predict(ROWS[:0])) == 0


def test_regression_scores_are_amounts(blank, tmp_path):
    project = fresh(blank, tmp_path/'p', task='regression')
    project.registry.register(Ridge().fit(ROWS, ROWS['age']), example=ROWS, facts={'algorithm': 'ridge'})
    found = project.registry.load('1').predict(ROWS)
    assert np.allclose(found['score'], ROWS['age'], atol=1) and (found['score'] == found['decision']).all()


HOSTILE = ['a b', 'a\nb', '', '"; drop table x; --', '<img src=x onerror=alert(1)>', 'x'*500, 'index', '__class__', '0', "=cmd|' /C calc'!A0", 'ä', 'A', 'a', '😀']

def test_strangers_columns_of_every_kind_register_and_load(blank, tmp_path):
    project = fresh(blank, tmp_path/'p')
    for X in (pd.DataFrame({c: ROWS['age'] for c in HOSTILE}), pd.DataFrame({'t': pd.date_range('2024', periods=20), 'i': pd.array([1, None]*10, dtype='Int64'),
              'b': pd.array([True, None]*10, dtype='boolean'), 'none': [None]*20, 'mixed': [1, 'a', None, 2.5]*5, 'c': pd.Categorical(['u', 'v']*10), 'nan': [np.nan]*20})):
        made = project.registry.register(DummyClassifier(strategy='prior').fit(X, [0, 0, 1, 1]*5), example=X, facts={'algorithm': 'dummy'})
        model = project.registry.load(made.version)
        assert model.info.columns == list(X.columns) and model.predict(X[X.columns[::-1]])['score'].tolist() == [.5]*20


@pytest.mark.parametrize('name', ['a/b', 'a:b', '{{7*7}}', '${x}', "a'b", '"; DROP TABLE x; --', '../x', '%(x)s', 'x'*200, 'ünïcode 😀', '.', '<b>'])
def test_any_project_name_is_a_name_for_mlflow(three, tmp_path, name):
    shutil.copytree(three, tmp_path/'p', ignore=shutil.ignore_patterns('ledger*'))
    (tmp_path/'p/mlcycle.toml').write_text(TOML.format(name='placeholder', task='binary', more='').replace('"placeholder"', json.dumps(name, ensure_ascii=False)))
    project = Project(tmp_path/'p', actor='Ada')
    made = project.registry.register(FITTED, example=ROWS, facts=FACTS)
    promote(project, made.version, because='first')
    assert aliases(project) == {'champion': made.version} and sorted(p.name for p in tmp_path.iterdir()) == ['p']


def test_a_renamed_project_goes_on_counting(project):
    project.update_settings({'project.name': 'another name'})
    renamed = Project(project.folder, actor='Ada')
    assert renamed.registry.name == 'churn' and renamed.registry.register(FITTED, example=ROWS, facts=FACTS).version == '4'


def test_a_lost_mlflow_file_never_counts_a_version_twice(project, tmp_path):
    shutil.copytree(project.folder, tmp_path/'again', ignore=shutil.ignore_patterns('mlflow.db'))
    again = Project(tmp_path/'again', actor='Ada')
    assert again.registry.load('1').version == '1'           # needs no MLflow
    assert again.registry.register(FITTED, example=ROWS, facts=FACTS).version == '4'


def test_a_crash_before_the_entry_leaves_a_version_that_does_not_exist(project, monkeypatch):
    def crash(*args, **kwargs): raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(Project, 'record', crash)
        with pytest.raises(KeyboardInterrupt): project.registry.register(FITTED, example=ROWS, facts=FACTS)
    assert versions(project.ledger) == ['1', '2', '3'] and project.registry.client().get_model_version('churn', '4')
    for call in (lambda: project.registry.load('4'), lambda: promote(project, '4', because='x')):
        with pytest.raises(SettingsError, match='Versions: 1, 2, 3'): call()
    assert project.registry.register(FITTED, example=ROWS, facts=FACTS).version == '5'


REGISTER = '''
import sys
import pandas as pd
from sklearn.dummy import DummyClassifier
from mlcycle.core import Project
project, rows = Project(sys.argv[1], actor='Ada'), pd.DataFrame({'age': [1., 2.]})
for _ in range(2): print(project.registry.register(DummyClassifier().fit(rows, [0, 1]), example=rows, facts={'algorithm': 'dummy'}).version, flush=True)
'''

def test_two_processes_registering_at_once_get_different_numbers(tmp_path):
    "From nothing: both also want to make MLflow's file."
    project = project_in(tmp_path)
    both = [subprocess.Popen([sys.executable, '-c', REGISTER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    done = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], done[0][1][-500:]+done[1][1][-500:]
    told = [v for out, _ in done for v in out.split()]
    assert sorted(told) == list('1234') == versions(project.ledger) and project.ledger.verify().ok
    for v in told: assert project.registry.load(v).version == v


def test_a_crash_while_the_file_is_made_leaves_none(tmp_path, monkeypatch):
    project = project_in(tmp_path)
    def crash(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr('mlcycle.mlstore.durable', crash)
        with pytest.raises(KeyboardInterrupt): project.registry.client()
    assert sorted(p.name for p in project.store.iterdir()) == ['.mlflow.lock']
    assert project.registry.client().search_experiments()[0].artifact_location == (project.store/'artifacts'/'0').as_uri()


def test_read_only_registers_and_promotes_nothing(project):
    closed = Project(project.folder, read_only=True)
    before = {p: p.stat().st_mtime for p in project.store.rglob('*') if not p.name.endswith('.db')}
    with pytest.raises(Blocked): closed.registry.register(FITTED, example=ROWS, facts=FACTS)
    with pytest.raises(Blocked): promote(closed, '1', because='x')
    assert closed.registry.client().get_model_version('churn', '1')
    empty = project_in(project.folder.parent/'empty')
    with pytest.raises(Blocked, match='read-only'): Project(empty.folder, read_only=True).registry.client()
    assert not empty.store.exists()
    assert closed.registry.load('1').version == '1' and {p: p.stat().st_mtime for p in project.store.rglob('*') if not p.name.endswith('.db')} == before


# Places

def places(project: Project) -> bytes: return (project.store/'mlflow.db').read_bytes()


def test_the_store_moves_with_the_project(project, tmp_path):
    promote(project, '2', because='good')
    old = str(project.folder)
    shutil.move(project.folder, tmp_path/'a b é😀\' &')
    moved = Project(tmp_path/'a b é😀\' &', actor='Ada')
    assert moved.registry.load('champion').version == '2'
    made = moved.registry.register(FITTED, example=ROWS, facts=FACTS)
    assert made.version == '4' and moved.registry.load('4') and not Path(old).exists()
    moved.registry.client()
    import mlflow
    for v in ('1', '4'): assert mlflow.sklearn.load_model(f'models:/churn/{v}').predict(ROWS[:1])[0] == 0      # MLflow finds them too
    found = sqlite3.connect(moved.store/'mlflow.db')
    for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        assert not [r for r in found.execute(f'SELECT * FROM "{name}"') if old in str(r)], name


@pytest.mark.parametrize('name', ['100%20', 'a?b'])
def test_a_folder_that_mlflow_would_misread_is_named(tmp_path, name):
    with pytest.raises(SettingsError, match='Rename the folder'): project_in(tmp_path/name).registry.register(FITTED, example=ROWS, facts=FACTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


# Models

def test_columns_go_by_name(project):
    model = project.registry.load('1')
    expected = FITTED.predict_proba(ROWS)[:, 1]
    for rows in (ROWS, ROWS[['visits', 'age']], ROWS.assign(noise=1), ROWS.astype(int)): assert np.array_equal(model.scores(rows), expected)
    assert model.predict(ROWS.set_axis(range(100, 120))).index.tolist() == list(range(100, 120))
    for wrong, said in ((ROWS[['age']], 'Missing columns: visits'), (ROWS.to_numpy(), 'came ndarray'), (ROWS['age'], 'came Series'),
                        (pd.concat([ROWS, ROWS[['age']]], axis=1), 'more than once: age')):
        with pytest.raises(DataError, match=said): model.predict(wrong)


def test_a_score_that_is_no_number_is_not_given(project):
    class Broken:
        def predict_proba(self, X): return np.full((len(X), 2), np.nan)
    with pytest.raises(IntegrityError, match='not a number'): Model(project.registry.info('1'), Broken()).predict(ROWS)


# Roles

def test_roles_follow_the_ledger_and_mlflow_follows_them(project):
    promote(project, '1', because='first'); promote(project, '2', to='challenger', because='new'); promote(project, '3', to='shadow', because='newest')
    assert roles(project.ledger) == {'champion': '1', 'challenger': '2', 'shadow': '3'} == aliases(project)
    entry = promote(project, '2', because='better')
    assert entry.body['previous'] == '1' and roles(project.ledger) == {'champion': '2', 'challenger': None, 'shadow': '3'}
    assert aliases(project) == {'champion': '2', 'shadow': '3'}
    count = project.ledger.head()[0]
    assert promote(project, '2', because='again') == entry and project.ledger.head()[0] == count       # nothing to do, nothing recorded
    assert project.registry.load('champion').version == '2'


def test_rollback_goes_down_the_line_and_never_up(project):
    for v in '123': promote(project, v, because='better')
    assert [rollback(project, because='worse').body['version'] for _ in range(2)] == ['2', '1']
    with pytest.raises(Blocked, match='no earlier champion'): rollback(project, because='worse')
    promote(project, '3', because='mended'); promote(project, '2', because='better')
    assert rollback(project, because='worse').body['version'] == '3' and aliases(project) == {'champion': '3'}
    entry = project.ledger.last('promotion')
    assert entry.body['rollback'] and entry.body['previous'] == '2' and entry.body['because'] == 'worse'


def test_rollback_passes_over_the_retired_and_replaces_a_retired_champion(project):
    for v in '123': promote(project, v, because='better')
    retire = lambda v: project.ledger.append(stage='retirement', kind='retirement', subject=v, body={'version': v, 'successor': None, 'because': 'old'}, actor='Ada')
    retire('2')
    assert rollback(project, because='worse').body['version'] == '1'
    promote(project, '3', because='mended'); retire('3')
    assert champion(project.ledger) is None and rollback(project, because='nobody answers').body['version'] == '1'


def test_a_rollback_reads_the_bytes_and_loads_no_model(project, monkeypatch):
    for version in '12': promote(project, version, because='better')
    file = project.store/project.registry.info('1').uri
    whole = file.read_bytes()
    file.write_bytes(whole[:-1]+b'x')
    with pytest.raises(IntegrityError, match='not the one that was recorded'): rollback(project, because='worse')
    assert champion(project.ledger) == '2'
    file.write_bytes(whole)
    def slow(content): raise AssertionError('nobody waits for that')
    monkeypatch.setattr('mlcycle.registry.loads', slow)
    assert rollback(project, because='worse').body['version'] == '1' and aliases(project) == {'champion': '1'}


@pytest.mark.parametrize('call, error, said', [
    (lambda p: promote(p, '9', because='x'), SettingsError, 'Versions: 1, 2, 3'), (lambda p: promote(p, '1', to='king', because='x'), SettingsError, "No role 'king'"),
    (lambda p: promote(p, '1', because=' '), SettingsError, 'needs a reason'), (lambda p: p.registry.load('challenger'), Blocked, 'mlcycle promote MODEL_VERSION --to challenger'),
    (lambda p: rollback(p, because='x'), Blocked, 'no earlier champion'), (lambda p: p.registry.load('../1'), SettingsError, 'Versions: 1, 2, 3')])
def test_refusals_say_what_is_allowed_and_record_nothing(project, call, error, said):
    before = project.ledger.head()
    with pytest.raises(error, match=said): call(project)
    assert project.ledger.head() == before


def test_retired_versions_take_no_role_and_gates_are_asked(project, tmp_path):
    project.ledger.append(stage='retirement', kind='retirement', subject='1', body={'version': '1', 'because': 'old'}, actor='Ada')
    for role in ('champion', 'challenger', 'shadow'):
        with pytest.raises(Blocked, match='is retired'): promote(project, '1', to=role, because='x')
    (project.folder/'mlcycle.toml').write_text(TOML.format(name='churn', task='binary', more='').replace('gates = []\n', ''))
    gated = Project(project.folder, actor='Ada')
    with pytest.raises(Blocked, match='mlcycle run validation'): promote(gated, '2', because='x')
    assert promote(gated, '2', to='challenger', because='may be looked at')
    promote(project, '2', because='ungated'); promote(project, '3', because='ungated')
    with pytest.raises(Blocked, match='may not answer'): rollback(gated, because='x')


def test_a_crash_between_ledger_and_alias_is_put_right_on_opening(project, monkeypatch):
    promote(project, '1', because='first')
    def crash(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr('mlcycle.registry.repair', crash)
        with pytest.raises(KeyboardInterrupt): promote(project, '2', because='better')
    assert champion(project.ledger) == '2' and aliases(project) == {'champion': '1'}
    again = Project(project.folder, actor='Ada')
    assert champion(again.ledger) == '2' and aliases(again) == {'champion': '2'}
    (project.store/'projected').write_text('garbage')
    again.registry.client().set_registered_model_alias('churn', 'champion', '3')      # somebody moved it by hand
    assert champion(Project(project.folder).ledger) == '2' and aliases(again) == {'champion': '2'}


# A tracking server

@pytest.fixture(scope='module')
def server(blank, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp('server'), free_port()
    shutil.copy(blank, folder/'mlflow.db')
    command = [sys.executable, '-m', 'mlflow', 'server', '--host', '127.0.0.1', '--port', str(port), '--workers', '1', '--backend-store-uri', f'sqlite:///{folder}/mlflow.db',
               '--artifacts-destination', str(folder/'artifacts')]
    process = subprocess.Popen(command, env={**os.environ, 'MLFLOW_DISABLE_TELEMETRY': 'true', 'DO_NOT_TRACK': '1'}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        def answers() -> bool:
            with socket.socket() as s: return s.connect_ex(('127.0.0.1', port)) == 0
        until(answers)
        yield f'http://127.0.0.1:{port}', folder
    finally:
        os.killpg(process.pid, 15)
        process.wait(PATIENCE)


def test_a_tracking_server_by_setting(server, tmp_path):
    address, folder = server
    project = project_in(tmp_path, more=f'store = {{tracking = "{address}"}}')
    for _ in range(2): made = project.registry.register(FITTED, example=ROWS, facts=FACTS)
    assert made.uri.startswith('models:/') and not (project.store/'mlflow.db').exists() and not (project.store/'artifacts').exists()
    assert np.array_equal(project.registry.load('2').scores(ROWS), FITTED.predict_proba(ROWS)[:, 1])
    promote(project, '1', because='first'); promote(project, '2', because='better'); rollback(project, because='worse')
    assert aliases(project) == {'champion': '1'}
    stored = next(p for p in folder.rglob('model.skops') if made.uri.split('/')[1] in str(p))
    stored.write_bytes(dumps(LogisticRegression().fit(ROWS, [1, 1, 0, 0]*5)))
    with pytest.raises(IntegrityError, match='recorded'): project.registry.load('2')
    assert project.registry.load('champion').version == '1'


def test_a_server_that_is_away_holds_up_neither_the_ledger_nor_the_project(project, monkeypatch):
    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
    (project.folder/'mlcycle.toml').write_text(TOML.format(name='churn', task='binary', more=f'store = {{tracking = "http://user:secret@127.0.0.1:{free_port()}"}}'))
    away = Project(project.folder, actor='Ada')
    with pytest.raises(Blocked, match='store.tracking') as caught: away.registry.register(FITTED, example=ROWS, facts=FACTS)
    assert 'secret' not in str(caught.value)
    with pytest.warns(UserWarning, match='does not show them yet'): promote(away, '1', because='first')      # its file is local: recorded before
    with pytest.warns(UserWarning): assert champion(Project(project.folder, actor='Ada').ledger) == '1'
    (project.folder/'mlcycle.toml').write_text(TOML.format(name='churn', task='binary', more=''))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert champion(Project(project.folder, actor='Ada').ledger) == '1'
    assert aliases(project) == {'champion': '1'}


def test_no_role_on_a_ledger_that_was_touched(project):
    "Somebody with a shell drops the triggers and puts another name under an approval."
    project.ledger.append(stage='governance', kind='approval', subject='2', body={'by': 'Ada'}, actor='Ada')
    raw = sqlite3.connect(project.store/'ledger.db')
    raw.execute('DROP TRIGGER ledger_no_update')
    raw.execute("UPDATE ledger SET body = replace(body, 'Ada', 'Eve') WHERE kind = 'approval'"); raw.commit(); raw.close()
    with pytest.raises(IntegrityError, match='was changed'): promote(project, '2', because='x')
    assert champion(project.ledger) != '2'


@pytest.mark.parametrize('second', ('promote', 'rollback'))
def test_of_two_who_decide_at_one_moment_one_wins_and_the_other_is_told(project, monkeypatch, second):
    "Both have asked the gates and read their version before either writes; what is recorded was decided on the roles as they were."
    promote(project, '1', because='first'), promote(project, '3', because='next')
    both, real, told, won = threading.Barrier(2), type(project.registry).content, [], []
    def content(self, version):
        found = real(self, version)
        both.wait(PATIENCE)
        return found
    monkeypatch.setattr(type(project.registry), 'content', content)
    def decide(name: str, how: str):
        mine = Project(project.folder, actor=name)
        try: won.append((promote(mine, '2', because='better') if how == 'promote' else rollback(mine, because='complaints')).actor)
        except Blocked as error: told.append((name, str(error)))
    deciders = [threading.Thread(target=decide, args=a) for a in (('Bo', 'promote'), ('Cy', second))]
    for t in deciders: t.start()
    for t in deciders: t.join(PATIENCE)
    (loser, said), = told
    assert {*won} | {loser} == {'Bo', 'Cy'} and f'Meanwhile {won[0]} recorded another promotion' in said and 'mlcycle history' in said
    assert len(project.ledger.entries('promotion')) == 3 and project.ledger.verify().ok
