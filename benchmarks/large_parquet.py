"""The profile of a Parquet file that does not fit into memory: cost per row and memory, beside the same at a million rows.

The file has five columns: two floats, a whole number, a category of 50 levels and a date, 2 % nulls in the first, in row groups of half a million
rows, generated one at a time (a hundred million rows take about 2.5 GB of disk). Each size is profiled by `scan` in a process of its own;
told are seconds of processor and of the clock a million rows, and the largest memory of the process.

    python benchmarks/large_parquet.py --rows 100000000
    python benchmarks/large_parquet.py --rows 5000000        # a quick run
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GROUP = 500_000


def write(path: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet
    rng, writer = np.random.default_rng(0), None
    names = pa.array([f'level {k:02}' for k in range(50)])
    for start in range(0, rows, GROUP):
        n = min(GROUP, rows-start)
        income = rng.lognormal(8, .4, n)
        table = pa.table({'income': pa.array(income, mask=rng.random(n) < .02), 'ratio': rng.random(n), 'count': rng.poisson(8, n),
                          'level': pa.DictionaryArray.from_arrays(pa.array((50*rng.random(n)**2).astype('int32')), names).cast(pa.string()),
                          'day': pa.array(rng.integers(19_000, 20_000, n).astype('int32')).cast(pa.date32())})
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def measure(path: str) -> dict:
    from mlcycle.scan import scan
    began, used = time.perf_counter(), time.process_time()
    found = scan(path)
    return dict(rows=found.rows, seconds=time.perf_counter()-began, processor=time.process_time()-used,
                megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, columns=len(found.columns))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=100_000_000)
    parser.add_argument('--few', type=int, default=1_000_000)
    parser.add_argument('--folder', help='where the files are written; default: a temporary folder')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure: print(json.dumps(measure(args.measure))); return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = []
        for rows in (args.few, args.rows):
            path = Path(folder)/f'{rows}.parquet'
            write(path, rows)
            said = subprocess.run([sys.executable, __file__, '--measure', str(path)], capture_output=True, text=True, check=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
            f = found[-1]
            print(f'{f["rows"]:>12,} rows, {path.stat().st_size/1e6:,.0f} MB on disk: {1e6*f["processor"]/f["rows"]:.3f} s of processor and '
                  f'{1e6*f["seconds"]/f["rows"]:.3f} s a million rows, {f["megabytes"]:,.0f} MB at most', flush=True)
            path.unlink()
        ratio = [f['processor']/f['rows'] for f in found]
        print(f'cost per row: {ratio[1]/ratio[0]:.2f} times that of {args.few:,} rows')


if __name__ == '__main__': main()
