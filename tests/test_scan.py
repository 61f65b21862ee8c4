"Scanning files: the answer of memory, of pieces, of Delta and of a cluster whose worker dies, is one answer."
import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mlcycle.core import SettingsError
from mlcycle.profile import SAMPLE, profile
from mlcycle.scan import PIECE, pieces, scan


def table(n, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'x': rng.lognormal(0, 3, n), 'k': rng.integers(0, 400, n), 'c': rng.choice(['a', 'b', 'c', None], n, p=[.6, .3, .05, .05]),
                       'day': pd.Timestamp('2026-01-01') + pd.to_timedelta(rng.integers(0, 90, n), unit='D'), 'flag': rng.random(n) < .3,
                       'note': [f'n{"o" * (i % 9)}te {i}' for i in range(n)], 'none': np.nan})
    df['group'] = pd.Categorical(rng.choice(['p', 'q'], n))
    df.loc[rng.random(n) < .02, 'x'] = np.nan
    df.loc[[3, n - 1], 'x'] = np.inf
    return df


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder, df = tmp_path_factory.mktemp('scan'), table(SAMPLE + 40_000)
    cuts = [0, 10, 50_000, 120_000, len(df)]   # uneven files, one of them tiny
    for i, (a, b) in enumerate(zip(cuts, cuts[1:])): df[a:b].to_parquet(folder/f'{i}.parquet', row_group_size=13_000, index=False)
    return folder, df, profile(df)


def test_files_say_what_memory_says(written):
    folder, df, whole = written
    assert scan(folder) == whole
    assert sum(p.rows for p in pieces(folder)) == len(df) and all(p.rows < 2 * PIECE for p in pieces(folder))
    window = scan(folder/'2.parquet', like=whole, columns=['x', 'c', 'note'])
    assert window == profile(df[50_000:120_000], like=whole, columns=['x', 'c', 'note'])


def test_few_rows_and_none(written, tmp_path):
    df = written[1]
    for n in (0, 1, 500):
        df[:n].to_parquet(tmp_path/f'{n}.parquet', index=False)
        assert scan(tmp_path/f'{n}.parquet').body() == profile(pq.read_table(tmp_path/f'{n}.parquet')).body()


def test_a_delta_table_is_scanned_in_its_newest_version(written, tmp_path):
    from deltalake import write_deltalake
    df = written[1][['x', 'k', 'c']]
    for part in (df[:30_000], df[30_000:100_000]): write_deltalake(str(tmp_path/'t'), part.reset_index(drop=True), mode='append')
    like = profile(df)
    assert scan(tmp_path/'t', like=like) == profile(df[:100_000], like=like)


def test_a_cluster_says_the_same_also_when_a_worker_dies(written):
    pytest.importorskip('distributed')
    from distributed import LocalCluster
    folder, _, whole = written
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host='127.0.0.1') as cluster:
        victim = next(iter(cluster.workers.values())).pid
        def kill():
            time.sleep(.3)
            os.kill(victim, signal.SIGKILL)
        thread = threading.Thread(target=kill)
        thread.start()
        assert scan(folder, cluster=cluster.scheduler_address) == whole
        thread.join()
        assert scan(folder, like=whole, cluster=cluster.scheduler_address) == scan(folder, like=whole)


def test_a_window_profiled_by_a_cluster_is_the_window(tmp_path, monkeypatch):
    pytest.importorskip('distributed')
    from distributed import LocalCluster
    from mlcycle import windows
    from mlcycle.core import Project
    from mlcycle.plans import infer_plan
    n, rng = 4000, np.random.default_rng(4)
    at = pd.Timestamp('2026-01-05', tz='UTC')+pd.to_timedelta(np.sort(rng.random(n))*7, unit='D')
    log = pd.DataFrame({'prediction_id': [f'{i:032x}' for i in range(n)], 'at': at.as_unit('us'), 'version': '1', 'score': rng.random(n), 'decision': 1.,
                        'income': np.where(rng.random(n) < .05, np.nan, rng.lognormal(8, .4, n)), 'town': rng.choice(['north', 'south', '?'], n)})
    monkeypatch.setattr(windows, 'SPREAD', 100)
    def seen(name, cluster, *, known=('income', 'town', 'score')):
        (tmp_path/name).mkdir()
        (tmp_path/name/'mlcycle.toml').write_text(f'project = {{name = "x"}}\nproblem = {{task = "binary", target = "y"}}\ndata = {{sources = [{{path = "x.csv"}}]}}\n{cluster}')
        p = Project(tmp_path/name, actor='Ada')
        p.tables.write('predictions', log)
        plan = infer_plan(log[['income', 'town']].assign(y=[0, 1]*(n//2)), p.settings)
        watch = windows.Watch('1', plan, {}, profile(log[list(known)]), {}, '')
        return windows.window_profile(p, watch, log, ('2026-01-05', '2026-01-12'))
    asked = []
    by_cluster = windows._by_cluster
    monkeypatch.setattr(windows, '_by_cluster', lambda *args: asked.append(by_cluster(*args)) or asked[-1])
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host='127.0.0.1') as cluster:
        assert seen('many', f'store = {{cluster = "{cluster.scheduler_address}"}}') == seen('one', '') == asked[0] and len(asked) == 1
        first = seen('first', f'store = {{cluster = "{cluster.scheduler_address}"}}', known=('income', 'town'))   # scores have no reference yet
        assert first == seen('alone', '', known=('income', 'town')) and len(asked) == 2


def test_a_cluster_elsewhere_is_only_asked_over_tls(written):
    for address in ('tcp://192.0.2.1:8786', 'ws://example.org:1'):
        with pytest.raises(SettingsError, match='tls://'): scan(written[0], cluster=address)
    with pytest.raises(SettingsError, match='No Dask scheduler answers'): scan(written[0], cluster='tcp://127.0.0.1:9')
