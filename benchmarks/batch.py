"""Ten million rows through `mlcycle score`: rows a second against the scorer alone on the same processes, and the memory of the whole tree.

    python benchmarks/batch.py [--rows 10000000] [--workers 2] [--format parquet|csv] [--out folder|parquet|csv] [--rounds 3]

The model is that of `serving.py`: scaler and one-hot over 20 numeric and 10 categorical columns before histogram gradient boosting.
"The scorer alone" is as many worker processes as the command has (two, not one), at the same time and with one thread each, that score
pieces of 50,000 rows which lie in memory already: nothing is read, checked, logged or written, and their start is not counted. The rate is
the sum over the workers. It is measured three times: the pipeline on DataFrames; `compiled`, the compiled scorer on columns of Python
values, as a request brings them, which is what the bar of 0.8 is about; and `dense`, the same scorer on arrays of numbers and of levels, the
quickest form there is and the one that `mlcycle score` itself uses, against which the distance is larger. Then the command runs from start
to end, and `compiled` is measured again after it: its share is that of the mean of both, since machines are quicker and slower by the
minute. For the same reason all of it is done in several rounds, in turns, and what was promised is judged by the median of the rounds. It
runs with its rows in the log of predictions and without, and with all columns of the table in the output or only the id (`--column id`: who
joins the answers to the table again needs no second copy of it). What was promised is said to be met or not for each. On a machine that
others use the clock says little: beside each rate stands that of one second of processor time, over all processes, with all that starting
and ending them takes. The project is made anew in a temporary folder; its disk is the one that TMPDIR names.
"""
import argparse, ctypes, os, resource, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from serving import NUMBERS, WORDS, make_project, rows

CHUNK, PIECE = 500_000, 50_000
PR_SET_CHILD_SUBREAPER = 36   # of Linux's prctl
SHARE, GIGABYTES = .8, 2   # of the compiled scorer alone; of memory
WAYS = {'in the log, all columns': (), 'in the log, id': ('--column', 'id'), 'not in the log, all columns': ('--no-log',),
        'not in the log, id': ('--no-log', '--column', 'id')}


def write_input(path: Path, n: int) -> None:
    "Rows of the model's columns and an id, chunk by chunk."
    first, writer = rows(min(n, CHUNK), seed=1).drop(columns='label'), None
    for start in range(0, n, CHUNK):
        part = first.head(n-start).assign(id=[f'r{i}' for i in range(start, start+min(CHUNK, n-start))])
        if path.suffix == '.csv':
            part.to_csv(path, index=False, header=not start, mode='a')
            continue
        table = pa.Table.from_pandas(part, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=250_000)
    if writer: writer.close()


def alone(folder: str, how: str, seconds: float) -> tuple[float, float]:
    "Rows a second, and a second of processor time, of one worker that has its rows in memory."
    from mlcycle.compiled import compile_pipeline
    from mlcycle.core import Project
    from mlcycle.encoding import Levels
    model = Project(folder, read_only=True).registry.load('champion')
    piece = rows(PIECE, seed=2).drop(columns='label')
    columns, codes = {c: piece[c].tolist() for c in piece}, {c: pd.factorize(piece[c]) for c in WORDS}
    dense = {c: piece[c].to_numpy() for c in NUMBERS} | {c: Levels(levels.tolist(), found) for c, (found, levels) in codes.items()}
    scorer = compile_pipeline(model.estimator, model.info.columns, model.task)
    do = {'pipeline': lambda: model.scores(piece), 'compiled': lambda: scorer.many(columns), 'dense': lambda: scorer.many(dense)}[how]
    do()
    begun, used, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter()-begun < seconds: do(); done += PIECE
    return done/(time.perf_counter()-begun), done/(time.process_time()-used)


def measured(command: list) -> tuple[float, float, float]: # seconds, of processor time, gigabytes at the peak
    "Run a command and watch the memory of it and all its children, shared pages counted once."
    begun, used, peak, others = time.perf_counter(), processor(), 0, {p.pid for p in psutil.Process().children()}
    run = psutil.Popen(command)
    while run.poll() is None:
        try: peak = max(peak, sum(p.memory_full_info().pss for p in [run, *run.children(recursive=True)]))
        except psutil.Error: pass
        try: run.wait(1)   # to look costs the processor something, so not too often; the end is seen when it comes
        except psutil.TimeoutExpired: pass
    seconds = time.perf_counter()-begun
    if run.returncode: sys.exit(f'{command[2]} ended with status {run.returncode}')
    for left in {p.pid for p in psutil.Process().children()}-others: os.waitpid(left, 0)   # what workers were forked from ends after the command
    return seconds, processor()-used, peak/1e9


def processor() -> float: # seconds
    "Processor time of all processes that were started and have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime+used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=10_000_000)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--format', choices=['parquet', 'csv'], default='parquet')
    parser.add_argument('--out', choices=['folder', 'parquet', 'csv'], default='folder')
    parser.add_argument('--rounds', type=int, default=3, help='at least one')
    parser.add_argument('--seconds', type=float, default=12, help='for each scorer alone')
    asked = parser.parse_args()
    from mlcycle.batch import Spread, mapper
    from mlcycle.batch import known_path
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)   # what outlives the command becomes a child of this process, and is counted
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        project, _ = make_project(home/'project', rows(20_000))
        source = home/f'in.{asked.format}'
        write_input(source, asked.rows)
        print(f'{asked.rows:,} rows, {source.stat().st_size/1e9:.2f} GB of {asked.format}; {asked.workers} workers', flush=True)
        def rate_of(how: str) -> np.ndarray: # rows a second, and a second of processor
            n = asked.workers
            found = np.array([*mapped(alone, [str(project.folder)]*n, [how]*n, [asked.seconds]*n)]).T
            rate = np.array([found[0].sum(), found[1].mean()])
            print(f'  {how:<10} alone, in memory: {rate[0]:>12,.0f} rows/s, {rate[1]:,.0f} a second of processor', flush=True)
            return rate
        out = home/('scores' if asked.out == 'folder' else f'scores.{asked.out}')
        print(f'  {known_path(project, "1").headline}', flush=True)   # compared once for each version, here and not in what is measured
        command = [Path(sys.executable).with_name('mlcycle'), 'score', source, '--out', out, '--workers', str(asked.workers), '--project', project.folder]
        shares, peaks = {what: [] for what in WAYS}, {what: [] for what in WAYS}
        with mapper(Spread(workers=asked.workers), parts=asked.workers) as mapped:
            rates = {how: rate_of(how) for how in ('pipeline', 'dense', 'compiled')}
            for what, more in [*WAYS.items()]*asked.rounds:
                before, scorer = pq_rows(project), rates['compiled']
                os.sync()   # what the runs before have left for the disk is not this one's work
                seconds, used, peak = measured([*command, *more])
                rate, work, logged = asked.rows/seconds, asked.rows/used, pq_rows(project)-before
                print(f'  mlcycle score, {what:<27}: {rate:>9,.0f} rows/s ({seconds:.1f} s), {work:,.0f} a second of processor, peak {peak:.2f} GB; {logged:,} rows in the log', flush=True)
                rates['compiled'] = rate_of('compiled')
                beside = {**rates, 'compiled': (scorer+rates['compiled'])/2}
                print('    '+', '.join(f'{rate/clock:.2f} × {how} alone ({work/own:.2f} of processor)' for how, (clock, own) in beside.items()), flush=True)
                shares[what].append(rate/beside['compiled'][0])
                peaks[what].append(peak)
        print(f'promised, median of {asked.rounds}')
        for what in WAYS:
            share, peak = float(np.median(shares[what])), max(peaks[what])
            say(share >= SHARE, f'{what}: {share:.2f} × compiled alone ({", ".join(f"{s:.2f}" for s in shares[what])}), {SHARE} asked')
            say(peak < GIGABYTES, f'{what}: {peak:.2f} GB at the peak, {GIGABYTES} allowed')


def say(met: bool, what: str) -> None: print(f'  {"met    " if met else "NOT MET"} {what}')


def pq_rows(project) -> int:
    from deltalake import DeltaTable
    if not project.tables.exists('predictions'): return 0
    return DeltaTable(project.tables.uri('predictions')).to_pyarrow_dataset().count_rows()


if __name__ == '__main__': main()
