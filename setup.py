"""Package metadata of mlcycle, read from settings.ini so that it is written once."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(HERE/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

EXTRAS = ('apps', 'serve', 'onnx', 'boost', 'dask', 'dev')
extras = {name: cfg[f'{name}_requirements'].split() for name in EXTRAS}
extras['dev'] = sorted({name for needed in extras.values() for name in needed})   # a developer tests every extra

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(HERE/'README.md').read_text(encoding='utf-8') if (HERE/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    keywords=cfg['keywords'].split(), python_requires=f">={cfg['min_python']}",
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers',
                 'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12'],
    packages=['mlcycle', 'mlcycle.steps', 'mlcycle.apps'],
    package_dir={'mlcycle': 'mlcycle', 'mlcycle.steps': 'nbs/steps', 'mlcycle.apps': 'nbs/apps'},
    package_data={'mlcycle.steps': ['*.ipynb'], 'mlcycle.apps': ['*.ipynb', 'voila/templates/mlcycle/*', 'lab/labconfig/*']},
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
