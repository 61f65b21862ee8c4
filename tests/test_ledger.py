"""The ledger under many processes, kill -9, and people with a hex editor."""
import multiprocessing, os, random, shutil, signal, sqlite3, subprocess, sys, time
from pathlib import Path
import pytest
from mlcycle.core import Blocked, IntegrityError, Project, SettingsError
from mlcycle.ledger import Ledger, kept_heads, table_name
from waiting import PATIENCE

TOML = '''[project]
name = "test"
[problem]
target = "y"
task = "binary"
[data]
sources = [{path = "data.csv"}]
'''


@pytest.fixture
def project(tmp_path) -> Project:
    (tmp_path/'mlcycle.toml').write_text(TOML)
    return Project(tmp_path, actor='Ada')


def fill(ledger, count=6):
    for i in range(count): ledger.append(stage='validation', kind='validation', subject=str(i), body={'i': i}, actor='Ada')


def unlocked(file: Path) -> sqlite3.Connection:
    "A connection of somebody who drops the triggers first."
    raw = sqlite3.connect(file)
    for trigger in ('ledger_no_update', 'ledger_no_delete'): raw.execute(f'DROP TRIGGER {trigger}')
    return raw


def test_every_byte_of_every_field_is_covered(project):
    fill(project.ledger)
    head = project.ledger.head()
    file = project.store/'ledger.db'
    for column in ('at', 'actor', 'stage', 'kind', 'subject', 'body', 'previous', 'hash'):
        for seq in (1, 3, 6):
            copy = file.with_name('copy.db'); shutil.copy(file, copy)
            raw = unlocked(copy)
            raw.execute(f"UPDATE ledger SET {column} = {column} || ' ' WHERE seq = ?", (seq,)); raw.commit(); raw.close()
            audit = Ledger(f'sqlite:///{copy}').verify([head])
            assert not audit.ok and audit.broken == seq, (column, seq, audit)


def test_swap_insert_delete_and_cut(project):
    fill(project.ledger)
    file, heads = project.store/'ledger.db', kept_heads(project)
    tricks = {'swap': (['UPDATE ledger SET seq = 99 WHERE seq = 2', 'UPDATE ledger SET seq = 2 WHERE seq = 3', 'UPDATE ledger SET seq = 3 WHERE seq = 99'], 2),
              'delete in the middle': (['DELETE FROM ledger WHERE seq = 4'], 4),
              'cut one': (['DELETE FROM ledger WHERE seq = 6'], 6),
              'cut all': (['DELETE FROM ledger'], 1),
              'insert before': (["INSERT INTO ledger SELECT 0, at, actor, stage, kind, subject, body, previous, hash FROM ledger WHERE seq = 1"], 1)}
    for name, (statements, broken) in tricks.items():
        copy = file.with_name('copy.db'); shutil.copy(file, copy)
        raw = unlocked(copy)
        for s in statements: raw.execute(s)
        raw.commit(); raw.close()
        audit = Ledger(f'sqlite:///{copy}').verify(heads)
        assert not audit.ok and audit.broken == broken, (name, audit)


def test_a_rebuilt_chain_is_found_by_a_kept_head(project):
    fill(project.ledger)
    heads = kept_heads(project)
    rebuilt = Ledger(f'sqlite:///{project.store}/rebuilt.db')
    for e in project.ledger.entries(): rebuilt.append(stage=e.stage, kind=e.kind, subject=e.subject, body={'i': 0}, actor=e.actor)
    assert rebuilt.verify().ok and rebuilt.verify(heads).broken == 1


def test_yesterdays_file_is_found(project):
    fill(project.ledger, 3)
    file = project.store/'ledger.db'
    shutil.copy(file, file.with_name('yesterday.db'))
    fill(project.ledger, 2)
    shutil.copy(file.with_name('yesterday.db'), file)
    assert Project(project.folder).ledger.verify(kept_heads(project)).broken == 4


def test_damaged_file_is_a_clear_error(project):
    fill(project.ledger)
    (project.store/'ledger.db').write_bytes(b'this is no database' * 100)
    with pytest.raises(IntegrityError, match='ledger.db'): Project(project.folder).ledger.entries()


def _append_many(folder, count):
    ledger = Project(folder).ledger
    for i in range(count): ledger.append(stage='data', kind='snapshot', subject=str(os.getpid()), body={'i': i}, actor='worker')


def test_many_processes_make_one_chain(project):
    "Eight processes at once: no fork of the chain, no lost entry, nobody is told 'database is locked'."
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=_append_many, args=(project.folder, 60)) for _ in range(8)]
    for w in workers: w.start()
    for w in workers: w.join()
    assert [w.exitcode for w in workers] == [0]*8
    audit = project.ledger.verify(kept_heads(project))
    assert audit.ok and audit.entries == 480


KILLED = '''
import sys
from mlcycle.core import Project
ledger = Project(sys.argv[1]).ledger
while True: print(ledger.append(stage='data', kind='snapshot', body={}, actor='a').seq, flush=True)
'''


def test_kill_minus_nine_loses_no_acknowledged_entry(project):
    rng = random.Random(7)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, '-c', KILLED, str(project.folder)], stdout=subprocess.PIPE, text=True)
        acknowledged = int(process.stdout.readline())
        time.sleep(rng.uniform(0, .15))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        acknowledged = max([acknowledged, *map(int, rest)])
        process.wait()
        audit = Project(project.folder).ledger.verify(kept_heads(project))
        assert audit.ok and audit.entries >= acknowledged


def test_read_only_creates_nothing(project):
    project = Project(project.folder, read_only=True)
    assert project.ledger.entries() == [] and project.ledger.verify().ok
    assert not (project.folder/'store').exists()


def test_hostile_names_are_one_entry(project):
    hostile = 'Ada\r\n2 forged entry <script>alert(1)</script> \u202e'+'x'*10_000
    entry = project.ledger.append(stage='governance', kind='approval', subject=hostile, body={'because': hostile}, actor=hostile)
    assert len(project.ledger.entries()) == 1 and len(entry.actor) < 700 and 'characters' in entry.actor
    assert project.ledger.get(1).body['because'] == hostile and project.ledger.verify().ok
    with pytest.raises(SettingsError): project.ledger.append(stage='x', kind='x', body={}, actor='a\x00b')


def test_folders_with_any_name(tmp_path):
    for name in ('with space', "quote'\"", 'emoji 🦆', 'per%20cent?&#'):
        folder = tmp_path/name; folder.mkdir()
        (folder/'mlcycle.toml').write_text(TOML)
        fill(Project(folder).ledger, 2)
        moved = folder.rename(tmp_path/(name+' moved'))
        assert len(Project(moved, read_only=True).ledger.entries()) == 2


def test_names_never_become_sql():
    for name in ('"; DROP TABLE x; --', "a'b", 'é', ''): assert table_name(name).replace('_', '').isalnum() and table_name(name).isascii()


def test_postgres_by_url_through_the_same_code(project, postgres):
    from sqlalchemy.exc import DatabaseError
    project.update_settings({'store.ledger': postgres})
    first = Project(project.folder).ledger
    assert first.entries() == [] and first.head()[0] == 0
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=_append_many, args=(project.folder, 25)) for _ in range(8)]
    for w in workers: w.start()
    for w in workers: w.join()
    audit = first.verify(kept_heads(project))
    assert audit.ok and audit.entries == 200
    assert first.last('snapshot').seq == 200 and len(first.entries('snapshot', since=150)) == 50
    import psycopg
    with psycopg.connect(postgres, autocommit=True) as raw:
        with pytest.raises(psycopg.Error, match='append-only'): raw.execute(f"UPDATE {first.table} SET actor = 'Eve'")
        raw.execute(f'ALTER TABLE {first.table} DISABLE TRIGGER USER')
        raw.execute(f"UPDATE {first.table} SET actor = 'Eve' WHERE seq = 77")
    assert first.verify().broken == 77


def _decide_on(folder: Path, ready, won, rounds: int) -> None:
    "A process that decides in each round on what the round before left, at the moment all others do."
    ledger = Project(folder).ledger
    for last in range(rounds):
        ready.wait(PATIENCE)
        try: won.put((last, ledger.append(stage='problem', kind='problem', body={}, actor=f'process {os.getpid()}', seen={'problem': last}).seq))
        except Blocked: won.put((last, None))
        ready.wait(PATIENCE)


def test_on_postgres_one_of_those_who_decide_at_one_moment_wins(project, postgres):
    project.update_settings({'project.name': 'deciders', 'store.ledger': postgres})   # a table of its own
    context, rounds = multiprocessing.get_context('fork'), 10
    ready, said = context.Barrier(4), context.Queue()
    deciders = [context.Process(target=_decide_on, args=(project.folder, ready, said, rounds)) for _ in range(4)]
    for d in deciders: d.start()
    told = [said.get(timeout=PATIENCE) for _ in range(4*rounds)]
    for d in deciders: d.join(PATIENCE)
    assert sorted(t for t in told if t[1]) == [(last, last+1) for last in range(rounds)]   # one in each round, and three were refused
    ledger = Project(project.folder).ledger
    assert ledger.verify(kept_heads(project)).ok and ledger.head()[0] == rounds
