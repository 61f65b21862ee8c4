"""Ten million rows through `mlcycle score`: rows a second against the scorer alone on the same processes, and the memory of the whole tree.

    python benchmarks/batch.py [--rows 10000000] [--workers 2] [--format parquet|csv] [--out folder|parquet|csv]

The model is that of `serving.py`: scaler and one-hot over 20 numeric and 10 categorical columns before histogram gradient boosting.
"The scorer alone" is as many worker processes, with one thread each, that score pieces which lie in memory already: nothing is read,
logged or written. It is measured three times: the pipeline on DataFrames, the compiled scorer on columns of Python values, and what
`mlcycle score` itself uses. The project is made anew in a temporary folder; its disk is the one that TMPDIR names.
"""
import argparse, sys, tempfile, time
from pathlib import Path
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from serving import NUMBERS, WORDS, make_project, rows

CHUNK, PIECE = 500_000, 50_000


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


def alone(folder: str, how: str, seconds: float) -> float:
    "Rows a second of one worker that has its rows in memory."
    from mlcycle.compiled import compile_pipeline
    from mlcycle.core import Project
    from mlcycle.scoring import answers
    model = Project(folder, read_only=True).registry.load('champion')
    piece = rows(PIECE, seed=2).drop(columns='label')
    columns = {c: piece[c].tolist() for c in piece}
    scorer = compile_pipeline(model.estimator, model.info.columns, model.task)
    do = {'pipeline': lambda: model.scores(piece), 'compiled': lambda: scorer.many(columns), 'answers': lambda: answers(model, piece)}[how]
    do()
    begun, done = time.perf_counter(), 0
    while time.perf_counter()-begun < seconds: do(); done += PIECE
    return done/(time.perf_counter()-begun)


def measured(command: list) -> tuple[float, float]: # seconds, gigabytes at the peak
    "Run a command and watch the memory of it and all its children, shared pages counted once."
    begun, peak = time.perf_counter(), 0
    run = psutil.Popen(command)
    while run.poll() is None:
        try: peak = max(peak, sum(p.memory_full_info().pss for p in [run, *run.children(recursive=True)]))
        except psutil.Error: pass
        time.sleep(.5)
    if run.returncode: sys.exit(f'{command[2]} ended with status {run.returncode}')
    return time.perf_counter()-begun, peak/1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=10_000_000)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--format', choices=['parquet', 'csv'], default='parquet')
    parser.add_argument('--out', choices=['folder', 'parquet', 'csv'], default='folder')
    parser.add_argument('--seconds', type=float, default=20, help='for each scorer alone')
    asked = parser.parse_args()
    from mlcycle.batch import Spread, mapper
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        project, _ = make_project(home/'project', rows(20_000))
        source = home/f'in.{asked.format}'
        write_input(source, asked.rows)
        print(f'{asked.rows:,} rows, {source.stat().st_size/1e9:.2f} GB of {asked.format}; {asked.workers} workers', flush=True)
        rates = {}
        with mapper(Spread(workers=asked.workers), parts=asked.workers) as mapped:
            for how in ('pipeline', 'compiled', 'answers'):
                n = asked.workers
                rates[how] = sum(mapped(alone, [str(project.folder)]*n, [how]*n, [asked.seconds]*n))
                print(f'  {how:<10} alone, in memory: {rates[how]:>12,.0f} rows/s', flush=True)
        out = home/('scores' if asked.out == 'folder' else f'scores.{asked.out}')
        seconds, peak = measured([Path(sys.executable).with_name('mlcycle'), 'score', source, '--out', out, '--workers', str(asked.workers), '--project', project.folder])
        rate, logged = asked.rows/seconds, pq_rows(project)
        print(f'  mlcycle score, from start to end: {rate:>12,.0f} rows/s ({seconds:.1f} s), peak {peak:.2f} GB; {logged:,} rows in the log')
        for how, alone_rate in rates.items(): print(f'    {rate/alone_rate:.2f} × {how} alone')


def pq_rows(project) -> int:
    from deltalake import DeltaTable
    return DeltaTable(project.tables.uri('predictions')).to_pyarrow_dataset().count_rows()


if __name__ == '__main__': main()
