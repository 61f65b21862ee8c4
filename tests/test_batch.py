"""Batch scoring: any size, any format, killed and taken up again, on processes and on a cluster; logged once, published whole."""
import errno, fcntl, hashlib, json, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import pandas as pd
from deltalake import DeltaTable
import psutil, pyarrow as pa, pyarrow.parquet as pq, pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from mlcycle import batch, direct
from mlcycle.arithmetic import form_file, kept_form
from mlcycle.batch import BatchReport, Spread, known_path, score_file
from mlcycle.columns import log_columns, plain_frame
from mlcycle.content import to_arrow
from mlcycle.core import Blocked, DataError, IntegrityError, Project, SettingsError
from mlcycle.direct import KEPT, REGIONS, SENT, CachedFile, DirectFile, new_file
from mlcycle.paths import ScoringPath
from mlcycle.plans import FeaturePlan
from mlcycle.keeping import log_rows, stored_name
from mlcycle.scoring import label_file, predictions, score
from mlcycle.sources import read_file
from served import FORMULA, HTML, crown, new_project, register, strange_rows


@pytest.fixture(scope='module')
def ready(tmp_path_factory) -> Project:
    "A project whose champion was trained on strangers' columns."
    project = new_project(tmp_path_factory.mktemp('batch')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(), LogisticRegression()))
    return project


@pytest.fixture(scope='module')
def many(tmp_path_factory) -> pd.DataFrame: return strange_rows(4000, seed=11).drop(columns='label')


def same_as_in_memory(project, rows, made):
    "The output holds the scores that the rows have in memory, in the order of the rows."
    wanted = score(project, rows, log=False)
    assert np.allclose(made['score'], wanted['score'], rtol=0, atol=1e-12) and made['decision'].tolist() == wanted['decision'].tolist()
    assert made['id'].astype(str).tolist() == rows['id'].tolist() and made['prediction_id'].is_unique


def test_file_in_file_out(ready, tmp_path):
    rows = strange_rows(12, seed=9).drop(columns='label')
    rows.to_csv(tmp_path/'in.csv', index=False)
    score_file(ready, tmp_path/'in.csv', tmp_path/'out.csv')
    text = (tmp_path/'out.csv').read_text()
    out = pd.read_csv(tmp_path/'out.csv', dtype={'id': str})
    same_as_in_memory(ready, rows, out)
    assert "'"+FORMULA in out and "'=1+1" in set(out["'"+FORMULA]) and ',=1+1' not in text and out[HTML].min() < 0
    report = score_file(ready, tmp_path/'in.csv', tmp_path/'out.parquet')
    assert len(pd.read_parquet(tmp_path/'out.parquet')) == 12 and ready.latest(BatchReport, subject='1') == report
    (tmp_path/'labels.csv').write_text('prediction_id,label\n'+'\n'.join(f'{i},no' for i in out['prediction_id']))
    assert label_file(ready, tmp_path/'labels.csv').matched == 12


def test_columns_of_the_log_are_those_of_its_rows(tmp_path, monkeypatch):
    "Whatever the types in the file: numbers as text, gaps, times, truth values, levels that clean to the same text, hashes."
    monkeypatch.setenv('MLCYCLE_HASH_KEY', 'a key of thirty-one characters.')
    project = new_project(tmp_path/'project', data='id = "id"\nprotected = ["sex"]', more='[deployment.log]\ncolumns = [{name = "sex", stored = "hashed"}]')
    when = pd.to_datetime(['2024-05-31 08:00', None, '2024-06-01 00:00'], utc=True)
    rows = pa.table({'id': ['1', '', None], 'sex': ['m', ' m', None], 'n': [1.5, float('nan'), None], 'whole': pa.array([1, None, 3]), 'texts': ['1', 'x', ''],
                     'town': pa.array(['Bonn', '', None]).dictionary_encode(), 'codes': pa.array([1., 2.5, None]), 'when': pa.array(when), 'true': [True, False, None],
                     'kind': pa.DictionaryArray.from_arrays([0, 1, 0], ['a', 'a ']), 'score': ['a', 'b', 'c']})
    types = {'n': 'number', 'whole': 'number', 'texts': 'number', 'town': 'category', 'codes': 'category', 'when': 'date', 'true': 'boolean', 'kind': 'text', 'score': 'text'}
    plan = FeaturePlan.from_body({'target': 'y', 'task': 'binary', 'columns': [{'name': c, 'type': t} for c, t in types.items()]})
    found = pa.table(log_columns(project, rows, plan, 'rows'))
    wanted = to_arrow(log_rows(project, plain_frame(rows, rows.column_names, 'rows'), plan, pd.DataFrame({'prediction_id': ['a', 'b', 'c']}))).drop_columns(['prediction_id'])
    assert found.cast(wanted.schema).equals(wanted), (found.to_pylist(), wanted.to_pylist())


def test_output_is_whole_or_not_at_all(ready, tmp_path, monkeypatch):
    strange_rows(5, seed=10).to_csv(tmp_path/'in.csv', index=False)
    (tmp_path/'out.csv').write_text('the old one')
    replace, before = os.replace, len(predictions(ready))
    def full(a, b):
        if str(b).endswith('out.csv'): raise OSError(28, 'No space left on device')
        replace(a, b)
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError): score_file(ready, tmp_path/'in.csv', tmp_path/'out.csv')
    assert (tmp_path/'out.csv').read_text() == 'the old one' and sorted(p.name for p in tmp_path.iterdir()) == ['in.csv', 'out.csv']
    monkeypatch.undo()
    assert score_file(ready, tmp_path/'in.csv', tmp_path/'out.csv').reused == 1
    assert len(predictions(ready)) == before+5
    with pytest.raises(SettingsError, match='.parquet'): score_file(ready, tmp_path/'in.csv', tmp_path/'out.xlsx')
    (tmp_path/'empty.csv').write_text('a,b\n')
    with pytest.raises(DataError): score_file(ready, tmp_path/'empty.csv', tmp_path/'none.csv')
    with pytest.raises(DataError, match='no.csv'): score_file(ready, tmp_path/'no.csv', tmp_path/'none.csv')
    assert len(predictions(ready)) == before+5 and not (tmp_path/'none.csv').exists()
    with pytest.raises(Blocked, match='read-only'): score_file(Project(ready.folder, read_only=True), tmp_path/'in.csv', tmp_path/'out.csv')


def test_what_is_scored_is_never_replaced(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tmp_path/'rows'
    table.mkdir()
    strange_rows(5, seed=10).to_parquet(table/'in.parquet')
    strange_rows(5, seed=10).to_csv('in.csv', index=False)
    Path('link.csv').symlink_to('in.csv')
    was, before = Path('in.csv').read_bytes(), len(predictions(ready))
    for source, out in (('in.csv', 'in.csv'), ('in.csv', tmp_path/'in.csv'), ('link.csv', 'in.csv'), ('rows', 'rows/out.parquet'), ('rows/in.parquet', 'rows/../rows/in.parquet')):
        with pytest.raises(SettingsError, match='Name another place'): score_file(ready, source, out)
    Path('file').write_text('no folder')
    with pytest.raises(SettingsError, match='cannot be written.*Name another place'): score_file(ready, 'in.csv', 'file/out.csv')
    assert Path('in.csv').read_bytes() == was and [*table.iterdir()] == [table/'in.parquet'] and len(predictions(ready)) == before


@pytest.mark.parametrize('kind', ['csv', 'semicolon', 'parquet', 'folder'])
def test_large_tables_part_by_part(ready, many, tmp_path, monkeypatch, kind):
    source = tmp_path/{'csv': 'in.csv', 'semicolon': 'in.csv', 'parquet': 'in.parquet'}.get(kind, 'in')
    if kind == 'csv': many.to_csv(source, index=False)
    if kind == 'semicolon': many.to_csv(source, index=False, sep=';', decimal=',')
    if kind == 'parquet': many.to_parquet(source, row_group_size=500)
    if kind == 'folder':
        source.mkdir()
        for i in range(4): many.iloc[i*1000:(i+1)*1000].to_parquet(source/f'{i}.parquet')
    monkeypatch.setattr(batch, 'SMALL', 0)
    monkeypatch.setattr('mlcycle.pieces.BLOCK', 100_000)
    before = len(predictions(ready))
    report = score_file(ready, source, tmp_path/'out', spread=Spread(workers=2 if kind == 'csv' else 1))
    made = pd.concat(pd.read_parquet(f) for f in sorted((tmp_path/'out').glob('*.parquet')))
    same_as_in_memory(ready, many, made)
    assert report.path == 'compiled' and report.compiled == 4000
    assert report.rows == 4000 == json.loads((tmp_path/'out'/batch.MANIFEST).read_text())['rows'] and len(predictions(ready)) == before+4000
    assert report.parts == 1 if kind == 'parquet' else report.parts > 3


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'delta'])
def test_the_output_carries_the_columns_asked_for(ready, many, tmp_path, monkeypatch, kind):
    "The same answers and the same log as with all columns; names that are ours are told apart; another choice is another job."
    source = Path(ready.tables.uri('lean')) if kind == 'delta' else tmp_path/f'in.{kind}'
    if kind == 'csv': many.to_csv(source, index=False)
    if kind == 'parquet': many.to_parquet(source, row_group_size=500)
    if kind == 'delta': ready.tables.write('lean', many)
    monkeypatch.setattr(batch, 'SMALL', 0)
    with pytest.raises(DataError, match=r"No column 'ID' in .*Columns: id, "): score_file(ready, source, tmp_path/'out', spread=Spread(workers=1, columns=['id', 'ID']))
    before = len(predictions(ready))
    whole = score_file(ready, source, tmp_path/'whole.parquet', spread=Spread(workers=1))
    lean = score_file(ready, source, tmp_path/'lean.parquet', spread=Spread(workers=1, columns=['score', 'id']))
    made, all_of_it = pd.read_parquet(tmp_path/'lean.parquet'), pd.read_parquet(tmp_path/'whole.parquet')
    assert list(made) == ['prediction_id', 'at', 'version', 'score', 'decision', stored_name('score'), 'id'] and lean.reused == 0
    pd.testing.assert_frame_equal(made.drop(columns=['prediction_id', 'at']), all_of_it[list(made)].drop(columns=['prediction_id', 'at']))
    log = predictions(ready).iloc[before:]
    ours, theirs = (log[log['prediction_id'].str.startswith(r.key)].drop(columns=['prediction_id', 'at']).reset_index(drop=True) for r in (lean, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    assert len(ours) == 4000


@pytest.mark.parametrize('column', ['sex', HTML, FORMULA, 'version'])
@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_column_that_is_not_there_is_named(ready, tmp_path, kind, column):
    rows, before = strange_rows(5, seed=10).drop(columns=['label', column]), len(predictions(ready))
    rows.to_csv(tmp_path/'in.csv', index=False) if kind == 'csv' else rows.to_parquet(tmp_path/'in.parquet')
    if column == 'sex':   # only logged
        assert score_file(ready, tmp_path/f'in.{kind}', tmp_path/'out.csv').rows == 5
        return
    with pytest.raises(DataError) as error: score_file(ready, tmp_path/f'in.{kind}', tmp_path/'out.csv')
    assert f'Missing columns: {column}.' in str(error.value) and not (tmp_path/'out.csv').exists() and len(predictions(ready)) == before


def test_a_table_that_is_divided_by_a_text(ready, many, tmp_path):
    "A column of the model that stands in the paths and not in the files."
    from deltalake import write_deltalake
    whole = tmp_path/'whole.parquet'
    many.head(300).to_parquet(whole)
    write_deltalake(str(tmp_path/'in'), pa.Table.from_pandas(many.head(300), preserve_index=False), partition_by=['version'])
    found = {k: score_file(ready, source, tmp_path/f'{k}.parquet') and pd.read_parquet(tmp_path/f'{k}.parquet') for k, source in (('a', whole), ('b', tmp_path/'in'))}
    a, b = (d.astype({'id': str}).set_index('id')[['score', 'decision']].sort_index() for d in found.values())
    pd.testing.assert_frame_equal(a, b)


def test_a_delta_table_of_our_own(ready, many, tmp_path):
    ready.tables.write('waiting', many)
    score_file(ready, ready.tables.uri('waiting'), tmp_path/'out.parquet')
    same_as_in_memory(ready, many, pd.read_parquet(tmp_path/'out.parquet'))


def test_a_ragged_row_of_a_large_file_is_named_and_nothing_is_logged(ready, many, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, 'SMALL', 0)
    monkeypatch.setattr('mlcycle.pieces.BLOCK', 100_000)
    many.drop(columns='a"b\nc').to_csv(tmp_path/'in.csv', index=False)
    lines = (tmp_path/'in.csv').read_text().split('\n')
    lines[3000] += ',more'
    (tmp_path/'in.csv').write_text('\n'.join(lines))
    before = len(predictions(ready))
    with pytest.raises(DataError, match=f'in.csv, line 3,001: expected {many.shape[1]-1} fields, got {many.shape[1]}'):
        score_file(ready, tmp_path/'in.csv', tmp_path/'out.csv', spread=Spread(workers=1))
    assert len(predictions(ready)) == before and not list((ready.store/'batch').glob('*/'))


SLOW = '''
import sys, time
from mlcycle import batch
from mlcycle.core import Project
one, told = batch.score_part, []
def slowly(job, part):
    done = one(job, part)
    told.append(part.number); print(part.number, flush=True)
    time.sleep(3600*(len(told) == 2))   # in the middle, until it is killed
    return done
batch.score_part = slowly
if __name__ == '__main__': batch.score_file(Project(sys.argv[1]), sys.argv[2], sys.argv[3], spread=batch.Spread(workers=int(sys.argv[4])))
'''


def test_killed_in_the_middle_it_goes_on_and_doubles_nothing(ready, many, tmp_path, monkeypatch):
    pd.concat([many]*4).to_parquet(tmp_path/'in.parquet', row_group_size=4000)
    monkeypatch.setattr('mlcycle.pieces.PART', 4000)
    (tmp_path/'slow.py').write_text(SLOW.replace('import sys, time', 'import sys, time, mlcycle.pieces\nmlcycle.pieces.survey.__kwdefaults__["rows"] = 4000'))
    before = len(predictions(ready))
    run = subprocess.Popen([sys.executable, tmp_path/'slow.py', ready.folder, tmp_path/'in.parquet', tmp_path/'out.csv', '1'], stdout=subprocess.PIPE, text=True)
    for _ in range(2): run.stdout.readline()
    with pytest.raises(Blocked, match='another process'): score_file(ready, tmp_path/'in.parquet', tmp_path/'out.csv')
    run.send_signal(signal.SIGKILL); run.wait()
    assert len(predictions(ready)) == before and not (tmp_path/'out.csv').exists()
    monkeypatch.setitem(batch.survey.__kwdefaults__, 'rows', 4000)
    report = score_file(ready, tmp_path/'in.parquet', tmp_path/'out.csv', spread=Spread(workers=1))
    assert report.parts == 4 and report.reused == 2 and len(predictions(ready)) == before+16_000
    assert pd.read_csv(tmp_path/'out.csv')['prediction_id'].tolist() == predictions(ready).iloc[before:].sort_values('prediction_id')['prediction_id'].tolist()


BUSY = '''
import os, sys, time
from mlcycle.batch import mapper, Spread
def busy(i):
    with open(f'{sys.argv[1]}/{i}.new', 'w') as f: f.write(str(os.getpid()))
    os.rename(f'{sys.argv[1]}/{i}.new', f'{sys.argv[1]}/{i}.pid')   # whole, and only in a worker that watches already
    time.sleep(3600)
if __name__ == '__main__':
    with mapper(Spread(workers=2)) as mapped: list(mapped(busy, [0, 1]))
'''


def test_workers_end_with_whoever_started_them(tmp_path):
    (tmp_path/'run.py').write_text(BUSY)
    run = subprocess.Popen([sys.executable, tmp_path/'run.py', tmp_path])
    for _ in range(1200):
        if len(found := [*tmp_path.glob('*.pid')]) == 2 or run.poll() is not None: break
        time.sleep(.1)
    workers = [psutil.Process(int(f.read_text())) for f in found]
    assert len(set(workers)) == 2 and {p.parent().ppid() for p in workers} == {run.pid}   # forked from one that loads for all
    server, = {p.parent() for p in workers}
    run.kill(); run.wait()
    assert not psutil.wait_procs([*workers, server], timeout=300)[1]     # they would sleep for an hour


@pytest.mark.parametrize('address, said', [('tcp://10.0.0.1:8786', 'not encrypted'), ('tcp://10.0.0.1', 'not encrypted'), ('127.0.0.1', 'No Dask scheduler answers'), ('tcp://localhost:port', 'No Dask scheduler answers'), ('nonsense', 'not encrypted')])
def test_a_cluster_that_is_not_there_or_not_safe_is_named(ready, many, tmp_path, monkeypatch, address, said):
    many.head(3).to_csv(tmp_path/'in.csv', index=False)
    with pytest.raises(SettingsError, match=said): score_file(ready, tmp_path/'in.csv', tmp_path/'out.csv', spread=Spread(cluster=address))
    assert not (tmp_path/'out.csv').exists()


def test_a_cluster_gives_the_same(ready, many, tmp_path, monkeypatch):
    from distributed import LocalCluster
    (tmp_path/'in').mkdir()
    for i in range(4): many.iloc[i*1000:(i+1)*1000].to_parquet(tmp_path/'in'/f'{i}.parquet')
    monkeypatch.setitem(batch.survey.__kwdefaults__, 'rows', 1000)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        report = score_file(ready, tmp_path/'in', tmp_path/'out.parquet', spread=Spread(cluster=cluster.scheduler_address))
    assert report.parts == 4
    same_as_in_memory(ready, many, pd.read_parquet(tmp_path/'out.parquet'))


SLOWED = '''
import os, time
from mlcycle import batch
if not hasattr(batch, 'quick_part'):
    batch.quick_part = batch.score_part
    def score_part(job, part):
        open(f'{MARKS}/{os.getpid()}-{part.number}', 'w').close()
        time.sleep(.3)
        return batch.quick_part(job, part)
    score_part.__module__ = 'mlcycle.batch'
    batch.score_part = score_part
'''


@contextmanager
def dask_processes(folder: Path, workers: int): # address, the scheduler's process
    "A Dask cluster whose parts can be killed one by one."
    told = folder/'scheduler.json'
    start = lambda *words: subprocess.Popen([sys.executable, '-m', 'distributed.cli.dask_'+words[0], *words[1:], '--scheduler-file', told, '--no-dashboard'], cwd=folder, stderr=subprocess.DEVNULL)
    found = [start('scheduler', '--host', '127.0.0.1', '--port', '0')]
    try:
        while not told.exists(): time.sleep(.05)
        found += [start('worker', '--nthreads', '1', '--no-nanny') for _ in range(workers)]
        yield json.loads(told.read_text())['address'], found[0]
    finally:
        for process in found: process.kill(); process.wait()


def test_a_worker_is_killed_then_the_scheduler_is_lost(ready, many, tmp_path, monkeypatch):
    "The others take over from a worker; without a scheduler the command ends with a word, and the next takes up what was finished."
    from distributed import Client
    for folder in ('in', 'marks'): (tmp_path/folder).mkdir()
    for i in range(8): many.iloc[i*500:(i+1)*500].to_parquet(tmp_path/'in'/f'{i}.parquet')
    monkeypatch.setitem(batch.survey.__kwdefaults__, 'rows', 500)
    begun = lambda: sorted((tmp_path/'marks').iterdir())
    def until(n):
        while len(begun()) < n: time.sleep(.02)
    before = len(predictions(ready))
    scored = lambda **spread: score_file(ready, tmp_path/'in', tmp_path/'out.parquet', spread=Spread(**spread))
    with dask_processes(tmp_path, workers=2) as (address, scheduler), ThreadPoolExecutor(1) as pool:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2)
            text = f'MARKS = {str(tmp_path/"marks")!r}\n{SLOWED}'
            client.run(lambda: exec(text, {}))
        run = pool.submit(scored, cluster=address)
        until(3)
        os.kill(int(begun()[-1].name.split('-')[0]), signal.SIGKILL)
        assert run.result(120).parts == 8
        same_as_in_memory(ready, many, pd.read_parquet(tmp_path/'out.parquet'))
        assert len(predictions(ready)) == before+4000
        (tmp_path/'out.parquet').unlink()
        for mark in begun(): mark.unlink()
        run = pool.submit(scored, cluster=address)
        until(3)
        scheduler.kill()
        with pytest.raises(Blocked, match='went away. Start it. What was finished is kept: give the same command again'): run.result(120)
    assert not (tmp_path/'out.parquet').exists() and len(predictions(ready)) == before+4000
    report = scored(workers=1)
    assert report.parts == 8 and report.reused >= 1 and len(predictions(ready)) == before+8000
    assert predictions(ready)['prediction_id'].is_unique


def test_a_worker_that_does_not_see_the_folders_says_so(ready, many, tmp_path, monkeypatch):
    from distributed import LocalCluster
    with pytest.raises(SettingsError, match='A worker does not see .*nowhere.*same paths'):
        batch.score_part(batch.Job.model_construct(work=str(tmp_path/'nowhere')), batch.Part.model_construct(number=0, path=str(tmp_path)))
    with pytest.raises(SettingsError, match='A worker does not see .*gone.parquet'):
        batch.score_part(batch.Job.model_construct(work=str(tmp_path)), batch.Part.model_construct(number=0, path=str(tmp_path/'gone.parquet')))
    many.head(100).to_parquet(tmp_path/'in.parquet')
    def elsewhere(job, part): return open(tmp_path/'not there'/'in.parquet')
    monkeypatch.setattr(batch, 'score_part', elsewhere)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(SettingsError, match='A worker does not see .*not there/in.parquet. Workers need the same folders'):
            score_file(ready, tmp_path/'in.parquet', tmp_path/'out.csv', spread=Spread(cluster=cluster.scheduler_address))


def test_a_cluster_without_workers_is_not_waited_for(ready, many, tmp_path, monkeypatch):
    from distributed import LocalCluster
    monkeypatch.setattr('mlcycle.hands.ALONE', .3)
    many.head(100).to_parquet(tmp_path/'in.parquet')
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(Blocked, match='No worker has been at .* Start one: dask worker'):
            score_file(ready, tmp_path/'in.parquet', tmp_path/'out.csv', spread=Spread(cluster=cluster.scheduler_address))
    assert not (tmp_path/'out.csv').exists()


@pytest.mark.parametrize('large', [False, True])
def test_dates_are_read_in_the_order_of_the_training_rows(tmp_path, monkeypatch, large):
    "Two rows of which nobody can tell day from month, of a model that learnt from rows that left no doubt."
    rows = pd.DataFrame({'day': pd.date_range('2026-01-01', periods=60).strftime('%d/%m/%Y'), 'x': np.arange(60.), 'label': ['no', 'yes']*30})
    learnt, reading = read_file(rows.to_csv(index=False).encode(), types={'day': 'time'})
    project = new_project(tmp_path/'project', data='time = "day"')
    crown(project, register(project, learnt, LogisticRegression()))
    (tmp_path/'in.csv').write_text('day,x\n02/03/2026,1\n05/03/2026,2\n')
    if large: monkeypatch.setattr(batch, 'SMALL', 0)
    with pytest.raises(DataError, match='cannot be told apart'): score_file(project, tmp_path/'in.csv', tmp_path/'out.csv', spread=Spread(workers=1))
    project.ledger.append(stage='data', kind='schema', body={'readings': [reading.body()]}, actor='Ada')
    assert score_file(project, tmp_path/'in.csv', tmp_path/'out.csv', spread=Spread(workers=1)).rows == 2
    assert pd.to_datetime(predictions(project)['at']).dt.strftime('%d.%m.').tolist() == ['02.03.', '05.03.']


# --- the arithmetic alone

@pytest.fixture(scope='module')
def grown(tmp_path_factory) -> Project:
    "A project whose champion is boosted trees, which have a form."
    project = new_project(tmp_path_factory.mktemp('grown')/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(400), HistGradientBoostingClassifier(max_iter=20)))
    known_path(project, '1')
    return project


ALONE = """
import sys
from mlcycle.batch import Spread, score_file
from mlcycle.core import Project
score_file(Project(sys.argv[1], actor='Ada'), sys.argv[2], sys.argv[3], spread=Spread(workers=1))
print(sorted({'sklearn', 'skops', 'scipy.stats'} & {*sys.modules}))
"""


def form_of_the_first(project: Project) -> Path:
    return form_file(project, project.registry.info('1'), project.latest(ScoringPath, subject='1').form)


def test_a_version_with_a_form_scores_without_scikit_learn(grown, many, tmp_path):
    many.to_parquet(tmp_path/'in.parquet')
    run = subprocess.run([sys.executable, '-c', ALONE, grown.folder, tmp_path/'in.parquet', tmp_path/'out.parquet'], capture_output=True, text=True)
    assert run.stdout == '[]\n', run.stderr
    same_as_in_memory(grown, many, pd.read_parquet(tmp_path/'out.parquet'))
    assert grown.latest(BatchReport, subject='1').compiled == len(many)


@pytest.mark.parametrize('what', ['gone', 'changed', 'cut'])
def test_a_form_that_is_not_the_recorded_one_is_not_read(grown, many, tmp_path, what):
    "Then the model itself is loaded; a form that is gone is made again."
    place, before = form_of_the_first(grown), form_of_the_first(grown).read_bytes()
    batch._loaded.cache_clear()
    many.head(100).to_parquet(tmp_path/'in.parquet')
    if what == 'gone': place.unlink()
    else: place.write_bytes(before[:len(before)//2] if what == 'cut' else before.replace(before[2000:2008], bytes(8), 1))
    try:
        assert kept_form(grown, grown.registry.info('1'), grown.latest(ScoringPath, subject='1')) is None
        score_file(grown, tmp_path/'in.parquet', tmp_path/'out.parquet', spread=Spread(log=False))
        same_as_in_memory(grown, many.head(100), pd.read_parquet(tmp_path/'out.parquet'))
        assert what != 'gone' or place.read_bytes() == before
    finally: place.write_bytes(before)


def test_a_model_that_was_changed_does_not_answer_by_its_form_either(grown, many, tmp_path):
    "What was approved is what answers."
    place = grown.path(Path('store')/grown.registry.info('1').uri)
    before = place.read_bytes()
    many.head(10).to_parquet(tmp_path/'in.parquet')
    place.write_bytes(before[:500]+bytes([before[500]^1])+before[501:])
    batch._loaded.cache_clear()   # bytes are checked at load
    try:
        with pytest.raises(IntegrityError): score_file(grown, tmp_path/'in.parquet', tmp_path/'out.parquet')
        assert not (tmp_path/'out.parquet').exists()
    finally: place.write_bytes(before)


def test_a_form_lies_where_the_model_goes_from(grown):
    "Who removes the files of a retired version removes it."
    assert form_of_the_first(grown).parent == grown.path(Path('store')/grown.registry.info('1').uri).parent


def test_what_a_form_does_not_read_is_answered_by_the_model(grown, many, tmp_path):
    "Numbers as text: the first rows go through the pipeline too, and then all do."
    rows = many.head(300).astype({HTML: str})
    rows.to_parquet(tmp_path/'in.parquet')
    report = score_file(grown, tmp_path/'in.parquet', tmp_path/'out.parquet', spread=Spread(log=False))
    same_as_in_memory(grown, many.head(300), pd.read_parquet(tmp_path/'out.parquet'))
    assert report.compiled == 0


@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_columns_without_a_single_value_are_told(grown, many, tmp_path, ending):
    "They are scored as missing, as the pipeline does; a renamed export would else go unnoticed."
    rows = many.head(50).assign(**{HTML: np.nan, 'version': None})
    if ending == 'csv': rows.to_csv(tmp_path/'in.csv', index=False)
    else: rows.to_parquet(tmp_path/'in.parquet')
    report = score_file(grown, tmp_path/f'in.{ending}', tmp_path/'out.parquet', spread=Spread(log=False))
    assert report.empty == [c for c in grown.registry.info('1').columns if c in (HTML, 'version')] and report.headline.endswith(f'. No value in any row: {", ".join(report.empty)}')
    same_as_in_memory(grown, rows, pd.read_parquet(tmp_path/'out.parquet'))
    rows.assign(version=['x', *[None]*49]).to_csv(tmp_path/'in.csv', index=False)
    assert score_file(grown, tmp_path/'in.csv', tmp_path/'out.parquet', spread=Spread(log=False)).empty == [HTML]


def test_columns_of_lists_structures_and_nothing_are_carried_along(grown, many, tmp_path):
    "A table has columns that no model reads; a column of nothing may even be one of the model."
    rows = to_arrow(many.head(40).drop(columns='version')).append_column('version', pa.nulls(40)).append_column('words', pa.array([['a', 'b'], None]*20))
    rows = rows.append_column('place', pa.array([{'x': 1, 'y': i} for i in range(40)])).append_column('bytes', pa.array([b'\0', None]*20))
    pq.write_table(rows, tmp_path/'in.parquet')
    before = len(predictions(grown))
    for out in ('out', 'out.parquet', 'out.csv'): assert score_file(grown, tmp_path/'in.parquet', tmp_path/out).rows == 40
    made = pq.read_table(tmp_path/'out.parquet')
    assert made['words'].equals(rows['words']) and made['place'].equals(rows['place']) and len(predictions(grown)) == before+120


# --- gaps in the log

@pytest.mark.parametrize('gap', [None, float('nan')], ids=['null', 'nan'])
def test_a_gap_that_comes_late_in_a_part_is_in_the_log(gap, many, tmp_path, monkeypatch):
    "The beginning of the part had every value, so that its columns were written without room for gaps."
    project = new_project(tmp_path/'project', data='id = "id"\nprotected = ["sex"]\ndrop = ["sex"]')
    crown(project, register(project, strange_rows(400), HistGradientBoostingClassifier(max_iter=20)))
    monkeypatch.setattr('mlcycle.columns.CELLS', 1)   # a thousand rows at once
    values = many['version'].tolist()
    values[3500] = None
    table = to_arrow(many.drop(columns=[HTML, 'version']))
    table = table.append_column(HTML, pa.array([*many[HTML][:3000], gap, *many[HTML][3001:]])).append_column('version', pa.array(values))
    pq.write_table(table, tmp_path/'in.parquet')
    score_file(project, tmp_path/'in.parquet', tmp_path/'out', spread=Spread(workers=1))
    kept = predictions(project).sort_values('prediction_id', ignore_index=True)
    assert len(kept) == len(many) and np.flatnonzero(kept[HTML].isna()).tolist() == [3000] and np.flatnonzero(kept[stored_name('version')].isna()).tolist() == [3500]
    assert np.array_equal(kept[HTML].drop(3000), many[HTML].drop(3000))
    table = DeltaTable(project.tables.uri('predictions'))
    assert all(f.nullable for f in table.schema().fields)   # what files had all of is no promise of the table
    table.optimize.compact()
    score(project, many.head(5).assign(version=None))
    assert len(predictions(project)) == len(many)+5


# --- files past the cache

@pytest.mark.parametrize('refuses', ['open', 'pwrite'])
def test_where_a_file_system_knows_no_way_past_the_cache_the_usual_one_is_taken(refuses, monkeypatch, tmp_path):
    "EINVAL at opening (tmpfs of older kernels), or at the first block (disks with larger ones): the bytes and the hash are the same."
    given, honest, met = os.urandom(2*SENT+4097), getattr(os, refuses), []
    def shy(first, *rest):
        direct = rest[0] if refuses == 'open' else fcntl.fcntl(first, fcntl.F_GETFL)
        if not direct & os.O_DIRECT: return honest(first, *rest)
        met.append(first)
        raise OSError(errno.EINVAL, 'Invalid argument')
    monkeypatch.setattr(os, refuses, shy)
    file = DirectFile(tmp_path/'file', hash=hashlib.sha256())
    file.sink.write(given)
    file.close()
    assert met and (tmp_path/'file').read_bytes() == given and file.hash.hexdigest() == hashlib.sha256(given).hexdigest()
    with pytest.raises(ValueError): file.sink.write(b'more')


def in_memory() -> int: return psutil.Process().memory_info().rss


def test_a_long_file_takes_no_more_memory_than_a_piece_and_what_serves_the_next(tmp_path):
    REGIONS.clear()
    piece, before, most, hash = os.urandom(SENT)*8, in_memory(), 0, hashlib.sha256()
    file = new_file(tmp_path/'file', hash=hashlib.sha256())
    for _ in range(20):
        file.sink.write(piece)
        file.send()
        hash.update(piece)
        most = max(most, in_memory()-before)
    file.close()
    assert type(file) is DirectFile and (tmp_path/'file').stat().st_size == 20*len(piece) > 8*KEPT
    assert most < KEPT+3*len(piece) and in_memory()-before < KEPT+len(piece)
    with (tmp_path/'file').open('rb') as f: assert file.hash.hexdigest() == hash.hexdigest() == hashlib.file_digest(f, 'sha256').hexdigest()
    assert len(REGIONS) == 1 and new_file(tmp_path/'next').region is not None and not REGIONS
    REGIONS.clear()


def test_where_no_address_is_given_without_memory_a_batch_goes_through_the_cache(ready, many, monkeypatch, tmp_path):
    "`ulimit -v`, or vm.overcommit_memory=2: the same output, and the same hash."
    def strict(*args, **how): raise OSError(errno.ENOMEM, 'Cannot allocate memory')
    monkeypatch.setattr(direct, 'REGIONS', [])
    monkeypatch.setattr(batch, 'REGIONS', direct.REGIONS)
    monkeypatch.setattr(direct.mmap, 'mmap', strict)
    assert type(new_file(tmp_path/'file')) is CachedFile
    many.to_parquet(tmp_path/'in.parquet')
    report = score_file(ready, tmp_path/'in.parquet', tmp_path/'out', spread=Spread(log=False))
    names = json.loads((tmp_path/'out'/batch.MANIFEST).read_text())['files']
    assert report.rows == 4000 and names == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path/'out').glob('part-*')} != {}
    same_as_in_memory(ready, many, pd.read_parquet([*(tmp_path/'out').glob('part-*')]))


def test_answers_are_never_missing_and_columns_of_the_table_may_be(ready, many, tmp_path):
    "Who appends an output to a table of their own can append next month's, whose columns have gaps."
    many.to_parquet(tmp_path/'in.parquet')
    score_file(ready, tmp_path/'in.parquet', tmp_path/'out', spread=Spread(log=False))
    score_file(ready, tmp_path/'in.parquet', tmp_path/'out.parquet', spread=Spread(log=False))
    schema = pq.read_schema(next((tmp_path/'out').glob('part-*')))
    certain = {f.name for f in schema if not f.nullable}
    assert certain == {'prediction_id', 'at', 'version', 'score', 'decision'} and len(schema) > len(certain)+2
    assert pq.read_schema(tmp_path/'out.parquet').names == schema.names and pq.read_table(tmp_path/'out.parquet').num_rows == 4000


def test_rows_are_stored_in_groups_of_about_the_same_size(ready, many, monkeypatch, tmp_path):
    monkeypatch.setattr(batch, 'GROUP', 1500)
    many.to_parquet(tmp_path/'in.parquet')
    score_file(ready, tmp_path/'in.parquet', tmp_path/'out', spread=Spread(log=False))
    stored = pq.ParquetFile(next((tmp_path/'out').glob('part-*'))).metadata
    assert [stored.row_group(i).num_rows for i in range(stored.num_row_groups)] == [1333, 1333, 1334]
    same_as_in_memory(ready, many, pd.read_parquet([*(tmp_path/'out').glob('part-*')]))
