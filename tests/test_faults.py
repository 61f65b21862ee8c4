"""Hard inputs through the whole command line: each a clear error or a finding, nothing executed, nothing lost."""
import json, os, random, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest

MLCYCLE = Path(sys.executable).parent/'mlcycle'
HOSTILE = ['<img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0"]


def call(*words, cwd: Path) -> subprocess.CompletedProcess:
    done = subprocess.run([MLCYCLE, *map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


def rows(n: int=300, seed: int=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return pd.DataFrame({'age': rng.integers(18, 80, n), 'income': (x*10+50).round(2), 'region': rng.choice(list('NSEW'), n),
                         'left': np.where(x+rng.normal(size=n) > 0, 'yes', 'no')})


@pytest.mark.parametrize('name, content, options, what', [
    ('ragged.csv', 'a,b,left\n1,2,yes\n3,4,5,no\n', (), 'line 3'),
    ('empty.csv', '', (), 'empty'),
    ('header.csv', 'a,b,left\n', (), 'header.csv'),
    ('twice.csv', 'a,a,left\n1,2,yes\n3,4,no\n', (), "'a'"),
    ('good.csv', None, ('--target', 'lefft'), "'lefft'"),
    ('one.csv', 'a,left\n'+'\n'.join(f'{i},yes' for i in range(60))+'\n', (), 'It needs at least two'),
    ('bits.csv', b'a,left\n1,\xff\xfe\x00yes\n', (), 'bits.csv'),
    ('nothere.csv', 0, (), 'nothere.csv'),
    ('sales.db', b'SQLite format 3\0'+bytes(80), (), '--query'),
    ('secret.csv', None, ('--target', 'left', '--data', 'postgresql://u:secret@h/d', '--query', 'SELECT 1'), 'A password is not written'),
    ('cut.parquet', b'PAR1 and nothing more', (), 'cut.parquet')])
def test_bad_data_is_a_clear_error_and_leaves_nothing(tmp_path, name, content, options, what):
    file = tmp_path/name
    if content is None: rows().to_csv(file, index=False)
    elif isinstance(content, bytes): file.write_bytes(content)
    elif content != 0: file.write_text(content)
    done = call('new', 'project', '--data', file, *(options or ('--target', 'left')), cwd=tmp_path)
    assert done.returncode == 2 and what in done.stderr and len(done.stderr.strip().splitlines()) <= 10, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ([name] if file.exists() else [])


def hostile_rows() -> pd.DataFrame:
    "Rows with a column that is markup and one that is a formula, with values of the same kind."
    df = rows()
    df[HOSTILE[0]] = df.income*2
    df[HOSTILE[1]] = np.where(df.region == 'N', '<script>x=1</script>', '=1+1')
    return df


@pytest.fixture(scope='module')
def champion(tmp_path_factory):
    "A small project with strangers' names, whose first version went through all nine stages and answers; and its rows."
    folder, df = tmp_path_factory.mktemp('tiny'), hostile_rows()
    df.to_csv(folder/'data.csv', index=False)
    assert call('new', 'p', '--data', 'data.csv', '--target', 'left', '--protected', HOSTILE[1], cwd=folder).returncode == 0
    toml = folder/'p/mlcycle.toml'
    toml.write_text(toml.read_text().replace('trials = 30\nseconds = 60', 'trials = 2\nseconds = 10'))
    assert call('run', '--project', 'p', cwd=folder).returncode == 1      # waits for signatures
    for name in ('One', 'Two'): assert call('approve', '1', '--as', name, '--because', 'test', '--project', 'p', cwd=folder).returncode == 0
    assert call('promote', '1', '--project', 'p', cwd=folder).returncode == 0
    return folder/'p', df


def test_strangers_names_go_through_every_page_as_text(tmp_path, champion):
    "A column that is markup, one that is a formula: through reports, card and export, escaped; and nothing runs."
    from bs4 import BeautifulSoup
    project, df = champion
    assert call('card', '--project', project, '--out', tmp_path/'card.html', cwd=tmp_path).returncode == 0
    pages = [*(project/'reports').rglob('*.html'), tmp_path/'card.html']
    assert len(pages) >= 10
    for page in pages:
        soup = BeautifulSoup(page.read_text(), 'html.parser')
        assert not soup.find_all('script') and not [i for i in soup.find_all('img') if not i['src'].startswith('data:')], page
        assert not [t for t in soup.find_all(True) if any(a.startswith('on') for a in t.attrs)], page
    assert any(HOSTILE[0] in BeautifulSoup(p.read_text(), 'html.parser').get_text() for p in pages)
    df.drop(columns='left').head(20).to_csv(tmp_path/'new.csv', index=False)
    assert call('score', 'new.csv', '--out', tmp_path/'out.csv', '--project', project, cwd=tmp_path).returncode == 0
    assert not [c for line in (tmp_path/'out.csv').read_text().splitlines() for c in line.split(',') if c.strip('"')[:1] in '=+@']


def test_swapped_and_missing_columns_when_scoring(tmp_path, champion):
    "Columns go by name; a missing one is named; nothing is logged for a refused file."
    project, df = champion
    df[df.columns[::-1]].drop(columns='left').head(5).to_csv(tmp_path/'swapped.csv', index=False)
    df.drop(columns='left').head(5).to_csv(tmp_path/'straight.csv', index=False)
    for name in ('swapped', 'straight'): assert call('score', tmp_path/f'{name}.csv', '--out', tmp_path/f'{name}.out.csv', '--project', project, cwd=tmp_path).returncode == 0
    scores = [pd.read_csv(tmp_path/f'{name}.out.csv').score.tolist() for name in ('swapped', 'straight')]
    assert scores[0] == scores[1]
    df.drop(columns=['left', 'income']).head(5).to_csv(tmp_path/'less.csv', index=False)
    done = call('score', tmp_path/'less.csv', '--out', tmp_path/'less.out.csv', '--project', project, cwd=tmp_path)
    assert done.returncode == 2 and "income" in done.stderr and not (tmp_path/'less.out.csv').exists()


def test_a_deliberate_leak_is_named(tmp_path):
    df = rows()
    df['outcome_code'] = (df.left == 'yes').astype(int)*7
    df.to_csv(tmp_path/'data.csv', index=False)
    call('new', 'p', '--data', 'data.csv', '--target', 'left', cwd=tmp_path)
    assert call('run', '--project', 'p', 'problem', 'data', cwd=tmp_path).returncode == 0
    from mlcycle.core import Project
    ledger = Project(tmp_path/'p', read_only=True).ledger
    assert 'outcome_code' in str(ledger.last('feasibility').body['suspects']) and 'outcome_code' in str(ledger.last('schema').body)


def test_kill_minus_nine_at_twenty_moments_of_a_run(tmp_path):
    "Spread over the whole run by what it has written; every time the project opens and the audit passes; the next run completes."
    from mlcycle.core import Project
    from mlcycle.ledger import kept_heads
    rows(150).to_csv(tmp_path/'data.csv', index=False)
    call('new', 'p', '--data', 'data.csv', '--target', 'left', cwd=tmp_path)
    folder = tmp_path/'p'
    toml = folder/'mlcycle.toml'
    toml.write_text(toml.read_text().replace('trials = 30\nseconds = 60', 'trials = 2\nseconds = 5').replace('# signatures = 2', 'signatures = 0'))
    rng, project = random.Random(20261123), Project(folder)
    for _ in range(20):
        wanted = project.ledger.head()[0]+rng.randrange(4)   # entries: 0 is before the first, more is further on
        process = subprocess.Popen([MLCYCLE, 'run', '--project', folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic()+20
        while project.ledger.head()[0] < wanted and process.poll() is None and time.monotonic() < give_up: time.sleep(.02)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL); process.wait()
        project = Project(folder)
        assert project.ledger.verify(kept_heads(project)).ok
    done = call('run', '--project', folder, cwd=tmp_path)
    assert done.returncode in (0, 1) and 'failed' not in done.stdout, done.stdout+done.stderr
    states = {s['stage']: s['state'] for s in json.loads(call('status', '--json', '--project', folder, cwd=tmp_path).stdout)['stages']}
    assert set(states.values()) <= {'done', 'blocked'}, states
    assert not list(folder.rglob('.*.tmp')) and not list(folder.rglob('.*.running.ipynb'))
    assert json.loads(call('audit', '--json', '--project', folder, cwd=tmp_path).stdout)['ok']
