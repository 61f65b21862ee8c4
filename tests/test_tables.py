"""Tables: what comes back, what is refused, what survives strangers' names, other writers and killed ones."""
import os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from mlcycle.adoption import adopt, numbered, rows_so_far
from mlcycle.core import Blocked, DataError, IntegrityError, MissingEvidence, Project, SettingsError
from mlcycle.content import ORDER, content_hash, stored_names, to_arrow, to_frame
from mlcycle.tables import Snapshot

TOML = 'project = {name = "t"}\nproblem = {task = "binary", target = "y"}\ndata = {sources = [{path = "x.csv"}]}\n'
HOSTILE = ['a b', 'a,b;{c}(d)=e', 'a\nb', 'a\tb', '', '.', 'a.b', '`x`', '"', 'a"b', "a'b", 'a', 'A', 'ä', 'a\u0308', 'x'*500, 'İ', 'i̇',
           '<img src=x onerror=alert(1)>', 'a\x00b', 'index', '__class__', ' ', '  ', '😀', "=cmd|' /C calc'!A0", 'select', '"; drop table x; --', '0', 'a[0]',
           '$.x', 'null', 'a/b', '../x', '%20', ORDER, 'column_ca978112ca1bbdca', '_metadata', 'mlcycle.name', 'version', 'STRASSE', 'straße']


def project_in(folder: Path, more: str='') -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'mlcycle.toml').write_text(TOML+more)
    return Project(folder)


@pytest.fixture
def tables(tmp_path): return project_in(tmp_path).tables


def all_bytes(folder: Path) -> bytes: return b'\n'.join(p.read_bytes() for p in folder.rglob('*') if p.is_file())


# What comes back

def test_kinds_come_back_by_the_rule(tables):
    df = pd.DataFrame({
        'text': pd.Series(['a', None, ''], dtype='str'), 'object': pd.Series(['a', None, 'NA'], dtype=object), 'category': pd.Categorical(['x', None, 'y']),
        'whole': [1, 2, 2**53+1], 'nullable': pd.array([1, None, 2**53+1], dtype='Int64'), 'small': np.array([1, 2, 3], dtype='int8'), 'real': [0.1, np.nan, np.inf],
        'flag': [True, False, True], 'maybe': pd.array([True, None, False], dtype='boolean'), 'mixed': [1, 'a', None], 'huge': [10**23, 1, None],
        'unsigned': np.array([1, 2, 2**64-1], dtype='uint64'), 'nothing': [None, None, None], 'day': pd.to_datetime(['2024-02-29', None, '1815-12-10']),
        'moment': pd.to_datetime(['2024-03-31T01:30:00.123456', '2024-10-27T02:30:00.000000', None]).tz_localize('Europe/Berlin', nonexistent='shift_forward', ambiguous=np.array([True]*3)), 'lists': [[1], [2, 3], None]})
    snapshot = tables.write('train', df)
    back = tables.read(snapshot)
    kinds = back.dtypes.astype(str).to_dict()
    assert kinds == {'text': 'str', 'object': 'str', 'category': 'str', 'whole': 'int64', 'nullable': 'Int64', 'small': 'int64', 'real': 'float64', 'flag': 'bool',
                     'maybe': 'boolean', 'mixed': 'str', 'huge': 'str', 'unsigned': 'str', 'nothing': 'str', 'day': 'datetime64[us]', 'moment': 'datetime64[us, UTC]', 'lists': 'str'}
    assert back['nullable'].tolist()[2] == back['whole'].tolist()[2] == 2**53+1 and back['huge'][0] == '1'+'0'*23 and back['unsigned'][2] == str(2**64-1)
    assert back['text'].tolist()[::2] == ['a', ''] and back['object'][2] == 'NA' and back['category'].isna().tolist() == [False, True, False]
    assert back['real'].isna().tolist() == [False, True, False] and back['real'][2] == np.inf and back['mixed'].tolist()[:2] == ['1', 'a']
    assert (back['moment'].dropna() == df['moment'].dropna()).all() and back['day'].equals(df['day'].astype('datetime64[us]'))
    assert tables.write('train', back) == snapshot      # what came back is the same content


def test_strangers_names_survive_writing_appending_and_time_travel(tables):
    df = pd.DataFrame({name: [i, i+1] for i, name in enumerate(HOSTILE)})
    first = tables.write('train', df)
    second = tables.write('train', df, mode='append')
    tables.write('train', df.iloc[:1, ::-1].assign(**{'new "column"': 'x'}), mode='append')
    assert tables.read(first).equals(df) and tables.read('train').columns.tolist() == [*HOSTILE, 'new "column"']
    assert tables.read('train')[HOSTILE].equals(pd.concat([df, df, df[:1]], ignore_index=True)) and second.rows == 4
    for name in HOSTILE: assert tables.read('train', columns=[name], where=[(name, '=', int(df[name][1]))])[name].tolist() == [int(df[name][1])]*2


def test_stored_names_are_what_delta_readers_take_and_never_meet():
    stored = stored_names(HOSTILE)
    assert len({s.casefold() for s in stored.values()}) == len(HOSTILE) and ORDER not in stored.values()
    assert not any(set(s) & set(' ,;{}()\n\t=`."\'') for s in stored.values())
    assert stored['a'] == 'a' and stored['A'] != 'A' and stored_names(['A'], stored)['A'] == stored['A']


def test_plain_readers_see_plain_names(tables):
    import duckdb
    tables.write('train', pd.DataFrame({'Age': [30, 40], 'sex': ['f', 'm']}))
    files = str(tables.folder('train')/'*.parquet')
    assert duckdb.sql(f"SELECT sex FROM read_parquet('{files}') WHERE Age > 35").fetchall() == [('m',)]


@pytest.mark.parametrize('name', ['../x', 'a/b', 'a\\b', '..', '.', '', 'CON', 'x\0y', 'x'*300, 'a.', 'a ', 'A', '1a', 'ä', 'a-b', "a'; --"])
def test_a_table_name_is_a_plain_word(tables, name):
    for call in (lambda: tables.write(name, pd.DataFrame({'a': [1]})), lambda: tables.read(name), lambda: tables.exists(name), lambda: tables.drop(name)):
        with pytest.raises(SettingsError, match='cannot name a table'): call()
    assert sorted(p.name for p in tables.project.folder.rglob('*')) == ['mlcycle.toml']


def test_what_is_no_table_is_refused(tables):
    for df, said in ((pd.DataFrame([[1, 2]], columns=['a', 'a']), "came 'a' at position 2"), (pd.DataFrame({0: [1]}), 'came 0 at position 1'),
                     (pd.DataFrame({'a': pd.Series(['\ud800'], dtype=object)}), "'a'.*not valid Unicode"),
                     (pd.DataFrame([[1]], columns=pd.Index(['\ud800'], dtype=object)), 'not valid Unicode'), (pd.DataFrame(), 'at least one column')):
        with pytest.raises(DataError, match=said): tables.write('train', df)
    assert not tables.exists('train')


def test_empty_wide_and_single_column_tables(tables):
    empty = tables.write('train', pd.DataFrame({'a': pd.Series([], dtype='float64'), 'b': pd.Series([], dtype='str')}))
    assert empty.rows == 0 and tables.read(empty).dtypes.astype(str).tolist() == ['float64', 'str']
    assert tables.write('train', pd.DataFrame({'a': [1.5], 'b': ['x']}), mode='append').rows == 1
    wide = pd.DataFrame(np.arange(3000).reshape(2, 1500), columns=[f'c {i}' for i in range(1500)])
    assert tables.read(tables.write('test', wide)).equals(wide)


cells = st.one_of(st.none(), st.text(max_size=5), st.integers(-2**70, 2**70), st.floats(), st.booleans(), st.dates())

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=6).filter(lambda s: s.isprintable()), st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=4))
def test_content_is_the_same_after_the_way_to_pandas_and_back(made):
    there = to_arrow(pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in made.items()}))
    assert content_hash(to_arrow(to_frame(there))) == content_hash(there)
    assert content_hash(pa.concat_tables([there[:1], there[1:]])) == content_hash(there)


def test_the_hash_sees_each_difference():
    df = pd.DataFrame({'a': ['x', 'y', None], 'b': [1.0, 2.0, np.nan]})
    variants = [df, df[::-1], df[['b', 'a']], df.rename(columns={'a': 'c'}), df.fillna({'a': ''}), df.fillna({'b': 0.0}), df[:2], df.assign(b=['1', '2', None]),
                df.assign(a=['xy', '', None]), df.assign(a=['x', None, 'y']), df.assign(b=pd.array([1, 2, None], dtype='Int64'))]
    assert len({content_hash(to_arrow(v)) for v in variants}) == len(variants)


def test_real_bookings_come_back_as_they_went(tables, data_dir):
    df = pd.read_csv(next((data_dir/'hotel_bookings_h1').glob('*.csv*')), low_memory=False)
    snapshot = tables.write('data', df)
    back = tables.read(snapshot)
    pd.testing.assert_frame_equal(back, df, check_dtype=False)
    assert tables.write('data', back) == snapshot


# Conditions and deletion

def test_conditions_are_data(tables):
    words = ["'", '"', "' OR '1'='1", '\\', '%', '_', '\n', "x'); DROP TABLE y; --", '😀', '']
    tables.write('live', pd.DataFrame({'"w" = 1 OR': words, 'n': range(len(words))}))
    for i, word in enumerate(words): assert tables.read('live', where=[('"w" = 1 OR', '=', word)])['n'].tolist() == [i]
    assert tables.delete('live', [('"w" = 1 OR', 'in', words[2:5])]) == 3
    assert tables.read('live')['n'].tolist() == [0, 1, 5, 6, 7, 8, 9] and tables.delete('live', [('n', '>', 99)]) == 0
    assert tables.delete('live', [('n', '>=', 0)]) == 7 and len(tables.read('live')) == 0


def test_missing_values_fulfil_no_condition(tables):
    tables.write('live', pd.DataFrame({'a': [1.0, None, 3.0], 'n': [0, 1, 2]}))
    for operator, expected in (('=', [0]), ('!=', [2]), ('<', []), ('<=', [0]), ('>', [2]), ('>=', [0, 2])):
        assert tables.read('live', where=[('a', operator, 1)])['n'].tolist() == expected, operator
    assert tables.delete('live', [('a', '!=', 1)]) == 1 and tables.read('live')['n'].tolist() == [0, 1]   # the missing one stays


def test_times_are_compared_in_utc(tables):
    at = pd.to_datetime(['2024-01-01T00:00:00Z', '2024-01-02T00:00:00Z'])
    tables.write('live', pd.DataFrame({'at': at, 'naive': at.tz_localize(None)}))
    for value in ('2024-01-01T12:00', pd.Timestamp('2024-01-01T13:00', tz='Europe/Berlin'), pd.Timestamp('2024-01-01T12:00').to_pydatetime()):
        for column in ('at', 'naive'): assert len(tables.read('live', where=[(column, '<', value)])) == 1
    assert len(tables.read('live', where=[('at', 'in', ['2024-01-02', '2030-01-01'])])) == 1


@pytest.mark.parametrize('where, error, said', [
    ([('agee', '=', 1)], DataError, "No column 'agee'"), ([('n', 'like', 1)], SettingsError, "No operator 'like'"), ([('n', '=', 'x')], DataError, 'cannot be compared'),
    ([('at', '<', 'yesterday-ish')], DataError, 'cannot be compared'), ([('n', 'in', ['x'])], DataError, 'cannot be compared'), ([], SettingsError, 'needs a condition')])
def test_a_wrong_condition_deletes_nothing(tables, where, error, said):
    tables.write('live', pd.DataFrame({'n': [1, 2], 'at': pd.to_datetime(['2024-01-01', '2024-01-02'])}))
    with pytest.raises(error, match=said): tables.delete('live', where)
    assert len(tables.read('live')) == 2


def test_deleted_rows_leave_no_byte(tables):
    for part in range(3): tables.write('live', pd.DataFrame({'who': [f'CANARY{part}-{i}' for i in range(5)], 'n': range(5)}), mode='append')
    (tables.folder('live')/'part-00000-cut.snappy.parquet').write_bytes(b'CANARY0-0 of a killed writer')
    (tables.folder('live')/'part-00000-staged.snappy.parquet#1').write_bytes(b'CANARY0-0 of a killed writer')
    assert tables.delete('live', [('who', 'in', [f'CANARY0-{i}' for i in range(5)])]) == 5
    tables.vacuum('live')
    assert b'CANARY0' not in all_bytes(tables.project.folder) and b'CANARY1' in all_bytes(tables.project.folder)
    assert len(tables.read('live')) == 10 and tables.snapshot('live').rows == 10


def test_vacuum_with_hours_keeps_what_is_young(tables):
    first = tables.write('train', pd.DataFrame({'a': [1]}))
    tables.write('train', pd.DataFrame({'a': [2]}))
    assert tables.vacuum('train', hours=24) == [] and tables.read(first)['a'].tolist() == [1]
    again = tables.write('train', pd.DataFrame({'a': [2]}))
    assert again.version == 1                                  # a vacuum is not a change of content
    tables.vacuum('train')
    with pytest.raises(IntegrityError, match='train'): tables.read(first)


def test_a_snapshot_outlives_checkpoints_and_the_cleaning_of_the_log(tables):
    from deltalake import DeltaTable
    first = tables.write('live', pd.DataFrame({'a': [0]}))
    for i in range(5): tables.write('live', pd.DataFrame({'a': [i+1]}), mode='append')
    old = time.time()-400*86400
    for file in (tables.folder('live')/'_delta_log').glob('*.json'): os.utime(file, (old, old))
    for _ in range(2):
        DeltaTable(tables.uri('live')).create_checkpoint()
        DeltaTable(tables.uri('live')).cleanup_metadata()
        tables.write('live', pd.DataFrame({'a': [9]}), mode='append')
    assert tables.read(first)['a'].tolist() == [0] and tables.read('live')['a'].tolist() == [0, 1, 2, 3, 4, 5, 9, 9]


# Appending

@pytest.mark.parametrize('kind, first, then', [('whole', [1], [1.5]), ('text', ['7'], [7]), ('whole', [7], ['7']), ('flag', [True], [7]), ('whole', [1], [True]),
                                              ('time', pd.to_datetime(['2024-01-01']), ['2024-01-01']), ('real', [0.5], [2**60+1])])
def test_a_value_of_another_kind_is_not_appended(tables, kind, first, then):
    tables.write('live', pd.DataFrame({'x': first}))
    with pytest.raises(DataError, match="Column 'x' of table 'live'"): tables.write('live', pd.DataFrame({'x': then}), mode='append')
    assert len(tables.read('live')) == 1


def test_what_fits_is_appended(tables):
    tables.write('live', pd.DataFrame({'real': [0.5], 'whole': [1], 'text': ['a']}))
    tables.write('live', pd.DataFrame({'real': [2], 'whole': [3.0], 'text': pd.Categorical(['b'])}), mode='append')
    tables.write('live', pd.DataFrame({'real': [None], 'whole': [None], 'text': [None]}), mode='append')
    back = tables.read('live')
    assert back.dtypes.astype(str).tolist() == ['float64', 'Int64', 'str'] and back['whole'].tolist()[:2] == [1, 3] and back.isna().sum().tolist() == [1, 1, 1]


def test_missing_table_mode_and_empty_hash_are_named(tables):
    with pytest.raises(MissingEvidence, match='mlcycle run data'): tables.read('train')
    with pytest.raises(SettingsError, match='No mode'): tables.write('train', pd.DataFrame({'a': [1]}), mode='replace')
    tables.write('live', pd.DataFrame({'a': [1]}))
    with pytest.raises(SettingsError, match='tables.snapshot'): tables.read(tables.write('live', pd.DataFrame({'a': [1]}), mode='append'))
    with pytest.raises(DataError, match="No column 'b'"): tables.read('live', columns=['b'])
    with pytest.raises(IntegrityError, match='Version 9'): tables.read(Snapshot(table='live', version=9, rows=1, columns=['a'], hash='0'*64))


def test_read_only_projects_write_nothing(tables):
    tables.write('live', pd.DataFrame({'a': [1]}))
    closed = Project(tables.project.folder, read_only=True).tables
    before = sorted(tables.project.folder.rglob('*'))
    for call in (lambda: closed.write('live', pd.DataFrame({'a': [2]})), lambda: closed.delete('live', [('a', '=', 1)]), lambda: closed.vacuum('live'), lambda: closed.drop('live')):
        with pytest.raises(Blocked): call()
    assert closed.read('live')['a'].tolist() == [1] and sorted(tables.project.folder.rglob('*')) == before


# Places

def test_a_project_with_an_odd_name_works_and_moves(tmp_path):
    odd = project_in(tmp_path/'a b\'"é😀&;=+,@!~*()%')
    snapshot = odd.tables.write('train', pd.DataFrame({'a': ['x', 'y']}))
    odd.tables.write('live', pd.DataFrame({'a': [1]}))
    odd.tables.write('live', pd.DataFrame({'a': [2]}), mode='append')
    assert str(tmp_path).encode() not in all_bytes(odd.store)
    shutil.move(odd.folder, tmp_path/'moved')
    moved = Project(tmp_path/'moved').tables
    assert moved.read(snapshot)['a'].tolist() == ['x', 'y'] and moved.delete('live', [('a', '=', 1)]) == 1
    moved.vacuum('live')
    assert moved.read('live')['a'].tolist() == [2] and moved.write('train', pd.DataFrame({'a': ['x', 'y']})) == snapshot


@pytest.mark.parametrize('name', ['a[1]', 'a\\b', '100%20', 'a|b', 'a{b}', 'a#b', 'a?b'])
def test_a_folder_that_the_library_cannot_open_is_named(tmp_path, name):
    with pytest.raises(SettingsError, match='Rename the folder'): project_in(tmp_path/name).tables.write('train', pd.DataFrame({'a': [1]}))


@pytest.mark.parametrize('form', ['elsewhere/tables', '{tmp}/els e where', 'file://{tmp}/els%20e'])
def test_tables_lie_where_the_settings_say(tmp_path, form):
    tables = project_in(tmp_path/'p', f'store = {{tables = "{form.format(tmp=tmp_path)}"}}\n').tables
    snapshot = tables.write('train', pd.DataFrame({'a': [1, 2]}))
    assert tables.read(snapshot)['a'].tolist() == [1, 2] and not (tmp_path/'p/store/tables').exists()
    assert tables.folder('train').is_dir() and {'elsewhere/tables': tmp_path/'p/elsewhere'}.get(form, tmp_path) in tables.folder('train').parents


def test_an_object_store_is_addressed_by_its_url(tmp_path):
    tables = project_in(tmp_path, 'store = {tables = "s3://bucket/churn/"}\n').tables
    assert tables.uri('train') == 's3://bucket/churn/train' and tables.folder('train') is None


# Damage and other writers

def test_every_flipped_bit_is_found_or_harmless(tables):
    df = pd.DataFrame({'who': [f'person {i}' for i in range(40)], 'n': np.arange(40.0)})
    snapshot = tables.write('train', df)
    (file,) = tables.folder('train').glob('*.parquet')
    whole, rng, found = file.read_bytes(), random.Random(0), 0
    for _ in range(120):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(content))
        try: assert tables.read(snapshot).equals(df)
        except IntegrityError: found += 1
    assert found > 60
    file.write_bytes(whole[:-10])
    with pytest.raises(IntegrityError, match='train'): tables.read('train')
    assert tables.write('train', df).version == 1 and tables.read('train').equals(df)     # writing again heals


@pytest.mark.parametrize('content', [b'', b'not json\n', b'{"add":', b'{}\n', b'\x00'*50])
def test_a_damaged_log_is_an_error_of_ours(tables, content):
    snapshot = tables.write('train', pd.DataFrame({'a': [1]}))
    (tables.folder('train')/'_delta_log'/f'{0:020}.json').write_bytes(content)
    for call in (lambda: tables.read('train'), lambda: tables.read(snapshot)):
        with pytest.raises((IntegrityError, MissingEvidence)): call()


def test_a_full_disk_changes_nothing(tables, monkeypatch):
    import deltalake
    tables.write('train', pd.DataFrame({'a': [1]}))
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(deltalake, 'write_deltalake', full)
    with pytest.raises(DataError, match='No space left'): tables.write('train', pd.DataFrame({'a': [2]}))
    monkeypatch.undo()
    assert tables.read('train')['a'].tolist() == [1] and tables.write('train', pd.DataFrame({'a': [2]})).version == 1


WRITER = '''
import sys, pandas as pd
from mlcycle.core import Project
tables = Project(sys.argv[1]).tables
for i in range(int(sys.argv[3])):
    tables.write('live', pd.DataFrame({'who': [sys.argv[2]]*2, 'n': [2*i, 2*i+1]}), mode='append')
    print(i, flush=True)
'''

def writer(folder: Path, who: str, times: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', WRITER, str(folder), who, str(times)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_writers_and_a_deleter_lose_nothing(tables):
    tables.write('live', pd.DataFrame({'who': ['old']*5, 'n': range(5)}))
    both = [writer(tables.project.folder, who, 25) for who in 'ab']
    while any(p.poll() is None for p in both):
        tables.delete('live', [('who', '=', 'old'), ('n', '=', int(time.time()*1000) % 5)])
        time.sleep(.05)
    for p in both: assert p.wait() == 0, p.stderr.read()
    back = tables.read('live')
    for who in 'ab': assert back.loc[back['who'] == who, 'n'].tolist() == list(range(50))     # all of them, in order


def test_killed_writers_leave_whole_commits(tables):
    rng, told = random.Random(1), 0
    for round in range(4):
        process = writer(tables.project.folder, str(round), 400)
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 6))]
        time.sleep(rng.random()*.03)
        process.send_signal(signal.SIGKILL)
        lines += process.communicate()[0].splitlines()
        acknowledged = [int(line) for line in lines if line.strip()]
        told += len(acknowledged)
        mine = tables.read('live', where=[('who', '=', str(round))])['n'].tolist()
        assert mine == list(range(len(mine))) and len(mine) % 2 == 0 and len(mine) >= 2*(max(acknowledged)+1)
    tables.vacuum('live')
    assert told and {p.suffix for p in tables.folder('live').iterdir() if p.is_file()} == {'.parquet'}


def test_reading_ends_without_an_abort(tables):
    "Arrow over a file system written in Python aborts every tenth process at its end."
    for i in range(12): tables.write('live', pd.DataFrame({'a': [i]}), mode='append')
    code = 'import sys; from mlcycle.core import Project; print(len(Project(sys.argv[1]).tables.read("live")))'
    runs = [subprocess.Popen([sys.executable, '-c', code, str(tables.project.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    assert [p.wait() for p in runs] == [0]*3


# Files that become a table's as they are

def waiting_files(folder: Path, start: int, table: pa.Table, n: int=3) -> list[Path]:
    folder.mkdir()
    files = [folder/f'{i}.parquet' for i in range(n)]
    for i, file in enumerate(files): pq.write_table(numbered(table, start+i*len(table)), file)
    return files


def test_files_adopted_after_a_crash_are_there_once(tables, tmp_path, monkeypatch):
    from deltalake import DeltaTable
    rows = pa.table({'n': [1, 2], 'town': ['Bonn', None]})
    tables.write('live', pd.DataFrame({'n': [0], 'town': ['Ulm']}))
    files = waiting_files(tmp_path/'a', rows_so_far(tables.project, 'live'), rows)
    def full(*arguments, **more): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(DeltaTable, 'create_write_transaction', full)
    with pytest.raises(OSError): adopt(tables.project, 'live', files, start=1, mark='job')
    assert len(tables.read('live')) == 1
    monkeypatch.undo()
    tables.vacuum('live')     # what the crash left beside the table goes, the files themselves stay
    assert adopt(tables.project, 'live', files, start=1, mark='job') and not adopt(tables.project, 'live', files, start=1, mark='job')
    for file in files: file.unlink()
    assert tables.read('live')['n'].tolist() == [0, 1, 2, 1, 2, 1, 2] and tables.snapshot('live').rows == 7
    tables.write('live', pd.DataFrame({'n': [9], 'town': ['Kiel']}), mode='append')
    assert tables.compact('live', files=2) and tables.read('live')['n'].tolist() == [0, 1, 2, 1, 2, 1, 2, 9]


@pytest.mark.parametrize('table', [pa.table({'n': ['one'], 'town': ['Bonn']}), pa.table({'n': [1], 'TOWN': ['Bonn'], 'a\n"b': [2.5]})], ids=['another type', 'names'])
def test_files_of_another_form_are_read_or_refused(tables, tmp_path, table):
    tables.write('live', pd.DataFrame({'n': [0], 'town': ['Ulm']}))
    files = waiting_files(tmp_path/'a', 1, table, n=1)
    if 'town' not in table.column_names:
        assert adopt(tables.project, 'live', files, start=1, mark='job') and tables.read('live').iloc[1].drop('town').tolist() == [1, 'Bonn', 2.5]
        return
    with pytest.raises(DataError, match="Column 'n' of table 'live' holds int64"): adopt(tables.project, 'live', files, start=1, mark='job')
    assert tables.read('live')['n'].tolist() == [0]
