"""The spool under faults: a torn tail, a full disk, a writer at work during moves, a move that is cut off."""
import errno, json, os, subprocess, threading
import pandas as pd
import pytest
from mlcycle.core import Project
from mlcycle.spool import Writer, frame, gather, json_head, spill_folder, spool, spool_folder, waiting

HEAD = json_head({'n': 'whole'})


@pytest.fixture()
def project(tmp_path) -> Project:
    (tmp_path/'mlcycle.toml').write_text('[project]\nname = "spool"\n[problem]\ntask = "binary"\ntarget = "y"\n[data]\nsources = [{name = "rows", path = "rows.csv"}]\n')
    return Project(tmp_path)


def content(*numbers: int) -> tuple[bytes, int]: return HEAD+json.dumps([[n] for n in numbers]).encode()+b'}', len(numbers)


def stored(project: Project) -> list[int]:
    gather(project, 'visits')
    return sorted(project.tables.read('visits')['n'].tolist()) if project.tables.exists('visits') else []


def keep(writer: Writer, *numbers: int): writer.keep(*content(*numbers))


def test_a_torn_tail_loses_only_what_nobody_was_promised(project):
    "Cut or changed at any byte of the last frame: the frames before it are whole, and what is spooled later comes too."
    folder = spool_folder(project, 'visits')
    writer = Writer(folder)
    for n in range(3): keep(writer, n)
    writer.close()
    file = next(folder.glob('*.log'))
    whole = file.read_bytes()
    last = len(whole)//3*2
    for cut in (*range(last, len(whole), 7), len(whole)-1):
        file.write_bytes(whole[:cut])
        assert waiting(project, 'visits') == 2
    for flipped in range(last, len(whole), 11):
        damaged = bytearray(whole); damaged[flipped] ^= 1
        file.write_bytes(damaged)
        assert waiting(project, 'visits') == 2
    file.write_bytes(whole[:-5])
    spool(project, 'visits', pd.DataFrame({'n': [7]}))
    assert stored(project) == [0, 1, 7] and stored(project) == [0, 1, 7]


def test_a_full_disk_says_so_and_writing_goes_on_when_there_is_room(project, monkeypatch):
    writer, real, full = Writer(spool_folder(project, 'visits')), os.pwrite, [False]
    def pwrite(handle, data, at):
        if not full[0]: return real(handle, data, at)
        if len(data) > 20: return real(handle, data[:20], at)     # the disk takes a little, then nothing
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('mlcycle.spool.os.pwrite', pwrite)
    keep(writer, 1)
    full[0] = True
    for n in (2, 3):
        with pytest.raises(OSError, match='No space'): keep(writer, n)
    full[0] = False
    keep(writer, 4)
    writer.close()
    assert stored(project) == [1, 4]


def test_fdatasync_that_fails_is_no_promise(project, monkeypatch):
    writer = Writer(spool_folder(project, 'visits'))
    keep(writer, 1)
    with monkeypatch.context() as patch:
        patch.setattr('mlcycle.spool.os.fdatasync', lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, 'Input/output error')))
        with pytest.raises(OSError, match='Input/output'): keep(writer, 2)
    keep(writer, 3)
    writer.close()
    found = stored(project)
    assert {1, 3} <= set(found) and len(found) == len(set(found))     # 2 may be there: it was never promised


def test_frames_handed_over_together_are_kept_together(project, monkeypatch):
    said = []
    writer = Writer(spool_folder(project, 'visits'), tell=lambda those, error: said.extend((w, error) for w in those))
    with monkeypatch.context() as patch:
        patch.setattr(Writer, '_write', lambda self, data: OSError(errno.ENOSPC, 'No space left on device'))
        writer.submit([content(1), content(2, 3)], 'first')
        while not said: pass
    writer.submit([content(4), content(5, 6)], 'second')
    writer.close()
    assert [w for w, _ in said] == ['first', 'second'] and isinstance(said[0][1], OSError) and said[1][1] is None
    assert stored(project) == [4, 5, 6]


def test_moves_during_writing_take_each_row_once(project):
    writer, over = Writer(spool_folder(project, 'visits'), reserve=4096), threading.Event()
    def moving() -> None:
        while not over.is_set(): gather(project, 'visits')
    movers = [threading.Thread(target=moving) for _ in range(2)]
    for t in movers: t.start()
    for n in range(120): keep(writer, n)
    over.set()
    for t in movers: t.join()
    writer.close()
    assert stored(project) == [*range(120)] and waiting(project, 'visits') == 0 and not [*spool_folder(project, 'visits').glob('*.log')]


def test_a_move_ends_though_rows_keep_coming(project, monkeypatch):
    "While every batch that is moved finds new rows behind it, a move takes what lay there when it looked, and returns."
    from mlcycle import spool as module
    writer, real, moves = Writer(spool_folder(project, 'visits'), reserve=2**20), module.append, []
    def busy(*args, **options):
        moves.append(len(args[2]))
        if len(moves) == 1: keep(writer, *range(10*len(moves), 10*len(moves)+10))
        return real(*args, **options)
    monkeypatch.setattr(module, 'append', busy)
    keep(writer, *range(10))
    assert gather(project, 'visits') == 10 and moves == [10]
    monkeypatch.setattr(module, 'AT_ONCE', 700)   # more than that waits: several moves, until the reading is not cut any more
    for n in range(4): keep(writer, *range(100*n, 100*n+100))
    writer.close()
    assert gather(project, 'visits') == 410 and len(moves) > 3 and waiting(project, 'visits') == 0


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_a_move_that_is_cut_off_is_neither_lost_nor_doubled(project, monkeypatch, moment):
    import mlcycle.spool as module
    spool(project, 'visits', pd.DataFrame({'n': [1, 2]}))
    real = module.append
    def cut(*args, **kwargs):
        if moment == 'after': real(*args, **kwargs)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(module, 'append', cut)
        with pytest.raises(KeyboardInterrupt): gather(project, 'visits')
    spool(project, 'visits', pd.DataFrame({'n': [3]}))
    assert stored(project) == [1, 2, 3] and stored(project) == [1, 2, 3]


def test_little_is_written_in_place_while_the_disk_is_quick_and_segments_follow_each_other(project):
    "From one thread and from another at once, over the end of many segments: each row is told of after it is durable, and moved once."
    folder, told = spool_folder(project, 'visits'), []
    def tell(those, error) -> None:
        told.extend((n, error, threading.get_ident()) for n, _ in those)
        for _, heard in those: heard.set()
    writer = Writer(folder, reserve=4096, tell=tell)
    def from_here(start: int) -> None:
        for n in range(start, start+300):
            writer.took, heard = (0. if n % 3 else 1.), threading.Event()   # quick, then slow
            writer.commit([(frame(*content(n)), (n, heard))])
            assert heard.wait(180)
    other = threading.Thread(target=from_here, args=(300,))
    other.start(), from_here(0), other.join()
    assert {error for _, error, _ in told} == {None} and sorted(n for n, *_ in told) == [*range(600)]
    assert {threading.get_ident(), writer.thread.ident} < {thread for *_, thread in told}
    assert len([*folder.glob('*.log')]) > 3     # a segment ends where its reserve does
    writer.close()
    assert stored(project) == [*range(600)] and [f.name for f in folder.iterdir()] == ['moved.json']


def test_the_next_segment_of_a_writer_that_lives_is_left_alone(project):
    writer = Writer(spool_folder(project, 'visits'), reserve=1000)
    for n in range(8): keep(writer, n)
    while not (ready := next(spool_folder(project, 'visits').glob('*.new'), None)): pass     # the thread makes it after it has told
    os.utime(ready, (0, 0))
    assert stored(project) == [*range(8)] and ready.exists()
    writer.close()
    assert not ready.exists()


@pytest.fixture()
def small_disk(project) -> None:
    "One megabyte under the spool of a project that spills beside it."
    toml = project.folder/'mlcycle.toml'
    toml.write_text(toml.read_text()+'[deployment]\nspill = "beside"\n')
    place = project.store/'spool'
    place.mkdir(parents=True)
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(place)], capture_output=True, text=True)
    if done.returncode: pytest.skip(f'no small disk can be mounted here: {done.stderr.strip()[:100]}')
    yield place
    subprocess.run(['umount', str(place)], check=True)


@pytest.mark.parametrize('spills', [True, False])
def test_a_full_disk_spills_to_another_or_says_so(project, small_disk, spills):
    project = Project(project.folder)
    beside = spill_folder(project, 'visits')
    writer = Writer(spool_folder(project, 'visits'), spill=beside if spills else None)
    keep(writer, 1)
    ballast = small_disk/'ballast'
    with pytest.raises(OSError), ballast.open('wb') as f:
        while True: f.write(bytes(4096)), f.flush()
    kept = [1]
    for n in range(2, 60):
        try: writer.keep(*content(*[n]*500)); kept += [n]*500
        except OSError as error: assert not spills and error.errno == errno.ENOSPC
    assert (len(kept) > 20_000 and [*beside.glob('*.log')]) if spills else len(kept) < 5000
    ballast.unlink()
    keep(writer, 99)
    writer.close()
    assert stored(project) == sorted([*kept, 99]) and waiting(project, 'visits') == 0 and not [*beside.glob('*')]


def test_small_files_are_joined_and_nobody_notices(project, monkeypatch):
    "Two who append past the point where files are joined, one who reads: the same rows in their order, few files; and a join that fails loses nothing."
    from mlcycle import spool as module
    monkeypatch.setattr(module, 'MANY', 8)
    monkeypatch.setattr(type(project.tables).compact, '__kwdefaults__', {'files': 4, 'hours': 1})
    def work(k: int) -> None:
        for i in range(20): module.append(Project(project.folder), 'visits', pd.DataFrame({'n': [100*k+i]}))
    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2)]
    for t in threads: t.start()
    for t in threads: t.join()
    found = project.tables.read('visits')['n'].tolist()
    assert [n for n in found if n < 200] == [*range(100, 120)] and [n for n in found if n >= 200] == [*range(200, 220)] and len(found) == 40
    operations = project.tables.versions('visits')['operation']
    assert (operations == 'OPTIMIZE').sum() >= 3
    monkeypatch.setattr(type(project.tables), 'compact', lambda *a, **k: 1/0)
    for i in range(9): module.append(project, 'visits', pd.DataFrame({'n': [300+i]}))
    assert project.tables.read('visits')['n'].tolist() == [*found, *range(300, 309)]
