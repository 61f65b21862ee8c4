"""What a release does when something goes wrong, from outside: real processes of `mlcycle serve`, real callers, real faults.

    python benchmarks/release_drills.py --data FOLDER [--only NAME]... [--folder .]

FOLDER holds `adult/adult.csv` (UCI Adult). The champion, an equal of it and one whose outcomes were turned around for one group learn from
it; callers send rows that none of them saw, each with an id of its own. The drills:

    canary      a candidate with scores turned around for one group is stopped by the server itself; an equal one is raised
    promotions  two processes promote two versions at one moment: one wins, the other is told why it did not
    kill        a worker gets SIGKILL between a promotion and its next look at the ledger
    lock        another process holds the ledger's lock while a version is promoted
    clock       the server's clock steps back an hour and forward two in the middle of a canary (needs a C compiler; said where there is none)
    disk        no room is left while a version is promoted, at many sizes of what is left (needs to mount a tmpfs; said where it may not)

A line for each thing that must hold, with what was seen. Exit status 1 where one does not.
"""
import argparse, asyncio, json, mmap, os, shutil, signal, sqlite3, struct, subprocess, sys, tempfile, time
from contextlib import asynccontextmanager
from pathlib import Path
import pandas as pd
from serving import ALONE, TOKEN
from serving_faults import Serving, call

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
PROGRAM, BOUND = str(Path(sys.executable).parent/'mlcycle'), 1.0   # seconds between two looks at the ledger


def adult(data: Path) -> pd.DataFrame:
    rows = pd.read_csv(data/'adult'/'adult.csv').sample(frac=1, random_state=0).reset_index(drop=True)
    rows = rows.assign(id=[f'p{i}' for i in rows.index], label=rows['income-per-year'].str.strip().map({'<=50K': 'no', '>50K': 'yes'}))
    return rows[['id', 'age', 'workclass', 'education-num', 'marital-status', 'occupation', 'sex', 'capital-gain', 'hours-per-week', 'label']]


def prepared(folder: Path, data: Path) -> tuple: # project, bodies
    "Versions 1 (champion), 2 and 4 (its equals) and 3 (turned around for women), all but 1 signed; and what callers send."
    from served import crown, new_project, register, sign
    from sklearn.ensemble import HistGradientBoostingClassifier
    from mlcycle.inputs import to_records
    from mlcycle.service import open_service
    canary = '[deployment.canary]\nlook_seconds = 1\nsteps = [0.1, 0.5, 1.0]\nmin_rows = 300'
    project, rows = new_project(folder, data='id = "id"\nprotected = ["sex"]', more=canary), adult(data)
    train, asked = rows.head(12_000), rows.iloc[12_000:].reset_index(drop=True)
    turned = train.assign(label=train['label'].where(train['sex'].str.strip() != 'Female', train['label'].map({'yes': 'no', 'no': 'yes'})))
    for version, part in enumerate([train.head(8000), train.tail(8000), turned, train.iloc[2000:10_000]], 1):
        assert register(project, part, HistGradientBoostingClassifier(max_iter=60, random_state=version)) == str(version)
        crown(project, '1') if version == 1 else sign(project, str(version))
    return project, [json.dumps({'records': [r]}).encode() for r in to_records(asked.drop(columns='label'), open_service(project).schema())]


class Drill:
    "A copy of the project, a server that answers for it, callers, and what is seen."
    def __init__(self, folder: Path, source, bodies: list[bytes], *, workers: int=1, env: dict={}):
        from mlcycle.core import Project
        folder.mkdir()
        shutil.copytree(source.folder, folder/'project')
        self.project, self.bodies, self.came, self.env = Project(folder/'project', actor='Ada'), bodies, [], env
        self.server = Serving(folder, self.project.folder, workers)
        self.server.command = lambda: ['env', *(f'{k}={v}' for k, v in env.items()), PROGRAM, 'serve', '--project', str(self.project.folder), '--port', str(self.server.port), '--workers', str(workers)]

    @asynccontextmanager
    async def under_load(self, seconds: float=300, callers: int=4):
        "Callers call until the block ends; the server is ended softly after them."
        await self.server.start(self.bodies[-1].decode())
        until, step = [time.monotonic()+seconds], len(self.bodies)//callers
        class Until(float):   # callers ask again and again whether it is over
            def __gt__(self, now): return now < until[0]
        talks = [asyncio.create_task(call(self.server, self.bodies[i*step:]+self.bodies[:i*step], Until(0), self.came)) for i in range(callers)]
        try: yield self
        finally:
            until[0] = 0
            await asyncio.gather(*talks)
            await self.server.end(signal.SIGTERM)

    def seen(self) -> pd.DataFrame: return pd.DataFrame(self.came, columns=['sent', 'status', 'id', 'version'])

    def compared(self, version: str) -> None:
        "Leave what a comparison with the present champion leaves."
        from mlcycle.ledger import champion
        self.project.ledger.append(stage='retraining', kind='comparison', subject=version, body={'champion': champion(self.project.ledger), 'promotable': True}, actor='Ada')

    def command(self, *words: str) -> list[str]: return [PROGRAM, *words, '--project', str(self.project.folder)]

    async def run(self, *words: str) -> subprocess.CompletedProcess:
        return await asyncio.to_thread(subprocess.run, self.command(*words), capture_output=True, text=True, env=ALONE)

    def kept(self) -> tuple[str, str, bool]:
        "Every answer in hand against the log."
        from mlcycle.scoring import predictions
        log, hand = predictions(self.project)['prediction_id'], self.seen()['id'].dropna()
        lost, doubled = int((~hand.isin(log)).sum()), int(log.duplicated().sum())
        return 'answers lost, kept twice', f'{lost}, {doubled} of {len(hand):,}', not lost and not doubled and len(hand) > 0

    def answered(self) -> tuple[str, str, bool]:
        "Whoever asked was answered."
        other = self.seen().query('status != 200')['status'].value_counts().to_dict()
        return 'requests not answered (0: cut off)', str(other), not other


def late(drill: Drill, version: str, since: float, until: float=float('inf')) -> tuple[str, str, bool]:
    "How long after a moment somebody still asked who was then told a version."
    seen = drill.seen()
    longest = (seen.loc[(seen['version'] == version) & seen['sent'].between(since, until), 'sent']-since).max()
    return f'version {version} answered until, s', f'{0 if pd.isna(longest) else longest:.2f}', not longest > BOUND+.5   # a look takes its time


async def canary(make) -> list[tuple]:
    from mlcycle.canary import Canary
    found = []
    for version, wanted in (('3', 'stopped'), ('2', 'raised')):
        async with make(f'canary{version}').under_load() as drill:
            begun = await drill.run('canary', version, '--because', 'a drill')
            for _ in range(900):
                await asyncio.sleep(.1)
                if (now := drill.project.latest(Canary)) is not None and now.state != 'begun': break
            ended = time.time()
            await asyncio.sleep(3)
        seen = drill.seen()
        ids = int((seen['version'] == version).sum())
        found.append((f'candidate {version}: {wanted} by the server', f'{now.state} at {ids} ids: {now.because}' if now else begun.stderr, now is not None and now.state == wanted))
        if wanted == 'stopped': found.append(late(drill, version, ended))
        found += [drill.answered(), drill.kept(), ('ledger', drill.project.ledger.verify().why, drill.project.ledger.verify().ok)]
    return found


AT_ONCE = '''
import sys, time
from mlcycle.core import MlcycleError, Project
from mlcycle.registry import promote
project = Project(sys.argv[1], actor='Ada')
project.registry.load(sys.argv[2])
print('ready', flush=True)
time.sleep(max(0, float(sys.stdin.readline())-time.time()))
try: print('won', promote(project, sys.argv[2], because='a drill').seq)
except MlcycleError as error: print(type(error).__name__, error)
'''


def at_once(drill: Drill, versions: tuple) -> list[str]: # what each said
    "Promote from processes of their own, at the same moment."
    runs = [subprocess.Popen([sys.executable, '-c', AT_ONCE, str(drill.project.folder), v], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ALONE) for v in versions]
    for run in runs:
        while (line := run.stdout.readline()) != 'ready\n':
            if not line: raise SystemExit('a process ended before it began')
    when = time.time()+.2
    for run in runs: run.stdin.write(f'{when}\n'), run.stdin.flush()
    return [run.communicate()[0].strip() for run in runs]


async def promotions(make, rounds: int=5) -> list[tuple]:
    from mlcycle.ledger import champion
    from mlcycle.registry import rollback
    drill, said, wins = make('promotions'), [], []
    for _ in range(rounds):
        for v in '24': drill.compared(v)
        said.append(await asyncio.to_thread(at_once, drill, ('2', '4')))
        won = [v for v, s in zip('24', said[-1]) if s.startswith('won')]
        wins.append(len(won) == 1 and champion(drill.project.ledger) == won[0])
        rollback(drill.project, because='the next round')
        from served import sign
        for v in '24': sign(drill.project, v)
    losers = [s for pair in said for s in pair if not s.startswith('won')]
    return [(f'rounds of {rounds} with one winner, who is champion', str(sum(wins)), all(wins)),
            ('what the other was told', losers[0] if losers else 'nothing', bool(losers) and all(s.startswith('Blocked') and 'Next:' in s for s in losers)),
            ('ledger', drill.project.ledger.verify().why, drill.project.ledger.verify().ok)]


async def kill(make) -> list[tuple]:
    import psutil
    from mlcycle.registry import promote, rollback
    found = []
    async with make('kill', workers=2).under_load() as drill:
        turns = [('1', '2', lambda: promote(drill.project, '2', because='a drill')), ('2', '1', lambda: rollback(drill.project, because='a drill'))]
        drill.compared('2')
        for before, after, act in turns:
            await asyncio.sleep(2)
            await asyncio.to_thread(act)
            since = time.time()
            workers = [p for p in psutil.Process(drill.server.process.pid).children() if 'resource_tracker' not in ' '.join(p.cmdline())]
            workers[0].kill()
            await asyncio.sleep(8)
            found.append(late(drill, before, since, time.time()))
            seen = drill.seen()
            found.append((f'version {after} answers after it', f'{int((seen["version"][seen["sent"] > since] == after).sum()):,} times', (seen['version'][seen['sent'] > since+3].dropna() == after).all()))
    cut = int((drill.seen()['status'] == 0).sum())
    other = drill.seen().query('status not in (0, 200)')
    return [*found, ('cut off with the two workers, refused otherwise', f'{cut}, {len(other)}', cut <= 8 and not len(other)), drill.kept()]


async def lock(make, seconds: float=5) -> list[tuple]:
    from mlcycle.ledger import champion
    found = []
    for how in ('IMMEDIATE', 'EXCLUSIVE'):
        async with make(f'lock{how}').under_load() as drill:
            drill.compared('2')
            await asyncio.sleep(1)
            holder = sqlite3.connect(drill.project.store/'ledger.db', isolation_level=None)
            holder.execute(f'BEGIN {how}')
            begun, asked = time.time(), asyncio.create_task(drill.run('promote', '2', '--because', 'a drill'))
            await asyncio.sleep(seconds+3)   # the command itself takes a while to start
            waited = not asked.done()
            holder.execute('ROLLBACK'), holder.close()
            released = time.time()
            done = await asked
            await asyncio.sleep(3)
        seen, good = drill.seen(), done.returncode == 0 and champion(drill.project.ledger) == '2'
        within = int(((seen['status'] == 200) & seen['sent'].between(begun+.1, released-.1)).sum())
        found += [(f'BEGIN {how} held: the promotion waits, and is done', f'{waited}, {good} {done.stderr.strip()[:200]}', waited and good),
                  ('answered meanwhile', f'{within:,} in {released-begun:.1f} s', within > 100), drill.answered(), drill.kept()]
    return found


SHIM = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long long *offset;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    real = dlsym(RTLD_NEXT, "clock_gettime");
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    if (fd >= 0) { void *p = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0); if (p != MAP_FAILED) offset = p; close(fd); }
}
int clock_gettime(clockid_t id, struct timespec *t) {
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(id, t);
    if (!r && offset && id == CLOCK_REALTIME) t->tv_sec += *offset;
    return r;
}
int gettimeofday(struct timeval *restrict t, void *restrict z) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); t->tv_sec = s.tv_sec; t->tv_usec = s.tv_nsec/1000; return 0; }
time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); if (t) *t = s.tv_sec; return s.tv_sec; }
'''


def shim(folder: Path) -> dict | None: # what a process needs in its environment; None where there is no compiler
    "A clock that is off by the seconds that a file holds."
    if not (compiler := shutil.which('cc') or shutil.which('gcc')): return None
    (folder/'shim.c').write_text(SHIM), (folder/'offset').write_bytes(bytes(8))
    subprocess.run([compiler, '-shared', '-fPIC', '-O2', '-o', str(folder/'shim.so'), str(folder/'shim.c'), '-ldl'], check=True)
    return {'LD_PRELOAD': str(folder/'shim.so'), 'CLOCK_OFFSET': str(folder/'offset')}


async def clock(make) -> list[tuple]:
    from mlcycle.canary import Canary
    from mlcycle.scoring import predictions
    folder = make.keywords['folder']
    if (env := shim(folder)) is None: return [('clock', 'left out: no C compiler is here', None)]
    def step(seconds: int) -> None:
        with open(folder/'offset', 'r+b') as f, mmap.mmap(f.fileno(), 8) as m: m[:] = struct.pack('q', seconds)
    async with make('clock', env=env).under_load() as drill:
        await asyncio.sleep(2)
        step(-3600)
        before = drill.project.ledger.head()[0]
        await drill.run('canary', '3', '--because', 'a drill')
        for i in range(900):
            await asyncio.sleep(.1)
            if i == 10: step(7200)
            if i == 20: step(-3600)
            if (now := drill.project.latest(Canary)) is not None and now.state != 'begun': break
        await asyncio.sleep(2)
    log, entries = predictions(drill.project), drill.project.ledger.entries(since=before)
    span = (log['at'].max()-log['at'].min()).total_seconds()
    back = sum(a.at > b.at for a, b in zip(entries, entries[1:]))
    return [('span of the times in the log, s', f'{span:.0f}', span > 3600), (f'entries of the ledger {len(entries)}, told by an earlier clock', f'{back}', drill.project.ledger.verify().ok),
            ('candidate 3: stopped', now.headline if now else 'nothing', now is not None and now.state == 'stopped'), drill.answered(), drill.kept()]


def squeezed(project, place: Path, left: int) -> tuple[int, str]: # the command's status, what it said
    "Promote with so many bytes left on the disk, then make room again."
    ballast = place/'ballast'
    free = os.statvfs(place)
    size = max(0, free.f_bavail*free.f_frsize-left)
    with ballast.open('wb') as f: os.posix_fallocate(f.fileno(), 0, size) if size else None
    try: done = subprocess.run([PROGRAM, 'promote', '2', '--because', 'a drill', '--project', str(project.folder)], capture_output=True, text=True, env={**ALONE, 'TMPDIR': str(place.parent)})
    finally: ballast.unlink()
    return done.returncode, done.stderr.strip()


async def disk(make) -> list[tuple]:
    from mlcycle.core import Project
    from mlcycle.ledger import champion
    drill = make('disk')
    place = drill.project.folder.parent/'small'
    place.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=48m', 'tmpfs', str(place)], capture_output=True, text=True)
    if mounted.returncode: return [('disk', f'left out: {mounted.stderr.strip()[:100]}', None)]
    rows = []
    drill.compared('2')
    try:
        for left in (0, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256):
            there = place/f'p{left}'
            shutil.copytree(drill.project.folder, there)
            project = Project(there, actor='Ada')
            status, said = await asyncio.to_thread(squeezed, project, place, left*1024)
            holder, whole = champion(Project(there, read_only=True).ledger), project.ledger.verify()
            again = subprocess.run([PROGRAM, 'promote', '2', '--because', 'a drill', '--project', str(there)], capture_output=True, text=True, env=ALONE)
            rows.append((left, status, holder, whole.ok, again.returncode == 0 and champion(Project(there).ledger) == '2', said))
            shutil.rmtree(there)
    finally: subprocess.run(['umount', '-l', str(place)], check=True)
    t = pd.DataFrame(rows, columns=['left', 'status', 'champion', 'whole', 'again', 'said'])
    half = t[(t['status'] == 0) != (t['champion'] == '2')]
    refused = t[t['status'] != 0]
    unclear = refused[refused['said'].str.contains('Traceback') | (refused['said'] == '')]
    return [('room left, kB: refused', f'{refused["left"].tolist()} of {t["left"].tolist()}', 0 < len(refused) < len(t)),
            ('refused, and promoted all the same (or told done, and not)', str(half[['left', 'status', 'champion']].to_dict('records')), not len(half)),
            ('told how', f'{refused["said"].iloc[0][:300] if len(refused) else ""}; unclear: {unclear[["left", "said"]].to_dict("records")}'[-1500:], not len(unclear)),
            ('ledger whole, promoted once there is room', f'{int(t["whole"].sum())}, {int(t["again"].sum())} of {len(t)}', bool(t['whole'].all() and t['again'].all()))]


DRILLS = {f.__name__: f for f in (canary, promotions, kill, lock, clock, disk)}


def main() -> None:
    from functools import partial
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path(__file__).resolve().parents[2]/'shared'/'data', help='folder of the data sets')
    parser.add_argument('--only', action='append', choices=[*DRILLS], help='again for several')
    parser.add_argument('--folder', default='.', help='where projects and servers write')
    given, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place).resolve()
        project, bodies = prepared(folder/'source', given.data)
        make = partial(lambda name, folder, **more: Drill(folder/name, project, bodies, **more), folder=folder)
        for name in given.only or DRILLS:
            begun = time.time()
            for what, seen, met in asyncio.run(DRILLS[name](make)):
                rows.append(met)
                print(f'{name:11} {"left out" if met is None else "met" if met else "NOT MET":8} {what}: {seen}', flush=True)
            print(f'{name:11} {time.time()-begun:.0f} s', flush=True)
    sys.exit(any(met is not None and not met for met in rows))


if __name__ == '__main__': main()
