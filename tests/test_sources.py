"""The strict reader: encodings, records, types, formats, declared sources, and what it refuses."""
import gzip, io, sqlite3, subprocess, sys, time, zipfile
import numpy as np
import pandas as pd
import pytest
from mlcycle.core import DataError, Project, SettingsError
from mlcycle.origins import mask_url, without_secrets
from mlcycle.sources import check_columns, load, read_file, read_source, source_digest

HTML, FORMULA = '<img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0"


def project(folder, data: str, target: str = 'y', task: str = 'binary') -> Project:
    (folder/'mlcycle.toml').write_text(f'[project]\nname = "t"\n[problem]\ntask = "{task}"\ntarget = '
                                       f'"{target}"\n[data]\n{data}\n')
    return Project(folder)


def refused(content, *words, **options):
    with pytest.raises((DataError, SettingsError)) as error: read_file(content, **options)
    for word in words: assert word in str(error.value), str(error.value)
    assert len(str(error.value).splitlines()) <= 10


# --- records and names -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('content, line, got', [(b'a,b\n1,2,3\n4,5', 'line 2', 'got 3'),
                                                (b'a,b\n1,2\n4,5,6', 'line 3', 'got 3'),
                                                (b'a,b\n1,2\n4\n', 'line 3', 'got 1'),
                                                (b'a,b\n1,"x\ny"\n"z",2,3', 'line 4', 'got 3'),
                                                (b'a;b\n1;2\n1;2;3', 'line 3', 'got 3'),
                                                (b'a,b\r1,2\r1,2,3\r', 'line 3', 'got 3')])
def test_ragged_records_are_named_by_line(content, line, got):
    refused(content, line, 'expected 2', got)

def test_a_ragged_record_at_the_end_of_a_long_file():
    refused(b'a,b\n'+b'1,2\n'*200_000+b'1,2,3\n', 'line 200,002', 'got 3')

def test_names_twice_empty_or_odd():
    refused(b'a,a,a\n1,2,3', "'a' appears 3 times")
    refused(b'a,,b\n1,2,3', 'column 2 has no name')
    for names in (['0', '1', '2'], ['index', '__class__', ' '], ['a\nb', 'target', 'x'*500],
                  [HTML, FORMULA, '"; drop table runs; --']):
        df, reading = read_file(pd.DataFrame([[1, 2, 3], [4, 5, 6]],
                                             columns=names).to_csv(index=False).encode())
        assert list(df.columns) == names and df.iloc[1].tolist() == [4, 5, 6]
    assert {'name'} == {f.kind for f in reading.findings} and '<img' not in reading._repr_html_()

def test_five_thousand_columns():
    names = [f'c{i}' for i in range(5000)]
    df, _ = read_file((','.join(names)+'\n'+','.join(['x']*5000)+'\n'+','.join(['y']*5000)+'\n').encode())
    assert df.shape == (2, 5000) and list(df.columns) == names

@pytest.mark.parametrize('content, word', [(b'', 'empty'), (b'  \n\n', 'empty'), (b'a,b\n', 'no rows'),
                                           (b'a,b', 'no rows')])
def test_empty_and_header_only(tmp_path, content, word):
    (tmp_path/'sales.csv').write_bytes(content)
    refused(tmp_path/'sales.csv', 'sales.csv', word)
    with pytest.raises(DataError, match='sales.csv'):
        load(project(tmp_path, 'sources = [{path = "sales.csv"}]'))

def test_one_row_is_a_finding_for_a_file_and_an_error_for_a_project(tmp_path):
    (tmp_path/'sales.csv').write_text('a,y\n1,2\n')
    df, reading = read_file(tmp_path/'sales.csv')
    assert len(df) == 1 and 'rows' in {f.kind for f in reading.findings}
    with pytest.raises(DataError, match='one row only'):
        load(project(tmp_path, 'sources = [{path = "sales.csv"}]'))

def test_quotes_over_lines_crlf_cr_and_a_single_column():
    assert read_file(b'a,b\r\n"x\r\ny",1\r\nz,2\r\n')[0]['a'].tolist() == ['x\r\ny', 'z']
    assert read_file(b'a,b\r1,x\r2,y\r')[0]['a'].tolist() == [1, 2]
    one = read_file(b'a\n1\n\n3\n')[0]['a']
    assert one.isna().tolist() == [False, True, False]
    refused(b'a,b\n"x"y,2\n', 'line 2')
    refused(b'a,b\n1,"never closed\n', 'line 2')


# --- encodings ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32',
                                      'cp1252', 'latin-1'])
def test_encodings_are_found(encoding):
    df, reading = read_file('größe,ort\n1,Köln\n2,Århus\n'.encode(encoding))
    assert list(df.columns) == ['größe', 'ort'] and df.ort.tolist() == ['Köln', 'Århus']

def test_an_invalid_byte_is_named_by_line_and_offset():
    good = 'é,1\n'.encode()*90_000
    refused(b'a,b\n'+good+b'caf\xe9,1\n', 'utf-8', 'line 90,002', f'byte offset {4+len(good)+3:,}')
    df, reading = read_file(b'a,b\n'+b'x,1\n'*90_000+b'caf\xe9,1\n')
    finding = next(f for f in reading.findings if f.kind == 'encoding')
    assert df.a.iloc[-1] == 'café' and 'line 90,002' in finding.text
    refused(b'a,b\nx,1\n\x81,2\n', 'line 3')
    refused('a,b\nñ,1\n'.encode('latin-1'), 'line 2', encoding='utf-8')
    refused(b'a,b\n1,2\n', 'no encoding', encoding='klingon')

def test_binary_rubbish_is_no_text():
    refused(bytes(range(256))*20, 'not a text file')


# --- types -------------------------------------------------------------------------------------------------------------------------

def column(*cells, **options):
    df, reading = read_file(('x,y\n'+''.join(f'{c},1\n' for c in cells)).encode(), **options)
    return df.x, reading

def test_na_in_text_is_counted_not_lost():
    cells = ['NA', 'null', 'None', 'nan', '', 'DE']
    values, reading = column(*cells)
    assert values[:4].tolist() == cells[:4] and values.isna().tolist() == [False]*4+[True, False]
    assert [f.count for f in reading.findings if f.kind == 'possible missing'] == [4]
    values, reading = column(*cells, missing=['NA', 'null', 'None', 'nan'])
    assert values.isna().sum() == 5
    assert reading.conversions[0].tokens == {'NA': 1, 'null': 1, 'None': 1, 'nan': 1}
    values, _ = column(*cells, missing=['NA', 'null', 'None', 'nan'], text=['x'])
    assert values[:4].tolist() == cells[:4] and values.isna().sum() == 1

@pytest.mark.parametrize('cells', [['00123', '99'], ['12345678901234567890123', '1'],
                                   ['9007199254740993', '2'], ['1e5', '12'], ['+4917012345678', '5']])
def test_identifiers_stay_as_they_are(cells):
    assert column(*cells)[0].tolist() == cells

def test_numbers_with_strangers_at_the_end_are_decided_on_all_rows():
    many = ['1.5']*50_000
    values, reading = column(*many, 'Infinity', '-inf', '1e999', 'NaN', '—')
    assert values.dtype == float and values.isna().sum() == 5
    found = {f.kind: f for f in reading.findings}
    assert found['infinite'].count == 3
    assert found['infinite'].rows == [50_001, 50_002, 50_003]
    assert found['missing token'].rows == [50_004, 50_005]
    values, reading = column(*many, 'abc')
    assert pd.api.types.is_string_dtype(values)
    assert [f.rows for f in reading.findings if f.kind == 'mixed types'] == [[50_001]]

def test_separator_and_decimal_comma_are_found_and_said():
    df, reading = read_file('plz;preis;menge\n01067;1.234,56;3\n80331;0,5;1.000\n'.encode())
    assert (reading.separator, reading.decimal) == (';', ',')
    assert 'dialect' in {f.kind for f in reading.findings}
    assert df.preis.tolist() == [1234.56, 0.5]
    assert df.menge.tolist() == [3, 1000]
    assert df.plz.tolist() == ['01067', '80331']
    df, reading = read_file(b'a\tb\n1.5\t"1,234"\n2.5\t"12,000"\n')
    assert df.b.tolist() == ['1,234', '12,000'] and 'comma' in {f.kind for f in reading.findings}
    assert read_file(b'a\tb\n1.5\t"1,234,567"\n2.5\t"12,000"\n')[0].b.tolist() == [1234567, 12000]
    assert read_file(b'a|b\n1|2\n')[1].separator == '|'

def test_dates():
    assert column('2024-05-31', '2024-06-01')[0].dtype.kind == 'M'
    assert column('2024-05-31T10:00:00+02:00', '2024-05-31T08:00:00Z')[0].dt.hour.tolist() == [8, 8]
    for cells in (['2024-02-30', '2024-03-01'], ['02/03/2024', '03/04/2024'],
                  ['2024-05-31 10:00Z', '2024-05-31 10:00']):
        values, reading = column(*cells)
        assert values.tolist() == cells
    values, reading = column('2024-05-31', 'NULL', '')
    assert values.isna().tolist() == [False, True, True] and reading.conversions[0].tokens == {'NULL': 1}

def test_declared_dates(tmp_path):
    def read(*cells, kind='date'):
        (tmp_path/'d.csv').write_text('x,y\n'+''.join(f'{c},1\n' for c in cells))
        return read_source(project(tmp_path, f'sources = [{{path = "d.csv"}}]\ntypes = {{x = "{kind}"}}'),
                           'data')[0].x
    assert read('31/12/2024', '02/03/2024').dt.month.tolist() == [12, 3]
    assert read('12/31/2024', '02/03/2024').dt.month.tolist() == [12, 2]
    assert read('20240531', '20240601').dt.day.tolist() == [31, 1]
    assert read('1717142400', '1717142401').dt.year.tolist() == [2024, 2024]
    assert read('1717142400000', '1717142400001').dt.year.tolist() == [2024, 2024]
    for cells in (['02/03/2024', '03/04/2024'], ['soon', '2024-01-01'], ['30.02.2024', '01.03.2024'],
                  ['1717142400', '1717142400000']):
        with pytest.raises(DataError, match="'x' is declared a date"): read(*cells)
    with pytest.raises(DataError, match="'x' is declared a number"): read('1', 'abc', kind='number')
    assert read('007', '8', kind='category').tolist() == ['007', '8']

def test_the_id_stays_text_and_a_refused_token_stays(tmp_path):
    (tmp_path/'d.csv').write_text('id,y\n1,2\n2,3\n')
    assert load(project(tmp_path, 'sources = [{path = "d.csv"}]\nid = "id"'))[0].id.tolist() == ['1', '2']


# --- formats -----------------------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({'n': [1, 2, 3], 'f': [1.5, np.nan, 2.5], 't': ['00123', 'NA', None],
                      'd': pd.to_datetime(['2024-01-01']*3), 'b': [True, False, True]})

def test_parquet_round_trip_damaged_and_misnamed(tmp_path):
    buffer = io.BytesIO()
    FRAME.assign(n=[5, 1, 3]).set_index('n').to_parquet(buffer)
    content = buffer.getvalue()
    df, reading = read_file(content)
    assert set(df.columns) == {'n', 'f', 't', 'd', 'b'}
    assert isinstance(df.index, pd.RangeIndex)
    assert df.t.tolist()[:2] == ['00123', 'NA']
    for bad in (content[:-10], content[:len(content)//2], content[:-400]+bytes(392)+content[-8:],
                content[:40]):
        (tmp_path/'x.parquet').write_bytes(bad)
        refused(tmp_path/'x.parquet', 'x.parquet')
    (tmp_path/'y.parquet').write_text('a,b\n1,2\n'); refused(tmp_path/'y.parquet', 'y.parquet', 'parquet')
    (tmp_path/'z.csv').write_bytes(content); refused(tmp_path/'z.csv', 'z.csv', 'holds parquet')

def test_parquet_types_that_do_not_fit_a_cell():
    buffer = io.BytesIO(); pd.DataFrame({'a': [[1], [2]]}).to_parquet(buffer)
    refused(buffer.getvalue(), "'a'", 'list')
    buffer = io.BytesIO()
    pd.DataFrame({'a': pd.array([2**60+1, None], dtype='Int64'), 'b': pd.Categorical(['x', 'y']),
                  'c': pd.to_datetime(['2024-01-01']*2, utc=True)}).to_parquet(buffer)
    df, _ = read_file(buffer.getvalue())
    assert df.a.iloc[0] == str(2**60+1)
    assert df.b.tolist() == ['x', 'y']
    assert str(df.c.dtype) == 'datetime64[us]'

def test_json_lines():
    df, _ = read_file(b'{"a": 1, "b": "007"}\n\n{"a": 2.5, "c": null}\n')
    assert df.a.tolist() == [1, 2.5] and df.b.tolist()[0] == '007' and df.c.isna().all()
    assert read_file(b'[{"a": 1}, {"a": 2}]')[0].a.tolist() == [1, 2]
    df, reading = read_file(b'{"a": 1}\n{"a": "x"}\n{"a": 2}\n{"a": NaN}\n')
    assert 'mixed types' in {f.kind for f in reading.findings}
    for bad, word in ((b'{"a": 1}\n{"a": ', 'line 2'), (b'{"a": 1}\n[1]\n', 'line 2'),
                      (b'{"a": [1]}\n', "'a'"), (b'{"a": 1, "a": 2}\n', 'twice'),
                      (b'['*100_000, 'not JSON')): refused(bad, word, format='jsonl')
    df, _ = read_file(b'{"a": 9007199254740993}\n{"a": 123456789012345678901234}\n', format='jsonl')
    assert df.a.tolist() == ['9007199254740993', '123456789012345678901234']

def test_excel_round_trip_sheets_and_damage(tmp_path):
    import openpyxl
    book = openpyxl.Workbook(); sheet = book.active; sheet.title = 'first'
    for row in (['code', 'n', 'when'], ['00123', 1, pd.Timestamp('2024-01-01').to_pydatetime()],
                ['NA', 2.5, None], [None, None, None], ['x', '#N/A', None]):
        sheet.append(row)
    book.create_sheet('second').append(['a', None, 'b'])
    book.save(tmp_path/'x.xlsx')
    df, reading = read_file(tmp_path/'x.xlsx')
    assert df.code.tolist() == ['00123', 'NA', 'x']
    assert df.n.tolist()[:2] == [1, 2.5]
    assert df.n.isna().sum() == 1
    assert df.when.dtype.kind == 'M'
    assert {'sheet', 'missing token'} <= {f.kind for f in reading.findings}
    refused(tmp_path/'x.xlsx', 'no name', sheet='second')
    refused(tmp_path/'x.xlsx', 'no sheet', 'first', sheet='third')
    (tmp_path/'y.xlsx').write_bytes((tmp_path/'x.xlsx').read_bytes()[:-200])
    refused(tmp_path/'y.xlsx', 'y.xlsx')
    with zipfile.ZipFile(tmp_path/'x.xlsx') as old, zipfile.ZipFile(tmp_path/'bad.xlsx', 'w') as new:
        for m in old.namelist(): new.writestr(m, old.read(m)[:-40] if 'sheet1' in m else old.read(m))
    refused(tmp_path/'bad.xlsx', 'bad.xlsx', 'damaged')
    book = openpyxl.Workbook()
    book.active.append(['a', 'b'])
    book.active.append(['=1+1', 2])
    book.save(tmp_path/'z.xlsx')
    assert 'formula' in {f.kind for f in read_file(tmp_path/'z.xlsx')[1].findings}

def test_archives(tmp_path):
    (tmp_path/'a.csv.gz').write_bytes(gzip.compress(b'a,b\n1,2\n'))
    assert read_file(tmp_path/'a.csv.gz')[0].a.tolist() == [1]
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('../../evil.csv', 'a,b\n1,2\n')
    assert read_file(tmp_path/'a.zip')[0].b.tolist() == [2] and not list(tmp_path.parent.glob('evil*'))
    with zipfile.ZipFile(tmp_path/'two.zip', 'w') as z:
        z.writestr('a.csv', 'a\n1\n'); z.writestr('b.csv', 'a\n1\n')
    refused(tmp_path/'two.zip', '2 files')
    (tmp_path/'cut.csv.gz').write_bytes(gzip.compress(b'a,b\n1,2\n'*1000)[:-12])
    refused(tmp_path/'cut.csv.gz', 'damaged')
    (tmp_path/'bomb.csv.gz').write_bytes(gzip.compress(bytes(80*2**20), 1))
    refused(tmp_path/'bomb.csv.gz', 'grows from')


# --- declared sources --------------------------------------------------------------------------------------------------------------

def test_nothing_is_fetched_that_is_not_declared(tmp_path, monkeypatch):
    import socket
    monkeypatch.setattr(socket.socket, 'connect', lambda *a: pytest.fail('a socket was opened'))
    for path in ('http://169.254.169.254/x', 'file:///etc/passwd', 's3://bucket/x.csv'):
        refused(path, 'Declare it')
        with pytest.raises(SettingsError, match='URL, not a path'):
            load(project(tmp_path, f'sources = [{{path = "{path}"}}]'))
    with pytest.raises(DataError, match='No file'):
        load(project(tmp_path, 'sources = [{path = "../nowhere.csv"}]'))

def test_a_declared_url_is_read_and_its_secrets_are_not_shown(tmp_path):
    (tmp_path/'a.csv').write_text('a,y\n1,2\n3,4\n')
    assert len(load(project(tmp_path, f'sources = [{{url = "file://{tmp_path}/a.csv"}}]'))[0]) == 2
    with pytest.raises(SettingsError, match='scheme'): load(project(tmp_path, 'sources = [{url = "a.csv"}]'))
    with pytest.raises((DataError, SettingsError)) as error:
        load(project(tmp_path, 'sources = [{url = "http://u:hunter2@127.0.0.1:9/x.csv?sig=topsecret"}]'))
    assert 'hunter2' not in str(error.value)
    assert 'topsecret' not in str(error.value)
    assert '***' in str(error.value)

def test_masking():
    masked = mask_url('postgresql+psycopg://reader:a:b@c@db:5432/x?password=zz')
    assert masked == 'postgresql+psycopg://reader:***@db:5432/x?password=***'
    assert mask_url('https://example.org/a.csv') == 'https://example.org/a.csv'
    assert 's3cret' not in without_secrets(ValueError('login s3cret failed for postgresql://u:s3cret@h/d'),
                                           'postgresql://u:s3cret@h/d')
    assert 'p@ss' not in without_secrets(ValueError('bad password p@ss'), 'postgresql://u:p%40ss@h/d')

def test_a_query(tmp_path, monkeypatch):
    with sqlite3.connect(tmp_path/'shop.db') as db:
        db.execute('create table t (code text, n integer, y real)')
        db.executemany('insert into t values (?, ?, ?)',
                       [('00123', 1, 1.5), ('NA', None, 2.5), ('x', 3, None)])
    here = project(tmp_path, 'sources = [{connection = "sqlite:///shop.db", query = "select * from t"}]')
    df, readings, _ = load(here)
    assert df.code.tolist() == ['00123', 'NA', 'x'] and df.n.dtype == float and readings[0].format == 'sql'
    assert load(here)[1][0].hash == readings[0].hash
    for query in ('delete from t', 'select nonsense from t', 'select * from t where n > 9',
                  'select n, n from t'):
        with pytest.raises(DataError):
            load(project(tmp_path, f'sources = [{{connection = "sqlite:///shop.db", query = "{query}"}}]'))
    assert sqlite3.connect(tmp_path/'shop.db').execute('select count(*) from t').fetchone() == (3,)
    with pytest.raises(DataError, match='No file'):
        load(project(tmp_path, 'sources = [{connection = "sqlite:///absent.db", query = "select 1"}]'))
    assert not (tmp_path/'absent.db').exists()
    with pytest.raises(SettingsError, match='MLCYCLE_TEST_NONE'):
        load(project(tmp_path, 'sources = [{connection = "postgresql://u:${MLCYCLE_TEST_NONE}@h/d", query = '
                               '"select 1"}]'))
    monkeypatch.setenv('MLCYCLE_TEST_DB', 'shop.db')
    assert len(load(project(tmp_path, 'sources = [{connection = "sqlite:///${MLCYCLE_TEST_DB}", query = '
                                      '"select * from t"}]'))[0]) == 3

def test_a_folder_is_one_table_with_types_of_all_files(tmp_path):
    folder = tmp_path/'months'; folder.mkdir()
    (folder/'1.csv').write_text('a,y\n1,2\n')
    (folder/'2.csv').write_text('y,a\n3,007\n')
    (folder/'SOURCE.md').write_text('x')
    (folder/'.hidden.csv').write_text('z')
    df, readings, _ = load(project(tmp_path, 'sources = [{path = "months"}]'))
    assert df.a.tolist() == ['1', '007']
    assert df.y.tolist() == [2, 3]
    assert any('SOURCE.md' in f.text for f in readings[0].findings)
    (folder/'3.csv').write_text('a,z\n1,2\n')
    with pytest.raises(DataError, match='3.csv has other columns'):
        load(project(tmp_path, 'sources = [{path = "months"}]'))
    empty = tmp_path/'none'; empty.mkdir()
    with pytest.raises(DataError, match='no data file'):
        load(project(tmp_path, 'sources = [{path = "none"}]'))

def test_stacking_keeps_identifiers(tmp_path):
    (tmp_path/'a.csv').write_text('a,y\n1,2\n'); (tmp_path/'b.csv').write_text('a,y\n007,2\n')
    df, _, steps = load(project(tmp_path, 'sources = [{name = "a", path = "a.csv"}, {name = "b", path = '
                                          '"b.csv"}]\ncombine = "stack"'))
    assert df.a.tolist() == ['1', '007'] and steps.after.tolist() == [1, 2]

def test_joins_count_what_is_lost_and_multiplied(tmp_path):
    (tmp_path/'a.csv').write_text('k,y,v\n1,2,a\n2,3,b\n,4,c\n7,5,d\n')
    (tmp_path/'b.csv').write_text('k,v\n1,x\n1,z\n2,w\n,q\n')
    sources = 'sources = [{name = "a", path = "a.csv"}, {name = "b", path = "b.csv"}]\n'
    df, _, steps = load(project(tmp_path, sources+'joins = [{left = "a", right = "b", on = ["k"]}]'))
    assert steps.iloc[0].tolist() == ['join b', 4, 5, 2, 0, 1] and df['v_b'].tolist()[:3] == ['x', 'z', 'w']
    inner = 'joins = [{left = "a", right = "b", on = ["k"], how = "inner"}]'
    df, _, steps = load(project(tmp_path, sources+inner))
    assert steps.iloc[0].tolist() == ['join b', 4, 3, 2, 2, 1] and len(df) == 3
    for joins, word in (('', 'data.joins is empty'),
                        ('joins = [{left = "a", right = "c", on = ["k"]}]', "no source 'c'"),
                        ('joins = [{left = "a", right = "b", on = ["q"]}]', "no column 'q'")):
        with pytest.raises((SettingsError, DataError), match=word): load(project(tmp_path, sources+joins))
    (tmp_path/'b.csv').write_text('k,v\n01,x\n2,w\n')
    with pytest.raises(DataError, match='Keep it as text in both'):
        load(project(tmp_path, sources+'joins = [{left = "a", right = "b", on = ["k"]}]'))

def test_columns_that_the_settings_name_are_looked_for_at_once(tmp_path):
    (tmp_path/'a.csv').write_text('a,y\n1,2\n3,4\n')
    here = project(tmp_path, 'sources = [{path = "a.csv"}]\ntime = "when"\nprotected = ["sex"]\ndrop = '
                             '["oops"]', target='inccome')
    with pytest.raises(DataError) as error: check_columns(load(here)[0], here.settings)
    for word in ('inccome', 'when', 'sex', 'oops', 'Columns: a, y'): assert word in str(error.value)

def test_the_digest_follows_bytes_and_order_and_needs_no_pandas(tmp_path):
    here = project(tmp_path, 'sources = [{path = "a.csv"}]')
    digests = []
    for text in ('a,y\n1,2\n3,4\n', 'a,y\n1,2\n3,4\n', 'a,y\n1,2\n3,5\n', 'a,y\n3,4\n1,2\n'):
        (tmp_path/'a.csv').write_text(text)
        digests.append((source_digest(here), read_source(here, 'data')[1].hash))
    assert digests[0] == digests[1] and len(set(digests)) == 3
    code = ('import sys; from mlcycle.core import Project; from mlcycle.sources import source_digest; '
            f'source_digest(Project({str(tmp_path)!r})); '
            'assert not {"pandas", "pyarrow", "sqlalchemy", "fsspec"} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True)


# --- real data ---------------------------------------------------------------------------------------------------------------------

SETS = {'adult/adult.csv': (32_561, 15), 'bike_sharing_hourly/hour.csv': (17_379, 17),
        'elec2/electricity.csv': (45_312, 9), 'hotel_bookings_h1/H1.csv': (40_060, 31),
        'nyc_taxis/taxis.csv': (6_433, 14), 'penguins/penguins.csv': (344, 7),
        'titanic/titanic.csv': (891, 11)}

@pytest.mark.parametrize('name', SETS)
def test_real_sets_are_read_whole(data_dir, name):
    start = time.process_time()
    df, reading = read_file(data_dir/name)
    assert df.shape == SETS[name] and time.process_time()-start < 30
    assert reading.conversions and all(c.missing == df[c.column].isna().sum() for c in reading.conversions)

def test_what_is_known_of_the_real_sets(data_dir):
    hotel, reading = read_file(data_dir/'hotel_bookings_h1/H1.csv')
    assert set(hotel.Meal) >= {'BB       '}
    assert hotel.Agent.isna().sum() == 8_209
    assert hotel.Company.isna().sum() == 36_952
    assert hotel.Country.isna().sum() == 464
    assert hotel.ReservationStatusDate.dtype.kind == 'M'
    titanic, _ = read_file(data_dir/'titanic/titanic.csv')
    assert titanic.name[0] == 'Braund, Mr. Owen Harris'
    assert titanic.cabin.isna().sum() == 687
    assert titanic.age.isna().sum() == 177
    adult, reading = read_file(data_dir/'adult/adult.csv')
    assert {f.column: f.count for f in reading.findings
            if f.kind == 'possible missing'} == {'workclass': 1836, 'occupation': 1843, 'native-country': 583}

def test_a_million_rows(tmp_path):
    rng = np.random.default_rng(0)
    block = ''.join(f'{i},{a},{b},c{c},2024-01-01 00:00:00\n' for i,
                    (a, b, c) in enumerate(zip(rng.normal(size=50_000).round(4), rng.integers(0, 9, 50_000),
                                               rng.integers(0, 50, 50_000))))
    start = time.process_time()
    df, _ = read_file(('i,a,b,c,t\n'+block*20).encode())
    assert len(df) == 1_000_000 and time.process_time()-start < 30
