"""A small project with a version that may answer, for the tests of scoring, serving and deployment."""
import asyncio
from pathlib import Path
import httpx
import numpy as np
import pandas as pd
from mlcycle.core import Project, jsonable
from mlcycle.features import build_pipeline
from mlcycle.plans import encode_target, infer_plan
from mlcycle.gates import approval_digest
from mlcycle.registry import promote

HTML, FORMULA, LONG = '<img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", 'l'*500


def strange_rows(n: int=200, seed: int=0) -> pd.DataFrame:
    "Rows whose columns are named by strangers: markup, a formula, names that the log itself uses, quotes and lines."
    draw = np.random.default_rng(seed)
    x = draw.normal(size=n)
    return pd.DataFrame({'id': [f'00{i}' for i in range(n)], HTML: x, FORMULA: draw.choice(['a', 'b', '=1+1'], n), 'score': draw.normal(size=n),
                         'version': draw.choice(['x', 'y'], n), 'a"b\nc': draw.normal(size=n), LONG: draw.integers(0, 5, n), 'at': draw.normal(size=n),
                         'prediction_id': draw.choice(['p', 'q', 'r'], n), 'sex': draw.choice(['f', 'm'], n),
                         'label': np.where(x+draw.normal(scale=.5, size=n) > 0, 'yes', 'no')})


def new_project(folder: Path, *, target: str='label', task: str='binary', more: str='', data: str='') -> Project:
    "A project's folder with settings."
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'mlcycle.toml').write_text(f'''
[project]
name = "Strange & <Rows>"
author = "Ada"
[problem]
task = "{task}"
target = "{target}"
[data]
sources = [{{name = "rows", path = "rows.csv"}}]
{data}
[governance]
signatures = 1
{more}
''')
    return Project(folder, actor='Ada')


def register(project: Project, rows: pd.DataFrame, estimator) -> str:
    "Train on rows and register; returns the version."
    plan = infer_plan(rows, project.settings)
    train = project.tables.write('train', rows)
    project.record(train, subject='train')
    y = encode_target(rows[plan.target], project.settings)
    pipeline = build_pipeline(plan, estimator).fit(rows[plan.inputs], y)
    facts = {'algorithm': type(estimator).__name__, 'plan': plan.body(), 'data': train.hash, 'threshold': 0.5 if plan.task == 'binary' else None,
             'classes': jsonable(list(pipeline.classes_)) if plan.task == 'multiclass' else []}
    return project.registry.register(pipeline, example=rows[plan.inputs], facts=facts).version


def sign(project: Project, version: str) -> None:
    "Leave what validation and another person's signature leave."
    project.ledger.append(stage='validation', kind='validation', subject=version, body={'verdict': 'pass'}, actor='Ada')
    body = {'version': version, 'by': 'Grace', 'because': 'looks right', 'digest': approval_digest(project, version)}
    project.ledger.append(stage='governance', kind='approval', subject=version, body=body, actor='Grace')


def crown(project: Project, version: str) -> None:
    "Sign a version, compare it where there is a champion, and make it champion."
    sign(project, version)
    from mlcycle.ledger import champion
    if (current := champion(project.ledger)) not in (None, version):
        project.ledger.append(stage='retraining', kind='comparison', subject=version, body={'champion': current, 'promotable': True}, actor='Ada')
    promote(project, version, to='champion', because='a test')


def retire(project: Project, version: str, successor: str | None=None) -> None:
    "Leave what retirement leaves."
    body = {'version': version, 'successor': successor, 'because': 'a test'}
    project.ledger.append(stage='retirement', kind='retirement', subject=version, body=body, actor='Ada')


def taken_in(app, path: str, token: str, *, part: int, parts: int) -> tuple[int, int]: # status, parts of the body that were asked for
    "Send a body whose length is not announced, a part whenever the application asks for more."
    asked, headers = [], {'Authorization': f'Bearer {token}', 'Content-Type': 'application/json'}
    async def body():
        for n in range(parts): asked.append(n); yield b' '*part
    async def send() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://localhost', headers=headers) as client:
            return (await client.post(path, content=body())).status_code
    return asyncio.run(send()), len(asked)
